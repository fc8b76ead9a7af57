//! What references lead to, or why they lead nowhere. Each rule stands here once: the compiler asks, and whoever tells people what is doubtful.

use weft_api::names;

use super::{ForeignRef, Model, Name, ServiceParent};

/// A parsed resource name `service/NAMESPACE/NAME:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRef {
    /// The service.
    pub name: Name,
    /// Its port.
    pub port: u16,
}

impl ServiceRef {
    /// Parses the name of a `Service`.
    pub fn parse(resource: &str) -> Option<Self> {
        let (namespace, rest) = resource.strip_prefix("service/")?.split_once('/')?;
        let (service, port) = rest.rsplit_once(':')?;
        if namespace.is_empty() || service.is_empty() || service.contains('/') {
            return None;
        }
        Some(Self { name: Name::new(namespace, service), port: port.parse().ok()? })
    }
}

impl Model {
    /// The port of its parent that a route of `namespace` is attached to; `None` is each of them. A port that is given by number needs not exist.
    ///
    /// # Errors
    /// Why it is not attached at all.
    pub fn parent_port(&self, namespace: &str, parent: &ServiceParent) -> Result<Option<u16>, String> {
        let Some(section) = &parent.section else { return Ok(parent.port) };
        let service = Name::new(namespace, parent.name.as_str());
        let ports = self.services.get(&service).into_iter().flat_map(|found| &found.ports);
        let mut named = ports.filter(|port| port.name == *section && parent.port.is_none_or(|only| only == port.port));
        named.next().map(|port| Some(port.port)).ok_or_else(|| {
            format!("Service {service} has no such port named `{section}`: the route is not attached to it")
        })
    }

    /// Why a route may not send to a service of another namespace; `None` if it may.
    pub fn ungranted(&self, (kind, route): &(String, Name), to: &ForeignRef) -> Option<String> {
        let from = Name::new(to.namespace.as_str(), "");
        let grants = self.grants.range(from..).take_while(|(name, _)| name.namespace == to.namespace);
        let granted = grants.map(|(_, grant)| grant).any(|grant| {
            let from = grant.from.iter().any(|(kinds, namespace)| kinds == kind && *namespace == route.namespace);
            from && grant.to.iter().any(|name| name.as_ref().is_none_or(|name| *name == to.name))
        });
        (!granted).then(|| {
            let route = names::object(kind, &route.namespace, &route.name);
            format!("no ReferenceGrant in {} lets {route} use Service {}/{}", to.namespace, to.namespace, to.name)
        })
    }

    /// Why a backend, given by its resource name, cannot be used; `None` if it can. An ExternalName has every port.
    pub fn unusable(&self, backend: &str) -> Option<String> {
        let Some(asked) = ServiceRef::parse(backend) else {
            return Some(format!("`{backend}` names no service and port"));
        };
        let Some(service) = self.services.get(&asked.name) else {
            return Some(format!("service {} does not exist", asked.name));
        };
        let known = service.external_name.is_some() || service.ports.iter().any(|port| port.port == asked.port);
        (!known).then(|| format!("service {} has no port {}", asked.name, asked.port))
    }
}
