//! What clients report, taken off their socket by a thread of its own: whatever the demo does meanwhile, no client waits.
//!
//! Invariant: reports are bounded in size and number; one that cannot be read is told, never lost in silence.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::app::client::tally::{Line, Tally};
use crate::lab;

/// The largest report.
const MAX_LINE: usize = 64 << 10;
/// Reports that wait to be counted.
const MAX_WAITING: usize = 4096;
/// The label of the last report.
const END: &str = "end";

/// A report and when it came.
#[derive(Clone, Debug)]
pub enum Report {
    /// Of the flow with this number.
    Tally(usize, Tally, Instant),
    /// Nobody can read it.
    Garbled,
}

/// The socket's end.
#[derive(Debug)]
pub struct Reports {
    path: PathBuf,
    waiting: Receiver<Report>,
}

impl Reports {
    /// Listens on a unix datagram socket at `path`.
    pub fn listen(path: &Path) -> Result<Self, lab::Error> {
        let file = |source| lab::Error::File { path: path.to_owned(), source };
        // From an earlier run with the same directory.
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).map_err(file)?;
        let (tell, waiting) = sync_channel(MAX_WAITING);
        let thread = std::thread::Builder::new().name("reports".to_owned());
        thread.spawn(move || receive(&socket, &tell)).map_err(file)?;
        Ok(Self { path: path.to_owned(), waiting })
    }

    /// Where clients send.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What comes within `wait`.
    pub fn within(&self, wait: Duration) -> impl Iterator<Item = Report> {
        let until = Instant::now() + wait;
        std::iter::from_fn(move || {
            let left = until.saturating_duration_since(Instant::now());
            match self.waiting.recv_timeout(left) {
                Ok(report) => Some(report),
                // The clock, or the thread has ended: then there is nothing to wait for, but no reason to spin.
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left);
                    None
                }
            }
        })
    }

    /// All that has been sent so far; to be called when no client runs any more.
    pub fn rest(self) -> Vec<Report> {
        let end = Line { label: END.to_owned(), tally: Tally::default() };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            let line = serde_json::to_vec(&end)?;
            socket.send_to(&line, &self.path)
        });
        // Without an end the thread would never close the channel.
        if sent.is_ok() { self.waiting.iter().collect() } else { self.waiting.try_iter().collect() }
    }
}

fn receive(socket: &UnixDatagram, tell: &SyncSender<Report>) {
    let mut buffer = vec![0; MAX_LINE];
    while let Ok(length) = socket.recv(&mut buffer) {
        let report = match buffer.get(..length).and_then(|line| serde_json::from_slice::<Line>(line).ok()) {
            Some(line) if line.label == END => return,
            Some(line) => match line.label.parse() {
                Ok(index) => Report::Tally(index, line.tally, Instant::now()),
                Err(_) => Report::Garbled,
            },
            None => Report::Garbled,
        };
        if tell.send(report).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_read_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let reports = Reports::listen(&dir.path().join("reports")).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        let line = Line { label: "3".to_owned(), tally: Tally { sent: 2, ..Tally::default() } };
        for _ in 0..100 {
            client.send_to(&serde_json::to_vec(&line).unwrap(), reports.path()).unwrap();
        }
        client.send_to(b"nonsense", reports.path()).unwrap();
        let rest = reports.rest();
        assert_eq!(rest.len(), 101);
        assert!(matches!(&rest[99], Report::Tally(3, tally, _) if tally.sent == 2));
        assert!(matches!(rest[100], Report::Garbled));
    }
}
