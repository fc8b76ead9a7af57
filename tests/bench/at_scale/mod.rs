//! `weft-bench scale`: control as a process of its own, and thousands of simulated proxies in few others. Started by `tests/bench/scale`;
//! docs/performance.md says what it measures.
//!
//! - `world`: which services, endpoints and proxies there are.
//! - `objects`: what they are as objects.
//! - `source`: where control reads them: `files`, manifests; `api`, an API server (`rig`) that a `writer` writes them to.
//! - `processes`: control and the clients, as the conductor sees them.
//! - `client`, `sim`, `grpc`: a process of proxies, one proxy, its stream.
//! - `counted`: what one change costs in instructions.
//! - `phases`, `growth`: what is measured. `report`: the figures with their bounds.

mod api;
mod client;
mod counted;
mod files;
mod growth;
mod grpc;
mod objects;
mod phases;
mod processes;
mod report;
mod rig;
mod sim;
mod source;
mod world;
mod writer;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use weft_certs::ca::Ca;

use super::account::Machine;
use super::{Error, QUIET, say};
pub use client::{Args as ClientArgs, run as play};
pub use counted::{Args as CountedArgs, run as count};
use phases::{Phase, Run};
use report::Report;
use world::{TRUST_DOMAIN, World};

/// Control beside many proxies: memory, bytes, latency and CPU of a start, single changes, churn, a restart
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Services of the mesh
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Endpoints of the mesh, the same number for each service
    #[arg(long, default_value_t = 100_000)]
    endpoints: usize,
    /// Proxies, each with a connection, a handshake and an identity of its own
    #[arg(long, default_value_t = 10_000)]
    proxies: usize,
    /// Services that each proxy calls
    #[arg(long, default_value_t = 20)]
    per_proxy: usize,
    /// Where control learns of the mesh
    #[arg(long, value_enum, default_value = "files")]
    source: source::Kind,
    /// Only these phases; what they need is done too, and not judged
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PHASE,...")]
    only: Vec<Phase>,
    /// Single changes, and edits of a route
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Endpoint changes a second in the churn
    #[arg(long, default_value_t = 1_000)]
    rate: usize,
    /// Seconds of churn
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Processes of simulated proxies
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    clients: u16,
    /// Longest wait for anything, in seconds
    #[arg(long, default_value_t = 600)]
    patience: u64,
    /// weft-control, or a `weft` that plays every part
    #[arg(long, value_name = "PATH")]
    weft_control: PathBuf,
    /// Writes the list of figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Args {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

/// Runs it. Whether every bound holds.
pub fn run(args: &Args) -> Result<bool, Error> {
    let world = World::new(args.services, args.endpoints, args.proxies, args.per_proxy)?;
    many_files();
    let chosen = |phase: Phase| args.only.is_empty() || args.only.contains(&phase);
    let mut report = Report::default();
    if Phase::ALL.into_iter().any(|phase| phase != Phase::Growth && chosen(phase)) {
        in_one_mesh(args, world, &chosen, &mut report)?;
    }
    if chosen(Phase::Growth) {
        watched(Phase::Growth, &mut report, |report| growth::measure(args, world, report))?;
    }
    let _ = write!(std::io::stdout(), "{}", report.markdown());
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", report.results.json());
        std::fs::write(path, text).map_err(|source| Error::File { path: path.clone(), source })?;
    }
    Ok(report.holds())
}

/// The phases that follow each other in the same mesh.
fn in_one_mesh(args: &Args, world: World, chosen: &dyn Fn(Phase) -> bool, report: &mut Report) -> Result<(), Error> {
    let scratch = Scratch::new()?;
    let mut run = Run::begin(args, world, &scratch.0)?;
    watched(Phase::Start, report, |report| {
        let mut unjudged = Report::default();
        run.measure(Phase::Start, if chosen(Phase::Start) { report } else { &mut unjudged })
    })?;
    for phase in
        [Phase::Change, Phase::Route, Phase::Churn, Phase::Reconnect].into_iter().filter(|phase| chosen(*phase))
    {
        watched(phase, report, |report| run.measure(phase, report))?;
    }
    Ok(())
}

/// Measures a phase, and how much of the machine others took meanwhile.
fn watched(
    phase: Phase,
    report: &mut Report,
    measure: impl FnOnce(&mut Report) -> Result<(), Error>,
) -> Result<(), Error> {
    say(phase.name());
    let before = Machine::now()?;
    measure(report)?;
    let others = Machine::now()?.others_since(before);
    report.aside(phase.name(), super::table::OTHERS, others);
    if others > QUIET {
        say(&format!("  other processes took {:.0}% of the machine", others * 100.0));
    }
    Ok(())
}

/// As many open files as the kernel lets us have; children inherit it.
fn many_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    // Not done: few proxies need no more than there were.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}

/// A directory that goes with the run.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Error> {
        let name = format!("weft-scale-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).map_err(|source| Error::File { path: path.clone(), source })?;
        // Control makes one if there is none; ours is there before it, for the certificates.
        Ca::open(&*processes::ca_dir(&path), TRUST_DOMAIN).map_err(Error::certs)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is in a directory for that.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
