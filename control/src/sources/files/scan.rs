//! Which files there are, and whether they have changed.
//!
//! Invariants: bounded (files, bytes, depth); what cannot be read is a failure, never "nothing there"; hidden entries (names that start with a dot:
//! editors' swap files, `.git`, the `..data` of a ConfigMap volume, whose files are reached through the links beside it) are left out.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most files read.
pub(super) const MAX_FILES: usize = 10_000;
/// Largest file, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 8 << 20;
/// Most bytes in all files together.
pub(in crate::sources) const MAX_TOTAL_BYTES: u64 = 256 << 20;
const MAX_DEPTH: usize = 32;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// It, and all below it, is unknown.
    pub path: PathBuf,
    /// Why.
    pub message: String,
}

/// A path as it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Root {
    /// Device and inode of the directory, and how many manifests it has; `None` if it could not be read.
    pub seen: Option<((u64, u64), usize)>,
}

/// What one walk found.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    /// Manifests, in order.
    pub files: BTreeMap<PathBuf, Stamp>,
    /// Directories whose changes matter.
    pub directories: BTreeSet<PathBuf>,
    /// What is unknown.
    pub failures: Vec<Failure>,
    /// One for each given path.
    pub roots: Vec<Root>,
    /// How often a bound was hit.
    pub bounds_hit: u64,
    seen: HashSet<(u64, u64)>,
    total: u64,
}

impl Scan {
    /// Walks the paths. `before` is what the last walk found: a directory that had manifests and has been replaced by an empty one (a volume that
    /// went away leaves its mount point) is lost, not empty.
    pub fn walk(paths: &[PathBuf], before: &[Root]) -> Self {
        let mut scan = Scan::default();
        for (index, path) in paths.iter().enumerate() {
            let had = scan.files.len();
            let root = scan.root(path, before.get(index), had);
            scan.roots.push(root);
        }
        scan
    }

    fn root(&mut self, path: &Path, before: Option<&Root>, had: usize) -> Root {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.fail(path, &error);
                self.watch_parent(path);
                return before.cloned().unwrap_or_default();
            }
        };
        self.watch_parent(path);
        if !metadata.is_dir() {
            self.file(path, &metadata);
            return Root { seen: Some(((0, 0), self.files.len() - had)) };
        }
        let failures = self.failures.len();
        self.directory(path, &metadata, 0);
        let id = (metadata.dev(), metadata.ino());
        let count = self.files.len() - had;
        if count == 0
            && let Some(Root { seen: Some((old, files)) }) = before
            && *old != id
            && *files > 0
        {
            let message =
                "has been replaced by an empty directory: its last good objects stay until it has a manifest again";
            self.failures.push(Failure { path: path.to_owned(), message: message.to_owned() });
            return Root { seen: Some((*old, *files)) };
        }
        if self.failures.len() > failures && count == 0 {
            return before.cloned().unwrap_or_default();
        }
        Root { seen: Some((id, count)) }
    }

    // A file, or a directory that is itself replaced, is seen from the directory above.
    fn watch_parent(&mut self, path: &Path) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if parent.is_dir() {
            self.directories.insert(parent.to_owned());
        }
    }

    fn fail(&mut self, path: &Path, error: &io::Error) {
        self.failures.push(Failure { path: path.to_owned(), message: format!("cannot be read: {error}") });
    }

    fn bound(&mut self, path: &Path, message: String) {
        self.bounds_hit += 1;
        self.failures.push(Failure { path: path.to_owned(), message });
    }

    fn directory(&mut self, path: &Path, metadata: &Metadata, depth: usize) {
        // Links may lead in circles, or twice to the same place.
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        if depth > MAX_DEPTH {
            return self.bound(path, format!("is more than {MAX_DEPTH} directories deep"));
        }
        self.directories.insert(path.to_owned());
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => entries,
            Err(error) => return self.fail(path, &error),
        };
        let mut names: Vec<_> = entries.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = path.join(name);
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => self.directory(&path, &metadata, depth + 1),
                _ if !is_manifest(&path) => {}
                Ok(metadata) => self.file(&path, &metadata),
                // Gone since the directory was read: really deleted. A link that leads nowhere is still there, though.
                Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {}
                Err(error) => self.fail(&path, &error),
            }
        }
    }

    fn file(&mut self, path: &Path, metadata: &Metadata) {
        let stamp = Stamp::of(metadata);
        if !metadata.is_file() {
            return self.bound(path, "is neither a file nor a directory".to_owned());
        }
        if self.files.len() >= MAX_FILES {
            return self.bound(path, format!("is not read: there are more than {MAX_FILES} manifests"));
        }
        if stamp.len > MAX_FILE_BYTES {
            return self.bound(path, format!("is larger than {MAX_FILE_BYTES} bytes"));
        }
        if self.total + stamp.len > MAX_TOTAL_BYTES {
            return self.bound(path, format!("is not read: all manifests together are over {MAX_TOTAL_BYTES} bytes"));
        }
        if self.seen.insert((stamp.device, stamp.inode)) {
            self.total += stamp.len;
            self.files.insert(path.to_owned(), stamp);
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}
