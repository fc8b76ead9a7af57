//! Figures with their bounds: the table for people, and whether all of them hold.

use std::fmt::Write as _;

use super::super::table::{Metric, Results, figure};

/// The column: there is no other peer.
const PEER: &str = "weft";

/// What a figure must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Nothing: it is shown.
    Shown,
    /// At most this.
    Most(f64),
    /// This.
    Just(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::Shown => true,
            // What could not be measured holds nothing.
            Self::Most(most) => value <= most,
            Self::Just(just) => (value - just).abs() < 1e-9,
        }
    }
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(&'static str, Metric, f64, Bound)>,
    /// The same, as programs read them.
    pub results: Results,
}

impl Report {
    /// Adds one.
    pub fn add(&mut self, phase: &'static str, metric: Metric, value: f64, bound: Bound) {
        self.rows.push((phase, metric, value, bound));
        self.results.add(phase, PEER, metric, value);
    }

    /// Adds what is for programs only.
    pub fn aside(&mut self, phase: &'static str, metric: Metric, value: f64) {
        self.results.add(phase, PEER, metric, value);
    }

    /// Whether every bound holds.
    pub fn holds(&self) -> bool {
        self.rows.iter().all(|(_, _, value, bound)| bound.holds(*value))
    }

    /// The table, in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = "| phase | figure | | bound | |\n|---|---|---|---|---|\n".to_owned();
        for (phase, metric, value, bound) in &self.rows {
            let (limit, held) = match bound {
                Bound::Shown => (String::new(), ""),
                Bound::Most(most) => {
                    (format!("at most {}", figure(*most)), if bound.holds(*value) { "holds" } else { "FAILS" })
                }
                Bound::Just(just) => {
                    (format!("just {}", figure(*just)), if bound.holds(*value) { "holds" } else { "FAILS" })
                }
            };
            let _ =
                writeln!(out, "| {phase} | {} | {} {} | {limit} | {held} |", metric.name, figure(*value), metric.unit);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bound_that_does_not_hold_is_enough() {
        let mut report = Report::default();
        report.add("change", Metric::less("bytes", "B"), 300.0, Bound::Most(300.0));
        report.add("change", Metric::less("seen", "ms"), 1e9, Bound::Shown);
        assert!(report.holds());
        report.add("reconnect", Metric::less("resent", "resources"), 1.0, Bound::Just(0.0));
        assert!(!report.holds());
        assert!(
            report.markdown().contains("| reconnect | resent | 1.00 resources | just 0.00 | FAILS |"),
            "{}",
            report.markdown()
        );
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        let mut report = Report::default();
        report.add("change", Metric::less("bytes", "B"), f64::NAN, Bound::Most(300.0));
        assert!(!report.holds());
    }
}
