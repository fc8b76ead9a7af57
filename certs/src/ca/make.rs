//! What certificates say, and the files of new authorities.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use weft_engine::identity::Identity;

use super::given::Given;
use super::rotation::{Authorities, Begun};
use super::store::{self, Files, certificate_file, key_file};
use super::{BACKDATE, CaError, MAX_VALIDITY};
use crate::files;

/// Life of root and issuer: ten years.
const AUTHORITY_LIFE: Duration = Duration::from_hours(3650 * 24);

/// A certificate for an identity, that ends with its issuer's at the latest.
pub(super) fn leaf(
    identity: &Identity,
    validity: Duration,
    issuer_not_after: SystemTime,
    now: SystemTime,
) -> Result<CertificateParams, CaError> {
    if validity < Duration::from_secs(1) {
        return Err(CaError::Validity("the wanted life is under a second"));
    }
    if now >= issuer_not_after {
        return Err(CaError::Validity("the CA's issuer has expired"));
    }
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + validity.min(MAX_VALIDITY)).min(issuer_not_after).into();
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 128 random bits, never zero or negative (RFC 5280 section 4.1.2.2).
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = files::random(16).map_err(|_| rcgen::Error::RingUnspecified)?;
    // The top bit off: DER would prefix a zero octet, and some tools print such serials as negative.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from(bytes))
}

/// Files of a new CA: a root, an issuer signed by it, and a key for tokens.
pub(super) fn first_files(first: &Authorities, trust_domain: &str, now: SystemTime) -> Result<Files, CaError> {
    let (issuer, root) = (first.issuing().to_owned(), first.published().concat());
    let begun = Begun { root: Some(root.clone()), issuer: (issuer, root) };
    let mut files = new_files(&begun, trust_domain, now, |_| Err(CaError::Conflict))?;
    files.insert(store::TOKEN_KEY.to_owned(), new_key()?.serialize_pem());
    Ok(files)
}

pub(super) fn new_key() -> Result<rcgen::KeyPair, rcgen::Error> {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// Files of an issuer that was given; of its root only the certificate is.
pub(super) fn given_files(issuer: &str, root: Option<&str>, given: &Given) -> Files {
    let mut files =
        Files::from([(certificate_file(issuer), given.issuer_pem.clone()), (key_file(issuer), given.key_pem.clone())]);
    files.extend(root.map(|root| (certificate_file(root), given.root_pem.clone())));
    files
}

/// Keys and certificates of what has begun; an issuer under a root that is there already is signed by what `root_of` gives.
pub(super) fn new_files(
    begun: &Begun,
    trust_domain: &str,
    now: SystemTime,
    root_of: impl FnOnce(&str) -> Result<Issuer<'static, rcgen::KeyPair>, CaError>,
) -> Result<Files, CaError> {
    let mut files = Files::new();
    let (name, root) = &begun.issuer;
    let signer = if begun.root.is_some() {
        let key = new_key()?;
        let params = authority(trust_domain, "root", BasicConstraints::Constrained(1), now)?;
        files.insert(certificate_file(root), params.self_signed(&key)?.pem());
        files.insert(key_file(root), key.serialize_pem());
        Issuer::new(params, key)
    } else {
        root_of(root)?
    };
    let key = new_key()?;
    let params = authority(trust_domain, "issuer", BasicConstraints::Constrained(0), now)?;
    files.insert(certificate_file(name), params.signed_by(&key, &signer)?.pem());
    files.insert(key_file(name), key.serialize_pem());
    Ok(files)
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
