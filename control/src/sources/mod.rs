//! Where objects come from, one file a source. A source gives a whole [`Model`](crate::model::Model) at first and after each
//! change, with what was wrong; one that is lost or stale keeps its last good objects and says so.

use std::time::{Duration, Instant};

pub mod files;

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
    /// The value of the label `state` in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            State::Synced => "synced",
            State::Stale { .. } => "stale",
            State::Lost { .. } => "lost",
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
