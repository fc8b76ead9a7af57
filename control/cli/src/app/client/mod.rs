//! A plain client that sends at an even rate over a few connections and tells what became of it.
//!
//! Invariants: it knows nothing of the mesh (identities that it counts are what the *server* said it saw in a header); every
//! operation ends within [`TIMEOUT`]; counts are kept in bounded space, whatever it sends for how long.

mod grpc;
mod http;
mod redis;
pub mod tally;
mod tcp;

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

use self::tally::{Fate, Tally};
use crate::exit::Failure;
use crate::output;

/// The longest that one operation may take; then it has failed.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// What it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// HTTP/1.1 over kept connections.
    Http,
    /// gRPC: `Say`, and every tenth time `Repeat`.
    Grpc,
    /// One connection an operation: greeting, one line, its echo.
    Tcp,
    /// SET and GET over a kept connection.
    Redis,
}

/// What to send, where, how fast, how long.
#[derive(ClapArgs, Clone, Debug)]
pub struct Args {
    /// What to speak
    #[arg(value_enum)]
    pub kind: Kind,
    /// HOST:PORT; the host is an address or stands in /etc/hosts
    pub to: String,
    /// HTTP method
    #[arg(long, default_value = "GET")]
    pub method: ::http::Method,
    /// HTTP path and query
    #[arg(long, default_value = "/")]
    pub path: String,
    /// HTTP header field or gRPC metadata to send
    #[arg(long, value_name = "NAME:VALUE", value_parser = header)]
    pub header: Vec<(::http::HeaderName, ::http::HeaderValue)>,
    /// Bytes of body to send
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub body: usize,
    /// Operations a second, over all connections
    #[arg(long, default_value_t = 50.0, value_parser = positive)]
    pub rate: f64,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: u32,
    /// Seconds; until it is stopped if absent
    #[arg(long = "for", value_name = "SECONDS", value_parser = positive)]
    pub for_s: Option<f64>,
    /// Count the values of this header field as the server says it saw it
    #[arg(long, value_name = "NAME")]
    pub seen: Option<String>,
    /// Milliseconds between the lines
    #[arg(long, value_name = "MS", default_value_t = 100)]
    pub every: u64,
    /// Send the lines to this unix datagram socket instead of standard output
    #[arg(long, value_name = "SOCKET")]
    pub report: Option<std::path::PathBuf>,
    /// A word that each line carries
    #[arg(long, default_value = "")]
    pub label: String,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("must be a number above 0".to_owned()),
    }
}

/// Reads `NAME:VALUE`.
///
/// # Errors
/// No colon, or a character that header fields cannot have.
pub fn header(text: &str) -> Result<(::http::HeaderName, ::http::HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as NAME:VALUE")?;
    let name = name.trim().parse().map_err(|_| format!("`{name}` is no name of a header field"))?;
    let value = value.trim().parse().map_err(|_| format!("`{value}` is no value of a header field"))?;
    Ok((name, value))
}

/// What an operation gave.
pub(crate) struct Answer {
    fate: Fate,
    version: Option<String>,
    seen: Option<String>,
}

/// Sends until SIGTERM or until the time is up, and prints a [`Tally`] an interval.
pub async fn run(args: Args) -> Result<(), Failure> {
    let to = address(&args.to)?;
    let mut stop = super::serve::stop()?;
    let args = Arc::new(args);
    let total = Arc::new(Mutex::new(Tally::default()));
    let until = args.for_s.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let mut workers = tokio::task::JoinSet::new();
    for index in 0..args.connections {
        workers.spawn(worker(args.clone(), to, index, total.clone(), until));
    }
    let report = Report::open(&args)?;
    let mut lines = tokio::time::interval(Duration::from_millis(args.every.max(10)));
    loop {
        tokio::select! {
            _ = lines.tick() => report.tell(&total),
            _ = stop.wait_for(|stopping| *stopping) => break,
            done = workers.join_next() => if done.is_none() { break },
        }
    }
    // What is under way is given up and not counted: nobody waits for it any more.
    workers.shutdown().await;
    report.tell(&total);
    Ok(())
}

