//! Routes -> wire. What looks into requests is here, what does not in [`connection`]. Everything that can be wrong in one object is collected, not only the first thing.

mod connection;

pub(super) use connection::{tcp_route, tls_route};

use super::Place;
use super::check::{self, Checker};
use super::decode::At;
use super::fault::Fault;
use super::gateway::{
    BackendRef, FilterType, GrpcMethodMatch, GrpcRouteMatch, GrpcRouteSpec, HeaderModifier, HttpRouteMatch,
    HttpRouteSpec, NameValueMatch, ParentRef, PathMatch, PathMatchType, RouteFilter, Timeouts, ValueMatchType,
};
use super::meta::GATEWAY_GROUP;
use super::tree::Position;
use crate::names;
use crate::wire::v1;

/// Largest weight (Gateway API).
const MAX_WEIGHT: u32 = 1_000_000;

/// A route whose parents are Services, in wire form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    /// Its parents that are Services. Empty: none of it concerns the mesh.
    pub parents: Vec<ServiceParent>,
    /// Seconds since 1970, or 0.
    pub created: u64,
    /// Its rules.
    pub rules: Vec<v1::RouteRule>,
    /// Of a TLSRoute: names that its clients ask for.
    pub hostnames: Vec<String>,
    /// References to Services of other namespaces, which need a ReferenceGrant: rule, backend, namespace, name, and where.
    pub foreign: Vec<ForeignRef>,
}

/// A Service that a route is attached to, in the route's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceParent {
    /// Its name.
    pub name: String,
    /// Only this port.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<String>,
    /// Where it is written.
    pub at: Position,
}

/// A backend in another namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignRef {
    /// Index of the rule.
    pub rule: usize,
    /// Index of the backend in the rule.
    pub backend: usize,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Where it is written.
    pub at: Position,
}

/// Whose rules are being read.
pub(super) struct Context<'a> {
    pub namespace: &'a str,
    pub place: Place<'a>,
}

impl Context<'_> {
    pub fn source(&self, at: Position) -> String {
        self.place.part(at)
    }
}

pub(super) fn http_route(spec: &HttpRouteSpec, context: &Context<'_>, checker: &mut Checker) -> Route {
    let mut route = Route { parents: parents(&spec.parent_refs, context, checker), ..Route::default() };
    if route.parents.is_empty() {
        return route;
    }
    hostnames(&spec.hostnames, checker);
    if let Some(rule) = spec.rules.get(16) {
        checker.fault(rule.at, "at most 16 rules are allowed");
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        checker.at_most(rule.at, &rule.matches, 64, "matches");
        let (request, backend_request) = rule.timeouts.as_ref().map_or((0, 0), |limits| timeouts(limits, checker));
        let rule = v1::RouteRule {
            name: rule_name(rule.name.as_ref(), index, checker),
            matches: rule.matches.iter().map(|found| http_match(found, checker)).collect(),
            filters: filters(&rule.filters, checker),
            backends: backends(&rule.backend_refs, index, rule.at, context, checker, &mut route.foreign),
            request_timeout_ms: request,
            backend_request_timeout_ms: backend_request,
            source: context.source(rule.at),
        };
        route.rules.push(rule);
    }
    if spec.rules.is_empty() {
        checker.warn(Position::default(), "route has no rules: it changes nothing");
    }
    route
}

pub(super) fn grpc_route(spec: &GrpcRouteSpec, context: &Context<'_>, checker: &mut Checker) -> Route {
    let mut route = Route { parents: parents(&spec.parent_refs, context, checker), ..Route::default() };
    if route.parents.is_empty() {
        return route;
    }
    hostnames(&spec.hostnames, checker);
    if let Some(rule) = spec.rules.get(16) {
        checker.fault(rule.at, "at most 16 rules are allowed");
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        checker.at_most(rule.at, &rule.matches, 64, "matches");
        let rule = v1::RouteRule {
            name: rule_name(rule.name.as_ref(), index, checker),
            matches: rule.matches.iter().map(|found| grpc_match(found, checker)).collect(),
            filters: filters(&rule.filters, checker),
            backends: backends(&rule.backend_refs, index, rule.at, context, checker, &mut route.foreign),
            source: context.source(rule.at),
            ..v1::RouteRule::default()
        };
        route.rules.push(rule);
    }
    route
}

fn rule_name(name: Option<&At<String>>, index: usize, checker: &mut Checker) -> String {
    match name {
        Some(name) => checker.take(check::object_name(name)).unwrap_or_default(),
        None => index.to_string(),
    }
}

