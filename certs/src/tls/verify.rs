//! The check of a peer's certificate, the same on both sides.
//!
//! rustls compares DNS names and knows nothing of SPIFFE IDs, so these verifiers stand in the place of its own: the chain is webpki's work,
//! the name is ours. In order: the chain to a root of the domain that the leaf names at the time of the handshake, exactly one URI name, the
//! trust domain, the expected identity where one was given, and that neither identity nor certificate has been revoked.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::KeyUsage;
use weft_engine::identity::Identity;

use super::{ClientAuth, Roots};
use crate::x509;

/// Verifies servers and clients.
pub struct MeshVerifier {
    roots: Roots,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: Arc<str>,
    expected: Option<Identity>,
    auth: ClientAuth,
}

impl fmt::Debug for MeshVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshVerifier({} by {:?}, expecting {:?})", self.trust_domain, self.roots, self.expected)
    }
}

/// The chain is good, but its holder is not one that we talk to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Leaf(#[from] x509::LeafError),
    #[error("{found} is not of trust domain {trust_domain}")]
    TrustDomain { found: String, trust_domain: Arc<str> },
    #[error("the server is {found}, not {expected}")]
    Unexpected { found: String, expected: String },
}

impl MeshVerifier {
    pub fn new(provider: Arc<CryptoProvider>, roots: &Roots, trust_domain: &str) -> Self {
        Self {
            roots: roots.clone(),
            algorithms: provider.signature_verification_algorithms,
            trust_domain: trust_domain.into(),
            expected: None,
            auth: ClientAuth::Required,
        }
    }

    /// Only this server passes.
    pub fn expecting(mut self, identity: Identity) -> Self {
        self.expected = Some(identity);
        self
    }

    /// Whether a client must show a certificate.
    pub fn client_auth(mut self, auth: ClientAuth) -> Self {
        self.auth = auth;
        self
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let parsed = webpki::EndEntityCert::try_from(leaf).map_err(|e| chain_error(&e))?;
        parsed
            .verify_for_usage(self.algorithms.all, self.anchors(leaf), intermediates, now, usage, None, None)
            .map_err(|e| chain_error(&e))?;
        let found = self.check_name(leaf).map_err(|e| Error::InvalidCertificate(told(&e)))?;
        if self.roots.denied.has(&found, parsed.serial()) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(())
    }

    fn is_own(&self, domain: &str) -> bool {
        self.roots.is_own(domain, &self.trust_domain)
    }

    // What it must lead to: the roots of the domain that it names, no others'. One that nobody knows is refused by its name.
    fn anchors(&self, leaf: &CertificateDer<'_>) -> &[TrustAnchor<'static>] {
        let named = x509::identity(leaf).ok().filter(|named| !self.is_own(&named.trust_domain));
        named.and_then(|named| self.roots.foreign.get(&named.trust_domain)).unwrap_or(&self.roots.own)
    }

    // Under the name by which our own domain is known here, as expectations and the list of who is denied have it.
    fn check_name(&self, leaf: &CertificateDer<'_>) -> Result<Identity, Refused> {
        let found = x509::identity(leaf)?;
        if !self.is_own(&found.trust_domain) && !self.roots.foreign.contains_key(&found.trust_domain) {
            let trust_domain = Arc::clone(&self.trust_domain);
            return Err(Refused::TrustDomain { found: found.to_string(), trust_domain });
        }
        let found = self.roots.known(found);
        match &self.expected {
            Some(expected) if *expected != found => {
                Err(Refused::Unexpected { found: found.to_string(), expected: expected.to_string() })
            }
            _ => Ok(found),
        }
    }
}

/// What the peer and our log are told: the usual reasons by their own alert, the rest by webpki's word.
pub(super) fn chain_error(error: &webpki::Error) -> Error {
    use webpki::Error as E;
    Error::InvalidCertificate(match error {
        E::CertExpired { .. } => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => told(other),
    })
}

/// rustls prints the `Debug` form of what it does not know itself; people read it in logs, so here that is a sentence too.
#[derive(thiserror::Error)]
#[error("{0}")]
struct Told(String);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn told(error: &dyn std::error::Error) -> CertificateError {
    CertificateError::Other(OtherError(Arc::new(Told(error.to_string()))))
}

// Both traits ask the same of signatures.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

pub(super) use signatures;

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The name in SNI tells the server where to lead the bytes; it proves nothing about who the server is.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth()).map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for MeshVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every client of the mesh has one certificate; hints would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth()).map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}
