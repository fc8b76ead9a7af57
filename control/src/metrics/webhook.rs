//! Of the webhook that puts sidecars into pods.

use prometheus::IntCounterVec;

use super::Make;

/// What became of pods.
#[derive(Debug)]
pub struct WebhookMetrics {
    injections: IntCounterVec,
}

impl WebhookMetrics {
    pub(super) fn new(make: &Make<'_>) -> prometheus::Result<Self> {
        let injections = make.counters(
            "injections_total",
            "Pods that the webhook was asked about, by what became of them.",
            "outcome",
        )?;
        Ok(Self { injections })
    }

    /// The webhook was asked, and this came of it: `injected`, `unchanged`, `skipped`, `refused` or `failed`.
    pub fn asked(&self, outcome: &str) {
        self.injections.with_label_values(&[outcome]).inc();
    }
}
