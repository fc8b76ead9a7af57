//! The trust domain's certificate authority.
//!
//! A long-lived root signs an issuer, the issuer signs leaves; all keys are ECDSA P-256. Everything lives in one directory (see
//! [`store`]), made at first start.
//!
//! Invariants
//! - A leaf carries the identity that the caller proved. What the request asks for is compared with it, never copied.
//! - A leaf never outlives its issuer.
//! - The root's key is not held in memory: it signs once, at first start. It may be taken off the machine afterwards.
//!
//! Not here yet: a second root beside the first, for rotation.

mod csr;
mod store;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use weft_engine::identity::Identity;

pub use csr::{CsrError, check_request};

use crate::svid::{KeyPair, Svid, SvidError};
use crate::tls::{CONTROL_SERVER_NAME, Roots, TlsError, control_identity};
use crate::token::TokenKey;
use crate::{files, x509};

/// Certificates start this much before they are issued, so that a peer whose clock is slow takes them.
pub const BACKDATE: Duration = Duration::from_mins(1);
/// Longest life of a leaf; a longer wish is shortened to it.
pub const MAX_VALIDITY: Duration = Duration::from_hours(90 * 24);
/// Life of root and issuer: ten years.
const AUTHORITY_LIFE: Duration = Duration::from_hours(3650 * 24);

