//! Routes: their references resolved against the services and grants that exist.

use std::sync::Arc;

use weft_api::wire::v1;

use super::Resource;
use crate::model::{Model, Name, Route};

/// The route's resource. It points to the services of its usable backends.
pub(super) fn resource(model: &Model, key: &(String, Name), route: &Route) -> Resource {
    let (kind, name) = key;
    let mut points_to: Vec<Arc<str>> = Vec::new();
    let mut rules = route.rules.clone();
    for foreign in &route.foreign {
        let backend = rules.get_mut(foreign.rule).and_then(|rule| rule.backends.get_mut(foreign.backend));
        if let Some((backend, why)) = backend.zip(model.ungranted(key, foreign)) {
            backend.invalid = why;
        }
    }
    for backend in rules.iter_mut().flat_map(|rule| &mut rule.backends) {
        if backend.invalid.is_empty() {
            backend.invalid = model.unusable(&backend.service).unwrap_or_default();
        }
        if backend.invalid.is_empty() && !points_to.iter().any(|known| **known == *backend.service) {
            points_to.push(backend.service.as_str().into());
        }
    }
    let requires = requires(kind, &rules);
    let message = v1::Route {
        kind: kind.clone(),
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        rules,
        created: route.created,
        hostnames: route.hostnames.clone(),
        requires,
    };
    Resource::new(&message, points_to)
}

/// Features without which a proxy would do only part of what the route says.
fn requires(kind: &str, rules: &[v1::RouteRule]) -> Vec<String> {
    let filters = |rule: &v1::RouteRule| {
        !rule.filters.is_empty() || rule.backends.iter().any(|backend| !backend.filters.is_empty())
    };
    let timeouts = |rule: &v1::RouteRule| rule.request_timeout_ms != 0 || rule.backend_request_timeout_ms != 0;
    let features = [
        ("grpc-route", kind == "GRPCRoute"),
        ("header-filters", rules.iter().any(filters)),
        ("http-route", kind == "HTTPRoute"),
        ("request-timeouts", rules.iter().any(timeouts)),
        ("tcp-route", kind == "TCPRoute"),
        ("tls-route", kind == "TLSRoute"),
        ("weighted-backends", rules.iter().any(|rule| rule.backends.len() > 1)),
    ];
    features.into_iter().filter(|(_, needed)| *needed).map(|(feature, _)| feature.to_owned()).collect()
}
