//! The task that owns the tables: it hears the stream, makes snapshots, answers for what is asked, and sees to the disk.
//!
//! Invariant: a response is acknowledged only after the snapshot that it led to is stored: whoever loads one afterwards loads that.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, ListValue, Struct, Value};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use weft_api::convert::{Decoded, Revoked, Trust};
use weft_api::names::{self, ResourceType};
use weft_api::wire::core::Node;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use weft_api::wire::v1;

use super::build::Builder;
use super::counters::bump;
use super::machine::Machine;
use super::store::{self, Entry, Saved};
use super::stream::{self, Event};
use super::{Discovery, IDLE};
use crate::Shared;
use crate::control_channel::Target;
use crate::identity::trust::enforce;

/// Changes are written to disk so long after the first of them.
const SAVE_AFTER: Duration = Duration::from_millis(500);
/// While control is there and nothing changes, the saved tables are marked as confirmed so often.
const CONFIRM_EVERY: Duration = Duration::from_mins(1);
/// Idle addresses are looked for so often, in ticks of a second.
const SWEEP_TICKS: u64 = 10;
/// An open stream on which control has not answered for so long is ended.
const SILENCE: Duration = Duration::from_secs(20);
/// The same where all that was asked at the stream's beginning has been answered: what is asked then is answered in milliseconds, and somebody
/// waits for it.
const PAUSE: Duration = Duration::from_secs(4);
/// Requests that wait for the stream at most; more, and the stream is ended: it does not move.
const OUTBOX: usize = 16 * 1024;
/// Of all addresses, this share makes room at once: looking for the oldest costs a look at each.
const EVICT_SHARE: usize = 64;

/// What is asked of the driver.
pub enum Want {
    /// An address that was called for the first time.
    Address(Arc<str>),
    /// Write to disk what is not there yet.
    Flush(oneshot::Sender<()>),
    /// Name, type and version of everything that is held.
    Describe(oneshot::Sender<Vec<Held>>),
}

/// One resource, for a person.
#[derive(Debug, serde::Serialize)]
pub struct Held {
    /// Resource name.
    pub name: String,
    /// `Service`, `Endpoint`, ...
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// As control gave it.
    pub version: String,
}

/// What the driver owns.
pub struct Core {
    /// The tables.
    pub machine: Machine,
    /// What was made of them.
    pub builder: Builder,
    /// Questions.
    pub asked: mpsc::Receiver<Want>,
}

/// Keeps the tables for as long as it is polled; it never returns. A second call does nothing for ever.
pub async fn run(shared: Arc<Shared>, target: Target) {
    let Some(core) = shared.discovery.core.lock().take() else {
        return std::future::pending().await;
    };
    let (tell, events) = mpsc::channel(stream::IN);
    let (tell_written, written) = mpsc::channel(1);
    let driver = Driver {
        shared: &shared,
        machine: core.machine,
        builder: core.builder,
        state_dir: shared.config.state_dir.clone(),
        out: None,
        outbox: VecDeque::new(),
        node: Some(node(&shared)),
        dirty_at: None,
        saving: false,
        written: tell_written,
        saved: false,
        confirmed_at: Instant::now(),
        flushing: Vec::new(),
        ticks: 0,
        believed: None,
        denied: None,
    };
    tokio::join!(stream::keep(&shared, &target, tell), driver.run(core.asked, events, written));
}

/// Puts saved tables into a machine.
pub fn restore(machine: &mut Machine, saved: Saved, confirmed: bool) {
    let resources = saved.entries.into_iter().map(|entry| Resource {
        name: entry.name,
        version: entry.version,
        resource: Some(Any { type_url: entry.type_url, value: entry.bytes.into() }),
    });
    let addresses = saved.addresses.into_iter().map(Into::into).collect();
    machine.restore(resources, addresses, confirmed);
}

/// What is to be saved of a machine. A set that is on its way is left out: it could not be used.
pub fn to_save(machine: &Machine) -> Saved {
    let entry = |name: &str, type_url: &str, version: String, bytes| Entry {
        name: name.to_owned(),
        type_url: type_url.to_owned(),
        version,
        bytes,
    };
    let table = &machine.table;
    let nodes =
        table.nodes.iter().map(|(name, node)| entry(name, node.type_url, node.version.to_string(), node.bytes.clone()));
    let mut entries: Vec<Entry> = nodes.collect();
    for (name, set) in table.collections.iter().filter(|(_, set)| set.is_steady()) {
        entries.push(entry(name, v1::EndpointHead::TYPE_URL, set.version(), set.head().encode_to_vec().into()));
        entries.extend(set.members.iter().map(|(name, member)| {
            entry(name, v1::Endpoint::TYPE_URL, member.version.to_string(), member.bytes.clone())
        }));
    }
    Saved {
        workload: machine.workload().to_string(),
        entries,
        addresses: machine.addresses().keys().map(ToString::to_string).collect(),
    }
}

