//! Services, one resource a port, and those that are made when somebody asks for a port that is not declared.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use weft_api::names;
use weft_api::wire::v1;

use super::Resource;
use super::index::{Index, RouteKey};
use crate::model::{Model, Name, OVERRULED, OVERRULING, Service, ServicePort, ServiceRef, parent_name};

/// The ports of a service by number; of one that is gone none.
pub(super) fn ports<'i>(index: &'i Index, name: &Name) -> BTreeMap<u16, &'i ServicePort> {
    let ports = index.model.services.get(name).into_iter().flat_map(|service| &service.ports);
    ports.map(|port| (port.port, port)).collect()
}

/// The routes attached to a port, sorted, whoever's.
fn attached<'i>(index: &'i Index, name: &'i Name, port: u16) -> impl Iterator<Item = &'i RouteKey> {
    let routes = index.routes_on.get(name).iter().map(|key| &**key);
    routes.filter(move |key| {
        let parents = index.model.routes.get(*key).into_iter().flat_map(|route| &route.parents);
        let mut parents = parents.filter(|parent| parent_name(parent) == *name);
        parents.any(|parent| {
            let only = index.model.parent_port(parent);
            only.is_ok_and(|only| only.is_none_or(|only| only == port))
        })
    })
}

/// Names of the routes that a namespace has for a port of a service, sorted. Those of HTTP are never merged with those of gRPC, which go before
/// them (GEP-1294, "Route types").
fn routes_of(index: &Index, namespace: &str, name: &Name, port: u16) -> Vec<String> {
    let own = || attached(index, name, port).filter(|(_, route)| route.namespace == namespace);
    let overruled = own().any(|(kind, _)| kind == OVERRULING);
    let own = own().filter(|(kind, _)| !overruled || kind != OVERRULED);
    own.map(|(kind, route)| names::object(kind, &route.namespace, &route.name)).collect()
}

/// Who is sent where on a port.
#[derive(Default)]
pub(super) struct Routes {
    /// Names of the service's own routes.
    own: Vec<String>,
    /// Some other namespace has routes of its own for it.
    consumed: bool,
}

impl Routes {
    pub(super) fn of(index: &Index, name: &Name, port: u16) -> Self {
        let consumed = attached(index, name, port).any(|(_, route)| route.namespace != name.namespace);
        Self { own: routes_of(index, &name.namespace, name, port), consumed }
    }
}

/// What clients of one namespace have of a port instead of the service's routes; `None`: nothing.
pub(super) fn consumer(index: &Index, client: &str, name: &Name, port: u16) -> Option<Resource> {
    let routes = Some(routes_of(index, client, name, port)).filter(|routes| !routes.is_empty())?;
    let points_to = routes.iter().map(|route| route.as_str().into()).collect();
    let requires = vec!["consumer-routes".to_owned()];
    Some(Resource::new(&v1::Consumer { routes, requires }, points_to))
}

/// What clients of all other namespaces have.
pub(super) static NO_CONSUMER: LazyLock<Arc<Resource>> =
    LazyLock::new(|| Arc::new(Resource::new(&v1::Consumer::default(), Vec::new())));

pub(super) fn resource(name: &Name, service: &Service, port: &ServicePort, routes: Routes) -> Resource {
    let Routes { own: routes, consumed } = routes;
    let own = names::service(&name.namespace, &name.name, port.port);
    let mut points_to: Vec<Arc<str>> = routes.iter().map(|route| route.as_str().into()).collect();
    if consumed {
        points_to.extend(names::consumer(names::ANY_CLIENT, &own).map(Arc::from));
    }
    if service.external_name.is_none() {
        points_to.push(names::endpoints_of(&own).into());
    }
    let message = v1::Service {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        port: port.port.into(),
        protocol: port.protocol.into(),
        requires: requires(service, &routes),
        routes,
        external_name: service.external_name.clone().unwrap_or_default(),
        node_local: service.node_local,
        sticky: service.sticky,
        consumed,
        headless: service.headless,
    };
    Resource::new(&message, points_to)
}

/// A proxy that knows nothing of routes of connections, or of which endpoints it may use, would call the service's own, or others: it shall
/// call none.
fn requires(service: &Service, routes: &[String]) -> Vec<String> {
    let attached = |kind: &str| routes.iter().any(|route| route.starts_with(kind));
    let features = [
        ("node-local", service.node_local),
        ("session-affinity", service.sticky),
        ("tcp-route", attached("TCPRoute/")),
        ("tls-route", attached("TLSRoute/")),
    ];
    features.into_iter().filter(|(_, needed)| *needed).map(|(feature, _)| feature.to_owned()).collect()
}

/// A port that the service does not declare, or of a service that does not exist. An ExternalName takes any port; any other service
/// gets one without endpoints, so that a proxy that calls it refuses with `no_endpoints` instead of passing plaintext.
pub(super) fn on_demand(model: &Model, asked: &ServiceRef) -> Resource {
    let port = ServicePort { port: asked.port, ..ServicePort::default() };
    match model.services.get(&asked.name) {
        Some(service) => resource(&asked.name, service, &port, Routes::default()),
        None => resource(&asked.name, &Service::default(), &port, Routes::default()),
    }
}
