//! The CA's directory.
//!
//! ```text
//! DIR/root.pem          the root certificate, 0644: a copy for people and scripts, made again if it is lost
//! DIR/lock              held while a CA is made
//! DIR/keys/             0700, files 0600:
//!     ca.json           form, trust domain, checksum of every other file
//!     root.key root.pem issuer.key issuer.pem token.key
//! ```
//!
//! Invariant: `keys/` appears by one rename with everything in it, so a crash at first start leaves no CA rather than half of one. What
//! is missing or altered later is damage, and is said, never mended in silence: a CA made anew would strand every workload.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CaError;
use crate::files::{self, PRIVATE_DIR, PRIVATE_FILE, PUBLIC_FILE};

const FORM: u32 = 1;
const KEYS: &str = "keys";
const MANIFEST: &str = "ca.json";
const ROOT: &str = "root.pem";
/// The root's key: used once, so it may be kept elsewhere afterwards.
const ROOT_KEY: &str = "root.key";
const ISSUER: &str = "issuer.pem";
const ISSUER_KEY: &str = "issuer.key";
const TOKEN_KEY: &str = "token.key";
/// How unfinished `keys/` directories begin.
const UNFINISHED: &str = ".keys.";

/// A new CA's parts, PEM.
pub struct Made {
    pub root_key: String,
    pub root_pem: String,
    pub issuer_key: String,
    pub issuer_pem: String,
    pub token_key: String,
}

/// What is needed of an existing CA, PEM, checksums proved.
pub struct Stored {
    pub trust_domain: String,
    pub root_pem: String,
    pub issuer_key: String,
    pub issuer_pem: String,
    pub token_key: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    form: u32,
    trust_domain: String,
    sha256: BTreeMap<String, String>,
}

/// Opens the CA in `dir`; makes it, under a lock, if there is none.
pub fn open_or_make(
    dir: &Path,
    trust_domain: &str,
    make: impl FnOnce() -> Result<Made, CaError>,
) -> Result<Stored, CaError> {
    files::make_private_dir(dir).map_err(failed("make", dir))?;
    let lock = lock(&dir.join("lock"))?;
    let stored = if let Some(stored) = open(dir)? {
        stored
    } else {
        remove_unfinished(dir)?;
        write(dir, trust_domain, &make()?)?;
        open(dir)?.ok_or_else(|| CaError::Absent(dir.to_owned()))?
    };
    if stored.trust_domain != trust_domain {
        let (found, wanted) = (stored.trust_domain, trust_domain.to_owned());
        return Err(CaError::OtherTrustDomain { dir: dir.to_owned(), found, wanted });
    }
    publish_root(dir, &stored.root_pem)?;
    drop(lock);
    Ok(stored)
}

/// Opens the CA in `dir`; `None` if there is none.
pub fn open(dir: &Path) -> Result<Option<Stored>, CaError> {
    let keys = dir.join(KEYS);
    match fs::metadata(&keys) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", &keys)(e)),
    }
    files::tighten(&keys, PRIVATE_DIR).map_err(failed("restrict", &keys))?;
    let damaged = |what: String| CaError::Damaged { dir: dir.to_owned(), what };
    let manifest: Manifest = serde_json::from_str(&read(dir, MANIFEST)?)
        .map_err(|e| damaged(format!("{KEYS}/{MANIFEST} cannot be parsed ({e})")))?;
    if manifest.form != FORM {
        return Err(damaged(format!("{KEYS}/{MANIFEST} has form {}, this version knows {FORM}", manifest.form)));
    }
    let part = |name: &str| {
        let text = read(dir, name)?;
        if manifest.sha256.get(name) == Some(&files::checksum(text.as_bytes())) {
            Ok(text)
        } else {
            Err(damaged(format!("{KEYS}/{name} does not match its checksum")))
        }
    };
    Ok(Some(Stored {
        root_pem: part(ROOT)?,
        issuer_key: part(ISSUER_KEY)?,
        issuer_pem: part(ISSUER)?,
        token_key: part(TOKEN_KEY)?,
        trust_domain: manifest.trust_domain,
    }))
}

fn read(dir: &Path, name: &str) -> Result<String, CaError> {
    let path = dir.join(KEYS).join(name);
    match fs::read_to_string(&path) {
        Ok(text) => {
            files::tighten(&path, PRIVATE_FILE).map_err(failed("restrict", &path))?;
            Ok(text)
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
            Err(CaError::Damaged { dir: dir.to_owned(), what: format!("{KEYS}/{name}: {e}") })
        }
        Err(e) => Err(failed("read", &path)(e)),
    }
}

/// Held until the file is dropped, also by the death of the process.
fn lock(path: &Path) -> Result<File, CaError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE_FILE).open(path);
    file.and_then(|file| file.lock().map(|()| file)).map_err(failed("lock", path))
}

fn write(dir: &Path, trust_domain: &str, made: &Made) -> Result<(), CaError> {
    let staged = dir.join(format!("{UNFINISHED}{}", files::random_hex(8).map_err(failed("write in", dir))?));
    DirBuilder::new().mode(PRIVATE_DIR).create(&staged).map_err(failed("make", &staged))?;
    let parts = [
        (ROOT_KEY, &made.root_key),
        (ROOT, &made.root_pem),
        (ISSUER_KEY, &made.issuer_key),
        (ISSUER, &made.issuer_pem),
        (TOKEN_KEY, &made.token_key),
    ];
    let put = |name: &str, bytes: &[u8]| {
        let path = staged.join(name);
        files::write_new(&path, bytes, PRIVATE_FILE).map_err(failed("write", &path))
    };
    for (name, text) in parts {
        put(name, text.as_bytes())?;
    }
    let sha256 = parts.iter().map(|(name, text)| ((*name).to_owned(), files::checksum(text.as_bytes()))).collect();
    let manifest = Manifest { form: FORM, trust_domain: trust_domain.to_owned(), sha256 };
    let manifest = serde_json::to_vec_pretty(&manifest).map_err(|e| failed("write", &staged)(e.into()))?;
    put(MANIFEST, &manifest)?;
    let keys = dir.join(KEYS);
    files::sync_dir(&staged)
        .and_then(|()| fs::rename(&staged, &keys))
        .and_then(|()| files::sync_dir(dir))
        .map_err(failed("write", &keys))
}

/// What a crash at first start left. Nothing was ever issued from it: it had not been opened.
fn remove_unfinished(dir: &Path) -> Result<(), CaError> {
    for entry in fs::read_dir(dir).map_err(failed("read", dir))? {
        let entry = entry.map_err(failed("read", dir))?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path()).map_err(failed("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn publish_root(dir: &Path, root_pem: &str) -> Result<(), CaError> {
    let path = dir.join(ROOT);
    if fs::read(&path).is_ok_and(|found| found == root_pem.as_bytes()) {
        return Ok(());
    }
    files::write_atomic(&path, root_pem.as_bytes(), PUBLIC_FILE).map_err(failed("write", &path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path: PathBuf = path.to_owned();
    move |source| CaError::File { action, path, source }
}
