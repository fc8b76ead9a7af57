//! How a pod leaves (docs/architecture.md, "How a pod leaves"): its sidecar says so, its endpoints are marked draining everywhere, and
//! it hears when nobody chooses them any more.
//!
//! Who has to answer: every proxy that holds one of the endpoints or calls the pod by its address, and every proxy that ought to be
//! connected and has been away for less than [`RECONNECT_GRACE`]: what that one holds is not known.
//!
//! Everybody concerned is looked at when a drain begins, afterwards each when something happened to him: an acknowledgement costs what it is
//! about, however many proxies there are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response, Status};
use weft_api::names;
use weft_api::wire::v1;

use super::hub::{Hub, RECONNECT_GRACE};
use super::session::Session;
use crate::auth::{self, Proved};
use crate::compile::Topic;
use crate::model::Name;

/// Longest wait that a caller may ask for.
const MAX_WAIT: Duration = Duration::from_mins(10);

/// The gRPC service.
#[derive(Debug)]
pub struct DrainService {
    hub: Arc<Hub>,
}

impl DrainService {
    /// Over a store.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    // What is to leave, which must be the caller's own.
    fn workload(&self, proved: &Proved, request: &v1::DrainRequest) -> Result<Name, Status> {
        let workload = auth::workload(&request.workload)?;
        auth::must_own(&self.hub, proved, &workload)?;
        Ok(workload)
    }
}

#[tonic::async_trait]
impl v1::drain_server::Drain for DrainService {
    async fn begin(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainReply>, Status> {
        let addr = auth::peer(&request)?.addr;
        let proved = auth::proved(&request).cloned();
        let identity = proved.as_ref().map(|proved| proved.identity.to_string()).unwrap_or_default();
        let request = request.into_inner();
        let workload = proved.and_then(|proved| self.workload(&proved, &request));
        let workload = workload.inspect_err(|status| self.hub.audit("drain", &identity, addr, status))?;
        let wait = Duration::from_millis(request.deadline_ms).min(MAX_WAIT);
        tracing::info!(%workload, wait_ms = wait.as_millis(), "a workload leaves");
        let outcome = drain(&self.hub, &workload, wait).await;
        tracing::info!(%workload, acknowledged = outcome.acknowledged, lagging = ?outcome.lagging, "its leaving is known");
        Ok(Response::new(outcome))
    }
}

/// Marks the endpoints of `workload` and waits, for `wait` at most, until every proxy concerned has acknowledged.
pub async fn drain(hub: &Arc<Hub>, workload: &Name, wait: Duration) -> v1::DrainReply {
    let mut measured = Measured { hub, begun: Instant::now(), ended: Ended::CallerGone };
    let deadline = measured.begun + wait;
    let mut progress = hub.progress.subscribe();
    let mut concerned = Concerned::new(hub, workload);
    let instance = hub.streams_of(workload).first().and_then(|stream| stream.client.instance.clone());
    let (marking, name) = (Arc::clone(hub), workload.clone());
    // Compiling takes its time: not on the runtime's threads.
    let marked = tokio::task::spawn_blocking(move || marking.mark_leaving(&name, instance)).await;
    if let Err(error) = marked {
        tracing::error!(%error, "a drain could not be compiled");
    }
    concerned.look_at_all(hub);
    while !concerned.waiting.is_empty() {
        tokio::select! {
            heard = progress.recv() => match heard {
                Ok(name) => concerned.look_at(hub, &name),
                // More was said than is kept.
                Err(_) => concerned.look_at_all(hub),
            },
            // One that is away stops being waited for by the passing of time, not by an event.
            () = tokio::time::sleep_until(concerned.next_look.min(deadline)) => {
                if Instant::now() >= deadline { break }
                concerned.look_at_all(hub);
            }
        }
    }
    measured.ended = match (concerned.waiting.is_empty(), concerned.acknowledged.is_empty()) {
        (false, _) => Ended::Deadline,
        (true, true) => Ended::Nobody,
        (true, false) => Ended::Acknowledged,
    };
    v1::DrainReply {
        acknowledged: u32::try_from(concerned.acknowledged.len()).unwrap_or(u32::MAX),
        lagging: concerned.waiting.iter().map(Name::to_string).collect(),
    }
}

/// What ended the wait.
#[derive(Clone, Copy, Debug)]
pub enum Ended {
    /// Everybody concerned has acknowledged.
    Acknowledged,
    /// There was nobody to wait for.
    Nobody,
    /// Somebody had not when the time was over.
    Deadline,
    /// Who waited for it has gone.
    CallerGone,
}

impl Ended {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Acknowledged, Self::Nobody, Self::Deadline, Self::CallerGone];

