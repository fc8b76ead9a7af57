//! The one who writes: hears what changed, judges it when its turn comes, and applies what differs.
//!
//! Bounds: [`WRITES`] at a time, each for [`crate::cluster::QUESTION`] at most, which is over before the Lease can be another's.

use std::collections::VecDeque;
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
use super::others::{self, Event, Others};
use super::{Key, Subject};
use crate::cluster::{ClusterError, ask};
use crate::distribute::Hub;
use crate::leases::Held;
use crate::replicas::whole::Elsewhere;

/// Owner of the fields that we apply: not the one of other things that control writes, so that nobody takes one for the other.
const MANAGER: &str = "weft-control-status";
const WRITES: usize = 8;
/// Objects that are judged before others get their turn on this thread.
const AT_A_TIME: usize = 64;
/// What others have said longer ago is asked again.
const STALE: Duration = Duration::from_secs(1);
/// Where one of them said nothing, or has compiled something else, it is looked again then: both are told when they end, as a rule.
const AGAIN: Duration = Duration::from_secs(5);
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
    others: Others,
    /// To be judged, with what the others say of it, since when.
    ready: VecDeque<(Key, Arc<Elsewhere>, Instant)>,
    writes: JoinSet<Written>,
    said: Option<String>,
}

/// Until `stop`.
pub(super) async fn run(client: Client, hub: Arc<Hub>, held: Held, stop: CancellationToken) {
    let mut writer = Writer {
        client,
        others: Others::new(Arc::clone(&hub)),
        ready: VecDeque::new(),
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
        let free = writer.leads && writer.writes.len() < WRITES && writer.others.are_free();
        let at = writer.desk.next().filter(|_| free);
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
            event = writer.others.next() => writer.told(event),
            waiting = hub.status.next() => writer.hear(waiting),
            _ = look.tick(), if !writer.settled => writer.look(),
            () = next => {}
        }
    }
}

impl Writer {
    fn elected(&mut self) {
        self.leads = self.held.now();
        self.others.lead(self.leads);
        self.ready = VecDeque::new();
        self.desk.rest();
        if self.leads {
            self.desk.touch_all(Instant::now());
        }
        self.count();
    }

    /// Of the other replicas.
    fn told(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Roll => self.desk.touch_all(now),
            Event::Answered(keys, Some(elsewhere)) => {
                let elsewhere = Arc::new(elsewhere);
                self.ready.extend(keys.into_iter().map(|key| (key, Arc::clone(&elsewhere), now)));
            }
            Event::Answered(keys, None) => {
                for key in keys {
                    self.desk.later(&key, now + AGAIN);
                    self.desk.leave(&key, now);
                }
            }
        }
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
        if waiting.stirred.all {
            self.desk.touch_all(now);
        }
        for name in waiting.stirred.names {
            self.desk.changed(&name, now);
        }
        self.count();
    }

    /// Begins the writes that are due, as many as there is room for. Whether there is more to look at.
    fn begin(&mut self) -> bool {
        for _ in 0..AT_A_TIME {
            if !self.leads || self.writes.len() >= WRITES || (self.ready.is_empty() && !self.ask()) {
                return false;
            }
            if let Some((key, elsewhere, since)) = self.ready.pop_front()
                && !self.judge(&key, &elsewhere, since)
            {
                return false;
            }
        }
        self.count();
        true
    }

    /// Asks the others about those whose turn it is. False: it is nobody's, or enough are asked.
    fn ask(&mut self) -> bool {
        let now = Instant::now();
        if !self.others.are_free() {
            return false;
        }
        let mut keys = Vec::new();
        while keys.len() < others::AT_A_TIME
            && let Some(key) = self.desk.take(now)
        {
            keys.push(key);
        }
        if keys.is_empty() {
            return false;
        }
        // Before the proxies are back nothing is said of them.
        let known = if self.settled { self.others.ask(&keys, now) } else { Some(Elsewhere::default()) };
        match known.map(Arc::new) {
            Some(elsewhere) => self.ready.extend(keys.into_iter().map(|key| (key, Arc::clone(&elsewhere), now))),
            None => keys.iter().for_each(|key| self.desk.asks(key, now)),
        }
        true
    }

    /// Judges an object, and writes what is new of it. False: nothing is written now.
    fn judge(&mut self, key: &Key, elsewhere: &Elsewhere, since: Instant) -> bool {
        let now = Instant::now();
        let Some(subject) = self.desk.judged(key).cloned() else { return true };
        if now.duration_since(since) > STALE {
            self.desk.later(key, now);
            self.desk.leave(key, now);
            return true;
        }
        let Some((status, news, sure)) = self.status(key, &subject, elsewhere) else {
            self.desk.leave(key, now);
            return true;
        };
        if !sure {
            self.desk.later(key, now + AGAIN);
        }
        if news == News::Nothing || (news == News::Counts && !self.desk.may_count(key, now)) {
            self.desk.leave(key, now);
            return true;
        }
        // Looked at last before it is sent.
        if !self.held.at(now) {
            return false;
        }
        self.desk.writes(key, now);
        let (client, key) = (self.client.clone(), key.clone());
        self.writes.spawn(async move {
            let answer = apply(&client, &key, &subject, status).await;
            (key, answer)
        });
        true
    }

    /// What the object's status ought to be, what of it is new, and whether it is known of all replicas.
    fn status(&self, key: &Key, subject: &Subject, elsewhere: &Elsewhere) -> Option<(Json, News, bool)> {
        let (kind, name) = key;
        let own = self.settled.then(|| self.hub.object(kind.name(), &name.to_string())).flatten();
        let mut whole = own.map(|own| elsewhere.with(own));
        if let Some(whole) = &mut whole {
            // Who is away may use it or not: who is back says so.
            whole.object.picture.away = Vec::new();
        }
        let sure = whole.as_ref().is_none_or(|whole| whole.silent.is_empty() && whole.apart.is_empty());
        let judged = self.hub.compiled(|compiled| judge(key, subject, compiled.model(), whole.as_ref()))?;
        let at = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let said = Said { at: &at, generation: subject.generation, namespace: &name.namespace };
        Some(if kind.is_policy() {
            let (conditions, news) = merge::conditions(&subject.told, judged.first()?, said);
            (json!({ "conditions": conditions }), news, sure)
        } else {
            let (parents, news) = merge::parents(&subject.told, &subject.parents, &judged, said);
            (json!({ "parents": parents }), news, sure)
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
