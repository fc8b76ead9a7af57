//! A workload's key and certificate chain (SPIFFE calls the pair an X.509-SVID).
//!
//! Invariants
//! - The key belongs to the leaf, and the leaf names exactly one SPIFFE ID: checked when it is made, so holders need not.
//! - The key never shows in `Debug`, and is written to disk only into a file of mode 0600.
//! - A saved one is used whole or not at all: a checksum covers the file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use weft_engine::identity::Identity;

use crate::ca::BACKDATE;
use crate::files::{self, FileError, Form};
pub use crate::x509::Life;
use crate::x509::{self, LeafError};

/// File name in the state directory.
const FILE: &str = "svid.pem";
/// A key and a few certificates take a few KiB.
const FORM: Form = Form { name: "weft-svid-1", max_bytes: 1 << 20 };

/// Why a key or a chain could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// The library could not make a key or a request.
    #[error("a key or certificate request could not be made: {0}")]
    Make(rcgen::Error),
    /// The chain has a block that is no certificate, or none at all.
    #[error("the certificate chain is empty or not PEM; the CA must answer with the leaf first and the root last")]
    Chain,
    /// The leaf is not what the mesh takes.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A key from elsewhere is of no use.
    #[error("the private key is not PKCS #8 in DER of a kind that TLS takes (ECDSA P-256 or P-384, Ed25519, RSA)")]
    Pkcs8,
    /// Key and leaf do not belong together.
    #[error("the certificate was issued for another key than ours; the CA mixed up requests, ask again")]
    OtherKey,
    /// rustls cannot use the key.
    #[error("the key cannot be used for TLS: {0}")]
    Key(rustls::Error),
    /// The file cannot be read or written.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is damaged or of another form.
    #[error("{path} is damaged or of another version and is not used; remove it, a new certificate will be asked for", path = .0.display())]
    Damaged(PathBuf),
}

/// A new private key (ECDSA P-256) that no certificate belongs to yet. A clone is the same key.
#[derive(Clone)]
pub struct KeyPair(Arc<rcgen::KeyPair>);

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(secret)")
    }
}

impl KeyPair {
    /// Makes a key. Fails only if the system's random generator does.
    pub fn generate() -> Result<Self, SvidError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(SvidError::Make)?;
        Ok(Self(Arc::new(key)))
    }

    /// The request (PKCS #10, PEM) for a certificate with this identity.
    pub fn csr(&self, identity: &Identity) -> Result<String, SvidError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().map_err(SvidError::Make)?)];
        params.serialize_request(&*self.0).and_then(|request| request.pem()).map_err(SvidError::Make)
    }
}

/// When the certificates of a chain are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lives {
    /// The workload's own.
    pub leaf: Life,
    /// Of those between it and the root, the one that ends first.
    pub issuer: Option<Life>,
    /// The root, if the CA has sent it.
    pub root: Option<Life>,
}

/// A key with the chain that proves whose it is.
pub struct Svid {
    key: KeyPair,
    chain_pem: Vec<String>,
    certified: Arc<CertifiedKey>,
    leaf: x509::Leaf,
    lives: Lives,
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.leaf.identity.to_string())
            .field("serial", &self.leaf.serial)
            .field("not_after", &self.leaf.not_after)
            .finish_non_exhaustive()
    }
}

impl Svid {
    /// Joins a key with its chain: leaf first, root last, each element one or more PEM blocks.
    pub fn new(key: KeyPair, chain_pem: &[String]) -> Result<Self, SvidError> {
        let mut chain: Vec<CertificateDer<'static>> = Vec::new();
        for element in chain_pem {
            chain.extend(x509::certificates(element).ok_or(SvidError::Chain)?);
        }
        Self::join(key, &chain, chain_pem.to_vec())
    }

