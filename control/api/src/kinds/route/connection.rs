//! Routes of connections that are no HTTP: TLSRoute by the name that a client asks for, TCPRoute by nothing.

use weft_engine::route::Hostname;

use super::filters::Filtered;
use super::{Context, NO_BACKENDS, Referrer, Route, backends, parents, rule_name};
use crate::convert::MAX_HOSTNAMES;
use crate::kinds::check::Checker;
use crate::kinds::decode::At;
use crate::kinds::fault::Fault;
use crate::kinds::gateway::{ConnectionRule, TcpRouteSpec, TlsRouteSpec};
use crate::wire::v1;

/// `names_needed`: by the version that it is written in, one hostname at least must be there.
pub(in crate::kinds) fn tls_route(
    spec: &TlsRouteSpec,
    names_needed: bool,
    context: &Context<'_>,
    checker: &mut Checker,
) -> Route {
    let mut route = Route { parents: parents(&spec.parent_refs, context, checker), ..Route::default() };
    if route.parents.is_empty() {
        return route;
    }
    if spec.hostnames.is_empty() && names_needed {
        checker.fault(spec.hostnames.at, "`hostnames` is missing: a TLSRoute needs one, a TCPRoute takes any TLS");
    }
    checker.at_most(spec.hostnames.at, &spec.hostnames, MAX_HOSTNAMES, "hostnames");
    for written in spec.hostnames.iter() {
        let Some(name) = checker.take(hostname(written)) else { continue };
        if route.hostnames.contains(&name) {
            checker.fault(written.at, format!("hostname `{name}` is there twice"));
        }
        route.hostnames.push(name);
    }
    rule(&spec.rules, context, checker, &mut route);
    route
}

pub(in crate::kinds) fn tcp_route(spec: &TcpRouteSpec, context: &Context<'_>, checker: &mut Checker) -> Route {
    let mut route = Route { parents: parents(&spec.parent_refs, context, checker), ..Route::default() };
    if !route.parents.is_empty() {
        rule(&spec.rules, context, checker, &mut route);
    }
    route
}

/// A name as Gateway API wants it: in lower case, and without the root's dot.
pub(super) fn hostname(text: &At<String>) -> Result<String, Fault> {
    match Hostname::parse(text) {
        Ok(name) if **name.text() == *text.value => Ok(text.value.clone()),
        Ok(name) => {
            let message = format!("hostname `{}` is not written as it is compared", text.value);
            Err(Fault::new(text.at, message).suggest(&**name.text()))
        }
        Err(error) => Err(Fault::new(text.at, format!("hostname `{}`: {error}", text.value))),
    }
}

/// The one rule: without matches a second one could take nothing.
fn rule(rules: &At<Vec<At<ConnectionRule>>>, context: &Context<'_>, checker: &mut Checker, route: &mut Route) {
    let Some(rule) = rules.first() else {
        return checker.fault(rules.at, "`rules` is missing: the route says nothing");
    };
    if let Some(second) = rules.get(1) {
        checker.fault(second.at, "a second rule takes nothing: write another route, or more backendRefs");
    }
    for backend in rule.backend_refs.iter().filter(|backend| !backend.filters.is_empty()) {
        checker.fault(backend.at, "unknown field `filters`: a route of connections changes nothing in them");
    }
    if rule.backend_refs.is_empty() {
        checker.warn(rule.at, NO_BACKENDS);
    }
    let mut referrer = Referrer { rule: 0, context, foreign: &mut route.foreign };
    let wire = v1::RouteRule {
        name: rule_name(rule.name.as_ref(), 0, checker),
        backends: backends(&rule.backend_refs, rule.at, &Filtered::Nothing, &mut referrer, checker),
        source: context.source(rule.at),
        ..v1::RouteRule::default()
    };
    route.rules.push(wire);
}
