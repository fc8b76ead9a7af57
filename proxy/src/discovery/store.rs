//! The tables on disk: `STATE_DIR/tables`, from which a proxy starts while control is away.
//!
//! Format: 8 bytes that say what it is, the xxh3-128 of the rest, then [`Saved`] in protobuf's encoding. The checksum finds damage by
//! accident; who may write here is the directory's business (0700).
//!
//! Invariants
//! - At every moment, a crash included, the name holds either the old tables or the new ones.
//! - A file that is damaged, of another workload or of another format is not used, and does not keep the proxy from starting.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Message;

/// Says what the file is, and its version.
const MAGIC: &[u8; 8] = b"WEFTTAB1";
/// A larger file is none of ours: 4,096 addresses with large endpoint sets take a few MiB.
const MAX_FILE: u64 = 256 << 20;
/// Its name in the state directory.
const FILE: &str = "tables";

/// What is saved.
#[derive(Clone, PartialEq, Message)]
pub struct Saved {
    /// Whose tables these are: the name of the `Workload` resource.
    #[prost(string, tag = "1")]
    pub workload: String,
    /// Everything that is held, as control sent it.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<Entry>,
    /// Subscribed addresses.
    #[prost(string, repeated, tag = "3")]
    pub addresses: Vec<String>,
}

/// One resource.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// Resource name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its type's URL.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// As control gave it.
    #[prost(string, tag = "3")]
    pub version: String,
    /// As control sent it.
    #[prost(bytes = "bytes", tag = "4")]
    pub bytes: bytes::Bytes,
}

/// Why saved tables are not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// They cannot be read.
    #[error("{path} cannot be read: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// They are not what was written.
    #[error("{path} is damaged or of another format ({what}); it is ignored and will be written anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// They belong to somebody else.
    #[error("{path} holds the tables of {whose}; give each sidecar a state directory of its own")]
    Another {
        /// The file.
        path: PathBuf,
        /// Whose they are.
        whose: String,
    },
}

/// Where the tables are in a state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Reads saved tables, with the time since control last confirmed them; `None` if there are none.
///
/// # Errors
/// [`LoadError`]: start without them.
pub fn load(state_dir: &Path, workload: &str, now: SystemTime) -> Result<Option<(Saved, Duration)>, LoadError> {
    let path = path(state_dir);
    let read = || -> io::Result<(Vec<u8>, SystemTime)> {
        let file = File::open(&path)?;
        let modified = file.metadata()?.modified()?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok((bytes, modified))
    };
    let (bytes, modified) = match read() {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LoadError::Io { path, error }),
    };
    let saved = match decode(&bytes) {
        Ok(saved) => saved,
        Err(what) => return Err(LoadError::Damaged { path, what }),
    };
    if saved.workload != workload {
        return Err(LoadError::Another { path, whose: saved.workload });
    }
    // A clock that was set back makes them look new: then they are as old as they can be told to be.
    Ok(Some((saved, now.duration_since(modified).unwrap_or_default())))
}

fn decode(bytes: &[u8]) -> Result<Saved, &'static str> {
    if bytes.len() as u64 > MAX_FILE {
        return Err("it is too large");
    }
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or("it is too short")?;
    if magic != MAGIC {
        return Err("it does not begin as it should");
    }
    let (sum, rest) = rest.split_first_chunk::<16>().ok_or("it is too short")?;
    if xxhash_rust::xxh3::xxh3_128(rest).to_be_bytes() != *sum {
        return Err("its checksum does not match");
    }
    Saved::decode(rest).map_err(|_| "it does not decode")
}

fn encode(saved: &Saved) -> Vec<u8> {
    let body = saved.encode_to_vec();
    let mut bytes = Vec::with_capacity(body.len() + 24);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&xxhash_rust::xxh3::xxh3_128(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Writes the tables; blocks.
///
/// # Errors
/// What the file system says; the old tables are then still there.
pub fn save(state_dir: &Path, saved: &Saved) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    // One writer at a time: the name is ours.
    let temporary = state_dir.join(format!(".{FILE}.new"));
    let written = write_new(&temporary, &encode(saved)).and_then(|()| fs::rename(&temporary, path(state_dir)));
    if written.is_err() {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| File::open(state_dir)?.sync_all())
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Says that control has confirmed the saved tables now; blocks.
///
/// # Errors
/// What the file system says.
pub fn confirm(state_dir: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path(state_dir))?.set_modified(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn saved() -> Saved {
        let entry = |name: &str| Entry {
            name: name.into(),
            type_url: "type".into(),
            version: "v".into(),
            bytes: bytes::Bytes::from_static(b"bytes"),
        };
        Saved { workload: "workload/a/b".into(), entries: vec![entry("x"), entry("y")], addresses: vec!["x".into()] }
    }

    #[test]
    fn what_is_saved_is_found_again_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let now = SystemTime::now();
        assert!(load(&state, "workload/a/b", now).unwrap().is_none());
        save(&state, &saved()).unwrap();
        save(&state, &saved()).unwrap();
        let (found, age) = load(&state, "workload/a/b", now + Duration::from_mins(1)).unwrap().unwrap();
        assert_eq!(found, saved());
        // The file system's clock is coarse and the disk may be slow.
        assert!(age > Duration::from_secs(10) && age < Duration::from_secs(61), "{age:?}");
        assert_eq!(fs::metadata(path(&state)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "nothing else is left");
        let error = load(&state, "workload/a/c", now).unwrap_err();
        assert!(error.to_string().contains("workload/a/b"), "{error}");
    }

    #[test]
    fn confirming_makes_it_young() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &saved()).unwrap();
        let hour = Duration::from_hours(1);
        let file = OpenOptions::new().write(true).open(path(dir.path())).unwrap();
        file.set_modified(SystemTime::now() - hour).unwrap();
        let age = || load(dir.path(), "workload/a/b", SystemTime::now()).unwrap().unwrap().1;
        assert!(age() >= hour);
        confirm(dir.path()).unwrap();
        assert!(age() < hour);
    }

    proptest! {
        #[test]
        fn damage_is_found(at in 0usize..1000, bit in 0u8..8, cut in proptest::bool::ANY) {
            let mut bytes = encode(&saved());
            let at = at % bytes.len();
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << bit;
            }
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn bytes_of_strangers_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
