//! Where a CA lives, and what is written there.
//!
//! A [`Store`] holds a set of named files and exchanges it as a whole; what the files are is known here alone:
//!
//! ```text
//! ca.json               form, trust domain, revision, which roots and issuers there are, checksum of every other file
//! token.key
//! NAME.key NAME.pem     of each root and each issuer; of the first generation they are `root` and `issuer`
//! ```
//!
//! Invariants
//! - A change is whole: a crash, or an answer that is lost, leaves the CA of before or the one of after.
//! - Of two that change the same CA at once one succeeds: each says what it has seen.
//! - What is missing or altered later is damage, and is said, never mended in silence: a CA made anew would strand every workload.
//! - The root's key may be taken away from any home; nothing but a new issuer needs it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::CaError;
use super::directory::Directory;
use super::rotation::Authorities;
use crate::files;

/// Without revision and authorities: what a CA was before it could be rotated. Read, and written as the newer form by the first change.
const FIRST_FORM: u32 = 1;
const FORM: u32 = 2;
/// Bytes of all files of a CA together: a Kubernetes Secret takes twice as much.
pub const MAX_BYTES: usize = 512 * 1024;
/// Name of the file that says what the others are. A store that cannot exchange all files at once writes it last.
pub const MANIFEST: &str = "ca.json";
/// Name of the file with the key of join tokens.
pub const TOKEN_KEY: &str = "token.key";

/// Where a CA lives. All of it blocks, for a bounded time.
pub trait Store: fmt::Debug + Send + Sync {
    /// Where that is, for sentences: `the CA in {place}`.
    fn place(&self) -> String;

    /// Where one file of it is, for sentences.
    fn part(&self, file: &str) -> String;

    /// What is there, without reading all of it; `None` if there is no CA. It may lag by a second behind other writers.
    ///
    /// # Errors
    /// The home cannot be asked: [`CaError::File`], [`CaError::Home`].
    fn version(&self) -> Result<Option<Version>, CaError>;

    /// Everything that is there now, of one version; `None` if there is no CA.
    ///
    /// # Errors
    /// As [`Store::version`], and [`CaError::Damaged`] if it is larger than [`MAX_BYTES`].
    fn read(&self) -> Result<Option<Held>, CaError>;

    /// Puts all files there, if there is no CA. Of several that do so at once, one succeeds.
    ///
    /// # Errors
    /// [`CaError::Conflict`]: somebody else's is there. [`CaError::Gone`]: there was one, and who removed it may not have meant to.
    fn create(&self, files: &Content) -> Result<(), CaError>;

    /// Exchanges all files, if what is there is still what was `seen`: what the CA does not name any more goes. Returns what is there then.
    ///
    /// # Errors
    /// [`CaError::Conflict`]: it is not, nothing has changed. After any other error it may have changed or not.
    fn replace(&self, seen: &Version, files: &Content) -> Result<Version, CaError>;

    /// Puts the roots, PEM, where people and new proxies find them, unless they are there, or something newer than what was `seen` is.
    ///
    /// # Errors
    /// The home cannot be asked or written.
    fn publish(&self, seen: &Version, roots: &str) -> Result<(), CaError>;
}

/// The [`Store`] of one CA, shared by who uses it. A path is that of a [`Directory`].
#[derive(Clone, Debug)]
pub struct Home(Arc<dyn Store>);

