//! The server of a SPIFFE bundle endpoint, profile `https_spiffe`: it must show one given SPIFFE ID under roots of its trust domain.
//!
//! It is not of our mesh, so its ID may have any path, and no root but those that are given counts.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::KeyUsage;

use super::verify::{chain_error, signatures, told};
use super::{Anchors, TlsError, anchors, client, provider};
use crate::x509::{self, LeafError};

/// Longest SPIFFE ID, by SPIFFE's own rules.
const MAX_ID: usize = 2048;

/// The SPIFFE ID of a bundle endpoint's server: any workload of its trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointId(String);

impl EndpointId {
    /// Reads `spiffe://DOMAIN/PATH`; `None` if it is no SPIFFE ID of a workload of this trust domain.
    pub fn of(domain: &str, text: &str) -> Option<Self> {
        let path = text.strip_prefix("spiffe://")?.strip_prefix(domain)?.strip_prefix('/')?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let segment = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(plain);
        (text.len() <= MAX_ID && path.split('/').all(segment)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For a bundle endpoint with this identity.
pub fn endpoint_client_config(
    expected: &EndpointId,
    roots: &[CertificateDer<'_>],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = EndpointVerifier::new(&provider(), expected.clone(), anchors(roots)?);
    client(None, &[b"http/1.1"], Arc::new(verifier))
}

struct EndpointVerifier {
    expected: EndpointId,
    anchors: Anchors,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for EndpointVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointVerifier({} by {} roots)", self.expected, self.anchors.len())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error("the endpoint is {found}, not {expected}")]
    Unexpected { found: String, expected: String },
}

impl EndpointVerifier {
    fn new(provider: &CryptoProvider, expected: EndpointId, anchors: Anchors) -> Self {
        Self { expected, anchors, algorithms: provider.signature_verification_algorithms }
    }

    fn check_name(&self, leaf: &CertificateDer<'_>) -> Result<(), Refused> {
        let found = x509::uri_name(leaf)?;
        if found == self.expected.0 {
            return Ok(());
        }
        Err(Refused::Unexpected { found, expected: self.expected.to_string() })
    }
}

impl ServerCertVerifier for EndpointVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The URL's host leads there and proves nothing.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = webpki::EndEntityCert::try_from(end_entity).map_err(|e| chain_error(&e))?;
        let usage = KeyUsage::server_auth();
        parsed
            .verify_for_usage(self.algorithms.all, &self.anchors, intermediates, now, usage, None, None)
            .map_err(|e| chain_error(&e))?;
        self.check_name(end_entity).map_err(|e| Error::InvalidCertificate(told(&e)))?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_its_domain_and_has_a_plain_path() {
        for good in ["spiffe://partner.example/spire/server", "spiffe://partner.example/ns/weft-system/sa/weft-control"]
        {
            assert_eq!(EndpointId::of("partner.example", good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "spiffe://partner.example",
            "spiffe://partner.example/",
            "spiffe://partner.example//a",
            "spiffe://partner.example/a/",
            "spiffe://partner.example/a/../b",
            "spiffe://partner.example/a%2Fb",
            "spiffe://partner.example/a?b",
            "spiffe://partner.example.org/a",
            "spiffe://other.example/a",
            "https://partner.example/a",
            "SPIFFE://partner.example/a",
        ] {
            assert_eq!(EndpointId::of("partner.example", bad), None, "{bad}");
        }
        assert_eq!(EndpointId::of("p", &format!("spiffe://p/{}", "a".repeat(MAX_ID))), None);
    }
}
