//! What a certificate request must be before the CA signs its key.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use weft_engine::identity::Identity;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Longer requests are not parsed.
const MAX_LENGTH: usize = 16 * 1024;

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Over the bound.
    #[error("it is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// Not a PEM block with PKCS #10 in it.
    #[error("it is not one PEM block `CERTIFICATE REQUEST`")]
    Malformed,
    /// Its signature does not prove the key.
    #[error("its signature does not match its key")]
    Signature,
    /// The key is of a kind that is weaker than P-256 or not used here.
    #[error("its key must be ECDSA P-256, ECDSA P-384 or Ed25519")]
    Key,
    /// It asks for names that were not proved.
    #[error("it asks for the name `{0}`, which is not the identity that was proved")]
    Name(String),
    /// It names the identity more than once.
    #[error("it has {0} names where one is enough")]
    Names(usize),
}

/// Checks a request without signing anything, and returns a fingerprint of the key that it proves to hold: what is spent on a certificate
/// (a join token) is not spent on a request that will be refused. `names`: see [`check`].
pub fn check_request(pem: &str, proved: &Identity, names: &[&str]) -> Result<String, CsrError> {
    Ok(crate::files::checksum(rcgen::PublicKeyData::der_bytes(&check(pem, proved, names)?)))
}

/// Checks the request, and returns the key that it proves to hold.
///
/// Names in it must be absent or exactly one, the proved identity in any of the trust domain's `names`; everything else it asks for is
/// ignored.
pub fn check(pem: &str, proved: &Identity, names: &[&str]) -> Result<SubjectPublicKeyInfo, CsrError> {
    if pem.len() > MAX_LENGTH {
        return Err(CsrError::TooLong);
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Malformed)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    // The key comes from the key field. (rcgen's own parser derives its kind from the signature's algorithm, which a request
    // signed by P-384 with SHA-256 would turn into a P-256 key that nobody has.)
    let info = &request.certification_request_info;
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CsrError::Key)?;
    let algorithm = rcgen::PublicKeyData::algorithm(&key);
    let strong = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if !strong.contains(&algorithm) {
        return Err(CsrError::Key);
    }
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    self::names(&request, proved, names)?;
    Ok(key)
}

fn names(request: &X509CertificationRequest<'_>, proved: &Identity, names: &[&str]) -> Result<(), CsrError> {
    let proved: Vec<String> = names.iter().map(|name| proved.within(&(*name).into()).to_string()).collect();
    let mut found = 0;
    for extension in request.requested_extensions().into_iter().flatten() {
        let names = match extension {
            ParsedExtension::SubjectAlternativeName(names) => names,
            // It may be names that somebody else would read.
            ParsedExtension::ParseError { .. } => return Err(CsrError::Malformed),
            _ => continue,
        };
        for name in &names.general_names {
            match name {
                GeneralName::URI(uri) if proved.iter().any(|proved| proved == uri) => found += 1,
                other => return Err(CsrError::Name(other.to_string())),
            }
        }
    }
    if found > 1 { Err(CsrError::Names(found)) } else { Ok(()) }
}
