//! What survives a restart: in the state directory, the last good version of each object, as it was written. `objects` has those of the files,
//! `cluster-objects` those of an API server: each is written by its source alone, and not before that one knows what it has.
//!
//! A control that starts with a broken object serves the version that was good before (see the sources' `store`). What is kept is text, read
//! again by the very code that reads the source: there is no second format of objects that could come to mean something else.
//! Format: [`Saved`] in protobuf's encoding, with a checksum ([`Form`]). Only documents with an object in force are in it.
//!
//! Invariants
//! - At every moment, a crash included, the name holds either the old objects or the new ones.
//! - A file that is damaged, too large or of another format is not used, and does not keep control from starting.
//! - What cannot be brought up to date is removed: a policy from before the last good one could let in whom that one shut out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus::IntCounter;
use prost::Message;
use weft_certs::files::{self, FileError, Form};

use super::files::MAX_TOTAL_BYTES;
use super::files::object::{Key, Written};

/// All manifests that are read, and as much again for versions that only live here.
const FORM: Form = Form { name: "weft-objects-2", max_bytes: 2 * MAX_TOTAL_BYTES };
/// Least time between two writes; changes meanwhile become one.
const REST: Duration = Duration::from_millis(200);
/// Longest time between two writes, however slow the disk is.
const MAX_REST: Duration = Duration::from_secs(10);
/// A write that failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(10);

/// Where the last good versions are kept, and who counts what goes wrong with it.
#[derive(Clone, Debug)]
pub struct Keep {
    /// The state directory; made (0700) at the first write.
    pub dir: PathBuf,
    /// Reads and writes of it that failed.
    pub errors: IntCounter,
}

/// What is saved.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Saved {
    #[prost(message, repeated, tag = "1")]
    pub documents: Vec<Entry>,
}

/// A document that has objects in force.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    /// As people know the file; empty: it is of an API server.
    #[prost(string, tag = "1")]
    pub file: String,
    /// Lines of the file before the document.
    #[prost(uint32, tag = "2")]
    pub lines_before: u32,
    #[prost(string, tag = "3")]
    pub text: String,
    /// Those of its objects that are meant, as `Kind/NAMESPACE/NAME`: of the others another version is in force.
    #[prost(string, repeated, tag = "4")]
    pub objects: Vec<String>,
}

/// Why saved objects are not used, or could not be saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "{0}; it is ignored and will be written anew: objects that are broken now have no good version to fall back on"
    )]
    Load(#[from] FileError),
    #[error(
        "{path} cannot be written: {error}; mend the state directory, or last good versions do not survive a restart"
    )]
    Write { path: PathBuf, error: io::Error },
}

/// Objects in force at one moment, to be saved: the file, a document, and those of its objects that are meant.
pub(super) type Snapshot = Vec<(Arc<str>, Arc<Written>, Vec<Key>)>;

impl Saved {
    fn of(snapshot: &Snapshot) -> Self {
        let entry = |(file, written, keys): &(Arc<str>, Arc<Written>, Vec<Key>)| Entry {
            file: file.as_ref().to_owned(),
            lines_before: written.lines_before,
            text: written.text.clone(),
            objects: keys.iter().map(ToString::to_string).collect(),
        };
        Self { documents: snapshot.iter().map(entry).collect() }
    }
}

/// Reads what was saved; nothing if there is nothing.
pub(super) fn load(dir: &Path, file: &str) -> Result<Saved, Error> {
    let path = dir.join(file);
    let Some(found) = FORM.read(&path)? else { return Ok(Saved::default()) };
    Saved::decode(&found.body[..]).map_err(|_| FileError::Damaged { path, what: "it does not decode" }.into())
}

/// What was saved; `None`, said and counted, if it cannot be used.
pub(super) fn recall(keep: &Keep, file: &str) -> Option<Saved> {
    let saved = load(&keep.dir, file);
    saved
        .inspect_err(|error| {
            keep.errors.inc();
            tracing::warn!("{error}");
        })
        .ok()
}

fn save(path: PathBuf, body: &[u8]) -> Result<(), Error> {
    FORM.write(&path, body).map_err(|error| {
        // Best effort: the first error is the one worth telling.
        let _ = files::remove(&path);
        Error::Write { path, error }
    })
}

/// Tells whether something else is to be written than before.
fn print(body: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(body)
}

/// Where to take a snapshot from; asked on the thread that writes it.
type Take = Box<dyn FnOnce() -> Snapshot + Send>;

/// Writes what it is given on a thread of its own, the newest only: a slow disk holds nobody up. Dropped, it writes what is left
/// and waits for that.
#[derive(Debug)]
pub(super) struct Saver {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Inbox {
    todo: Mutex<Todo>,
    news: Condvar,
}

#[derive(Default)]
struct Todo {
    newest: Option<Take>,
    closed: bool,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Saver {
    /// Writes that file of the state directory. `before` is what it holds; `None` if it is to be written in any case.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(keep: Keep, file: &'static str, before: Option<&Saved>) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let (theirs, written) = (Arc::clone(&inbox), before.map(|before| print(&before.encode_to_vec())));
        let thread = std::thread::Builder::new().name(file.to_owned());
        let thread = Some(thread.spawn(move || theirs.work(&keep, file, written))?);
        Ok(Self { inbox, thread })
    }

    pub fn save(&self, take: impl FnOnce() -> Snapshot + Send + 'static) {
        self.inbox.todo.lock().newest = Some(Box::new(take));
        self.inbox.news.notify_all();
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.inbox.todo.lock().closed = true;
        self.inbox.news.notify_all();
        // If it has panicked, the panic was said where it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Inbox {
    fn work(&self, keep: &Keep, file: &str, mut held: Option<u128>) {
        while let Some(take) = self.next() {
            let start = Instant::now();
            let snapshot = take();
            let body = Saved::of(&snapshot).encode_to_vec();
            let print = print(&body);
            if held == Some(print) {
                continue;
            }
            match save(keep.dir.join(file), &body) {
                Ok(()) => {
                    held = Some(print);
                    self.rest((start.elapsed() * 9).clamp(REST, MAX_REST));
                }
                Err(error) => {
                    keep.errors.inc();
                    tracing::warn!("{error}");
                    held = None;
                    self.rest(RETRY);
                    let mut todo = self.todo.lock();
                    if !todo.closed {
                        todo.newest.get_or_insert(Box::new(|| snapshot));
                    }
                }
            }
        }
    }

    /// Waits for something to write; `None` if nothing will come any more.
    fn next(&self) -> Option<Take> {
        let mut todo = self.todo.lock();
        loop {
            if let Some(newest) = todo.newest.take() {
                return Some(newest);
            }
            if todo.closed {
                return None;
            }
            self.news.wait(&mut todo);
        }
    }

    /// Rests so long, or until there is nobody left to wait for.
    fn rest(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut todo = self.todo.lock();
        while !todo.closed && !self.news.wait_until(&mut todo, until).timed_out() {}
    }
}
