//! A certificate of the mesh that is still valid: how proxies renew. The handshake has verified its chain; here only the clock is looked
//! at, because a connection may outlive it.

use std::time::SystemTime;

use super::{Method, Proof};
use crate::auth::Proved;

/// Whom the connection's certificate proves; nobody once it has run out.
pub fn prove(proved: Option<&Proved>, now: SystemTime) -> Option<Proof> {
    let proved = proved.filter(|proved| now < proved.not_after)?;
    Some(Proof { identity: proved.identity.clone(), method: Method::Certificate, pod: None, once: None })
}
