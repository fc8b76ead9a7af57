//! The store of compiled resources and the streams that are told of its changes.
//!
//! Locks, always in this order, none held across an await: `leaves`, `compiled`, `absent`, a stream's `session`,
//! `subscribers`, the events. A session is asked
//! under the read lock of `compiled`, and what it begins to listen to is noted before that lock is given back: so a change is
//! either seen by the session or dispatched to it, never lost between.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use prost::Message as _;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_api::names;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_api::wire::replicas as wire;
use weft_api::wire::v1;
use weft_certs::revoked::{Denied, DenyList};

use super::audit::Audit;
use super::events::{Cause, Event, Events};
use super::leaves::Leaves;
use super::session::{Heard, Limits, Listen, Session, Violation};
use super::streams::Streams;
use super::subscribers::Subscribers;
use crate::auth::Proved;
use crate::compile::{Changes, Compiled, Dirty, Topic};
use crate::copies::{Behind, Told};
use crate::metrics::Metrics;
use crate::model::{Change, Model, Name, Workload};
use crate::replicas::{Moved, Replicas};
use crate::revoked::List;
use crate::rotation::Waiting;
use crate::status::Inbox;

/// How long a proxy that was connected is waited for by those who need its answer.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(30);
/// Of what happened to proxies so much is kept for who waits for it; who is slower looks at all of them.
const PROGRESS: usize = 1024;

/// Who is at the other end of a stream.
#[derive(Clone, Debug)]
pub struct Client {
    /// Whose sidecar it is.
    pub workload: Name,
    /// What its certificate proves.
    pub proved: Proved,
    /// What its build can enforce; `None`: all that this build knows ([`weft_api::FEATURES`]), and no more.
    pub features: Option<Box<[String]>>,
    /// A number of this run of the proxy, if it says one: another one means that it was started anew.
    pub instance: Option<String>,
    /// Where it calls from.
    pub addr: SocketAddr,
    /// Of its build, as it says.
    pub version: String,
}

/// One open stream.
#[derive(Debug)]
pub struct Stream {
    pub(super) id: u64,
    /// Who is at the other end.
    pub client: Client,
    /// When it was opened.
    pub since: Instant,
    session: Mutex<Session>,
    /// There may be something to send.
    pub wake: Notify,
    /// Cancelled when the stream has to end: its workload belongs to another identity now, or is another pod, or that is revoked.
    pub revoked: CancellationToken,
    /// It ends because its proxy is to go to another replica.
    sent_away: AtomicBool,
}

impl Stream {
    /// Whether there may be something to send and the proxy can take it.
    pub fn has_work(&self) -> bool {
        self.session.lock().has_work()
    }

    /// Ends it so that its proxy goes to another replica.
    pub(crate) fn send_away(&self) {
        self.sent_away.store(true, Ordering::Release);
        self.revoked.cancel();
    }

    /// Whether that has been done.
    pub(crate) fn is_sent_away(&self) -> bool {
        self.sent_away.load(Ordering::Acquire)
    }

