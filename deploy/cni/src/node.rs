//! Our files on a node: the binary, and our entry in the CNI configuration that the runtime uses.
//!
//! Invariants
//! - A file appears whole or not at all, and a version that somebody else wrote meanwhile is never lost: the new file is exchanged with the
//!   old one, and what came out is looked at; if it is not what was read before, its change is taken up.
//! - The binary is there before the entry that names it, and longer.
//! - What is not ours is not touched. Removal leaves each file of others as it would be without us.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::conflist::{self, DERIVED, PLUGIN};

/// Largest configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;
/// At most so many files are looked at.
const MAX_FILES: usize = 256;
/// How often somebody may write at the same time before we wait for the next round.
const TRIES: usize = 5;
/// New files are made under this name, which no runtime reads.
const TEMPORARY: &str = ".weft-cni.new";

/// What could not be done on the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A configuration that cannot hold our entry.
    #[error("{path}: {source}")]
    Config {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: conflist::Error,
    },
    /// Somebody kept writing.
    #[error("{0}: somebody else keeps writing it")]
    Busy(PathBuf),
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::File { path: path.to_owned(), source }
}

/// Where the runtime of this node looks.
#[derive(Debug, Clone)]
pub struct Node {
    /// The directory of configurations, most often /etc/cni/net.d.
    pub config: PathBuf,
    /// The directory of plugins, most often /opt/cni/bin.
    pub plugins: PathBuf,
}

/// How the configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// There is no configuration yet: the node's network is not set up.
    NoConfiguration,
    /// We were in it already.
    Kept(String),
    /// We were put into it.
    Written(String),
}

