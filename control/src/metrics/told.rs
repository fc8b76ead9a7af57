//! Of changes: what came, how long until everybody knew, and how pods left.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec};

use super::Make;
use crate::distribute::drain::Ended;
use crate::distribute::events::kind;
use crate::model::Change;

/// A drain may wait for people's applications.
const DRAIN: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How long it takes to tell.
#[derive(Debug)]
pub struct ToldMetrics {
    changes: IntCounterVec,
    change_convergence_seconds: Histogram,
    push_seconds: Histogram,
    drain_seconds: HistogramVec,
}

impl ToldMetrics {
    pub(super) fn new(make: &Make<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            changes: make.counters("changes_total", "Objects that came, changed or went, by kind.", "kind")?,
            change_convergence_seconds: make.histogram(
                "change_convergence_duration_seconds",
                "Time from when a change was seen until every proxy that it concerns has acknowledged it.",
            )?,
            push_seconds: make.histogram(
                "push_duration_seconds",
                "Time from a change in the tables until it was given to a stream.",
            )?,
            drain_seconds: drains(make)?,
        })
    }

    /// This object came, changed or went.
    pub fn changed(&self, change: &Change) {
        self.changes.with_label_values(&[kind(change)]).inc();
    }

    /// A change was given to a stream so long after it was made.
    pub fn pushed(&self, took: Duration) {
        self.push_seconds.observe(took.as_secs_f64());
    }

    /// Changes took so long each until everybody concerned had acknowledged them.
    pub fn converged(&self, took: impl IntoIterator<Item = Duration>) {
        for took in took {
            self.change_convergence_seconds.observe(took.as_secs_f64());
        }
    }

    /// A workload waited so long for others to know that it leaves.
    pub fn drained(&self, ended: Ended, took: Duration) {
        self.drain_seconds.with_label_values(&[ended.label()]).observe(took.as_secs_f64());
    }
}

fn drains(make: &Make<'_>) -> prometheus::Result<HistogramVec> {
    let help = "Time from a workload's word that it leaves until the wait for others ended, by what ended it.";
    let options = HistogramOpts::new("weft_control_drain_duration_seconds", help).buckets(DRAIN.to_vec());
    let made = HistogramVec::new(options, &["ended"])?;
    make.0.register(Box::new(made.clone()))?;
    for ended in Ended::ALL {
        made.with_label_values(&[ended.label()]);
    }
    Ok(made)
}
