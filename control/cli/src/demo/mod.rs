//! `weft demo`: a small shop in network namespaces, a sidecar for each part, and what should hold while parts of it die.
//!
//! - [`shop`]: manifests, pods, flows. [`cluster`]: their processes.
//! - [`script`]: when what is done to them. [`board`]: what is counted meanwhile.
//! - [`checks`]: what should hold. [`report`]: the result. [`view`]: the terminal.
//!
//! One thread counts what clients report, does what the script says, and draws; [`reports`] takes the reports off the socket for it.

pub mod board;
pub mod checks;
pub mod cluster;
pub mod report;
pub mod reports;
mod run;
pub mod script;
pub mod shop;
pub mod view;

use std::time::Duration;

use crate::args::Demo;
use crate::exit::{Exit, Failure};
use crate::lab::{self, Lab};
use crate::output::{self, Paint};

use self::cluster::{Cluster, Programs};
use self::report::Report;
use self::shop::{PARTS, Runs};
use self::view::View;

/// The shortest run that says anything.
const SHORTEST: Duration = Duration::from_secs(10);

/// Runs the demo. To be called before any thread exists.
pub fn run(args: &Demo) -> Result<Exit, Failure> {
    if args.for_.is_some_and(|length| length < SHORTEST) {
        return Err(Failure::usage(format!("--for must be at least {} s", SHORTEST.as_secs())));
    }
    if let Some(pod) = &args.without_sidecar
        && !PARTS.iter().any(|part| part.pod == pod)
    {
        return Err(Failure::usage(format!("the shop has no pod `{pod}`")));
    }
    lab::enter().map_err(failure)?;
    let stop = run::stop_signal()?;
    let mut view = View::default();
    let report = build_and_run(args, &mut view, &stop).map_err(failure)?;
    if args.json {
        output::json(&report);
    } else {
        output::raw(report.page(Paint::stdout()).as_bytes());
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Failed })
}

fn build_and_run(args: &Demo, view: &mut View, stop: &run::Stop) -> Result<Report, lab::Error> {
    let program = std::env::current_exe().map_err(|error| lab::Error::Invalid(format!("this program: {error}")))?;
    let programs = Programs::find();
    for (runs, name) in [(Runs::Nginx, "nginx"), (Runs::Redis, "redis-server")] {
        if !programs.has(runs) {
            view.tell(&format!("{name} is not on this machine: its flow is left out"));
        }
    }
    let pods = PARTS.iter().filter(|part| programs.has(part.runs)).count();
    view.tell(&format!("starting control and {pods} pods, each with its sidecar"));
    let lab = Lab::new(&program, args.keep.as_deref())?;
    let mut cluster = Cluster::start(lab, &programs, args.without_sidecar.clone())?;
    let report = run::run(&mut cluster, &programs, args.for_, view, stop)?;
    if !report.ok || args.keep.is_some() {
        view.tell(&format!("logs and manifests are in {}", cluster.keep().display()));
    }
    Ok(report)
}

fn failure(error: lab::Error) -> Failure {
    let exit = if error.is_impossible() { Exit::CannotRun } else { Exit::Failed };
    Failure { exit, message: format!("demo: {error}") }
}
