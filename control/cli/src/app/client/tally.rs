//! What became of a client's operations, in bounded space: it travels as JSON from the client's process to whoever counts.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Answer;

/// Latency buckets are this factor apart: percentiles are right within 2 %.
const STEP: f64 = 1.02;
/// Different texts that a map keeps; more are counted under `other`.
const MAX_KEYS: usize = 32;

/// What became of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Answered well.
    Ok,
    /// Refused by a policy (403, `PERMISSION_DENIED`).
    Denied,
    /// Refused by a limit (429, `RESOURCE_EXHAUSTED`).
    Limited,
    /// Anything else.
    Failed,
}

/// Counts of one interval; they add up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Operations that have ended, whatever their fate.
    pub sent: u64,
    /// Answered well.
    pub ok: u64,
    /// Failed.
    pub failed: u64,
    /// Refused by a policy.
    pub denied: u64,
    /// Refused by a limit.
    pub limited: u64,
    /// Who answered, by version.
    #[serde(default)]
    pub by_version: BTreeMap<String, u64>,
    /// Values of the header that the server was asked about; an empty text where it saw none. Good answers only.
    #[serde(default)]
    pub seen: BTreeMap<String, u64>,
    /// Good answers by latency: (bucket, count), see [`Tally::percentile`].
    #[serde(default)]
    pub latency: BTreeMap<u32, u64>,
    /// Why operations failed or were refused.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
}

/// A tally as it is reported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// Which client.
    pub label: String,
    /// Its interval.
    pub tally: Tally,
}

impl Tally {
    /// Counts one operation that took `took`.
    pub(crate) fn record(&mut self, took: Duration, answer: Result<Answer, String>) {
        self.sent += 1;
        match answer {
            Ok(answer) => {
                match answer.fate {
                    Fate::Ok => {
                        self.ok += 1;
                        *self.latency.entry(bucket(took)).or_default() += 1;
                        count(&mut self.seen, answer.seen.unwrap_or_default(), 1);
                    }
                    Fate::Denied => self.denied += 1,
                    Fate::Limited => self.limited += 1,
                    Fate::Failed => self.failed += 1,
                }
                if let Some(version) = answer.version {
                    let into = if answer.fate == Fate::Ok { &mut self.by_version } else { &mut self.errors };
                    count(into, version, 1);
                }
            }
            Err(why) => {
                self.failed += 1;
                count(&mut self.errors, why, 1);
            }
        }
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.sent == 0
    }

    /// Adds another interval.
    pub fn add(&mut self, other: &Tally) {
        self.sent += other.sent;
        self.ok += other.ok;
        self.failed += other.failed;
        self.denied += other.denied;
        self.limited += other.limited;
        for (into, from) in [
            (&mut self.by_version, &other.by_version),
            (&mut self.seen, &other.seen),
            (&mut self.errors, &other.errors),
        ] {
            for (key, more) in from {
                count(into, key.clone(), *more);
            }
        }
        for (bucket, more) in &other.latency {
            *self.latency.entry(*bucket).or_default() += more;
        }
    }

    /// The latency in milliseconds that a share of the good answers did not exceed; `None` without any. `share` is within 0 and 1.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.latency.values().sum();
        let wanted = ((total as f64 * share).ceil() as u64).max(1);
        let mut passed = 0;
        for (bucket, count) in &self.latency {
            passed += count;
            if passed >= wanted {
                return Some(STEP.powi(i32::try_from(*bucket).unwrap_or(i32::MAX)) / 1000.0);
            }
        }
        None
    }
}

/// Logarithm of the microseconds, rounded up.
fn bucket(took: Duration) -> u32 {
    let micros = took.as_secs_f64() * 1e6;
    (micros.max(1.0).ln() / STEP.ln()).ceil() as u32
}

fn count(map: &mut BTreeMap<String, u64>, key: String, more: u64) {
    if map.len() >= MAX_KEYS && !map.contains_key(&key) {
        *map.entry("other".to_owned()).or_default() += more;
    } else {
        *map.entry(key).or_default() += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(version: &str) -> Answer {
        Answer { fate: Fate::Ok, version: Some(version.to_owned()), seen: None }
    }

    #[test]
    fn intervals_add_up_and_travel() {
        let (mut total, mut one) = (Tally::default(), Tally::default());
        one.record(Duration::from_millis(3), Ok(good("v1")));
        one.record(Duration::from_millis(5), Err("reset".to_owned()));
        total.add(&one);
        total.add(&serde_json::from_str(&serde_json::to_string(&one).unwrap()).unwrap());
        assert_eq!((total.sent, total.ok, total.failed), (4, 2, 2));
        assert_eq!(total.by_version["v1"], 2);
        assert_eq!(total.errors["reset"], 2);
        assert_eq!(total.seen[""], 2);
    }

    #[test]
    fn percentiles_are_within_two_percent() {
        let mut tally = Tally::default();
        for ms in 1..=100 {
            tally.record(Duration::from_millis(ms), Ok(good("v1")));
        }
        for (share, want) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let got = tally.percentile(share).unwrap();
            assert!((got / want - 1.0).abs() < 0.021, "{share}: {got} for {want}");
        }
        assert_eq!(Tally::default().percentile(0.5), None);
    }

    #[test]
    fn keys_are_bounded() {
        let mut tally = Tally::default();
        for index in 0..1000 {
            tally.record(Duration::ZERO, Ok(good(&index.to_string())));
        }
        assert_eq!(tally.by_version.len(), MAX_KEYS + 1);
        assert_eq!(tally.by_version.values().sum::<u64>(), 1000);
    }
}
