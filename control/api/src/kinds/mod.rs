//! What people write: Gateway API routes and our own policies, read strictly, and their wire form.
//!
//! Text -> [`tree`] (every key and value knows its place) -> [`decode`] (serde types that deny unknown fields: [`gateway`], [`policy`]) ->
//! checks of the values -> wire messages. An object that has any fault is refused whole, with all faults that could be
//! found; what could still be read of it (name, targets) comes along, because a broken policy must close what it targets.

pub mod crd;
pub mod decode;
pub mod fault;
pub mod gateway;
pub mod meta;
pub mod policy;
pub mod tree;

mod check;
mod route;
mod to_wire;

#[cfg(test)]
mod tests;

use prost::Message;
use serde::Deserialize;

use check::Checker;
use decode::{At, decode};
use route::Context;

pub use check::is_dns_name;
pub use fault::{Fault, nearest};
pub use meta::{Class, GATEWAY_GROUP, Kind, MULTICLUSTER_GROUP, WEFT_GROUP, classify, unix_seconds};
pub use route::{ForeignRef, Route, ServiceParent};
pub use to_wire::{Target, closed_authorization, closed_rate_limit, policy_kind_like};
pub use tree::{Document, Entry, Node, Position, Value, documents, parse, to_yaml};

use crate::convert;
use crate::names::ResourceType;
use crate::wire::v1;

/// An object that is right.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub at: Position,
    /// What it says.
    pub body: Body,
    /// What is doubtful in it.
    pub warnings: Vec<Fault>,
}

/// What an object says, in wire form; references are not resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
    Route(Route),
    /// ReferenceGrant.
    Grant(Grant),
    /// AuthorizationPolicy.
    Authorization(Vec<Target>, v1::AuthorizationPolicy),
    /// RateLimitPolicy.
    RateLimit(Vec<Target>, v1::RateLimitPolicy),
}

/// Permission for routes of other namespaces to use Services of the grant's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Kind and namespace of the routes.
    pub from: Vec<(String, String)>,
    /// To what.
    pub to: Vec<Granted>,
}

/// What a grant lets others use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Granted {
    /// Every Service of the namespace.
    Services,
    /// Every ServiceImport of it.
    Imports,
    /// The one of this name among services ([`crate::names::imported`]).
    One(String),
}

/// An object that is wrong, and what of it could be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace (`default` if none is written).
    pub namespace: String,
    /// Its name, if it could be read.
    pub name: Option<String>,
    /// Where it begins.
    pub at: Position,
    /// What is wrong; never empty.
    pub faults: Vec<Fault>,
    /// Of a policy: its targets, if all could be read.
    pub targets: Option<Vec<Target>>,
}

/// Namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Where an object was written, as people are told it.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In a file: `FILE:LINE`.
    File(&'a str),
    /// In an API server, by its name; there are fields, but no lines: `KIND/NAMESPACE/NAME:spec.rules[1]`.
    Object(&'a str, &'a Node),
}

impl<'a> From<&'a str> for Place<'a> {
    fn from(file: &'a str) -> Self {
        Self::File(file)
    }
}

impl Place<'_> {
    /// A part of it.
    pub fn part(&self, at: Position) -> String {
        match self {
            Self::File(file) => format!("{file}:{}", at.line),
            Self::Object(name, _) => match self.field(at) {
                Some(field) => format!("{name}:{field}"),
                None => (*name).to_owned(),
            },
        }
    }

    /// A fault of it.
    pub fn fault(&self, fault: &Fault) -> String {
        match self {
            Self::File(file) => format!("{file}:{fault}"),
            Self::Object(..) => {
                format!("{}: {}", self.part(fault.at), Fault { at: Position::default(), ..fault.clone() })
            }
        }
    }

    /// Of an object in an API server: the field.
    pub fn field(&self, at: Position) -> Option<String> {
        let Self::Object(_, node) = self else { return None };
        let path = node.path(at)?;
        path.strip_prefix('.').map(str::to_owned)
    }
}

