//! The cases: what load is sent, and which figures are taken of it. Their names are stable; docs/performance.md explains them.

use std::time::Duration;

use serde_json::Value;

use super::account::Usage;
use super::arena::{Arena, Both, ECHO, H2C, HTTP, IPERF};
use super::peers::{Kind, Peer};
use super::programs::{self, Load, Programs, run};
use super::table::{Metric, Results};
use super::{Error, memory};

/// The headline: of both proxies together.
pub const CPU: Metric = Metric::less("cpu", "us/request");
const CPU_CLIENT: Metric = Metric::less("cpu client's proxy", "us/request");
const CPU_SERVER: Metric = Metric::less("cpu server's proxy", "us/request");
const SWITCHES: Metric = Metric::less("context switches", "1/request");
const RATE: Metric = Metric::more("rate", "1/s");
const P50: Metric = Metric::less("p50", "us");
const P99: Metric = Metric::less("p99", "us");
const ADDED_P50: Metric = Metric::less("added p50", "us");
const ADDED_P99: Metric = Metric::less("added p99", "us");
const GBITS: Metric = Metric::more("throughput", "Gbit/s");
const CPU_PER_GBIT: Metric = Metric::less("cpu", "ms/Gbit");
const FAILED: Metric = Metric::less("failed", "requests");

/// Connections of the closed loop over HTTP/1.1 and of that which connects anew each time.
const CONNECTIONS: u32 = 32;
/// Connections and streams on each over HTTP/2.
const STREAMS: (u32, u32) = (8, 32);
/// Requests a second at a fixed rate, and the connections of HTTP/1.1 that carry them.
const PACE: u32 = 1_000;
const CONNECTIONS_PACED: u32 = 16;
/// What is sent before each measurement, to fill pools and tables.
const WARM_UP: Duration = Duration::from_secs(1);
/// Failures that end a case: more than this share.
const MAX_FAILED: f64 = 0.001;

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// 32 keep-alive connections as fast as they go.
    Http1,
    /// 8 connections with 32 streams each, as fast as they go.
    H2,
    /// 1,000 requests a second, evenly spaced, whatever happens to the earlier ones.
    Paced,
    /// The same over HTTP/2.
    PacedH2,
    /// A new connection for each request.
    ConnectHttp,
    /// A new connection for each exchange of bytes that are no HTTP.
    ConnectOpaque,
    /// iperf3, so many streams.
    Bulk(u32),
    /// Resident memory.
    Memory,
}

impl Case {
    /// All, in the order in which they run.
    pub const ALL: [Self; 9] = [
        Self::Http1,
        Self::H2,
        Self::Paced,
        Self::PacedH2,
        Self::ConnectHttp,
        Self::ConnectOpaque,
        Self::Bulk(1),
        Self::Bulk(8),
        Self::Memory,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1-saturated",
            Self::H2 => "h2-grpc-saturated",
            Self::Paced => "http1-1000qps",
            Self::PacedH2 => "h2-grpc-1000qps",
            Self::ConnectHttp => "new-connection-http",
            Self::ConnectOpaque => "new-connection-opaque",
            Self::Bulk(1) => "tcp-bulk-1",
            Self::Bulk(_) => "tcp-bulk-8",
            Self::Memory => "memory",
        }
    }

    /// Whether a peer takes part: two Envoys that read HTTP are the same as its TCP proxy where there is none, and how TLS sessions are
    /// resumed matters to new connections only.
    pub fn includes(self, peer: &Peer) -> bool {
        let resumes = matches!(&peer.kind, Kind::Envoy(mode, _) if !mode.http && mode.sessions > 0);
        let reads_http = matches!(&peer.kind, Kind::Envoy(mode, _) if mode.http);
        match self {
            Self::Http1 | Self::H2 | Self::Paced | Self::PacedH2 => !resumes,
            Self::ConnectHttp => true,
            Self::ConnectOpaque => !reads_http,
            Self::Bulk(_) => !resumes && !reads_http,
            Self::Memory => !resumes && !matches!(peer.kind, Kind::Direct),
        }
    }

    /// Measures it once.
    pub fn run(
        self,
        peer: &Peer,
        arena: &Arena,
        programs: &Programs,
        span: Duration,
        results: &mut Results,
    ) -> Result<(), Error> {
        let mut round = Round { case: self.name(), peer: &peer.name, arena, programs, results };
        match self {
            Self::Http1 => round.requests(span, |round, span| {
                programs::wrk(&round.arena.client, round.programs, round.arena.target(HTTP), CONNECTIONS, span)
            }),
            Self::H2 => round.requests(span, |round, span| {
                programs::h2load(&round.arena.client, round.programs, round.arena.target(H2C), STREAMS, span)
            }),
            Self::Paced => round.requests(span, |round, span| round.paced(HTTP, CONNECTIONS_PACED, &[], span)),
            Self::PacedH2 => round.requests(span, |round, span| round.paced(H2C, STREAMS.0, &["--h2"], span)),
            Self::ConnectHttp => round.requests(span, |round, span| {
                round.own_load("connect", HTTP, &["--connections", &CONNECTIONS.to_string()], span)
            }),
            Self::ConnectOpaque => round.requests(span, |round, span| {
                round.own_load("connect", ECHO, &["--opaque", "--connections", &CONNECTIONS.to_string()], span)
            }),
            Self::Bulk(streams) => round.bulk(streams, span),
            Self::Memory => memory::measure(peer, programs, span, results),
        }
    }
}

