//! Of what one of several replicas does for all, and of who that is.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::Make;

/// Leases, and the status of objects.
#[derive(Debug)]
#[allow(missing_docs)] // Each has its help text below.
pub struct LeaderMetrics {
    pub held: IntGaugeVec,
    pub errors: IntCounterVec,
    pub status_writes: IntCounterVec,
    pub status_waiting: IntGauge,
}

impl LeaderMetrics {
    pub(super) fn new(make: &Make<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            held: make.gauges("lease_held", "1 while this control holds the Lease, by what it is for.", "lease")?,
            errors: make.counters(
                "lease_errors_total",
                "Reads and writes of a Lease that failed, by what it is for.",
                "lease",
            )?,
            status_writes: make.counters(
                "status_writes_total",
                "Writes of the status of objects, by what became of them.",
                "outcome",
            )?,
            status_waiting: make.gauge("status_waiting_objects", "Objects whose status is to be looked at.")?,
        })
    }
}
