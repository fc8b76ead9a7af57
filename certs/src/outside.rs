//! What a CA that is not ours has signed for us: looked at before it is handed on. And its roots.
//!
//! Invariants
//! - An answer is taken whole or not at all: the proved identity and no other name, the key of the request, no CA, valid now and not for much
//!   longer than was asked, good for servers and clients, leading to a root that was given.
//! - What is handed on is the path that was verified: leaf first, root last, whatever else the CA has sent.
//! - Bounded: [`MAX_BYTES`], [`MAX_CERTIFICATES`], [`MAX_ROOTS`].

use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use weft_engine::identity::Identity;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::{Roots, TlsError};
use crate::x509::{self, Leaf, LeafError};
use crate::{files, inspect};

/// Longer answers are not parsed.
pub const MAX_BYTES: usize = 256 * 1024;
/// Nor are those with more certificates.
pub const MAX_CERTIFICATES: usize = 16;
/// More roots are a mistake.
pub const MAX_ROOTS: usize = 64;
/// By so much, and a tenth, a CA may give more than was asked: some round up.
const SLACK: Duration = Duration::from_mins(5);
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why an answer is not handed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Over the bounds.
    #[error("it is longer than {MAX_BYTES} bytes, or has more than {MAX_CERTIFICATES} certificates")]
    TooLong,
    /// No certificates in PEM.
    #[error("it is empty, or something in it is no certificate in PEM")]
    Malformed,
    /// Not what the mesh takes for a workload's.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// Of somebody else.
    #[error("the certificate is for {0}, which was not asked for")]
    OtherIdentity(String),
    /// It would be somebody else as well.
    #[error("the certificate has the name {0} besides, which was not asked for")]
    OtherName(String),
    /// Another pod's.
    #[error("the certificate names pod {0}, which has not asked")]
    OtherPod(String),
    /// For another key.
    #[error("the certificate is for another key than the request's")]
    OtherKey,
    /// It could sign others.
    #[error("the certificate is a CA's")]
    Authority,
    /// Good for longer than was asked.
    #[error("the certificate lives for {given} s, {asked} s were asked for")]
    TooOld {
        /// Seconds from now to its end.
        given: u64,
        /// Seconds that were asked for.
        asked: u64,
    },
    /// Nobody would believe it.
    #[error("the chain does not verify: {0}")]
    Chain(String),
}

/// One of the roots that certificates of the mesh lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// `root-` and the first 32 bits of its SHA-256 in hex.
    pub name: String,
    /// PEM.
    pub pem: String,
    /// When it ends.
    pub not_after: SystemTime,
    certificate: CertificateDer<'static>,
}

impl Root {
    /// The roots of a PEM text, each once.
    ///
    /// # Errors
    /// There is none, or one is broken, or there are too many.
    pub fn read(pem: &str) -> Result<Vec<Self>, TlsError> {
        let mut roots: Vec<Self> = Vec::new();
        for (certificate, pem) in blocks(pem).ok_or(TlsError::Roots)? {
            let not_after = x509::not_after(&certificate).map_err(|_| TlsError::Roots)?;
            let name = format!("root-{}", &files::checksum(&certificate)[..8]);
            if roots.iter().all(|root| root.certificate != certificate) {
                roots.push(Self { name, pem, not_after, certificate });
            }
        }
        Roots::from_pem(&pem_of(&roots))?;
        if roots.len() > MAX_ROOTS { Err(TlsError::Roots) } else { Ok(roots) }
    }
}

/// The text of these roots, one behind the other.
pub fn pem_of(roots: &[Root]) -> String {
    roots.iter().map(|root| root.pem.as_str()).collect()
}

/// Which of the roots a peer's chain leads to: leaf first, as in a handshake.
pub fn root_of<'r>(chain: &[CertificateDer<'_>], roots: &'r [Root], now: SystemTime) -> Option<&'r Root> {
    let (leaf, rest) = chain.split_first()?;
    path(leaf, rest, roots, now).ok().map(|(_, root)| root)
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The request, PEM.
    pub csr: &'a str,
    /// Whom the certificate has to name.
    pub identity: &'a Identity,
    /// The pod that the certificate may name.
    pub pod: Pod<'a>,
    /// How long it should live.
    pub life: Duration,
}

/// Which pod a certificate may name; it need not name any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pod<'a> {
    /// Whichever.
    Any,
    /// The one of this uid, that was proved; if none was, none.
    Proved(Option<&'a str>),
}

/// What can be handed on.
#[derive(Clone, Debug)]
pub struct Answer {
    /// PEM, one certificate each: leaf first, root last.
    pub chain: Vec<String>,
    /// What the leaf says.
    pub leaf: Leaf,
    /// Name of the root.
    pub root: String,
}

