//! How long an idle HTTP/1 connection to a server is kept.
//!
//! A server ends connections that were idle for longer than it likes, mostly without a word. A request that is on its way at that moment is
//! lost, and whether it was processed cannot be known. So the connection has to be given up before. In this order:
//!
//! 1. The server was seen to end one after some idle time: three quarters of the shortest such time. Forgotten [`HOLD`] after it was seen last.
//! 2. The server says its limit (`Keep-Alive: timeout=N`, RFC 2068 section 19.7.1): that, less a margin for the way, and [`MOST`] at most.
//! 3. Nothing is known: [`UNKNOWN`].
//!
//! Invariants
//! - An idle time that a connection has outlived is not what the server ends connections for: one that ends sooner ended for another reason (the
//!   server was started anew, say) and teaches nothing, unless it happens again.
//! - What is known of a server is one atomic word; it is written only when it changes.
//! - A connection that would be kept for less than [`FLOOR`] is not kept: a server that closes after each response is no reason to try.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::head::tokens;

/// Idle time of a connection to a server of which nothing is known: below the shortest keep-alive that common servers have (gunicorn 2 s,
/// Node 5 s).
pub const UNKNOWN: Duration = Duration::from_millis(1800);
/// Longest idle time, whatever a server says.
pub const MOST: Duration = Duration::from_secs(30);
/// Below this a connection is not kept at all.
pub const FLOOR: Duration = Duration::from_millis(20);
/// A server that has ended no idle connection for so long may have changed: it is tried again.
pub const HOLD: Duration = Duration::from_mins(5);
/// What a server says is cut by a quarter, and by this at most: clocks differ, and so do the moments from which both count.
const MARGIN: Duration = Duration::from_secs(1);
const UNTOLD: u8 = u8::MAX;
const NEVER: u16 = u16::MAX;

/// What is known of a server's habit.
#[derive(Debug)]
pub struct KeepAlive(AtomicU64);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    // What the server says, in seconds; `UNTOLD` if nothing.
    told: u8,
    // The shortest idle time after which it ended a connection, in milliseconds; `NEVER` if it has not.
    closed: u16,
    // The longest idle time that a connection has outlived, in milliseconds.
    outlived: u16,
    // When it ended one last, in seconds: 24 bits, half a year.
    at: u32,
}

const SECONDS: u32 = (1 << 24) - 1;

impl Known {
    const NOTHING: Self = Self { told: UNTOLD, closed: NEVER, outlived: 0, at: 0 };

    fn from_word(word: u64) -> Self {
        Self { told: word as u8, closed: (word >> 8) as u16, outlived: (word >> 24) as u16, at: (word >> 40) as u32 }
    }

    fn word(self) -> u64 {
        u64::from(self.told) | u64::from(self.closed) << 8 | u64::from(self.outlived) << 24 | u64::from(self.at) << 40
    }

    fn since(self, now: Duration) -> Duration {
        let passed = seconds(now).wrapping_sub(self.at) & SECONDS;
        // Times of several threads race by a little: such a one counts as now.
        Duration::from_secs(if passed > SECONDS / 2 { 0 } else { passed.into() })
    }

    // The shortest idle time at which it ended one, if that was not too long ago.
    fn closed(self, now: Duration) -> Option<u16> {
        (self.closed != NEVER && self.since(now) < HOLD).then_some(self.closed)
    }
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self(AtomicU64::new(Known::NOTHING.word()))
    }
}

impl KeepAlive {
    /// How long a connection may be idle; `None`: it is not worth keeping.
    pub fn limit(&self, now: Duration) -> Option<Duration> {
        let known = Known::from_word(self.0.load(Ordering::Relaxed));
        let said = match known.told {
            UNTOLD => UNKNOWN,
            told => {
                let told = Duration::from_secs(told.into());
                told.saturating_sub(MARGIN.min(told / 4)).min(MOST)
            }
        };
        let limit = known.closed(now).map_or(said, |closed| said.min(Duration::from_millis(closed.into()) * 3 / 4));
        (limit >= FLOOR).then_some(limit)
    }

