//! A CA in a directory.
//!
//! ```text
//! DIR/root.pem          the roots that are published, 0644: a copy for people and new proxies, made again if it is lost
//! DIR/lock              held while something is written
//! DIR/keys/             0700, files 0600: the CA (see `store`)
//! ```
//!
//! Invariants
//! - `keys/` appears by one rename with everything in it, so a crash at first start leaves no CA rather than half of one.
//! - `ca.json` is replaced as a whole, after the files that it newly names and before those that it no longer names are removed: a crash
//!   leaves the CA of before or the one of after, and files that nobody reads.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::CaError;
use super::store::{Content, Held, MANIFEST, MAX_BYTES, Store, Version, is_ours};
use crate::files::{self, PRIVATE_DIR, PRIVATE_FILE, PUBLIC_FILE};

const KEYS: &str = "keys";
const ROOT: &str = "root.pem";
/// How unfinished `keys/` directories begin.
const UNFINISHED: &str = ".keys.";

/// How long another process may hold the lock, who writes some small files meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to have it.
const RETRY: Duration = Duration::from_millis(5);

/// A directory, made with mode 0700 when a CA is made in it.
#[derive(Clone, Debug)]
pub struct Directory {
    dir: PathBuf,
    keys: PathBuf,
}

impl Directory {
    /// Nothing is read or made yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), keys: dir.join(KEYS) }
    }

    /// Held until the file is dropped, also by the death of the process. Who waits for one that stands still is told so.
    fn lock(&self) -> Result<File, CaError> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE_FILE).open(&path);
        file.and_then(|file| lock(&file).map(|()| file)).map_err(failed("lock", &path))
    }

    fn is_there(&self) -> Result<bool, CaError> {
        self.keys.try_exists().map_err(failed("read", &self.keys))
    }

    /// Of the file that names the others: no change leaves it as it was.
    fn seen(&self) -> Result<Version, CaError> {
        let path = self.keys.join(MANIFEST);
        match read(&path) {
            Ok(text) => Ok(Version(files::checksum(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Version(String::new())),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    fn stage(&self, content: &Content) -> Result<PathBuf, CaError> {
        let mark = files::random_hex(8).map_err(failed("write in", &self.dir))?;
        let staged = self.dir.join(format!("{UNFINISHED}{mark}"));
        DirBuilder::new().mode(PRIVATE_DIR).create(&staged).map_err(failed("make", &staged))?;
        for (name, bytes) in content {
            let path = staged.join(name);
            files::write_new(&path, bytes, PRIVATE_FILE).map_err(failed("write", &path))?;
        }
        Ok(staged)
    }

    /// What a crash at first start left. Nothing was ever issued from it: it had not been opened.
    fn remove_unfinished(&self) -> Result<(), CaError> {
        for entry in fs::read_dir(&self.dir).map_err(failed("read", &self.dir))? {
            let entry = entry.map_err(failed("read", &self.dir))?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_dir_all(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Names of the CA's files that are there.
    fn names(&self) -> Result<Vec<String>, CaError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.keys).map_err(failed("read", &self.keys))? {
            let name = entry.map_err(failed("read", &self.keys))?.file_name();
            // What begins with a point is being written, or was when somebody died.
            names.extend(name.into_string().ok().filter(|name| is_ours(name) && !name.starts_with('.')));
        }
        Ok(names)
    }
}

impl Store for Directory {
    fn place(&self) -> String {
        self.dir.display().to_string()
    }

    fn part(&self, file: &str) -> String {
        self.keys.join(file).display().to_string()
    }

    fn version(&self) -> Result<Option<Version>, CaError> {
        if self.is_there()? { self.seen().map(Some) } else { Ok(None) }
    }

    fn read(&self) -> Result<Option<Held>, CaError> {
        if !self.is_there()? {
            return Ok(None);
        }
        let _held = self.lock()?;
        files::tighten(&self.keys, PRIVATE_DIR).map_err(failed("restrict", &self.keys))?;
        let (mut files, mut size) = (Content::new(), 0);
        for name in self.names()? {
            let path = self.keys.join(&name);
            files::tighten(&path, PRIVATE_FILE).map_err(failed("restrict", &path))?;
            let bytes = read(&path).map_err(failed("read", &path))?;
            size += bytes.len();
            if size > MAX_BYTES {
                return Err(CaError::Damaged { place: self.place(), what: format!("it is over {MAX_BYTES} bytes") });
            }
            files.insert(name, bytes);
        }
        Ok(Some(Held { version: self.seen()?, files }))
    }

    fn create(&self, content: &Content) -> Result<(), CaError> {
        files::make_private_dir(&self.dir).map_err(failed("make", &self.dir))?;
        let _held = self.lock()?;
        if self.is_there()? {
            return Err(CaError::Conflict);
        }
        self.remove_unfinished()?;
        let staged = self.stage(content)?;
        files::sync_dir(&staged)
            .and_then(|()| fs::rename(&staged, &self.keys))
            .and_then(|()| files::sync_dir(&self.dir))
            .map_err(failed("write", &self.keys))
    }

    fn replace(&self, seen: &Version, content: &Content) -> Result<Version, CaError> {
        let _held = self.lock()?;
        if self.version()?.as_ref() != Some(seen) {
            return Err(CaError::Conflict);
        }
        let write = |name: &str, bytes: &[u8]| {
            let path = self.keys.join(name);
            if read(&path).is_ok_and(|found| found == bytes) {
                return Ok(());
            }
            files::write_atomic(&path, bytes, PRIVATE_FILE).map_err(failed("write", &path))
        };
        for (name, bytes) in content.iter().filter(|(name, _)| *name != MANIFEST) {
            write(name, bytes)?;
        }
        write(MANIFEST, content.get(MANIFEST).map_or(&[], Vec::as_slice))?;
        for name in self.names()?.iter().filter(|name| !content.contains_key(*name)) {
            files::remove(&self.keys.join(name)).map_err(failed("remove", &self.keys.join(name)))?;
        }
        self.seen()
    }

    fn publish(&self, seen: &Version, roots: &str) -> Result<(), CaError> {
        let path = self.dir.join(ROOT);
        let is_there = || fs::read(&path).is_ok_and(|found| found == roots.as_bytes());
        if is_there() {
            return Ok(());
        }
        let _held = self.lock()?;
        if is_there() || self.seen()? != *seen {
            return Ok(());
        }
        files::write_atomic(&path, roots.as_bytes(), PUBLIC_FILE).map_err(failed("write", &path))
    }
}

/// Tries for [`PATIENCE`]: the kernel would wait for as long as a process that is stopped has the lock.
fn lock(file: &File) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => sleep(RETRY),
            Err(TryLockError::WouldBlock) => {
                let why = format!(
                    "another process has held it for {} s: is one stopped that uses this CA?",
                    PATIENCE.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path: PathBuf = path.to_owned();
    move |source| CaError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_somebody_holds_for_good_is_an_error_and_one_that_is_given_back_is_had() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path());
        let held = directory.lock().unwrap();
        let begun = Instant::now();
        let error = directory.lock().unwrap_err().to_string();
        assert!(begun.elapsed() >= PATIENCE && error.contains("is one stopped"), "{error}");
        let other = directory.clone();
        let waiting = std::thread::spawn(move || other.lock().map(drop));
        sleep(10 * RETRY);
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}
