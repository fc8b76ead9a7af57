//! Of the CA over time, and of one elsewhere.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};
use weft_certs::ca::rotation::Phase;

use super::{Make, whole};

/// Where the CA stands.
#[derive(Debug)]
#[allow(missing_docs)] // Each has its help text below.
pub struct CaMetrics {
    pub broken: IntGauge,
    pub signing: IntGauge,
    pub answers: IntCounterVec,
    pub leaving_roots: IntGauge,
    rotation_phase: IntGaugeVec,
    rotation_waiting: IntGauge,
    pub copies_behind: IntGauge,
}

impl CaMetrics {
    pub(super) fn new(make: &Make<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            broken: make.gauge(
                "ca_broken",
                "1 while the CA's home (--ca-dir, --ca-secret), the issuer of --issuer-from or the file of --roots cannot be used; what was in force goes on.",
            )?,
            signing: make.gauge("signing_requests", "Certificates that a CA elsewhere is being asked for.")?,
            answers: make.counters(
                "signing_answers_total",
                "Questions to a CA elsewhere, by what became of them.",
                "outcome",
            )?,
            leaving_roots: make.gauge(
                "leaving_roots",
                "Roots that were taken out of --roots and are believed still: somebody shows a certificate under them, or is away.",
            )?,
            rotation_phase: make.gauges(
                "rotation_phase",
                "1 for the phase of a rotation of the root or the issuer; 0 for all if there is none.",
                "phase",
            )?,
            rotation_waiting: make.gauge("rotation_waiting_proxies", "Proxies, and copies of the roots, that a rotation waits for.")?,
            copies_behind: make.gauge("root_copies_behind", "Copies of the roots in the cluster that are not as the CA has them.")?,
        })
    }

    /// Where a rotation is, and how many proxies it waits for.
    pub fn rotation(&self, now: Option<Phase>, waiting: usize) {
        for phase in Phase::ALL {
            self.rotation_phase.with_label_values(&[phase.label()]).set(i64::from(now == Some(phase)));
        }
        self.rotation_waiting.set(whole(waiting));
    }
}
