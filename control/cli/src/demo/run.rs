//! The demo's loop: receive what clients count, do what the script says, draw.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;
use crate::lab;
use crate::output;

use super::board::{Board, PhaseName};
use super::checks::{Edit, Findings};
use super::cluster::{Cluster, Programs};
use super::report::Report;
use super::reports::{self, Reports};
use super::script::{Action, Script};
use super::shop::{self, POLICY_EDIT, POLICY_FILE, VICTIM};
use super::view::{self, View};

/// The longest wait for a report before looking at the time again.
const TICK: Duration = Duration::from_millis(25);
/// Between two drawings, and two looks at processes and sidecars.
const REDRAW: Duration = Duration::from_secs(1);

/// Set by SIGINT or SIGTERM.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    fn told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Watches for SIGINT and SIGTERM from now on. A second one ends the process at once: its children go with it.
pub fn stop_signal() -> Result<Stop, Failure> {
    let stop = Stop(Arc::default());
    let told = stop.clone();
    let failed = |error: std::io::Error| Failure::here(format!("cannot watch for signals: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut int, mut term) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?)
    };
    let watch = move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                }
                if told.0.swap(true, Ordering::Relaxed) {
                    output::draw(if output::interactive() { view::CLOSE } else { "" });
                    std::process::exit(130);
                }
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(failed)?;
    Ok(stop)
}

struct Run<'a> {
    cluster: &'a mut Cluster,
    programs: &'a Programs,
    board: Board,
    findings: Findings,
    view: &'a mut View,
    // An edit whose effect has not been seen yet: gave, when.
    pending: Option<(bool, Duration)>,
}

/// Lets traffic flow for `length`, or until `stop`, and says how it went.
pub fn run(
    cluster: &mut Cluster,
    programs: &Programs,
    length: Option<Duration>,
    view: &mut View,
    stop: &Stop,
) -> Result<Report, lab::Error> {
    let reports = Reports::listen(&cluster.files().with_file_name("reports"))?;
    let flows: Vec<_> = shop::flows(length.unwrap_or(super::script::ROUND).as_secs_f64())
        .into_iter()
        .filter(|flow| flow.servers.iter().all(|pod| cluster.has(pod)))
        .collect();
    for (index, flow) in flows.iter().enumerate() {
        cluster.start_client(index, flow, reports.path())?;
    }
    view.tell("traffic flows");
    let mut script = Script::new(length);
    let board = Board::new(flows, Instant::now());
    let mut run = Run { cluster, programs, board, findings: Findings::default(), view, pending: None };
    let mut redraw = Instant::now();
    loop {
        for report in reports.within(TICK) {
            run.count(report);
        }
        let now = Instant::now();
        let at = run.board.at(now);
        run.see_edit(false);
        for action in script.due(at) {
            run.act(action)?;
        }
        if now >= redraw {
            redraw = now + REDRAW;
            run.look();
            run.view.draw(&run.board, now, script.left(at));
        }
        if stop.told() || script.left(at) == Some(Duration::ZERO) {
            break;
        }
    }
    run.findings.complete = !stop.told();
    run.see_edit(true);
    run.finish(reports);
    Ok(Report::new(&run.board, &run.findings))
}

impl Run<'_> {
    fn count(&mut self, report: reports::Report) {
        match report {
            reports::Report::Tally(index, tally, came) => self.board.count(index, &tally, came),
            reports::Report::Garbled => self.findings.errors.push("a client's report cannot be read".to_owned()),
        }
    }

    fn note(&mut self, text: &str) {
        let now = Instant::now();
        self.view.event(self.board.at(now), text);
        self.board.note(text, now);
    }

    fn act(&mut self, action: Action) -> Result<(), lab::Error> {
        match action {
            Action::Begin(name) => {
                self.board.begin(name, Instant::now());
                self.view.event(self.board.at(Instant::now()), &format!("phase {}", name.name()));
            }
            Action::GiveRight => self.edit(true)?,
            Action::TakeRight => self.edit(false)?,
            Action::KillPod => {
                if !self.findings.killed.contains(&PhaseName::KillEndpoint) {
                    // Its counters die with it.
                    self.findings.bypassed.extend(self.cluster.bypassed([VICTIM]));
                }
                if self.cluster.kill_pod(VICTIM) {
                    self.findings.killed.push(PhaseName::KillEndpoint);
                }
                self.note(&format!("{VICTIM} is killed: SIGKILL to its application and its sidecar"));
            }
            Action::RevivePod => {
                self.cluster.revive_pod(VICTIM, self.programs)?;
                self.note(&format!("{VICTIM} starts again"));
            }
            Action::KillControl => {
                if self.cluster.kill_control() {
                    self.findings.killed.push(PhaseName::KillControl);
                }
                self.note("control is killed: SIGKILL");
            }
            Action::ReviveControl => {
                self.cluster.revive_control()?;
                self.note("control starts again");
            }
        }
        Ok(())
    }

    /// Writes the policy file beside itself and renames it, as editors do.
    fn edit(&mut self, give: bool) -> Result<(), lab::Error> {
        let path = self.cluster.files().join(POLICY_FILE);
        let text = shop::MANIFESTS.iter().find(|(name, _)| *name == POLICY_FILE).map_or("", |(_, text)| *text);
        let text = if give { text.replace(POLICY_EDIT.0, POLICY_EDIT.1) } else { text.to_owned() };
        replace(&path, &text).map_err(|source| lab::Error::File { path, source })?;
        self.see_edit(true);
        self.pending = Some((give, self.board.at(Instant::now())));
        let what = if give { "may read the ledger from now on" } else { "may no longer read the ledger" };
        self.note(&format!("{POLICY_FILE} is edited: shop/audit {what}"));
        Ok(())
    }

    /// Whether the last edit has been felt by the client. `last`: it is too late to wait on.
    fn see_edit(&mut self, last: bool) {
        let Some((gave, since)) = self.pending else { return };
        let felt = self.board.lane("ledger-audit").and_then(|lane| if gave { lane.last_ok } else { lane.last_denied });
        let took = felt.and_then(|felt| felt.checked_sub(since)).filter(|took| !took.is_zero());
        if took.is_none() && !last {
            return;
        }
        self.pending = None;
        self.findings.edit.push(Edit { gave, took });
        if let Some(took) = took {
            self.note(&format!("shop/audit feels it after {} ms", took.as_millis()));
        }
    }

    /// Looks after the processes, and asks the sidecars of servers that say nothing about their peers.
    fn look(&mut self) {
        for dead in self.cluster.dead() {
            if !self.findings.died.contains(&dead) {
                self.note(&dead);
                self.findings.died.push(dead);
            }
        }
        for lane in &mut self.board.lanes {
            if !lane.seen_by_app() {
                lane.at_server = self.cluster.peers(&lane.flow);
            }
        }
    }

    fn finish(&mut self, reports: Reports) {
        self.look();
        let servers: BTreeSet<_> = self.board.lanes.iter().flat_map(|lane| lane.flow.servers.iter().copied()).collect();
        let killed = self.findings.killed.contains(&PhaseName::KillEndpoint);
        let bypassed = self.cluster.bypassed(servers.into_iter().filter(|pod| !killed || *pod != VICTIM));
        self.findings.bypassed.extend(bypassed);
        self.cluster.stop_clients();
        for report in reports.rest() {
            self.count(report);
        }
        self.view.close();
    }
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("yaml~");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}