/// Reads an object of a strict kind. The place goes into the `source` of its rules.
pub fn read<'a>(kind: Kind, node: &Node, place: impl Into<Place<'a>>) -> Result<Object, Box<Refused>> {
    let mut checker = Checker::default();
    let namespace = meta::text_at(node, &["metadata", "namespace"]);
    let namespace = namespace.map_or_else(|| DEFAULT_NAMESPACE.to_owned(), |namespace| namespace.value);
    let name = meta::text_at(node, &["metadata", "name"]);
    let context = Context { namespace: &namespace, place: place.into() };
    let body = body(kind, node, name.as_ref().map_or("", |name| name.as_str()), &context, &mut checker);
    match &name {
        Some(name) => _ = checker.take(check::object_name(name)),
        None if checker.faults.is_empty() => checker.fault(meta::key_position(node, "metadata"), "object has no name"),
        None => {}
    }
    if !is_dns_name(&namespace) {
        let at = node.get("metadata").map_or(node.at, |metadata| meta::key_position(metadata, "namespace"));
        checker.fault(at, format!("`{namespace}` is no namespace"));
    }
    let name = name.map(|name| name.value);
    if let (Some(body), Some(name), true) = (&body, &name, checker.faults.is_empty())
        && let Some(message) = proxies_refuse(kind, &namespace, name, body)
    {
        checker.fault(node.at, message);
    }
    match (body, name) {
        (Some(body), Some(name)) if checker.faults.is_empty() => {
            Ok(Object { kind, namespace, name, at: node.at, body, warnings: checker.warnings })
        }
        (_, name) => {
            let targets = if kind.is_policy() { targets_of(node, &namespace) } else { None };
            // What is not there at all stands nowhere else.
            let faults = checker.faults.into_iter().map(|fault| fault.or_at(node.at)).collect();
            Err(Box::new(Refused { kind, namespace, name, at: node.at, faults, targets }))
        }
    }
}

fn body(kind: Kind, node: &Node, name: &str, context: &Context<'_>, checker: &mut Checker) -> Option<Body> {
    match kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute if is_for_gateways_only(node) => {
            Some(Body::Route(Route::default()))
        }
        Kind::HttpRoute => {
            let object: gateway::Object<gateway::HttpRouteSpec> = checker.take(decode(node))?;
            let mut route = route::http_route(&object.spec, context, checker);
            route.created = created(&object.metadata, checker);
            Some(Body::Route(route))
        }
        Kind::GrpcRoute => {
            let object: gateway::Object<gateway::GrpcRouteSpec> = checker.take(decode(node))?;
            let mut route = route::grpc_route(&object.spec, context, checker);
            route.created = created(&object.metadata, checker);
            Some(Body::Route(route))
        }
        Kind::TlsRoute => {
            let object: gateway::Object<gateway::TlsRouteSpec> = checker.take(decode(node))?;
            // Names are optional in the oldest version only.
            let version = meta::text_at(node, &["apiVersion"]);
            let names_needed = version.is_none_or(|version| !version.ends_with("/v1alpha2"));
            let mut route = route::tls_route(&object.spec, names_needed, context, checker);
            route.created = created(&object.metadata, checker);
            Some(Body::Route(route))
        }
        Kind::TcpRoute => {
            let object: gateway::Object<gateway::TcpRouteSpec> = checker.take(decode(node))?;
            let mut route = route::tcp_route(&object.spec, context, checker);
            route.created = created(&object.metadata, checker);
            Some(Body::Route(route))
        }
        Kind::ReferenceGrant => {
            let object: gateway::Object<gateway::ReferenceGrantSpec> = checker.take(decode(node))?;
            Some(Body::Grant(grant(&object.spec)))
        }
        Kind::AuthorizationPolicy => {
            let object: gateway::Object<policy::AuthorizationPolicySpec> = checker.take(decode(node))?;
            let targets = to_wire::targets(&object.spec.target_refs, context.namespace, checker);
            Some(Body::Authorization(targets, to_wire::authorization(name, &object.spec, node.at, context, checker)))
        }
        Kind::RateLimitPolicy => {
            let object: gateway::Object<policy::RateLimitPolicySpec> = checker.take(decode(node))?;
            let targets = to_wire::targets(&object.spec.target_refs, context.namespace, checker);
            Some(Body::RateLimit(targets, to_wire::rate_limit(name, &object.spec, node.at, context, checker)))
        }
    }
}

