//! The CA's directory.
//!
//! ```text
//! DIR/root.pem          the roots that are published, 0644: a copy for people and new proxies, made again if it is lost
//! DIR/lock              held while something is written
//! DIR/keys/             0700, files 0600:
//!     ca.json           form, trust domain, which roots and issuers there are, checksum of every other file
//!     token.key
//!     NAME.key NAME.pem of each root and each issuer; of the first generation they are `root` and `issuer`
//! ```
//!
//! Invariants
//! - `keys/` appears by one rename with everything in it, so a crash at first start leaves no CA rather than half of one.
//! - `ca.json` is replaced as a whole, after the files that it newly names and before those that it no longer names are removed: a crash
//!   leaves the CA of before or the one of after, and files that nobody reads.
//! - Of two that change the same CA at once one succeeds: each says which revision it has seen.
//! - What is missing or altered later is damage, and is said, never mended in silence: a CA made anew would strand every workload.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CaError;
use super::rotation::Authorities;
use crate::files::{self, PRIVATE_DIR, PRIVATE_FILE, PUBLIC_FILE};

/// Without revision and authorities: what a CA was before it could be rotated. Read, and written as the newer form by the first change.
const FIRST_FORM: u32 = 1;
const FORM: u32 = 2;
const KEYS: &str = "keys";
const MANIFEST: &str = "ca.json";
const ROOT: &str = "root.pem";
/// Name of the file with the key of join tokens.
pub const TOKEN_KEY: &str = "token.key";
/// How unfinished `keys/` directories begin.
const UNFINISHED: &str = ".keys.";

/// File contents by name: PEM.
pub type Files = BTreeMap<String, String>;

/// Name of the file with a certificate.
pub fn certificate_file(name: &str) -> String {
    format!("{name}.pem")
}

/// Name of the file with a key. A root's is used when a new issuer is made, so it may be kept elsewhere meanwhile.
pub fn key_file(name: &str) -> String {
    format!("{name}.key")
}

/// What is needed of a CA, PEM, checksums proved.
pub struct Stored {
    pub trust_domain: String,
    pub revision: u64,
    pub authorities: Authorities,
    /// Certificates of roots and issuers and keys of issuers, by file name.
    pub files: Files,
    pub token_key: String,
}

/// Of any version.
#[derive(Deserialize)]
struct Form {
    form: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    form: u32,
    trust_domain: String,
    #[serde(default)]
    revision: u64,
    #[serde(default = "Authorities::first")]
    authorities: Authorities,
    sha256: BTreeMap<String, String>,
}

/// Opens the CA in `dir`; makes it with the `first` authorities, under a lock, of the files that `make` gives, if there is none.
pub fn open_or_make(
    dir: &Path,
    trust_domain: &str,
    first: Authorities,
    make: impl FnOnce(&Authorities) -> Result<Files, CaError>,
) -> Result<Stored, CaError> {
    files::make_private_dir(dir).map_err(failed("make", dir))?;
    let lock = lock(dir)?;
    let stored = if let Some(stored) = open(dir)? {
        stored
    } else {
        remove_unfinished(dir)?;
        write(dir, trust_domain, &make(&first)?, first)?;
        open(dir)?.ok_or_else(|| CaError::Absent(dir.to_owned()))?
    };
    if stored.trust_domain != trust_domain {
        let (found, wanted) = (stored.trust_domain, trust_domain.to_owned());
        return Err(CaError::OtherTrustDomain { dir: dir.to_owned(), found, wanted });
    }
    publish_roots(dir, &stored)?;
    drop(lock);
    Ok(stored)
}

/// Opens the CA in `dir` while nobody changes it; `None` if there is none.
pub fn load(dir: &Path) -> Result<Option<Stored>, CaError> {
    if !dir.join(KEYS).exists() {
        return Ok(None);
    }
    let _held = lock(dir)?;
    open(dir)
}

fn open(dir: &Path) -> Result<Option<Stored>, CaError> {
    let keys = dir.join(KEYS);
    match fs::metadata(&keys) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", &keys)(e)),
    }
    files::tighten(&keys, PRIVATE_DIR).map_err(failed("restrict", &keys))?;
    let manifest = manifest(dir)?;
    let authorities = &manifest.authorities;
    let certificates =
        authorities.roots().chain(authorities.issuers().keys().map(String::as_str)).map(certificate_file);
    let names = certificates.chain(authorities.issuers().keys().map(|issuer| key_file(issuer)));
    let files = names.map(|name| Ok((name.clone(), proved(dir, &manifest, &name)?))).collect::<Result<_, CaError>>()?;
    let token_key = proved(dir, &manifest, TOKEN_KEY)?;
    let Manifest { trust_domain, revision, authorities, .. } = manifest;
    Ok(Some(Stored { trust_domain, revision, authorities, files, token_key }))
}

/// Which revision of the CA is in `dir`.
pub fn revision(dir: &Path) -> Result<u64, CaError> {
    manifest(dir).map(|manifest| manifest.revision)
}

/// The key of a root, which may not be there.
pub fn root_key(dir: &Path, name: &str) -> Result<String, CaError> {
    let file = key_file(name);
    if !dir.join(KEYS).join(&file).exists() {
        return Err(CaError::RootKey(dir.join(KEYS).join(file)));
    }
    proved(dir, &manifest(dir)?, &file)
}

