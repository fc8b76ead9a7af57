//! What every object has: its version and kind, and its metadata.

use serde::Deserialize;

use super::decode::{At, NotYet};
use super::fault::{Fault, nearest};
use super::tree::{Node, Position, Value};

/// API group of our own kinds.
pub const WEFT_GROUP: &str = "weft.dev";
/// API group of the Multi-Cluster Services API (KEP-1645).
pub const MULTICLUSTER_GROUP: &str = "multicluster.x-k8s.io";
/// API group of the routes.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The kinds that are read strictly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Gateway API HTTPRoute.
    HttpRoute,
    /// Gateway API GRPCRoute.
    GrpcRoute,
    /// Gateway API TLSRoute.
    TlsRoute,
    /// Gateway API TCPRoute.
    TcpRoute,
    /// Gateway API ReferenceGrant.
    ReferenceGrant,
    /// Ours.
    AuthorizationPolicy,
    /// Ours.
    RateLimitPolicy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::ReferenceGrant,
        Kind::AuthorizationPolicy,
        Kind::RateLimitPolicy,
    ];

    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::TlsRoute => "TLSRoute",
            Kind::TcpRoute => "TCPRoute",
            Kind::ReferenceGrant => "ReferenceGrant",
            Kind::AuthorizationPolicy => "AuthorizationPolicy",
            Kind::RateLimitPolicy => "RateLimitPolicy",
        }
    }

    /// As the path of an API server has it.
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::HttpRoute => "httproutes",
            Kind::GrpcRoute => "grpcroutes",
            Kind::TlsRoute => "tlsroutes",
            Kind::TcpRoute => "tcproutes",
            Kind::ReferenceGrant => "referencegrants",
            Kind::AuthorizationPolicy => "authorizationpolicies",
            Kind::RateLimitPolicy => "ratelimitpolicies",
        }
    }

    /// The versions that are read, newest first, each as `GROUP/VERSION`.
    pub const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Kind::HttpRoute | Kind::GrpcRoute => &["gateway.networking.k8s.io/v1"],
            // Standard since Gateway API 1.5.
            Kind::TlsRoute => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha3",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            // Standard since Gateway API 1.6.
            Kind::TcpRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"],
            Kind::ReferenceGrant => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"],
            Kind::AuthorizationPolicy | Kind::RateLimitPolicy => &["weft.dev/v1alpha1"],
        }
    }

    /// Whether a broken one must close what it targets.
    pub const fn is_policy(self) -> bool {
        matches!(self, Kind::AuthorizationPolicy | Kind::RateLimitPolicy)
    }
}

/// Gateway API's kinds that say nothing to a mesh: left to the gateways that read them.
const FOR_GATEWAYS: [&str; 6] =
    ["Gateway", "GatewayClass", "ListenerSet", "XListenerSet", "BackendTLSPolicy", "BackendTrafficPolicy"];
/// Kinds that exist and that this version does not read.
const NOT_YET_KINDS: [(&str, &str); 5] = [
    (GATEWAY_GROUP, "UDPRoute"),
    (WEFT_GROUP, "TrafficPolicy"),
    (WEFT_GROUP, "EgressPolicy"),
    (WEFT_GROUP, "TelemetryPolicy"),
    (WEFT_GROUP, "MeshConfig"),
];

/// What an `apiVersion` and a `kind` mean to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Read by [`super::read`].
    Ours(Kind),
    /// Somebody else's.
    Other,
}

/// Says whose an object is. An unknown kind or version of our groups is a fault, and so is one of our kinds under a group that looks
/// like a misspelt one: silence there would leave a policy unenforced.
pub fn classify(api_version: &At<String>, kind: &At<String>) -> Result<Class, Fault> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let named = Kind::ALL.into_iter().find(|known| known.name() == kind.value);
    if let Some(known) = named {
        if known.api_versions().contains(&api_version.as_str()) {
            return Ok(Class::Ours(known));
        }
        let own_group = known.api_versions()[0].split_once('/').map_or("", |(group, _)| group);
        if group == own_group || group.is_empty() || nearest(group, [own_group]).is_some() || group == other(own_group)
        {
            let message = format!("{} `{}` is not read: unknown group or version", known.name(), api_version.value);
            return Err(Fault::new(api_version.at, message).suggest(known.api_versions()[0]));
        }
        return Ok(Class::Other);
    }
    if group == GATEWAY_GROUP && FOR_GATEWAYS.contains(&kind.as_str()) {
        return Ok(Class::Other);
    }
    if NOT_YET_KINDS.contains(&(group, kind.as_str())) {
        let message = format!("kind `{}` is known, but not supported by this version of Weft", kind.value);
        return Err(Fault::new(kind.at, message));
    }
    if group == GATEWAY_GROUP || group == WEFT_GROUP {
        let names = Kind::ALL.into_iter().filter(|known| known.api_versions()[0].starts_with(group)).map(Kind::name);
        let fault = Fault::new(kind.at, format!("unknown kind `{}` in group `{group}`", kind.value));
        return Err(fault.did_you_mean(kind, names));
    }
    if nearest(group, [WEFT_GROUP, GATEWAY_GROUP]).is_some() {
        let message = format!("unknown group `{group}`");
        return Err(Fault::new(api_version.at, message).did_you_mean(group, [WEFT_GROUP, GATEWAY_GROUP]));
    }
    Ok(Class::Other)
}

fn other(group: &str) -> &'static str {
    if group == WEFT_GROUP { GATEWAY_GROUP } else { WEFT_GROUP }
}

/// `metadata`, as Kubernetes has it. Strict: a misspelt `namespace` must not put a policy elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "fields that may be there and are not read")]
pub struct ObjectMeta {
    /// Name.
    pub name: Option<At<String>>,
    /// Namespace, `default` if absent.
    pub namespace: Option<At<String>>,
    /// RFC 3339.
    pub creation_timestamp: Option<At<String>>,
    /// Server-made names have no meaning in files.
    pub generate_name: Option<NotYet>,
    labels: Option<Anything>,
    annotations: Option<Anything>,
    uid: Option<Anything>,
    resource_version: Option<Anything>,
    generation: Option<Anything>,
    self_link: Option<Anything>,
    deletion_timestamp: Option<Anything>,
    deletion_grace_period_seconds: Option<Anything>,
    owner_references: Option<Anything>,
    finalizers: Option<Anything>,
    managed_fields: Option<Anything>,
}

/// A field that may be there and is not read.
#[derive(Clone, Copy, Debug)]
pub struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Anything)
    }
}

/// Text of a field anywhere below a node, without judging the rest.
pub(super) fn text_at(node: &Node, path: &[&str]) -> Option<At<String>> {
    let node = path.iter().try_fold(node, |node, key| node.get(key))?;
    match &node.value {
        Value::Text(text) => Some(At { value: text.clone(), at: node.at }),
        _ => None,
    }
}

/// Where a key of a mapping stands, or else the mapping.
pub(super) fn key_position(node: &Node, key: &str) -> Position {
    node.entries().iter().find(|entry| entry.key == key).map_or(node.at, |entry| entry.at)
}

/// Seconds since 1970 of an RFC 3339 time in UTC (`2026-01-02T03:04:05Z`, as Kubernetes writes it). `None` if it is none.
pub fn unix_seconds(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let time = time.split_once('.').map_or(time, |(whole, _)| whole);
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let mut parts = text.split(by).map(|part| part.parse::<u32>().ok().map(i64::from));
        let found = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some(found)
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from civil date: http://howardhinnant.github.io/date_algorithms.html
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted / 400;
    let year_of_era = shifted - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    u64::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).ok()
}
