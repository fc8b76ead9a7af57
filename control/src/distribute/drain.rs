//! How a pod leaves (docs/architecture.md, "How a pod leaves"): its sidecar says so, its endpoints are marked draining everywhere, and
//! it hears when nobody chooses them any more.
//!
//! Who has to answer: every proxy that holds one of the endpoints or calls the pod by its address, whichever replica of control it is connected to
//! (the others are asked, [`crate::replicas`]), and every proxy that ought to be connected and has been away for less than [`RECONNECT_GRACE`]: what
//! that one holds is not known.
//!
//! Everybody concerned is looked at when a drain begins, afterwards each when something happened to him: an acknowledgement costs what it is
//! about, however many proxies there are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use weft_api::names;
use weft_api::wire::replicas::ask::About;
use weft_api::wire::v1;

use super::hub::{Hub, RECONNECT_GRACE, Stream};
use super::session::Session;
use crate::auth::{self, Proved};
use crate::compile::Topic;
use crate::model::Name;
use crate::replicas::question::Stands;

/// Longest wait that a caller may ask for.
const MAX_WAIT: Duration = Duration::from_mins(10);
/// A stream that is older has said what it holds.
const YOUNG: Duration = Duration::from_secs(30);
/// What a caller says of its own run.
const LONGEST_INSTANCE: usize = 128;

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
        let instance = request.instance.filter(|instance| instance.len() <= LONGEST_INSTANCE);
        let outcome = tokio::select! {
            outcome = drain(&self.hub, &workload, instance, wait) => outcome,
            // Another replica knows who leaves, and may be asked how far that is.
            () = self.hub.replicas.stopping() => {
                return Err(Status::unavailable("this control is stopping; ask another"));
            }
        };
        tracing::info!(%workload, acknowledged = outcome.acknowledged, lagging = ?outcome.lagging, "its leaving is known");
        Ok(Response::new(outcome))
    }
}

