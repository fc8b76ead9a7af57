//! What the writer of status hears: objects as the API server has them, and names of resources of which something may have changed, here or at
//! another replica of control. What happens here other replicas may hear too, each by an [`Ear`] of its own.
//!
//! Invariants
//! - An object comes after the model has taken it over ([`Feed::told`](crate::distribute::Feed::told)).
//! - What waits is bounded by how many objects there are: of each the last state counts, and of more than [`MOST`] names ([`MOST_TOLD`] for another
//!   replica) it is enough to know that all may have changed.
//! - What another replica has told is told to no other.
//! - While nobody listens nothing is kept.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_api::names;

use super::{Key, Subject, Subjects};

/// Names that are kept.
const MOST: usize = 65_536;
/// The same for another replica: what one message may name.
pub const MOST_TOLD: usize = 1024;

/// Resources of which something may have changed.
#[derive(Debug, Default)]
pub struct Stirred {
    /// They changed, or some proxy answered about them.
    pub names: HashSet<Arc<str>>,
    /// Every object may be concerned.
    pub all: bool,
}

impl Stirred {
    /// These too; all, if there would be more than `most`.
    pub fn add(&mut self, names: impl Iterator<Item = Arc<str>>, most: usize) {
        if self.all {
            return;
        }
        self.names.extend(names);
        if self.names.len() > most {
            *self = Self::all();
        }
    }

    /// More than can be named.
    pub fn all() -> Self {
        Self { names: HashSet::new(), all: true }
    }

    /// Nothing has.
    pub fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }
}

/// What waits.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Objects that came, changed or went.
    pub subjects: BTreeMap<Key, Option<Subject>>,
    /// Resources.
    pub stirred: Stirred,
}

/// Where it waits.
#[derive(Debug, Default)]
pub struct Inbox {
    open: AtomicBool,
    pub(super) waiting: Mutex<Waiting>,
    arrived: Notify,
    ears: Mutex<Vec<Weak<Ear>>>,
    /// How many ears there are, for those who have no time to look.
    listening: AtomicUsize,
}

/// Another replica hears by it what happens here, for as long as it is kept.
#[derive(Debug, Default)]
pub struct Ear {
    waiting: Mutex<Stirred>,
    arrived: Notify,
}

impl Ear {
    /// Waits until there is something to [`Ear::take`].
    pub async fn heard(&self) {
        self.arrived.notified().await;
    }

    /// All that waits.
    pub fn take(&self) -> Stirred {
        std::mem::take(&mut *self.waiting.lock())
    }
}

/// Whether the picture of objects that get a status depends on how proxies stand to a resource: it is made of one (those are called
/// `KIND/NAMESPACE/NAME`, others `workload/...` and so on), or lists a namespace's own routes.
pub fn is_object(resource: &str) -> bool {
    resource.starts_with(|first: char| first.is_ascii_uppercase()) || names::is_consumer(resource)
}

/// Those of services say which routes are attached.
fn concerns(resource: &str) -> bool {
    is_object(resource) || resource.starts_with("service/")
}

impl Inbox {
    /// Somebody listens from now on.
    pub fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }

    /// Whether somebody does.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Another replica listens from now on.
    pub fn listen(&self) -> Arc<Ear> {
        let ear = Arc::new(Ear::default());
        let mut ears = self.ears.lock();
        ears.retain(|ear| ear.strong_count() > 0);
        ears.push(Arc::downgrade(&ear));
        self.listening.store(ears.len(), Ordering::Release);
        ear
    }

    /// How many replicas do.
    pub fn listeners(&self) -> usize {
        self.ears.lock().iter().filter(|ear| ear.strong_count() > 0).count()
    }

    /// Something may have changed here for who runs these resources.
    pub fn changed<'n>(&self, names: impl Iterator<Item = &'n Arc<str>>) {
        let elsewhere = self.listening.load(Ordering::Acquire) > 0;
        if !self.is_open() && !elsewhere {
            return;
        }
        let mut concerned = names.filter(|name| concerns(name)).peekable();
        if concerned.peek().is_none() {
            return;
        }
        if elsewhere {
            let concerned: Vec<Arc<str>> = concerned.cloned().collect();
            self.tell(&concerned);
            self.hear(concerned.into_iter(), false);
        } else {
            self.hear(concerned.cloned(), false);
        }
    }

    /// The same at another replica; `all`: it cannot name them.
    pub fn changed_elsewhere(&self, names: Vec<String>, all: bool) {
        self.hear(names.into_iter().filter(|name| concerns(name)).map(Arc::from), all);
    }

    fn hear(&self, concerned: impl Iterator<Item = Arc<str>>, all: bool) {
        if !self.is_open() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if all {
            waiting.stirred = Stirred::all();
        } else {
            waiting.stirred.add(concerned, MOST);
        }
        drop(waiting);
        self.arrived.notify_one();
    }

    fn tell(&self, concerned: &[Arc<str>]) {
        let mut ears = self.ears.lock();
        ears.retain(|ear| {
            let Some(ear) = ear.upgrade() else { return false };
            ear.waiting.lock().add(concerned.iter().cloned(), MOST_TOLD);
            ear.arrived.notify_one();
            true
        });
        self.listening.store(ears.len(), Ordering::Release);
    }

    /// The model has taken these over.
    pub fn saw(&self, subjects: Subjects) {
        if subjects.is_empty() || !self.is_open() {
            return;
        }
        self.waiting.lock().subjects.extend(subjects);
        self.arrived.notify_one();
    }

    /// All that waits, once there is something.
    pub async fn next(&self) -> Waiting {
        self.arrived.notified().await;
        std::mem::take(&mut *self.waiting.lock())
    }
}
