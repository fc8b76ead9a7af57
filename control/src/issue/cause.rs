//! Why a certificate was refused, and by what an identity was proved: the words of the audit log and the metrics.
//!
//! Invariant: the words are few and never change their meaning; people alert on them.

use std::fmt;

use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Status};
use weft_api::names::{RENEW_BY, TOKEN};
use weft_certs::ca::{CaError, CsrError};
use weft_certs::jwt::JwtError;
use weft_certs::token::TokenError;
use weft_engine::identity::Identity;

use super::Proof;
use crate::model::Name;

macro_rules! words {
    ($(#[$about:meta])* $kind:ident { $($(#[$doc:meta])* $name:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $kind { $($(#[$doc])* $name,)* }

        impl $kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word for logs and metrics.
            pub fn label(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

words! {
    /// By what an identity was, or was to be, proved.
    Method {
        /// Nothing was shown, or nothing that says whose it is.
        None = "none",
        /// A client certificate of the mesh that is still valid.
        Certificate = "certificate",
        /// A join token.
        Join = "join",
        /// A service-account token of Kubernetes.
        Kubernetes = "kubernetes",
        /// A token of another issuer.
        Oidc = "oidc",
    }
}

words! {
    /// Why a certificate was refused.
    Cause {
        /// Neither certificate nor token.
        Unauthenticated = "unauthenticated",
        /// The token cannot be read.
        TokenMalformed = "token_malformed",
        /// Nobody here knows the token's issuer.
        TokenIssuer = "token_issuer",
        /// `none`, HMAC, or an algorithm that is not allowed.
        TokenAlgorithm = "token_algorithm",
        /// Its key is not one of the issuer's.
        TokenKey = "token_key",
        /// Its signature is wrong.
        TokenSignature = "token_signature",
        /// For somebody else.
        TokenAudience = "token_audience",
        /// Too late.
        TokenExpired = "token_expired",
        /// Too early.
        TokenNotYet = "token_not_yet",
        /// Its claims are not what this prover needs.
        TokenClaims = "token_claims",
        /// The CA has to be shown a token, and a certificate is all that there is.
        TokenNeeded = "token_needed",
        /// It was used before, with another key.
        TokenReplayed = "token_replayed",
        /// The API server says that it is not valid (any more).
        TokenRevoked = "token_revoked",
        /// The pod that it is bound to is not there.
        PodUnknown = "pod_unknown",
        /// It is bound to an earlier pod of that name.
        PodReplaced = "pod_replaced",
        /// The pod has another service account.
        ServiceAccount = "service_account",
        /// The certificate comes from another CA, under further roots.
        OtherCa = "other_ca",
        /// Token and certificate prove two identities.
        Mismatch = "mismatch",
        /// An identity of another trust domain.
        TrustDomain = "trust_domain",
        /// An identity that this prover may not prove.
        Reserved = "reserved",
        /// The identity, or the certificate that should prove it, is on the list of who is revoked.
        Revoked = "revoked",
        /// Too many certificates for one identity.
        RateLimited = "rate_limited",
        /// The wanted life is negative.
        Validity = "validity",
        /// The request cannot be read, or is too long.
        RequestMalformed = "request_malformed",
        /// The request's key is weak.
        RequestKey = "request_key",
        /// The request does not prove its key.
        RequestSignature = "request_signature",
        /// The request asks for names that were not proved.
        RequestNames = "request_names",
        /// What is needed to decide cannot be reached now: the issuer's keys, the API server, the store of used tokens, the source.
        Unavailable = "unavailable",
        /// The CA cannot issue now, or says no.
        Ca = "ca",
        /// A CA elsewhere has answered with something that nobody asked for.
        CaAnswer = "ca_answer",
    }
}

impl Cause {
    /// What the caller is told by gRPC: whether there is sense in asking again with the same proof.
    fn code(self) -> Code {
        match self {
            Self::Mismatch
            | Self::OtherCa
            | Self::TrustDomain
            | Self::Reserved
            | Self::ServiceAccount
            | Self::Revoked => Code::PermissionDenied,
            Self::RateLimited => Code::ResourceExhausted,
            Self::Validity
            | Self::RequestMalformed
            | Self::RequestKey
            | Self::RequestSignature
            | Self::RequestNames => Code::InvalidArgument,
            Self::Unavailable => Code::Unavailable,
            Self::Ca | Self::CaAnswer => Code::FailedPrecondition,
            _ => Code::Unauthenticated,
        }
    }

    /// Of a token that is not taken.
    pub fn of_token(error: JwtError) -> Self {
        match error {
            JwtError::TooLong | JwtError::Malformed | JwtError::Critical => Self::TokenMalformed,
            JwtError::Algorithm => Self::TokenAlgorithm,
            JwtError::UnknownKey => Self::TokenKey,
            JwtError::Signature => Self::TokenSignature,
            JwtError::Claim(_) => Self::TokenClaims,
            JwtError::Issuer => Self::TokenIssuer,
            JwtError::Audience => Self::TokenAudience,
            JwtError::Expired => Self::TokenExpired,
            JwtError::NotYet => Self::TokenNotYet,
        }
    }

    fn of_request(error: &CsrError) -> Self {
        match error {
            CsrError::TooLong | CsrError::Malformed => Self::RequestMalformed,
            CsrError::Signature => Self::RequestSignature,
            CsrError::Key => Self::RequestKey,
            CsrError::Name(_) | CsrError::Names(_) => Self::RequestNames,
        }
    }
}

/// A pod that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: Name,
    /// Its uid.
    pub uid: String,
}

/// A certificate was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Why, as a word.
    pub cause: Cause,
    /// Why, as a sentence that the caller and the audit log get. Holds no part of a token.
    pub message: String,
    /// By what the identity was to be proved.
    pub method: Method,
    /// Who was proved, if that much succeeded.
    pub identity: Option<Identity>,
    /// The pod that was claimed or proved.
    pub pod: Option<Box<Pod>>,
}

impl Refusal {
    /// Nothing is known of who asks.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), method: Method::None, identity: None, pod: None }
    }

    /// By what it was to be proved, unless that is known.
    #[must_use]
    pub fn by(mut self, method: Method) -> Self {
        if self.method == Method::None {
            self.method = method;
        }
        self
    }

    /// For which pod.
    #[must_use]
    pub fn of_pod(mut self, pod: &Pod) -> Self {
        self.pod = Some(Box::new(pod.clone()));
        self
    }

    /// Of somebody who was proved.
    #[must_use]
    pub fn after(self, proof: &Proof) -> Self {
        Self { identity: Some(proof.identity.clone()), pod: proof.pod.clone().map(Box::new), ..self.by(proof.method) }
    }

    /// What the caller is told.
    pub fn status(&self) -> Status {
        let mut status = Status::new(self.cause.code(), self.message.as_str());
        if self.cause == Cause::TokenNeeded {
            status.metadata_mut().insert(RENEW_BY, AsciiMetadataValue::from_static(TOKEN));
        }
        status
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.cause.label())
    }
}