impl Deref for Home {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl From<Arc<dyn Store>> for Home {
    fn from(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
}

impl From<&Path> for Home {
    fn from(dir: &Path) -> Self {
        Self(Arc::new(Directory::new(dir)))
    }
}

impl From<&PathBuf> for Home {
    fn from(dir: &PathBuf) -> Self {
        Self::from(dir.as_path())
    }
}

/// One content of a store; another content has another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub String);

/// Bytes by file name.
pub type Content = BTreeMap<String, Vec<u8>>;

/// What a store holds at one moment.
#[derive(Clone)]
pub struct Held {
    /// Which content that is.
    pub version: Version,
    /// The files, keys among them.
    pub files: Content,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({:?}: {:?})", self.version, self.files.keys())
    }
}

/// Whether a file is the CA's by its name. Others, in the same home, are left alone.
pub fn is_ours(file: &str) -> bool {
    file == MANIFEST || matches!(file.rsplit_once('.'), Some((_, "pem" | "key")))
}

/// File contents by name: PEM.
pub(super) type Files = BTreeMap<String, String>;

/// Name of the file with a certificate.
pub(super) fn certificate_file(name: &str) -> String {
    format!("{name}.pem")
}

/// Name of the file with a key. A root's is used when a new issuer is made, so it may be kept elsewhere meanwhile.
pub(super) fn key_file(name: &str) -> String {
    format!("{name}.key")
}

/// What is needed of a CA, PEM, checksums proved.
pub(super) struct Stored {
    pub version: Version,
    /// The name that it was made under.
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

impl Manifest {
    fn text(&self, store: &dyn Store) -> Result<Vec<u8>, CaError> {
        serde_json::to_vec_pretty(self).map_err(|error| CaError::Home {
            action: "write",
            place: store.part(MANIFEST),
            why: error.to_string(),
        })
    }
}

/// Opens the CA; makes it with the `first` authorities, of the files that `make` gives, if there is none.
pub(super) fn open_or_make(
    store: &dyn Store,
    trust_domain: &str,
    first: Authorities,
    make: impl FnOnce(&Authorities) -> Result<Files, CaError>,
) -> Result<Stored, CaError> {
    let held = match store.read()? {
        Some(held) => held,
        None => {
            match store.create(&content(store, trust_domain, make(&first)?, first)?) {
                // Somebody else's is as good.
                Ok(()) | Err(CaError::Conflict) => {}
                Err(error) => return Err(error),
            }
            store.read()?.ok_or_else(|| CaError::Gone(store.place()))?
        }
    };
    let stored = open(store, &held)?;
    if !stored.authorities.every_name(&stored.trust_domain).any(|name| name == trust_domain) {
        let (found, wanted) = (stored.authorities.called(&stored.trust_domain).to_owned(), trust_domain.to_owned());
        return Err(CaError::OtherTrustDomain { place: store.place(), found, wanted });
    }
    publish(store, &stored)?;
    Ok(stored)
}

/// Opens the CA; `None` if there is none.
pub(super) fn load(store: &dyn Store) -> Result<Option<Stored>, CaError> {
    store.read()?.map(|held| open(store, &held)).transpose()
}

fn open(store: &dyn Store, held: &Held) -> Result<Stored, CaError> {
    let manifest = manifest(store, held)?;
    let authorities = &manifest.authorities;
    let certificates =
        authorities.roots().chain(authorities.issuers().keys().map(String::as_str)).map(certificate_file);
    let names = certificates.chain(authorities.issuers().keys().map(|issuer| key_file(issuer)));
    let proved = |name: &str| proved(store, &manifest, held, name);
    let files = names.map(|name| Ok((name.clone(), proved(&name)?))).collect::<Result<_, CaError>>()?;
    let token_key = proved(TOKEN_KEY)?;
    let version = held.version.clone();
    let Manifest { trust_domain, revision, authorities, .. } = manifest;
    Ok(Stored { version, trust_domain, revision, authorities, files, token_key })
}

/// The key of a root, which may not be there.
pub(super) fn root_key(store: &dyn Store, name: &str) -> Result<String, CaError> {
    let file = key_file(name);
    let held = store.read()?.ok_or_else(|| CaError::Gone(store.place()))?;
    if !held.files.contains_key(&file) {
        return Err(CaError::RootKey(store.part(&file)));
    }
    proved(store, &manifest(store, &held)?, &held, &file)
}

/// Exchanges the authorities, with the files that are new among them, if the CA is still at `revision`.
pub(super) fn replace(
    store: &dyn Store,
    revision: u64,
    authorities: Authorities,
    new: &Files,
) -> Result<Stored, CaError> {
    let held = store.read()?.ok_or_else(|| CaError::Gone(store.place()))?;
    // Nothing is written over what is damaged.
    if open(store, &held)?.revision != revision {
        return Err(CaError::Conflict);
    }
    let mut manifest = manifest(store, &held)?;
    manifest.sha256.extend(checksums(new));
    let kept: Vec<&str> = authorities.roots().chain(authorities.issuers().keys().map(String::as_str)).collect();
    manifest.sha256.retain(|file, _| file == TOKEN_KEY || kept.iter().any(|name| is_of(file, name)));
    manifest.form = FORM;
    manifest.revision += 1;
    manifest.authorities = authorities;
    let mut files = held.files;
    files.extend(new.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes())));
    files.retain(|name, _| manifest.sha256.contains_key(name));
    files.insert(MANIFEST.to_owned(), manifest.text(store)?);
    let version = store.replace(&held.version, &files)?;
    let stored = open(store, &Held { version, files })?;
    publish(store, &stored)?;
    Ok(stored)
}

