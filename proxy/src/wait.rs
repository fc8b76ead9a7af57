//! `weft-proxy wait`: returns when the sidecar of this pod is ready. The `postStart` hook of a classic sidecar runs it, so that the containers
//! after it are started into a mesh that works.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// For one question.
const QUESTION: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const MAX_ANSWER: u64 = 4096;

/// Wait until the sidecar of this pod is ready.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The sidecar's health port.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15021")]
    pub health: SocketAddr,
    /// For so long at most: 60s, 2m.
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = seconds)]
    pub for_: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        _ => return Err(format!("`{text}` is no duration; write it like 60s or 2m")),
    };
    let number: u32 = digits.parse().map_err(|_| format!("`{text}` is no duration; write it like 60s or 2m"))?;
    Ok(Duration::from_secs(u64::from(number) * factor))
}

/// Exit code 0 once it is ready, 1 if it was not in time; the last reason is on standard error.
pub fn main(args: &Args) -> ExitCode {
    let end = Instant::now() + args.for_;
    loop {
        let why = match ask(args.health) {
            Ok(None) => return ExitCode::SUCCESS,
            Ok(Some(why)) => why,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            let _ = writeln!(std::io::stderr(), "the sidecar is not ready after {} s: {why}", args.for_.as_secs());
            return ExitCode::FAILURE;
        }
        std::thread::sleep(PAUSE);
    }
}

// Why it is not ready, if it is not.
fn ask(health: SocketAddr) -> std::io::Result<Option<String>> {
    let mut stream = TcpStream::connect_timeout(&health, QUESTION)?;
    stream.set_read_timeout(Some(QUESTION))?;
    stream.set_write_timeout(Some(QUESTION))?;
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: sidecar\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&answer);
    Ok(Some(text.rsplit("\r\n").next().unwrap_or_default().trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_minutes() {
        assert_eq!(seconds("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(seconds("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "s", "2", "2h", "-1s", "99999999999s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
