//! One proxy's delta stream as a state machine: no I/O, no clock, no locks.
//!
//! Algorithm
//! - The session knows what the proxy holds: `nodes` (everything but endpoints) and `collections` (endpoints), each with the version
//!   sent and the version acknowledged.
//! - Everything that may have to be sent stands once in `queue`, as a name; what is sent is decided when a response is made, by
//!   comparing the version sent with the version that is true then. So a slow proxy costs names, never messages, and skips what was
//!   overtaken.
//! - A resource that is sent for the first time is followed by what it points to and what the proxy does not hold, in the same
//!   response as far as the size allows.
//!
//! Invariants
//! - Nothing is sent whose version the proxy holds already, unless it subscribes again to a name that it has (then it has lost
//!   something: the root and all that it points to are sent anew, but for what the request says it holds).
//! - A collection is [`Steady`](Phase::Steady) once a head has been sent whose digest is that of exactly the members sent; from then
//!   on a changed member goes alone. While [`Loading`](Phase::Loading) the head is repeated at the end if the set moved on meanwhile.
//!   While [`Awaiting`](Phase::Awaiting) the proxy has been told a head that differs from its own, and will say what it holds.
//! - Both sides forget what no root leads to, at moments of their own. Where the structure (not the endpoints) that a proxy holds does not
//!   fit into one response, the proxy may so have forgotten what the session still counts as held; it sees that something
//!   stays missing, and subscribes to the root again, which heals it.
//! - At most [`Limits::window`] responses are unacknowledged; at most [`Limits::roots`] names are subscribed.

mod ack;
mod emit;
mod hear;
mod held;
mod listen;
mod look;
mod members;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use weft_api::names::{ResourceType, followed};
use weft_api::wire::v1;

use crate::compile::{Resource, Topic};
use crate::model::Name;
pub use ack::{Heard, Nack};
pub use hear::Violation;
use held::Held;
pub(in crate::distribute) use held::Seen;
use listen::Listening;
pub use listen::{Listen, Touched};
pub use look::{Standing, Version};
use members::{Members, Pending, Phase};

/// Names of resources.
pub type Names = BTreeSet<Arc<str>>;

/// Bounds of one stream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Names that one proxy may subscribe to. Proxies keep 4,096 addresses at most.
    pub roots: usize,
    /// Responses that may be unacknowledged.
    pub window: usize,
    /// Bytes of one response; the protocol's bound is 1 MiB.
    pub message: usize,
    /// Endpoints of one set that are remembered one by one while they wait; more, and the set is compared as a whole.
    pub pending_members: usize,
    /// Bytes of a name.
    pub name: usize,
    /// Versions that a proxy may say it holds.
    pub claims: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { roots: 8192, window: 32, message: 960 * 1024, pending_members: 4096, name: 512, claims: 200_000 }
    }
}

/// Something that may have to be sent.
#[derive(Clone, Debug)]
enum Work {
    Resource(Arc<str>),
    Members(Arc<str>),
    /// The first request of a type is answered even if nothing is to be said.
    Answer,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Type URL of the response that it goes in.
    group: &'static str,
    work: Work,
}

/// A response that waits for its ACK.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) resources: Vec<(Arc<str>, Option<Arc<Resource>>)>,
    /// When it was made.
    pub(super) at: Duration,
    /// When the oldest change in it was made; none of what was asked for.
    pub(super) changed: Option<Duration>,
}

/// The state of one stream.
#[derive(Debug)]
pub struct Session {
    workload: Name,
    /// Types that go without saying are left out ([`weft_api::BRIEF_TYPES`]).
    brief: bool,
    limits: Limits,
    roots: HashSet<Arc<str>>,
    /// Types that have been asked for on this stream.
    asked: HashSet<&'static str>,
    nodes: HashMap<Arc<str>, Held>,
    collections: HashMap<Arc<str>, Members>,
    listening: Listening,
    queue: VecDeque<Entry>,
    queued: HashSet<Arc<str>>,
    /// Versions that the proxy says it holds, until what it asks for has been answered.
    claims: HashMap<String, String>,
    /// The request that they belong to has not come yet.
    more_claims: bool,
    nonce: u64,
    outstanding: BTreeMap<u64, Sent>,
    changed: Option<Duration>,
    /// Something may have become unreachable.
    sweep: bool,
    /// How often a bound refused something.
    pub(super) refused_by_bounds: u64,
}

impl Session {
    /// The same, for a proxy of an earlier build, which wants every type spelt out.
    #[must_use]
    pub fn spelt_out(self) -> Self {
        Self { brief: false, ..self }
    }

