//! The access log: lines of JSON through a bounded channel to a thread that writes.
//!
//! Invariants
//! - The data path never waits for the log: a line that finds the channel full is dropped and counted.
//! - Refusals and failures are always logged, good requests by sample.
//! - What strangers write (methods, paths) is bounded in length and escaped.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use serde::Serialize;
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use super::Direction;

/// Lines that wait to be written.
const QUEUE: usize = 4096;
/// Bytes of a path that are logged.
const MAX_PATH: usize = 1024;
/// Bytes of a name that a TLS client asks for that are logged: all that a host name may have.
const MAX_SNI: usize = 253;
/// Bytes of a method that are logged.
const MAX_METHOD: usize = 32;
/// Bytes that are written at once.
const CHUNK: usize = 64 * 1024;

/// Where the log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere.
    None,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// A request or a connection of opaque bytes that has ended.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// Which way.
    pub direction: Direction,
    /// The client's verified identity, on the inbound side.
    pub peer: Option<&'a Identity>,
    /// The client's address.
    pub client: SocketAddr,
    /// The address that it called.
    pub destination: SocketAddr,
    /// The endpoint that it was given to.
    pub endpoint: Option<&'a str>,
    /// `None`: not HTTP.
    pub method: Option<&'a Method>,
    /// Without the query, which may hold secrets.
    pub path: Option<&'a str>,
    /// What the client got.
    pub status: Option<StatusCode>,
    /// Why it was refused or failed.
    pub reason: Option<Reason>,
    /// From beginning to end.
    pub took: Duration,
    /// Bytes from the client and to it, of a connection of opaque bytes.
    pub bytes: Option<(u64, u64)>,
    /// The name that the client of an application's own TLS asks for.
    pub sni: Option<&'a str>,
}

/// A line, as it is written.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    source: &'a str,
    client: SocketAddr,
    destination: SocketAddr,
    endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    reason: Option<Reason>,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<&'a str>,
    peer: Option<String>,
}

enum Message {
    Line(Vec<u8>),
    // Answered once all lines before it are written.
    Flush(SyncSender<()>),
}

/// The log's front.
#[derive(Debug)]
pub struct AccessLog {
    source: Arc<str>,
    sample: f64,
    queue: Option<SyncSender<Message>>,
    written: AtomicU64,
    dropped: AtomicU64,
}

impl AccessLog {
    /// Starts the thread that writes, unless the sink is none. `source` names our own workload.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread cannot be started.
    pub fn new(source: Arc<str>, sample: f64, sink: Sink) -> io::Result<Self> {
        let out: Option<Box<dyn Write + Send>> = match sink {
            Sink::None => None,
            Sink::Stdout => Some(Box::new(io::stdout())),
            Sink::File(path) => Some(Box::new(open(&path)?)),
        };
        let queue = match out {
            None => None,
            Some(out) => {
                let (sender, receiver) = sync_channel(QUEUE);
                std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&receiver, out))?;
                Some(sender)
            }
        };
        Ok(Self { source, sample, queue, ..Self::none() })
    }

    /// Logs nothing.
    pub fn none() -> Self {
        Self { source: "".into(), sample: 0.0, queue: None, written: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }

    /// Logs what is to be logged; never waits.
    pub fn write(&self, record: &AccessRecord<'_>) {
        let Some(queue) = &self.queue else { return };
        let failed = record.reason.is_some() || record.status.is_some_and(|status| status.is_server_error());
        if !failed && (self.sample <= 0.0 || fastrand::f64() >= self.sample) {
            return;
        }
        let Some(line) = self.line(record) else { return };
        match queue.try_send(Message::Line(line)) {
            Ok(()) => self.written.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped.fetch_add(1, Ordering::Relaxed),
        };
    }

    fn line(&self, record: &AccessRecord<'_>) -> Option<Vec<u8>> {
        let short = record.peer.map(Identity::short);
        let source = match (record.direction, &short) {
            (Direction::Outbound, _) => &*self.source,
            (Direction::Inbound, Some(peer)) => peer,
            (Direction::Inbound, None) => "unknown",
        };
        let line = Line {
            time: rfc3339(SystemTime::now()),
            direction: record.direction.label(),
            source,
            client: record.client,
            destination: record.destination,
            endpoint: record.endpoint,
            method: record.method.map(|method| bounded(method.as_str(), MAX_METHOD)),
            path: record.path.map(|path| bounded(path, MAX_PATH)),
            status: record.status.map(|status| status.as_u16()),
            reason: record.reason,
            duration_ms: (record.took.as_secs_f64() * 1e6).round() / 1e3,
            sent_bytes: record.bytes.map(|(sent, _)| sent),
            received_bytes: record.bytes.map(|(_, received)| received),
            sni: record.sni.map(|sni| bounded(sni, MAX_SNI)),
            peer: record.peer.map(ToString::to_string),
        };
        let mut bytes = serde_json::to_vec(&line).ok()?;
        bytes.push(b'\n');
        Some(bytes)
    }

    /// Waits until what was logged is written, at most `wait`.
    pub fn flush(&self, wait: Duration) {
        let (done, written) = sync_channel(1);
        if self.queue.as_ref().is_some_and(|queue| queue.try_send(Message::Flush(done)).is_ok()) {
            // Either it is written now, or the reader of the log has hung and must not keep us from stopping.
            let _ = written.recv_timeout(wait);
        }
    }

    /// Lines that were handed to the writer.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Lines that were dropped because the writer could not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("the access log {}: {error}", path.display())))
}

