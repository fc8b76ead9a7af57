//! Why a handshake of the mesh failed, in one of a few words: what a metric's label can be.
//!
//! Invariant: every error of a handshake has exactly one word, found without allocation but for our own verifier's sentences.

use std::io;

use rustls::{CertificateError, Error};

macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        /// Why a handshake failed, as the side saw it that counts it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Failure { $($(#[$doc])* $name,)* }

        impl Failure {
            /// Every failure, in the order of declaration.
            pub const ALL: &'static [Failure] = &[$(Failure::$name,)*];

            /// The value of the metric's label.
            pub const fn code(self) -> &'static str {
                match self { $(Failure::$name => $code,)* }
            }
        }
    };
}

failures! {
    /// The peer's certificate does not lead to a root of ours, or is none that the mesh takes.
    Untrusted = "untrusted";
    /// The peer's certificate, or one that it leads to, has ended.
    Expired = "expired";
    /// It has not begun: most often the clocks differ.
    NotYetValid = "not_yet_valid";
    /// The peer proved to be another workload than control named for its address.
    UnexpectedIdentity = "unexpected_identity";
    /// The peer's trust domain is not ours.
    OtherTrustDomain = "other_trust_domain";
    /// The peer showed no certificate where one is needed.
    NoCertificate = "no_certificate";
    /// The peer's certificate, or its identity, has been revoked.
    Revoked = "revoked";
    /// The peer ended the handshake with an alert. Its own metric says why: most often it does not take our certificate.
    RefusedByPeer = "refused_by_peer";
    /// What the peer says is no TLS 1.3, or no protocol of the mesh.
    Protocol = "protocol";
    /// It took too long.
    Timeout = "timeout";
    /// The connection ended or broke meanwhile.
    Closed = "closed";
}

impl Failure {
    /// The word for what an asynchronous handshake ended with.
    pub fn of(error: &io::Error) -> Self {
        if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return Self::of_tls(error);
        }
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Closed,
        }
    }

    /// The word for what rustls, or our verifier through it, says.
    pub fn of_tls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(_) => Self::RefusedByPeer,
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::Expired | E::ExpiredContext { .. } => Self::Expired,
            E::NotValidYet | E::NotValidYetContext { .. } => Self::NotYetValid,
            E::Revoked => Self::Revoked,
            E::Other(other) => Self::of_sentence(&other.to_string()),
            _ => Self::Untrusted,
        }
    }

    // Our verifier hands rustls sentences (see tls::verify); the tests below fail if one is worded anew.
    fn of_sentence(said: &str) -> Self {
        if said.contains(" is not of trust domain ") {
            Self::OtherTrustDomain
        } else if said.starts_with("the server is ") {
            Self::UnexpectedIdentity
        } else {
            Self::Untrusted
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_failure_has_a_word_of_its_own() {
        let words: BTreeSet<_> = Failure::ALL.iter().map(|failure| failure.code()).collect();
        assert_eq!(words.len(), Failure::ALL.len());
        assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
    }

    #[test]
    fn what_is_no_tls_error_is_a_timeout_or_an_end() {
        for (kind, failure) in [
            (io::ErrorKind::TimedOut, Failure::Timeout),
            (io::ErrorKind::UnexpectedEof, Failure::Closed),
            (io::ErrorKind::ConnectionReset, Failure::Closed),
            (io::ErrorKind::BrokenPipe, Failure::Closed),
        ] {
            assert_eq!(Failure::of(&kind.into()), failure);
        }
    }
}
