//! What the connections of a destination, or of our own application, turned out to be, so that the next one need not wait to find out.
//!
//! Invariants
//! - It is a guess about when to connect, never about what a connection is: that is told by its own bytes each time. A wrong one costs a
//!   connection that is not used, or [`super::SILENCE`], once.
//! - It lives in what is held of the destination or the application: bounded and forgotten with it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::{Detected, SILENCE};

/// A client of a destination that nothing is known of is waited for this long before its server is called: most that speak first have
/// spoken by then, and one that waits for the server hardly notices.
pub const HESITATION: Duration = Duration::from_millis(20);

const HTTP: u8 = 1;
const OPAQUE: u8 = 2;
const GREETS: u8 = 3;

/// What was seen last.
#[derive(Debug, Default)]
pub struct Habit(AtomicU8);

impl Habit {
    /// How long a client's first bytes are waited for before the server is called as one that may speak first.
    pub fn patience(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            HTTP => SILENCE,
            OPAQUE | GREETS => Duration::ZERO,
            _ => HESITATION,
        }
    }

    /// Whether the last connection was HTTP.
    pub fn is_http(&self) -> bool {
        self.0.load(Ordering::Relaxed) == HTTP
    }

    /// Whether the last connection's client was greeted by its server before it had said a word.
    pub fn greets(&self) -> bool {
        self.0.load(Ordering::Relaxed) == GREETS
    }

    /// A connection was this, by what its client said first.
    pub fn learn(&self, found: Detected) {
        let now = match found {
            Detected::Http1 | Detected::Http2 => HTTP,
            Detected::Tls | Detected::Opaque => OPAQUE,
            Detected::NeedMore => return,
        };
        self.set(now);
    }

    /// The server of a connection spoke first.
    pub fn learn_greets(&self) {
        self.set(GREETS);
    }

    // A look first: workers do not pass the line from core to core for what is known.
    fn set(&self, now: u8) {
        if self.0.load(Ordering::Relaxed) != now {
            self.0.store(now, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_connection_counts() {
        let habit = Habit::default();
        assert_eq!((habit.patience(), habit.is_http()), (HESITATION, false));
        for (found, patience) in [
            (Detected::NeedMore, HESITATION),
            (Detected::Tls, Duration::ZERO),
            (Detected::Http2, SILENCE),
            (Detected::NeedMore, SILENCE),
            (Detected::Opaque, Duration::ZERO),
            (Detected::Http1, SILENCE),
        ] {
            habit.learn(found);
            assert_eq!((habit.patience(), habit.is_http()), (patience, patience == SILENCE), "{found:?}");
            assert!(!habit.greets());
        }
        habit.learn_greets();
        assert_eq!((habit.patience(), habit.is_http(), habit.greets()), (Duration::ZERO, false, true));
    }
}