impl From<JwtError> for Refusal {
    fn from(error: JwtError) -> Self {
        Self::new(Cause::of_token(error), format!("the token is not taken: {error}"))
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        let cause = match &error {
            TokenError::Invalid(error) => Cause::of_token(*error),
            TokenError::OtherTrustDomain { .. } => Cause::TrustDomain,
            TokenError::Subject => Cause::TokenClaims,
            TokenError::Ca(_) | TokenError::Ttl | TokenError::Sign(_) => Cause::Ca,
        };
        Self::new(cause, error.to_string()).by(Method::Join)
    }
}

impl From<CsrError> for Refusal {
    fn from(error: CsrError) -> Self {
        Self::new(Cause::of_request(&error), format!("the certificate request is refused: {error}"))
    }
}

impl From<CaError> for Refusal {
    fn from(error: CaError) -> Self {
        let cause = match &error {
            CaError::Csr(error) => Cause::of_request(error),
            CaError::ForeignIdentity(_) => Cause::TrustDomain,
            _ => Cause::Ca,
        };
        Self::new(cause, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_series_of_the_metrics_are_one() {
        // The crate's vectors tell series apart by the label values written one behind the other.
        let pairs = Cause::ALL.iter().flat_map(|cause| Method::ALL.iter().map(move |method| (cause, method)));
        let keys: BTreeSet<String> =
            pairs.map(|(cause, method)| format!("{}{}", cause.label(), method.label())).collect();
        assert_eq!(keys.len(), Cause::ALL.len() * Method::ALL.len());
    }
}
