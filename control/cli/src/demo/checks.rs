//! What should hold, and whether it did.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::board::{Board, Lane, PhaseName};
use super::shop::{self, Want};

/// How far the split may be off, in percentage points.
const SPLIT_POINTS: f64 = 2.0;
/// How far what the limiter admits may be off, of rate x time + burst.
const LIMIT_SHARE: f64 = 0.05;
/// How long an edit of a policy file may take to be seen by a client.
const EDIT_WITHIN: Duration = Duration::from_secs(2);

/// One thing that should hold.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Which.
    pub name: String,
    /// Whether it holds.
    pub ok: bool,
    /// What should be.
    pub want: String,
    /// What is.
    pub got: String,
}

/// What the demo itself saw while it did things to the shop.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// From the edit of the policy file to the first request that it lets through, and from the edit back to the first that is denied
    /// again. `None`: not seen.
    pub edit: Vec<Edit>,
    /// Whether the named thing died as it should.
    pub killed: Vec<PhaseName>,
    /// Parts that ended without being told to: one sentence each.
    pub died: Vec<String>,
    /// Servers that nothing reached through their sidecar.
    pub bypassed: Vec<&'static str>,
    /// What could not be done: one sentence each.
    pub errors: Vec<String>,
    /// The script ran to its end; else somebody stopped it, and what was not reached is not missed.
    pub complete: bool,
}

/// An edit and when it took effect.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// `true`: the right was given; `false`: it was taken back.
    pub gave: bool,
    /// From the write of the file to the effect at the client.
    pub took: Option<Duration>,
}

fn check(name: impl Into<String>, ok: bool, want: impl Into<String>, got: impl Into<String>) -> Check {
    Check { name: name.into(), ok, want: want.into(), got: got.into() }
}

/// Every check.
pub fn all(board: &Board, findings: &Findings) -> Vec<Check> {
    let mut checks = Vec::new();
    for lane in &board.lanes {
        checks.push(mtls(lane));
        checks.extend(flow(board, lane, findings.complete));
    }
    for phase in [PhaseName::KillEndpoint, PhaseName::KillControl] {
        if findings.complete || findings.killed.contains(&phase) {
            checks.push(killed(board, findings, phase));
        }
    }
    checks.extend(edits(findings));
    let bypassed = if findings.bypassed.is_empty() {
        "every one".to_owned()
    } else {
        format!("not {}", findings.bypassed.join(", "))
    };
    checks.push(check(
        "every server is reached through its sidecar",
        findings.bypassed.is_empty(),
        "every one",
        bypassed,
    ));
    let mut odd: Vec<_> = findings.died.iter().chain(&findings.errors).cloned().collect();
    odd.dedup();
    checks.push(check(
        "nothing else went wrong",
        odd.is_empty(),
        "nothing",
        if odd.is_empty() { "nothing".to_owned() } else { odd.join("; ") },
    ));
    checks
}

fn mtls(lane: &Lane) -> Check {
    let share = lane.mtls_share();
    let got = share.map_or_else(|| "nothing was verified".to_owned(), |share| format!("{share:.4}"));
    check(format!("{}: peers verified at the server", lane.flow.name), share == Some(1.0), "1.0", got)
}

fn flow(board: &Board, lane: &Lane, complete: bool) -> Vec<Check> {
    let (name, total) = (lane.flow.name, &lane.total);
    let mut checks = Vec::new();
    if lane.flow.want != Want::ServedOnce {
        checks.push(check(
            format!("{name}: nothing failed"),
            total.failed == 0,
            "0 failed",
            format!("{} failed", total.failed),
        ));
    }
    match lane.flow.want {
        Want::Served => checks.push(served(lane)),
        Want::Split => {
            checks.push(served(lane));
            checks.push(split(lane, if complete { shop::SPLIT_REQUESTS } else { 0 }));
        }
        Want::ServedOnce => checks.push(lost(board, lane)),
        Want::Limited => checks.push(limited(lane)),
        Want::Denied => {
            let ok = total.denied > 0 && total.denied == total.sent;
            checks.push(check(
                format!("{name}: all denied"),
                ok,
                "all denied",
                format!("{} of {}", total.denied, total.sent),
            ));
        }
        Want::Edited => {}
    }
    checks
}

