//! Core kinds -> model, read leniently: fields that the mesh does not look at may be anything. What it does look at must be right, because
//! a wrong address or a misspelt posture would otherwise be silence.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use weft_api::kinds::decode::{At, decode};
use weft_api::kinds::{Fault, Node, is_dns_name};
use weft_api::names;
use weft_api::wire::v1::Protocol;

use crate::inject::{self, INJECTED};
use crate::model::{
    self, Distribution, Name, Namespace, SYSTEM_NAMESPACE, Service, ServicePort, Slice, SliceEndpoint, Workload,
};

const MTLS: &str = "weft.dev/mtls";
const MTLS_PORTS: &str = "weft.dev/mtls-ports";
const MESH_MTLS: &str = "weft.dev/mesh-mtls";
const DEFAULT: &str = "weft.dev/default";
const STRICT: &str = "strict";
const PERMISSIVE: &str = "permissive";
pub(in crate::sources) const OWN_PREFIX: &str = "weft.dev/";
const ZONE: &str = "topology.kubernetes.io/zone";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const IMPORT_NAME: &str = "multicluster.kubernetes.io/service-name";

/// The core kinds, with the `apiVersion` that is read.
pub(super) const KINDS: [(&str, &str); 6] = [
    ("v1", "Namespace"),
    ("v1", "Node"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("v1", "Pod"),
    ("multicluster.x-k8s.io/v1alpha1", "ServiceImport"),
];
/// Those that are in no namespace.
pub(super) const NAMELESS: [&str; 2] = ["Namespace", "Node"];

/// Text, or a number or boolean that Kubernetes would have wanted quoted.
#[derive(Clone, Debug, Default)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Scalar {
            Text(String),
            Bool(bool),
            Int(i64),
            Float(f64),
            Other(IgnoredAny),
        }
        Ok(Text(match Scalar::deserialize(deserializer)? {
            Scalar::Text(text) => text,
            Scalar::Bool(value) => value.to_string(),
            Scalar::Int(value) => value.to_string(),
            Scalar::Float(value) => value.to_string(),
            Scalar::Other(_) => String::new(),
        }))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: Option<Text>,
    uid: Option<Text>,
    labels: BTreeMap<String, Text>,
    annotations: BTreeMap<String, At<Text>>,
    deletion_timestamp: Option<IgnoredAny>,
}

impl Meta {
    /// An annotation of ours whose value is one of two words; `true` for the first, and nothing said is the second.
    fn either(&self, name: &str, yes: &str, no: &str) -> Result<bool, Fault> {
        self.said(name, yes, no).map(Option::unwrap_or_default)
    }

    /// The same; `None` if nothing is said.
    fn said(&self, name: &str, yes: &str, no: &str) -> Result<Option<bool>, Fault> {
        let Some(text) = self.annotations.get(name) else { return Ok(None) };
        match text.value.0.as_str() {
            value if value == yes => Ok(Some(true)),
            value if value == no => Ok(Some(false)),
            value => {
                let message = format!("annotation {name} is `{value}`, expected `{yes}` or `{no}`");
                Err(Fault::new(text.at, message).did_you_mean(value, [yes, no]))
            }
        }
    }

    /// Which single ports take mesh TLS only, or not only that: `9090=permissive,8443=strict`.
    fn strict_ports(&self) -> Result<BTreeMap<u16, bool>, Fault> {
        let Some(text) = self.annotations.get(MTLS_PORTS) else { return Ok(BTreeMap::new()) };
        let mut ports = BTreeMap::new();
        for part in text.value.0.split(',').map(str::trim) {
            let wrong = |what: &str| Fault::new(text.at, format!("annotation {MTLS_PORTS}: `{part}` {what}"));
            let read = part.split_once('=').and_then(|(port, mode)| {
                let mode = match mode {
                    STRICT => true,
                    PERMISSIVE => false,
                    _ => return None,
                };
                Some((port.parse::<u16>().ok().filter(|port| *port != 0)?, mode))
            });
            let (port, strict) = read.ok_or_else(|| wrong("is neither PORT=strict nor PORT=permissive"))?;
            if ports.insert(port, strict).is_some() {
                return Err(wrong("names a port that stands there already"));
            }
        }
        Ok(ports)
    }

