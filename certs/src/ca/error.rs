//! Why a CA cannot be used: one sentence each, with what to do.

use std::io;
use std::path::PathBuf;

use super::csr::CsrError;
use super::rotation::RotationError;
use crate::svid::SvidError;
use crate::tls::TlsError;

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
    /// A home that is no directory could not be asked.
    #[error("cannot {action} {place}: {why}")]
    Home {
        /// What was tried.
        action: &'static str,
        /// On what.
        place: String,
        /// Why not, and what to do.
        why: String,
    },
    /// There is no CA.
    #[error("{0} holds no CA; name the home of a CA that control has made (--ca-dir or --ca-secret)")]
    Absent(String),
    /// There was one.
    #[error(
        "the CA in {0} is gone; put it back from a backup (none is made anew, since every workload would need its root.pem)"
    )]
    Gone(String),
    /// What is there now did not come from what was there before.
    #[error(
        "the CA in {place} is not the one in force (its revision is {found} after {known}) and is not taken; put the other back, or \
             restart every control if this is meant (workloads may then need its root.pem)"
    )]
    Another {
        /// Where it is.
        place: String,
        /// The revision that is there.
        found: u64,
        /// The one in force.
        known: u64,
    },
    /// A file of the CA is missing, altered or cut short.
    #[error(
        "the CA in {place} is damaged: {what}; restore it from a backup, or remove it to make a new CA (every workload then \
             needs the new root.pem)"
    )]
    Damaged {
        /// Where the CA is.
        place: String,
        /// Which part.
        what: String,
    },
    /// Another version of Weft has written it.
    #[error(
        "the CA in {place} has form {found}, this version knows {known} at most; run the version of Weft that has written it"
    )]
    OtherForm {
        /// Where the CA is.
        place: String,
        /// What is there.
        found: u32,
        /// What can be read.
        known: u32,
    },
    /// The home belongs to another mesh.
    #[error(
        "the CA in {place} is of trust domain `{found}`, not `{wanted}`; give a home of its own to each trust domain, or give this one \
             another name, without an outage, by `weft certs rotate-trust-domain --to {wanted}`"
    )]
    OtherTrustDomain {
        /// Where the CA is.
        place: String,
        /// Whose CA it is.
        found: String,
        /// Whose was wanted.
        wanted: String,
    },
    /// The name cannot be a trust domain.
    #[error("`{0}` is no trust domain: lower-case letters, digits, `-`, `.` and `_` only")]
    TrustDomain(String),
    /// The name is another mesh's.
    #[error("`{0}` is, or was, a name of this mesh's own trust domain: take it out of --federate and --federation")]
    Federated(String),
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
    /// The root's key is kept elsewhere.
    #[error("the root's key is not at {0}; put it back for a new issuer, or rotate the root")]
    RootKey(String),
    /// What somebody else keeps for us is of no use.
    #[error("the issuer in {dir} is not taken: {what}", dir = dir.display())]
    Given {
        /// Where it is.
        dir: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody else was faster.
    #[error("the CA was changed by somebody else at the same time; look at it and try again")]
    Conflict,
    /// The step is not made.
    #[error(transparent)]
    Rotation(#[from] RotationError),
}
