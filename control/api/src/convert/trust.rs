//! Whose certificates are believed.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use weft_engine::identity::Identity;

use super::error::{ErrorCode, ResourceError};
use super::{field, require_features};
use crate::wire::v1;

/// Trust domains that a mesh may be federated with.
pub const MAX_DOMAINS: usize = 256;
/// Roots of one of them.
pub const MAX_ROOTS: usize = 64;
/// Bytes of one root.
pub const MAX_ROOT: usize = 16 << 10;

/// Root certificates, as DER, by trust domain. Whether they are certificates is for who uses them to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Empty: control says nothing of it. Otherwise the mesh's own domain is among them, and each has at least one root.
    pub bundles: BTreeMap<Arc<str>, Vec<Bytes>>,
}

pub(super) fn trust(wire: v1::Trust, own: &str) -> Result<Trust, ResourceError> {
    require_features("trust", &wire.requires)?;
    let mut bundles = BTreeMap::new();
    for v1::TrustBundle { trust_domain, roots } in wire.bundles {
        let shown = field::cut(&trust_domain);
        if Identity::new(&trust_domain, "any", "any").is_err() {
            let message = format!("`{shown}` is no trust domain");
            return Err(ResourceError::new(ErrorCode::InvalidIdentity, message));
        }
        if roots.is_empty() || roots.len() > MAX_ROOTS || roots.iter().any(|root| root.len() > MAX_ROOT) {
            let message =
                format!("trust domain `{shown}` must have 1 to {MAX_ROOTS} roots of at most {MAX_ROOT} bytes");
            return Err(ResourceError::new(ErrorCode::OutOfRange, message));
        }
        if bundles.insert(trust_domain.as_str().into(), roots).is_some() {
            let message = format!("trust domain `{shown}` stands there twice");
            return Err(ResourceError::new(ErrorCode::InvalidName, message));
        }
    }
    if bundles.len() > MAX_DOMAINS {
        let message = format!("more than {MAX_DOMAINS} trust domains");
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    if !bundles.is_empty() && !bundles.contains_key(own) {
        let message = format!("the mesh's own trust domain `{own}` is missing: nobody could be believed any more");
        return Err(ResourceError::new(ErrorCode::MissingField, message));
    }
    Ok(Trust { bundles })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(domain: &str, roots: usize) -> v1::TrustBundle {
        v1::TrustBundle { trust_domain: domain.into(), roots: vec![Bytes::from_static(&[1]); roots] }
    }

    fn refused(bundles: Vec<v1::TrustBundle>) -> ErrorCode {
        trust(v1::Trust { bundles, requires: Vec::new() }, "cluster.local").unwrap_err().code
    }

    #[test]
    fn nothing_said_is_nothing_and_never_everybody_out() {
        assert_eq!(trust(v1::Trust::default(), "cluster.local").unwrap(), Trust::default());
        assert_eq!(refused(vec![bundle("other.org", 1)]), ErrorCode::MissingField);
        assert_eq!(refused(vec![bundle("cluster.local", 0)]), ErrorCode::OutOfRange);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        assert_eq!(refused(vec![bundle("cluster.local", 1), bundle("cluster.local", 1)]), ErrorCode::InvalidName);
        assert_eq!(refused(vec![bundle("cluster.local", 1), bundle("Other", 1)]), ErrorCode::InvalidIdentity);
        assert_eq!(refused(vec![bundle("cluster.local", MAX_ROOTS + 1)]), ErrorCode::OutOfRange);
        let many = (0..MAX_DOMAINS).map(|i| bundle(&format!("d{i}"), 1)).chain([bundle("cluster.local", 1)]).collect();
        assert_eq!(refused(many), ErrorCode::OutOfRange);
        let wire = v1::Trust { bundles: vec![bundle("cluster.local", 1)], requires: vec!["unheard-of".into()] };
        assert_eq!(trust(wire, "cluster.local").unwrap_err().code, ErrorCode::UnsupportedFeature);
    }
}
