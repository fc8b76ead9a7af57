//! How a pod leaves (docs/architecture.md, "How a pod leaves"): its sidecar says so, its endpoints are marked draining everywhere, and
//! it hears when nobody chooses them any more.
//!
//! Who has to answer: every proxy that holds one of the endpoints or calls the pod by its address, and every proxy that ought to be
//! connected and has been away for less than [`RECONNECT_GRACE`](super::hub::RECONNECT_GRACE): what that one holds is not known.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response, Status};
use weft_api::wire::v1;

use super::hub::{Hub, RECONNECT_GRACE};
use crate::auth::{self, Proved};
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
    let deadline = Instant::now() + wait;
    let mut progress = hub.progress.subscribe();
    let before = Concerned::new(hub, workload);
    let instance =
        hub.streams().iter().find(|s| s.client.workload == *workload).and_then(|s| s.client.instance.clone());
    let (marking, name) = (Arc::clone(hub), workload.clone());
    // Compiling takes its time: not on the runtime's threads.
    let marked = tokio::task::spawn_blocking(move || marking.mark_leaving(&name, instance)).await;
    if let Err(error) = marked {
        tracing::error!(%error, "a drain could not be compiled");
    }
    let mut concerned = before;
    loop {
        progress.borrow_and_update();
        concerned.look(hub, workload);
        if concerned.waiting.is_empty() {
            break;
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { break },
            // One that is away stops being waited for by the passing of time, not by an event.
            () = tokio::time::sleep_until(next_look(hub, deadline)) => {
                if Instant::now() >= deadline { break }
            }
        }
    }
    v1::DrainReply {
        acknowledged: u32::try_from(concerned.acknowledged.len()).unwrap_or(u32::MAX),
        lagging: concerned.waiting.iter().map(Name::to_string).collect(),
    }
}

/// Proxies concerned by one drain. A name is in one of the two sets.
struct Concerned {
    endpoints: Vec<Arc<str>>,
    ips: Vec<std::net::IpAddr>,
    waiting: BTreeSet<Name>,
    acknowledged: BTreeSet<Name>,
}

impl Concerned {
    fn new(hub: &Hub, workload: &Name) -> Self {
        let (endpoints, ips) = hub.compiled(|compiled| {
            let ips = compiled.model().workloads.get(workload).map(|found| found.ips.clone()).unwrap_or_default();
            (compiled.endpoints_of(workload), ips.iter().map(std::net::IpAddr::to_canonical).collect())
        });
        Self { endpoints, ips, waiting: BTreeSet::new(), acknowledged: BTreeSet::new() }
    }

    fn look(&mut self, hub: &Hub, workload: &Name) {
        let streams = hub.streams();
        let absent: BTreeSet<Name> = hub.absent().into_iter().map(|(name, _)| name).collect();
        let mut settled: std::collections::BTreeMap<Name, bool> = std::collections::BTreeMap::new();
        for stream in streams.iter().filter(|stream| stream.client.workload != *workload) {
            let name = &stream.client.workload;
            // One that has come back and has not asked yet may be about to.
            let quiet = self.waiting.contains(name) && !stream.session(super::session::Session::has_asked);
            match hub.settled(stream, &self.endpoints, &self.ips) {
                None if quiet => *settled.entry(name.clone()).or_insert(false) = false,
                None => {}
                Some(now) => *settled.entry(name.clone()).or_insert(true) &= now,
            }
        }
        self.waiting.retain(|name| settled.contains_key(name) || absent.contains(name));
        self.waiting.extend(absent.into_iter().filter(|name| name != workload && !self.acknowledged.contains(name)));
        for (name, settled) in settled {
            if settled {
                self.waiting.remove(&name);
                self.acknowledged.insert(name);
            } else if !self.acknowledged.contains(&name) {
                self.waiting.insert(name);
            }
        }
    }
}

fn next_look(hub: &Hub, deadline: Instant) -> Instant {
    let returns = hub.absent().into_iter().map(|(_, since)| since + RECONNECT_GRACE);
    returns.min().map_or(deadline, |first| first.min(deadline))
}
