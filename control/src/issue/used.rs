//! Tokens that were used: a directory beside the CA's keys, which all replicas of control share.
//!
//! ```text
//! DIR/EXPIRES-HASH      one file a token: when it expires (seconds since 1970), SHA-256 of its number; in it, the key it was used with
//! ```
//!
//! Invariants
//! - One replica makes the file, whoever else tries: the system makes it or says that it is there (`O_EXCL`). File and directory are
//!   flushed before anybody is told.
//! - A file is removed only an hour after its token has expired, so that a replica whose clock is slow never finds a used token unused.
//! - The number of files is bounded; over the bound nothing is issued for a token that may be used once, rather than for one that may have
//!   been used before. Only tokens that our CA has signed get here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use weft_certs::files;

/// Tokens that are remembered.
pub const MAX_USED: usize = 100_000;
const SWEEP_EVERY: Duration = Duration::from_mins(1);
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
    /// The directory is full.
    #[error("{0} used tokens are remembered, which is the most; the oldest go an hour after they have expired")]
    Full(usize),
    /// The system refused.
    #[error("the token's use cannot be recorded in {path}: {source}; is the CA's directory writable?", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The store.
#[derive(Debug)]
pub struct UsedTokens {
    dir: PathBuf,
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: usize,
    swept: Option<SystemTime>,
}

impl UsedTokens {
    /// The store in `dir`, made if it is not there.
    pub fn open(dir: PathBuf, max: usize) -> Result<Self, UseError> {
        let made = files::make_private_dir(&dir).and_then(|()| files::tighten(&dir, files::PRIVATE_DIR));
        match made {
            Ok(()) => Ok(Self { dir, max, state: Mutex::default() }),
            Err(source) => Err(UseError::Io { path: dir, source }),
        }
    }

    /// Records that a token is used by a key (a fingerprint of it). Blocks on the disk.
    pub fn take(&self, token: &Once, key: &str, now: SystemTime) -> Result<(), UseError> {
        let path = self.dir.join(name(token));
        if self.sweep(now)? >= self.max && !path.exists() {
            return Err(UseError::Full(self.max));
        }
        let failed = |source| UseError::Io { path: path.clone(), source };
        match files::write_new(&path, key.as_bytes(), files::PRIVATE_FILE) {
            Ok(()) => {
                self.state.lock().files += 1;
                files::sync_dir(&self.dir).map_err(failed)
            }
            // One that is being written by another replica is not whole yet, and counts as another's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::read(&path) {
                Ok(by) if by == key.as_bytes() => files::sync_dir(&self.dir).map_err(failed),
                Ok(_) => Err(UseError::Used),
                Err(source) => Err(failed(source)),
            },
            Err(source) => Err(failed(source)),
        }
    }

    /// How many are remembered, as far as this replica has seen.
    pub fn count(&self) -> usize {
        self.state.lock().files
    }

    /// Forgets those that nobody would take any more, now and then.
    fn sweep(&self, now: SystemTime) -> Result<usize, UseError> {
        let mut state = self.state.lock();
        // A clock that was set back sweeps at once: that is harmless.
        let due = state.swept.is_none_or(|swept| now.duration_since(swept).map_or(true, |age| age >= SWEEP_EVERY));
        if due {
            state.files = sweep(&self.dir, now).map_err(|source| UseError::Io { path: self.dir.clone(), source })?;
            state.swept = Some(now);
        }
        Ok(state.files)
    }
}

fn name(token: &Once) -> String {
    format!("{}-{}", seconds(token.expires), files::checksum(token.id.as_bytes()))
}

fn sweep(dir: &Path, now: SystemTime) -> io::Result<usize> {
    let before = seconds(now).saturating_sub(GRACE.as_secs());
    let mut left = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.file_name();
        let expires = found.to_str().and_then(|name| name.split_once('-')?.0.parse::<u64>().ok());
        match expires {
            Some(expires) if expires < before => files::remove(&entry.path())?,
            Some(_) => left += 1,
            // Not ours: neither counted nor touched.
            None => {}
        }
    }
    Ok(left)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn once(id: &str, expires: u64) -> Once {
        Once { id: id.to_owned(), expires: at(expires) }
    }

    #[test]
    fn of_many_that_race_through_two_replicas_exactly_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let replicas = [(), ()].map(|()| UsedTokens::open(dir.path().join("used"), MAX_USED).unwrap());
        for round in 0..20 {
            let token = once(&format!("token {round}"), 2000);
            let won: usize = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..32)
                    .map(|racer| {
                        let (replica, token) = (&replicas[racer % 2], &token);
                        scope.spawn(move || replica.take(token, &format!("key {racer}"), at(1000)).is_ok())
                    })
                    .collect();
                racers.into_iter().map(|racer| usize::from(racer.join().unwrap())).sum()
            });
            assert_eq!(won, 1, "round {round}");
        }
        assert_eq!(fs::read_dir(dir.path().join("used")).unwrap().count(), 20);
    }

    #[test]
    fn the_same_key_may_ask_again_after_a_restart_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let open = || UsedTokens::open(dir.path().join("used"), MAX_USED).unwrap();
        let token = once("../../etc/passwd", 2000);
        open().take(&token, "mine", at(1000)).unwrap();
        open().take(&token, "mine", at(1001)).unwrap();
        assert!(matches!(open().take(&token, "thief's", at(1001)), Err(UseError::Used)));
        // A crash between making the file and writing it leaves an empty one: used, by nobody.
        let half = once("half", 2000);
        fs::write(dir.path().join("used").join(name(&half)), "").unwrap();
        assert!(matches!(open().take(&half, "mine", at(1000)), Err(UseError::Used)));
        let mode = fs::metadata(dir.path().join("used")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
    }

    #[test]
    fn what_has_expired_is_forgotten_after_an_hour_and_the_number_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let used = UsedTokens::open(dir.path().to_owned(), 2).unwrap();
        fs::write(dir.path().join("README"), "not ours").unwrap();
        used.take(&once("a", 2000), "a", at(1000)).unwrap();
        used.take(&once("b", 9000), "b", at(1000)).unwrap();
        assert!(matches!(used.take(&once("c", 9000), "c", at(1000)), Err(UseError::Full(2))));
        used.take(&once("b", 9000), "b", at(1000)).unwrap();
        assert!(matches!(used.take(&once("c", 9000), "c", at(2000 + 3600)), Err(UseError::Full(2))));
        used.take(&once("c", 9000), "c", at(2001 + 3660)).unwrap();
        assert_eq!(used.count(), 2);
        assert!(dir.path().join("README").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let used = UsedTokens::open(dir.path().join("used"), 2).unwrap();
        fs::remove_dir(dir.path().join("used")).unwrap();
        let error = used.take(&once("a", 2000), "a", at(1000)).unwrap_err();
        assert!(matches!(error, UseError::Io { .. }), "{error}");
    }
}
