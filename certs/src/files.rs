//! Files that are written whole or not at all, and that only their owner can read.
//!
//! Invariants
//! - At every moment, a crash included, a name holds either the old bytes or the new ones.
//! - A file with a checksum ([`Form`]) is used whole or not at all, and no larger one is written than would be read.
//! - One writer of a name at a time. Of two, one fails; never is a mixture of both in place.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Mode of directories that hold keys.
pub const PRIVATE_DIR: u32 = 0o700;
/// Mode of files that hold keys.
pub const PRIVATE_FILE: u32 = 0o600;
/// Mode of files that anyone may read: certificates.
pub const PUBLIC_FILE: u32 = 0o644;

/// Makes the directory and its parents, 0700 if they are new. One that exists keeps its mode: it may be shared with other things.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(dir)
}

/// Takes all access by group and others from something that is ours (kubelet adds group access to volumes at each mount).
pub fn tighten(path: &Path, mode: u32) -> io::Result<()> {
    let found = fs::metadata(path)?.permissions().mode() & 0o777;
    if found & !mode == 0 { Ok(()) } else { fs::set_permissions(path, Permissions::from_mode(mode)) }
}

/// Random bytes in the name of a file that is being written.
const MARK: usize = 8;

/// Writes beside the target, flushes to the disk, then renames over the target and flushes the directory. What a crash
/// left of an earlier attempt is removed first.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no directory or no file name"));
    };
    remove_unfinished(dir, name)?;
    let temporary = dir.join(format!(".{name}.{}.new", random_hex(MARK)?));
    let written = write_new(&temporary, bytes, mode).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_dir(dir))
}