fn served(lane: &Lane) -> Check {
    let total = &lane.total;
    let ok = total.ok > 0 && total.ok + total.failed == total.sent;
    let name = format!("{}: nothing refused", lane.flow.name);
    check(name, ok, "0 denied or limited", format!("{} of {} answered well", total.ok, total.sent))
}

fn split(lane: &Lane, least: u64) -> Check {
    let count = |version: &str| lane.total.by_version.get(version).copied().unwrap_or(0);
    let (old, all) = (count("v1"), lane.total.ok);
    let percent = 100.0 * old as f64 / all.max(1) as f64;
    let ok = all >= least && (percent - 90.0).abs() <= SPLIT_POINTS && count("v1") + count("v2") == all;
    let mut want = format!("90 % to v1 within {SPLIT_POINTS} points");
    if least > 0 {
        let _ = write!(want, ", over at least {least} requests");
    }
    check(format!("{}: split", lane.flow.name), ok, want, format!("{percent:.2} % of {all}"))
}

/// Of the requests that are not safe to repeat, at most one a connection was in flight when the endpoint died; no other fails.
fn lost(board: &Board, lane: &Lane) -> Check {
    let deaths = board.phases.iter().filter(|phase| phase.name == PhaseName::KillEndpoint);
    let index = board.lanes.iter().position(|other| other.flow.name == lane.flow.name);
    let in_kill: u64 = deaths.clone().filter_map(|phase| phase.flows.get(index?)).map(|tally| tally.failed).sum();
    let most = deaths.count() as u64 * u64::from(lane.flow.connections);
    // Old phases are forgotten in a run without an end: what failed in them is no more known to be a loss outside of one.
    let elsewhere = board.phases.iter().filter(|phase| phase.name != PhaseName::KillEndpoint);
    let elsewhere: u64 = elsewhere.filter_map(|phase| phase.flows.get(index?)).map(|tally| tally.failed).sum();
    let ok = lane.total.ok > 0 && in_kill <= most && elsewhere == 0;
    let want = format!("at most the {most} in flight at the kill, 0 at other times");
    check(format!("{}: lost", lane.flow.name), ok, want, format!("{in_kill} at the kill, {elsewhere} at other times"))
}

fn limited(lane: &Lane) -> Check {
    let (rate, burst) = shop::LIMIT;
    let seconds = lane.span.map_or(0.0, |(first, last)| last.saturating_sub(first).as_secs_f64());
    let want = rate * seconds + burst;
    let got = lane.total.ok as f64;
    let ok = lane.total.limited > 0 && (got / want - 1.0).abs() <= LIMIT_SHARE;
    let text = format!("{want:.0} within 5 % ({rate} a second x {seconds:.1} s + {burst})");
    check(
        format!("{}: admitted by the limit", lane.flow.name),
        ok,
        text,
        format!("{got} ({:+.1} %)", (got / want - 1.0) * 100.0),
    )
}

fn killed(board: &Board, findings: &Findings, name: PhaseName) -> Check {
    let phases = board.phases.iter().filter(|phase| phase.name == name);
    let (mut sent, mut failed) = (0, 0);
    for phase in phases {
        for (lane, tally) in board.lanes.iter().zip(&phase.flows) {
            sent += tally.sent;
            if lane.flow.want != Want::ServedOnce {
                failed += tally.failed;
            }
        }
    }
    let done = findings.killed.contains(&name);
    let got = if done { format!("{failed} of {sent} failed") } else { "it was not killed".to_owned() };
    check(name.name(), done && sent > 0 && failed == 0, "killed, and 0 requests failed", got)
}