    /// Looks at its state.
    pub fn session<T>(&self, look: impl FnOnce(&Session) -> T) -> T {
        look(&self.session.lock())
    }
}

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

    /// Marks a workload's endpoints as draining until its pod is gone, and tells everybody who holds them.
    pub(super) fn mark_leaving(&self, workload: &Name, instance: Option<String>) {
        let mut leaves = self.leaves.lock();
        let found = self.compiled(|compiled| Some(compiled.model().workloads.get(workload)?.ips.clone()));
        let Some(ips) = found else { return };
        if leaves.begin(workload, ips, instance) {
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

    /// What is known of workloads that leave: of all, or of one.
    pub(crate) fn leaves(&self, only: Option<&Name>) -> Vec<wire::Leave> {
        self.leaves.lock().told(only)
    }

    /// Takes another set of roots, and tells everybody. Returns whether it is another one.
    pub fn trust(&self, trust: &v1::Trust) -> bool {
        // Held for as long as it takes: a model that is compiled meanwhile must not miss it.
        let _leaves = self.leaves.lock();
        let seen = self.now();
        let patch = self.compiled.read().update_trust(trust);
        let changes = self.compiled.write().apply(patch);
        self.dispatch(&changes, Cause::of("trust", None), seen);
        !changes.is_empty()
    }

    /// The trust domains that are believed beside our own.
    pub fn federated(&self) -> Vec<String> {
        let told = self.compiled.read().get(names::TRUST);
        let told = told.and_then(|told| v1::Trust::decode(told.bytes.clone()).ok()).unwrap_or_default();
        let foreign = told.bundles.into_iter().map(|bundle| bundle.trust_domain).filter(|domain| *domain != told.own);
        foreign.collect()
    }

    /// Takes another list of who is revoked, and tells everybody: those who are on it too, whose streams go on until
    /// [`Hub::end_revoked`]. Returns whether it is another one.
    pub fn revoke(&self, list: List) -> bool {
        let _leaves = self.leaves.lock();
        let seen = self.now();
        self.metrics.revoked.set(i64::try_from(list.denied.len()).unwrap_or(i64::MAX));
        self.denied.set(Arc::new(list.denied));
        let patch = self.compiled.read().update_revoked(&list.message);
        let changes = self.compiled.write().apply(patch);
        self.dispatch(&changes, Cause::of("revoked", None), seen);
        !changes.is_empty()
    }

    /// Takes which copies of the roots are behind.
    pub fn copies_are(&self, behind: Behind) {
        self.metrics.ca.copies_behind.set(i64::try_from(behind.count).unwrap_or(i64::MAX));
        *self.copies.lock() = Some(behind);
    }

    /// Which copies are behind these roots.
    pub fn copies_behind(&self, roots: Told) -> Vec<Waiting> {
        self.copies.lock().as_ref().map(|copies| copies.of(roots)).unwrap_or_default()
    }

    /// Who is not believed now.
    pub fn denied(&self) -> Arc<DenyList> {
        self.denied.now()
    }

    /// Ends the streams of who is revoked.
    pub fn end_revoked(&self) {
        let denied = self.denied.now();
        if denied.is_empty() {
            return;
        }
        for stream in self.streams.read().all() {
            if stream.client.proved.is_on(&denied) {
                stream.revoked.cancel();
            }
        }
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

    /// Whether a workload is known and is whom a certificate proves. `None`: it is not known.
    pub fn owns(&self, proved: &Proved, workload: &Name) -> Option<bool> {
        let compiled = self.compiled.read();
        let (found, identity) = (compiled.model().workloads.get(workload)?, &proved.identity);
        let same_pod = proved.pod.as_ref().is_none_or(|uid| **uid == *found.uid);
        let accounts = (&*identity.service_account, &*found.service_account);
        Some(same_pod && *identity.namespace == *workload.namespace && accounts.0 == accounts.1)
    }

    /// A workload that is gone keeps its stream: its pod may be serving its last requests.
    fn disowned(&self, client: &Client) -> bool {
        self.owns(&client.proved, &client.workload) == Some(false)
    }

    /// A new stream.
    pub fn open(&self, client: Client) -> Arc<Stream> {
        self.restarted(&client);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream {
            id,
            session: Mutex::new(Session::new(client.workload.clone(), self.limits)),
            client,
            since: Instant::now(),
            wake: Notify::new(),
            revoked: CancellationToken::new(),
            sent_away: AtomicBool::new(false),
        });
        // It is here before it is away no more: who waits for it never finds it nowhere.
        self.streams.write().insert(&stream);
        self.absent.lock().remove(&stream.client.workload);
        // Between the check of its identity and now the model may have changed.
        if self.disowned(&stream.client) {
            stream.revoked.cancel();
        }
        self.metrics.streams.inc();
        self.progressed(&stream);
        self.has_moved(Moved::Proxy(stream.client.workload.clone()));
        stream
    }

    /// A proxy that was started anew does not leave any more.
    fn restarted(&self, client: &Client) {
        let Some(instance) = &client.instance else { return };
        let mut leaves = self.leaves.lock();
        if leaves.seen(&client.workload, instance) {
            self.recompile(&mut leaves, [], Cause::of("restart", Some(client.workload.to_string())));
            self.has_moved(Moved::Leave(client.workload.clone()));
        }
    }

    /// The stream has ended.
    pub fn close(&self, stream: &Stream) {
        let mut streams = self.streams.write();
        if streams.remove(stream) {
            // As at its beginning: it is away before it is here no more.
            let mut absent = self.absent.lock();
            absent.retain(|_, since| since.elapsed() < RECONNECT_GRACE);
            absent.insert(stream.client.workload.clone(), Instant::now());
        }
        drop(streams);
        let topics = stream.session.lock().topics();
        self.status.changed(topics.iter().filter_map(Topic::name));
        self.events.closed(stream.id, self.now());
        let mut subscribers = self.subscribers.lock();
        for topic in topics {
            subscribers.remove(stream.id, &topic);
        }
        drop(subscribers);
        self.metrics.streams.dec();
        self.progressed(stream);
        self.has_moved(Moved::Proxy(stream.client.workload.clone()));
    }

    fn has_moved(&self, what: Moved) {
        // There may be no other replica.
        let _ = self.moved.send(what);
    }

    /// These proxies were connected to another replica and are not now.
    pub(crate) fn have_gone(&self, proxies: &[Name]) {
        let mut absent = self.absent.lock();
        absent.retain(|_, since| since.elapsed() < RECONNECT_GRACE);
        absent.extend(proxies.iter().map(|name| (name.clone(), Instant::now())));
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

    /// All open streams.
    pub fn streams(&self) -> Vec<Arc<Stream>> {
        self.streams.read().all().cloned().collect()
    }

    /// The open streams of one workload's proxy.
    pub fn streams_of(&self, workload: &Name) -> Vec<Arc<Stream>> {
        self.streams.read().of(workload).to_vec()
    }

    /// The streams that listen to any of these topics.
    pub(super) fn listeners<'t>(&self, topics: impl Iterator<Item = &'t Topic>) -> Vec<Arc<Stream>> {
        let ids = self.subscribers.lock().listeners(topics);
        let streams = self.streams.read();
        ids.iter().filter_map(|id| streams.get(*id)).cloned().collect()
    }

    /// Proxies that ought to be connected and are not, for no longer than [`RECONNECT_GRACE`].
    /// One that leaves is not waited for.
    pub(super) fn absent(&self) -> Vec<(Name, Instant)> {
        let recent: Vec<(Name, Instant)> = {
            let absent = self.absent.lock();
            let recent = absent.iter().filter(|(_, since)| since.elapsed() < RECONNECT_GRACE);
            recent.map(|(name, since)| (name.clone(), *since)).collect()
        };
        // No lock is held while another is taken: there is no order between these.
        let mut away: Vec<_> = recent.into_iter().filter(|(name, _)| !self.is_connected(name)).collect();
        self.compiled(|compiled| away.retain(|(name, _)| !compiled.is_leaving(name)));
        away
    }

    /// Whether all who ought to be connected are, or were waited for.
    pub fn is_settled(&self) -> bool {
        self.absent().is_empty()
    }

    /// The same of one proxy: since when it is away.
    pub(super) fn absent_since(&self, workload: &Name) -> Option<Instant> {
        let since = self.absent.lock().get(workload).copied().filter(|since| since.elapsed() < RECONNECT_GRACE);
        let away =
            |_: &Instant| !self.compiled(|compiled| compiled.is_leaving(workload)) && !self.is_connected(workload);
        since.filter(away)
    }

    /// Whether a proxy has a stream, to whichever replica.
    fn is_connected(&self, workload: &Name) -> bool {
        !self.streams.read().of(workload).is_empty() || self.replicas.have(workload)
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

    /// The workloads that ought to have a proxy now, by the source: not those that leave, nor those without an address, which have ended or
    /// were never started (a pod that waits for a place would be waited for without end).
    pub fn live(&self) -> Vec<Name> {
        let compiled = self.compiled.read();
        let workloads = compiled.model().workloads.iter();
        let lives = |found: &Workload| found.meshed && !found.terminating && !found.ips.is_empty();
        workloads.filter(|(_, found)| lives(found)).map(|(name, _)| name.clone()).collect()
    }
}