    /// The value of the label `ended` in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Acknowledged => "acknowledged",
            Self::Nobody => "nobody",
            Self::Deadline => "deadline",
            Self::CallerGone => "caller_gone",
        }
    }
}

/// Counts a drain when it is dropped: as given up by its caller, if nothing else has ended it.
struct Measured<'h> {
    hub: &'h Hub,
    begun: Instant,
    ended: Ended,
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.hub.metrics.told.drained(self.ended, self.begun.elapsed());
    }
}

/// Proxies concerned by one drain. A name is in one of the two sets. Looking at one costs what it holds of the workload, whatever others do.
struct Concerned<'w> {
    workload: &'w Name,
    endpoints: Vec<Arc<str>>,
    ips: Vec<IpAddr>,
    waiting: BTreeSet<Name>,
    acknowledged: BTreeSet<Name>,
    /// When the first of those that are away stops being waited for.
    next_look: Instant,
}

impl<'w> Concerned<'w> {
    fn new(hub: &Hub, workload: &'w Name) -> Self {
        let (endpoints, ips) = hub.compiled(|compiled| {
            let ips = compiled.model().workloads.get(workload).map(|found| found.ips.clone()).unwrap_or_default();
            (compiled.endpoints_of(workload), ips.iter().map(IpAddr::to_canonical).collect())
        });
        let (waiting, acknowledged) = (BTreeSet::new(), BTreeSet::new());
        Self { workload, endpoints, ips, waiting, acknowledged, next_look: Instant::now() + RECONNECT_GRACE }
    }

    /// Looks at everybody who holds one of the endpoints or an address of the pod, and at who is away.
    fn look_at_all(&mut self, hub: &Hub) {
        let heads = self.endpoints.iter().filter_map(|name| names::collection_of(name));
        let heads = heads.map(|head| Topic::Name(head.into()));
        let topics: BTreeSet<Topic> = heads.chain(self.ips.iter().copied().map(Topic::Ip)).collect();
        let mut concerned = std::mem::take(&mut self.waiting);
        concerned.extend(hub.listeners(topics.iter()).iter().map(|stream| stream.client.workload.clone()));
        concerned.extend(hub.absent().into_iter().map(|(name, _)| name));
        self.waiting.clone_from(&concerned);
        self.next_look = Instant::now() + RECONNECT_GRACE;
        for name in &concerned {
            self.look_at(hub, name);
        }
    }

    /// Looks at the proxy of one workload.
    fn look_at(&mut self, hub: &Hub, name: &Name) {
        if name == self.workload || self.acknowledged.contains(name) {
            self.waiting.remove(name);
            return;
        }
        let mut settled = None;
        for stream in hub.streams_of(name) {
            // One that has come back and has not asked yet may be about to.
            let quiet = self.waiting.contains(name) && !stream.session(Session::has_asked);
            let now = hub.settled(&stream, &self.endpoints, &self.ips).or(quiet.then_some(false));
            settled = now.map_or(settled, |now| Some(settled.unwrap_or(true) && now));
        }
        match (settled, hub.absent_since(name)) {
            (Some(true), _) => {
                self.waiting.remove(name);
                self.acknowledged.insert(name.clone());
            }
            (Some(false), _) => {
                self.waiting.insert(name.clone());
            }
            (None, Some(since)) => {
                self.next_look = self.next_look.min(since + RECONNECT_GRACE);
                self.waiting.insert(name.clone());
            }
            (None, None) => {
                self.waiting.remove(name);
            }
        }
    }
}