    /// The server says so in a response, in whole seconds.
    pub fn told(&self, timeout: Duration) {
        let told = u8::try_from(timeout.as_secs()).unwrap_or(UNTOLD).min(UNTOLD - 1);
        self.update(|known| Known { told, ..known });
    }

    /// The server has ended a connection that was idle for `age`, or has spoken on it unasked.
    pub fn closed(&self, age: Duration, now: Duration) {
        let (age, at) = (millis(age), seconds(now));
        self.update(|known| {
            if age >= known.outlived {
                return Known { closed: known.closed(now).map_or(age, |before| before.min(age)), at, ..known };
            }
            // Whatever ends many connections at once counts once; a new habit shows again and again.
            if known.since(now).is_zero() { known } else { Known { outlived: known.outlived / 2, at, ..known } }
        });
    }

    /// A connection that was idle for `age` has served another request.
    pub fn outlived(&self, age: Duration) {
        // Up to the next millisecond: an age that is no idle time at all is outlived too.
        let age = millis(age).saturating_add(1).min(NEVER - 1);
        self.update(|known| match known {
            Known { outlived, .. } if age <= outlived => known,
            Known { closed, .. } if closed < age => Known { outlived: age, closed: NEVER, ..known },
            _ => Known { outlived: age, ..known },
        });
    }

    fn update(&self, change: impl Fn(Known) -> Known) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let after = change(Known::from_word(word)).word();
            (after != word).then_some(after)
        });
    }
}

/// The limit that a `Keep-Alive` field states.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    tokens(value).find_map(|parameter| {
        let (name, number) = std::str::from_utf8(parameter).ok()?.split_once('=')?;
        let number = number.trim_ascii().trim_matches('"');
        let known = name.trim_ascii().eq_ignore_ascii_case("timeout");
        number.parse().ok().filter(|_| known).map(Duration::from_secs)
    })
}

fn millis(time: Duration) -> u16 {
    u16::try_from(time.as_millis()).unwrap_or(NEVER).min(NEVER - 1)
}

