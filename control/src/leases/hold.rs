//! Holds a Lease for as long as it can be held.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Timing;
use super::claim::{Claim, Record, Step};
use crate::cluster::{ClusterError, FIELD_MANAGER, MANAGED_BY, ask};
use crate::metrics::Metrics;

/// Which Lease, and who wants it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it is for: a label of metrics and a word of the log.
    pub what: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who: nobody else has this name ([`super::identity`]).
    pub holder: String,
    /// Annotations that it gets when it is written, beside those that it has.
    pub annotations: BTreeMap<String, String>,
    /// Labels, in the same way; [`MANAGED_BY`] comes of itself.
    pub labels: BTreeMap<String, String>,
    /// How long things take.
    pub timing: Timing,
}

/// Whether the Lease is ours.
#[derive(Clone, Debug)]
pub struct Held(watch::Receiver<Option<Instant>>);

impl Held {
    /// Whether it is at a moment. A write that is begun then and takes [`crate::cluster::QUESTION`] at most is over before anybody else can hold it.
    pub fn at(&self, now: Instant) -> bool {
        self.0.borrow().is_some_and(|until| now < until)
    }

    /// Whether it is now.
    pub fn now(&self) -> bool {
        self.at(Instant::now())
    }

    /// Returns when it is no longer as it `was`. Whoever holds a Lease that nobody renews any more ceases to.
    pub async fn other_than(&mut self, was: bool) {
        let mut renewed = true;
        loop {
            let until = *self.0.borrow_and_update();
            if self.now() != was {
                return;
            }
            let over = async {
                match until.filter(|_| was) {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => {}
                changed = self.0.changed(), if renewed => renewed = changed.is_ok(),
            }
        }
    }
}

/// Tries to hold a Lease until `stop`, and gives it back then; the task ends when that is done.
pub fn hold(
    client: &Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> (Held, JoinHandle<()>) {
    let (tell, told) = watch::channel(None);
    let claim = Claim::new(settings.holder.clone(), settings.timing);
    let leases = Api::namespaced(client.clone(), &settings.namespace);
    let holder = Holder { leases, settings, claim, last: None, tell, held: false, metrics, said: None };
    (Held(told), tokio::spawn(holder.run(stop)))
}

struct Holder {
    leases: Api<Lease>,
    settings: Settings,
    claim: Claim,
    /// As it was read or written last.
    last: Option<Lease>,
    tell: watch::Sender<Option<Instant>>,
    held: bool,
    metrics: Arc<Metrics>,
    said: Option<String>,
}

impl Holder {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.turn().await {
                self.failed(&error);
            }
            self.publish();
            let chance = weft_certs::files::random(1).ok().and_then(|bytes| bytes.first().copied());
            tokio::select! {
                () = tokio::time::sleep(self.claim.pause(Instant::now(), chance.unwrap_or_default())) => {}
                () = stop.cancelled() => break,
            }
        }
        // Nothing of ours is written from here on: only then may somebody else.
        self.tell.send_replace(None);
        if self.claim.next(Instant::now()) == Step::Renew {
            match self.put(String::new(), Duration::from_secs(1)).await {
                Ok(_) => tracing::info!(lease = self.settings.name, "the Lease is given back"),
                Err(error) => self.failed(&error),
            }
        }
        self.claim.forget();
        self.publish();
    }

    /// Looks at it, and writes it if it is ours or free.
    async fn turn(&mut self) -> Result<(), ClusterError> {
        let mut step = self.claim.next(Instant::now());
        // A renewal over a version that is not the last any more is followed by a look at what is.
        for _ in 0..2 {
            if step == Step::Read {
                self.last = ask(self.leases.get_opt(&self.settings.name)).await?;
                step = self.claim.found(self.last.as_ref().map(Record::from), Instant::now());
            }
            if step == Step::Wait {
                return Ok(());
            }
            let sent = Instant::now();
            match self.write(step).await {
                Ok(lease) => {
                    self.claim.written(Record::from(&lease), sent);
                    self.last = Some(lease);
                    self.said = None;
                    return Ok(());
                }
                // Of one that is not there, and cannot be made, its namespace is not there.
                Err(error) if error.is_conflict() || (error.is_absent() && step != Step::Make) => step = Step::Read,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write(&self, step: Step) -> Result<Lease, ClusterError> {
        let Settings { timing, holder, .. } = &self.settings;
        if step != Step::Make {
            return self.put(holder.clone(), timing.lasts).await;
        }
        let metadata = ObjectMeta { name: Some(self.settings.name.clone()), ..ObjectMeta::default() };
        let lease = self.says(Lease { metadata, spec: None }, holder.clone(), timing.lasts);
        ask(self.leases.create(&params(), &lease)).await
    }

    /// Over exactly what was seen.
    async fn put(&self, holder: String, lasts: Duration) -> Result<Lease, ClusterError> {
        let lease = self.says(self.last.clone().unwrap_or_default(), holder, lasts);
        ask(self.leases.replace(&self.settings.name, &params(), &lease)).await
    }

    fn says(&self, mut lease: Lease, holder: String, lasts: Duration) -> Lease {
        let (managed, by) = MANAGED_BY;
        let labels = lease.metadata.labels.get_or_insert_default();
        labels.insert(managed.to_owned(), by.to_owned());
        labels.extend(self.settings.labels.clone());
        if !self.settings.annotations.is_empty() {
            lease.metadata.annotations.get_or_insert_default().extend(self.settings.annotations.clone());
        }
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() != Some(&holder) && !holder.is_empty() {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |before| before.saturating_add(1)));
        }
        *spec = LeaseSpec {
            holder_identity: Some(holder),
            lease_duration_seconds: Some(i32::try_from(lasts.as_secs()).unwrap_or(i32::MAX)),
            renew_time: Some(now),
            ..std::mem::take(spec)
        };
        lease
    }

    fn publish(&mut self) {
        let until = self.claim.until();
        self.tell.send_replace(until);
        let held = until.is_some_and(|until| Instant::now() < until);
        if std::mem::replace(&mut self.held, held) != held {
            let what = if held { "the Lease is ours" } else { "the Lease is not ours any more" };
            tracing::info!(lease = self.settings.name, holder = self.settings.holder, "{what}");
        }
        self.metrics.leader.held.with_label_values(&[self.settings.what]).set(i64::from(held));
    }

    /// Once, until something else is to be said.
    fn failed(&mut self, error: &ClusterError) {
        self.metrics.leader.errors.with_label_values(&[self.settings.what]).inc();
        let advice = match error.status() {
            Some(403) => "; give control the Role of docs/kubernetes.md, \"Rights\"",
            Some(404) => "; make the namespace, or name another one (--namespace)",
            _ => "; it is tried again",
        };
        let said = format!("the Lease {}/{}: {error}{advice}", self.settings.namespace, self.settings.name);
        if self.said.as_ref() != Some(&said) {
            tracing::warn!("{said}");
            self.said = Some(said);
        }
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}
