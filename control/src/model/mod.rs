//! Orchestrator-neutral objects, and the indexes over them.
//!
//! What people write is already checked when it gets here: routes and policies carry the wire form of their rules, with references
//! not yet resolved; [`crate::compile`] resolves them by the rules of `references`. Nothing here knows YAML or Kubernetes.

use std::collections::BTreeMap;
use std::net::IpAddr;

pub use weft_api::kinds::{ForeignRef, Grant, Granted, Route, ServiceParent};
use weft_api::wire::v1;

mod change;
mod references;

pub use change::Change;
pub use references::{Conflict, OVERRULED, OVERRULING, ServiceRef, parent_name};

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Name {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that is known at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Namespaces that say something; one that is not here has the defaults.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Nodes.
    pub nodes: BTreeMap<String, Node>,
    /// Services, and ServiceImports by the name that they have among them ([`weft_api::names::imported`]).
    pub services: BTreeMap<Name, Service>,
    /// Endpoint slices by their own name.
    pub slices: BTreeMap<Name, Slice>,
    /// Pods.
    pub workloads: BTreeMap<Name, Workload>,
    /// Routes by kind (`HTTPRoute`, `GRPCRoute`, `TLSRoute`, `TCPRoute`) and name.
    pub routes: BTreeMap<(String, Name), Route>,
    /// ReferenceGrants.
    pub grants: BTreeMap<Name, Grant>,
    /// Authorization policies.
    pub authorization: BTreeMap<Name, AuthorizationPolicy>,
    /// Rate limit policies.
    pub rate_limits: BTreeMap<Name, RateLimitPolicy>,
}

/// The namespace that may speak for the whole mesh.
pub const SYSTEM_NAMESPACE: &str = "weft-system";

/// What a namespace says of all that is in it. Its posture, from its annotations `weft.dev/mtls: strict|permissive` and
/// `weft.dev/default: deny|allow`; and how its pods are injected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Whether ports of its workloads take mesh TLS only; none: as the mesh has it.
    pub strict: Option<bool>,
    /// Without an Allow policy a workload denies.
    pub default_deny: bool,
    /// Of [`SYSTEM_NAMESPACE`]: the same for workloads whose own namespace does not say (`weft.dev/mesh-mtls`).
    pub mesh_strict: Option<bool>,
    /// Annotations for its pods' sidecars ([`crate::inject::overrides`]), as they stand there; those of a pod count more.
    pub injection: BTreeMap<String, String>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its label `topology.kubernetes.io/zone`, or empty.
    pub zone: String,
}

/// Which clients the endpoints of a service are for, where its slices do not say it (`trafficDistribution`; KEP-3015): in a cluster the
/// EndpointSlice controller makes hints of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// `PreferSameZone`, or `PreferClose` as it was called: those of their zone.
    Zone,
    /// `PreferSameNode`: those of their node, then of their zone.
    Node,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// ClusterIPs, both families; empty for a headless service and for an ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `type: ExternalName`.
    pub external_name: Option<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `trafficDistribution`.
    pub distribution: Option<Distribution>,
    /// `internalTrafficPolicy: Local`.
    pub node_local: bool,
    /// `sessionAffinity: ClientIP`.
    pub sticky: bool,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name, empty if it is the only one.
    pub name: String,
    /// The service's port.
    pub port: u16,
    /// `appProtocol`, or what the port's name says (`http`, `http-`, `grpc`, `tcp`, ...).
    pub protocol: v1::Protocol,
}

/// Some endpoints of a service (EndpointSlice).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Name of the service, in the same namespace (label `kubernetes.io/service-name`, or
    /// `multicluster.kubernetes.io/service-name` of a ServiceImport).
    pub service: String,
    /// Target ports by the service port's name.
    pub ports: Vec<(String, u16)>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address (the first one: all are interchangeable by the API's contract).
    pub ip: IpAddr,
    /// `conditions.ready`, nil is true.
    pub ready: bool,
    /// `conditions.serving`, nil is `ready`.
    pub serving: bool,
    /// `conditions.terminating`, nil is false.
    pub terminating: bool,
    /// `targetRef` of kind Pod.
    pub workload: Option<Name>,
    /// Zone.
    pub zone: String,
    /// `hostname`, for members of headless services.
    pub hostname: Option<String>,
    /// `nodeName`, or empty.
    pub node: String,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.uid`: what a token is bound to, since a pod's name is used again. Empty if the manifest has none, and of a pod that has
    /// ended: no token is bound to that.
    pub uid: String,
    /// `status.podIPs` or, in files, `status.podIP`.
    pub ips: Vec<IpAddr>,
    /// `spec.serviceAccountName`, `default` if absent.
    pub service_account: String,
    /// `spec.nodeName`, or empty.
    pub node: String,
    /// Annotation `weft.dev/injected: "true"`: it has a sidecar.
    pub meshed: bool,
    /// Deletion has begun (`metadata.deletionTimestamp`).
    pub terminating: bool,
    /// Whether its ports take mesh TLS only (`weft.dev/mtls`); none: as its namespace has it.
    pub strict: Option<bool>,
    /// The same of single ports (`weft.dev/mtls-ports`).
    pub strict_ports: BTreeMap<u16, bool>,
}

/// What a policy covers. All in the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The workloads and target ports behind a service.
    Service(String),
    /// Every workload of the policy's namespace.
    Namespace,
}

/// An authorization policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuthorizationPolicy {
    /// What it covers.
    pub targets: Vec<Target>,
    /// Its rules, or why they cannot be used (`invalid`).
    pub policy: v1::AuthorizationPolicy,
}

/// A rate limit policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RateLimitPolicy {
    /// What it covers.
    pub targets: Vec<Target>,
    /// Its limits, or why they cannot be used (`invalid`).
    pub policy: v1::RateLimitPolicy,
}
