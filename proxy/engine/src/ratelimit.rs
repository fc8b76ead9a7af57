//! How often: GCRA (the generic cell rate algorithm, ITU-T I.371 appendix I), one atomic word a key, time as argument.
//!
//! A limit of `requests` per `per` with `burst` admits at most `rate x time + burst` requests in any span, and everything that
//! keeps to that. The word holds the theoretical arrival time: the moment at which the allowance is whole again.
//!
//! Invariants: no lock on a request's way (a keyed cell is looked up once a connection); a refused request changes nothing; the number
//! of keys is bounded, and those over the bound share one cell (they are limited together, never unlimited).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

mod limiter;

pub use limiter::{DEFAULT_MAX_KEYS, Key, Limiter, whole_seconds};

/// Ticks of a cell's clock in a nanosecond: with 64 of them an interval is exact to 1 in 64,000 at a million requests a second,
/// and the word lasts for 9 years of the proxy's life.
const TICKS: u128 = 64;
/// No cell gets further ahead than this (2 years): sums stay inside the word.
const MAX_AHEAD: u64 = 1 << 62;

/// So many requests in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests admitted in `per`, evenly. 0 admits nothing.
    pub requests: u64,
    /// The time that `requests` are for.
    pub per: Duration,
    /// Requests admitted at once when nothing came before. 0 counts as 1: less could never admit any.
    pub burst: u64,
}

/// The state of one limit for one key. The default has its whole allowance.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Goes on.
    Admit {
        /// Requests that would be admitted now, after this one.
        remaining: u64,
        /// Until the allowance is whole again.
        reset: Duration,
    },
    /// Refused.
    Limit {
        /// Until one more would be admitted.
        retry_after: Duration,
    },
}

impl Rate {
    /// Counts one request against a cell. `now` is monotonic, since any fixed moment.
    pub fn check(&self, cell: &Cell, now: Duration) -> Decision {
        if self.requests == 0 {
            return Decision::Limit { retry_after: self.per };
        }
        let (now, interval, room) = (ticks(now), self.interval(), self.room());
        let mut seen = cell.0.load(Ordering::Relaxed);
        loop {
            // A cell that was filled under a larger limit may lie further ahead than this one ever would.
            let arrival = seen.clamp(now, now.saturating_add(room));
            let next = arrival.saturating_add(interval);
            let ahead = next - now;
            if ahead > room {
                return Decision::Limit { retry_after: duration(ahead - room) };
            }
            // Relaxed: the word guards no other memory.
            match cell.0.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    return Decision::Admit { remaining: (room - ahead) / interval, reset: duration(ahead) };
                }
                Err(changed) => seen = changed,
            }
        }
    }

    /// Ticks between two requests at the even rate, rounded up so that the bound holds, never 0.
    fn interval(&self) -> u64 {
        let per = self.per.as_nanos().saturating_mul(TICKS);
        u64::try_from(per.div_ceil(u128::from(self.requests.max(1)))).unwrap_or(MAX_AHEAD).clamp(1, MAX_AHEAD)
    }

    /// How far ahead of now a cell may get.
    fn room(&self) -> u64 {
        self.interval().saturating_mul(self.burst.max(1)).min(MAX_AHEAD)
    }
}

impl Cell {
    /// Whether its allowance is whole, so that a fresh cell would behave the same.
    pub fn is_whole(&self, now: Duration) -> bool {
        self.0.load(Ordering::Relaxed) <= ticks(now)
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().saturating_mul(TICKS)).unwrap_or(u64::MAX)
}

fn duration(ticks: u64) -> Duration {
    // Rounded up: a client that waits so long is admitted.
    Duration::from_nanos(ticks.div_ceil(TICKS as u64))
}

#[cfg(test)]
mod tests;
