//! One kind, listed and watched.
//!
//! Not by kube-rs's `watcher`: with streaming lists that one does not say when a list begins anew, so that the half of a broken one counts for
//! the next; and it keeps bookmarks to itself, which are the only sign of life that a quiet watch gives.
//!
//! Invariants
//! - A list that was not heard to its end is told as begun and never as [`Whole`](Event::Whole).
//! - Lists are consistent reads: none is older than what was known before it.
//! - A watch in which nothing was said for [`SILENCE`] is taken for half dead, and opened again where it was.
//! - Whatever goes wrong is tried again, at a pace that slows down to [`MOST_PAUSE`], with jitter.
//! - One line of an answer is bounded ([`lines`]); what is told waits until it is taken.

mod lines;
mod rights;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Collected, Limited};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout};
use weft_api::kinds::{Node, Value};

use self::lines::Lines;
use super::kind::{Seen, Watched, What, name, text};
use crate::metrics::Metrics;
use crate::model::Name;

/// Bookmarks come each minute.
const SILENCE: Duration = Duration::from_secs(90);
/// For the beginning of an answer, and for a page.
const ANSWER: Duration = Duration::from_secs(30);
/// The server ends a watch after so many seconds, and up to half as many more.
const WATCH_SECONDS: u64 = 300;
const PAGE: usize = 500;
/// Of an answer that is a refusal.
const MAX_REFUSAL: usize = 64 << 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(10);
/// Whoever was heard for so long is not failing time and again.
const STEADY: Duration = Duration::from_secs(5);
/// On the bookmark that ends a streaming list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event {
    /// A list begins; half of one before it does not count.
    Begins,
    /// An object is there, perhaps as it was.
    Found(Box<Seen>),
    /// It is gone.
    Gone(Name),
    /// The list has ended: what was not in it is gone.
    Whole,
    /// Nothing new, but the server is there.
    Alive,
    /// The server does not know the kind.
    Absent,
    /// The server does not let us read the kind, and has not yet; in its words.
    Forbidden(String),
    /// What is known may be old by now.
    Failed(String),
}

/// Why a session is over.
#[derive(Debug)]
enum Ended {
    /// The server has ended the watch, as it does each few minutes.
    InTime,
    /// Where it was is too long ago: it has to be listed again.
    Expired,
    Absent,
    /// 403.
    Forbidden(String),
    /// The server has no streaming lists.
    Unstreamed(String),
    Failed(String),
    /// Nobody listens any more.
    Alone,
}

/// Follows one kind, and tells of it under a number.
pub(super) struct Follower {
    client: Client,
    number: usize,
    watched: &'static Watched,
    out: Sender<(usize, Event)>,
    metrics: Arc<Metrics>,
    /// Whether good objects are told with what is kept of them.
    keeps: bool,
    /// The version of the kind that the server has.
    served: Option<&'static str>,
    /// Where the watch goes on; `None`: what is there has to be listed.
    resume: Option<String>,
    /// Whether to try a streaming list.
    streams: bool,
    /// Whether a list was whole once.
    listed: bool,
    /// Whether it may not be read, by the last answer.
    forbidden: bool,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    what: String,
    object: Node,
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    #[serde(default)]
    items: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: String,
}

impl Follower {
    pub fn new(
        client: Client,
        number: usize,
        watched: &'static Watched,
        out: Sender<(usize, Event)>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (served, resume) = (None, None);
        Self {
            client,
            number,
            watched,
            out,
            metrics,
            keeps: false,
            served,
            resume,
            streams: true,
            listed: false,
            forbidden: false,
        }
    }

    /// The same; if it keeps, good objects are told with what is kept of them.
    pub fn keeping(self, keeps: bool) -> Self {
        Self { keeps, ..self }
    }

