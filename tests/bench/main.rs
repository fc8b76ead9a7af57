//! `weft-bench`: Weft beside others, on this machine, in one run. Started by `tests/bench/run`; docs/performance.md says what it measures.
//!
//! Every peer runs in a lab of its own from the start to the end of the run, so that repetitions can be interleaved: a repetition
//! goes through the cases, a case through the peers. Who is not measured is idle. Handshakes are measured before, in memory.

mod account;
mod arena;
mod at_scale;
mod cases;
mod envoy;
mod handshakes;
mod load;
mod memory;
mod peers;
mod programs;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser as _;

use account::Machine;
use arena::Arena;
use cases::Case;
use envoy::Mode;
use peers::{Kind, Peer};
use programs::Programs;
use table::Results;

/// Variables of the environment that name a program as a further peer begin with this.
const OTHER_PEER: &str = "WEFT_BENCH_PEER_";
/// A machine of which others take more than this share is not a quiet one.
const QUIET: f64 = 0.05;
/// Envoy's default of TLS sessions that it keeps.
const ENVOY_SESSIONS: u32 = 1;
/// Enough for every new connection to resume one.
const MANY_SESSIONS: u32 = 1_024;

/// Why the bench could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lab.
    #[error(transparent)]
    Lab(#[from] weft::lab::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A program did not do what it should.
    #[error("{name}: {reason}")]
    Program {
        /// Which.
        name: String,
        /// What it did.
        reason: String,
    },
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    fn missing(program: &str) -> Self {
        Self::Usage(format!("{program} is not on this machine; fetch it with tests/tools/get {program}"))
    }

    fn certs(error: impl std::fmt::Display) -> Self {
        Self::Program { name: "certificates".to_owned(), reason: error.to_string() }
    }
}

/// Weft beside others: CPU per request, latency, throughput, memory
#[derive(clap::Parser, Debug)]
#[command(name = "weft-bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    /// How often each case is measured
    #[arg(long, default_value_t = 5)]
    reps: usize,
    /// One repetition
    #[arg(long)]
    quick: bool,
    /// Seconds of load for each figure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// Only these cases
    #[arg(long, value_delimiter = ',', value_name = "CASE,...")]
    only: Vec<String>,
    /// Only these peers
    #[arg(long, value_delimiter = ',', value_name = "PEER,...")]
    peers: Vec<String>,
    /// A build of weft-proxy, the peer `weft`
    #[arg(long, value_name = "PATH")]
    weft_proxy: Option<PathBuf>,
    /// Further builds of weft-proxy as peers of their own; repeatable
    #[arg(long, value_name = "NAME=PATH")]
    weft: Vec<String>,
    /// weft-control
    #[arg(long, value_name = "PATH")]
    weft_control: Option<PathBuf>,
    /// Writes the list of figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Says the names of cases and peers
    #[arg(long)]
    list: bool,
}

impl Cli {
    fn repetitions(&self) -> usize {
        if self.quick { 1 } else { self.reps }
    }
}

#[derive(clap::Subcommand, Debug)]
enum Part {
    /// A client or the echo, in a pod of the bench
    #[command(subcommand, hide = true)]
    Load(load::Command),
    /// Control beside many proxies. Started by tests/bench/scale
    Scale(Box<at_scale::Args>),
    /// A process of simulated proxies
    #[command(hide = true)]
    ScaleClient(at_scale::ClientArgs),
    /// A mesh in memory whose changes are counted
    #[command(hide = true)]
    ScaleCounted(at_scale::CountedArgs),
}

