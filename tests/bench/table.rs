//! Figures by case, peer and metric; the table that people read and the list that programs do.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What is measured of a case: its name, its unit, and which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name in the table and the list.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Whether more is better.
    pub more: bool,
}

impl Metric {
    /// Of which less is better.
    pub const fn less(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, more: false }
    }

    /// Of which more is better.
    pub const fn more(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, more: true }
    }
}

#[derive(Debug)]
struct Row {
    case: &'static str,
    peer: String,
    metric: Metric,
    values: Vec<f64>,
}

/// How much of the machine others took while a figure was measured: of the run as a whole in the table, of each in the list.
pub const OTHERS: Metric = Metric::less("taken by other processes", "share");

/// All figures of a run, in the order in which they first came.
#[derive(Debug, Default)]
pub struct Results(Vec<Row>);

impl Results {
    /// Adds one figure of one repetition.
    pub fn add(&mut self, case: &'static str, peer: &str, metric: Metric, value: f64) {
        let same = |row: &&mut Row| row.case == case && row.peer == peer && row.metric == metric;
        match self.0.iter_mut().find(same) {
            Some(row) => row.values.push(value),
            None => self.0.push(Row { case, peer: peer.to_owned(), metric, values: vec![value] }),
        }
    }

    /// The median of what was measured.
    pub fn median(&self, case: &str, peer: &str, metric: &str) -> Option<f64> {
        let row = self.0.iter().find(|row| row.case == case && row.peer == peer && row.metric.name == metric)?;
        Some(median(&row.values))
    }

    /// The list: one object for each case, peer and metric.
    pub fn json(&self) -> Value {
        self.0
            .iter()
            .map(|row| {
                let (min, max) = extremes(&row.values);
                json!({"case": row.case, "peer": row.peer, "metric": row.metric.name, "unit": row.metric.unit,
                    "n": row.values.len(), "min": min, "median": median(&row.values), "max": max})
            })
            .collect()
    }

    /// The table, in Markdown: a row for each case and metric, a column for each peer, medians with (min-max), and for each build of Weft its
    /// ratio to Envoy at the concurrency that does better.
    pub fn markdown(&self, peers: &[String], wefts: &[String]) -> String {
        let mut out = "| case | metric |".to_owned();
        for name in peers {
            let _ = write!(out, " {name} |");
        }
        for name in wefts {
            let _ = write!(out, " {name} / envoy | {name} / envoy-tcp |");
        }
        let columns = 2 + peers.len() + 2 * wefts.len();
        let _ = writeln!(out, "\n|{}", "---|".repeat(columns));
        let mut seen: Vec<(&str, Metric)> = Vec::new();
        for row in self.0.iter().filter(|row| row.metric != OTHERS) {
            if seen.contains(&(row.case, row.metric)) {
                continue;
            }
            seen.push((row.case, row.metric));
            let _ = write!(out, "| {} | {} ({}) |", row.case, row.metric.name, row.metric.unit);
            for peer in peers {
                let _ = write!(out, " {} |", self.cell(row, peer));
            }
            for weft in wefts {
                for envoy in ["envoy", "envoy-tcp"] {
                    let _ = write!(out, " {} |", self.ratio(row, weft, envoy));
                }
            }
            out.push('\n');
        }
        let disturbed = self.0.iter().filter(|row| row.metric == OTHERS).flat_map(|row| row.values.iter().copied());
        let disturbed: Vec<f64> = disturbed.map(|share| share * 100.0).collect();
        if !disturbed.is_empty() {
            let (median, (min, max)) = (median(&disturbed), extremes(&disturbed));
            let _ = writeln!(out, "\nOther processes took {median:.0}% ({min:.0}-{max:.0}%) of the machine meanwhile.");
        }
        out
    }

    fn cell(&self, like: &Row, peer: &str) -> String {
        let found = self.0.iter().find(|row| row.case == like.case && row.metric == like.metric && row.peer == peer);
        let Some(row) = found else { return "-".to_owned() };
        let middle = figure(median(&row.values));
        match extremes(&row.values) {
            _ if row.values.len() == 1 => middle,
            (min, max) => format!("{middle} ({}-{})", figure(min), figure(max)),
        }
    }

    /// To the better of the peers that are `envoy` or `envoy-N`.
    fn ratio(&self, like: &Row, weft: &str, envoy: &str) -> String {
        let same = |row: &&Row| row.case == like.case && row.metric == like.metric;
        let is_envoy = |row: &&Row| {
            let rest = row.peer.strip_prefix(envoy);
            rest.is_some_and(|rest| rest.is_empty() || rest[1..].bytes().all(|byte| byte.is_ascii_digit()))
        };
        let medians = self.0.iter().filter(same).filter(is_envoy).map(|row| median(&row.values));
        let best = if like.metric.more { medians.reduce(f64::max) } else { medians.reduce(f64::min) };
        match (self.median(like.case, weft, like.metric.name), best) {
            (Some(ours), Some(best)) if best > 0.0 => format!("{:.2}", ours / best),
            _ => "-".to_owned(),
        }
    }
}

/// Three significant digits are more than two cores are worth.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn extremes(values: &[f64]) -> (f64, f64) {
    (values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.len() / 2;
    let lower = sorted.len().saturating_sub(1) / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(at(lower), at(upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: Metric = Metric::less("cpu", "us");
    const RATE: Metric = Metric::more("rate", "1/s");

    fn results() -> Results {
        let mut results = Results::default();
        for (peer, cpu, rate) in
            [("weft", 40.0, 30.0), ("envoy-1", 80.0, 10.0), ("envoy-2", 90.0, 20.0), ("envoy-tcp", 20.0, 60.0)]
        {
            for away in [-1.0, 1.0, 0.0] {
                results.add("http1", peer, CPU, cpu + away);
                results.add("http1", peer, RATE, rate + away);
            }
        }
        results
    }

    #[test]
    fn weft_is_compared_with_envoy_where_envoy_does_better() {
        let peers = ["weft", "envoy-1", "envoy-2", "envoy-tcp", "other"].map(str::to_owned);
        let text = results().markdown(&peers, &["weft".to_owned()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "| case | metric | weft | envoy-1 | envoy-2 | envoy-tcp | other | weft / envoy | weft / envoy-tcp |"
        );
        assert!(lines[2].ends_with("| - | 0.50 | 2.00 |") && lines[2].contains("40.0 (39.0-41.0)"), "{text}");
        assert!(lines[3].ends_with("| - | 1.50 | 0.50 |"), "{text}");
    }

    #[test]
    fn the_list_has_an_object_for_each_case_peer_and_metric() {
        let list = results().json();
        assert_eq!(list.as_array().unwrap().len(), 8);
        assert_eq!(
            list[0],
            json!({"case": "http1", "peer": "weft", "metric": "cpu", "unit": "us", "n": 3, "min": 39.0, "median": 40.0, "max": 41.0})
        );
    }

    #[test]
    fn an_even_number_has_its_median_in_the_middle() {
        assert!((median(&[4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
