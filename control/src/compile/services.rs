//! Services, one resource a port, and those that are made when somebody asks for a port that is not declared.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_api::names;
use weft_api::wire::v1;

use super::Resource;
use super::index::Index;
use crate::model::{Model, Name, Service, ServicePort, ServiceRef};

/// The ports of a service by number; of one that is gone none.
pub(super) fn ports<'i>(index: &'i Index, name: &Name) -> BTreeMap<u16, &'i ServicePort> {
    let ports = index.model.services.get(name).into_iter().flat_map(|service| &service.ports);
    ports.map(|port| (port.port, port)).collect()
}

/// Names of the routes attached to a port, sorted.
pub(super) fn routes(index: &Index, name: &Name, port: u16) -> Vec<String> {
    let attached = index.routes_on.get(name).iter().filter(|key| {
        let parents = index.model.routes.get(&***key).into_iter().flat_map(|route| &route.parents);
        let mut parents = parents.filter(|parent| parent.name == name.name);
        parents.any(|parent| {
            let only = index.model.parent_port(&name.namespace, parent);
            only.is_ok_and(|only| only.is_none_or(|only| only == port))
        })
    });
    attached.map(|key| names::object(&key.0, &key.1.namespace, &key.1.name)).collect()
}

pub(super) fn resource(name: &Name, service: &Service, port: &ServicePort, routes: Vec<String>) -> Resource {
    let own = names::service(&name.namespace, &name.name, port.port);
    let mut points_to: Vec<Arc<str>> = routes.iter().map(|route| route.as_str().into()).collect();
    if service.external_name.is_none() {
        points_to.push(names::endpoints_of(&own).into());
    }
    let message = v1::Service {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        port: port.port.into(),
        protocol: port.protocol.into(),
        requires: requires(&routes),
        routes,
        external_name: service.external_name.clone().unwrap_or_default(),
        ..v1::Service::default()
    };
    Resource::new(&message, points_to)
}

/// A proxy that knows nothing of routes of connections would call the service's own endpoints: it shall call none.
fn requires(routes: &[String]) -> Vec<String> {
    let attached = |kind: &str| routes.iter().any(|route| route.starts_with(kind));
    let features = [("tcp-route", attached("TCPRoute/")), ("tls-route", attached("TLSRoute/"))];
    features.into_iter().filter(|(_, needed)| *needed).map(|(feature, _)| feature.to_owned()).collect()
}

/// A port that the service does not declare, or of a service that does not exist. An ExternalName takes any port; any other service
/// gets one without endpoints, so that a proxy that calls it refuses with `no_endpoints` instead of passing plaintext.
pub(super) fn on_demand(model: &Model, asked: &ServiceRef) -> Resource {
    let port = ServicePort { port: asked.port, ..ServicePort::default() };
    match model.services.get(&asked.name) {
        Some(service) => resource(&asked.name, service, &port, Vec::new()),
        None => resource(&asked.name, &Service::default(), &port, Vec::new()),
    }
}
