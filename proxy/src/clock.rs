//! Time as the data path reads it.

use std::time::{Duration, Instant};

/// A monotonic clock that counts from the start of the process. Clones count from the same moment.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Zero is now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the start; some 25 ns.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::start()
    }
}
