//! Of the CA over time.

use prometheus::{IntGauge, IntGaugeVec};
use weft_certs::ca::rotation::Phase;

use super::{Make, whole};

/// Where the CA stands.
#[derive(Debug)]
#[allow(missing_docs)] // Each has its help text below.
pub struct CaMetrics {
    pub broken: IntGauge,
    rotation_phase: IntGaugeVec,
    rotation_waiting: IntGauge,
    pub copies_behind: IntGauge,
}

impl CaMetrics {
    pub(super) fn new(make: &Make<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            broken: make.gauge(
                "ca_broken",
                "1 while the CA's home (--ca-dir, --ca-secret) or the issuer of --issuer-from cannot be used; what was in force goes on.",
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
