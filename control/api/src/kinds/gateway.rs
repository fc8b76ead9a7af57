//! Gateway API kinds as people write them (gateway.networking.k8s.io/v1, standard channel; routes of the alpha versions have the same fields). Fields of the API that this version does
//! not enforce are [`NotYet`]: they refuse their object instead of being passed over.

mod filters;

use serde::Deserialize;

use super::decode::{At, NotYet};
use super::meta::{Anything, ObjectMeta};
pub use filters::*;

/// An object: its metadata and its `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<S> {
    #[allow(dead_code, reason = "read before, to choose this type")]
    api_version: Option<Anything>,
    #[allow(dead_code, reason = "read before, to choose this type")]
    kind: Option<Anything>,
    /// Metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: S,
    #[allow(dead_code, reason = "may be there")]
    status: Option<Anything>,
}

/// HTTPRoute `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<At<ParentRef>>,
    /// Not used for Service parents (GEP-1294, "hostnames field").
    #[serde(default)]
    pub hostnames: Vec<At<String>>,
    /// Rules.
    #[serde(default)]
    pub rules: Vec<At<HttpRouteRule>>,
    /// Experimental channel.
    pub use_default_gateways: Option<NotYet>,
}

/// A parent: a Service, or a Gateway (which is somebody else's).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// Default `gateway.networking.k8s.io`; empty for a Service.
    pub group: Option<At<String>>,
    /// Default `Gateway`.
    pub kind: Option<At<String>>,
    /// Default: the route's.
    pub namespace: Option<At<String>>,
    /// Name.
    pub name: At<String>,
    /// Of a Service: the port's name.
    pub section_name: Option<At<String>>,
    /// Of a Service: only this port.
    pub port: Option<At<u16>>,
}

/// One rule of an HTTPRoute.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// Name, unique in the route.
    pub name: Option<At<String>>,
    /// Any of these.
    #[serde(default)]
    pub matches: Vec<At<HttpRouteMatch>>,
    /// In order.
    #[serde(default)]
    pub filters: Vec<At<RouteFilter>>,
    /// Where to.
    #[serde(default)]
    pub backend_refs: Vec<At<BackendRef>>,
    /// Time limits.
    pub timeouts: Option<At<Timeouts>>,
    /// When a request is sent again.
    pub retry: Option<At<Retry>>,
    /// Experimental channel.
    pub session_persistence: Option<NotYet>,
}

/// All of these must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    /// Path, default prefix `/`.
    pub path: Option<At<PathMatch>>,
    /// Header fields.
    #[serde(default)]
    pub headers: Vec<At<NameValueMatch>>,
    /// Query parameters.
    #[serde(default)]
    pub query_params: Vec<At<NameValueMatch>>,
    /// Method.
    pub method: Option<At<String>>,
}

/// How a path matches.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// Default `PathPrefix`.
    #[serde(default, rename = "type")]
    pub how: PathMatchType,
    /// Default `/`.
    pub value: Option<At<String>>,
}

/// `HTTPPathMatch.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PathMatchType {
    /// The whole path.
    Exact,
    /// Whole path elements.
    #[default]
    PathPrefix,
    /// A regular expression over the whole path.
    RegularExpression,
}

/// How a header or query parameter matches.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NameValueMatch {
    /// Default `Exact`.
    #[serde(default, rename = "type")]
    pub how: ValueMatchType,
    /// Name.
    pub name: At<String>,
    /// Value, or regular expression over the whole value.
    pub value: At<String>,
}

/// `HTTPHeaderMatch.type` and its like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ValueMatchType {
    /// The whole value.
    #[default]
    Exact,
    /// A regular expression over the whole value.
    RegularExpression,
}