fn edits(findings: &Findings) -> Vec<Check> {
    let mut checks = Vec::new();
    for gave in [true, false] {
        if !findings.complete && !findings.edit.iter().any(|edit| edit.gave == gave) {
            continue;
        }
        let worst =
            findings.edit.iter().filter(|edit| edit.gave == gave).map(|edit| edit.took.unwrap_or(Duration::MAX)).max();
        let name = if gave { "policy_edit: takes effect" } else { "policy_edit: taken back" };
        let got = match worst {
            None => "the file was not edited".to_owned(),
            Some(Duration::MAX) => "no effect was seen".to_owned(),
            Some(took) => format!("{} ms", took.as_millis()),
        };
        let want = format!("within {} ms", EDIT_WITHIN.as_millis());
        checks.push(check(name, worst.is_some_and(|took| took <= EDIT_WITHIN), want, got));
    }
    checks
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::app::client::tally::Tally;

    fn board() -> (Board, Findings) {
        let start = Instant::now();
        let mut board = Board::new(shop::flows(20.0), start);
        for phase in PhaseName::ALL.into_iter().skip(1) {
            board.begin(phase, start + Duration::from_secs(5));
        }
        for index in 0..board.lanes.len() {
            let lane = board.lanes[index].clone();
            let mut tally = Tally { sent: 10_000, ok: 10_000, ..Tally::default() };
            let who = format!("By=x;URI=spiffe://cluster.local/ns/{}", lane.flow.client().replace('/', "/sa/"));
            match lane.flow.want {
                Want::Limited => (tally.ok, tally.limited) = (1025, 8_975),
                Want::Denied => (tally.ok, tally.denied) = (0, 10_000),
                _ => {}
            }
            tally.seen = [(who, tally.ok)].into();
            tally.by_version = [("v1".to_owned(), tally.ok * 9 / 10), ("v2".to_owned(), tally.ok / 10)].into();
            board.count(index, &Tally::default(), start);
            board.count(index, &tally, start + Duration::from_secs(20));
            board.lanes[index].at_server = (5, 5);
        }
        let edit = |gave| Edit { gave, took: Some(Duration::from_millis(300)) };
        let findings = Findings {
            edit: vec![edit(true), edit(false)],
            killed: vec![PhaseName::KillEndpoint, PhaseName::KillControl],
            complete: true,
            ..Findings::default()
        };
        (board, findings)
    }

    fn failing(board: &Board, findings: &Findings) -> Vec<String> {
        all(board, findings).into_iter().filter(|check| !check.ok).map(|check| format!("{check:?}")).collect()
    }

    #[test]
    fn a_good_run_passes() {
        let (mut board, findings) = board();
        // All was counted in the last phase; the kill needs some too.
        board.phases[2].flows[0].sent = 1;
        assert_eq!(failing(&board, &findings), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_found() {
        let (good, findings) = board();
        let mut good = good;
        good.phases[2].flows[0].sent = 1;
        type Fault = (&'static str, fn(&mut Board, &mut Findings));
        let faults: &[Fault] = &[
            ("a plain request", |board, _| board.lanes[0].total.seen = [(String::new(), 10_000)].into()),
            ("a plain connection", |board, _| board.lanes[2].at_server = (4, 5)),
            ("no evidence", |board, _| board.lanes[2].at_server = (0, 0)),
            ("a failure", |board, _| board.lanes[1].total.failed = 1),
            ("a failure at the kill", |board, _| board.phases[2].flows[3].failed = 1),
            ("a failure without control", |board, _| board.phases[3].flows[3].failed = 1),
            ("too many POSTs lost", |board, _| board.phases[2].flows[4].failed = 5),
            ("a POST lost in peace", |board, _| board.phases[0].flows[4].failed = 1),
            ("the split is off", |board, _| {
                board.lanes[0].total.by_version = [("v1".to_owned(), 8_700), ("v2".to_owned(), 1_300)].into();
            }),
            ("the limit lets too much through", |board, _| board.lanes[5].total.ok = 1_200),
            ("the intern reads", |board, _| (board.lanes[7].total.ok, board.lanes[7].total.denied) = (1, 9_999)),
            ("the edit has no effect", |_, findings| findings.edit[0].took = None),
            ("the edit is slow", |_, findings| findings.edit[1].took = Some(Duration::from_secs(3))),
            ("the kill did not happen", |_, findings| findings.killed.clear()),
            ("a server without a sidecar", |_, findings| findings.bypassed.push("reviews-2")),
            ("a sidecar died", |_, findings| findings.died.push("web-0: the sidecar ended".to_owned())),
        ];
        for (fault, make) in faults {
            let (mut board, mut findings) = (good.clone(), findings.clone());
            make(&mut board, &mut findings);
            assert!(!failing(&board, &findings).is_empty(), "{fault}");
        }
    }
}