fn seconds(time: Duration) -> u32 {
    time.as_secs() as u32 & SECONDS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn what_a_server_says_is_kept_less_a_margin() {
        let limit = |seconds: u64| {
            let habit = KeepAlive::default();
            habit.told(Duration::from_secs(seconds));
            habit.limit(NOW)
        };
        assert_eq!(KeepAlive::default().limit(NOW), Some(UNKNOWN));
        for (told, kept) in [(1, 750), (2, 1500), (4, 3000), (5, 4000), (15, 14_000), (31, 30_000), (75, 30_000)] {
            assert_eq!(limit(told), Some(ms(kept)), "{told}");
        }
        assert_eq!(limit(u64::MAX), Some(MOST));
        assert_eq!(limit(0), None);
    }

    #[test]
    fn a_limit_is_read_from_its_field() {
        for (value, timeout_told) in [
            ("timeout=5", Some(5)),
            ("timeout=5, max=100", Some(5)),
            ("max=100,Timeout = 15", Some(15)),
            ("timeout=\"7\"", Some(7)),
            ("timeout=0", Some(0)),
            ("max=100", None),
            ("timeout", None),
            ("timeout=", None),
            ("timeout=-1", None),
            ("timeout=1.5", None),
            ("timeout=99999999999999999999", None),
            ("xtimeout=5", None),
            ("", None),
        ] {
            assert_eq!(timeout(value.as_bytes()), timeout_told.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(timeout(b"timeout=\xff"), None);
    }

    #[test]
    fn what_was_seen_counts_more_than_what_was_said_and_is_forgotten() {
        let habit = KeepAlive::default();
        habit.told(Duration::from_mins(1));
        habit.closed(ms(8000), NOW);
        assert_eq!(habit.limit(NOW), Some(ms(6000)));
        habit.closed(ms(9000), NOW + HOLD / 2);
        assert_eq!(habit.limit(NOW + HOLD), Some(ms(6000)), "the shortest, and it was seen again");
        habit.closed(ms(400), NOW + HOLD);
        assert_eq!(habit.limit(NOW + HOLD), Some(ms(300)));
        assert_eq!(habit.limit(NOW + HOLD * 2 / 3 * 2), Some(ms(300)));
        assert_eq!(habit.limit(NOW + HOLD * 2), Some(MOST));
        // What was forgotten is not remembered by the next sight.
        habit.closed(ms(1000), NOW + HOLD * 3);
        assert_eq!(habit.limit(NOW + HOLD * 3), Some(ms(750)));
        // One that says less than it does is believed.
        habit.told(Duration::from_secs(0));
        assert_eq!(habit.limit(NOW + HOLD * 3), None);
    }

    #[test]
    fn a_server_that_closes_at_once_is_not_tried() {
        let habit = KeepAlive::default();
        habit.closed(Duration::ZERO, NOW);
        assert_eq!(habit.limit(NOW), None);
        assert_eq!(habit.limit(NOW + HOLD), Some(UNKNOWN));
        let slower = KeepAlive::default();
        slower.closed(ms(26), NOW);
        assert_eq!(slower.limit(NOW), None);
        slower.outlived(ms(26));
        assert_eq!(slower.limit(NOW), Some(UNKNOWN), "it was another reason");
    }

    #[test]
    fn a_server_that_starts_anew_has_not_changed_its_habit() {
        let habit = KeepAlive::default();
        habit.outlived(Duration::from_micros(200));
        habit.closed(Duration::from_micros(900), NOW);
        assert_eq!(habit.limit(NOW), Some(UNKNOWN));
        for age in [3, 1500, 40] {
            habit.outlived(ms(age));
        }
        for age in 0..512 {
            habit.closed(ms(age), NOW);
        }
        assert_eq!(habit.limit(NOW), Some(UNKNOWN));
    }

    #[test]
    fn a_new_habit_is_believed_when_it_shows_again() {
        let habit = KeepAlive::default();
        habit.outlived(ms(1700));
        for (second, limit) in [(2, UNKNOWN), (4, UNKNOWN), (6, UNKNOWN), (8, ms(225))] {
            let now = NOW + Duration::from_secs(second);
            habit.closed(ms(300), now);
            assert_eq!(habit.limit(now), Some(limit), "{second}");
        }
    }

    proptest! {
        /// A server that ends connections after `patience`, and requests at any intervals: one closing at the most in each [`HOLD`] surprises.
        #[test]
        fn after_one_closing_none_is_used_too_late(
            patience in 1u64..40_000,
            says in proptest::option::of(0u64..60),
            gaps in prop::collection::vec(0u64..35_000, 1..300),
        ) {
            let habit = KeepAlive::default();
            let mut now = NOW;
            let mut seen = None;
            for gap in gaps {
                if let Some(says) = says {
                    habit.told(Duration::from_secs(says));
                }
                let (gap, patience) = (ms(gap), ms(patience));
                let limit = habit.limit(now).unwrap_or_default();
                prop_assert!(limit.is_zero() || (FLOOR..=MOST).contains(&limit));
                if limit > patience {
                    // Whole seconds are counted.
                    let forgotten = |seen| now.saturating_sub(seen) + Duration::from_secs(1) > HOLD;
                    prop_assert!(seen.is_none_or(forgotten), "kept for {limit:?}");
                }
                if gap >= patience && patience < limit {
                    seen = Some(now + patience);
                    habit.closed(patience, now + patience);
                } else if gap < limit {
                    habit.outlived(gap);
                }
                now += gap;
            }
        }

        #[test]
        fn never_panics_whatever_happens(
            steps in prop::collection::vec((0u8..3, any::<u32>(), any::<u32>()), 0..100),
            value in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let habit = KeepAlive::default();
            for (step, age, now) in steps {
                let (age, now) = (ms(age.into()), ms(now.into()));
                match step {
                    0 => habit.told(age),
                    1 => habit.closed(age, now),
                    _ => habit.outlived(age),
                }
                prop_assert!(habit.limit(now).is_none_or(|limit| (FLOOR..=MOST).contains(&limit)));
            }
            timeout(&value);
        }
    }
}
