//! Marks as files, beside the keys of a CA in a directory.
//!
//! ```text
//! DIR/EXPIRES-HASH      one file a token: when it expires (seconds since 1970), SHA-256 of its number; in it, the key it was used with
//! ```
//!
//! Invariant: the system makes the file or says that it is there (`O_EXCL`); file and directory are flushed before anybody is told.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weft_certs::files;

use super::{Mark, Marks, UseError};

/// Files that there may be.
pub const MAX_USED: usize = 100_000;
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// A directory that all replicas of control share.
#[derive(Debug)]
pub struct Directory {
    dir: PathBuf,
    most: usize,
}

impl Directory {
    /// The directory, made if it is not there.
    pub fn open(dir: PathBuf, most: usize) -> Result<Self, UseError> {
        let made = files::make_private_dir(&dir).and_then(|()| files::tighten(&dir, files::PRIVATE_DIR));
        made.map_err(failed(&dir))?;
        Ok(Self { dir, most })
    }

    fn path(&self, mark: &Mark) -> PathBuf {
        self.dir.join(format!("{}-{}", mark.expires, mark.hash))
    }
}

impl Marks for Directory {
    fn make(&self, mark: &Mark, key: &str) -> Result<Option<String>, UseError> {
        let path = self.path(mark);
        let by = match files::write_new(&path, key.as_bytes(), files::PRIVATE_FILE) {
            Ok(()) => None,
            // One that is being written by another replica is not whole yet, and counts as another's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.made_by(mark)?,
            Err(error) => return Err(failed(&path)(error)),
        };
        files::sync_dir(&self.dir).map_err(failed(&path))?;
        Ok(by)
    }

    fn made_by(&self, mark: &Mark) -> Result<Option<String>, UseError> {
        let path = self.path(mark);
        match fs::read(&path) {
            Ok(by) => Ok(Some(String::from_utf8_lossy(&by).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    fn sweep(&self, before: u64) -> Result<usize, UseError> {
        sweep(&self.dir, before).map_err(failed(&self.dir))
    }

    fn most(&self) -> usize {
        self.most
    }

    fn sweep_every(&self) -> Duration {
        SWEEP_EVERY
    }
}

fn sweep(dir: &Path, before: u64) -> io::Result<usize> {
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

fn failed(path: &Path) -> impl FnOnce(io::Error) -> UseError {
    let place = path.display().to_string();
    move |error| UseError::Store { place, what: format!("{error}; is the CA's directory writable?") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_half_written_mark_is_anothers_and_what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Directory::open(dir.path().join("used"), 2).unwrap();
        let half = Mark { hash: "00".to_owned(), expires: 2000 };
        // A crash between making the file and writing it leaves an empty one: used, by nobody.
        fs::write(marks.path(&half), "").unwrap();
        fs::write(dir.path().join("used/README"), "not ours").unwrap();
        assert_eq!(marks.make(&half, "mine").unwrap().as_deref(), Some(""));
        assert_eq!(marks.sweep(3000).unwrap(), 0);
        assert!(dir.path().join("used/README").exists() && !marks.path(&half).exists());
        let mode = fs::metadata(dir.path().join("used")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Directory::open(dir.path().join("used"), 2).unwrap();
        fs::remove_dir(dir.path().join("used")).unwrap();
        let error = marks.make(&Mark { hash: "00".to_owned(), expires: 2000 }, "mine").unwrap_err();
        assert!(error.to_string().contains("writable"), "{error}");
    }
}
