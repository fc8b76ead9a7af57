//! What the discovery room counts, for metrics. Counts only grow, but for those that say "now".

use std::sync::atomic::{AtomicU64, Ordering};

use weft_api::names::short_type;

use super::machine::Change;
use super::table::TYPES;

/// The counters; atomics all.
#[derive(Debug, Default)]
pub struct Counters {
    received: [[AtomicU64; Change::ALL.len()]; TYPES.len()],
    held: [AtomicU64; TYPES.len()],
    /// Streams to control that were opened.
    pub streams: AtomicU64,
    /// Attempts at a stream that failed, and streams that broke.
    pub failures: AtomicU64,
    /// Responses acknowledged whole.
    pub acks: AtomicU64,
    /// Responses refused in part or whole.
    pub nacks: AtomicU64,
    /// Requests and connections that were held until control answered.
    pub held_answered: AtomicU64,
    /// Requests and connections that were held for as long as may be, without an answer.
    pub held_timeout: AtomicU64,
    /// Addresses forgotten because there was no room for another one.
    pub evicted_addresses: AtomicU64,
    /// Addresses forgotten because nobody called them.
    pub idle_addresses: AtomicU64,
    /// Endpoints outside the mesh that were forgotten because there was no room for another one.
    pub evicted_external: AtomicU64,
    /// Host names forgotten because there was no room for another one.
    pub evicted_hosts: AtomicU64,
    /// Look-ups of host names that went to a name server.
    pub lookups: AtomicU64,
    /// Of these, those that failed.
    pub lookup_failures: AtomicU64,
    /// Answers given past their time because no name server answered.
    pub lookups_stale: AtomicU64,
    /// Times that the tables were written to disk.
    pub saves: AtomicU64,
    /// Times that they could not be.
    pub save_failures: AtomicU64,
    /// Saved tables that were damaged, of another workload or unreadable, and therefore not used.
    pub load_failures: AtomicU64,
}

/// Adds one.
pub fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Counts a resource by the place of its type.
    pub(super) fn received_one(&self, type_at: usize, change: Change) {
        if let Some(count) = self.received.get(type_at).and_then(|row| row.get(change as usize)) {
            bump(count);
        }
    }

    pub(super) fn set_held(&self, counts: [u64; TYPES.len()]) {
        for (gauge, count) in self.held.iter().zip(counts) {
            gauge.store(count, Ordering::Relaxed);
        }
    }

    /// Resources received so far, by type and by what they changed.
    pub fn received(&self) -> Vec<(&'static str, Change, u64)> {
        let rows = TYPES.iter().zip(&self.received);
        let cells = rows.flat_map(|(type_url, row)| Change::ALL.into_iter().zip(row).map(move |cell| (type_url, cell)));
        cells.map(|(type_url, (change, count))| (short_type(type_url), change, count.load(Ordering::Relaxed))).collect()
    }

    /// Resources held now, by type.
    pub fn held(&self) -> Vec<(&'static str, u64)> {
        TYPES
            .iter()
            .zip(&self.held)
            .map(|(type_url, count)| (short_type(type_url), count.load(Ordering::Relaxed)))
            .collect()
    }
}