fn hostnames(hostnames: &[At<String>], checker: &mut Checker) {
    if let Some(first) = hostnames.first() {
        checker
            .warn(first.at, "`hostnames` has no effect with a Service as parent (GEP-1294): the Service is the name");
    }
}

fn parents(refs: &[At<ParentRef>], context: &Context<'_>, checker: &mut Checker) -> Vec<ServiceParent> {
    let mut found = Vec::new();
    if let Some(extra) = refs.get(32) {
        checker.fault(extra.at, "at most 32 parentRefs are allowed");
    }
    for parent in refs {
        let group = parent.group.as_ref().map_or(GATEWAY_GROUP, |group| group.as_str());
        let kind = parent.kind.as_ref().map_or("Gateway", |kind| kind.as_str());
        match (group, kind) {
            ("" | "core", "Service") => found.extend(service_parent(parent, context, checker)),
            // The API's own default group has no Service: certainly meant is the core group.
            (GATEWAY_GROUP, "Service") => {
                checker.fault(parent.at, "a parentRef of kind Service needs `group: \"\"` beside it");
            }
            _ if is_for_gateways(group, kind) => {}
            _ => {
                let at = parent.kind.as_ref().map_or(parent.at, |kind| kind.at);
                let fault = Fault::new(at, format!("unknown parent kind `{kind}` in group `{group}`"));
                checker.faults.push(fault.did_you_mean(kind, ["Service", "Gateway"]));
            }
        }
    }
    found
}

/// Whether a parent of this kind is somebody else's: a gateway's, or of a group that is neither the core nor Gateway API's.
pub(super) fn is_for_gateways(group: &str, kind: &str) -> bool {
    match group {
        GATEWAY_GROUP => matches!(kind, "Gateway" | "ListenerSet" | "XListenerSet"),
        "" | "core" => false,
        _ => true,
    }
}

fn service_parent(parent: &At<ParentRef>, context: &Context<'_>, checker: &mut Checker) -> Option<ServiceParent> {
    if let Some(namespace) = &parent.namespace
        && namespace.as_str() != context.namespace
    {
        let message = format!(
            "parent `{}/{}` is in another namespace: routes for one's own calls to others' Services (consumer routes) are not supported by this version of Weft",
            namespace.value, parent.name.value
        );
        checker.fault(namespace.at, message);
    }
    let name = checker.take(check::object_name(&parent.name))?;
    let port = parent.port.as_ref().and_then(|port| checker.take(check::port(port)));
    let section = parent.section_name.as_ref().map(|section| section.value.clone());
    Some(ServiceParent { name, port, section, at: parent.at })
}

fn http_match(found: &HttpRouteMatch, checker: &mut Checker) -> v1::RouteMatch {
    v1::RouteMatch {
        path: found.path.as_ref().and_then(|path| path_match(path, checker)),
        method: found.method.as_ref().and_then(|method| checker.take(check::route_method(method))).unwrap_or_default(),
        headers: header_matches(&found.headers, checker),
        query: query_matches(&found.query_params, checker),
    }
}

/// A path match in wire form; the prefix `/` is everything, and left out.
pub(super) fn path_match(path: &At<PathMatch>, checker: &mut Checker) -> Option<v1::route_match::Path> {
    use v1::route_match::Path;
    let Some(value) = &path.value.value else {
        if path.how != PathMatchType::PathPrefix {
            checker.fault(path.at, "a path match needs a `value`");
        }
        return None;
    };
    match path.how {
        PathMatchType::Exact => checker.take(check::path(value)).map(Path::PathExact),
        PathMatchType::PathPrefix => {
            let prefix = checker.take(check::path(value))?;
            (prefix != "/").then_some(Path::PathPrefix(prefix))
        }
        PathMatchType::RegularExpression => {
            checker.take(check::regex(value)).map(|()| Path::PathRegex(value.value.clone()))
        }
    }
}

/// Header matches in wire form. Of entries with the same name only the first counts (Gateway API), which is said.
pub(super) fn header_matches(matches: &[At<NameValueMatch>], checker: &mut Checker) -> Vec<v1::ValueMatch> {
    if let Some(extra) = matches.get(16) {
        checker.fault(extra.at, "at most 16 headers are allowed");
    }
    let mut found: Vec<v1::ValueMatch> = Vec::new();
    for one in matches {
        let Some(name) = checker.take(check::header_name(&one.name)) else { continue };
        if found.iter().any(|other| other.name == name) {
            checker.fault(one.name.at, format!("header `{name}` is matched twice"));
            continue;
        }
        found.push(value_match(name, one, checker));
    }
    found
}