fn main() -> ExitCode {
    // The lab starts its pods' processes by this.
    if std::env::args().nth(1).as_deref() == Some("lab-exec") {
        return weft::main();
    }
    let cli = Cli::parse();
    let done = match cli.part {
        Some(Part::Load(command)) => load::run(command).map(|()| true),
        Some(Part::Scale(args)) => at_scale::run(&args),
        Some(Part::ScaleClient(args)) => at_scale::play(&args).map(|()| true),
        Some(Part::ScaleCounted(args)) => at_scale::count(&args).map(|()| true),
        None => bench(&cli),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("weft-bench: {error}"));
            match error {
                Error::Usage(_) => ExitCode::from(2),
                Error::Lab(error) if error.is_impossible() => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Progress and trouble; the table alone goes to standard output.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn bench(cli: &Cli) -> Result<bool, Error> {
    let peers = chosen_peers(cli)?;
    let cases = chosen_cases(&cli.only)?;
    let mut names: Vec<String> = peers.iter().map(|peer| peer.name.clone()).collect();
    let in_memory = cli.only.is_empty() || cli.only.iter().any(|name| name == handshakes::CASE);
    if cli.list {
        let cases: Vec<&str> =
            in_memory.then_some(handshakes::CASE).into_iter().chain(cases.iter().map(|case| case.name())).collect();
        say(&format!("cases: {}\npeers: {}", cases.join(" "), names.join(" ")));
        return Ok(true);
    }
    let mut results = Results::default();
    let mut failures = Vec::new();
    if in_memory {
        if cases.is_empty() {
            names.clear();
        }
        if !names.iter().any(|name| name == handshakes::PEER) {
            names.push(handshakes::PEER.to_owned());
        }
        say(handshakes::CASE);
        if let Err(error) = handshakes::measure(cli.repetitions(), &mut results) {
            failures.push(format!("{}: {error}", handshakes::CASE));
        }
    }
    if !cases.is_empty() {
        weft::lab::enter()?;
        let control = cli.weft_control.clone().ok_or_else(|| Error::Usage("--weft-control is missing".to_owned()))?;
        let programs = Programs::find(control)?;
        failures.extend(measure(cli, &peers, &cases, &programs, &mut results)?);
        cases::derive(&mut results, &names);
    }
    let wefts: Vec<String> =
        peers.iter().filter(|peer| matches!(peer.kind, Kind::Weft(_))).map(|peer| peer.name.clone()).collect();
    let _ = write!(std::io::stdout(), "{}", results.markdown(&names, &wefts));
    if let Some(path) = &cli.json {
        let text = format!("{:#}\n", results.json());
        std::fs::write(path, text).map_err(|source| Error::File { path: path.clone(), source })?;
    }
    for failure in &failures {
        say(&format!("failed: {failure}"));
    }
    Ok(failures.is_empty())
}

/// All repetitions; what failed is told at the end and does not stop the rest.
fn measure(
    cli: &Cli,
    peers: &[Peer],
    cases: &[Case],
    programs: &Programs,
    results: &mut Results,
) -> Result<Vec<String>, Error> {
    let mut arenas: Vec<(&Peer, Arena)> = Vec::new();
    for peer in peers {
        say(&format!("starting {}", peer.name));
        arenas.push((peer, Arena::start(peer, programs)?));
    }
    let (reps, start) = (cli.repetitions(), Instant::now());
    let mut failures = Vec::new();
    for rep in 1..=reps {
        for case in cases {
            for (peer, arena) in arenas.iter().filter(|(peer, _)| case.includes(peer)) {
                say(&format!("[{:4.0} s] {rep}/{reps} {} {}", start.elapsed().as_secs_f64(), case.name(), peer.name));
                let before = Machine::now()?;
                if let Err(error) = case.run(peer, arena, programs, Duration::from_secs(cli.seconds), results) {
                    say(&format!("  {error}"));
                    failures.push(format!("{} {}: {error}", case.name(), peer.name));
                }
                let others = Machine::now()?.others_since(before);
                results.add(case.name(), &peer.name, table::OTHERS, others);
                if others > QUIET {
                    say(&format!("  other processes took {:.0}% of the machine", others * 100.0));
                }
            }
        }
    }
    Ok(failures)
}

fn chosen_peers(cli: &Cli) -> Result<Vec<Peer>, Error> {
    let peer = |name: &str, kind| Peer { name: name.to_owned(), kind };
    let mut all = vec![peer("direct", Kind::Direct)];
    if let Some(proxy) = &cli.weft_proxy {
        all.push(peer("weft", Kind::Weft(proxy.clone())));
    }
    for named in &cli.weft {
        let (name, path) =
            named.split_once('=').ok_or_else(|| Error::Usage(format!("--weft {named}: expected NAME=PATH")))?;
        all.push(peer(name, Kind::Weft(path.into())));
    }
    let http = Mode { http: true, sessions: ENVOY_SESSIONS };
    let tcp = |sessions| Mode { http: false, sessions };
    all.push(peer("envoy-1", Kind::Envoy(http, 1)));
    all.push(peer("envoy-2", Kind::Envoy(http, 2)));
    all.push(peer("envoy-tcp", Kind::Envoy(tcp(0), 2)));
    all.push(peer("envoy-tcp-resumed", Kind::Envoy(tcp(MANY_SESSIONS), 2)));
    for (variable, program) in std::env::vars_os() {
        if let Some(name) = variable.to_str().and_then(|name| name.strip_prefix(OTHER_PEER)) {
            all.push(peer(&name.to_lowercase(), Kind::Other(program.into())));
        }
    }
    if let Some(unknown) = cli.peers.iter().find(|name| all.iter().all(|peer| peer.name != **name)) {
        return Err(Error::Usage(format!("there is no peer {unknown}; see --list")));
    }
    all.retain(|peer| cli.peers.is_empty() || cli.peers.contains(&peer.name));
    Ok(all)
}

/// Those that need a lab; the one in memory is the caller's to remember.
fn chosen_cases(only: &[String]) -> Result<Vec<Case>, Error> {
    let known = |name: &String| name == handshakes::CASE || Case::ALL.iter().any(|case| case.name() == name);
    if let Some(unknown) = only.iter().find(|name| !known(name)) {
        return Err(Error::Usage(format!("there is no case {unknown}; see --list")));
    }
    Ok(Case::ALL.into_iter().filter(|case| only.is_empty() || only.iter().any(|name| name == case.name())).collect())
}