/// A weighted reference to a Service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRef {
    /// Default: empty, the core group.
    pub group: Option<At<String>>,
    /// Default `Service`.
    pub kind: Option<At<String>>,
    /// Name.
    pub name: At<String>,
    /// Default: the route's.
    pub namespace: Option<At<String>>,
    /// The service's port (required for a Service).
    pub port: Option<At<u16>>,
    /// Default 1.
    pub weight: Option<At<u32>>,
    /// For requests to this backend only.
    #[serde(default)]
    pub filters: Vec<At<RouteFilter>>,
}

/// Time limits of a rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// The whole request, retries included.
    pub request: Option<At<String>>,
    /// One attempt.
    pub backend_request: Option<At<String>>,
}

/// When a request is sent again.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Statuses of responses, 400 to 599.
    #[serde(default)]
    pub codes: Vec<At<u16>>,
    /// At most so often.
    pub attempts: Option<At<u32>>,
    /// The least wait before.
    pub backoff: Option<At<String>>,
}

/// GRPCRoute `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<At<ParentRef>>,
    /// Not used for Service parents (GEP-1294, "hostnames field").
    #[serde(default)]
    pub hostnames: Vec<At<String>>,
    /// Rules.
    #[serde(default)]
    pub rules: Vec<At<GrpcRouteRule>>,
    /// Experimental channel.
    pub use_default_gateways: Option<NotYet>,
}

/// One rule of a GRPCRoute.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteRule {
    /// Name, unique in the route.
    pub name: Option<At<String>>,
    /// Any of these.
    #[serde(default)]
    pub matches: Vec<At<GrpcRouteMatch>>,
    /// In order.
    #[serde(default)]
    pub filters: Vec<At<RouteFilter>>,
    /// Where to.
    #[serde(default)]
    pub backend_refs: Vec<At<BackendRef>>,
    /// Experimental channel.
    pub session_persistence: Option<NotYet>,
}

/// All of these must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteMatch {
    /// Service and method.
    pub method: Option<At<GrpcMethodMatch>>,
    /// Header fields (metadata).
    #[serde(default)]
    pub headers: Vec<At<NameValueMatch>>,
}

/// A gRPC service and method; one of them at least.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMethodMatch {
    /// Default `Exact`.
    #[serde(default, rename = "type")]
    pub how: ValueMatchType,
    /// Full name of the service: `package.Service`.
    pub service: Option<At<String>>,
    /// Name of the method.
    pub method: Option<At<String>>,
}

/// TLSRoute `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<At<ParentRef>>,
    /// Names that TLS clients ask for (SNI).
    #[serde(default)]
    pub hostnames: At<Vec<At<String>>>,
    /// The rule.
    #[serde(default)]
    pub rules: At<Vec<At<ConnectionRule>>>,
    /// Experimental channel.
    pub use_default_gateways: Option<NotYet>,
}

/// TCPRoute `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// What it is attached to.
    #[serde(default)]
    pub parent_refs: Vec<At<ParentRef>>,
    /// The rule.
    #[serde(default)]
    pub rules: At<Vec<At<ConnectionRule>>>,
    /// Experimental channel.
    pub use_default_gateways: Option<NotYet>,
}

/// The rule of a TLSRoute or TCPRoute.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionRule {
    /// Name.
    pub name: Option<At<String>>,
    /// Where to.
    #[serde(default)]
    pub backend_refs: Vec<At<BackendRef>>,
}

/// ReferenceGrant `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReferenceGrantSpec {
    /// Who may refer.
    #[serde(default)]
    pub from: Vec<At<GrantFrom>>,
    /// To what.
    #[serde(default)]
    pub to: Vec<At<GrantTo>>,
}

/// Objects of a kind and namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantFrom {
    /// Group.
    pub group: At<String>,
    /// Kind.
    pub kind: At<String>,
    /// Namespace.
    pub namespace: At<String>,
}

/// Objects of the grant's own namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrantTo {
    /// Group.
    pub group: At<String>,
    /// Kind.
    pub kind: At<String>,
    /// Name; all if absent.
    pub name: Option<At<String>>,
}