/// Why the CA cannot be opened or a certificate cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no CA in the directory.
    #[error("{path} holds no CA; give the --ca-dir of a control that has been started", path = .0.display())]
    Absent(PathBuf),
    /// A file of the CA is missing, altered or cut short.
    #[error("the CA in {dir} is damaged: {what}; restore the directory from a backup, or remove it to make a new CA (every workload \
             then needs the new root.pem)", dir = dir.display())]
    Damaged {
        /// The CA's directory.
        dir: PathBuf,
        /// Which part.
        what: String,
    },
    /// The directory belongs to another mesh.
    #[error("the CA in {dir} is of trust domain `{found}`, not `{wanted}`; give its own directory to each trust domain",
            dir = dir.display())]
    OtherTrustDomain {
        /// The CA's directory.
        dir: PathBuf,
        /// Whose CA it is.
        found: String,
        /// Whose was wanted.
        wanted: String,
    },
    /// The name cannot be a trust domain.
    #[error("`{0}` is no trust domain: lower-case letters, digits, `-`, `.` and `_` only")]
    TrustDomain(String),
    /// The identity is of another mesh.
    #[error("the identity {0} is not of the CA's trust domain")]
    ForeignIdentity(String),
    /// The request is refused.
    #[error("the certificate request is refused: {0}")]
    Csr(#[from] CsrError),
    /// The issuer has expired, or the wanted life is under a second.
    #[error("no certificate can be issued now: {0}")]
    Validity(&'static str),
    /// The library failed to make a key or certificate.
    #[error("a key or certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    /// Control's own certificate could not be put together.
    #[error("control's own certificate could not be made: {0}")]
    Svid(#[from] SvidError),
    /// The CA's own root is not usable.
    #[error("the CA's root cannot be used: {0}")]
    Root(#[from] TlsError),
}

/// The certificate authority of one trust domain.
pub struct Ca {
    dir: PathBuf,
    trust_domain: String,
    root_pem: String,
    issuer_pem: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
    issuer_not_after: SystemTime,
    roots: Roots,
    token_key: TokenKey,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({} in {})", self.trust_domain, self.dir.display())
    }
}

impl Ca {
    /// Opens the CA in `dir`, or makes one if there is none. Several processes may do so at once: one makes it, all open it.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        Self::open_at(dir, trust_domain, SystemTime::now())
    }

    /// [`Ca::open`] at a given time.
    pub fn open_at(dir: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        if Identity::new(trust_domain, "any", "any").is_err() {
            return Err(CaError::TrustDomain(trust_domain.to_owned()));
        }
        let stored = store::open_or_make(dir, trust_domain, || make(trust_domain, now))?;
        let damaged = |what: &str| CaError::Damaged { dir: dir.to_owned(), what: what.to_owned() };
        let issuer_cert = x509::certificates(&stored.issuer_pem).and_then(|mut certs| certs.pop());
        let issuer_cert = issuer_cert.ok_or_else(|| damaged("issuer.pem is no certificate"))?;
        let issuer_key = rcgen::KeyPair::from_pem(&stored.issuer_key).map_err(|_| damaged("issuer.key is no key"))?;
        let token_key = rcgen::KeyPair::from_pem(&stored.token_key).map_err(|_| damaged("token.key is no key"))?;
        Ok(Self {
            dir: dir.to_owned(),
            trust_domain: stored.trust_domain,
            roots: Roots::from_pem(&stored.root_pem)?,
            issuer: Issuer::from_ca_cert_der(&issuer_cert, issuer_key)?,
            issuer_not_after: x509::not_after(&issuer_cert).map_err(|_| damaged("issuer.pem is no certificate"))?,
            token_key: TokenKey::new(token_key),
            root_pem: stored.root_pem,
            issuer_pem: stored.issuer_pem,
        })
    }

    /// The trust domain, such as `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The root certificate, PEM: what every workload must be given.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root, as the TLS configurations take it.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Issues a leaf for the key of the request and the identity that the caller has proved.
    ///
    /// Returns PEM certificates, leaf first, root last. The life is cut to [`MAX_VALIDITY`] and to the issuer's own.
    pub fn issue(
        &self,
        csr_pem: &str,
        identity: &Identity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, CaError> {
        if *identity.trust_domain != *self.trust_domain {
            return Err(CaError::ForeignIdentity(identity.to_string()));
        }
        let key = csr::check(csr_pem, identity)?;
        let params = self.leaf(identity, validity, now)?;
        self.sign(&params, &key)
    }

    /// Control's own certificate: its SPIFFE ID, and the DNS name that clients put into SNI. Issued anew by its holder before it ends.
    pub fn issue_control(&self, validity: Duration, now: SystemTime) -> Result<Svid, CaError> {
        let key = KeyPair::generate()?;
        let identity =
            control_identity(&self.trust_domain).map_err(|_| CaError::TrustDomain(self.trust_domain.clone()))?;
        let public = csr::check(&key.csr(&identity)?, &identity)?;
        let mut params = self.leaf(&identity, validity, now)?;
        params.subject_alt_names.push(SanType::DnsName(CONTROL_SERVER_NAME.try_into()?));
        Ok(Svid::new(key, &self.sign(&params, &public)?)?)
    }

    fn leaf(&self, identity: &Identity, validity: Duration, now: SystemTime) -> Result<CertificateParams, CaError> {
        if validity < Duration::from_secs(1) {
            return Err(CaError::Validity("the wanted life is under a second"));
        }
        if now >= self.issuer_not_after {
            return Err(CaError::Validity("the CA's issuer has expired"));
        }
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + validity.min(MAX_VALIDITY)).min(self.issuer_not_after).into();
        params.serial_number = Some(serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<Vec<String>, CaError> {
        let leaf = params.signed_by(key, &self.issuer)?.pem();
        Ok(vec![leaf, self.issuer_pem.clone(), self.root_pem.clone()])
    }

    /// A chain for any parameters, for tests of what the CA would never issue.
    #[cfg(test)]
    pub(crate) fn sign_for_test(
        &self,
        params: &CertificateParams,
        key: &rcgen::KeyPair,
    ) -> Vec<rustls_pki_types::CertificateDer<'static>> {
        self.sign(params, key).unwrap().iter().flat_map(|pem| x509::certificates(pem).unwrap()).collect()
    }

    pub(crate) fn own_token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// The token key and trust domain of the CA in `dir`, without opening the rest.
    pub(crate) fn token_key(dir: &Path) -> Result<(TokenKey, String), CaError> {
        let stored = store::open(dir)?.ok_or_else(|| CaError::Absent(dir.to_owned()))?;
        let key = rcgen::KeyPair::from_pem(&stored.token_key)
            .map_err(|_| CaError::Damaged { dir: dir.to_owned(), what: "token.key is no key".into() })?;
        Ok((TokenKey::new(key), stored.trust_domain))
    }
}

/// The serial number of an issued certificate (PEM), lower-case hex: what an audit log names it by.
pub fn serial_of(leaf_pem: &str) -> Option<String> {
    let leaf = x509::certificates(leaf_pem)?.into_iter().next()?;
    x509::leaf(&leaf).ok().map(|leaf| leaf.serial)
}

/// 128 random bits, never zero or negative (RFC 5280 section 4.1.2.2).
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = files::random(16).map_err(|_| rcgen::Error::RingUnspecified)?;
    // The top bit off: DER would prefix a zero octet, and some tools print such serials as negative.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from(bytes))
}

/// A new root, an issuer signed by it, and a key for tokens.
fn make(trust_domain: &str, now: SystemTime) -> Result<store::Made, CaError> {
    let new_key = || rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
    let (root_key, issuer_key, token_key) = (new_key()?, new_key()?, new_key()?);
    let root_params = authority(trust_domain, "root", BasicConstraints::Constrained(1), now)?;
    let root = root_params.self_signed(&root_key)?;
    let issuer_params = authority(trust_domain, "issuer", BasicConstraints::Constrained(0), now)?;
    let issuer = issuer_params.signed_by(&issuer_key, &Issuer::from_params(&root_params, &root_key))?;
    Ok(store::Made {
        root_key: root_key.serialize_pem(),
        root_pem: root.pem(),
        issuer_key: issuer_key.serialize_pem(),
        issuer_pem: issuer.pem(),
        token_key: token_key.serialize_pem(),
    })
}

/// No name constraints: webpki refuses URI constraints outright (RUSTSEC-2026-0098); the verifiers compare the trust domain instead.
fn authority(
    trust_domain: &str,
    role: &str,
    depth: BasicConstraints,
    now: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    // Part of the name is random, so that two CAs of one trust domain are never mistaken for each other when chains are built.
    let distinct = files::random_hex(4).map_err(|_| rcgen::Error::RingUnspecified)?;
    params.distinguished_name.push(DnType::CommonName, format!("weft {role} {distinct}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(depth);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests;
