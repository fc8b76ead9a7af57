//! Routes: their references resolved against the services and grants that exist.

use std::sync::Arc;

use weft_api::wire::v1;

use super::Resource;
use crate::model::{Model, Name, Route, ServiceRef};

/// The route's resource. It points to the services of its usable backends.
pub(super) fn resource(model: &Model, key: &(String, Name), route: &Route) -> Resource {
    let (kind, name) = key;
    let mut points_to: Vec<Arc<str>> = Vec::new();
    let mut rules = route.rules.clone();
    for foreign in &route.foreign {
        let why = model.ungranted(key, &route.parents, foreign);
        if let Some(rule) = rules.get_mut(foreign.rule).filter(|_| why.is_some()) {
            let to = Name::new(foreign.namespace.as_str(), foreign.name.as_str());
            let meant = |service: &str| ServiceRef::parse(service).is_some_and(|service| service.name == to);
            rule.mark_unusable(|service| why.clone().filter(|_| meant(service)));
        }
    }
    for rule in &mut rules {
        rule.mark_unusable(|service| model.unusable(service));
        for service in rule.usable() {
            if !points_to.iter().any(|known| **known == *service) {
                points_to.push(service.into());
            }
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
    use v1::filter::Filter;
    let has = |wanted: fn(&Filter) -> bool| rules.iter().flat_map(v1::RouteRule::all_filters).any(wanted);
    let timeouts = |rule: &v1::RouteRule| rule.request_timeout_ms != 0 || rule.backend_request_timeout_ms != 0;
    let features = [
        ("cors", has(|it| matches!(it, Filter::Cors(_)))),
        ("grpc-route", kind == "GRPCRoute"),
        ("header-filters", has(|it| matches!(it, Filter::RequestHeaders(_) | Filter::ResponseHeaders(_)))),
        ("http-route", kind == "HTTPRoute"),
        ("request-mirror", has(|it| matches!(it, Filter::Mirror(_)))),
        ("request-redirect", has(|it| matches!(it, Filter::Redirect(_)))),
        ("request-timeouts", rules.iter().any(timeouts)),
        ("retry", rules.iter().any(|rule| rule.retry.is_some())),
        ("tcp-route", kind == "TCPRoute"),
        ("tls-route", kind == "TLSRoute"),
        ("url-rewrite", has(|it| matches!(it, Filter::Rewrite(_)))),
        ("weighted-backends", rules.iter().any(|rule| rule.backends.len() > 1)),
    ];
    features.into_iter().filter(|(_, needed)| *needed).map(|(feature, _)| feature.to_owned()).collect()
}