/// Who we are, for control.
fn node(shared: &Shared) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let features = weft_api::FEATURES.iter().map(|feature| text(feature)).collect();
    let features = Value { kind: Some(Kind::ListValue(ListValue { values: features })) };
    let fields = [("features".to_owned(), features), ("instance".to_owned(), text(shared.discovery.instance()))];
    Node {
        id: shared.config.workload.to_string(),
        metadata: Some(Struct { fields: fields.into_iter().collect() }),
        user_agent_name: "weft-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Node::default()
    }
}

struct Driver<'s> {
    shared: &'s Shared,
    machine: Machine,
    builder: Builder,
    state_dir: Option<PathBuf>,
    out: Option<mpsc::Sender<DeltaDiscoveryRequest>>,
    outbox: VecDeque<DeltaDiscoveryRequest>,
    /// Goes with the first request of each stream.
    node: Option<Node>,
    dirty_at: Option<Instant>,
    /// A write is under way; its outcome comes by `written`.
    saving: bool,
    written: mpsc::Sender<std::io::Result<()>>,
    /// The file holds what we wrote last; else it is an earlier process's, or older than what could not be written.
    saved: bool,
    confirmed_at: Instant,
    flushing: Vec<oneshot::Sender<()>>,
    ticks: u64,
    // What control has said of roots last.
    believed: Option<Trust>,
    // The same of who is revoked.
    denied: Option<Revoked>,
}

