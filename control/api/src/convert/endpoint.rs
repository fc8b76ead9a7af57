//! Addresses and endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use weft_engine::balance::Hints;
use weft_engine::identity::Identity;

use super::error::{ErrorCode, ResourceError};
use super::field;
use crate::names::Digest;
use crate::wire::v1;

/// What stands behind an address that an application called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The resource name of a service port.
    Service(Arc<str>),
    /// That very pod.
    Workload(Endpoint),
    /// That very member of a headless service.
    HeadlessMember(Endpoint),
    /// Not of the mesh.
    Outside {
        /// One sentence for a person.
        reason: Arc<str>,
    },
}

/// Mesh protocols that an endpoint takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alpn {
    /// `weft1-h1`.
    pub h1: bool,
    /// `weft1-h2`.
    pub h2: bool,
    /// `weft1-tcp`.
    pub tcp: bool,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub addr: SocketAddr,
    /// Whom it must prove to be; `None`: outside the mesh, spoken to in the clear.
    pub identity: Option<Identity>,
    /// Mesh protocols; none without an identity, at least one with it.
    pub alpn: Alpn,
    /// `NAMESPACE/POD`, or empty.
    pub workload: Arc<str>,
    /// Or empty.
    pub zone: Arc<str>,
    /// At least 1.
    pub weight: u32,
    /// Leaving.
    pub draining: bool,
    /// Which clients are to prefer it.
    pub hints: Hints,
}

/// The index of an endpoint set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointHead {
    /// Members.
    pub count: u32,
    /// [`Digest`] over them.
    pub digest: [u8; 16],
}

impl EndpointHead {
    /// Whether a set of so many members with this digest is the one that the head describes.
    pub fn describes(&self, count: usize, digest: Digest) -> bool {
        u32::try_from(count) == Ok(self.count) && digest.to_bytes() == self.digest[..]
    }
}

pub(super) fn address(wire: v1::Address, own: &str) -> Result<Address, ResourceError> {
    use v1::address::Target;
    Ok(match wire.target.ok_or_else(|| field::missing("the address's target"))? {
        Target::Service(name) => Address::Service(field::service_name(&name)?),
        Target::Workload(member) => Address::Workload(endpoint(&member, own)?),
        Target::HeadlessMember(member) => Address::HeadlessMember(endpoint(&member, own)?),
        Target::Outside(outside) => Address::Outside { reason: outside.reason.into() },
    })
}

pub(super) fn head(wire: &v1::EndpointHead) -> Result<EndpointHead, ResourceError> {
    let digest = wire.digest[..].try_into().map_err(|_| {
        ResourceError::new(ErrorCode::OutOfRange, format!("a digest has 16 bytes, not {}", wire.digest.len()))
    })?;
    Ok(EndpointHead { count: wire.count, digest })
}

pub(super) fn endpoint(wire: &v1::Endpoint, own: &str) -> Result<Endpoint, ResourceError> {
    let identity = if wire.identity.is_empty() { None } else { Some(field::identity(&wire.identity, own)?) };
    Ok(Endpoint {
        addr: SocketAddr::new(field::ip(&wire.ip)?, field::port(wire.port)?),
        alpn: alpn(&wire.alpn, identity.is_some())?,
        identity,
        workload: wire.workload.as_str().into(),
        zone: wire.zone.as_str().into(),
        weight: wire.weight.max(1),
        draining: wire.draining,
        hints: Hints {
            node: wire.node.as_str().into(),
            for_nodes: wire.for_nodes.iter().map(|node| node.as_str().into()).collect(),
            for_zones: wire.for_zones.iter().map(|zone| zone.as_str().into()).collect(),
        },
    })
}

/// Protocols that this build does not know are passed over: the endpoint takes the others all the same.
fn alpn(offered: &[String], meshed: bool) -> Result<Alpn, ResourceError> {
    let has = |wanted: &str| offered.iter().any(|name| name == wanted);
    let alpn = Alpn { h1: has("weft1-h1"), h2: has("weft1-h2"), tcp: has("weft1-tcp") };
    if meshed && alpn == Alpn::default() {
        let message = "an endpoint with an identity takes no mesh protocol that this build speaks: upgrade the proxy";
        return Err(ResourceError::new(ErrorCode::UnsupportedFeature, message));
    }
    if !meshed && !offered.is_empty() {
        // Without an identity to check, mesh TLS would prove nothing, and plaintext is not what control meant.
        return Err(ResourceError::new(ErrorCode::InvalidIdentity, "an endpoint with mesh protocols has no identity"));
    }
    Ok(alpn)
}