    /// Until nobody listens.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let ended = self.session().await;
            if begun.elapsed() >= STEADY {
                failures = 0;
            }
            let told = match ended {
                Ended::Alone => return,
                Ended::InTime => Ok(()),
                Ended::Expired => {
                    self.resume = None;
                    Ok(())
                }
                Ended::Unstreamed(why) if self.streams => {
                    tracing::info!(
                        kind = self.watched.kind,
                        why,
                        "no streaming lists: the API server is asked for pages"
                    );
                    self.streams = false;
                    continue;
                }
                Ended::Absent => self.absent().await,
                Ended::Forbidden(why) => self.refused(why).await,
                Ended::Failed(why) | Ended::Unstreamed(why) => {
                    self.metrics.source.event(self.watched.kind, "error");
                    self.tell(Event::Failed(why)).await
                }
            };
            if told.is_err() {
                return;
            }
            sleep(pause(failures, jitter())).await;
            failures = failures.saturating_add(1);
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Ended> {
        if !matches!(event, Event::Absent | Event::Forbidden(_) | Event::Failed(_)) {
            self.metrics.source.heard(self.watched.kind);
        }
        self.out.send((self.number, event)).await.map_err(|_| Ended::Alone)
    }

    /// Follows the version that is served, or the first that is.
    async fn session(&mut self) -> Ended {
        if let Some(version) = self.served {
            return self.follow(version).await.err().unwrap_or(Ended::InTime);
        }
        for version in self.watched.versions {
            match self.follow(version).await {
                Err(Ended::Absent) => {}
                ended => return ended.err().unwrap_or(Ended::InTime),
            }
        }
        Ended::Absent
    }

    async fn follow(&mut self, version: &'static str) -> Result<(), Ended> {
        let path = self.watched.path(version);
        if self.resume.is_none() && !self.streams {
            self.pages(&path, version).await?;
        }
        let lines = self.open(&path).await?;
        self.served = Some(version);
        self.allowed();
        self.listen(lines).await
    }

    /// Lists by pages.
    async fn pages(&mut self, path: &str, version: &'static str) -> Result<(), Ended> {
        let mut more = String::new();
        loop {
            let body = self.get(format!("{path}?limit={PAGE}{more}")).await?;
            let page = timeout(ANSWER, body.collect()).await;
            let page = page.map_err(|_| failed("a page of the list did not come"))?.map_err(failed)?.to_bytes();
            let page: Page = serde_json::from_slice(&page).map_err(failed)?;
            if more.is_empty() {
                self.served = Some(version);
                self.allowed();
                self.begin().await?;
            }
            for node in &page.items {
                self.found(node, "listed").await?;
            }
            if page.metadata.more.is_empty() {
                self.listed = true;
                self.resume = Some(page.metadata.resource_version);
                return self.tell(Event::Whole).await;
            }
            more = format!("&continue={}", page.metadata.more);
        }
    }

    async fn begin(&self) -> Result<(), Ended> {
        self.metrics.source.begins(self.watched.kind);
        self.tell(Event::Begins).await
    }

    async fn found(&self, node: &Node, what: &'static str) -> Result<(), Ended> {
        self.metrics.source.event(self.watched.kind, what);
        let mut seen = self.watched.read(node).ok_or_else(|| failed("an object without a name"))?;
        if self.keeps && matches!(seen.what, What::Good(_)) {
            seen.written = self.watched.written(node);
        }
        self.tell(Event::Found(Box::new(seen))).await
    }

    /// Opens a watch where the last one was, or one that lists first.
    async fn open(&self, path: &str) -> Result<Lines, Ended> {
        let seconds = WATCH_SECONDS + WATCH_SECONDS / 2 * u64::from(jitter()) / 256;
        let from = match &self.resume {
            Some(version) => format!("resourceVersion={version}"),
            // Without a version: at least what is there now.
            None => "sendInitialEvents=true&resourceVersionMatch=NotOlderThan".to_owned(),
        };
        let path = format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&{from}");
        Ok(Lines::of(self.get(path).await?))
    }

