//! Of the other replicas of control, and of proxies that are asked to move to them.

use prometheus::{IntCounterVec, IntGaugeVec};

use super::{Make, whole};
use crate::replicas::Seen;

/// Why a proxy is asked to move: the label `why`.
const WHY: [&str; 3] = ["share", "near", "stop"];

/// What is known of them.
#[derive(Debug)]
pub struct ReplicaMetrics {
    known: IntGaugeVec,
    moved: IntCounterVec,
}

impl ReplicaMetrics {
    pub(super) fn new(make: &Make<'_>) -> prometheus::Result<Self> {
        let known = "Other replicas of control that are known, by whether what they tell is heard.";
        let moved = "Proxies that were asked to go to another replica: this one had more than its share, that one is nearer, or this one stops.";
        let made = Self {
            known: make.gauges("replicas", known, "state")?,
            moved: make.counters("moved_proxies_total", moved, "why")?,
        };
        for why in WHY {
            made.moved.with_label_values(&[why]);
        }
        made.seen(&[]);
        Ok(made)
    }

    /// They are so now.
    pub fn seen(&self, seen: &[Seen]) {
        let heard = seen.iter().filter(|one| one.heard).count();
        self.known.with_label_values(&["heard"]).set(whole(heard));
        self.known.with_label_values(&["silent"]).set(whole(seen.len() - heard));
    }

    /// A proxy was asked to move, for one of the reasons that the metric has.
    pub fn moved(&self, why: &'static str) {
        self.moved.with_label_values(&[why]).inc();
    }
}