    /// Annotations with our prefix that mean nothing are probably misspelt.
    fn known(&self, known: &[&'static str]) -> Result<(), Fault> {
        let mut own = self.annotations.iter().filter(|(name, _)| name.starts_with(OWN_PREFIX));
        match own.find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, text)) => {
                Err(Fault::new(text.at, format!("unknown annotation `{name}`"))
                    .did_you_mean(name, known.iter().copied()))
            }
            None => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct MetaOnly {
    #[serde(default)]
    metadata: Meta,
}

/// What a namespace says. On a fault, also what to assume where nothing better is known: the strictest of what was meant.
pub(super) fn namespace(node: &Node) -> Result<Namespace, (Fault, Namespace)> {
    let closed = || Namespace { strict: Some(true), default_deny: true, ..Namespace::default() };
    let object: MetaOnly = decode(node).map_err(|fault| (fault, closed()))?;
    let meta = object.metadata;
    let speaks = meta.name.as_ref().is_some_and(|name| name.0 == SYSTEM_NAMESPACE);
    let posture: &[&'static str] = if speaks { &[MTLS, DEFAULT, MESH_MTLS] } else { &[MTLS, DEFAULT] };
    let known = [posture, &inject::ANNOTATIONS].concat();
    let (strict, deny) = (meta.said(MTLS, STRICT, PERMISSIVE), meta.either(DEFAULT, "deny", "allow"));
    let mesh = if speaks { meta.said(MESH_MTLS, STRICT, PERMISSIVE) } else { Ok(None) };
    // Of what can be read nothing is made stricter than it says.
    let meant = |said: &Result<Option<bool>, Fault>| *said.as_ref().unwrap_or(&Some(true));
    let sidecars = meta.annotations.iter().filter(|(name, _)| inject::ANNOTATIONS.contains(&name.as_str()));
    let assumed = Namespace {
        strict: meant(&strict),
        default_deny: *deny.as_ref().unwrap_or(&true),
        mesh_strict: meant(&mesh),
        injection: sidecars.map(|(name, text)| (name.clone(), text.value.0.clone())).collect(),
    };
    if let Some(text) = meta.annotations.get(MESH_MTLS).filter(|_| !speaks) {
        let what =
            format!("annotation {MESH_MTLS} counts on the Namespace {SYSTEM_NAMESPACE} alone; of another say {MTLS}");
        return Err((Fault::new(text.at, what), Namespace { strict: Some(true), ..assumed }));
    }
    match (meta.known(&known), strict, deny, mesh) {
        (Ok(()), Ok(_), Ok(_), Ok(_)) => Ok(assumed),
        (Err(fault), ..) => {
            let near = |wanted| fault.suggestion.as_deref() == Some(wanted);
            let closed = |said: Option<bool>, name| if near(name) { Some(true) } else { said };
            let assumed = Namespace {
                strict: closed(assumed.strict, MTLS),
                default_deny: assumed.default_deny || near(DEFAULT),
                mesh_strict: closed(assumed.mesh_strict, MESH_MTLS),
                injection: assumed.injection,
            };
            Err((fault, assumed))
        }
        (_, Err(fault), ..) | (_, _, Err(fault), _) | (.., Err(fault)) => Err((fault, assumed)),
    }
}

pub(super) fn of_node(node: &Node) -> Result<model::Node, Fault> {
    let object: MetaOnly = decode(node)?;
    let zone = object.metadata.labels.get(ZONE).map(|zone| zone.0.clone()).unwrap_or_default();
    Ok(model::Node { zone })
}

#[derive(Deserialize)]
struct ServiceObject {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: ServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    how: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<At<String>>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<At<String>>,
    external_name: Option<At<String>>,
    /// Of a ServiceImport.
    ips: Vec<At<String>>,
    ports: Vec<PortObject>,
    traffic_distribution: Option<At<String>>,
    internal_traffic_policy: Option<At<String>>,
    session_affinity: Option<At<String>>,
}

impl ServiceSpec {
    /// Which endpoints a client uses. What is not known is refused: it would be ignored.
    fn spread(&self, service: &mut Service) -> Result<(), Fault> {
        let unknown = |field: &str, text: &At<String>, known: &[&'static str]| {
            let message = format!("{field} `{}` is not known; there are {}", text.value, known.join(", "));
            Fault::new(text.at, message).did_you_mean(text, known.iter().copied())
        };
        service.distribution = match self.traffic_distribution.as_ref() {
            None => None,
            Some(text) => match text.as_str() {
                "" => None,
                "PreferClose" | "PreferSameZone" => Some(Distribution::Zone),
                "PreferSameNode" => Some(Distribution::Node),
                _ => {
                    let known = ["PreferSameZone", "PreferSameNode", "PreferClose"];
                    return Err(unknown("trafficDistribution", text, &known));
                }
            },
        };
        service.node_local =
            either("internalTrafficPolicy", self.internal_traffic_policy.as_ref(), "Local", "Cluster")?;
        service.sticky = either("sessionAffinity", self.session_affinity.as_ref(), "ClientIP", "None")?;
        Ok(())
    }
}

impl ServiceSpec {
    fn service_ports(&self, node: &Node) -> Result<Vec<ServicePort>, Fault> {
        let ports = self.ports.iter().filter(|port| port.is_tcp()).map(|port| {
            let number =
                port.port.as_ref().ok_or_else(|| Fault::new(node.at, "a port of the Service has no `port`"))?;
            if number.value == 0 {
                return Err(Fault::new(number.at, "port 0 is no port"));
            }
            let protocol = protocol(port.app_protocol.as_deref(), &port.name());
            Ok(ServicePort { name: port.name(), port: number.value, protocol })
        });
        ports.collect()
    }
}

/// A field whose value is one of two words; `true` for the first, and nothing said is the second.
fn either(field: &str, text: Option<&At<String>>, yes: &'static str, no: &'static str) -> Result<bool, Fault> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(false) };
    if text.as_str() == yes || text.as_str() == no {
        return Ok(text.as_str() == yes);
    }
    let message = format!("{field} is `{}`, expected `{yes}` or `{no}`", text.value);
    Err(Fault::new(text.at, message).did_you_mean(text, [yes, no]))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortObject {
    name: Option<Text>,
    port: Option<At<u16>>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

impl PortObject {
    // UDP and SCTP pass by the mesh.
    fn is_tcp(&self) -> bool {
        self.protocol.as_deref().is_none_or(|protocol| protocol == "TCP")
    }

    fn name(&self) -> String {
        self.name.as_ref().map(|name| name.0.clone()).unwrap_or_default()
    }
}

pub(super) fn service(node: &Node) -> Result<Service, Fault> {
    let object: ServiceObject = decode(node)?;
    object.metadata.known(&[])?;
    let spec = object.spec;
    let external = spec.how.as_deref() == Some("ExternalName");
    let mut service = Service::default();
    spec.spread(&mut service)?;
    if external {
        let host = spec.external_name.as_ref().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| Fault::new(node.at, "a Service of type ExternalName needs `externalName`"))?;
        service.external_name = Some(host.trim_end_matches('.').to_ascii_lowercase());
    } else {
        let first = spec.cluster_ip.iter();
        for text in spec.cluster_ips.iter().chain(first).filter(|text| !text.is_empty()) {
            if text.as_str() == "None" {
                service.headless = true;
                continue;
            }
            let ip = ip(text)?;
            if !service.cluster_ips.contains(&ip) {
                service.cluster_ips.push(ip);
            }
        }
    }
    service.ports = spec.service_ports(node)?;
    Ok(service)
}

/// A service of several clusters (KEP-1645), called by its own addresses and name.
pub(super) fn service_import(node: &Node) -> Result<Service, Fault> {
    let object: ServiceObject = decode(node)?;
    let spec = object.spec;
    let mut service = Service { headless: spec.how.as_deref() == Some("Headless"), ..Service::default() };
    spec.spread(&mut service)?;
    service.cluster_ips = spec.ips.iter().filter(|text| !text.is_empty()).map(ip).collect::<Result<_, _>>()?;
    service.ports = spec.service_ports(node)?;
    Ok(service)
}

fn ip(text: &At<String>) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| Fault::new(text.at, format!("`{}` is no IP address", text.value)))
}

