//! What was learnt of one endpoint: its estimate, what it holds, and whether it takes connections.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The estimate of an endpoint that has answered nothing yet: linkerd's default. Fast neighbours keep it from being flooded.
const START: f32 = 0.030;
/// An estimate loses 63% of itself in this time (seconds).
const DECAY: f32 = 10.0;
/// No failure raises an estimate above this (seconds).
const MAX_PENALTY: f32 = 10.0;
/// Back-off after the first failed connection, doubled by each further one.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// Longest back-off.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Load and health of one endpoint. All of it is atomic words; times are since any fixed moment, the same for all.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    // Seconds as f32 (negative: a guess, nothing measured yet) in the upper half, milliseconds of its time in the lower.
    estimate: AtomicU64,
    // Failed connections in a row in the upper 16 bits, the end of the back-off in milliseconds below.
    trouble: AtomicU64,
}

const UNTIL: u64 = (1 << 48) - 1;

impl Load {
    /// An endpoint that nothing is known of.
    pub fn new(now: Duration) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            estimate: AtomicU64::new(pack(-START, millis(now))),
            trouble: AtomicU64::new(0),
        }
    }

    /// A request is given to it. Each `begin` needs one [`Self::end`] or [`Self::abandoned`].
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// It answered (or failed) after `rtt`. `ok` is false for a failure of the server: a server that fails fast must not look
    /// quick, so a failure doubles its estimate.
    pub fn end(&self, now: Duration, rtt: Duration, ok: bool) {
        self.leave();
        self.observe(now, rtt.as_secs_f32(), !ok);
        if ok {
            self.connected();
        }
    }

    /// The client went away after `waited`: a long wait tells of a slow endpoint, a short one of nothing.
    pub fn abandoned(&self, now: Duration, waited: Duration) {
        self.leave();
        let waited = waited.as_secs_f32();
        if waited > self.rtt(now) {
            self.observe(now, waited, false);
        }
    }

    /// Requests that it holds.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What one more request would cost, for weight 1: estimate x (held + 1), in seconds.
    pub fn score(&self, now: Duration) -> f64 {
        self.cost(now, 1)
    }

    /// As [`Self::score`] for an endpoint of some weight: one of weight 2 holds twice as many at the same cost.
    pub fn cost(&self, now: Duration, weight: u32) -> f64 {
        f64::from(self.rtt(now)) * (f64::from(self.in_flight()) / f64::from(weight.max(1)) + 1.0)
    }

    /// No connection could be made: leaves it alone for 1 s, doubled each time up to 30 s.
    pub fn failed(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(UNTIL);
        let _ = self.trouble.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (failures, until) = (word >> 48, word & UNTIL);
            // Many requests may meet the same failure: only one of them after each back-off counts.
            if failures > 0 && now < until && !is_probe(failures) {
                return None;
            }
            let failures = (plain(failures) + 1).min(0x7fff);
            let backoff = MIN_BACKOFF.as_millis() as u64 * (1 << (failures - 1).min(5));
            let until = now.saturating_add(backoff.min(MAX_BACKOFF.as_millis() as u64)).min(UNTIL);
            Some(failures << 48 | until)
        });
    }

    /// A connection was made: it is well again.
    pub fn connected(&self) {
        if self.trouble.load(Ordering::Relaxed) != 0 {
            self.trouble.store(0, Ordering::Relaxed);
        }
    }

    /// Whether no connection to it has failed since the last that was made.
    pub fn is_well(&self) -> bool {
        self.trouble.load(Ordering::Relaxed) == 0
    }

    /// Whether it may be tried: no failure, or the back-off is over.
    pub fn usable(&self, now: Duration) -> bool {
        let word = self.trouble.load(Ordering::Relaxed);
        word == 0 || now.as_millis() as u64 >= word & UNTIL
    }

    /// Whether this request may go to it now. After a back-off only one may until it is known how that one fared, or until
    /// another back-off has passed; [`super::choose`] asks this of the endpoint that it has chosen.
    pub fn claim(&self, now: Duration) -> bool {
        let now = u64::try_from(now.as_millis()).unwrap_or(UNTIL);
        let claimed = self.trouble.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (failures, until) = (word >> 48, word & UNTIL);
            (word != 0 && now >= until)
                .then(|| (failures | PROBE) << 48 | now.saturating_add(MIN_BACKOFF.as_millis() as u64).min(UNTIL))
        });
        claimed.is_ok() || self.trouble.load(Ordering::Relaxed) == 0
    }

    fn leave(&self) {
        let _ = self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| held.checked_sub(1));
    }

    /// The estimate now, in seconds: it decays while nothing comes, so that a slow endpoint is tried again.
    fn rtt(&self, now: Duration) -> f32 {
        let (rtt, at) = unpack(self.estimate.load(Ordering::Relaxed));
        rtt.abs() * kept(millis(now), at)
    }

    fn observe(&self, now: Duration, sample: f32, failure: bool) {
        let now = millis(now);
        let _ = self.estimate.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (old, at) = unpack(word);
            let sample = if failure { sample.max((old.abs() * 2.0).min(MAX_PENALTY)) } else { sample };
            let next = if old.is_sign_negative() || sample > old {
                // The first answer replaces the guess; a peak counts at once.
                sample
            } else {
                let kept = kept(now, at);
                old * kept + sample * (1.0 - kept)
            };
            Some(pack(next.max(f32::MIN_POSITIVE), now))
        });
    }
}

/// Set in the count of failures while a request finds out whether the endpoint is back.
const PROBE: u64 = 0x8000;

const fn is_probe(failures: u64) -> bool {
    failures & PROBE != 0
}

const fn plain(failures: u64) -> u64 {
    failures & !PROBE
}

/// The share of an estimate that is left.
fn kept(now: u32, at: u32) -> f32 {
    // Times that race by a little would wrap around: they count as now.
    let passed = now.wrapping_sub(at);
    if passed > u32::MAX / 2 { 1.0 } else { (-(passed as f32) / (DECAY * 1000.0)).exp() }
}

/// Milliseconds, wrapping after 49 days: only differences are used.
fn millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

fn pack(rtt: f32, at: u32) -> u64 {
    u64::from(rtt.to_bits()) << 32 | u64::from(at)
}

fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}