fn remove_unfinished(dir: &Path, name: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.file_name();
        let mark = found.to_str().and_then(|found| found.strip_prefix('.')?.strip_prefix(name)?.strip_prefix('.'));
        let mark = mark.and_then(|rest| rest.strip_suffix(".new"));
        if mark.is_some_and(|mark| mark.len() == 2 * MARK && mark.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file; it is no error if there is none.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file that does not exist yet and flushes it to the disk.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have narrowed the mode of a public file.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes renames inside the directory survive a power cut.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 in hex: finds damage by accident, proves nothing about who wrote.
pub fn checksum(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// A kind of file with a checksum. Its first line is `NAME sha256=HEX`, the sum over all that follows. The sum finds damage by
/// accident; who may write is the directory's business (0700).
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// What the file is, and the number of its format; no spaces.
    pub name: &'static str,
    /// Most bytes after the first line: more is neither written nor read.
    pub max_bytes: u64,
}

/// What was read.
#[derive(Debug)]
pub struct Found {
    /// What follows the first line.
    pub body: Vec<u8>,
    /// When the file was written, or [confirmed](File::set_modified).
    pub modified: SystemTime,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is there, but the system does not give it.
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged or of another format ({what})", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

impl Form {
    /// Writes the file as [`write_atomic`] does, 0600; makes its directory, 0700, if there is none.
    pub fn write(&self, path: &Path, body: &[u8]) -> io::Result<()> {
        if body.len() as u64 > self.max_bytes {
            let message = format!("it would be over {} bytes", self.max_bytes);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let mut bytes = format!("{}{}\n", self.prefix(), checksum(body)).into_bytes();
        bytes.extend_from_slice(body);
        path.parent().map_or(Ok(()), make_private_dir)?;
        write_atomic(path, &bytes, PRIVATE_FILE)
    }

    /// Reads what [`Form::write`] wrote; `None` if there is no file.
    pub fn read(&self, path: &Path) -> Result<Option<Found>, FileError> {
        let read = || -> io::Result<(Vec<u8>, SystemTime)> {
            let file = File::open(path)?;
            let modified = file.metadata()?.modified()?;
            let mut bytes = Vec::new();
            let most = self.max_bytes.saturating_add(self.head_len() as u64);
            file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok((bytes, modified))
        };
        match read() {
            Ok((mut bytes, modified)) => {
                self.check(&bytes).map_err(|what| FileError::Damaged { path: path.to_owned(), what })?;
                // In place: a table may be large.
                bytes.drain(..self.head_len());
                Ok(Some(Found { body: bytes, modified }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError::Read { path: path.to_owned(), source }),
        }
    }

    fn check(&self, bytes: &[u8]) -> Result<(), &'static str> {
        if !bytes.starts_with(self.prefix().as_bytes()) {
            return Err("it does not begin as it should");
        }
        let (head, body) = bytes.split_at_checked(self.head_len()).ok_or("it is too short")?;
        if body.len() as u64 > self.max_bytes {
            return Err("it is too large");
        }
        let line = format!("{}{}\n", self.prefix(), checksum(body));
        if head == line.as_bytes() { Ok(()) } else { Err("its checksum does not match") }
    }

    fn prefix(&self) -> String {
        format!("{} sha256=", self.name)
    }

    fn head_len(&self) -> usize {
        // 64 digits and the line's end.
        self.prefix().len() + 65
    }
}

/// `len` random bytes.
pub fn random(len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("the system's random generator failed"))?;
    Ok(bytes)
}

/// `len` random bytes in hex.
pub fn random_hex(len: usize) -> io::Result<String> {
    random(len).map(|bytes| hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_files_with_the_mode_that_was_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make_private_dir(path.parent().unwrap()).unwrap();
        write_atomic(&path, b"one", PRIVATE_FILE).unwrap();
        write_atomic(&path, b"two", PRIVATE_FILE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE_FILE);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, PRIVATE_DIR);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_failed_write_leaves_the_old_bytes_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        // A directory cannot be replaced by a file.
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        write_atomic(&path, b"new", PRIVATE_FILE).unwrap_err();
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_goes_with_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        let left = [".key.0123456789abcdef.new", ".key.fedcba9876543210.new"];
        let others =
            [".key.pem.0123456789abcdef.new", ".key.0123.new", ".key.new", "key.0123456789abcdef.new", ".other"];
        for name in left.iter().chain(&others) {
            fs::write(dir.path().join(name), b"half").unwrap();
        }
        write_atomic(&dir.path().join("key"), b"k", PRIVATE_FILE).unwrap();
        assert!(left.iter().all(|name| !dir.path().join(name).exists()));
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), others.len() + 1);
    }

    const FORM: Form = Form { name: "weft-test-1", max_bytes: 40 };

    #[test]
    fn what_is_written_with_a_checksum_is_found_again_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        assert!(FORM.read(&path).unwrap().is_none());
        for body in [&[][..], b"text\n", &[0xff; 40]] {
            FORM.write(&path, body).unwrap();
            let found = FORM.read(&path).unwrap().unwrap();
            assert_eq!((&found.body[..], found.modified), (body, fs::metadata(&path).unwrap().modified().unwrap()));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!([&path, path.parent().unwrap(), &dir.path().join("a")].map(mode), [0o600, 0o700, 0o700]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_is_too_large_is_neither_written_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        FORM.write(&path, b"old").unwrap();
        assert_eq!(FORM.write(&path, &[0; 41]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(FORM.read(&path).unwrap().unwrap().body, b"old");
        Form { max_bytes: 1000, ..FORM }.write(&path, &[0; 41]).unwrap();
        assert_eq!(what(&path), "it is too large");
        Form { max_bytes: u64::MAX, ..FORM }.read(&path).unwrap().unwrap();
    }

    #[test]
    fn what_is_not_as_it_was_written_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        FORM.write(&path, b"some text").unwrap();
        let whole = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            what(&path)
        };
        for at in 0..whole.len() {
            let cut = refused(&whole[..at]);
            assert!(cut == "it is too short" || at < 19 || at >= FORM.head_len(), "{at}: {cut}");
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let found = refused(&flipped);
                assert_eq!(found == "it does not begin as it should", at < 19, "byte {at} bit {bit}: {found}");
            }
        }
        assert_eq!(refused(&[&whole[..], b"!"].concat()), "its checksum does not match");
        Form { name: "weft-test-2", ..FORM }.write(&path, b"some text").unwrap();
        assert_eq!(what(&path), "it does not begin as it should");
        // Nor is it anything else that is there.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(FORM.read(&path), Err(FileError::Read { .. })));
    }

    fn what(path: &Path) -> &'static str {
        match FORM.read(path) {
            Err(FileError::Damaged { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tightens_what_was_opened_to_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new(&path, b"k", 0o660).unwrap();
        tighten(&path, PRIVATE_FILE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE_FILE);
    }
}