    /// A stream of the proxy of `workload`.
    pub fn new(workload: Name, limits: Limits) -> Self {
        Self {
            brief: true,
            workload,
            limits,
            roots: HashSet::new(),
            asked: HashSet::new(),
            nodes: HashMap::new(),
            collections: HashMap::new(),
            listening: Listening::default(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            claims: HashMap::new(),
            more_claims: false,
            nonce: 0,
            outstanding: BTreeMap::new(),
            changed: None,
            sweep: false,
            refused_by_bounds: 0,
        }
    }

    /// Control's tables changed in something that this stream listens to.
    pub fn touch(&mut self, changes: &Touched, now: Duration) {
        if self.queue.is_empty() {
            // What changed before is wanted no more.
            self.changed = None;
        }
        let mut names: Vec<Arc<str>> = Vec::new();
        for topic in &changes.topics {
            match topic {
                Topic::Name(name) => names.push(Arc::clone(name)),
                other => names.extend(self.listening.to(other).cloned()),
            }
        }
        let (roots, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| self.roots.contains(name));
        // Roots first: what only an old answer pointed to is forgotten before it is looked at.
        for name in roots.iter().chain(&others) {
            self.enqueue(name);
        }
        if !self.claims.is_empty() {
            // What the proxy said that it holds may be forgotten there by what it is being told now, and wanted again by this change:
            // rather send it anew than have it missed.
            self.claims = HashMap::new();
        }
        for (head, members) in &changes.members {
            let Some(collection) = self.collections.get_mut(head) else { continue };
            if collection.phase() == Phase::Awaiting {
                continue;
            }
            collection.compare(members, self.limits.pending_members);
            if collection.phase() == Phase::Steady && self.queued.insert(Arc::clone(head)) {
                self.queue.push_back(Entry { group: v1::Endpoint::TYPE_URL, work: Work::Members(Arc::clone(head)) });
            }
        }
        if !self.queue.is_empty() {
            self.changed.get_or_insert(now);
        }
    }

    fn enqueue(&mut self, name: &Arc<str>) {
        let group = match self.nodes.get(name) {
            Some(held) => held.seen().sent.map_or(v1::Workload::TYPE_URL, |sent| sent.type_url),
            None if self.roots.contains(name) => v1::Workload::TYPE_URL,
            None => return,
        };
        if group != v1::EndpointHead::TYPE_URL && self.queued.insert(Arc::clone(name)) {
            self.queue.push_back(Entry { group, work: Work::Resource(Arc::clone(name)) });
        }
    }

    /// Whether [`Session::next`] may have something. False while the window is full.
    pub fn has_work(&self) -> bool {
        !self.queue.is_empty() && self.outstanding.len() < self.limits.window
    }

    /// How often a bound refused something since the last call.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused_by_bounds)
    }

    /// Forgets one resource, as if the proxy had never had it.
    fn forget(&mut self, name: &Arc<str>) {
        if self.nodes.remove(name).is_some() {
            self.unlisten(name);
        }
        self.collections.remove(name);
    }

    /// Everything that can be reached from `from`, by what the proxy has been told.
    pub(super) fn reach<'n>(&self, from: impl Iterator<Item = &'n Arc<str>>) -> HashSet<Arc<str>> {
        let mut todo: Vec<Arc<str>> = from.cloned().collect();
        let mut reached = HashSet::new();
        while let Some(name) = todo.pop() {
            if reached.insert(Arc::clone(&name))
                && let Some(sent) = self.nodes.get(&name).and_then(|held| held.seen().sent)
            {
                let next = sent.points_to.iter().filter_map(|next| followed(next, &self.workload.namespace));
                todo.extend(next.filter(|next| !reached.contains(next)));
            }
        }
        reached
    }

    /// Forgets what no root points to any more; the proxy does the same. Both wait until everything that the roots lead to is there:
    /// what looks forgotten may be needed by an answer that is still on its way.
    fn sweep(&mut self) {
        let reached = self.reach(self.roots.iter());
        let own = weft_api::names::workload(&self.workload.namespace, &self.workload.name);
        // The workload's own object may not exist (any more).
        if reached.iter().any(|name| !self.nodes.contains_key(name) && **name != *own) {
            return;
        }
        self.sweep = false;
        let gone: Vec<Arc<str>> = self.nodes.keys().filter(|name| !reached.contains(*name)).cloned().collect();
        for name in &gone {
            self.forget(name);
        }
        let queued = &mut self.queued;
        self.queue.retain(|entry| match &entry.work {
            Work::Resource(name) | Work::Members(name) if !reached.contains(name) => {
                queued.remove(name);
                false
            }
            _ => true,
        });
    }
}

#[cfg(test)]
mod tests;
