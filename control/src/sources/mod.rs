//! Where objects come from, one folder a source. A source tells all it has at first and then each change; one that is lost or stale keeps its
//! last good objects and says so. [`join`] makes one of several.

use std::time::{Duration, Instant};

pub use follow::follow;
pub use saved::Keep;

pub mod files;
mod follow;
pub mod join;
pub mod kubernetes;
mod saved;

/// How much a source knows of the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All of it could be read.
    Synced,
    /// Part of it could not be read since then; what was known of that part stays.
    Stale {
        /// Since when.
        since: Instant,
    },
    /// Nothing of it can be read; what was known stays.
    Lost {
        /// Since when.
        since: Instant,
    },
}

impl State {
    /// All values of the label `state` in metrics.
    pub const LABELS: [&'static str; 3] = ["synced", "stale", "lost"];

    /// The value of the label `state` in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            State::Synced => "synced",
            State::Stale { .. } => "stale",
            State::Lost { .. } => "lost",
        }
    }

    /// That of two sources together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (State::Synced, state) | (state, State::Synced) => match state {
                State::Lost { since } => State::Stale { since },
                state => state,
            },
            (State::Lost { since }, State::Lost { since: other }) => State::Lost { since: since.min(other) },
            (
                State::Stale { since } | State::Lost { since },
                State::Stale { since: other } | State::Lost { since: other },
            ) => State::Stale { since: since.min(other) },
        }
    }

    /// How old the oldest part may be; zero if synced.
    pub fn age(self) -> Duration {
        match self {
            State::Synced => Duration::ZERO,
            State::Stale { since } | State::Lost { since } => since.elapsed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sources_know_as_much_as_the_worse_one_and_are_lost_together_only() {
        let (early, late) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let (stale, lost) = (|since| State::Stale { since }, |since| State::Lost { since });
        for (one, other, both) in [
            (State::Synced, State::Synced, State::Synced),
            (State::Synced, stale(early), stale(early)),
            (State::Synced, lost(early), stale(early)),
            (stale(late), stale(early), stale(early)),
            (stale(late), lost(early), stale(early)),
            (lost(late), lost(early), lost(early)),
        ] {
            assert_eq!((one.and(other), other.and(one)), (both, both));
            assert!(State::LABELS.contains(&both.label()));
        }
    }

    /// A clock that is stepped makes nothing stale, no watch or stream dead, and gives no Lease to two: who follows an API server, what is made of
    /// it, who is told and who holds what is decided by the clock that only goes on. (A clock can be stepped under a program by a library that is
    /// loaded before it, but not under a static one.)
    #[test]
    fn nothing_that_is_followed_or_compiled_rests_on_the_clock_on_the_wall() {
        let decided = ["leases/claim.rs", "leases/mod.rs", "replicas", "distribute"];
        let mut todo: Vec<_> = ["sources/kubernetes", "sources/follow.rs", "sources/join.rs", "compile", "model"]
            .into_iter()
            .chain(decided)
            .map(|part| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(part))
            .collect();
        let mut read = 0;
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            // Events say when they were, to people.
            if path.ends_with("distribute/events.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                !text.contains("SystemTime") && !text.contains("Timestamp::now"),
                "{} asks the clock on the wall",
                path.display()
            );
            read += 1;
        }
        assert!(read > 40, "{read}");
    }
}
