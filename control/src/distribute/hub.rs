//! The store of compiled resources and the streams that are told of its changes: [`stream`] is one of them, [`present`] says whose there are,
//! [`trusted`] who is believed.
//!
//! Locks, always in this order, none held across an await: `leaves`, `compiled`, `absent`, a stream's `session`,
//! `subscribers`, the events. A session is asked
//! under the read lock of `compiled`, and what it begins to listen to is noted before that lock is given back: so a change is
//! either seen by the session or dispatched to it, never lost between.

mod present;
mod stream;
mod trusted;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use weft_api::names;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_api::wire::replicas as wire;
use weft_certs::revoked::Denied;

pub use stream::{Client, Stream};

use super::audit::Audit;
use super::events::{Cause, Event, Events};
use super::leaves::Leaves;
use super::session::{Heard, Limits, Listen, Session, Violation};
use super::streams::Streams;
use super::subscribers::Subscribers;
use crate::compile::{Changes, Compiled, Dirty, Topic};
use crate::copies::Behind;
use crate::metrics::Metrics;
use crate::model::{Change, Model, Name};
use crate::replicas::{Moved, Replicas};
use crate::status::Inbox;

/// How long a proxy that was connected is waited for by those who need its answer.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(30);
/// Of what happened to proxies so much is kept for who waits for it; who is slower looks at all of them.
const PROGRESS: usize = 1024;

/// The store and its streams.
#[derive(Debug)]
pub struct Hub {
    /// Held while anything is compiled: there is one writer at a time.
    leaves: Mutex<Leaves>,
    compiled: RwLock<Compiled>,
    subscribers: Mutex<Subscribers>,
    streams: RwLock<Streams>,
    /// Proxies that ought to be connected and are not, since when.
    absent: Mutex<BTreeMap<Name, Instant>>,
    next_id: AtomicU64,
    started: Instant,
    limits: Limits,
    loaded: watch::Sender<bool>,
    denied: Denied,
    /// Copies of the roots, if there are any.
    copies: Mutex<Option<Behind>>,
    pub(super) audit: Audit,
    events: Events,
    /// The workloads whose proxies acknowledged something, came or went.
    pub(crate) progress: broadcast::Sender<Name>,
    /// What other replicas have to hear.
    pub(crate) moved: broadcast::Sender<Moved>,
    /// The other replicas of control.
    pub replicas: Arc<Replicas>,
    /// Whoever tells people hears here what may have changed.
    pub status: Inbox,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
}