/// Marks the endpoints of `workload`, of which this run of its proxy says that it leaves, and waits, for `wait` at most, until every proxy
/// concerned has acknowledged.
pub async fn drain(hub: &Arc<Hub>, workload: &Name, instance: Option<String>, wait: Duration) -> v1::DrainReply {
    let mut measured = Measured { hub, begun: Instant::now(), ended: Ended::CallerGone };
    let deadline = measured.begun + wait;
    let mut progress = hub.progress.subscribe();
    let mut concerned = Concerned::new(hub, workload);
    let instance = instance.or_else(|| hub.streams_of(workload).first()?.client.instance.clone());
    let (marking, name) = (Arc::clone(hub), workload.clone());
    // Compiling takes its time: not on the runtime's threads.
    let marked = tokio::task::spawn_blocking(move || marking.mark_leaving(&name, instance, wait)).await;
    if let Err(error) = marked {
        tracing::error!(%error, "a drain could not be compiled");
    }
    let leave = hub.leaves(Some(workload)).pop();
    let mut others = hub.replicas.ask(hub, About::Leave(leave.unwrap_or_default()));
    concerned.look_at_all(hub);
    loop {
        let over = others.is_over();
        concerned.catch_up(hub, &mut progress);
        if others.has_changed() {
            continue;
        }
        if over && concerned.waiting.is_empty() {
            break;
        }
        tokio::select! {
            heard = progress.recv() => concerned.hear(hub, heard.ok()),
            () = others.changed() => {}
            // One that is away stops being waited for by the passing of time, not by an event.
            () = tokio::time::sleep_until(concerned.next_look.min(deadline)) => {
                if Instant::now() >= deadline { break }
                concerned.look_at_all(hub);
            }
        }
    }
    let acknowledged = others.done().union(&concerned.acknowledged).count();
    let lagging: BTreeSet<String> = concerned.waiting.iter().map(Name::to_string).chain(others.waiting()).collect();
    measured.ended = match (lagging.is_empty(), acknowledged) {
        (false, _) => Ended::Deadline,
        (true, 0) => Ended::Nobody,
        (true, _) => Ended::Acknowledged,
    };
    v1::DrainReply {
        acknowledged: u32::try_from(acknowledged).unwrap_or(u32::MAX),
        lagging: lagging.into_iter().collect(),
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
#[derive(Debug)]
pub(crate) struct Concerned {
    workload: Name,
    endpoints: Vec<Arc<str>>,
    ips: Vec<IpAddr>,
    waiting: BTreeSet<Name>,
    acknowledged: BTreeSet<Name>,
    /// Who is away is waited for here; else that is for the replica to know that asks.
    here: bool,
    /// When the first of those that are away stops being waited for.
    next_look: Instant,
}

impl Concerned {
    fn new(hub: &Hub, workload: &Name) -> Self {
        let (endpoints, ips) = hub.compiled(|compiled| {
            let ips = compiled.model().workloads.get(workload).map(|found| found.ips.clone()).unwrap_or_default();
            (compiled.endpoints_of(workload), ips.iter().map(IpAddr::to_canonical).collect())
        });
        let (waiting, acknowledged, workload) = (BTreeSet::new(), BTreeSet::new(), workload.clone());
        let next_look = Instant::now() + RECONNECT_GRACE;
        Self { workload, endpoints, ips, waiting, acknowledged, here: true, next_look }
    }

    /// Of a drain that another replica waits for.
    pub(crate) fn elsewhere(hub: &Hub, workload: &Name) -> Self {
        Self { here: false, ..Self::new(hub, workload) }
    }

    /// Everybody in it.
    pub(crate) fn names(&self) -> BTreeSet<Name> {
        self.waiting.union(&self.acknowledged).cloned().collect()
    }

    /// Looks at all to whom anything has happened.
    fn catch_up(&mut self, hub: &Hub, progress: &mut Receiver<Name>) {
        use tokio::sync::broadcast::error::TryRecvError;
        loop {
            match progress.try_recv() {
                Ok(name) => self.hear(hub, Some(name)),
                Err(TryRecvError::Lagged(_)) => self.hear(hub, None),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// Something happened to this one; or to more than is kept.
    fn hear(&mut self, hub: &Hub, name: Option<Name>) {
        match name {
            Some(name) => self.look_at(hub, &name),
            None => self.look_at_all(hub),
        }
    }

    /// Looks at everybody who holds one of the endpoints or an address of the pod, at who has not said yet what it holds, and at who is away.
    pub(crate) fn look_at_all(&mut self, hub: &Hub) {
        let heads = self.endpoints.iter().filter_map(|name| names::collection_of(name));
        let heads = heads.map(|head| Topic::Name(head.into()));
        let topics: BTreeSet<Topic> = heads.chain(self.ips.iter().copied().map(Topic::Ip)).collect();
        let mut concerned = std::mem::take(&mut self.waiting);
        concerned.extend(hub.listeners(topics.iter()).iter().map(|stream| stream.client.workload.clone()));
        let young = hub.streams().into_iter().filter(|stream| stream.since.elapsed() < YOUNG);
        concerned
            .extend(young.filter(|stream| !stream.session(Session::has_asked)).map(|one| one.client.workload.clone()));
        if self.here {
            concerned.extend(hub.absent().into_iter().map(|(name, _)| name));
        }
        self.waiting.clone_from(&concerned);
        self.next_look = Instant::now() + RECONNECT_GRACE;
        for name in &concerned {
            self.look_at(hub, name);
        }
    }

    /// Looks at the proxy of one workload.
    fn look_at(&mut self, hub: &Hub, name: &Name) {
        self.look(hub, name, &hub.streams_of(name));
    }

    /// The same, where these are all its streams.
    pub(crate) fn look(&mut self, hub: &Hub, name: &Name, streams: &[Arc<Stream>]) -> Stands {
        let stands = self.stands(hub, name, streams);
        if stands == Stands::Waits {
            self.waiting.insert(name.clone());
        } else {
            self.waiting.remove(name);
        }
        if stands == Stands::Done {
            self.acknowledged.insert(name.clone());
        }
        stands
    }

    fn stands(&mut self, hub: &Hub, name: &Name, streams: &[Arc<Stream>]) -> Stands {
        if *name == self.workload {
            return Stands::Aside;
        }
        if self.acknowledged.contains(name) {
            return Stands::Done;
        }
        let mut settled = None;
        for stream in streams {
            // One that has come back and has not asked yet may be about to.
            let quiet = !stream.session(Session::has_asked);
            let now = hub.settled(stream, &self.endpoints, &self.ips).or(quiet.then_some(false));
            settled = now.map_or(settled, |now| Some(settled.unwrap_or(true) && now));
        }
        let absent = if self.here && settled.is_none() { hub.absent_since(name) } else { None };
        match (settled, absent) {
            (Some(true), _) => Stands::Done,
            (Some(false), _) => Stands::Waits,
            (None, Some(since)) => {
                self.next_look = self.next_look.min(since + RECONNECT_GRACE);
                Stands::Waits
            }
            (None, None) => Stands::Aside,
        }
    }
}