/// Exchanges the authorities, with the files that are new among them, if the CA is still at `revision`.
pub fn replace(dir: &Path, revision: u64, authorities: Authorities, new: &Files) -> Result<Stored, CaError> {
    let lock = lock(dir)?;
    let mut manifest = manifest(dir)?;
    if manifest.revision != revision {
        return Err(CaError::Conflict);
    }
    let keys = dir.join(KEYS);
    for (name, text) in new {
        let path = keys.join(name);
        files::write_atomic(&path, text.as_bytes(), PRIVATE_FILE).map_err(failed("write", &path))?;
    }
    manifest.sha256.extend(checksums(new));
    let kept: Vec<&str> = authorities.roots().chain(authorities.issuers().keys().map(String::as_str)).collect();
    let kept = |file: &str| file == TOKEN_KEY || kept.iter().any(|name| is_of(file, name));
    let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = manifest.sha256.into_iter().partition(|(file, _)| kept(file));
    manifest.sha256 = kept;
    manifest.form = FORM;
    manifest.revision += 1;
    manifest.authorities = authorities;
    let path = keys.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| failed("write", &path)(e.into()))?;
    files::write_atomic(&path, &text, PRIVATE_FILE).map_err(failed("write", &path))?;
    for name in gone.keys() {
        files::remove(&keys.join(name)).map_err(failed("remove", &keys.join(name)))?;
    }
    let stored = open(dir)?.ok_or_else(|| CaError::Absent(dir.to_owned()))?;
    publish_roots(dir, &stored)?;
    drop(lock);
    Ok(stored)
}

fn is_of(file: &str, name: &str) -> bool {
    matches!(file.strip_prefix(name), Some(".pem" | ".key"))
}

fn manifest(dir: &Path) -> Result<Manifest, CaError> {
    let damaged = |what: String| CaError::Damaged { dir: dir.to_owned(), what };
    let text = read(dir, MANIFEST)?;
    let unread = |error: serde_json::Error| damaged(format!("{KEYS}/{MANIFEST} cannot be parsed ({error})"));
    // First, so that what a later version has written is not taken for damage.
    let Form { form } = serde_json::from_str(&text).map_err(unread)?;
    if ![FIRST_FORM, FORM].contains(&form) {
        return Err(CaError::OtherForm { dir: dir.to_owned(), found: form, known: FORM });
    }
    let manifest: Manifest = serde_json::from_str(&text).map_err(unread)?;
    if !manifest.authorities.is_sound() {
        return Err(damaged(format!("{KEYS}/{MANIFEST} names roots and issuers that do not fit together")));
    }
    Ok(manifest)
}

fn proved(dir: &Path, manifest: &Manifest, name: &str) -> Result<String, CaError> {
    let text = read(dir, name)?;
    if manifest.sha256.get(name) == Some(&files::checksum(text.as_bytes())) {
        Ok(text)
    } else {
        Err(CaError::Damaged { dir: dir.to_owned(), what: format!("{KEYS}/{name} does not match its checksum") })
    }
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
fn lock(dir: &Path) -> Result<File, CaError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(PRIVATE_FILE).open(&path);
    file.and_then(|file| file.lock().map(|()| file)).map_err(failed("lock", &path))
}

fn write(dir: &Path, trust_domain: &str, parts: &Files, authorities: Authorities) -> Result<(), CaError> {
    let staged = dir.join(format!("{UNFINISHED}{}", files::random_hex(8).map_err(failed("write in", dir))?));
    DirBuilder::new().mode(PRIVATE_DIR).create(&staged).map_err(failed("make", &staged))?;
    let put = |name: &str, bytes: &[u8]| {
        let path = staged.join(name);
        files::write_new(&path, bytes, PRIVATE_FILE).map_err(failed("write", &path))
    };
    for (name, text) in parts {
        put(name, text.as_bytes())?;
    }
    let sha256 = checksums(parts).collect();
    let manifest = Manifest { form: FORM, trust_domain: trust_domain.to_owned(), revision: 1, authorities, sha256 };
    let manifest = serde_json::to_vec_pretty(&manifest).map_err(|e| failed("write", &staged)(e.into()))?;
    put(MANIFEST, &manifest)?;
    let keys = dir.join(KEYS);
    files::sync_dir(&staged)
        .and_then(|()| fs::rename(&staged, &keys))
        .and_then(|()| files::sync_dir(dir))
        .map_err(failed("write", &keys))
}

fn checksums(files: &Files) -> impl Iterator<Item = (String, String)> {
    files.iter().map(|(name, text)| (name.clone(), files::checksum(text.as_bytes())))
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

/// The roots that are published, PEM, one behind the other.
pub fn roots_pem(stored: &Stored) -> String {
    stored
        .authorities
        .published()
        .iter()
        .filter_map(|root| stored.files.get(&certificate_file(root)))
        .cloned()
        .collect()
}

fn publish_roots(dir: &Path, stored: &Stored) -> Result<(), CaError> {
    let (path, roots) = (dir.join(ROOT), roots_pem(stored));
    if fs::read(&path).is_ok_and(|found| found == roots.as_bytes()) {
        return Ok(());
    }
    files::write_atomic(&path, roots.as_bytes(), PUBLIC_FILE).map_err(failed("write", &path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path: PathBuf = path.to_owned();
    move |source| CaError::File { action, path, source }
}
