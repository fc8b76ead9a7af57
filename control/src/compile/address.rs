//! What an address means. Every name has an answer.
//!
//! - A known ClusterIP is its service, whatever the port: a port that the service does not have leads to a service without endpoints.
//! - A pod's address is that very pod, on any port.
//! - `NAME.NAMESPACE.svc.clusterset.local` is the ServiceImport, and so is its address, whoever else claims that.
//! - `NAME.NAMESPACE[.svc[.cluster.local]]` is the service; `HOSTNAME.NAME.NAMESPACE[.svc[...]]` a member of a headless one.
//! - An endpoint whose pod is not known, by address or name, leads to a service without endpoints: whether it takes mesh TLS cannot
//!   be said, so nothing is sent to it in the clear.
//! - Anything else is outside.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_api::names;
use weft_api::wire::v1::{self, address::Target};

use super::index::{endpoints_at, service_of};
use super::{Compiled, Resource, endpoints};
use crate::model::{Name, ServiceRef};

/// The cluster's DNS suffix.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// What a stream listens to so as to hear of changes of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// The resource of this name; of an `EndpointHead`, its members too.
    Name(Arc<str>),
    /// Whatever an IP means.
    Ip(IpAddr),
    /// Whatever a service's names mean.
    Service(Name),
}

impl Topic {
    /// The resource that it is, if it is one.
    pub fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Name(name) => Some(name),
            Self::Ip(_) | Self::Service(_) => None,
        }
    }
}

/// A parsed name of an `Address`.
enum Asked {
    Ip(SocketAddr),
    Host { service: Option<Name>, member: Option<(String, Name)>, port: u16 },
    Nonsense,
}

fn parse(name: &str) -> Asked {
    if let Ok(addr) = name.parse::<SocketAddr>() {
        return Asked::Ip(SocketAddr::new(addr.ip().to_canonical(), addr.port()));
    }
    let Some((host, port)) = name.rsplit_once(':') else { return Asked::Nonsense };
    let Ok(port) = port.parse::<u16>() else { return Asked::Nonsense };
    let host = host.to_ascii_lowercase();
    let mut host = host.trim_end_matches('.');
    if let Some(import) = host.strip_suffix(CLUSTERSET_DOMAIN) {
        let service = import.split_once('.').filter(|(_, namespace)| !namespace.contains('.'));
        let service = service.map(|(name, namespace)| Name::new(namespace, names::imported(name)));
        return Asked::Host { service, member: None, port };
    }
    if let Some(short) = host.strip_suffix(CLUSTER_DOMAIN).and_then(|short| short.strip_suffix('.')) {
        if short.strip_suffix(".svc").is_none() {
            return Asked::Host { service: None, member: None, port };
        }
        host = short;
    }
    let labels: Vec<&str> = host.split('.').collect();
    let (mut service, mut member) = (None, None);
    let name = |namespace: &str, name: &str| Name::new(namespace, name);
    match labels[..] {
        [a, b] => service = Some(name(b, a)),
        // `a.b.svc` is service a of namespace b, or member a of service b in a namespace called svc.
        [a, b, c @ "svc"] => (service, member) = (Some(name(b, a)), Some((a.to_owned(), name(c, b)))),
        [a, b, c] | [a, b, c, "svc"] => member = Some((a.to_owned(), name(c, b))),
        _ => {}
    }
    Asked::Host { service, member, port }
}

/// The suffix of services of several clusters (KEP-1645).
const CLUSTERSET_DOMAIN: &str = ".svc.clusterset.local";

/// What a stream has to listen to that holds the resource `name`.
pub fn topics_of(name: &Arc<str>) -> Vec<Topic> {
    if let Some(service) = ServiceRef::parse(name) {
        // A port that is made on demand changes with its service.
        return vec![Topic::Name(Arc::clone(name)), Topic::Service(service.name)];
    }
    if !names::is_address(name) {
        return vec![Topic::Name(Arc::clone(name))];
    }
    match parse(name) {
        Asked::Ip(addr) => vec![Topic::Ip(addr.ip())],
        Asked::Host { service, member, .. } => {
            service.into_iter().chain(member.map(|(_, service)| service)).map(Topic::Service).collect()
        }
        Asked::Nonsense => Vec::new(),
    }
}