    /// What another implementation of SPIFFE's Workload API gave: the key in PKCS #8, the chain leaf first, one certificate behind the other.
    /// It cannot be saved: whoever gave it gives it again.
    pub fn from_der(key: &[u8], chain: &[u8]) -> Result<Self, SvidError> {
        let key = rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(key)).map_err(|_| SvidError::Pkcs8)?;
        Self::join(KeyPair(Arc::new(key)), &x509::concatenated(chain).ok_or(SvidError::Chain)?, Vec::new())
    }

    fn join(key: KeyPair, chain: &[CertificateDer<'static>], chain_pem: Vec<String>) -> Result<Self, SvidError> {
        let leaf = x509::leaf(chain.first().ok_or(SvidError::Chain)?)?;
        let lives = lives(&leaf, chain)?;
        // A root on the wire is dead weight: the peer trusts its own copy or none.
        let wire: Vec<_> = chain
            .iter()
            .enumerate()
            .filter(|(i, cert)| *i == 0 || !x509::self_issued(cert))
            .map(|(_, c)| c.clone())
            .collect();
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.0.serialize_der()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(SvidError::Key)?;
        let certified = CertifiedKey::new(wire, signer);
        certified.keys_match().map_err(|_| SvidError::OtherKey)?;
        Ok(Self { key, chain_pem, certified: Arc::new(certified), leaf, lives })
    }

    /// Whom it proves.
    pub fn identity(&self) -> &Identity {
        &self.leaf.identity
    }

    /// The leaf's serial number, lower-case hex.
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// Which key it is: SHA-256 of the public key, lower-case hex. Two certificates for one key have the same.
    pub fn key_id(&self) -> String {
        files::checksum(self.key.0.public_key_raw())
    }

    /// Start of the leaf's validity, which our CA dates back by [`BACKDATE`].
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// End of the leaf's validity.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// When it, its issuer and its root are valid.
    pub fn lives(&self) -> Lives {
        self.lives
    }

    /// Whether the leaf is valid at this time.
    pub fn valid_at(&self, now: SystemTime) -> bool {
        self.leaf.not_before <= now && now < self.leaf.not_after
    }

    /// When to ask for the next one: at 2/3 of the life, moved by the share `jitter` of that (-0.1 is 10% sooner; bounded to
    /// +-0.3), so that proxies that started together do not renew together.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        // The backdating is no life. A leaf that has nothing but it comes from another CA, which does not backdate.
        let issued = self.leaf.not_before + BACKDATE;
        let start = if issued < self.leaf.not_after { issued } else { self.leaf.not_before };
        let life = self.leaf.not_after.duration_since(start).unwrap_or(Duration::ZERO);
        let jitter = if jitter.is_finite() { jitter.clamp(-0.3, 0.3) } else { 0.0 };
        start + life.mul_f64(2.0 / 3.0 * (1.0 + jitter))
    }

    /// The chain as the CA gave it; empty if it came [as DER](Svid::from_der).
    pub fn chain_pem(&self) -> &[String] {
        &self.chain_pem
    }

    /// The chain as it goes over the wire, one certificate behind the other: leaf first, without a root.
    pub fn chain_der(&self) -> Vec<u8> {
        self.certified.cert.iter().flat_map(|certificate| certificate.iter().copied()).collect()
    }

    /// The private key. Only for whom the certificate was asked for.
    pub fn key_der(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.0.serialize_der())
    }

    /// Key and chain, as rustls takes them.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// Keeps key and chain in the directory (made with 0700 if absent) as one file of mode 0600.
    pub fn save(&self, dir: &Path) -> Result<(), SvidError> {
        if self.chain_pem.is_empty() {
            return Err(SvidError::Chain);
        }
        let body =
            self.key.0.serialize_pem() + &self.chain_pem.iter().map(|pem| ensure_newline(pem)).collect::<String>();
        let path = dir.join(FILE);
        FORM.write(&path, body.as_bytes()).map_err(|source| SvidError::File { action: "write", path, source })
    }

    /// What [`Svid::save`] kept; `None` if nothing was. Whether it is still valid is for the caller to ask.
    pub fn load(dir: &Path) -> Result<Option<Self>, SvidError> {
        let path = dir.join(FILE);
        let body = match FORM.read(&path) {
            Ok(Some(found)) => found.body,
            Ok(None) => return Ok(None),
            Err(FileError::Damaged { path, .. }) => return Err(SvidError::Damaged(path)),
            Err(FileError::Read { path, source }) => return Err(SvidError::File { action: "read", path, source }),
        };
        files::tighten(&path, files::PRIVATE_FILE).map_err(|source| SvidError::File {
            action: "restrict",
            path: path.clone(),
            source,
        })?;
        Self::parse(&body).map(Some).ok_or(SvidError::Damaged(path))
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let body = std::str::from_utf8(body).ok()?;
        // The key is the first block, the chain all that follows.
        let key = rcgen::KeyPair::from_pem(body).ok()?;
        let chain = body.find("-----BEGIN CERTIFICATE-----").map(|at| body[at..].to_owned())?;
        Self::new(KeyPair(Arc::new(key)), &[chain]).ok()
    }
}

