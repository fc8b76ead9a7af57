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
/// Names that it may have itself, and may have had.
pub const MAX_NAMES: usize = 32;
/// Roots of one trust domain.
pub const MAX_ROOTS: usize = 64;
/// Bytes of one root.
pub const MAX_ROOT: usize = 16 << 10;

/// Root certificates, as DER, by trust domain. Whether they are certificates is for who uses them to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Empty: control says nothing of it. Otherwise the mesh's own domain is among them, and each has at least one root.
    pub bundles: BTreeMap<Arc<str>, Vec<Bytes>>,
    /// The mesh's own, by the name that certificates are issued in.
    pub own: Arc<str>,
    /// Its other names, of none of which there is a bundle.
    pub aliases: Vec<Arc<str>>,
    /// Further roots of it, for peers and never for control.
    pub svid_roots: Vec<Bytes>,
}

/// `own`: the name that the mesh has here.
pub(super) fn trust(wire: v1::Trust, own: &str) -> Result<Trust, ResourceError> {
    require_features("trust", &wire.requires)?;
    let mut bundles = BTreeMap::new();
    for v1::TrustBundle { trust_domain, roots } in wire.bundles {
        let name = domain(&trust_domain)?;
        if roots.is_empty() || roots.len() > MAX_ROOTS || roots.iter().any(|root| root.len() > MAX_ROOT) {
            let message = format!("trust domain `{name}` must have 1 to {MAX_ROOTS} roots of at most {MAX_ROOT} bytes");
            return Err(ResourceError::new(ErrorCode::OutOfRange, message));
        }
        if bundles.contains_key(&name) {
            let message = format!("trust domain `{name}` stands there twice");
            return Err(ResourceError::new(ErrorCode::InvalidName, message));
        }
        bundles.insert(name, roots);
    }
    if bundles.len() > MAX_DOMAINS || wire.aliases.len() + wire.former.len() > MAX_NAMES {
        let message = format!("more than {MAX_DOMAINS} trust domains, or {MAX_NAMES} other names of the mesh's own");
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    if wire.svid_roots.len() > MAX_ROOTS || wire.svid_roots.iter().any(|root| root.len() > MAX_ROOT) {
        let message = format!("more than {MAX_ROOTS} further roots, or one of more than {MAX_ROOT} bytes");
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    let issued: Arc<str> = if wire.own.is_empty() { own.into() } else { domain(&wire.own)? };
    let aliases = wire.aliases.iter().map(|name| domain(name)).collect::<Result<Vec<_>, _>>()?;
    let former = wire.former.iter().map(|name| domain(name)).collect::<Result<Vec<_>, _>>()?;
    let known = *issued == *own || aliases.iter().chain(&former).any(|name| **name == *own);
    let ours = known && bundles.contains_key(&issued);
    if !bundles.is_empty() && !ours {
        let message = format!("the mesh's own trust domain `{own}` is missing: nobody could be believed any more");
        return Err(ResourceError::new(ErrorCode::MissingField, message));
    }
    if let Some(name) = aliases.iter().chain(&former).find(|name| bundles.contains_key(*name)) {
        // Here identities of a former name, too, are known as the mesh's own.
        let message = format!("`{name}` is a name of the mesh's own trust domain: no other can have it");
        return Err(ResourceError::new(ErrorCode::InvalidName, message));
    }
    Ok(Trust { bundles, own: issued, aliases, svid_roots: wire.svid_roots })
}

fn domain(text: &str) -> Result<Arc<str>, ResourceError> {
    if Identity::new(text, "any", "any").is_ok() {
        return Ok(text.into());
    }
    Err(ResourceError::new(ErrorCode::InvalidIdentity, format!("`{}` is no trust domain", field::cut(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(domain: &str, roots: usize) -> v1::TrustBundle {
        v1::TrustBundle { trust_domain: domain.into(), roots: vec![Bytes::from_static(&[1]); roots] }
    }

    fn told(bundles: Vec<v1::TrustBundle>) -> v1::Trust {
        v1::Trust { bundles, ..v1::Trust::default() }
    }

    fn refused(bundles: Vec<v1::TrustBundle>) -> ErrorCode {
        trust(told(bundles), "cluster.local").unwrap_err().code
    }

    #[test]
    fn nothing_said_is_nothing_and_never_everybody_out() {
        assert!(trust(v1::Trust::default(), "cluster.local").unwrap().bundles.is_empty());
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
        let svid_roots = vec![Bytes::from_static(&[1]); MAX_ROOTS];
        let wire = v1::Trust { svid_roots: svid_roots.clone(), ..told(vec![bundle("cluster.local", 1)]) };
        assert_eq!(trust(wire.clone(), "cluster.local").unwrap().svid_roots, svid_roots);
        let wire = v1::Trust { svid_roots: [svid_roots, vec![Bytes::new()]].concat(), ..wire };
        assert_eq!(trust(wire, "cluster.local").unwrap_err().code, ErrorCode::OutOfRange);
        let wire = v1::Trust { requires: vec!["unheard-of".into()], ..told(vec![bundle("cluster.local", 1)]) };
        assert_eq!(trust(wire, "cluster.local").unwrap_err().code, ErrorCode::UnsupportedFeature);
    }

    /// What becomes of it at a proxy that was started with this name.
    fn named(
        own: &str,
        aliases: &[&str],
        former: &[&str],
        bundles: &[&str],
        started: &str,
    ) -> Result<Trust, ErrorCode> {
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let bundles = bundles.iter().map(|domain| bundle(domain, 1)).collect();
        let wire = v1::Trust { own: own.into(), aliases: texts(aliases), former: texts(former), ..told(bundles) };
        trust(wire, started).map_err(|error| error.code)
    }

    #[test]
    fn whoever_was_started_with_a_name_of_the_mesh_finds_its_roots_and_nobody_elses() {
        let good = named("new", &["old"], &["first"], &["new", "partner"], "old").unwrap();
        assert_eq!((&*good.own, &*good.aliases), ("new", &["old".into()][..]));
        assert_eq!(named("new", &["old"], &["first"], &["new", "partner"], "first").unwrap(), good);
        assert_eq!(named("new", &[], &["old"], &["new"], "old").unwrap().aliases, []);
        assert_eq!(named("", &[], &[], &["old"], "old").unwrap().own, "old".into(), "an older control");
        for (own, aliases, former, bundles, started, why) in [
            ("new", &["old"][..], &[][..], &["new"][..], "other", ErrorCode::MissingField),
            ("new", &["old"], &[], &["old"], "new", ErrorCode::MissingField),
            // Somebody else's roots for a name of ours.
            ("new", &["old"], &[], &["new", "old"], "new", ErrorCode::InvalidName),
            ("new", &[], &["old"], &["new", "old"], "old", ErrorCode::InvalidName),
            ("new", &["Old"], &[], &["new"], "new", ErrorCode::InvalidIdentity),
            ("new", &["old"; MAX_NAMES + 1], &[], &["new"], "new", ErrorCode::OutOfRange),
        ] {
            assert_eq!(named(own, aliases, former, bundles, started).unwrap_err(), why, "{own} {aliases:?} {former:?}");
        }
    }
}