impl Driver<'_> {
    async fn run(
        mut self,
        mut asked: mpsc::Receiver<Want>,
        mut events: mpsc::Receiver<Event>,
        mut written: mpsc::Receiver<std::io::Result<()>>,
    ) {
        // What was saved.
        self.believe();
        self.deny();
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let save_at = self.dirty_at.filter(|_| !self.saving).map(|at| at + SAVE_AFTER);
            // Reserved by a handle of its own, so that the driver is free to act on the other branches.
            let out = self.out.clone().filter(|_| !self.outbox.is_empty());
            tokio::select! {
                want = asked.recv() => match want {
                    Some(want) => self.answer(want),
                    None => return,
                },
                event = events.recv() => match event {
                    Some(event) => self.take(event, &mut events),
                    None => return,
                },
                permit = reserve(out.as_ref()) => {
                    if let Some(request) = self.outbox.pop_front() {
                        permit.send(request);
                    }
                }
                Some(outcome) = written.recv() => self.saved(outcome),
                () = at(save_at) => self.save(),
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    fn discovery(&self) -> &Discovery {
        &self.shared.discovery
    }

    fn now(&self) -> Duration {
        self.shared.clock.now()
    }

    fn send(&mut self, mut requests: Vec<DeltaDiscoveryRequest>) {
        if self.out.is_none() {
            return;
        }
        if let Some(first) = requests.first_mut() {
            first.node = self.node.take();
        }
        self.outbox.extend(requests);
        if self.outbox.len() > OUTBOX {
            self.shared.telemetry.bound_hit("control_requests");
            self.discovery().kick.notify_waiters();
        }
    }

    fn answer(&mut self, want: Want) {
        match want {
            Want::Address(name) => self.subscribe(&name),
            Want::Flush(done) => {
                self.flushing.push(done);
                if !self.saving {
                    self.save();
                }
            }
            // Whoever asked may have gone away.
            Want::Describe(tell) => drop(tell.send(held(&self.machine))),
        }
    }

    fn subscribe(&mut self, name: &Arc<str>) {
        if self.machine.addresses().contains_key(name) {
            return;
        }
        if self.machine.is_full() {
            self.make_room();
        }
        let request = self.machine.subscribe(name, self.now());
        self.send(request.into_iter().collect());
        self.dirty();
    }

    /// Forgets the addresses that were called longest ago.
    fn make_room(&mut self) {
        let mut used: Vec<(Duration, Arc<str>)> =
            self.machine.addresses().keys().map(|name| (self.last_used(name), Arc::clone(name))).collect();
        let many = (used.len() / EVICT_SHARE).max(1).min(used.len().saturating_sub(1).max(1));
        used.select_nth_unstable(many - 1);
        used.truncate(many);
        for _ in &used {
            bump(&self.discovery().counters.evicted_addresses);
            self.shared.telemetry.bound_hit("addresses");
        }
        self.forget(used.into_iter().map(|(_, name)| name).collect());
    }

    fn last_used(&self, name: &str) -> Duration {
        let asked = self.machine.addresses().get(name).map(|root| root.since).unwrap_or_default();
        self.builder.last_used(name).unwrap_or_default().max(asked)
    }

    fn forget(&mut self, gone: Vec<Arc<str>>) {
        let request = self.machine.unsubscribe(&gone);
        self.send(request.into_iter().collect());
        self.publish();
        self.dirty();
    }

    /// What control says of roots is in force before it is acknowledged.
    fn believe(&mut self) {
        let Some(Decoded::Trust(told)) = self.machine.table.decoded(names::TRUST) else { return };
        if self.believed.as_ref() == Some(told) {
            return;
        }
        match self.shared.trust.tell(told).and_then(|()| enforce(self.shared)) {
            Ok(()) => {
                tracing::info!(domains = ?told.bundles.keys(), "control has said whose certificates are believed");
            }
            Err(error) => tracing::error!(%error, "roots cannot be used; those before go on"),
        }
        self.believed = Some(told.clone());
    }

    /// The same of who is not believed any more.
    fn deny(&mut self) {
        let Some(Decoded::Revoked(told)) = self.machine.table.decoded(names::REVOKED) else { return };
        if self.denied.as_ref() == Some(told) {
            return;
        }
        let closed = self.shared.trust.revoked.tell(told);
        let (identities, certificates) = (told.identities.len(), told.serials.len());
        tracing::info!(identities, certificates, closed, "control has said who is revoked");
        self.denied = Some(told.clone());
    }

    fn publish(&mut self) {
        self.believe();
        self.deny();
        let snapshot = self.builder.snapshot(&self.machine, self.now());
        let discovery = self.discovery();
        let has_inbound = self.builder.inbound.current().is_some();
        discovery.has_inbound.store(has_inbound, std::sync::atomic::Ordering::Relaxed);
        discovery.publish(snapshot);
    }

    fn take(&mut self, event: Event, events: &mut mpsc::Receiver<Event>) {
        match event {
            Event::Opened(out) => {
                self.out = Some(out);
                self.outbox.clear();
                self.node = Some(node(self.shared));
                let requests = self.machine.open(self.now());
                self.send(requests);
            }
            Event::Closed => {
                self.machine.closed();
                self.out = None;
                self.outbox.clear();
                self.discovery().set_connected(false);
            }
            Event::Heard(response) => {
                // What has come already is taken together: one snapshot for all of it.
                let mut responses = vec![*response];
                let mut next = None;
                while let Ok(event) = events.try_recv() {
                    match event {
                        Event::Heard(response) => responses.push(*response),
                        other => {
                            next = Some(other);
                            break;
                        }
                    }
                }
                self.hear(responses);
                if let Some(next) = next {
                    self.take(next, events);
                }
            }
        }
    }

    fn hear(&mut self, responses: Vec<DeltaDiscoveryResponse>) {
        let now = self.now();
        let (mut replies, mut structure, mut sets) = (Vec::new(), false, HashSet::new());
        for response in responses {
            let heard = self.machine.hear(response, now);
            structure |= heard.structure;
            sets.extend(heard.collections);
            replies.extend(heard.replies);
            let counters = &self.discovery().counters;
            for (type_at, change) in heard.received {
                counters.received_one(type_at, change);
            }
            for refused in &heard.refused {
                tracing::warn!(
                    name = refused.name,
                    version = refused.version,
                    code = refused.code,
                    error = refused.message,
                    "a resource is refused; what was in force before it stays"
                );
            }
            bump(if heard.refused.is_empty() { &counters.acks } else { &counters.nacks });
        }
        for head in &sets {
            structure |= !self.builder.update_set(&self.machine, head, now);
        }
        if structure {
            self.publish();
        }
        if structure || !sets.is_empty() {
            self.dirty();
        }
        // In force: now it may be said.
        self.send(replies);
        self.discovery().counters.set_held(self.machine.table.counts());
        self.discovery().heard();
        if self.machine.caught_up() {
            self.discovery().from_disk.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        self.discovery().set_connected(true);
    }

    fn tick(&mut self) {
        self.ticks += 1;
        let now = self.now();
        let requests = self.machine.heal(now);
        self.send(requests);
        let patience = if self.machine.caught_up() { PAUSE } else { SILENCE };
        if self.machine.unanswered().is_some_and(|since| now.saturating_sub(since) > patience) {
            tracing::warn!("control does not answer on an open stream; it is opened anew");
            self.discovery().kick.notify_waiters();
        }
        if self.ticks.is_multiple_of(SWEEP_TICKS) {
            self.sweep(now);
        }
        if self.discovery().status().connected {
            self.discovery().heard();
            self.confirm();
        }
    }

    fn sweep(&mut self, now: Duration) {
        let names = self.machine.addresses().keys();
        let idle: Vec<Arc<str>> =
            names.filter(|name| now.saturating_sub(self.last_used(name)) >= IDLE).cloned().collect();
        if !idle.is_empty() {
            let count = &self.discovery().counters.idle_addresses;
            count.fetch_add(idle.len() as u64, std::sync::atomic::Ordering::Relaxed);
            self.forget(idle);
            self.discovery().counters.set_held(self.machine.table.counts());
        }
        self.discovery().externals.sweep(now, IDLE);
        self.discovery().names.sweep(now, IDLE);
    }

    fn dirty(&mut self) {
        if self.state_dir.is_some() {
            self.dirty_at.get_or_insert_with(Instant::now);
        }
    }

    /// Begins to write, if there is something to write.
    fn save(&mut self) {
        let Some(dir) = self.state_dir.clone().filter(|_| self.dirty_at.take().is_some()) else {
            self.flushed();
            return;
        };
        let saved = to_save(&self.machine);
        self.saving = true;
        let tell = self.written.clone();
        // There is room: one write is under way at a time.
        tokio::task::spawn_blocking(move || drop(tell.try_send(store::save(&dir, &saved))));
    }

    fn saved(&mut self, written: std::io::Result<()>) {
        self.saving = false;
        let counters = &self.discovery().counters;
        match written {
            Ok(()) => {
                bump(&counters.saves);
                self.saved = true;
                self.confirmed_at = Instant::now();
            }
            Err(error) => {
                bump(&counters.save_failures);
                self.saved = false;
                tracing::warn!(%error, "the tables could not be saved; a restart will need control");
            }
        }
        if self.flushing.is_empty() {
            return;
        }
        // Whoever waits asked after this write began, perhaps: what has changed since is written too.
        self.save();
    }

    fn flushed(&mut self) {
        // Whoever asked may have gone away.
        for done in self.flushing.drain(..) {
            let _ = done.send(());
        }
    }

    /// Nothing has changed and control is there: the saved tables are true as of now.
    fn confirm(&mut self) {
        let due = self.confirmed_at.elapsed() >= CONFIRM_EVERY && !self.saving && self.dirty_at.is_none();
        let Some(dir) = self.state_dir.clone().filter(|_| due) else { return };
        self.confirmed_at = Instant::now();
        if self.saved {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = store::confirm(&dir) {
                    tracing::debug!(%error, "the saved tables could not be marked as confirmed");
                }
            });
        } else {
            self.dirty();
        }
    }
}

fn held(machine: &Machine) -> Vec<Held> {
    use weft_api::names::short_type;
    let table = &machine.table;
    let nodes = table.nodes.iter().map(|(name, node)| Held {
        name: name.to_string(),
        kind: super::table::type_index(node.type_url).map_or("", |at| short_type(super::table::TYPES[at])),
        version: node.version.to_string(),
    });
    let heads = table.collections.iter().map(|(name, set)| Held {
        name: name.to_string(),
        kind: short_type(v1::EndpointHead::TYPE_URL),
        version: set.version(),
    });
    let members = table.collections.values().flat_map(|set| &set.members).map(|(name, member)| Held {
        name: name.to_string(),
        kind: short_type(v1::Endpoint::TYPE_URL),
        version: member.version.to_string(),
    });
    let mut all: Vec<Held> = nodes.chain(heads).chain(members).collect();
    all.sort_by(|one, two| one.name.cmp(&two.name));
    all
}

async fn reserve<T>(out: Option<&mpsc::Sender<T>>) -> mpsc::Permit<'_, T> {
    match out {
        Some(out) => match out.reserve().await {
            Ok(permit) => permit,
            // The stream has ended: that is told as an event.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
