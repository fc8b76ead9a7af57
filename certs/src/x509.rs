//! What is read from certificates: names, times, serials.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use weft_engine::identity::Identity;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::revoked::Serial;

/// What a leaf says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its one SPIFFE ID.
    pub identity: Identity,
    /// Uid of the pod that it was issued to, if a pod was proved.
    pub pod: Option<String>,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// The same as a number.
    pub number: Serial,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its start.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
}

/// A certificate is not what the mesh takes for a workload's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// Not DER of an X.509 certificate.
    #[error("the certificate cannot be parsed as X.509")]
    NotX509,
    /// Not exactly one URI name.
    #[error("the certificate has {0} URI names where exactly one SPIFFE ID is needed")]
    UriNames(usize),
    /// The URI is no identity of the mesh.
    #[error("the certificate's URI name {0}")]
    NotAnIdentity(#[from] weft_engine::identity::NotAnIdentity),
}

/// The one SPIFFE ID of a certificate, chain and times unchecked.
pub fn identity(cert: &CertificateDer<'_>) -> Result<Identity, LeafError> {
    Ok(uri_name(cert)?.parse()?)
}

/// The same as text: of other meshes' workloads the path may be any.
pub fn uri_name(cert: &CertificateDer<'_>) -> Result<String, LeafError> {
    let parsed = webpki::EndEntityCert::try_from(cert).map_err(|_| LeafError::NotX509)?;
    let mut names = parsed.valid_uri_names();
    match (names.next(), names.next()) {
        (Some(one), None) => Ok(one.to_owned()),
        (None, _) => Err(LeafError::UriNames(0)),
        (Some(_), Some(_)) => Err(LeafError::UriNames(2 + names.count())),
    }
}

/// Reads a leaf, chain unchecked.
pub fn leaf(cert: &CertificateDer<'_>) -> Result<Leaf, LeafError> {
    let identity = identity(cert)?;
    let (_, parsed) = X509Certificate::from_der(cert).map_err(|_| LeafError::NotX509)?;
    let Life { not_before, not_after } = life_of(&parsed);
    let (serial, number) = (crate::files::hex(parsed.raw_serial()), Serial::of(parsed.raw_serial()));
    Ok(Leaf { identity, pod: pod_of(&parsed), serial, number, not_before, not_after })
}

/// How the uid of a pod is written: into the subject's serial number, which names the one thing of many that a certificate is for
/// (X.520; IEEE 802.1AR has devices there). Verifiers of SPIFFE's certificates look at URI names alone.
pub fn pod_text(uid: &str) -> String {
    format!("{POD}{uid}")
}

const POD: &str = "pod:";

fn pod_of(cert: &X509Certificate<'_>) -> Option<String> {
    let mut numbers = cert.subject().iter_by_oid(&OID_X509_SERIALNUMBER).filter_map(|number| number.as_str().ok());
    numbers.find_map(|number| number.strip_prefix(POD)).map(str::to_owned)
}

/// End of validity of any certificate.
pub fn not_after(cert: &CertificateDer<'_>) -> Result<SystemTime, LeafError> {
    Ok(life(cert)?.not_after)
}

/// When any certificate is valid.
pub fn life(cert: &CertificateDer<'_>) -> Result<Life, LeafError> {
    let (_, parsed) = X509Certificate::from_der(cert).map_err(|_| LeafError::NotX509)?;
    Ok(life_of(&parsed))
}

/// The same of one that is parsed already.
pub fn life_of(cert: &X509Certificate<'_>) -> Life {
    let validity = cert.validity();
    Life {
        not_before: from_unix(validity.not_before.timestamp()),
        not_after: from_unix(validity.not_after.timestamp()),
    }
}

/// The public key of a certificate with its kind (SubjectPublicKeyInfo, DER).
pub fn public_key(cert: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

/// Whether a certificate is its own issuer: a root.
pub fn self_issued(cert: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(cert).is_ok_and(|(_, parsed)| parsed.issuer().as_raw() == parsed.subject().as_raw())
}

/// All certificates of a PEM text, in order; `None` if a block is broken.
pub fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().ok()
}

/// Certificates as DER, one behind the other with nothing between, as SPIFFE has them; `None` if anything else is among them.
pub fn concatenated(mut der: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).ok()?;
        found.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Some(found)
}

fn from_unix(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}