impl Node {
    /// Puts this program among the plugins; `true` if it was not there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn install(&self, program: &Path) -> Result<bool, Error> {
        let to = self.plugins.join(PLUGIN);
        let bytes = fs::read(program).map_err(failed(program))?;
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            return Ok(false);
        }
        let new = write_new(&self.plugins, &bytes, 0o755)?;
        fs::rename(&new, &to).map_err(failed(&to))?;
        Ok(true)
    }

    /// Puts this program back among the plugins if it is gone.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn restore(&self) -> Result<(), Error> {
        let program = Path::new("/proc/self/exe");
        if self.plugins.join(PLUGIN).exists() { Ok(()) } else { self.install(program).map(drop) }
    }

    /// Puts our entry where it has to be, unless it is there.
    ///
    /// # Errors
    /// If a file cannot be read or written, or holds no place for us.
    pub fn keep(&self) -> Result<Entry, Error> {
        let files = self.files()?;
        let Some((name, text)) = conflist::picked(&files) else { return Ok(Entry::NoConfiguration) };
        let derived = (!conflist::is_list(name)).then(|| format!("{DERIVED}{name}.conflist"));
        for (old, _) in files.iter().filter(|(old, _)| old.starts_with(DERIVED) && Some(old) != derived.as_ref()) {
            let path = self.config.join(old);
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        let Some(derived) = derived else {
            let changed = self.edit(name, conflist::with_us)?;
            return Ok(if changed { Entry::Written(name.clone()) } else { Entry::Kept(name.clone()) });
        };
        let path = self.config.join(name);
        let list = conflist::list_of(text).map_err(|source| Error::Config { path, source })?;
        if files.iter().any(|(name, text)| *name == derived && *text == list) {
            return Ok(Entry::Kept(derived));
        }
        let (new, to) = (write_new(&self.config, list.as_bytes(), 0o600)?, self.config.join(&derived));
        fs::rename(&new, &to).map_err(failed(&to))?;
        Ok(Entry::Written(derived))
    }

    /// Takes away all that is ours, and says what that was.
    ///
    /// # Errors
    /// At the first file that cannot be changed; what is left can be tried again.
    pub fn remove(&self) -> Result<Vec<String>, Error> {
        let mut done = Vec::new();
        for (name, _) in self.files()? {
            let path = self.config.join(&name);
            if name.starts_with(DERIVED) {
                fs::remove_file(&path).map_err(failed(&path))?;
                done.push(name);
            } else if conflist::is_list(&name) {
                match self.edit(&name, conflist::without_us) {
                    Ok(true) => done.push(name),
                    // What is no configuration was never changed by us.
                    Ok(false) | Err(Error::Config { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for path in [self.plugins.join(PLUGIN), self.plugins.join(TEMPORARY), self.config.join(TEMPORARY)] {
            match fs::remove_file(&path) {
                Ok(()) => done.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
        Ok(done)
    }

    // Name and text of all that a runtime would read. A file that goes away meanwhile, or is no text, is not there.
    fn files(&self) -> Result<Vec<(String, String)>, Error> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.config).map_err(failed(&self.config))?.take(MAX_FILES) {
            let entry = entry.map_err(failed(&self.config))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if conflist::is_read(&name) {
                found.extend(read(&entry.path()).ok().map(|text| (name, text)));
            }
        }
        Ok(found)
    }

    // Whether there was something to change.
    fn edit(
        &self,
        name: &str,
        change: impl Fn(&str) -> Result<Option<String>, conflist::Error>,
    ) -> Result<bool, Error> {
        let path = self.config.join(name);
        let mut text = read(&path).map_err(failed(&path))?;
        let mut there = text.clone();
        for again in 0..TRIES {
            let refused = |source| Error::Config { path: path.clone(), source };
            let wanted = match change(&text).map_err(refused)? {
                Some(wanted) => wanted,
                None if again == 0 => return Ok(false),
                // Right as it is; but our exchange has taken it out.
                None => text.clone(),
            };
            let mode = fs::metadata(&path).map_err(failed(&path))?.permissions().mode();
            let new = write_new(&self.config, wanted.as_bytes(), mode)?;
            let before = exchange(&new, &path).map_err(failed(&path))?;
            if before.as_deref().is_none_or(|before| before == there) {
                return Ok(true);
            }
            // Somebody wrote between our look and our exchange: theirs counts, with our change.
            text = before.unwrap_or_default();
            there = wanted;
        }
        Err(Error::Busy(path))
    }
}

/// A whole new file, which still has to be put in its place.
fn write_new(directory: &Path, bytes: &[u8], mode: u32) -> Result<PathBuf, Error> {
    let path = directory.join(TEMPORARY);
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&path);
        let mut file = File::create_new(&path)?;
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed(&path))?;
    Ok(path)
}

/// Puts the new file in the place of the other and gives what was there; `None` where the file system cannot exchange, and replaces.
fn exchange(new: &Path, path: &Path) -> io::Result<Option<String>> {
    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => {
            let before = read(new);
            fs::remove_file(new)?;
            before.map(Some)
        }
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(new, path).map(|()| None),
        Err(errno) => Err(errno.into()),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_CONFIG + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_CONFIG { Err(io::Error::other("it is too large")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "{\"cniVersion\":\"0.4.0\",\"name\":\"rig\",\"plugins\":[ {\"type\":\"bridge\"} ]}\n";

    fn node() -> (tempfile::TempDir, Node) {
        let dir = tempfile::tempdir().unwrap();
        let node = Node { config: dir.path().join("net.d"), plugins: dir.path().join("bin") };
        fs::create_dir(&node.config).unwrap();
        fs::create_dir(&node.plugins).unwrap();
        (dir, node)
    }

    fn put(node: &Node, name: &str, text: &str) {
        fs::write(node.config.join(name), text).unwrap();
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_installed_is_removed_and_nothing_else_changed() {
        let (_dir, node) = node();
        put(&node, "10-rig.conflist", LIST);
        put(&node, "notes.txt", "x");
        fs::set_permissions(node.config.join("10-rig.conflist"), Permissions::from_mode(0o640)).unwrap();
        let program = std::env::current_exe().unwrap();
        assert!(node.install(&program).unwrap());
        assert!(!node.install(&program).unwrap());
        assert_eq!(node.keep().unwrap(), Entry::Written("10-rig.conflist".to_owned()));
        assert_eq!(node.keep().unwrap(), Entry::Kept("10-rig.conflist".to_owned()));
        assert_eq!(fs::metadata(node.config.join("10-rig.conflist")).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(node.plugins.join(PLUGIN)).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(node.remove().unwrap(), ["10-rig.conflist", PLUGIN]);
        assert_eq!(fs::read_to_string(node.config.join("10-rig.conflist")).unwrap(), LIST);
        assert_eq!(names(&node.config), ["10-rig.conflist", "notes.txt"]);
        assert!(names(&node.plugins).is_empty());
        assert!(node.remove().unwrap().is_empty());
    }

    #[test]
    fn we_are_put_back_and_follow_the_file_that_the_runtime_uses() {
        let (_dir, node) = node();
        assert_eq!(node.keep().unwrap(), Entry::NoConfiguration);
        put(&node, "10-rig.conflist", LIST);
        node.keep().unwrap();
        put(&node, "10-rig.conflist", LIST);
        assert_eq!(node.keep().unwrap(), Entry::Written("10-rig.conflist".to_owned()), "somebody rewrote it");
        put(&node, "05-new.conflist", LIST);
        assert_eq!(node.keep().unwrap(), Entry::Written("05-new.conflist".to_owned()), "somebody added one before it");
        assert_eq!(node.remove().unwrap().len(), 2);
    }

    #[test]
    fn a_single_plugins_file_is_left_alone_and_stood_before() {
        let (_dir, node) = node();
        let single = r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#;
        put(&node, "10-rig.conf", single);
        let derived = "0-weft-10-rig.conf.conflist";
        assert_eq!(node.keep().unwrap(), Entry::Written(derived.to_owned()));
        assert_eq!(node.keep().unwrap(), Entry::Kept(derived.to_owned()));
        put(&node, "10-rig.conf", &single.replace("bridge", "ptp"));
        assert_eq!(node.keep().unwrap(), Entry::Written(derived.to_owned()), "it follows its source");
        put(&node, "05-list.conflist", LIST);
        assert_eq!(node.keep().unwrap(), Entry::Written("05-list.conflist".to_owned()));
        assert_eq!(names(&node.config), ["05-list.conflist", "10-rig.conf"], "it goes when its source is not used");
        put(&node, "05-list.conflist", "broken");
        node.keep().unwrap();
        node.remove().unwrap();
        assert_eq!(names(&node.config), ["05-list.conflist", "10-rig.conf"]);
    }

    #[test]
    fn a_change_of_somebody_else_at_the_same_moment_is_not_lost() {
        let (_dir, node) = node();
        put(&node, "10-rig.conflist", LIST);
        let theirs = LIST.replace("bridge", "calico");
        let interfered = std::cell::Cell::new(false);
        let changed = node.edit("10-rig.conflist", |text| {
            if !interfered.replace(true) {
                put(&node, "10-rig.conflist", &theirs);
            }
            conflist::with_us(text)
        });
        assert!(changed.unwrap());
        let text = fs::read_to_string(node.config.join("10-rig.conflist")).unwrap();
        assert!(text.contains("calico") && text.contains(PLUGIN), "{text}");
    }
}
