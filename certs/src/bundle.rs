//! The roots of a trust domain as SPIFFE publishes them ("SPIFFE Trust Domain and Bundle"): a JWKS of which the keys for X.509-SVIDs carry one
//! root certificate each.
//!
//! Invariants
//! - A document is taken whole or not at all: a key that says that it is for X.509-SVIDs and has no CA certificate refuses it.
//! - What is taken has a root, few enough of them, and each is one that our verifiers take. Keys for anything else are passed over.

use std::time::Duration;

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::tls;

/// Roots of a trust domain that are taken.
pub const MAX_ROOTS: usize = 64;
/// Bytes of all roots of a trust domain: they go to every proxy.
pub const MAX_BYTES: usize = 64 << 10;
/// Use of the keys that matter here.
const X509_SVID: &str = "x509-svid";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why a document is not taken, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not JSON, or not of that shape.
    #[error("it is no SPIFFE bundle: {0}")]
    Malformed(String),
    /// A key for X.509-SVIDs is none.
    #[error("key {0} is for X.509-SVIDs, but {1}")]
    Key(usize, &'static str),
    /// Nobody could be believed.
    #[error("it has no key for X.509-SVIDs")]
    Empty,
    /// Over the bounds.
    #[error("it has more than {MAX_ROOTS} roots, or more than {MAX_BYTES} bytes of them")]
    TooMany,
    /// A root of ours has a key of a kind that is not written.
    #[error("a root cannot be written as a JWK: its key is neither ECDSA nor RSA")]
    Kind,
}

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The root certificates, sorted, each once.
    pub roots: Vec<CertificateDer<'static>>,
    /// Grows with each change; not everybody has one.
    pub sequence: Option<u64>,
    /// How often its publisher wants to be asked.
    pub refresh_hint: Option<Duration>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

impl Bundle {
    /// Reads a document.
    pub fn from_json(text: &[u8]) -> Result<Self, BundleError> {
        let document: Document =
            serde_json::from_slice(text).map_err(|error| BundleError::Malformed(error.to_string()))?;
        let mut roots = Vec::new();
        for (key, at) in document.keys.iter().zip(1..) {
            if key.get("use").and_then(Value::as_str) == Some(X509_SVID) {
                roots.push(root(key).map_err(|what| BundleError::Key(at, what))?);
            }
        }
        Self::new(roots, document.spiffe_sequence, document.spiffe_refresh_hint.map(Duration::from_secs))
    }

    /// Reads root certificates, PEM, or a document as [`Bundle::from_json`] does: what people have in a file.
    pub fn from_file(text: &[u8]) -> Result<Self, BundleError> {
        if text.trim_ascii_start().starts_with(b"{") {
            return Self::from_json(text);
        }
        let pem = std::str::from_utf8(text).ok().and_then(|pem| tls::certificates(pem).ok());
        let pem = pem.ok_or_else(|| BundleError::Malformed("neither JSON nor PEM certificates".to_owned()))?;
        Self::new(pem, None, None)
    }

    fn new(
        mut roots: Vec<CertificateDer<'static>>,
        sequence: Option<u64>,
        refresh_hint: Option<Duration>,
    ) -> Result<Self, BundleError> {
        roots.sort_unstable_by(|one, two| one.as_ref().cmp(two.as_ref()));
        roots.dedup();
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        if roots.len() > MAX_ROOTS || roots.iter().map(|root| root.len()).sum::<usize>() > MAX_BYTES {
            return Err(BundleError::TooMany);
        }
        Ok(Self { roots, sequence, refresh_hint })
    }
}

/// The document of these roots (PEM).
///
/// # Errors
/// One of them is no certificate, or has a key of a kind that is not written.
pub fn document(roots_pem: &str, sequence: u64, refresh_hint: Duration) -> Result<Vec<u8>, BundleError> {
    let bodies = roots_pem.split(BEGIN).skip(1).map(|block| block.split(END).next().unwrap_or_default());
    let keys = bodies.map(|body| jwk(&body.split_ascii_whitespace().collect::<String>()));
    let keys = keys.collect::<Result<Vec<Value>, _>>()?;
    let document =
        json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": refresh_hint.as_secs().max(1) });
    serde_json::to_vec_pretty(&document).map_err(|error| BundleError::Malformed(error.to_string()))
}

fn jwk(base64: &str) -> Result<Value, BundleError> {
    let der = decode(base64).ok_or_else(|| BundleError::Malformed("a root is no certificate".to_owned()))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| BundleError::Kind)?;
    let key = parsed.public_key();
    let bytes = &key.subject_public_key.data;
    let key = match key.parsed() {
        Ok(PublicKey::EC(_)) => DecodingKey::from_ec_der(bytes),
        Ok(PublicKey::RSA(_)) => DecodingKey::from_rsa_der(bytes),
        _ => return Err(BundleError::Kind),
    };
    let jwk = Jwk::from_decoding_key(&key, None).map_err(|_| BundleError::Kind)?;
    let mut jwk = serde_json::to_value(jwk).map_err(|error| BundleError::Malformed(error.to_string()))?;
    jwk["use"] = X509_SVID.into();
    jwk["x5c"] = json!([base64]);
    Ok(jwk)
}

fn root(key: &Value) -> Result<CertificateDer<'static>, &'static str> {
    let chain = key.get("x5c").and_then(Value::as_array).ok_or("has no `x5c`")?;
    let [certificate] = chain.as_slice() else { return Err("its `x5c` has not exactly one certificate") };
    let der = certificate.as_str().and_then(decode).ok_or("its `x5c` is no certificate in base64")?;
    let (rest, parsed) = X509Certificate::from_der(&der).map_err(|_| "its `x5c` is no certificate")?;
    if !rest.is_empty() || !tls::is_anchor(&der) {
        return Err("its `x5c` is no certificate");
    }
    let ca = parsed.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca);
    if ca { Ok(der.clone()) } else { Err("its `x5c` is no CA's certificate") }
}

fn decode(base64: &str) -> Option<CertificateDer<'static>> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if !base64.bytes().all(plain) {
        return None;
    }
    CertificateDer::from_pem_slice(format!("{BEGIN}\n{base64}\n{END}\n").as_bytes()).ok()
}

#[cfg(test)]
mod tests;
