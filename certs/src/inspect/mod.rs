//! What the certificates of a file are, and whether they hold together: for people, by `weft certs inspect`.
//!
//! Invariants
//! - A private key in the file is counted and never looked at.
//! - Whether a chain verifies is webpki's word, as in a handshake; the rest is explanation.
//! - Text out of a certificate is shown without control characters: it may come from anybody, and go to a terminal.
//! - Bounded: [`MAX_BYTES`], [`MAX_CERTIFICATES`].
//!
//! - [`read`]: one certificate by itself. [`chain`]: who signed whom. [`words`]: times as people say them.

mod chain;
mod read;
#[cfg(test)]
mod tests;
pub mod words;

use std::time::{Duration, SystemTime};

pub(crate) use chain::sentence;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Serialize, Serializer};

/// Longer files are not read.
pub const MAX_BYTES: usize = 1 << 20;
/// Files with more are not looked at: who signed whom is asked of each pair.
pub const MAX_CERTIFICATES: usize = 256;
/// An authority's certificate that ends sooner is worth a word.
pub const AUTHORITY_NOTICE: Duration = Duration::from_hours(30 * 24);

/// The input is not one that can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// Over [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes, which is no chain of certificates")]
    TooLong,
    /// Over [`MAX_CERTIFICATES`].
    #[error("it has more than {MAX_CERTIFICATES} certificates; give the chain alone, and the roots by --roots")]
    TooMany,
    /// No block `CERTIFICATE`.
    #[error("it has no PEM block CERTIFICATE; a DER file becomes PEM by `openssl x509 -inform der`")]
    None,
    /// A block that is not base64, or does not end.
    #[error("a PEM block in it is broken; was the file cut short, or copied with its lines broken?")]
    Broken,
    /// A block whose content is no certificate.
    #[error("its certificate number {0} cannot be parsed as X.509")]
    NotX509(usize),
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A workload's.
    Leaf,
    /// Signs others, and is signed by another.
    Issuer,
    /// Signs others, and itself.
    Root,
}

impl Role {
    /// Its name.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Issuer => "issuer",
            Self::Root => "root",
        }
    }
}

/// Who signed a certificate. Numbers count from 1, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SignedBy {
    /// Its own key.
    Itself,
    /// The key of that certificate of the file.
    Certificate(usize),
    /// A root that was given besides.
    GivenRoot,
    /// None of those that are here.
    Absent,
}

/// One certificate.
#[derive(Clone, Debug, Serialize)]
pub struct Certificate {
    /// What it is for.
    pub role: Role,
    /// The SPIFFE ID, if it has exactly one URI name that is an identity of a mesh.
    pub identity: Option<String>,
    /// All its alternative names, by kind.
    pub names: Vec<String>,
    /// Its holder's distinguished name; often empty for a leaf.
    pub subject: String,
    /// The distinguished name of who signed it.
    pub issuer: String,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Kind of its key, such as `ECDSA P-256`.
    pub key: String,
    /// Start of validity.
    #[serde(serialize_with = "utc")]
    pub not_before: SystemTime,
    /// End of validity.
    #[serde(serialize_with = "utc")]
    pub not_after: SystemTime,
    /// Seconds until then; negative once it has ended.
    pub ends_in_s: i64,
    /// Whose key signed it.
    pub signed_by: SignedBy,
    /// Of a leaf: whether its chain verifies now, as a peer would verify it.
    pub chain: Option<Chain>,
}

/// Whether a leaf's chain verifies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Whether it does, for servers and for clients.
    pub verified: bool,
    /// The certificates from the leaf to the one that is trusted, as people read it; or why not.
    pub text: String,
}

/// Something that a person should know of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of which certificate, counted from 1; `None`: of the file.
    pub certificate: Option<usize>,
    /// One sentence.
    pub text: String,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// No problem.
    pub ok: bool,
    /// In the order of the file.
    pub certificates: Vec<Certificate>,
    /// Private keys that the file holds too.
    pub private_keys: usize,
    /// What keeps a peer from taking it.
    pub problems: Vec<Finding>,
    /// What will, or what else is worth a look.
    pub warnings: Vec<Finding>,
}

fn utc<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&words::utc(*time))
}

/// Looks at the certificates of a PEM text at that time. With `roots`, another PEM text, those alone are trusted; without, the roots of
/// the text itself, and if there are none, its last certificate.
///
/// # Errors
/// There is nothing that could be looked at.
pub fn inspect(text: &[u8], roots: Option<&[u8]>, now: SystemTime) -> Result<Report, InspectError> {
    let given = roots.map(certificates).transpose()?;
    look(&certificates(text)?, given.as_deref(), private_keys(text), now)
}

/// The same of a chain as a handshake has it.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_chain(
    chain: &[CertificateDer<'_>],
    roots: Option<&[u8]>,
    now: SystemTime,
) -> Result<Report, InspectError> {
    let given = roots.map(certificates).transpose()?;
    look(chain, given.as_deref(), 0, now)
}

fn look(
    ders: &[CertificateDer<'_>],
    given: Option<&[CertificateDer<'_>]>,
    private_keys: usize,
    now: SystemTime,
) -> Result<Report, InspectError> {
    let parsed = read::all(ders)?;
    let trusted = given.map(read::all).transpose()?;
    let signers = chain::signers(&parsed, trusted.as_deref().unwrap_or_default());
    let mut findings = Findings::default();
    let mut seen = Vec::with_capacity(parsed.len());
    for (index, certificate) in parsed.iter().enumerate() {
        let mut described = read::describe(certificate, &ders[index], now);
        described.signed_by = signers[index];
        if described.role == Role::Leaf {
            described.chain = Some(chain::verify(ders, index, &parsed, given, now));
        }
        seen.push(described);
    }
    for (index, certificate) in parsed.iter().enumerate() {
        read::judge(index, certificate, &ders[index], &seen[index], now, &mut findings);
        chain::judge(index, &parsed, &seen, &mut findings);
    }
    if let Some(trusted) = &trusted {
        chain::judge_roots(trusted, now, &mut findings);
    }
    let Findings { problems, warnings } = findings;
    Ok(Report { ok: problems.is_empty(), certificates: seen, private_keys, problems, warnings })
}

#[derive(Default)]
struct Findings {
    problems: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Findings {
    fn problem(&mut self, index: usize, text: String) {
        self.problems.push(Finding { certificate: Some(index + 1), text });
    }

    fn warning(&mut self, index: usize, text: String) {
        self.warnings.push(Finding { certificate: Some(index + 1), text });
    }
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, InspectError> {
    if text.len() > MAX_BYTES {
        return Err(InspectError::TooLong);
    }
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        found.push(certificate.map_err(|_| InspectError::Broken)?);
        if found.len() > MAX_CERTIFICATES {
            return Err(InspectError::TooMany);
        }
    }
    if found.is_empty() { Err(InspectError::None) } else { Ok(found) }
}

// By their first lines alone; what is between them stays unread.
fn private_keys(text: &[u8]) -> usize {
    let begins = |line: &[u8]| {
        let line = line.trim_ascii();
        line.starts_with(b"-----BEGIN ") && line.ends_with(b"PRIVATE KEY-----")
    };
    text.split(|byte| *byte == b'\n').filter(|line| begins(line)).count()
}