/// The address resource that leads to a service.
pub(super) fn to_service(service: &Arc<str>) -> Resource {
    let message = v1::Address { target: Some(Target::Service(service.to_string())) };
    Resource::new(&message, vec![Arc::clone(service)])
}

fn outside(reason: &str) -> Arc<Resource> {
    let target = Target::Outside(v1::Outside { reason: reason.to_owned() });
    Arc::new(Resource::new(&v1::Address { target: Some(target) }, Vec::new()))
}

impl Compiled {
    /// The `Address` of this name: `IP:PORT` or `HOST:PORT`. Any name has an answer.
    pub fn address(&self, name: &str) -> Arc<Resource> {
        match parse(name) {
            Asked::Nonsense => outside("not of the form IP:PORT or HOST:PORT"),
            Asked::Ip(addr) => self.by_ip(addr),
            Asked::Host { service, member, port } => {
                if let Some(found) = service.filter(|service| self.index.model.services.contains_key(service)) {
                    return self.by_service(&found, port);
                }
                member
                    .and_then(|(hostname, service)| self.by_member(&hostname, &service, port))
                    .unwrap_or_else(|| outside("no service of the mesh has this name"))
            }
        }
    }

    fn by_ip(&self, addr: SocketAddr) -> Arc<Resource> {
        let services = self.index.services_at.get(&addr.ip());
        // Some controllers make a Service to have the addresses of a ServiceImport.
        let import = services.iter().find(|service| names::is_imported(&service.name));
        if let Some(service) = import.or(services.first()) {
            return self.by_service(service, addr.port());
        }
        let Some((name, workload)) = self.index.workload_at(addr.ip()) else {
            return match self.unresolved_at(addr.ip()) {
                Some(service) => self.closed(&service),
                None => outside("no service and no pod of the mesh has this address"),
            };
        };
        let draining = self.index.draining.contains(name);
        let endpoint = endpoints::message(addr.ip(), addr.port(), Some((name, workload)), draining);
        Arc::new(Resource::new(&v1::Address { target: Some(Target::Workload(endpoint)) }, Vec::new()))
    }

    /// The service of an endpoint at this address that names a pod which is not known.
    fn unresolved_at(&self, ip: IpAddr) -> Option<Name> {
        let slices = self.index.slices_at.get(&ip).iter();
        slices.filter_map(|name| Some((name, self.index.model.slices.get(&**name)?))).find_map(|(name, slice)| {
            let mut endpoints = endpoints_at(slice, ip).iter();
            endpoints.any(|endpoint| self.index.is_unresolved(endpoint)).then(|| service_of(name, slice))
        })
    }

    fn by_service(&self, service: &Name, port: u16) -> Arc<Resource> {
        let name: Arc<str> = names::service(&service.namespace, &service.name, port).into();
        self.service_addresses.get(&name).cloned().unwrap_or_else(|| Arc::new(to_service(&name)))
    }

    /// Leads to a service port that has no endpoints, so that a proxy refuses with `no_endpoints`.
    fn closed(&self, service: &Name) -> Arc<Resource> {
        let ports = self.index.model.services.get(service).map(|service| service.ports.as_slice()).unwrap_or_default();
        let free = (1..=u16::MAX).rev().find(|free| ports.iter().all(|port| port.port != *free));
        self.by_service(service, free.unwrap_or(u16::MAX))
    }

    /// A member of a headless service by its own name. The port is the pod's: nothing translates ports of a headless service.
    fn by_member(&self, hostname: &str, service: &Name, port: u16) -> Option<Arc<Resource>> {
        self.index.model.services.get(service).filter(|service| service.headless)?;
        let endpoint = self.index.endpoints(service).find(|endpoint| endpoint.hostname.as_deref() == Some(hostname))?;
        let workload = match &endpoint.workload {
            Some(name) => match self.index.model.workloads.get_key_value(name) {
                Some(found) => Some(found),
                None => return Some(self.closed(service)),
            },
            None => None,
        };
        let draining = endpoint.terminating || workload.is_some_and(|(name, _)| self.index.draining.contains(name));
        let message = endpoints::message(endpoint.ip, port, workload, draining);
        Some(Arc::new(Resource::new(&v1::Address { target: Some(Target::HeadlessMember(message)) }, Vec::new())))
    }
}