fn query_matches(matches: &[At<NameValueMatch>], checker: &mut Checker) -> Vec<v1::ValueMatch> {
    if let Some(extra) = matches.get(16) {
        checker.fault(extra.at, "at most 16 queryParams are allowed");
    }
    let mut found: Vec<v1::ValueMatch> = Vec::new();
    for one in matches {
        let name = one.name.value.clone();
        if name.is_empty() || name.len() > 256 {
            checker.fault(one.name.at, "a query parameter's name has 1 to 256 characters");
        }
        if found.iter().any(|other| other.name == name) {
            checker.fault(one.name.at, format!("query parameter `{name}` is matched twice"));
            continue;
        }
        found.push(value_match(name, one, checker));
    }
    found
}

fn value_match(name: String, one: &NameValueMatch, checker: &mut Checker) -> v1::ValueMatch {
    use v1::value_match::Value;
    let value = match one.how {
        ValueMatchType::Exact => Value::Exact(one.value.value.clone()),
        ValueMatchType::RegularExpression => {
            checker.take(check::regex(&one.value));
            Value::Regex(one.value.value.clone())
        }
    };
    v1::ValueMatch { name, value: Some(value) }
}

fn grpc_match(found: &GrpcRouteMatch, checker: &mut Checker) -> v1::RouteMatch {
    v1::RouteMatch {
        path: found.method.as_ref().and_then(|method| grpc_path(method, checker)),
        headers: header_matches(&found.headers, checker),
        ..v1::RouteMatch::default()
    }
}

/// A gRPC method's path is `/SERVICE/METHOD` (gRPC over HTTP/2, "Path").
fn grpc_path(method: &At<GrpcMethodMatch>, checker: &mut Checker) -> Option<v1::route_match::Path> {
    use v1::route_match::Path;
    const ANY: &str = "[^/]+";
    if method.service.is_none() && method.method.is_none() {
        checker.fault(method.at, "a method match names a `service`, a `method`, or both");
        return None;
    }
    match method.how {
        ValueMatchType::Exact => {
            let name = |text: &At<String>, checker: &mut Checker| {
                let ok = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
                if !ok {
                    checker.fault(text.at, format!("`{}` is no gRPC service or method", text.value));
                }
                ok.then(|| text.value.clone())
            };
            match (&method.service, &method.method) {
                (Some(service), None) => Some(Path::PathPrefix(format!("/{}", name(service, checker)?))),
                (None, Some(method)) => {
                    Some(Path::PathRegex(format!("/{ANY}/{}", regex::escape(&name(method, checker)?))))
                }
                (Some(service), Some(method)) => {
                    Some(Path::PathExact(format!("/{}/{}", name(service, checker)?, name(method, checker)?)))
                }
                (None, None) => None,
            }
        }
        ValueMatchType::RegularExpression => {
            let mut part = |text: &Option<At<String>>| match text {
                Some(text) => checker.take(check::regex(text)).map(|()| format!("(?:{})", text.value)),
                None => Some(ANY.to_owned()),
            };
            let (service, method) = (part(&method.service), part(&method.method));
            Some(Path::PathRegex(format!("/{}/{}", service?, method?)))
        }
    }
}

fn filters(filters: &[At<RouteFilter>], checker: &mut Checker) -> Vec<v1::Filter> {
    use v1::filter::Filter;
    if let Some(extra) = filters.get(16) {
        checker.fault(extra.at, "at most 16 filters are allowed");
    }
    let mut found: Vec<v1::Filter> = Vec::new();
    let mut seen: Vec<FilterType> = Vec::new();
    for filter in filters {
        let how = filter.how.value;
        if seen.contains(&how) {
            checker.fault(filter.how.at, format!("filter {how:?} is there twice"));
        }
        seen.push(how);
        let (edit, unused) = match how {
            FilterType::RequestHeaderModifier => (&filter.request_header_modifier, &filter.response_header_modifier),
            FilterType::ResponseHeaderModifier => (&filter.response_header_modifier, &filter.request_header_modifier),
            _ => {
                let message = format!("filter {how:?} is known, but not supported by this version of Weft");
                checker.fault(filter.how.at, message);
                continue;
            }
        };
        if let Some(unused) = unused {
            checker.fault(unused.at, format!("does not belong to a filter of type {how:?}"));
        }
        let Some(edit) = edit else {
            let field = if how == FilterType::RequestHeaderModifier {
                "requestHeaderModifier"
            } else {
                "responseHeaderModifier"
            };
            checker.fault(filter.at, format!("a filter of type {how:?} needs the field `{field}`"));
            continue;
        };
        let edit = header_edit(edit, checker);
        let filter = match how {
            FilterType::ResponseHeaderModifier => Filter::ResponseHeaders(edit),
            _ => Filter::RequestHeaders(edit),
        };
        found.push(v1::Filter { filter: Some(filter) });
    }
    found
}

