//! Attempts that a route asks for beyond those that are safe anyway (Gateway API HTTPRouteRetry, GEP-1731), and the budget that keeps them from
//! becoming a storm.
//!
//! Invariants
//! - What may have been processed is sent again only if the method promises that twice is harmless (RFC 9110 section 9.2.2), or the route
//!   lists the very status that the client would get otherwise.
//! - Nothing is sent again once a part of a response has come that no list names.
//! - [`Budget`]: in no ten seconds are more than a fifth of all attempts at a backend such retries, but for ten a second (GEP-3388's defaults).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};

use crate::outcome::Failed;
use crate::reason::Reason;

/// Most retries that a route may ask for.
pub const MAX_RETRIES: u32 = 20;
/// Retries if the route does not say how many.
pub const DEFAULT_RETRIES: u32 = 2;
/// Wait before the first retry if the route does not say how long.
pub const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// The wait doubles up to this, unless the route asks for more.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// What a route says of retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Retries of one request at most.
    pub attempts: u32,
    /// Statuses of responses that are asked for again.
    pub codes: Vec<StatusCode>,
    /// The least wait before a retry.
    pub backoff: Duration,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With the head of a response.
    Response(StatusCode),
    /// Without one.
    Failed(Failed, Reason),
}

impl Retry {
    /// Whether a request whose attempt ended so is sent again, after `done` retries. Its body must be at hand whole.
    pub fn wants(&self, method: &Method, ended: Ended, done: u32, body_replayable: bool) -> bool {
        body_replayable
            && done < self.attempts
            && match ended {
                Ended::Response(status) => self.codes.contains(&status),
                Ended::Failed(Failed::NotProcessed, _) => true,
                Ended::Failed(Failed::NoResponseByte, reason) => {
                    is_idempotent(method) || self.codes.contains(&reason.http_status())
                }
                Ended::Failed(Failed::ResponseStarted, _) => false,
            }
    }

    /// How long to wait before retry number `done + 1`: never less than the route says, doubling, with up to a half more so that those who
    /// failed together do not come back together. `random` is uniform over all of `u64`.
    pub fn wait(&self, done: u32, random: u64) -> Duration {
        let doubled = self.backoff.saturating_mul(1 << done.min(10));
        let wait = doubled.min(MAX_BACKOFF.max(self.backoff));
        wait + wait.mul_f64(random as f64 / u64::MAX as f64 / 2.0)
    }
}

fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE].contains(method)
}

/// Seconds that count.
const WINDOW: u64 = 10;
/// Of a hundred attempts so many may be retries.
const PERCENT: u64 = 20;
/// And so many a second anyway.
const MIN_RATE: u64 = 10;

/// Attempts at one backend in the last ten seconds, and how many of them were retries. A slot a second, each one number, so that nobody waits.
#[derive(Debug, Default)]
pub struct Budget([AtomicU64; WINDOW as usize]);

// What a slot holds: the second it is of (24 bits), attempts (20), retries (20). A full number stays full.
#[derive(Clone, Copy, Default)]
struct Slot {
    second: u64,
    attempts: u64,
    retries: u64,
}

const FULL: u64 = (1 << 20) - 1;
const SECONDS: u64 = (1 << 24) - 1;

impl Slot {
    fn of(packed: u64) -> Self {
        Self { second: packed >> 40, attempts: packed >> 20 & FULL, retries: packed & FULL }
    }

    fn packed(self) -> u64 {
        self.second << 40 | self.attempts.min(FULL) << 20 | self.retries.min(FULL)
    }
}

impl Budget {
    /// A first attempt is made.
    pub fn sent(&self, now: Duration) {
        self.add(now, 0);
    }

    /// Whether another retry is within the budget; then it counts.
    pub fn take(&self, now: Duration) -> bool {
        let second = Self::second(now);
        let (mut attempts, mut retries, mut just_now) = (0, 0, 0);
        for slot in self.0.iter().map(|slot| Slot::of(slot.load(Ordering::Relaxed))) {
            let age = second.wrapping_sub(slot.second) & SECONDS;
            if age < WINDOW {
                attempts += slot.attempts;
                retries += slot.retries;
            }
            if age == 0 {
                just_now += slot.retries;
            }
        }
        let within = just_now < MIN_RATE || (retries + 1) * 100 <= (attempts + 1) * PERCENT;
        if within {
            self.add(now, 1);
        }
        within
    }