/// Writes until the front is gone. Lines that are there together are written together, whole lines always: the file may be shared.
fn write_all(receiver: &Receiver<Message>, mut out: impl Write) {
    let mut buffer = Vec::new();
    while let Ok(first) = receiver.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => buffer.extend_from_slice(&line),
                Message::Flush(done) => {
                    put(&mut out, &mut buffer);
                    // Who asked may have lost patience.
                    let _ = done.try_send(());
                }
            }
            next = if buffer.len() < CHUNK { receiver.try_recv().ok() } else { None };
        }
        put(&mut out, &mut buffer);
    }
}

fn put(out: &mut impl Write, buffer: &mut Vec<u8>) {
    if buffer.is_empty() {
        return;
    }
    if let Err(error) = out.write_all(buffer).and_then(|()| out.flush()) {
        tracing::warn!(%error, "lines of the access log could not be written");
    }
    buffer.clear();
}

/// The beginning of a text, at most `max` bytes, cut between characters.
fn bounded(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// UTC, to the millisecond: `2026-11-21T11:46:00.123Z`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a date by eras of 400 years that begin on 1 March (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AccessRecord<'static> {
        AccessRecord {
            direction: Direction::Inbound,
            peer: None,
            client: "10.0.0.1:4000".parse().unwrap(),
            destination: "10.0.0.2:8080".parse().unwrap(),
            endpoint: None,
            method: Some(&Method::GET),
            path: Some("/"),
            status: Some(StatusCode::OK),
            reason: None,
            took: Duration::from_micros(1_500),
            bytes: None,
            sni: None,
        }
    }

    fn logged(sample: f64, records: &[AccessRecord<'_>]) -> Vec<serde_json::Value> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let log = AccessLog::new("shop/web-1".into(), sample, Sink::File(path.clone())).unwrap();
        for record in records {
            log.write(record);
        }
        log.flush(Duration::from_secs(10));
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn failures_are_always_logged_and_the_rest_by_sample() {
        let broken = AccessRecord { status: Some(StatusCode::BAD_GATEWAY), ..record() };
        let denied = AccessRecord { status: Some(StatusCode::FORBIDDEN), reason: Some(Reason::NotAllowed), ..record() };
        let all = [record(), broken, denied];
        let lines = logged(0.0, &all);
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["status"], &lines[1]["reason"]), (&502.into(), &"not_allowed".into()));
        assert_eq!(logged(1.0, &all).len(), 3);
    }

    #[test]
    fn a_line_says_who_what_and_how_long() {
        let peer = Identity::new("cluster.local", "shop", "web").unwrap();
        let line = &logged(1.0, &[AccessRecord { peer: Some(&peer), ..record() }])[0];
        assert_eq!(line["peer"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(line["source"], "shop/web");
        assert_eq!(line["duration_ms"], 1.5);
        assert_eq!(line["direction"], "inbound");
        let out = AccessRecord { direction: Direction::Outbound, bytes: Some((3, 4)), method: None, ..record() };
        let line = &logged(1.0, &[out])[0];
        assert_eq!((&line["source"], &line["sent_bytes"]), (&"shop/web-1".into(), &3.into()));
        assert!(line.get("method").is_none());
    }

    #[test]
    fn what_strangers_write_is_bounded_and_stays_one_line() {
        let path = format!("/\u{1}\"\n{}", "ä".repeat(4000));
        let sni = path.trim_start_matches('/');
        let line = &logged(1.0, &[AccessRecord { path: Some(&path), sni: Some(sni), ..record() }])[0];
        let seen = line["path"].as_str().unwrap();
        assert!(seen.len() <= MAX_PATH && path.starts_with(seen));
        let seen = line["sni"].as_str().unwrap();
        assert!(seen.len() <= MAX_SNI && sni.starts_with(seen));
    }

    #[test]
    fn a_reader_that_hangs_costs_lines_and_no_time() {
        let (queue, _reader) = sync_channel(2);
        let log = AccessLog { queue: Some(queue), sample: 1.0, ..AccessLog::none() };
        for _ in 0..5 {
            log.write(&record());
        }
        assert_eq!((log.written(), log.dropped()), (2, 3));
    }

    #[test]
    fn times_are_utc() {
        let at = |seconds, millis: u32| rfc3339(SystemTime::UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_795_261_560, 999), "2026-11-21T11:46:00.999Z");
        assert_eq!(at(4_107_542_399, 0), "2100-02-28T23:59:59.000Z");
    }
}
