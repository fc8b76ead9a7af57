//! Tokens that were used: one mark each, where all replicas of control see it ([`directory`] or [`leases`]).
//!
//! Invariants
//! - One replica makes the mark, whoever else tries. It is kept for good before anybody is told.
//! - A mark is removed only an hour after its token has expired, so that a replica whose clock is slow never finds a used token unused.
//! - The number of marks is bounded; over the bound nothing is issued for a token that may be used once, rather than for one that may have
//!   been used before. Only tokens that our CA has signed get here.

pub mod directory;
pub mod leases;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use weft_certs::files;

const GRACE: Duration = Duration::from_hours(1);

/// A token that may be used by one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    /// Its number.
    pub id: String,
    /// Until when it has to be remembered.
    pub expires: SystemTime,
}

/// A token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UseError {
    /// Another key has used it.
    #[error(
        "the join token was used before, with another key; make a new one with `weft token` (if nobody of yours has used it, it was stolen)"
    )]
    Used,
    /// There is no room for more.
    #[error("{0} used tokens are remembered, which is the most; the oldest go an hour after they have expired")]
    Full(usize),
    /// It cannot be recorded.
    #[error("the token's use cannot be recorded in {place}: {what}")]
    Store {
        /// Where.
        place: String,
        /// Why, and what to do.
        what: String,
    },
}

/// What is remembered of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// SHA-256 of its number, hex.
    pub hash: String,
    /// When it expires, seconds since 1970.
    pub expires: u64,
}

impl From<&Once> for Mark {
    fn from(token: &Once) -> Self {
        Self { hash: files::checksum(token.id.as_bytes()), expires: seconds(token.expires) }
    }
}

/// Where marks are. All of it blocks, for a bounded time.
pub trait Marks: fmt::Debug + Send + Sync {
    /// Makes a mark that says by which key (a fingerprint of it). `None`: it was made now, and is kept for good; else by whom it was before.
    fn make(&self, mark: &Mark, key: &str) -> Result<Option<String>, UseError>;

    /// By which key the mark says, if there is one.
    fn made_by(&self, mark: &Mark) -> Result<Option<String>, UseError>;

    /// Removes marks of tokens that have expired before a time (seconds since 1970), all or some. How many are left.
    fn sweep(&self, before: u64) -> Result<usize, UseError>;

    /// How many may be there.
    fn most(&self) -> usize;

    /// How often they are swept while tokens are used.
    fn sweep_every(&self) -> Duration;
}

/// The tokens that were used.
#[derive(Debug)]
pub struct UsedTokens {
    marks: Arc<dyn Marks>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    marks: usize,
    swept: Option<SystemTime>,
}

impl UsedTokens {
    /// Those that are marked there.
    pub fn new(marks: Arc<dyn Marks>) -> Self {
        Self { marks, state: Mutex::default() }
    }

    /// Records that a token is used by a key (a fingerprint of it). Blocks.
    pub fn take(&self, token: &Once, key: &str, now: SystemTime) -> Result<(), UseError> {
        let (mark, most) = (Mark::from(token), self.marks.most());
        let by = if self.sweep(now)? < most {
            self.marks.make(&mark, key)?
        } else {
            Some(self.marks.made_by(&mark)?.ok_or(UseError::Full(most))?)
        };
        match by {
            None => {
                self.state.lock().marks += 1;
                Ok(())
            }
            Some(by) if by == key => Ok(()),
            Some(_) => Err(UseError::Used),
        }
    }

    /// How many are remembered, as far as this replica has seen.
    pub fn count(&self) -> usize {
        self.state.lock().marks
    }

    /// Forgets those that nobody would take any more, now and then.
    fn sweep(&self, now: SystemTime) -> Result<usize, UseError> {
        let every = self.marks.sweep_every();
        let mut state = self.state.lock();
        // A clock that was set back sweeps at once: that is harmless.
        let due = state.swept.is_none_or(|swept| now.duration_since(swept).map_or(true, |age| age >= every));
        if due {
            state.marks = self.marks.sweep(seconds(now).saturating_sub(GRACE.as_secs()))?;
            state.swept = Some(now);
        }
        Ok(state.marks)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