fn header_edit(edit: &At<HeaderModifier>, checker: &mut Checker) -> v1::HeaderEdit {
    let mut headers = |list: &[At<super::gateway::Header>]| -> Vec<v1::Header> {
        let mut found: Vec<v1::Header> = Vec::new();
        for header in list {
            let (name, value) = (check::editable_header(&header.name), check::header_value(&header.value.value));
            let (Some(name), Some(value)) = (checker.take(name), checker.take(value)) else { continue };
            if found.iter().any(|other| other.name == name) {
                checker.fault(header.name.at, format!("header `{name}` is there twice"));
            }
            found.push(v1::Header { name, value });
        }
        found
    };
    let (set, add) = (headers(&edit.set), headers(&edit.add));
    let remove = edit.remove.iter().filter_map(|name| checker.take(check::editable_header(name))).collect();
    for (list, what) in [(edit.set.len(), "set"), (edit.add.len(), "add"), (edit.remove.len(), "remove")] {
        if list > 16 {
            checker.fault(edit.at, format!("at most 16 headers to {what} are allowed"));
        }
    }
    v1::HeaderEdit { set, add, remove }
}

fn backends(
    refs: &[At<BackendRef>],
    rule: usize,
    at: Position,
    context: &Context<'_>,
    checker: &mut Checker,
    foreign: &mut Vec<ForeignRef>,
) -> Vec<v1::RouteBackend> {
    checker.at_most(at, refs, 16, "backendRefs");
    if refs.is_empty() {
        checker.warn(at, "rule has no backendRefs: what it takes is refused (`invalid_backend`)");
    }
    let mut found = Vec::new();
    for backend in refs {
        let group = backend.group.as_ref().map_or("", |group| group.as_str());
        let kind = backend.kind.as_ref().map_or("Service", |kind| kind.as_str());
        if !matches!((group, kind), ("" | "core", "Service")) {
            checker.fault(
                backend.at,
                format!("backend of kind `{kind}` in group `{group}` is not supported, only Services"),
            );
            continue;
        }
        let Some(name) = checker.take(check::object_name(&backend.name)) else { continue };
        let Some(port) = &backend.port else {
            checker.fault(backend.at, format!("backend `{name}` needs a `port`"));
            continue;
        };
        let Some(port) = checker.take(check::port(port)) else { continue };
        let weight = backend.weight.as_ref().map_or(1, |weight| weight.value);
        if let Some(weight) = backend.weight.as_ref().filter(|weight| weight.value > MAX_WEIGHT) {
            checker.fault(weight.at, format!("weight {} is over {MAX_WEIGHT}", weight.value));
        }
        let namespace = backend.namespace.as_ref().map_or(context.namespace, |namespace| namespace.as_str());
        if namespace != context.namespace {
            let (namespace, name) = (namespace.to_owned(), name.clone());
            foreign.push(ForeignRef { rule, backend: found.len(), namespace, name, at: backend.at });
        }
        found.push(v1::RouteBackend {
            service: names::service(namespace, &name, port),
            weight,
            filters: filters(&backend.filters, checker),
            invalid: String::new(),
        });
    }
    found
}

/// Whole request and one attempt, in milliseconds; `0s` is none (GEP-1742).
fn timeouts(limits: &Timeouts, checker: &mut Checker) -> (u64, u64) {
    let mut read = |text: &Option<At<String>>| {
        text.as_ref().and_then(|text| checker.take(check::duration(text))).unwrap_or_default()
    };
    let (request, backend) = (read(&limits.request), read(&limits.backend_request));
    if let Some(text) = &limits.backend_request
        && request > 0
        && backend > request
    {
        checker.fault(text.at, "backendRequest is longer than request");
    }
    (request, backend)
}