    /// The body of an answer that is no refusal.
    async fn get(&self, path: String) -> Result<Body, Ended> {
        let request = Request::get(path).body(Body::empty()).map_err(failed)?;
        let answer = timeout(ANSWER, self.client.send(request)).await;
        let answer =
            answer.map_err(|_| failed("no answer came"))?.map_err(|error| failed(crate::cluster::said(&error)))?;
        match answer.status() {
            status if status.is_success() => Ok(answer.into_body()),
            StatusCode::NOT_FOUND => Err(Ended::Absent),
            StatusCode::GONE => Err(Ended::Expired),
            status => {
                let text = timeout(ANSWER, Limited::new(answer.into_body(), MAX_REFUSAL).collect()).await;
                let text = text.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
                match status {
                    StatusCode::FORBIDDEN => Err(Ended::Forbidden(refusal(&text))),
                    // How a server refuses what it does not have.
                    StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                        Err(Ended::Unstreamed(refusal(&text)))
                    }
                    _ => Err(failed(format!("{}: {}", status.as_u16(), refusal(&text)))),
                }
            }
        }
    }

    async fn listen(&mut self, mut lines: Lines) -> Result<(), Ended> {
        let mut listing = self.resume.is_none();
        let begun = if listing { self.begin().await } else { self.tell(Event::Alive).await };
        begun?;
        loop {
            let line = match timeout(SILENCE, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                // A server that is older than such lists takes the question for another, and never says that one has ended.
                Ok(Ok(None)) | Err(_) if listing => return Err(Ended::Unstreamed("the list did not end".to_owned())),
                Ok(Ok(None)) => return Err(Ended::InTime),
                Ok(Err(why)) => return Err(Ended::Failed(why)),
                Err(_) => {
                    self.metrics.source.event(self.watched.kind, "silence");
                    return Err(failed("nothing was said for too long"));
                }
            };
            let Line { what, object } = serde_json::from_slice(&line).map_err(failed)?;
            match what.as_str() {
                "ADDED" if listing => self.found(&object, "listed").await?,
                "ADDED" => self.found(&object, "added").await?,
                "MODIFIED" => self.found(&object, "modified").await?,
                "DELETED" => {
                    self.metrics.source.event(self.watched.kind, "deleted");
                    let name = name(&object).ok_or_else(|| failed("an object without a name"))?;
                    self.tell(Event::Gone(name)).await?;
                }
                "BOOKMARK" => {
                    self.metrics.source.event(self.watched.kind, "bookmark");
                    let ends = text(&object, &["metadata", "annotations", END_OF_LIST]).is_some();
                    self.tell(if listing && ends { Event::Whole } else { Event::Alive }).await?;
                    listing &= !ends;
                    self.listed |= ends;
                }
                "ERROR" => {
                    return Err(match error(&object) {
                        // Some say only here that they cannot (with an etcd before 3.5, say).
                        Ended::Failed(why) if listing => Ended::Unstreamed(why),
                        ended => ended,
                    });
                }
                _ => {}
            }
            if !listing && let Some(version) = text(&object, &["metadata", "resourceVersion"]) {
                self.resume = Some(version.to_owned());
            }
        }
    }
}

fn failed(why: impl ToString) -> Ended {
    Ended::Failed(why.to_string())
}

/// A Status in a watch.
fn error(status: &Node) -> Ended {
    let is_gone = status.get("code").is_some_and(|code| code.value == Value::Int(410));
    if is_gone { Ended::Expired } else { failed(text(status, &["message"]).unwrap_or("an error without a message")) }
}

/// What a refusal says of itself.
fn refusal(text: &Bytes) -> String {
    let status = serde_json::from_slice::<Node>(text).ok();
    let message = status.as_ref().and_then(|status| self::text(status, &["message"]));
    message.map_or_else(|| String::from_utf8_lossy(text).trim().to_owned(), str::to_owned)
}

/// Doubles from failure to failure; between the half and the whole of that, by a byte of chance.
fn pause(failures: u32, chance: u8) -> Duration {
    let most = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(MOST_PAUSE);
    most / 2 + most / 2 * u32::from(chance) / 256
}

fn jitter() -> u8 {
    weft_certs::files::random(1).ok().and_then(|bytes| bytes.first().copied()).unwrap_or(128)
}

#[cfg(test)]
mod tests;
