//! Routes -> wire. What looks into requests is here, what does not in [`connection`]; [`filters`] by themselves. Everything that can be wrong in one object is collected, not only the first thing.

mod connection;
mod filters;

pub(super) use connection::{tcp_route, tls_route};

use self::filters::{Filtered, filters};
use weft_engine::retry::{DEFAULT_BACKOFF, DEFAULT_RETRIES, MAX_RETRIES};

use super::Place;
use super::check::{self, Checker};
use super::decode::At;
use super::fault::Fault;
use super::gateway::{
    BackendRef, GrpcMethodMatch, GrpcRouteMatch, GrpcRouteSpec, HttpRouteMatch, HttpRouteSpec, NameValueMatch,
    ObjectReference, ParentRef, PathMatch, PathMatchType, Retry, Timeouts, ValueMatchType,
};
use super::meta::{GATEWAY_GROUP, MULTICLUSTER_GROUP};
use super::tree::Position;
use crate::names;
use crate::wire::v1;

const NO_BACKENDS: &str = "rule has no backendRefs: what it takes is refused (`invalid_backend`)";
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
    /// References to Services of other namespaces, which need a ReferenceGrant: rule, namespace, name, and where.
    pub foreign: Vec<ForeignRef>,
}

/// A Service that a route is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceParent {
    /// Its namespace. Not the route's own: the route is for calls from the route's namespace only (a consumer route, GEP-1294).
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Only this port.
    pub port: Option<u16>,
    /// Only the port of this name.
    pub section: Option<String>,
    /// Where it is written.
    pub at: Position,
}

