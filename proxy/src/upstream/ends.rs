//! When a connection is replaced: so that none serves on certificates that have ended, and none is missing meanwhile.
//!
//! A connection of mesh TLS is good for as long as both of the certificates that it was opened with. Some time before that it is due: another one
//! is opened beside it, by a task of its own, and only then it takes no further request and ends with its last. Where no other can be had it
//! goes on until a certificate ends.

use std::time::Duration;

use crate::telemetry::counters::Retired;

/// Age at which a connection is due: sidecars are replaced behind those that live long.
const MAX_AGE: Duration = Duration::from_hours(1);

/// When a connection ends, by the proxy's clock.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    // From then on it is to be replaced.
    due: Duration,
    // From then on it takes no further request.
    over: Duration,
    /// Why it is due.
    pub why: Retired,
}

impl Ends {
    /// Of a connection that is opened now, whose certificates are good for so long; `None`: it has none.
    pub fn of(now: Duration, left: Option<Duration>) -> Self {
        // A part less at random, so that those opened together are not replaced together.
        let aged = now + MAX_AGE.mul_f64(1.0 - fastrand::f64() / 4.0);
        let Some(left) = left else { return Self { due: aged, over: aged, why: Retired::Age } };
        // A leaf is renewed at two thirds of its life: what is due later meets the new one.
        let used = now + left.mul_f64(0.9 - fastrand::f64() / 10.0);
        let (due, why) = if used < aged { (used, Retired::Certificate) } else { (aged, Retired::Age) };
        Self { due, over: now + left, why }
    }

    /// Whether it is to be replaced.
    pub fn is_due(&self, now: Duration) -> bool {
        now >= self.due
    }

    /// Whether it takes no further request.
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.over
    }

    /// How long it may still take requests.
    pub fn left(&self, now: Duration) -> Duration {
        self.over.saturating_sub(now)
    }

    /// Due and over then, for tests.
    #[cfg(test)]
    pub fn at(due: Duration, over: Duration) -> Self {
        Self { due, over, why: Retired::Certificate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_before_its_certificates_end_and_never_older_than_an_hour() {
        let now = Duration::from_secs(1000);
        for _ in 0..100 {
            for left in [Duration::from_secs(4), Duration::from_mins(30), Duration::from_hours(24)] {
                let Ends { due, over, why } = Ends::of(now, Some(left));
                assert_eq!(over, now + left);
                let part = due.saturating_sub(now).div_duration_f64(left);
                match why {
                    Retired::Certificate => assert!((0.8..=0.9).contains(&part), "{part}"),
                    _ => assert!(left > MAX_AGE && due <= now + MAX_AGE && due >= now + MAX_AGE * 3 / 4),
                }
            }
            let plain = Ends::of(now, None);
            assert!(plain.due == plain.over && plain.due <= now + MAX_AGE);
        }
        assert!(Ends::of(now, Some(Duration::ZERO)).is_over(now));
    }
}