/// What a port carries: `appProtocol` (KEP-3726 and IANA names), else the port's name or its part before the first `-`.
/// What is not known is recognised from its first bytes.
pub(super) fn protocol(app_protocol: Option<&str>, port_name: &str) -> Protocol {
    let word = app_protocol.unwrap_or_else(|| port_name.split('-').next().unwrap_or_default());
    match word.to_ascii_lowercase().as_str() {
        "http" | "http1" | "http/1.1" | "ws" | "kubernetes.io/ws" => Protocol::Http1,
        "http2" | "h2c" | "kubernetes.io/h2c" | "grpc" => Protocol::Http2,
        "tcp" | "tls" | "https" | "wss" | "kubernetes.io/wss" | "redis" | "mysql" | "mongo" | "postgres"
        | "postgresql" | "kafka" | "amqp" | "smtp" | "ssh" => Protocol::Tcp,
        _ => Protocol::Detect,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceObject {
    #[serde(default)]
    metadata: Meta,
    address_type: Option<At<String>>,
    #[serde(default)]
    ports: Vec<PortObject>,
    #[serde(default)]
    endpoints: Vec<At<EndpointObject>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointObject {
    #[serde(default)]
    addresses: Vec<At<String>>,
    #[serde(default)]
    conditions: Conditions,
    target_ref: Option<TargetObject>,
    zone: Option<Text>,
    hostname: Option<Text>,
    node_name: Option<Text>,
    #[serde(default)]
    hints: HintsObject,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HintsObject {
    for_nodes: Vec<HintObject>,
    for_zones: Vec<HintObject>,
}

#[derive(Deserialize)]
struct HintObject {
    name: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct TargetObject {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

/// `None`: a slice that belongs to no service, or of names instead of addresses, says nothing to the mesh.
pub(super) fn slice(node: &Node, namespace: &str) -> Result<Option<Slice>, Fault> {
    let object: SliceObject = decode(node)?;
    // Some controllers give a slice of a ServiceImport to a Service too, which they made to have its addresses.
    let labels = &object.metadata.labels;
    let import = labels.get(IMPORT_NAME).map(|import| names::imported(&import.0));
    let Some(service) = import.or_else(|| Some(labels.get(SERVICE_NAME)?.0.clone())) else { return Ok(None) };
    if object.address_type.as_ref().is_some_and(|kind| kind.as_str() == "FQDN") {
        return Ok(None);
    }
    let ports = object.ports.iter().filter(|port| port.is_tcp());
    let ports = ports.filter_map(|port| Some((port.name(), port.port.as_ref()?.value))).collect();
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for endpoint in &object.endpoints {
        let Some(address) = endpoint.addresses.first() else { continue };
        let conditions = &endpoint.conditions;
        let ready = conditions.ready.unwrap_or(true);
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        let workload =
            pod.and_then(|pod| Some(Name::new(pod.namespace.as_deref().unwrap_or(namespace), pod.name.as_deref()?)));
        endpoints.push(SliceEndpoint {
            ip: ip(address)?,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
            workload,
            zone: endpoint.zone.as_ref().map(|zone| zone.0.clone()).unwrap_or_default(),
            hostname: endpoint.hostname.as_ref().map(|name| name.0.clone()),
            node: endpoint.node_name.as_ref().map(|name| name.0.clone()).unwrap_or_default(),
            for_nodes: endpoint.hints.for_nodes.iter().map(|hint| hint.name.0.clone()).collect(),
            for_zones: endpoint.hints.for_zones.iter().map(|hint| hint.name.0.clone()).collect(),
        });
    }
    Ok(Some(Slice { service, ports, endpoints }))
}

#[derive(Deserialize)]
struct PodObject {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    service_account_name: Option<At<String>>,
    service_account: Option<At<String>>,
    host_network: Option<bool>,
    node_name: Option<Text>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<At<String>>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: Option<At<String>>,
}

pub(super) fn workload(node: &Node) -> Result<Workload, Fault> {
    let object: PodObject = decode(node)?;
    let known: Vec<_> = inject::ANNOTATIONS.into_iter().chain(inject::MARKS).chain([MTLS, MTLS_PORTS]).collect();
    object.metadata.known(&known)?;
    let host_network = object.spec.host_network.unwrap_or(false);
    // The address of a pod that has ended may be another's by now; that of a pod on the host's network is the node's.
    let ended = matches!(object.status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let mut ips = Vec::new();
    if !ended && !host_network {
        let all = object.status.pod_ips.iter().filter_map(|one| one.ip.as_ref());
        for text in all.chain(&object.status.pod_ip).filter(|text| !text.is_empty()) {
            let ip = ip(text)?;
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    let account = object.spec.service_account_name.or(object.spec.service_account).filter(|name| !name.is_empty());
    if let Some(name) = account.as_ref().filter(|name| !is_dns_name(name)) {
        return Err(Fault::new(name.at, format!("`{}` is no service account", name.value)));
    }
    let uid = object.metadata.uid.as_ref().filter(|_| !ended).map(|uid| uid.0.clone()).unwrap_or_default();
    Ok(Workload {
        uid,
        ips,
        service_account: account.map_or_else(|| "default".to_owned(), |account| account.value),
        meshed: object.metadata.either(INJECTED, "true", "false")? && !host_network,
        terminating: object.metadata.deletion_timestamp.is_some(),
        strict: object.metadata.said(MTLS, STRICT, PERMISSIVE)?,
        strict_ports: object.metadata.strict_ports()?,
        node: object.spec.node_name.map(|name| name.0).unwrap_or_default(),
    })
}
