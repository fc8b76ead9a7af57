//! An issuer that somebody else keeps: three files, as a Secret of cert-manager has them. It is taken over into the CA's directory, so that
//! the one before it can go on issuing until every proxy believes the new one's root.
//!
//! Invariant: it is taken whole and only if it can issue: key and certificate belong together, and a leaf that it signs leads to its root.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::PublicKeyData as _;
use rustls_pki_types::CertificateDer;
use weft_engine::identity::Identity;

use super::{CaError, Signer, csr, leaf};
use crate::svid::KeyPair;
use crate::{inspect, x509};

/// The issuer, and those between it and the root.
const ISSUER: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOT: &str = "ca.crt";
/// Longer files are none of these.
const MAX_BYTES: u64 = 256 * 1024;
/// Life of the leaf that it has to sign before it is taken.
const PROBE: Duration = Duration::from_mins(1);

/// What is given: PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Given {
    dir: PathBuf,
    pub(super) issuer_pem: String,
    pub(super) key_pem: String,
    pub(super) root_pem: String,
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Given({})", self.dir.display())
    }
}

impl Given {
    /// Reads `tls.crt`, `tls.key` and `ca.crt`.
    ///
    /// # Errors
    /// [`CaError::File`].
    pub fn read(dir: &Path) -> Result<Self, CaError> {
        let file = |name: &str| {
            let path = dir.join(name);
            read(&path).map_err(|source| CaError::File { action: "read", path, source })
        };
        Ok(Self { issuer_pem: file(ISSUER)?, key_pem: file(KEY)?, root_pem: file(ROOT)?, dir: dir.to_owned() })
    }

    fn refused(&self, what: impl Into<String>) -> CaError {
        CaError::Given { dir: self.dir.clone(), what: what.into() }
    }

    /// The issuer's own certificate, and the root's.
    ///
    /// # Errors
    /// [`CaError::Given`].
    pub(super) fn certificates(&self) -> Result<(CertificateDer<'static>, CertificateDer<'static>), CaError> {
        let issuer = x509::certificates(&self.issuer_pem).and_then(|certs| certs.into_iter().next());
        let issuer = issuer.ok_or_else(|| self.refused(format!("{ISSUER} is no certificate")))?;
        let mut roots = x509::certificates(&self.root_pem).unwrap_or_default();
        match (roots.pop(), roots.is_empty()) {
            (Some(root), true) => Ok((issuer, root)),
            _ => Err(self.refused(format!("{ROOT} is not one certificate"))),
        }
    }

    /// Whether it can issue certificates of this trust domain that lead to its root.
    ///
    /// # Errors
    /// [`CaError::Given`], with what is wrong.
    pub fn check(&self, trust_domain: &str, now: SystemTime) -> Result<(), CaError> {
        let (issuer, _) = self.certificates()?;
        let key = rcgen::KeyPair::from_pem(&self.key_pem)
            .map_err(|_| self.refused(format!("{KEY} is no private key in PEM that can sign")))?;
        if x509::public_key(&issuer).as_deref() != Some(&key.subject_public_key_info()[..]) {
            return Err(self.refused(format!("{KEY} is not the key of {ISSUER}")));
        }
        let signer = Signer::new(self.issuer_pem.clone(), self.root_pem.clone(), &issuer, key)
            .map_err(|error| self.refused(error.to_string()))?;
        let chain = probe(&signer, trust_domain, now).map_err(|error| self.refused(error.to_string()))?;
        let looked = inspect::inspect(chain[..2].concat().as_bytes(), Some(self.root_pem.as_bytes()), now);
        match looked {
            Ok(report) if report.ok => Ok(()),
            Ok(report) => {
                let problems: Vec<_> = report.problems.iter().map(|problem| problem.text.as_str()).collect();
                Err(self.refused(format!("a certificate that it signs would not be believed: {}", problems.join("; "))))
            }
            Err(error) => Err(self.refused(error.to_string())),
        }
    }
}

/// A certificate that nobody gets.
fn probe(signer: &Signer, trust_domain: &str, now: SystemTime) -> Result<Vec<String>, CaError> {
    let identity = Identity::new(trust_domain, "weft-system", "probe")
        .map_err(|_| CaError::TrustDomain(trust_domain.to_owned()))?;
    let public = csr::check(&KeyPair::generate()?.csr(&identity)?, &identity, &[trust_domain])?;
    signer.sign(&leaf(&identity, PROBE, signer.not_after, now)?, &public)
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