impl Hub {
    /// An empty store.
    pub fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self {
            leaves: Mutex::default(),
            compiled: RwLock::default(),
            subscribers: Mutex::default(),
            streams: RwLock::default(),
            absent: Mutex::default(),
            next_id: AtomicU64::new(1),
            started: Instant::now(),
            limits,
            loaded: watch::Sender::new(false),
            denied: Denied::default(),
            copies: Mutex::default(),
            audit: Audit::default(),
            events: Events::default(),
            progress: broadcast::Sender::new(PROGRESS),
            moved: broadcast::Sender::new(PROGRESS),
            replicas: Arc::default(),
            status: Inbox::default(),
            metrics,
        }
    }

    /// Time since the store was made.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes changes over: compiles what depends on them and tells the streams that hold it. The first time, they are all there is, and from
    /// then on proxies are answered. Takes as long as the compilation: call it where blocking is allowed, or send to a
    /// [`Feed`](super::Feed). Returns how many resources changed.
    pub fn publish(&self, changes: impl IntoIterator<Item = Change>) -> usize {
        let mut leaves = self.leaves.lock();
        let changed = self.recompile(&mut leaves, changes, Cause::default());
        if !*self.loaded.borrow() {
            let now = Instant::now();
            let compiled = self.compiled.read();
            let expected = compiled.model().workloads.iter().filter(|(_, found)| found.meshed && !found.terminating);
            *self.absent.lock() = expected.map(|(name, _)| (name.clone(), now)).collect();
            self.loaded.send_replace(true);
        }
        changed
    }

    /// True once there is a model.
    pub fn loaded(&self) -> watch::Receiver<bool> {
        self.loaded.subscribe()
    }

    /// Marks a workload's endpoints as draining until its pod is gone, and tells everybody who holds them; it gives us `wait` for that.
    pub(super) fn mark_leaving(&self, workload: &Name, instance: Option<String>, wait: Duration) {
        let mut leaves = self.leaves.lock();
        let found = self.compiled(|compiled| Some(compiled.model().workloads.get(workload)?.ips.clone()));
        let Some(ips) = found else { return };
        if leaves.begin(workload, ips, instance, wait) {
            self.recompile(&mut leaves, [], Cause::of("drain", Some(workload.to_string())));
            self.has_moved(Moved::Leave(workload.clone()));
        }
    }

    /// The same of what another replica says of workloads that leave. Compiles: call it where blocking is allowed.
    pub(crate) fn learn_leaves(&self, told: &[wire::Leave]) {
        let (mut leaves, now) = (self.leaves.lock(), Instant::now());
        let news: Vec<&wire::Leave> = told.iter().filter(|told| leaves.learn(told, now)).collect();
        if let Some(first) = news.first() {
            self.recompile(&mut leaves, [], Cause::of("drain", Some(first.workload.clone())));
        }
    }

    /// Takes back what was said of workloads that stay after all. Compiles if there are any: call it where blocking is allowed.
    pub(super) fn look_at_leaves(&self) {
        let mut leaves = self.leaves.lock();
        if self.compiled(|compiled| leaves.one_stays(compiled.model())) {
            self.recompile(&mut leaves, [], Cause::of("drain", None));
        }
    }

    /// What is known of workloads that leave: of all, or of one.
    pub(crate) fn leaves(&self, only: Option<&Name>) -> Vec<wire::Leave> {
        self.leaves.lock().told(only)
    }

    /// Readers wait while the model takes the changes over and while what was made of them is put in, and of a large change not while it is
    /// made: then they may be told what was true before it, and are told the rest afterwards.
    fn recompile(&self, leaves: &mut Leaves, changes: impl IntoIterator<Item = Change>, mut cause: Cause) -> usize {
        let (started, seen) = (Instant::now(), self.now());
        let mut dirty = Dirty::default();
        let mut compiled = self.compiled.write();
        for change in changes {
            cause.add(&change);
            self.metrics.told.changed(&change);
            compiled.take(change, &mut dirty);
        }
        leaves.keep_those_of(compiled.model());
        let leaving = leaves.names();
        let draining = leaving.len();
        compiled.leaving(leaving, &mut dirty);
        let patch = if compiled.is_small(&dirty) {
            compiled.make(&dirty)
        } else {
            let reading = RwLockWriteGuard::downgrade(compiled);
            let patch = reading.make(&dirty);
            drop(reading);
            // Nobody else can have changed anything: that takes the lock on `leaves`.
            compiled = self.compiled.write();
            patch
        };
        let changes = compiled.apply(patch);
        let compiled = RwLockWriteGuard::downgrade(compiled);
        self.metrics.compiled(started.elapsed(), &compiled, &changes, draining);
        drop(compiled);
        self.dispatch(&changes, cause, seen);
        changes.len()
    }

    fn dispatch(&self, changes: &Changes, cause: Cause, seen: Duration) {
        self.status.changed(changes.names.iter());
        let touched = self.subscribers.lock().touched(changes);
        let now = self.now();
        let (event, missed) = self.events.begin(cause, changes, touched.len(), seen, now);
        self.metrics.bound("events", missed);
        let streams = self.streams.read();
        for (id, touched) in touched {
            let Some(stream) = streams.get(id) else {
                self.events.told(event, id, now, None);
                continue;
            };
            let mut session = stream.session.lock();
            session.touch(&touched, now);
            let over = self.events.told(event, id, now, session.unanswered());
            drop(session);
            self.metrics.told.converged(over);
            stream.wake.notify_one();
        }
        let workloads = changes.names.iter().filter_map(|name| name.strip_prefix("workload/")?.split_once('/'));
        let changed = workloads.map(|(namespace, name)| Name::new(namespace, name));
        for workload in changed.chain(changes.replaced.iter().cloned()) {
            for stream in streams.of(&workload).iter().filter(|stream| self.disowned(&stream.client)) {
                stream.revoked.cancel();
            }
        }
    }

    fn has_moved(&self, what: Moved) {
        // There may be no other replica.
        let _ = self.moved.send(what);
    }

    /// Tells those who wait for these proxies to look at them again.
    pub(crate) fn look_again_at(&self, proxies: impl IntoIterator<Item = Name>) {
        if self.progress.receiver_count() > 0 {
            for name in proxies {
                let _ = self.progress.send(name);
            }
        }
    }

    /// Gives a request to the stream's session.
    pub fn hear(&self, stream: &Stream, request: DeltaDiscoveryRequest) -> Result<Heard, Violation> {
        let heard = {
            let compiled = self.compiled.read();
            let mut session = stream.session.lock();
            let heard = session.hear(request, &compiled, self.now());
            self.note(stream, &mut session);
            let heard = heard?;
            self.answered(stream, &session, !heard.nacks.is_empty());
            heard
        };
        self.metrics.heard(&heard);
        self.status.changed(heard.answered.iter());
        for nack in &heard.nacks {
            tracing::warn!(workload = %stream.client.workload, resource = nack.name, code = nack.code,
                message = nack.message, "a proxy refused a resource");
        }
        if heard.acked || !heard.nacks.is_empty() {
            self.progressed(stream);
        }
        Ok(heard)
    }

    /// The stream's next response.
    pub fn next(&self, stream: &Stream) -> Option<DeltaDiscoveryResponse> {
        let compiled = self.compiled.read();
        let mut session = stream.session.lock();
        let now = self.now();
        let response = session.next(&compiled, now);
        self.note(stream, &mut session);
        // There may have been nothing to say after all.
        self.answered(stream, &session, false);
        if let Some(waited) = response.as_ref().and_then(|_| session.waited(now)) {
            self.metrics.told.pushed(waited);
        }
        response
    }

    fn answered(&self, stream: &Stream, session: &Session, refused: bool) {
        self.metrics.told.converged(self.events.answered(stream.id, session.unanswered(), refused, self.now()));
    }

    /// The last changes and what became of them: those not older than `since`, about this object or resource if one is named.
    pub fn events(&self, about: Option<&str>, since: Duration) -> Vec<Event> {
        self.events.list(about, since, self.now())
    }

    fn note(&self, stream: &Stream, session: &mut Session) {
        let listens = session.take_listens();
        if !listens.is_empty() {
            // It holds something that it did not, or not any more.
            self.status.changed(listens.iter().filter_map(Listen::name));
            let mut subscribers = self.subscribers.lock();
            subscribers.apply(stream.id, listens);
            self.metrics.topics.set(i64::try_from(subscribers.topics()).unwrap_or(i64::MAX));
        }
        self.metrics.bound("subscriptions", session.take_refused());
    }

    fn progressed(&self, stream: &Stream) {
        self.look_again_at([stream.client.workload.clone()]);
    }

    /// Looks at what is compiled.
    pub fn compiled<T>(&self, look: impl FnOnce(&Compiled) -> T) -> T {
        look(&self.compiled.read())
    }

    /// What the sources say; nothing before they were read. Not to be kept: as long as it is held nothing changes.
    pub fn model(&self) -> Option<MappedRwLockReadGuard<'_, Model>> {
        let loaded = *self.loaded.borrow();
        loaded.then(|| RwLockReadGuard::map(self.compiled.read(), Compiled::model))
    }

    /// The streams that listen to any of these topics.
    pub(super) fn listeners<'t>(&self, topics: impl Iterator<Item = &'t Topic>) -> Vec<Arc<Stream>> {
        let ids = self.subscribers.lock().listeners(topics);
        let streams = self.streams.read();
        ids.iter().filter_map(|id| streams.get(*id)).cloned().collect()
    }

    /// Whether a stream's proxy is known to have what is true of the given endpoints and addresses; `None` if it holds none of them.
    pub(super) fn settled(&self, stream: &Stream, endpoints: &[Arc<str>], ips: &[IpAddr]) -> Option<bool> {
        let compiled = self.compiled.read();
        let session = stream.session.lock();
        let addresses = ips.iter().flat_map(|ip| session.addresses_of(*ip));
        let held = endpoints.iter().filter(|name| session.holds_collection_of(name)).cloned().chain(addresses);
        let mut states = held.map(|name| session.settled(&compiled, &name)).peekable();
        states.peek()?;
        Some(states.all(|settled| settled))
    }

    /// Whether a stream's proxy has acknowledged the roots as they are now.
    pub fn believes(&self, stream: &Stream) -> bool {
        let compiled = self.compiled.read();
        stream.session.lock().acknowledged(&compiled, names::TRUST)
    }
}
