//! The tables on disk: `STATE_DIR/tables`, from which a proxy starts while control is away.
//!
//! Format: [`Saved`] in protobuf's encoding, with a checksum ([`Form`]).
//!
//! Invariants
//! - At every moment, a crash included, the name holds either the old tables or the new ones.
//! - A file that is damaged, of another workload or of another format is not used, and does not keep the proxy from starting.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use prost::Message;
use weft_certs::files::{FileError, Form};

/// 4,096 addresses with large endpoint sets take a few MiB.
const FORM: Form = Form { name: "weft-tables-2", max_bytes: 256 << 20 };
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
    /// They cannot be read, or are not what was written.
    #[error("{0}; it is ignored and will be written anew")]
    File(#[from] FileError),
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
    let Some(found) = FORM.read(&path)? else { return Ok(None) };
    let Ok(saved) = Saved::decode(&found.body[..]) else {
        return Err(FileError::Damaged { path, what: "it does not decode" }.into());
    };
    if saved.workload != workload {
        return Err(LoadError::Another { path, whose: saved.workload });
    }
    // A clock that was set back makes them look new: then they are as old as they can be told to be.
    Ok(Some((saved, now.duration_since(found.modified).unwrap_or_default())))
}

/// Writes the tables; blocks.
///
/// # Errors
/// What the file system says; the old tables are then still there.
pub fn save(state_dir: &Path, saved: &Saved) -> io::Result<()> {
    FORM.write(&path(state_dir), &saved.encode_to_vec())
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &saved()).unwrap();
        let whole = fs::read(path(dir.path())).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let told = || load(dir.path(), "workload/a/b", SystemTime::now()).unwrap_err().to_string();
        for damaged in [&b""[..], b"WEFTTAB1", &whole[..whole.len() / 2], &flipped] {
            fs::write(path(dir.path()), damaged).unwrap();
            assert!(told().contains("tables is damaged or of another format"), "{}", told());
        }
        FORM.write(&path(dir.path()), b"whole, but no tables").unwrap();
        assert!(told().contains("does not decode"), "{}", told());
        // Not for ever.
        save(dir.path(), &saved()).unwrap();
        load(dir.path(), "workload/a/b", SystemTime::now()).unwrap().unwrap();
    }
}