/// Looks at what the CA has sent: PEM, one or more certificates in each element, leaf first.
///
/// # Errors
/// [`AnswerError`]; nothing of it may be used.
pub fn check(sent: &[String], asked: Asked<'_>, roots: &[Root], now: SystemTime) -> Result<Answer, AnswerError> {
    if sent.iter().map(String::len).sum::<usize>() > MAX_BYTES {
        return Err(AnswerError::TooLong);
    }
    let all = blocks(&sent.join("\n")).ok_or(AnswerError::Malformed)?;
    if all.len() > MAX_CERTIFICATES {
        return Err(AnswerError::TooLong);
    }
    let (first, rest) = all.split_first().ok_or(AnswerError::Malformed)?;
    let leaf = check_leaf(&first.0, asked, now)?;
    let between: Vec<_> = rest.iter().map(|(certificate, _)| certificate.clone()).collect();
    let (issuers, root) = path(&first.0, &between, roots, now)?;
    let pem = |der: &[u8]| all.iter().find(|(certificate, _)| certificate.as_ref() == der).map(|(_, pem)| pem.clone());
    let mut chain = vec![first.1.clone()];
    chain.extend(issuers.iter().filter_map(|issuer| pem(issuer)));
    chain.push(root.pem.clone());
    Ok(Answer { chain, leaf, root: root.name.clone() })
}

fn check_leaf(certificate: &CertificateDer<'_>, asked: Asked<'_>, now: SystemTime) -> Result<Leaf, AnswerError> {
    let leaf = x509::leaf(certificate)?;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| AnswerError::Malformed)?;
    if leaf.identity != *asked.identity {
        return Err(AnswerError::OtherIdentity(leaf.identity.to_string()));
    }
    let names = parsed.subject_alternative_name().map_err(|_| AnswerError::Malformed)?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    if let Some(other) = names.into_iter().find(|name| !matches!(name, GeneralName::URI(_))) {
        return Err(AnswerError::OtherName(other.to_string()));
    }
    if let (Some(named), Pod::Proved(pod)) = (&leaf.pod, asked.pod)
        && Some(named.as_str()) != pod
    {
        return Err(AnswerError::OtherPod(named.clone()));
    }
    if Some(parsed.public_key().raw) != requested_key(asked.csr).as_deref() {
        return Err(AnswerError::OtherKey);
    }
    if parsed.basic_constraints().map_err(|_| AnswerError::Malformed)?.is_some_and(|constraints| constraints.value.ca) {
        return Err(AnswerError::Authority);
    }
    let given = leaf.not_after.duration_since(now).unwrap_or_default();
    if given > asked.life + asked.life / 10 + SLACK {
        return Err(AnswerError::TooOld { given: given.as_secs(), asked: asked.life.as_secs() });
    }
    Ok(leaf)
}

/// The key of a request with its kind (SubjectPublicKeyInfo, DER).
fn requested_key(csr: &str) -> Option<Vec<u8>> {
    let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}

/// The issuers between a leaf and its root, from the leaf upwards, and the root.
fn path<'r>(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &'r [Root],
    now: SystemTime,
) -> Result<(Vec<Vec<u8>>, &'r Root), AnswerError> {
    let failed = |error: &webpki::Error| AnswerError::Chain(inspect::sentence(error));
    let anchors = roots.iter().map(|root| webpki::anchor_from_trusted_cert(&root.certificate));
    let anchors: Vec<TrustAnchor<'_>> = anchors.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| failed(&error))?;
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let algorithms = default_provider().signature_verification_algorithms.all;
    let between: Vec<_> = rest.iter().filter(|certificate| !x509::self_issued(certificate)).cloned().collect();
    let verify = |usage, side: &str| {
        leaf.verify_for_usage(algorithms, &anchors, &between, now, usage, None, None).map_err(|error| match error {
            webpki::Error::RequiredEkuNotFoundContext(_) => {
                AnswerError::Chain(format!("it is not meant for {side} (extended key usage)"))
            }
            other => failed(&other),
        })
    };
    verify(KeyUsage::client_auth(), "clients")?;
    let found = verify(KeyUsage::server_auth(), "servers")?;
    let issuers = found.intermediate_certificates().map(|issuer| issuer.der().to_vec()).collect();
    let at = anchors.iter().position(|anchor| std::ptr::eq(anchor, found.anchor()));
    let root = at.and_then(|at| roots.get(at)).ok_or_else(|| failed(&webpki::Error::UnknownIssuer))?;
    Ok((issuers, root))
}

/// The certificates of a PEM text, each with its text; `None` if one is broken.
fn blocks(text: &str) -> Option<Vec<(CertificateDer<'static>, String)>> {
    let block = |rest: &str| {
        let pem = format!("{BEGIN}{}{END}\n", rest.split_once(END)?.0);
        Some((CertificateDer::from_pem_slice(pem.as_bytes()).ok()?, pem))
    };
    text.split(BEGIN).skip(1).map(block).collect()
}

#[cfg(test)]
mod tests;