    fn add(&self, now: Duration, retries: u64) {
        let second = Self::second(now);
        let slot = &self.0[(now.as_secs() % WINDOW) as usize];
        // It never refuses.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let held = Slot::of(packed);
            let held = if held.second == second { held } else { Slot { second, ..Slot::default() } };
            Some(Slot { attempts: held.attempts + 1, retries: held.retries + retries, ..held }.packed())
        });
    }

    // One is added, so that an empty slot is of no second that comes soon.
    fn second(now: Duration) -> u64 {
        (now.as_secs() + WINDOW) & SECONDS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn retry(attempts: u32, codes: &[u16]) -> Retry {
        let codes = codes.iter().map(|code| StatusCode::from_u16(*code).unwrap()).collect();
        Retry { attempts, codes, backoff: DEFAULT_BACKOFF }
    }

    #[test]
    fn what_is_sent_again() {
        use Failed::{NoResponseByte, NotProcessed, ResponseStarted};
        let status = |code| Ended::Response(StatusCode::from_u16(code).unwrap());
        let lost = Ended::Failed(NoResponseByte, Reason::UpstreamReset);
        let late = Ended::Failed(NoResponseByte, Reason::RequestTimeout);
        let unsent = Ended::Failed(NotProcessed, Reason::ConnectFailed);
        let broken = Ended::Failed(ResponseStarted, Reason::UpstreamProtocol);
        for (codes, method, ended, done, whole, yes) in [
            (&[500][..], Method::POST, status(500), 0, true, true),
            (&[500], Method::POST, status(500), 1, true, true),
            (&[500], Method::POST, status(500), 2, true, false),
            (&[500], Method::POST, status(500), 0, false, false),
            (&[500], Method::GET, status(503), 0, true, false),
            (&[], Method::GET, status(500), 0, true, false),
            (&[], Method::POST, unsent, 1, true, true),
            (&[], Method::POST, unsent, 2, true, false),
            (&[], Method::GET, lost, 0, true, true),
            (&[], Method::PUT, late, 0, true, true),
            (&[], Method::POST, lost, 0, true, false),
            (&[503, 504], Method::POST, lost, 0, true, false),
            (&[502], Method::POST, lost, 0, true, true),
            (&[504], Method::PATCH, late, 0, true, true),
            (&[502], Method::GET, broken, 0, true, false),
        ] {
            let told = retry(2, codes).wants(&method, ended, done, whole);
            assert_eq!(told, yes, "{codes:?} {method} {ended:?} {done} {whole}");
        }
    }

    proptest! {
        #[test]
        fn waits_are_never_shorter_than_asked_for_and_bounded(backoff in 0u64..100_000, done in 0u32..40, random: u64) {
            let retry = Retry { backoff: Duration::from_millis(backoff), ..retry(1, &[]) };
            let wait = retry.wait(done, random);
            prop_assert!(wait >= retry.backoff && wait <= retry.backoff.max(MAX_BACKOFF).mul_f64(1.5), "{wait:?}");
        }

        /// Each step: so many milliseconds pass, then a request comes which fails so often.
        #[test]
        fn retries_are_a_fifth_of_attempts_or_ten_a_second(steps in prop::collection::vec((0u64..3000, 0u32..30), 1..300)) {
            let budget = Budget::default();
            let mut now = SECOND * 100;
            // Second, attempts, retries.
            let mut seen: Vec<(u64, u64, u64)> = Vec::new();
            for (pass, failures) in steps {
                now += Duration::from_millis(pass);
                budget.sent(now);
                let mut retries = 0;
                for _ in 0..failures {
                    let window = |from: u64| {
                        let within = seen.iter().filter(|it| it.0 + from > now.as_secs());
                        within.fold((0, 0), |sum, it| (sum.0 + it.1, sum.1 + it.2))
                    };
                    let ((attempts, before), (_, just)) = (window(WINDOW), window(1));
                    let (attempts, before, just) = (attempts + 1 + retries, before + retries, just + retries);
                    let may = just < 10 || (before + 1) * 5 <= attempts + 1;
                    prop_assert_eq!(budget.take(now), may, "{} {} {}", attempts, before, just);
                    retries += u64::from(may);
                }
                seen.push((now.as_secs(), 1 + retries, retries));
            }
        }
    }

    #[test]
    fn a_budget_is_there_from_the_start_and_comes_back() {
        let budget = Budget::default();
        assert_eq!((0..100).filter(|_| budget.take(Duration::ZERO)).count(), 10);
        assert!(budget.take(SECOND));
        // Seconds wrap, counts do not.
        let budget = Budget::default();
        let late = Duration::from_secs(u64::from(u32::MAX));
        for _ in 0..FULL + 10 {
            budget.sent(late);
        }
        assert_eq!(Slot::of(budget.0[(late.as_secs() % WINDOW) as usize].load(Ordering::Relaxed)).attempts, FULL);
        assert!(budget.take(late));
    }
}
