//! Who signed whom, and whether a leaf's chain would be taken by a peer.

use std::time::SystemTime;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use super::read::{plain, role};
use super::{Certificate, Chain, Findings, Role, SignedBy, words};
use crate::x509;

/// Whose key signed each certificate of the file.
pub(super) fn signers(certificates: &[X509Certificate<'_>], roots: &[X509Certificate<'_>]) -> Vec<SignedBy> {
    let signer = |index: usize| {
        let certificate = &certificates[index];
        let signed = |by: &X509Certificate<'_>| {
            certificate.issuer().as_raw() == by.subject().as_raw()
                && certificate.verify_signature(Some(by.public_key())).is_ok()
        };
        // Itself first: a root that stands twice in a file has not been signed by its copy.
        if signed(certificate) {
            return SignedBy::Itself;
        }
        match certificates.iter().position(signed) {
            Some(by) => SignedBy::Certificate(by + 1),
            None if roots.iter().any(signed) => SignedBy::GivenRoot,
            None => SignedBy::Absent,
        }
    };
    (0..certificates.len()).map(signer).collect()
}

/// Whether a peer would take the leaf with the file's other certificates: by `given` roots, else by those of the file, else by its last.
pub(super) fn verify(
    ders: &[CertificateDer<'_>],
    leaf: usize,
    parsed: &[X509Certificate<'_>],
    given: Option<&[CertificateDer<'_>]>,
    now: SystemTime,
) -> Chain {
    let in_file = |wanted: Role| {
        let pairs = ders.iter().zip(parsed);
        pairs.filter(move |(_, certificate)| role(certificate) == wanted).map(|(der, _)| der.clone())
    };
    let (trusted, whose): (Vec<_>, _) = match given {
        Some(given) => (given.to_vec(), "one of the given roots"),
        None => (in_file(Role::Root).collect(), "the file's own root"),
    };
    let (trusted, whose) = match ders.last().zip(parsed.last()) {
        Some((last, parsed)) if trusted.is_empty() && role(parsed) == Role::Issuer => {
            (vec![last.clone()], "the file's last certificate")
        }
        _ => (trusted, whose),
    };
    let refused = |text: String| Chain { verified: false, text };
    if trusted.is_empty() {
        return refused("who signed it is not here: give the whole chain, or the mesh's roots by --roots".into());
    }
    let anchors = trusted.iter().map(|der| webpki::anchor_from_trusted_cert(der));
    let Ok(anchors) = anchors.collect::<Result<Vec<_>, _>>() else {
        return refused("a certificate that should be trusted cannot be".into());
    };
    let between: Vec<_> = in_file(Role::Issuer).collect();
    match issuers(&ders[leaf], &between, &anchors, now) {
        Ok(issuers) => Chain { verified: true, text: format!("leaf -> {}{whose}", "issuer -> ".repeat(issuers)) },
        Err(text) => refused(text),
    }
}

// How many issuers are between the leaf and a trusted certificate.
fn issuers(
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    now: SystemTime,
) -> Result<usize, String> {
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| sentence(&error))?;
    let algorithms = default_provider().signature_verification_algorithms.all;
    let mut issuers = 0;
    for (usage, side) in [(KeyUsage::server_auth(), "servers"), (KeyUsage::client_auth(), "clients")] {
        let found = leaf.verify_for_usage(algorithms, anchors, between, now, usage, None, None);
        let found = found.map_err(|error| match error {
            webpki::Error::RequiredEkuNotFoundContext(_) => {
                format!("it is not meant for {side}, and a workload is server and client (extended key usage)")
            }
            other => sentence(&other),
        })?;
        issuers = found.intermediate_certificates().count();
    }
    Ok(issuers)
}

/// What webpki found wrong with a chain, for people.
pub(crate) fn sentence(error: &webpki::Error) -> String {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => "a certificate of it has expired".to_owned(),
        E::CertNotValidYet { .. } => "a certificate of it is not valid yet".to_owned(),
        E::UnknownIssuer => "it does not lead to a certificate that is trusted".to_owned(),
        E::InvalidSignatureForPublicKey => {
            "a signature of it does not match the key of who should have made it".to_owned()
        }
        E::NameConstraintViolation => "an issuer of it is not allowed to sign such a name".to_owned(),
        E::PathLenConstraintViolated => "an issuer of it is not allowed to have issuers below it".to_owned(),
        other => format!("webpki says {other:?}"),
    }
}

/// What is wrong with a certificate seen beside the others.
pub(super) fn judge(index: usize, parsed: &[X509Certificate<'_>], seen: &[Certificate], findings: &mut Findings) {
    let certificate = &seen[index];
    if let Some(Chain { verified: false, text }) = &certificate.chain {
        findings.problem(index, format!("its chain does not verify: {text}"));
    }
    let named = parsed.iter().position(|other| other.subject().as_raw() == parsed[index].issuer().as_raw());
    match (certificate.signed_by, named) {
        (SignedBy::Absent, Some(by)) => {
            let text = format!(
                "it names certificate {} as its signer, whose key did not sign it: another CA of that name?",
                by + 1
            );
            findings.problem(index, text);
        }
        (SignedBy::Absent, None) if certificate.role == Role::Issuer && index + 1 < seen.len() => {
            findings.warning(index, format!("who signed it, \"{}\", is not here", certificate.issuer));
        }
        (SignedBy::Certificate(by), _) => beside(index, by - 1, parsed, seen, findings),
        _ => {}
    }
}

// A certificate and the one that signed it.
fn beside(index: usize, by: usize, parsed: &[X509Certificate<'_>], seen: &[Certificate], findings: &mut Findings) {
    if seen[index].not_after > seen[by].not_after {
        findings.warning(
            index,
            format!("it ends after certificate {}, which signed it, and is worth nothing then", by + 1),
        );
    }
    if let (Some(own), Some(signer)) = (trust_domain(&parsed[index]), trust_domain(&parsed[by]))
        && own != signer
    {
        let (own, signer) = (plain(own), plain(signer));
        // No peer looks at an authority's own name, and a trust domain may have been renamed since it was made.
        let text = format!(
            "it is of trust domain {own}, and was signed by an authority of {signer}: another name of the same?"
        );
        findings.warning(index, text);
    }
}

/// The trust domain in the first SPIFFE name of a certificate, a leaf's or an authority's.
fn trust_domain<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let names = certificate.subject_alternative_name().ok().flatten()?;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.split('/').next(),
        _ => None,
    })
}

/// Roots that were given: a handshake does not look whether they have ended, so a person should.
pub(super) fn judge_roots(roots: &[X509Certificate<'_>], now: SystemTime, findings: &mut Findings) {
    for (index, root) in roots.iter().enumerate() {
        let end = x509::life_of(root).not_after;
        if end <= now {
            let text = format!("of the given roots number {} {}", index + 1, words::end(end, now));
            findings.warnings.push(super::Finding { certificate: None, text });
        }
    }
}
