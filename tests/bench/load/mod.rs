//! The bench's own clients, which run in the client's pod as processes of their own: a load at a fixed rate, connections that are made
//! anew, connections that are held; and the echo that is no HTTP. One thread each, non-blocking sockets, `ppoll` with nanoseconds.

use std::net::SocketAddr;

use serde_json::json;

use super::Error;

mod connect;
mod connection;
mod echo;
mod hold;
mod open;
mod open_h2;

/// `weft-bench load ...`
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Requests at a fixed rate over keep-alive connections, evenly spaced, whatever happens to the earlier ones
    Open(open::Args),
    /// A new connection for each request, as fast as they go
    Connect(connect::Args),
    /// Connections that carry some requests and are then held
    Hold(hold::Args),
    /// Answers 16 bytes with the same 16 bytes and closes
    ServeEcho {
        /// Where
        port: u16,
    },
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct Report {
    completed: u64,
    failed: u64,
    seconds: f64,
    /// Of each that completed, in nanoseconds.
    times: Vec<u64>,
}

impl Report {
    fn json(mut self) -> serde_json::Value {
        self.times.sort_unstable();
        let at = |share: f64| {
            let index = ((self.times.len() as f64 * share).ceil() as usize).saturating_sub(1);
            self.times.get(index).map(|nanos| *nanos as f64 / 1e3)
        };
        json!({"completed": self.completed, "failed": self.failed, "seconds": self.seconds,
            "p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99), "max_us": at(1.0)})
    }
}

/// Runs one.
pub fn run(command: Command) -> Result<(), Error> {
    use std::io::Write as _;
    // Timers of ordinary threads are up to 50 us late, which would be most of what is measured.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let failed = |source: std::io::Error| Error::Program { name: "load".to_owned(), reason: source.to_string() };
    let report = match command {
        Command::Open(args) => open::run(&args).map_err(failed)?,
        Command::Connect(args) => connect::run(&args).map_err(failed)?,
        Command::Hold(args) => return hold::run(&args).map_err(failed),
        Command::ServeEcho { port } => return echo::serve(port).map_err(failed),
    };
    writeln!(std::io::stdout(), "{}", report.json()).map_err(failed)
}

/// A `GET /`.
fn request(to: SocketAddr, close: bool) -> Vec<u8> {
    let last = if close { "Connection: close\r\n" } else { "" };
    format!("GET / HTTP/1.1\r\nHost: {to}\r\nUser-Agent: weft-bench\r\nAccept: */*\r\n{last}\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let report = Report { completed: 4, times: vec![4_000, 1_000, 3_000, 2_000], ..Report::default() }.json();
        assert_eq!((report["p50_us"].as_f64(), report["p99_us"].as_f64()), (Some(2.0), Some(4.0)));
        assert!(Report::default().json()["p50_us"].is_null());
    }
}
