//! What the writer of status hears: objects as the API server has them, and names of resources of which something may have changed.
//!
//! Invariants
//! - An object comes after the model has taken it over ([`Feed::told`](crate::distribute::Feed::told)).
//! - What waits is bounded by how many objects there are: of each the last state counts, and of more than [`MOST`] names it is enough to know
//!   that all may have changed.
//! - While nobody listens nothing is kept.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use weft_api::names;

use super::{Key, Subject, Subjects};

/// Names that are kept.
const MOST: usize = 65_536;

/// What waits.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Objects that came, changed or went.
    pub subjects: BTreeMap<Key, Option<Subject>>,
    /// Resources that changed, or that some proxy answered about.
    pub names: HashSet<Arc<str>>,
    /// Every object may be concerned.
    pub all: bool,
}

/// Where it waits.
#[derive(Debug, Default)]
pub struct Inbox {
    open: AtomicBool,
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

/// Whether the picture of objects that get a status depends on how proxies stand to a resource: it is made of one (those are called
/// `KIND/NAMESPACE/NAME`, others `workload/...` and so on), or lists a namespace's own routes.
pub fn is_object(resource: &str) -> bool {
    resource.starts_with(|first: char| first.is_ascii_uppercase()) || names::is_consumer(resource)
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

    /// Something may have changed for who runs these resources. Those of services say which routes are attached.
    pub fn changed<'n>(&self, names: impl Iterator<Item = &'n Arc<str>>) {
        if !self.is_open() {
            return;
        }
        let mut concerned = names.filter(|name| is_object(name) || name.starts_with("service/")).peekable();
        if concerned.peek().is_none() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if !waiting.all {
            waiting.names.extend(concerned.cloned());
        }
        if waiting.names.len() > MOST {
            waiting.all = true;
            waiting.names = HashSet::new();
        }
        drop(waiting);
        self.arrived.notify_one();
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
