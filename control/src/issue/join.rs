//! Join tokens of our own CA (`weft token`), for workloads that no orchestrator vouches for.
//!
//! Invariant: of a token that may be used once, the key that it is used with is where all replicas see it before a certificate is
//! issued. Whoever copies a token that was used gets nothing by it; whoever uses it first gets the certificate, and the rightful
//! owner's refusal (`token_replayed`) tells of it.
//!
//! The same key may ask again until the token expires: if control dies, or the network, after the token was used up and before the answer
//! has arrived, nothing is lost for who kept the key. Who made a new one, or lost it, needs a new token.

use std::time::SystemTime;

use weft_certs::ca::Ca;
use weft_certs::jwt::Unproved;
use weft_certs::token::{Uses, Verifier};

use super::used::Once;
use super::{Method, Proof, Refusal};

/// Checks join tokens.
#[derive(Debug)]
pub struct Join(Verifier);

impl Join {
    /// Takes the tokens of this CA.
    pub fn new(ca: &Ca) -> Self {
        Self(Verifier::from_ca(ca))
    }

    /// Whom the token proves.
    pub fn prove(&self, token: Unproved<'_>, now: SystemTime) -> Result<Proof, Refusal> {
        let join = self.0.prove(token, now)?;
        let once = (join.uses == Uses::Once).then_some(Once { id: join.id, expires: join.expires });
        Ok(Proof { identity: join.identity, method: Method::Join, pod: None, once, token: None })
    }
}
