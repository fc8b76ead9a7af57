//! Processes of the lab: started by one thread, logged to files, ended by their own ids.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::Error;

/// Bytes of a log's end that an error shows.
const LOG_TAIL: usize = 4_000;

type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts processes. The kernel sends the parent-death signal when the *thread* that started a child ends, so
/// this one lives as long as the lab.
#[derive(Debug)]
pub struct Spawner(mpsc::Sender<Job>);

impl Spawner {
    /// Starts the thread.
    pub fn start() -> Result<Self, Error> {
        let (jobs, work) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("lab-spawner".to_owned());
        thread
            .spawn(move || work.into_iter().for_each(|job| job()))
            .map_err(|error| Error::Invalid(format!("cannot start a thread: {error}")))?;
        Ok(Self(jobs))
    }

    fn spawn(&self, mut command: Command) -> std::io::Result<Child> {
        let (tell, told) = mpsc::channel();
        let gone = || std::io::Error::other("the lab's thread is gone");
        self.0.send(Box::new(move || drop(tell.send(command.spawn())))).map_err(|_| gone())?;
        told.recv().map_err(|_| gone())?
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended(ExitStatus);

impl Ended {
    /// The exit code, unless a signal ended it.
    pub fn code(self) -> Option<i32> {
        self.0.code()
    }

    /// The signal that ended it.
    pub fn signal(self) -> Option<i32> {
        self.0.signal()
    }

    /// Whether it ended with code 0.
    pub fn success(self) -> bool {
        self.0.success()
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    /// Becomes readable when the process ends.
    handle: OwnedFd,
    ended: Option<Ended>,
}

impl Process {
    /// Starts a program whose output goes to `log`, errors too.
    pub(super) fn start(spawner: &Spawner, name: &str, mut command: Command, log: &Path) -> Result<Self, Error> {
        let open = |append: bool| File::options().create(true).append(append).open(log).map_err(Error::file(log));
        command.stdin(Stdio::null()).stdout(open(true)?).stderr(open(true)?);
        // A Ctrl-C on the terminal is for whoever runs the lab, who then ends the processes in order.
        command.process_group(0);
        let failed = |reason: String| Error::Process { name: name.to_owned(), reason, log: String::new() };
        let child = spawner.spawn(command).map_err(|error| failed(format!("cannot be started: {error}")))?;
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|error| failed(format!("cannot be watched: {error}")))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child, handle, ended: None })
    }

    /// Pod and part, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All of its output so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of its output, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let mut from = log.len().saturating_sub(LOG_TAIL);
        while !log.is_char_boundary(from) {
            from += 1;
        }
        format!("\n--- the end of {}\n{}---", self.log.display(), log.get(from..).unwrap_or_default())
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.poll_ended().is_none() {
            // It was not waited for yet, so the id is still its own.
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok().map(Ended);
        }
    }

    /// How it ended, if it has.
    pub fn poll_ended(&mut self) -> Option<Ended> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten().map(Ended);
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Waited`] if it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<Ended, Error> {
        let start = Instant::now();
        loop {
            if let Some(ended) = self.poll_ended() {
                return Ok(ended);
            }
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                let last = format!("it still runs{}", self.log_tail());
                return Err(Error::Waited { what: format!("the end of {}", self.name), waited: limit, last });
            }
            let timeout = Timespec::try_from(left).ok();
            let _ = poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], timeout.as_ref());
        }
    }

    /// The error that says that this process ended before it should, if it has.
    pub fn check_alive(&mut self) -> Result<(), Error> {
        match self.poll_ended() {
            None => Ok(()),
            Some(ended) => Err(Error::Process {
                name: self.name.clone(),
                reason: format!("ended before it should ({ended})"),
                log: self.log_tail(),
            }),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "{}: {}", self.name, self.log_tail());
        }
    }
}
