//! Counters whose labels are known beforehand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use weft_engine::reason::Reason;

use super::Direction;

/// Refusals by direction and reason.
#[derive(Debug)]
pub struct Refusals([[AtomicU64; Reason::ALL.len()]; 2]);

impl Default for Refusals {
    fn default() -> Self {
        Self(std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))))
    }
}

impl Refusals {
    /// Counts one.
    pub fn add(&self, direction: Direction, reason: Reason) {
        self.0[direction as usize][reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// So many so far.
    pub fn get(&self, direction: Direction, reason: Reason) -> u64 {
        self.0[direction as usize][reason as usize].load(Ordering::Relaxed)
    }
}

/// Why a connection of the mesh was ended although nothing was wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// It was old enough.
    Age,
    /// One of the certificates that it was opened with ends.
    Certificate,
    /// Its peer is not believed any more.
    Revoked,
}

impl Retired {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Age, Self::Certificate, Self::Revoked];

    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Certificate => "certificate",
            Self::Revoked => "revoked",
        }
    }
}

/// Connections that were ended, by direction and reason.
#[derive(Debug, Default)]
pub struct Retirements([[AtomicU64; Retired::ALL.len()]; 2]);

impl Retirements {
    /// Counts one.
    pub fn add(&self, direction: Direction, why: Retired) {
        self.0[direction as usize][why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// So many so far.
    pub fn get(&self, direction: Direction, why: Retired) -> u64 {
        self.0[direction as usize][why as usize].load(Ordering::Relaxed)
    }
}

/// How often each bound was hit. The names come from the code, so there are few.
#[derive(Debug, Default)]
pub struct Bounds(ArcSwap<Vec<(&'static str, Arc<AtomicU64>)>>);

impl Bounds {
    /// Counts one hit. No lock: a bound is hit most often when there is most to do.
    pub fn add(&self, bound: &'static str) {
        self.add_many(bound, 1);
    }

    /// Counts several hits.
    pub fn add_many(&self, bound: &'static str, hits: u64) {
        let find = |known: &[(&'static str, Arc<AtomicU64>)]| {
            known.iter().find(|(name, _)| *name == bound).map(|(_, count)| Arc::clone(count))
        };
        let count = find(&self.0.load()).unwrap_or_else(|| {
            self.0.rcu(|known| {
                let mut known = Vec::clone(known);
                if find(&known).is_none() {
                    known.push((bound, Arc::default()));
                }
                known
            });
            find(&self.0.load()).unwrap_or_default()
        });
        count.fetch_add(hits, Ordering::Relaxed);
    }

    /// All, in the order of their first hit.
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        self.0.load().iter().map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_counted_by_name_from_all_threads() {
        let bounds = Bounds::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for bound in ["a", "b", "c"] {
                        for _ in 0..100 {
                            bounds.add(bound);
                        }
                    }
                });
            }
        });
        let mut all = bounds.all();
        all.sort_unstable();
        assert_eq!(all, [("a", 400), ("b", 400), ("c", 400)]);
    }

    #[test]
    fn refusals_have_a_counter_for_each_reason() {
        let refusals = Refusals::default();
        for reason in Reason::ALL {
            refusals.add(Direction::Outbound, *reason);
            assert_eq!(refusals.get(Direction::Outbound, *reason), 1);
            assert_eq!(refusals.get(Direction::Inbound, *reason), 0);
        }
    }
}
