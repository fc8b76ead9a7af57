//! Services, workloads and the mesh's extent.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use weft_engine::balance::{Place, Spread};
use weft_engine::identity::Identity;

use super::error::{ErrorCode, ResourceError};
use super::{field, require_features};
use crate::names;
use crate::wire::v1;

/// How a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Recognised from the first bytes.
    #[default]
    Detect,
    /// HTTP/1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Opaque bytes.
    Tcp,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Resource name, `service/NAMESPACE/NAME:PORT`.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The service's own name.
    pub service: Arc<str>,
    /// The port that clients call.
    pub port: u16,
    /// How it speaks.
    pub protocol: Protocol,
    /// Resource names of the routes attached to it, in no order.
    pub routes: Vec<Arc<str>>,
    /// ExternalName: the host to resolve; such a service has no endpoint set.
    pub external_name: Option<Arc<str>>,
    /// Which of its endpoints a client uses.
    pub spread: Spread,
    /// Some namespace has routes of its own for it.
    pub consumed: bool,
    /// Its name leads to its members, each of which is that very pod.
    pub headless: bool,
}

impl Service {
    /// The resource that says which routes clients of this namespace have instead of the service's own; `None` if they have those.
    pub fn consumer(&self, client: &str) -> Option<String> {
        if self.consumed { names::consumer(client, &self.name) } else { None }
    }
}

/// Routes that clients of one namespace have for a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Resource names; none: the service's own hold.
    pub routes: Vec<Arc<str>>,
}

/// A proxy's own workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Resource name, `workload/NAMESPACE/POD`.
    pub resource: Arc<str>,
    /// `NAMESPACE/POD`.
    pub name: Arc<str>,
    /// Who it is.
    pub identity: Identity,
    /// Mesh TLS only.
    pub strict: bool,
    /// Ports on which it is the other way round.
    pub other_mode: BTreeSet<u16>,
    /// With no Allow policy on a target: deny.
    pub default_deny: bool,
    /// Ports that say something.
    pub ports: Vec<InboundPort>,
    /// Authorization policies that cover it.
    pub authorization: Vec<Binding>,
    /// Rate-limit policies that cover it.
    pub rate_limits: Vec<Binding>,
    /// Where it runs.
    pub place: Place,
}

/// One port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The port that the application listens on.
    pub port: u16,
    /// How it speaks.
    pub protocol: Protocol,
    /// `NAMESPACE/NAME` of the services that it backs, sorted.
    pub services: Vec<Arc<str>>,
}

/// A policy on a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The policy's resource name.
    pub policy: Arc<str>,
    /// Ports of the workload that it covers; none means all.
    pub ports: Vec<u16>,
}

impl Binding {
    /// Whether it covers a port.
    pub fn covers(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

fn protocol(number: i32) -> Result<Protocol, ResourceError> {
    Ok(match v1::Protocol::try_from(number).map_err(|_| field::unknown("protocol", number))? {
        v1::Protocol::Detect => Protocol::Detect,
        v1::Protocol::Http1 => Protocol::Http1,
        v1::Protocol::Http2 => Protocol::Http2,
        v1::Protocol::Tcp => Protocol::Tcp,
    })
}

pub(super) fn service(wire: &v1::Service) -> Result<Service, ResourceError> {
    let namespace = field::name("namespace", &wire.namespace)?;
    let service = field::name("service", &wire.name)?;
    let port = field::port(wire.port)?;
    let name = names::service(namespace, service, port);
    require_features(&name, &wire.requires)?;
    Ok(Service {
        routes: routes(&wire.routes).map_err(|error| error.within(&name))?,
        protocol: protocol(wire.protocol)?,
        external_name: if wire.external_name.is_empty() { None } else { Some(field::host(&wire.external_name)?) },
        name: name.into(),
        namespace: namespace.into(),
        service: service.into(),
        port,
        spread: Spread { node_local: wire.node_local, sticky: wire.sticky },
        consumed: wire.consumed,
        headless: wire.headless,
    })
}

pub(super) fn consumer(wire: &v1::Consumer) -> Result<Consumer, ResourceError> {
    require_features("a namespace's own routes for a service", &wire.requires)?;
    Ok(Consumer { routes: routes(&wire.routes)? })
}

fn routes(names: &[String]) -> Result<Vec<Arc<str>>, ResourceError> {
    names.iter().map(|route| field::object_name(super::routes::KINDS, route)).collect()
}

pub(super) fn workload(wire: &v1::Workload, trust_domain: &str) -> Result<Workload, ResourceError> {
    let namespace = field::name("namespace", &wire.namespace)?;
    let pod = field::name("workload", &wire.name)?;
    let resource = names::workload(namespace, pod);
    require_features(&resource, &wire.requires)?;
    let strict = match v1::MtlsMode::try_from(wire.mode).map_err(|_| field::unknown("mTLS mode", wire.mode))? {
        v1::MtlsMode::Permissive => false,
        v1::MtlsMode::Strict => true,
    };
    let identity = Identity::new(trust_domain, namespace, &wire.service_account)
        .map_err(|error| ResourceError::new(ErrorCode::InvalidIdentity, error.to_string()))?;
    Ok(Workload {
        name: format!("{namespace}/{pod}").into(),
        identity,
        strict,
        other_mode: wire.other_mode_ports.iter().map(|port| field::port(*port)).collect::<Result<_, _>>()?,
        default_deny: wire.default_deny,
        ports: wire.ports.iter().map(inbound_port).collect::<Result<_, _>>()?,
        authorization: bindings("AuthorizationPolicy", &wire.authorization)?,
        rate_limits: bindings("RateLimitPolicy", &wire.rate_limits)?,
        place: Place { node: wire.node.as_str().into(), zone: wire.zone.as_str().into() },
        resource: resource.into(),
    })
}

fn inbound_port(wire: &v1::InboundPort) -> Result<InboundPort, ResourceError> {
    Ok(InboundPort {
        port: field::port(wire.port)?,
        protocol: protocol(wire.protocol)?,
        services: wire.services.iter().map(|name| name.as_str().into()).collect(),
    })
}

fn bindings(kind: &str, wire: &[v1::PolicyBinding]) -> Result<Vec<Binding>, ResourceError> {
    let binding = |wire: &v1::PolicyBinding| {
        Ok(Binding {
            policy: field::object_name(&[kind], &wire.policy)?,
            ports: wire.ports.iter().map(|port| field::port(*port)).collect::<Result<_, _>>()?,
        })
    };
    wire.iter().map(binding).collect()
}

pub(super) fn extent(wire: &v1::MeshExtent) -> Result<Vec<IpNet>, ResourceError> {
    let range = |text: &String| {
        text.parse().map_err(|_| {
            let message = format!("`{}` is no range of the form ADDRESS/BITS", field::cut(text));
            ResourceError::new(ErrorCode::InvalidAddress, message)
        })
    };
    wire.cidrs.iter().map(range).collect()
}
