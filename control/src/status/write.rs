//! The one who writes: hears what changed, judges it when its turn comes, and applies what differs.
//!
//! Bounds: [`WRITES`] at a time, each for [`crate::cluster::QUESTION`] at most, which is over before the Lease can be another's.

use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Method, Request};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::desk::{Desk, Missed};
use super::inbox::Waiting;
use super::judge::judge;
use super::merge::{self, News, Said};
use super::{Key, Subject};
use crate::cluster::{ClusterError, ask};
use crate::distribute::Hub;
use crate::leases::Held;

/// Owner of the fields that we apply: not the one of other things that control writes, so that nobody takes one for the other.
const MANAGER: &str = "weft-control-status";
const WRITES: usize = 8;
/// Objects that are judged before others get their turn on this thread.
const AT_A_TIME: usize = 64;
/// How often it is looked whether the proxies are back, after a start.
const LOOK: Duration = Duration::from_secs(1);

type Written = (Key, Result<Json, ClusterError>);

struct Writer {
    client: Client,
    hub: Arc<Hub>,
    held: Held,
    /// As it was when it was looked at last.
    leads: bool,
    /// The proxies that were connected before the start are back, or were waited for.
    settled: bool,
    desk: Desk,
    writes: JoinSet<Written>,
    said: Option<String>,
}

/// Until `stop`.
pub(super) async fn run(client: Client, hub: Arc<Hub>, held: Held, stop: CancellationToken) {
    let mut writer = Writer {
        client,
        hub,
        held,
        leads: false,
        settled: false,
        desk: Desk::default(),
        writes: JoinSet::new(),
        said: None,
    };
    let mut look = tokio::time::interval(LOOK);
    loop {
        let more = writer.begin();
        let at = writer.desk.next().filter(|_| writer.leads && writer.writes.len() < WRITES);
        let next = async {
            match at {
                _ if more => tokio::task::yield_now().await,
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let (hub, leads) = (Arc::clone(&writer.hub), writer.leads);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = writer.held.other_than(leads) => writer.elected(),
            Some(done) = writer.writes.join_next() => match done {
                Ok((key, answer)) => writer.written(&key, answer),
                Err(error) => tracing::error!(%error, "a write of status died"),
            },
            waiting = hub.status.next() => writer.hear(waiting),
            _ = look.tick(), if !writer.settled => writer.look(),
            () = next => {}
        }
    }
}

impl Writer {
    fn elected(&mut self) {
        self.leads = self.held.now();
        if self.leads {
            self.desk.touch_all(Instant::now());
        } else {
            self.desk.rest();
        }
        self.count();
    }

    fn look(&mut self) {
        self.settled = *self.hub.loaded().borrow() && self.hub.is_settled();
        if self.settled && self.leads {
            self.desk.touch_all(Instant::now());
        }
    }

    fn hear(&mut self, waiting: Waiting) {
        let now = Instant::now();
        let model = self.hub.model();
        for (key, subject) in waiting.subjects {
            self.desk.saw(key, subject, model.as_deref(), now, self.leads);
        }
        drop(model);
        if !self.leads {
            return;
        }
        if waiting.all {
            self.desk.touch_all(now);
        }
        for name in waiting.names {
            self.desk.changed(&name, now);
        }
        self.count();
    }

    /// Begins the writes that are due, as many as there is room for. Whether there is more to look at.
    fn begin(&mut self) -> bool {
        for _ in 0..AT_A_TIME {
            let now = Instant::now();
            if !self.leads || self.writes.len() >= WRITES {
                return false;
            }
            let Some((key, subject)) = self.desk.take(now) else { return false };
            let Some((status, news)) = self.status(&key, &subject) else { continue };
            if news == News::Nothing || (news == News::Counts && !self.desk.may_count(&key, now)) {
                continue;
            }
            // Looked at last before it is sent.
            if !self.held.at(now) {
                return false;
            }
            self.desk.writes(&key, now);
            let client = self.client.clone();
            self.writes.spawn(async move {
                let answer = apply(&client, &key, &subject, status).await;
                (key, answer)
            });
        }
        self.count();
        true
    }

    /// What the object's status ought to be, and what of it is new.
    fn status(&self, key: &Key, subject: &Subject) -> Option<(Json, News)> {
        let (kind, name) = key;
        let picture = self.settled.then(|| self.hub.object(kind.name(), &name.to_string())).flatten();
        // Who is away may use it or not: who is back says so.
        let picture = picture.map(|found| crate::distribute::picture::Picture { away: Vec::new(), ..found.picture });
        let elsewhere = self.hub.replicas.seen().iter().map(|replica| replica.proxies).sum();
        let picture = picture.as_ref().map(|picture| (picture, elsewhere));
        let judged = self.hub.compiled(|compiled| judge(key, subject, compiled.model(), picture))?;
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let said = Said { at: &at, generation: subject.generation, namespace: &name.namespace };
        Some(if kind.is_policy() {
            let (conditions, news) = merge::conditions(&subject.told, judged.first()?, said);
            (json!({ "conditions": conditions }), news)
        } else {
            let (parents, news) = merge::parents(&subject.told, &subject.parents, &judged, said);
            (json!({ "parents": parents }), news)
        })
    }

    fn written(&mut self, key: &Key, answer: Result<Json, ClusterError>) {
        let outcome = match &answer {
            Ok(_) => "ok",
            // What it is now comes by the watch, and is judged then.
            Err(error) if error.is_conflict() => "conflict",
            Err(error) if error.is_absent() => "gone",
            Err(error) => {
                let (kind, name) = (key.0.name(), &key.1);
                let advice = match error.status() {
                    Some(403) => {
                        "; give control the ClusterRole of docs/kubernetes.md, \"Rights\", or run it with --no-status"
                    }
                    _ => "; it is tried again",
                };
                let said = format!("the status of {kind}/{name} cannot be written: {error}{advice}");
                if self.said.as_ref() != Some(&said) {
                    tracing::warn!("{said}");
                    self.said = Some(said);
                }
                "failed"
            }
        };
        self.hub.metrics.leader.status_writes.with_label_values(&[outcome]).inc();
        if answer.is_ok() {
            self.said = None;
        }
        let answer =
            answer.as_ref().map_err(|error| if error.is_conflict() { Missed::Changed } else { Missed::Failed });
        self.desk.wrote(key, answer, Instant::now());
        self.count();
    }

    fn count(&self) {
        self.hub.metrics.leader.status_waiting.set(i64::try_from(self.desk.len()).unwrap_or(i64::MAX));
    }
}

/// Over exactly the version that was judged.
async fn apply(client: &Client, (kind, name): &Key, subject: &Subject, status: Json) -> Result<Json, ClusterError> {
    let (namespace, called) = (&name.namespace, &name.name);
    let path = format!(
        "/apis/{}/namespaces/{namespace}/{}/{called}/status?fieldManager={MANAGER}&force=true",
        subject.api_version,
        kind.plural()
    );
    let body = json!({
        "apiVersion": subject.api_version,
        "kind": kind.name(),
        "metadata": {"name": called, "namespace": namespace, "resourceVersion": subject.version},
        "status": status,
    });
    let request =
        Request::builder().method(Method::PATCH).uri(path).header(CONTENT_TYPE, "application/apply-patch+yaml");
    let request =
        request.body(body.to_string().into_bytes()).map_err(|error| ClusterError::Setup(error.to_string()))?;
    ask(client.request::<Json>(request)).await
}