/// Where the lines go.
struct Report {
    label: String,
    to: Option<UnixDatagram>,
}

impl Report {
    fn open(args: &Args) -> Result<Self, Failure> {
        let connect = |path: &std::path::PathBuf| {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            Ok(socket)
        };
        let failed = |error: std::io::Error| Failure::here(format!("cannot report: {error}"));
        let to = args.report.as_ref().map(connect).transpose().map_err(failed)?;
        Ok(Self { label: args.label.clone(), to })
    }

    fn tell(&self, total: &Mutex<Tally>) {
        let tally = std::mem::take(&mut *total.lock());
        if tally.is_empty() {
            return;
        }
        let line = tally::Line { label: self.label.clone(), tally };
        match &self.to {
            None => output::json(&line),
            Some(socket) => {
                let sent = serde_json::to_vec(&line).map(|line| socket.send(&line));
                if !matches!(sent, Ok(Ok(_))) {
                    output::say("weft app client: a report was lost");
                }
            }
        }
    }
}

enum Speaker {
    Http(http::Speaker),
    Grpc(grpc::Speaker),
    Tcp(tcp::Speaker),
    Redis(redis::Speaker),
}

async fn worker(args: Arc<Args>, to: SocketAddr, index: u32, total: Arc<Mutex<Tally>>, until: Option<Instant>) {
    let mut speaker = match args.kind {
        Kind::Http => Speaker::Http(http::Speaker::new(args.clone(), to)),
        Kind::Grpc => Speaker::Grpc(grpc::Speaker::new(args.clone(), to)),
        Kind::Tcp => Speaker::Tcp(tcp::Speaker::new(to)),
        Kind::Redis => Speaker::Redis(redis::Speaker::new(to, index)),
    };
    let period = Duration::from_secs_f64(f64::from(args.connections) / args.rate);
    // Spread over the first period: an even rate, not a burst a period.
    let first = Instant::now() + period.mul_f64(f64::from(index) / f64::from(args.connections));
    let mut turns = tokio::time::interval_at(first, period);
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        turns.tick().await;
        let start = Instant::now();
        if until.is_some_and(|until| start >= until) {
            return;
        }
        let calling = async {
            match &mut speaker {
                Speaker::Http(speaker) => speaker.call().await,
                Speaker::Grpc(speaker) => speaker.call().await,
                Speaker::Tcp(speaker) => speaker.call().await,
                Speaker::Redis(speaker) => speaker.call().await,
            }
        };
        let answer = match tokio::time::timeout(TIMEOUT, calling).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer in {} s", TIMEOUT.as_secs())),
        };
        total.lock().record(start.elapsed(), answer);
    }
}

/// The address of `HOST:PORT`: a literal, or the first line of `/etc/hosts` with that name.
fn address(to: &str) -> Result<SocketAddr, Failure> {
    if let Ok(addr) = to.parse() {
        return Ok(addr);
    }
    let (host, port) = to
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
        .ok_or_else(|| Failure::usage(format!("`{to}` is not HOST:PORT")))?;
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    in_hosts(&hosts, host)
        .map(|ip| SocketAddr::new(ip, port))
        .ok_or_else(|| Failure::input(format!("`{host}` is no address and does not stand in /etc/hosts")))
}

fn in_hosts(hosts: &str, host: &str) -> Option<IpAddr> {
    hosts.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lines_are_read_as_written() {
        let hosts = "127.0.0.1 localhost\n# 10.0.0.9 web\n10.0.0.1 web.shop web # the front\n";
        assert_eq!(in_hosts(hosts, "WEB"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(in_hosts(hosts, "the"), None);
        assert_eq!(in_hosts(hosts, "10.0.0.1"), None);
    }

    #[test]
    fn a_header_has_a_colon() {
        assert!(header("a").is_err());
        assert!(header("a b:c").is_err());
        assert_eq!(header("X-A: b:c").unwrap().1, "b:c");
    }
}
