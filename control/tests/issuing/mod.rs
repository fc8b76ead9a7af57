//! Who gets a certificate, who may open a stream for what, and who is refused, over real TLS and gRPC; each refusal with its cause in the
//! audit log.

mod further;
mod kubernetes;
mod once;
mod requests;
mod revoked;
mod streams;
pub mod support;
mod tokens;

use crate::common::Mesh;
use serde_json::Value;
use support::Audit;
use weft_certs::svid::KeyPair;

/// A request of `shop/ACCOUNT` with a new key.
fn request(account: &str) -> String {
    KeyPair::generate().unwrap().csr(&Mesh::identity(account)).unwrap()
}

/// The token is refused for this cause: the audit log says so, and control tells the asker why.
async fn refused(mesh: &Mesh, audit: &Audit, token: &str, csr: &str, cause: &str) -> Value {
    let status = mesh.certificate(None, Some(token), csr, 0).await.expect_err(cause);
    let line = audit.last();
    assert_eq!(line["message"], "certificate refused", "{line}");
    assert_eq!(line["cause"], cause, "{line}");
    assert_eq!(line["level"], "WARN", "{line}");
    assert!(!status.message().is_empty());
    let signature = token.rsplit('.').next().unwrap();
    assert!(signature.is_empty() || !audit.tells(signature), "a token is in the log");
    line
}