fn is_of(file: &str, name: &str) -> bool {
    matches!(file.strip_prefix(name), Some(".pem" | ".key"))
}

fn manifest(store: &dyn Store, held: &Held) -> Result<Manifest, CaError> {
    let damaged = |what: String| CaError::Damaged { place: store.place(), what };
    let text = held.files.get(MANIFEST).ok_or_else(|| damaged(format!("{MANIFEST} is not there")))?;
    let unread = |error: serde_json::Error| damaged(format!("{MANIFEST} cannot be parsed ({error})"));
    // First, so that what a later version has written is not taken for damage.
    let Form { form } = serde_json::from_slice(text).map_err(unread)?;
    if ![FIRST_FORM, FORM].contains(&form) {
        return Err(CaError::OtherForm { place: store.place(), found: form, known: FORM });
    }
    let manifest: Manifest = serde_json::from_slice(text).map_err(unread)?;
    if !manifest.authorities.is_sound() {
        return Err(damaged(format!("{MANIFEST} names roots and issuers that do not fit together")));
    }
    Ok(manifest)
}

fn proved(store: &dyn Store, manifest: &Manifest, held: &Held, name: &str) -> Result<String, CaError> {
    let damaged = |what: &str| CaError::Damaged { place: store.place(), what: format!("{name} {what}") };
    let bytes = held.files.get(name).ok_or_else(|| damaged("is not there"))?;
    if manifest.sha256.get(name) != Some(&files::checksum(bytes)) {
        return Err(damaged("does not match its checksum"));
    }
    String::from_utf8(bytes.clone()).map_err(|_| damaged("is no text"))
}

/// All files of a new CA.
fn content(store: &dyn Store, trust_domain: &str, parts: Files, authorities: Authorities) -> Result<Content, CaError> {
    let sha256 = checksums(&parts).collect();
    let manifest = Manifest { form: FORM, trust_domain: trust_domain.to_owned(), revision: 1, authorities, sha256 };
    let mut content: Content = parts.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
    content.insert(MANIFEST.to_owned(), manifest.text(store)?);
    Ok(content)
}

fn checksums(files: &Files) -> impl Iterator<Item = (String, String)> {
    files.iter().map(|(name, text)| (name.clone(), files::checksum(text.as_bytes())))
}

/// The roots that are published, PEM, one behind the other.
pub(super) fn roots_pem(stored: &Stored) -> String {
    stored
        .authorities
        .published()
        .iter()
        .filter_map(|root| stored.files.get(&certificate_file(root)))
        .cloned()
        .collect()
}

/// [`Store::publish`] of what was read.
pub(super) fn publish(store: &dyn Store, stored: &Stored) -> Result<(), CaError> {
    store.publish(&stored.version, &roots_pem(stored))
}
