//! Who is who: the trust domain's CA, the certificates of workloads (SVIDs), join tokens, and the rustls configurations that check
//! them.
//!
//! Invariants
//! - One TLS provider, aws-lc-rs; TLS 1.3 only; hybrid X25519MLKEM768 first; no resumption and no 0-RTT, because a resumed session
//!   would skip the checks of [`tls`].
//! - A leaf names exactly one SPIFFE ID, and always the one that was proved, never the one that was asked for.
//! - Time is an argument (the TLS configurations take theirs from rustls, at each handshake).
//! - No secret reaches `Debug`, an error or a log; key files are 0600 in directories of 0700, written whole or not at all.
//! - Synchronous: no runtime in here.
//!
//! - [`ca`]: the root, the issuer, and issue of leaves.
//! - [`token`]: join tokens, by which a new workload proves itself. [`jwt`]: tokens of others, proved by their issuers' public keys.
//! - [`svid`]: a workload's key and certificate chain.
//! - [`tls`]: rustls configurations and verifiers. [`failure`]: why a handshake failed, as metrics count it.
//! - [`revoked`]: who is not believed any more although his certificate is good.
//! - [`outside`]: what a CA that is not ours has signed for us.
//! - [`bundle`]: the roots of a trust domain as SPIFFE publishes them.
//! - [`inspect`]: what the certificates of a file are, for people.
//! - [`files`]: private files, written whole or not at all; proxy and control keep theirs by it too.

pub mod bundle;
pub mod ca;
pub mod failure;
pub mod files;
#[cfg(test)]
mod hostile;
pub mod inspect;
pub mod jwt;
pub mod outside;
pub mod revoked;
pub mod svid;
pub mod tls;
pub mod token;
mod x509;
