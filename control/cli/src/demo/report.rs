//! The result: one JSON object for programs, a page for people. Its fields are a contract (docs: `weft demo --help`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::board::{Board, PhaseName};
use super::checks::{self, Check};
use super::shop::Want;
use crate::output::Paint;

/// The whole result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether every check holds.
    pub ok: bool,
    /// Weft's version.
    pub version: &'static str,
    /// Who called whom.
    pub flows: Vec<FlowReport>,
    /// What the demo did meanwhile.
    pub phases: Vec<PhaseReport>,
    /// What should hold.
    pub checks: Vec<Check>,
}

/// One flow.
#[derive(Clone, Debug, Serialize)]
pub struct FlowReport {
    /// Its name.
    pub name: &'static str,
    /// `NAMESPACE/SERVICE-ACCOUNT` of the client.
    pub from: String,
    /// `NAMESPACE/SERVICE`.
    pub to: String,
    /// `http`, `grpc` or `tcp`.
    pub protocol: &'static str,
    /// Requests (or connections) that ended.
    pub sent: u64,
    /// Served.
    pub ok: u64,
    /// Neither served, nor denied, nor limited.
    pub failed: u64,
    /// Refused by a policy.
    pub denied: u64,
    /// Refused by a limit.
    pub limited: u64,
    /// Median latency of the served, in milliseconds.
    pub p50_ms: Option<f64>,
    /// 99 of 100 were not slower.
    pub p99_ms: Option<f64>,
    /// Share of requests (or connections) whose peer's identity was verified at the server.
    pub mtls_share: Option<f64>,
    /// Served, by the version that answered.
    pub by_version: BTreeMap<String, u64>,
    /// Why requests failed or were refused.
    pub errors: BTreeMap<String, u64>,
}

/// One phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    /// Which.
    pub name: PhaseName,
    /// Since traffic began.
    pub start_s: f64,
    /// Requests of all flows.
    pub sent: u64,
    /// Of these failed. Requests that are not safe to repeat and were in flight on the killed endpoint are in `lost_in_flight`.
    pub failed: u64,
    /// POSTs in flight on the killed endpoint that were lost.
    pub lost_in_flight: u64,
}

/// Rounds to a thousandth: more digits say nothing.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl Report {
    /// From the counts.
    pub fn new(board: &Board, findings: &checks::Findings) -> Self {
        let flows = board.lanes.iter().map(|lane| FlowReport {
            name: lane.flow.name,
            from: lane.flow.client(),
            to: lane.flow.server(),
            protocol: lane.flow.protocol(),
            sent: lane.total.sent,
            ok: lane.total.ok,
            failed: lane.total.failed,
            denied: lane.total.denied,
            limited: lane.total.limited,
            p50_ms: lane.total.percentile(0.5).map(round),
            p99_ms: lane.total.percentile(0.99).map(round),
            mtls_share: lane.mtls_share(),
            by_version: lane.total.by_version.clone(),
            errors: lane.total.errors.clone(),
        });
        let phases = board.phases.iter().map(|phase| {
            let (mut sent, mut failed, mut lost) = (0, 0, 0);
            for (lane, tally) in board.lanes.iter().zip(&phase.flows) {
                sent += tally.sent;
                if lane.flow.want == Want::ServedOnce && phase.name == PhaseName::KillEndpoint {
                    lost += tally.failed;
                } else {
                    failed += tally.failed;
                }
            }
            PhaseReport {
                name: phase.name,
                start_s: round(phase.start.as_secs_f64()),
                sent,
                failed,
                lost_in_flight: lost,
            }
        });
        let checks = checks::all(board, findings);
        Self {
            ok: checks.iter().all(|check| check.ok),
            version: env!("CARGO_PKG_VERSION"),
            flows: flows.collect(),
            phases: phases.collect(),
            checks,
        }
    }

    /// For people.
    pub fn page(&self, paint: Paint) -> String {
        let mut page = String::new();
        let head = format!(
            "{:<14} {:<12} {:<15} {:>6} {:>7} {:>6} {:>7} {:>8} {:>7} {:>7} {:>5}  {}",
            "FLOW", "FROM", "TO", "PROTO", "OK", "FAILED", "DENIED", "LIMITED", "P50 ms", "P99 ms", "MTLS", "VERSIONS"
        );
        let _ = writeln!(page, "{}", paint.strong(head));
        for flow in &self.flows {
            let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
            let share = flow.mtls_share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0));
            let versions: Vec<_> =
                flow.by_version.iter().map(|(version, count)| format!("{version} {count}")).collect();
            let failed = format!("{:>6}", flow.failed);
            let _ = writeln!(
                page,
                "{:<14} {:<12} {:<15} {:>6} {:>7} {} {:>7} {:>8} {:>7} {:>7} {:>5}  {}",
                flow.name,
                flow.from,
                flow.to,
                flow.protocol,
                flow.ok,
                if flow.failed > 0 { paint.warn(failed) } else { failed },
                flow.denied,
                flow.limited,
                number(flow.p50_ms),
                number(flow.p99_ms),
                share,
                versions.join(", ")
            );
        }
        for flow in self.flows.iter().filter(|flow| flow.failed > 0) {
            let why: Vec<_> = flow.errors.iter().map(|(why, count)| format!("{count} x {why}")).collect();
            let _ = writeln!(page, "{}", paint.warn(format!("{}: {}", flow.name, why.join(", "))));
        }
        let _ = writeln!(page, "\n{}", paint.strong("PHASE           START    SENT  FAILED  LOST IN FLIGHT"));
        for phase in &self.phases {
            let (name, start) = (phase.name.name(), phase.start_s);
            let (sent, failed, lost) = (phase.sent, phase.failed, phase.lost_in_flight);
            let _ = writeln!(page, "{name:<14} {start:>5.1}s {sent:>7} {failed:>7} {lost:>15}");
        }
        let _ = writeln!(page);
        for check in &self.checks {
            let mark = if check.ok { paint.good("ok  ") } else { paint.bad("FAIL") };
            let _ = writeln!(page, "{mark} {}: want {}, got {}", check.name, check.want, check.got);
        }
        page
    }
}
