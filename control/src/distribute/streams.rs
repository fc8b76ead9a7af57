//! The open streams, by number and by workload.

use std::collections::HashMap;
use std::sync::Arc;

use super::hub::Stream;
use crate::model::Name;

/// Invariant: a stream is in both maps, and a workload without streams in neither.
#[derive(Debug, Default)]
pub(super) struct Streams {
    by_id: HashMap<u64, Arc<Stream>>,
    by_workload: HashMap<Name, Vec<Arc<Stream>>>,
}

impl Streams {
    /// A new one.
    pub(super) fn insert(&mut self, stream: &Arc<Stream>) {
        self.by_id.insert(stream.id, Arc::clone(stream));
        self.by_workload.entry(stream.client.workload.clone()).or_default().push(Arc::clone(stream));
    }

    /// Returns whether it was the last one of its workload.
    pub(super) fn remove(&mut self, stream: &Stream) -> bool {
        self.by_id.remove(&stream.id);
        let Some(others) = self.by_workload.get_mut(&stream.client.workload) else { return true };
        others.retain(|other| other.id != stream.id);
        let last = others.is_empty();
        if last {
            self.by_workload.remove(&stream.client.workload);
        }
        last
    }

    /// By its number.
    pub(super) fn get(&self, id: u64) -> Option<&Arc<Stream>> {
        self.by_id.get(&id)
    }

    /// The streams of one workload's proxy; the oldest first.
    pub(super) fn of(&self, workload: &Name) -> &[Arc<Stream>] {
        self.by_workload.get(workload).map_or(&[], Vec::as_slice)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.by_id.values()
    }
}