/// What the figures of a run give only together: latency that is not the server's own.
pub fn derive(results: &mut Results, peers: &[String]) {
    let cases = [Case::Paced.name(), Case::PacedH2.name()];
    let pairs = cases.iter().flat_map(|case| [(*case, P50, ADDED_P50), (*case, P99, ADDED_P99)]);
    for (case, measured, added) in pairs {
        let Some(direct) = results.median(case, "direct", measured.name) else { continue };
        for peer in peers.iter().filter(|peer| *peer != "direct") {
            if let Some(value) = results.median(case, peer, measured.name) {
                results.add(case, peer, added, value - direct);
            }
        }
    }
}

/// One case of one peer, once.
struct Round<'a> {
    case: &'static str,
    peer: &'a str,
    arena: &'a Arena,
    programs: &'a Programs,
    results: &'a mut Results,
}

impl Round<'_> {
    fn add(&mut self, metric: Metric, value: f64) {
        self.results.add(self.case, self.peer, metric, value);
    }

    /// Sends a load twice, first to warm up, and takes what the proxies used for the second.
    fn requests(&mut self, span: Duration, send: impl Fn(&Self, Duration) -> Result<Load, Error>) -> Result<(), Error> {
        send(self, WARM_UP)?;
        let before = self.arena.usage()?;
        let load = send(self, span)?;
        let used = since(self.arena.usage()?, before);
        if load.completed < 1.0 || load.failed > load.completed * MAX_FAILED {
            let reason = format!("{} requests were answered, {} failed", load.completed, load.failed);
            return Err(Error::Program { name: format!("{} of {}", self.case, self.peer), reason });
        }
        if self.arena.has_proxies() {
            self.add(CPU, (used.client.cpu_us + used.server.cpu_us) / load.completed);
            self.add(CPU_CLIENT, used.client.cpu_us / load.completed);
            self.add(CPU_SERVER, used.server.cpu_us / load.completed);
            self.add(SWITCHES, (used.client.switches + used.server.switches) / load.completed);
        }
        self.add(RATE, load.completed / load.seconds);
        for (metric, value) in [(P50, load.p50_us), (P99, load.p99_us)] {
            if let Some(value) = value {
                self.add(metric, value);
            }
        }
        if load.failed > 0.0 {
            self.add(FAILED, load.failed);
        }
        Ok(())
    }

    /// The load at a fixed rate.
    fn paced(&self, port: u16, connections: u32, flags: &[&str], span: Duration) -> Result<Load, Error> {
        let (rate, connections) = (PACE.to_string(), connections.to_string());
        let flags = [&["--rate", &rate, "--connections", &connections], flags].concat();
        self.own_load("open", port, &flags, span)
    }

    /// A load of this program's own, which reports in JSON.
    fn own_load(&self, kind: &str, port: u16, flags: &[&str], span: Duration) -> Result<Load, Error> {
        let mut args: Vec<String> = ["load", kind].map(str::to_owned).to_vec();
        args.extend(["--to".to_owned(), self.arena.target(port).to_string()]);
        args.extend(["--seconds".to_owned(), span.as_secs().to_string()]);
        args.extend(flags.iter().map(ToString::to_string));
        let text = run(&self.arena.client, &self.programs.bench, &args, span)?;
        let report: Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |name: &str| report[name].as_f64();
        let (Some(completed), Some(failed), Some(seconds)) = (field("completed"), field("failed"), field("seconds"))
        else {
            return Err(Error::Program { name: format!("load {kind}"), reason: text });
        };
        Ok(Load { completed, failed, seconds, p50_us: field("p50_us"), p99_us: field("p99_us") })
    }

    fn bulk(&mut self, streams: u32, span: Duration) -> Result<(), Error> {
        let before = self.arena.usage()?;
        let (rate, bytes) =
            programs::iperf(&self.arena.client, self.programs, self.arena.target(IPERF), streams, span)?;
        let used = since(self.arena.usage()?, before);
        self.add(GBITS, rate);
        if self.arena.has_proxies() {
            self.add(CPU_PER_GBIT, (used.client.cpu_us + used.server.cpu_us) / 1e3 / (bytes * 8.0 / 1e9));
        }
        Ok(())
    }
}

fn since(now: Both<Usage>, before: Both<Usage>) -> Both<Usage> {
    Both { client: now.client.since(before.client), server: now.server.since(before.server) }
}