/// A Service of another namespace that a rule refers to, as a backend or a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignRef {
    /// Index of the rule.
    pub rule: usize,
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
    check::names_once(spec.rules.iter().map(|rule| rule.name.as_ref()), checker);
    for (index, rule) in spec.rules.iter().enumerate() {
        checker.at_most(rule.at, &rule.matches, 64, "matches");
        let (request, backend_request) = rule.timeouts.as_ref().map_or((0, 0), |limits| timeouts(limits, checker));
        let filtered = Filtered::http(&rule.matches);
        let mut referrer = Referrer { rule: index, context, foreign: &mut route.foreign };
        let own = filters(&rule.filters, &filtered, &mut referrer, checker);
        let answers = own.iter().any(|it| matches!(it.filter, Some(v1::filter::Filter::Redirect(_))));
        if let Some(backend) = rule.backend_refs.first().filter(|_| answers) {
            checker.fault(backend.at, "a rule with a RequestRedirect has no `backendRefs`: nothing would go there");
        }
        if rule.backend_refs.is_empty() && !answers {
            checker.warn(rule.at, NO_BACKENDS);
        }
        let rule = v1::RouteRule {
            name: rule_name(rule.name.as_ref(), index, checker),
            matches: rule.matches.iter().map(|found| http_match(found, checker)).collect(),
            filters: own,
            backends: backends(&rule.backend_refs, rule.at, &filtered, &mut referrer, checker),
            request_timeout_ms: request,
            backend_request_timeout_ms: backend_request,
            retry: rule.retry.as_ref().map(|wanted| retry(wanted, checker)),
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
    check::names_once(spec.rules.iter().map(|rule| rule.name.as_ref()), checker);
    for (index, rule) in spec.rules.iter().enumerate() {
        checker.at_most(rule.at, &rule.matches, 64, "matches");
        if rule.backend_refs.is_empty() {
            checker.warn(rule.at, NO_BACKENDS);
        }
        let mut referrer = Referrer { rule: index, context, foreign: &mut route.foreign };
        let rule = v1::RouteRule {
            name: rule_name(rule.name.as_ref(), index, checker),
            matches: rule.matches.iter().map(|found| grpc_match(found, checker)).collect(),
            filters: filters(&rule.filters, &Filtered::Grpc, &mut referrer, checker),
            backends: backends(&rule.backend_refs, rule.at, &Filtered::Grpc, &mut referrer, checker),
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
            ("" | "core", "Service") | (MULTICLUSTER_GROUP, "ServiceImport") => {
                found.extend(service_parent(parent, kind, context, checker));
            }
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
        MULTICLUSTER_GROUP => kind != "ServiceImport",
        _ => true,
    }
}

fn service_parent(
    parent: &At<ParentRef>,
    kind: &str,
    context: &Context<'_>,
    checker: &mut Checker,
) -> Option<ServiceParent> {
    let namespace = match &parent.namespace {
        Some(namespace) => checker.take(check::object_name(namespace))?,
        None => context.namespace.to_owned(),
    };
    let name = own_name(kind, checker.take(check::object_name(&parent.name))?);
    let port = parent.port.as_ref().and_then(|port| checker.take(check::port(port)));
    let section = parent.section_name.as_ref().map(|section| section.value.clone());
    Some(ServiceParent { namespace, name, port, section, at: parent.at })
}

/// What a Service or ServiceImport is called among services.
pub(super) fn own_name(kind: &str, name: String) -> String {
    if kind == "ServiceImport" { names::imported(&name) } else { name }
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

/// Who refers to Services.
pub(super) struct Referrer<'a> {
    rule: usize,
    context: &'a Context<'a>,
    foreign: &'a mut Vec<ForeignRef>,
}

impl Referrer<'_> {
    /// The resource name of a Service that is referred to.
    fn service(&mut self, to: &At<ObjectReference>, checker: &mut Checker) -> Option<String> {
        let group = to.group.as_ref().map_or("", |group| group.as_str());
        let kind = to.kind.as_ref().map_or("Service", |kind| kind.as_str());
        if !matches!((group, kind), ("" | "core", "Service") | (MULTICLUSTER_GROUP, "ServiceImport")) {
            let message = format!(
                "backend of kind `{kind}` in group `{group}` is not supported, only Services and ServiceImports"
            );
            checker.fault(to.at, message);
            return None;
        }
        let name = own_name(kind, checker.take(check::object_name(&to.name))?);
        let Some(port) = &to.port else {
            checker.fault(to.at, format!("backend `{name}` needs a `port`"));
            return None;
        };
        let port = checker.take(check::port(port))?;
        let namespace = to.namespace.as_ref().map_or(self.context.namespace, |namespace| namespace.as_str());
        if namespace != self.context.namespace {
            let (rule, namespace, name) = (self.rule, namespace.to_owned(), name.clone());
            self.foreign.push(ForeignRef { rule, namespace, name, at: to.at });
        }
        Some(names::service(namespace, &name, port))
    }
}

fn backends(
    refs: &[At<BackendRef>],
    at: Position,
    filtered: &Filtered,
    referrer: &mut Referrer<'_>,
    checker: &mut Checker,
) -> Vec<v1::RouteBackend> {
    checker.at_most(at, refs, 16, "backendRefs");
    let mut found = Vec::new();
    for backend in refs {
        let BackendRef { group, kind, name, namespace, port, .. } = backend.value.clone();
        let to = At { value: ObjectReference { group, kind, name, namespace, port }, at: backend.at };
        let Some(service) = referrer.service(&to, checker) else { continue };
        let weight = backend.weight.as_ref().map_or(1, |weight| weight.value);
        if let Some(weight) = backend.weight.as_ref().filter(|weight| weight.value > MAX_WEIGHT) {
            checker.fault(weight.at, format!("weight {} is over {MAX_WEIGHT}", weight.value));
        }
        let filters = filters(&backend.filters, filtered, referrer, checker);
        found.push(v1::RouteBackend { service, weight, filters, invalid: String::new() });
    }
    found
}

/// What is not said is as the engine has it.
fn retry(wanted: &At<Retry>, checker: &mut Checker) -> v1::Retry {
    let attempts = wanted.attempts.as_ref().map_or(DEFAULT_RETRIES, |attempts| attempts.value);
    if let Some(asked) = wanted.attempts.as_ref().filter(|_| !(1..=MAX_RETRIES).contains(&attempts)) {
        checker.fault(asked.at, format!("`attempts` is 1 to {MAX_RETRIES}"));
    }
    let mut codes = Vec::new();
    for code in &wanted.codes {
        if !(400..600).contains(&code.value) {
            checker.fault(code.at, format!("status {} is never retried: 400 to 599", code.value));
        }
        if codes.contains(&code.value.into()) {
            checker.fault(code.at, format!("status {} is there twice", code.value));
        }
        codes.push(code.value.into());
    }
    let default = u64::try_from(DEFAULT_BACKOFF.as_millis()).unwrap_or_default();
    let backoff = wanted.backoff.as_ref().map(|text| checker.take(check::duration(text)).unwrap_or_default());
    v1::Retry { attempts, codes, backoff_ms: backoff.unwrap_or(default) }
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
