//! What references lead to, or why they lead nowhere. Each rule stands here once: the compiler asks, and whoever tells people what is doubtful.

use weft_api::names;

use super::{ForeignRef, Granted, Model, Name, ServiceParent};

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

/// The service that a route is attached to.
pub fn parent_name(parent: &ServiceParent) -> Name {
    Name::new(parent.namespace.as_str(), parent.name.as_str())
}

/// Routes of this kind go before those of [`OVERRULED`] on a port, and are never merged with them (GEP-1294, "Route types").
pub const OVERRULING: &str = "GRPCRoute";
/// See [`OVERRULING`].
pub const OVERRULED: &str = "HTTPRoute";

/// A route of a more specific kind is attached to the same port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `KIND/NAMESPACE/NAME` of that route.
    pub with: String,
    /// Whether the other one counts for nothing at all there, or has ports left.
    pub whole: bool,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { with, whole } = self;
        let scope = if *whole { "" } else { " on that port" };
        write!(
            f,
            "{with} is attached to the same port: this route counts for nothing{scope}, the two kinds are not merged"
        )
    }
}

impl Model {
    /// What keeps a route from counting for a parent of its.
    pub fn overruled(&self, (kind, route): &(String, Name), parent: &ServiceParent) -> Option<Conflict> {
        let port = self.parent_port(parent).ok().filter(|_| kind == OVERRULED)?;
        let first = (OVERRULING.to_owned(), Name::new(route.namespace.as_str(), ""));
        let all = self.routes.range(first..);
        let all = all.take_while(|((kind, name), _)| kind == OVERRULING && name.namespace == route.namespace);
        let conflicts = all.flat_map(|((kind, name), found)| {
            let same = found.parents.iter().filter(|other| parent_name(other) == parent_name(parent));
            let ports = same.filter_map(|other| self.parent_port(other).ok());
            let meet = ports.filter(|other| other.is_none() || port.is_none() || *other == port);
            let with = names::object(kind, &name.namespace, &name.name);
            meet.map(move |other| Conflict { with: with.clone(), whole: other.is_none() || other == port })
        });
        // The worst of them, the first of those.
        conflicts.min_by_key(|conflict| !conflict.whole)
    }

    /// The port of its parent that a route is attached to; `None` is each of them. A port that is given by number needs not exist.
    ///
    /// # Errors
    /// Why it is not attached at all.
    pub fn parent_port(&self, parent: &ServiceParent) -> Result<Option<u16>, String> {
        let Some(section) = &parent.section else { return Ok(parent.port) };
        let service = parent_name(parent);
        let ports = self.services.get(&service).into_iter().flat_map(|found| &found.ports);
        let mut named = ports.filter(|port| port.name == *section && parent.port.is_none_or(|only| only == port.port));
        named.next().map(|port| Some(port.port)).ok_or_else(|| {
            format!("Service {service} has no such port named `{section}`: the route is not attached to it")
        })
    }

    /// Why a route may not send to a service of another namespace; `None` if it may. To its own parent it may: its clients call that one anyhow.
    pub fn ungranted(
        &self,
        (kind, route): &(String, Name),
        parents: &[ServiceParent],
        to: &ForeignRef,
    ) -> Option<String> {
        if parents.iter().any(|parent| parent.namespace == to.namespace && parent.name == to.name) {
            return None;
        }
        let from = Name::new(to.namespace.as_str(), "");
        let grants = self.grants.range(from..).take_while(|(name, _)| name.namespace == to.namespace);
        let granted = grants.map(|(_, grant)| grant).any(|grant| {
            let from = grant.from.iter().any(|(kinds, namespace)| kinds == kind && *namespace == route.namespace);
            from && grant.to.iter().any(|granted| match granted {
                Granted::Services => !names::is_imported(&to.name),
                Granted::Imports => names::is_imported(&to.name),
                Granted::One(name) => *name == to.name,
            })
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
