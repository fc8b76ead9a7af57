//! Load programs of others: how they are called, and how their reports read.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use weft::lab::Pod;
use weft_tests::tools;

use super::Error;

/// What may run longer than the load itself: connecting, and saying what came of it.
const GRACE: u64 = 20;

/// Where everything is that a run starts.
#[derive(Debug)]
pub struct Programs {
    /// This program, which is also the lab's helper and the load's clients.
    pub bench: PathBuf,
    /// weft-control.
    pub control: PathBuf,
    /// The server's application.
    pub nginx: PathBuf,
    /// Envoy.
    pub envoy: Option<PathBuf>,
    /// Load over HTTP/1.1.
    pub wrk: Option<PathBuf>,
    /// Load over HTTP/2.
    pub h2load: Option<PathBuf>,
    /// Load over TCP.
    pub iperf: Option<PathBuf>,
}

impl Programs {
    /// Looks for them.
    pub fn find(control: PathBuf) -> Result<Self, Error> {
        let bench = std::env::current_exe().map_err(|source| Error::File { path: "/proc/self/exe".into(), source })?;
        Ok(Self {
            bench,
            control,
            nginx: tools::find("nginx").ok_or_else(|| Error::missing("nginx"))?,
            envoy: tools::find("envoy"),
            wrk: tools::find("wrk"),
            h2load: tools::find("h2load"),
            iperf: tools::find("iperf3"),
        })
    }
}

/// What a load came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Requests (or connections) that were answered as they should.
    pub completed: f64,
    /// Those that were not.
    pub failed: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Median and 99th percentile of the time to the answer, in microseconds, where the program says it.
    pub p50_us: Option<f64>,
    /// See there.
    pub p99_us: Option<f64>,
}

/// Runs a load program in a pod, at most for its own time and some more; gives what it wrote.
pub fn run(pod: &Pod, program: &Path, args: &[String], span: Duration) -> Result<String, Error> {
    // timeout(1) bounds what a program's own option does not.
    let limit = (span.as_secs() + GRACE).to_string();
    let mut all = vec!["--kill-after=2".to_owned(), limit, program.display().to_string()];
    all.extend_from_slice(args);
    let output = pod.output("timeout", &all)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let reason = format!("{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Err(Error::Program { name: program.display().to_string(), reason })
}

/// wrk, closed loop over keep-alive connections.
pub fn wrk(pod: &Pod, programs: &Programs, to: SocketAddr, connections: u32, span: Duration) -> Result<Load, Error> {
    let program = programs.wrk.as_ref().ok_or_else(|| Error::missing("wrk"))?;
    let args = [
        "--threads=2".to_owned(),
        format!("--connections={connections}"),
        format!("--duration={}s", span.as_secs().max(1)),
        "--latency".to_owned(),
        format!("http://{to}/"),
    ];
    let text = run(pod, program, &args, span)?;
    read_wrk(&text).ok_or(Error::Program { name: "wrk".to_owned(), reason: text })
}

/// h2load, closed loop, HTTP/2 by prior knowledge.
pub fn h2load(
    pod: &Pod,
    programs: &Programs,
    to: SocketAddr,
    (connections, streams): (u32, u32),
    span: Duration,
) -> Result<Load, Error> {
    let program = programs.h2load.as_ref().ok_or_else(|| Error::missing("h2load"))?;
    let args = [
        format!("--clients={connections}"),
        format!("--max-concurrent-streams={streams}"),
        format!("--duration={}", span.as_secs().max(1)),
        format!("http://{to}/"),
    ];
    let text = run(pod, program, &args, span)?;
    read_h2load(&text).ok_or(Error::Program { name: "h2load".to_owned(), reason: text })
}

/// iperf3 from the client to the server; gives gigabits a second that arrived, and the bytes.
pub fn iperf(
    pod: &Pod,
    programs: &Programs,
    to: SocketAddr,
    streams: u32,
    span: Duration,
) -> Result<(f64, f64), Error> {
    let program = programs.iperf.as_ref().ok_or_else(|| Error::missing("iperf3"))?;
    let args = [
        "--client".to_owned(),
        to.ip().to_string(),
        format!("--port={}", to.port()),
        format!("--parallel={streams}"),
        format!("--time={}", span.as_secs().max(1)),
        "--json".to_owned(),
    ];
    let text = run(pod, program, &args, span)?;
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let received = &report["end"]["sum_received"];
    match (received["bits_per_second"].as_f64(), received["bytes"].as_f64()) {
        (Some(rate), Some(bytes)) => Ok((rate / 1e9, bytes)),
        _ => Err(Error::Program { name: "iperf3".to_owned(), reason: text }),
    }
}

fn read_wrk(text: &str) -> Option<Load> {
    let mut load = Load::default();
    for line in text.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["50%", time] => load.p50_us = micros(time),
            ["99%", time] => load.p99_us = micros(time),
            [count, "requests", "in", time, ..] => {
                load.completed = count.parse().ok()?;
                load.seconds = micros(time.trim_end_matches(','))? / 1e6;
            }
            ["Socket", "errors:", errors @ ..] => {
                load.failed +=
                    errors.iter().filter_map(|word| word.trim_end_matches(',').parse::<f64>().ok()).sum::<f64>();
            }
            ["Non-2xx", "or", "3xx", "responses:", count] => {
                let count: f64 = count.parse().ok()?;
                load.failed += count;
                load.completed -= count;
            }
            _ => {}
        }
    }
    (load.seconds > 0.0).then_some(load)
}

fn read_h2load(text: &str) -> Option<Load> {
    let mut load = Load::default();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("finished in ") {
            load.seconds = micros(rest.split(',').next()?)? / 1e6;
        } else if let Some(rest) = line.strip_prefix("status codes: ") {
            load.completed = rest.split_whitespace().next()?.parse().ok()?;
        } else if let Some(rest) = line.strip_prefix("requests: ") {
            let count =
                |what: &str| rest.split(", ").find_map(|part| part.strip_suffix(what)?.trim().parse::<f64>().ok());
            load.failed = count(" failed")?;
        }
    }
    (load.seconds > 0.0).then_some(load)
}

/// `1.90ms`, `250us`, `5.01s`, `1.2m`, in microseconds.
fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_of_wrk_is_read() {
        let text = "Running 5s test @ http://10.0.0.1:80/\n  Latency Distribution\n     50%    1.90ms\n     99%  870.00us\n  \
                    12345 requests in 5.01s, 1.20MB read\n  Socket errors: connect 0, read 1, write 0, timeout 2\n  \
                    Non-2xx or 3xx responses: 45\nRequests/sec:   2464.00\n";
        let load = read_wrk(text).unwrap();
        assert_eq!(
            load,
            Load { completed: 12300.0, failed: 48.0, seconds: 5.01, p50_us: Some(1900.0), p99_us: Some(870.0) }
        );
        assert_eq!(read_wrk("unable to connect"), None);
    }

    #[test]
    fn the_report_of_h2load_is_read() {
        let text = "finished in 5.00s, 14.20 req/s, 1MB/s\nrequests: 71 total, 90 started, 71 done, 70 succeeded, 1 failed, 0 errored, 0 timeout\n\
                    status codes: 70 2xx, 0 3xx, 0 4xx, 1 5xx\n";
        let load = read_h2load(text).unwrap();
        assert_eq!((load.completed, load.failed, load.seconds), (70.0, 1.0, 5.0));
    }
}