fn lives(leaf: &x509::Leaf, chain: &[CertificateDer<'_>]) -> Result<Lives, LeafError> {
    let leaf = Life { not_before: leaf.not_before, not_after: leaf.not_after };
    let mut lives = Lives { leaf, issuer: None, root: None };
    for certificate in chain.iter().skip(1) {
        let life = x509::life(certificate)?;
        let kept = if x509::self_issued(certificate) { &mut lives.root } else { &mut lives.issuer };
        if kept.is_none_or(|kept| life.not_after < kept.not_after) {
            *kept = Some(life);
        }
    }
    Ok(lives)
}

fn ensure_newline(pem: &str) -> String {
    format!("{}\n", pem.trim_end())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ca::Ca;

    fn issue(life: Duration) -> (tempfile::TempDir, Ca, Svid, SystemTime) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
        let identity = Identity::new("cluster.local", "shop", "web").unwrap();
        let key = KeyPair::generate().unwrap();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
        let chain = ca.issue(&key.csr(&identity).unwrap(), &identity, life, now).unwrap();
        (dir, ca, Svid::new(key, &chain).unwrap(), now)
    }

    #[test]
    fn renews_at_two_thirds_of_the_life_that_counts_from_issue() {
        for life in [10, 3600, 86400] {
            let (_dir, _ca, svid, now) = issue(Duration::from_secs(life));
            let after = |jitter| svid.renew_at(jitter).duration_since(now).unwrap().as_secs_f64() / life as f64;
            assert!((after(0.0) - 0.6667).abs() < 0.001, "{}", after(0.0));
            assert!((after(-0.1) - 0.6).abs() < 0.001);
            assert!((after(0.1) - 0.7333).abs() < 0.001);
            assert!(after(f64::NAN) < 1.0 && after(1e9) < 1.0 && after(-1e9) > 0.0);
            assert!(svid.valid_at(now) && !svid.valid_at(now + Duration::from_secs(life)));
        }
    }

    #[test]
    fn knows_how_long_those_live_that_it_hangs_on() {
        let (_dir, _ca, svid, now) = issue(Duration::from_hours(1));
        let Lives { leaf, issuer: Some(issuer), root: Some(root) } = svid.lives() else { panic!("{:?}", svid.lives()) };
        assert_eq!(leaf, Life { not_before: now - BACKDATE, not_after: now + Duration::from_hours(1) });
        assert_eq!((leaf.not_before, leaf.not_after), (svid.not_before(), svid.not_after()));
        for authority in [issuer, root] {
            assert!(authority.not_after > now + Duration::from_hours(3600 * 24) && authority.not_before <= now);
        }
        // A CA may keep its root to itself.
        let key = rcgen::KeyPair::from_pem(&svid.key.0.serialize_pem()).unwrap();
        let without = Svid::new(KeyPair(Arc::new(key)), &svid.chain_pem()[..2]).unwrap();
        assert_eq!((without.lives().issuer, without.lives().root), (Some(issuer), None));
    }

    #[test]
    fn is_kept_and_found_again() {
        let (dir, ca, svid, _) = issue(Duration::from_hours(1));
        let state = dir.path().join("state");
        assert!(Svid::load(&state).unwrap().is_none());
        svid.save(&state).unwrap();
        let path = state.join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        let again = Svid::load(&state).unwrap().unwrap();
        assert_eq!((again.serial(), again.identity()), (svid.serial(), svid.identity()));
        assert_eq!(again.not_after(), svid.not_after());
        again.save(&state).unwrap();
        assert_eq!(Svid::load(&state).unwrap().unwrap().serial(), svid.serial());
        // The chain on the wire is leaf and issuer: no root.
        assert_eq!(again.certified.cert.len(), 2);
        drop(ca);
    }

    #[test]
    fn comes_back_whole_from_der_and_nothing_else_passes() {
        let (dir, _ca, svid, _) = issue(Duration::from_hours(1));
        let (key, chain) = (svid.key_der(), svid.chain_der());
        assert!(format!("{key:?}").contains("elided"));
        let again = Svid::from_der(key.secret_pkcs8_der(), &chain).unwrap();
        assert_eq!((again.serial(), again.key_id()), (svid.serial(), svid.key_id()));
        assert_eq!(again.chain_der(), svid.chain_der());
        assert!(matches!(again.save(dir.path()), Err(SvidError::Chain)));
        assert!(matches!(Svid::from_der(b"no key", &chain), Err(SvidError::Pkcs8)));
        let other = KeyPair::generate().unwrap().0.serialize_der();
        assert!(matches!(Svid::from_der(&other, &chain), Err(SvidError::OtherKey)));
        for broken in [&b""[..], &chain[..chain.len() - 1], &[&chain, &b"more"[..]].concat()] {
            assert!(matches!(Svid::from_der(key.secret_pkcs8_der(), broken), Err(SvidError::Chain)));
        }
    }

    #[test]
    fn a_damaged_file_is_not_used() {
        let (dir, _ca, svid, _) = issue(Duration::from_hours(1));
        let state = dir.path().join("state");
        svid.save(&state).unwrap();
        let path = state.join(FILE);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damage in [&b""[..], &whole[..whole.len() - 30], &flipped, b"\xff", b"weft-svid-2 sha256=00\n"] {
            fs::write(&path, damage).unwrap();
            assert!(matches!(Svid::load(&state), Err(SvidError::Damaged(_))));
        }
    }

    #[test]
    fn a_chain_for_another_key_is_refused() {
        let (_dir, _ca, svid, _) = issue(Duration::from_hours(1));
        let error = Svid::new(KeyPair::generate().unwrap(), svid.chain_pem()).unwrap_err();
        assert!(matches!(error, SvidError::OtherKey), "{error}");
        for chain in [vec![], vec![String::new()], vec!["-----BEGIN CERTIFICATE-----\nAAAA".to_owned()]] {
            assert!(Svid::new(KeyPair::generate().unwrap(), &chain).is_err());
        }
    }
}