/// What a proxy will do with it is tried here: nothing that it would refuse leaves for it. A fault of this kind has no better place than
/// the object, so the checks before should have found it.
fn proxies_refuse(kind: Kind, namespace: &str, name: &str, body: &Body) -> Option<String> {
    // Stands for the mesh's: which one it is changes nothing about what is valid.
    let tried = |url, bytes: Vec<u8>| convert::decode(url, &bytes, "cluster.local").err().map(|error| error.message);
    match body {
        Body::Route(route) => {
            let wire = v1::Route {
                kind: kind.name().to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                rules: route.rules.clone(),
                hostnames: route.hostnames.clone(),
                ..v1::Route::default()
            };
            tried(v1::Route::TYPE_URL, wire.encode_to_vec())
        }
        Body::Authorization(_, policy) => tried(v1::AuthorizationPolicy::TYPE_URL, policy.encode_to_vec()),
        Body::RateLimit(_, policy) => tried(v1::RateLimitPolicy::TYPE_URL, policy.encode_to_vec()),
        Body::Grant(_) => None,
    }
}

fn created(metadata: &meta::ObjectMeta, checker: &mut Checker) -> u64 {
    let Some(text) = &metadata.creation_timestamp else { return 0 };
    unix_seconds(text).unwrap_or_else(|| {
        checker.fault(text.at, format!("`{}` is no time such as 2026-01-02T03:04:05Z", text.value));
        0
    })
}

/// What of a grant concerns routes and Services; the rest is for others.
fn grant(spec: &gateway::ReferenceGrantSpec) -> Grant {
    let from = spec.from.iter().filter(|from| from.group.as_str() == GATEWAY_GROUP);
    let granted = |to: &At<gateway::GrantTo>| match (to.group.as_str(), to.kind.as_str(), &to.name) {
        ("" | "core", kind @ "Service", Some(name)) | (MULTICLUSTER_GROUP, kind @ "ServiceImport", Some(name)) => {
            Some(Granted::One(route::own_name(kind, name.value.clone())))
        }
        ("" | "core", "Service", None) => Some(Granted::Services),
        (MULTICLUSTER_GROUP, "ServiceImport", None) => Some(Granted::Imports),
        _ => None,
    };
    Grant {
        from: from.map(|from| (from.kind.value.clone(), from.namespace.value.clone())).collect(),
        to: spec.to.iter().filter_map(granted).collect(),
    }
}

/// The targets of a policy whose other parts may be broken; `None` unless every one of them is right.
pub fn targets_of(node: &Node, namespace: &str) -> Option<Vec<Target>> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Refs(At<Vec<At<policy::TargetRef>>>);
    let refs: Refs = decode(node.get("spec")?.get("targetRefs")?).ok()?;
    let mut checker = Checker::default();
    let targets = to_wire::targets(&refs.0, namespace, &mut checker);
    checker.faults.is_empty().then_some(targets)
}

/// Whether all parents of a route are somebody else's, so that nothing of it is judged here.
fn is_for_gateways_only(node: &Node) -> bool {
    let Some(parents) = node.get("spec").and_then(|spec| spec.get("parentRefs")) else { return false };
    let foreign = |parent: &Node| {
        let group = meta::text_at(parent, &["group"]).map_or_else(|| GATEWAY_GROUP.to_owned(), |group| group.value);
        let kind = meta::text_at(parent, &["kind"]).map_or_else(|| "Gateway".to_owned(), |kind| kind.value);
        matches!(parent.value, Value::Map(_)) && route::is_for_gateways(&group, &kind)
    };
    !parents.elements().is_empty() && parents.elements().iter().all(foreign)
}
