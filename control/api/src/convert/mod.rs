//! The one conversion from wire to engine, used by control (what it is about to send), by the proxy (what it was sent) and by the command
//! line.
//!
//! Invariants
//! - Nothing comes out that the engine could not use: ports, names, identities, patterns and header names are checked here and nowhere
//!   else again.
//! - Never half: a resource that needs a feature which this build lacks ([`crate::FEATURES`]), or holds an enum value or a
//!   variant that it does not know, is refused. An authorization or rate-limit policy of that kind comes out broken, so that
//!   what it targets is denied (contract C7).
//! - Never panics, whatever the bytes.
//! - Bounded: the number of regular expressions in one resource, and the size of each ([`weft_engine::route::whole_regex`]).

use std::sync::Arc;

use ipnet::IpNet;
use weft_engine::{authz, route};

use crate::names::{ResourceType, short_type};
use crate::wire::v1;

mod bindings;
mod endpoint;
mod error;
mod field;
mod filters;
mod policy;
mod revoked;
mod routes;
mod trust;
mod workload;

pub use bindings::{Bound, Held, PortRules};
pub use endpoint::{Address, Alpn, Endpoint, EndpointHead};
pub use error::{ErrorCode, ResourceError};
pub(crate) use filters::NOT_EDITABLE;
pub use policy::{RateLimitPolicy, closed_policy};
pub use revoked::{MAX_REVOKED, MAX_REVOKED_BYTES, Revoked};
pub(crate) use routes::MAX_HOSTNAMES;
pub use trust::Trust;
pub use workload::{Binding, Consumer, InboundPort, Protocol, Service, Workload};

/// A resource as the engine and the proxy use it.
#[derive(Clone, Debug)]
pub enum Decoded {
    /// What an address means.
    Address(Address),
    /// One port of a service.
    Service(Service),
    /// Routes of one namespace for a service of another.
    Consumer(Consumer),
    /// A route, its rules compiled.
    Route(route::Route),
    /// The index of an endpoint set.
    EndpointHead(EndpointHead),
    /// A member of one.
    Endpoint(Endpoint),
    /// A proxy's own workload.
    Workload(Workload),
    /// Who may.
    AuthorizationPolicy(authz::Policy),
    /// How often.
    RateLimitPolicy(RateLimitPolicy),
    /// Ranges that hold all addresses of services and pods.
    MeshExtent(Vec<IpNet>),
    /// Whose certificates are believed.
    Trust(Trust),
    /// Who is not believed any more.
    Revoked(Revoked),
}

impl Decoded {
    /// The resource name that follows from the content, where it does: a stream's end refuses a resource that travels under another.
    pub fn own_name(&self) -> Option<Arc<str>> {
        match self {
            Self::Service(service) => Some(Arc::clone(&service.name)),
            Self::Route(route) => Some(Arc::clone(&route.name)),
            Self::Workload(workload) => Some(Arc::clone(&workload.resource)),
            Self::AuthorizationPolicy(policy) => Some(Arc::clone(&policy.name)),
            Self::RateLimitPolicy(policy) => Some(Arc::clone(&policy.name)),
            Self::MeshExtent(_) => Some(crate::names::MESH_EXTENT.into()),
            Self::Trust(_) => Some(crate::names::TRUST.into()),
            Self::Revoked(_) => Some(crate::names::REVOKED.into()),
            Self::Address(_) | Self::Consumer(_) | Self::EndpointHead(_) | Self::Endpoint(_) => None,
        }
    }
}

/// Decodes and checks one resource. `trust_domain` is what the mesh is called here, whatever its other names: identities without one are given
/// that.
pub fn decode(type_url: &str, bytes: &[u8], trust_domain: &str) -> Result<Decoded, ResourceError> {
    Ok(match type_url {
        v1::Address::TYPE_URL => Decoded::Address(endpoint::address(parse(bytes)?, trust_domain)?),
        v1::Service::TYPE_URL => Decoded::Service(workload::service(&parse(bytes)?)?),
        v1::Consumer::TYPE_URL => Decoded::Consumer(workload::consumer(&parse(bytes)?)?),
        v1::Route::TYPE_URL => Decoded::Route(routes::route(&parse(bytes)?)?),
        v1::EndpointHead::TYPE_URL => Decoded::EndpointHead(endpoint::head(&parse(bytes)?)?),
        v1::Endpoint::TYPE_URL => Decoded::Endpoint(endpoint::endpoint(&parse(bytes)?, trust_domain)?),
        v1::Workload::TYPE_URL => Decoded::Workload(workload::workload(&parse(bytes)?, trust_domain)?),
        v1::AuthorizationPolicy::TYPE_URL => {
            Decoded::AuthorizationPolicy(policy::authorization(&parse(bytes)?, trust_domain)?)
        }
        v1::RateLimitPolicy::TYPE_URL => Decoded::RateLimitPolicy(policy::rate_limit(&parse(bytes)?)?),
        v1::MeshExtent::TYPE_URL => Decoded::MeshExtent(workload::extent(&parse(bytes)?)?),
        v1::Trust::TYPE_URL => Decoded::Trust(trust::trust(parse(bytes)?, trust_domain)?),
        v1::Revoked::TYPE_URL => Decoded::Revoked(revoked::revoked(parse(bytes)?, trust_domain)?),
        other => {
            let message = format!("resources of type `{other}` are not known to this build: upgrade the proxy");
            return Err(ResourceError::new(ErrorCode::UnknownType, message));
        }
    })
}

fn parse<T: ResourceType>(bytes: &[u8]) -> Result<T, ResourceError> {
    T::decode(bytes).map_err(|error| {
        let message = format!("the bytes are no {}: {error}", short_type(T::TYPE_URL));
        ResourceError::new(ErrorCode::Malformed, message)
    })
}

/// What this build lacks of `requires`, as one text; `None` if nothing.
fn missing_features(requires: &[String]) -> Option<String> {
    let missing: Vec<&str> =
        requires.iter().map(String::as_str).filter(|feature| !crate::FEATURES.contains(feature)).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

fn require_features(what: &str, requires: &[String]) -> Result<(), ResourceError> {
    match missing_features(requires) {
        None => Ok(()),
        Some(missing) => {
            let message = format!("{what} requires {missing}, which this build does not enforce: upgrade the proxy");
            Err(ResourceError::new(ErrorCode::UnsupportedFeature, message))
        }
    }
}

#[cfg(test)]
mod tests;
