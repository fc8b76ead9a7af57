//! Of where objects come from.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::{Make, whole};
use crate::sources::State;

/// How the sources are.
#[derive(Debug)]
pub struct SourceMetrics {
    state: IntGaugeVec,
    age: IntGauge,
    problems: IntGauge,
    events: IntCounterVec,
    lists: IntCounterVec,
    heard: IntGaugeVec,
    forbidden: IntGaugeVec,
}

impl SourceMetrics {
    pub(super) fn new(make: &Make<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            state: make.gauges("source_state", "1 for the state that the source is in.", "state")?,
            age: make.gauge("source_age_seconds", "Age of the oldest part of the source; 0 if it is up to date.")?,
            problems: make.gauge("source_problems", "Problems in the manifests that are in force now.")?,
            events: make.counters_by(
                "source_events_total",
                "What the watches of the API server told, by kind and what.",
                &["kind", "what"],
            )?,
            lists: make.counters(
                "source_lists_total",
                "How often a kind was listed: once, and again where a watch could not go on.",
                "kind",
            )?,
            forbidden: make.gauges(
                "source_forbidden",
                "1 for a kind that the API server does not let control read, and has not since control began.",
                "kind",
            )?,
            heard: make.gauges(
                "source_heard_timestamp_seconds",
                "When the API server last said something about a kind, bookmarks too, in seconds since 1970.",
                "kind",
            )?,
        })
    }

    /// How much the sources know of the present, and how many of their objects are broken.
    pub fn state(&self, state: State, problems: usize) {
        for label in State::LABELS {
            self.state.with_label_values(&[label]).set(i64::from(label == state.label()));
        }
        self.age.set(i64::try_from(state.age().as_secs()).unwrap_or(i64::MAX));
        self.problems.set(whole(problems));
    }

    /// A watch told something of a kind.
    pub fn event(&self, kind: &'static str, what: &'static str) {
        self.events.with_label_values(&[kind, what]).inc();
    }

    /// A list of a kind begins.
    pub fn begins(&self, kind: &'static str) {
        self.lists.with_label_values(&[kind]).inc();
    }

    /// Whether a kind may not be read.
    pub fn forbidden(&self, kind: &'static str, forbidden: bool) {
        self.forbidden.with_label_values(&[kind]).set(i64::from(forbidden));
    }

    /// The API server said something about a kind.
    pub fn heard(&self, kind: &'static str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.heard.with_label_values(&[kind]).set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::sources::kubernetes::kinds;

    #[test]
    fn no_two_series_of_the_events_of_a_source_are_one() {
        // The crate's vectors tell series apart by the label values written one behind the other.
        let whats = ["listed", "added", "modified", "deleted", "bookmark", "error", "silence"];
        let keys: BTreeSet<String> = kinds().flat_map(|kind| whats.map(|what| format!("{kind}{what}"))).collect();
        assert_eq!(keys.len(), kinds().count() * whats.len());
    }
}
