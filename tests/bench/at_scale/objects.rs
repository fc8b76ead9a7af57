//! What the mesh consists of, object by object, as it is written to files and to an API server.
//!
//! JSON, which is YAML too. An object says as much as the mesh needs and an API server insists on.

use std::net::Ipv4Addr;
use std::ops::Range;

use serde_json::{Value, json};

use super::world::{HOT, MARK_HEADER, World, mark};

/// Services in a namespace.
const IN_NAMESPACE: usize = 100;
/// Pods on a node.
const ON_NODE: usize = 100;
/// Zones that the nodes are in.
const ZONES: usize = 3;
/// Endpoints in a slice: where Kubernetes' controller begins another.
const IN_SLICE: usize = 100;

/// A kind of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    Service,
    Pod,
    EndpointSlice,
    HttpRoute,
}

impl Kind {
    /// As objects say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
        }
    }

    /// And its group and version.
    pub const fn version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::HttpRoute => "gateway.networking.k8s.io/v1",
            _ => "v1",
        }
    }
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Object {
    pub kind: Kind,
    /// `None`: it is in none.
    pub namespace: Option<String>,
    pub name: String,
    pub body: Value,
}

impl Object {
    fn new(kind: Kind, namespace: Option<String>, name: String, mut body: Value) -> Self {
        body["apiVersion"] = kind.version().into();
        body["kind"] = kind.name().into();
        body["metadata"]["name"] = name.as_str().into();
        if let Some(namespace) = &namespace {
            body["metadata"]["namespace"] = namespace.as_str().into();
        }
        Self { kind, namespace, name, body }
    }
}

impl World {
    /// The namespace of a service.
    pub fn namespace(service: usize) -> String {
        format!("n-{:03}", service / IN_NAMESPACE)
    }

    /// How many namespaces there are.
    pub fn namespaces(&self) -> usize {
        self.services.div_ceil(IN_NAMESPACE)
    }

    /// The services of one.
    pub fn in_namespace(&self, namespace: usize) -> Range<usize> {
        let first = namespace * IN_NAMESPACE;
        first..(first + IN_NAMESPACE).min(self.services)
    }

    /// A namespace.
    pub fn namespace_object(namespace: usize) -> Object {
        Object::new(Kind::Namespace, None, Self::namespace(namespace * IN_NAMESPACE), json!({}))
    }

    fn nodes_count(&self) -> usize {
        self.endpoints().div_ceil(ON_NODE)
    }

    /// The Nodes.
    pub fn nodes(&self) -> impl Iterator<Item = Object> {
        (0..self.nodes_count()).map(|node| {
            let zone = json!({"topology.kubernetes.io/zone": format!("zone-{}", node % ZONES)});
            Object::new(Kind::Node, None, format!("k-{node:04}"), json!({"metadata": {"labels": zone}}))
        })
    }

    /// The account of a service's pods.
    pub fn account(service: usize) -> Object {
        Object::new(Kind::ServiceAccount, Some(Self::namespace(service)), Self::service(service), json!({}))
    }

    /// A Service.
    pub fn service_object(service: usize) -> Object {
        let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
        let body = json!({"spec": {"clusterIP": Self::cluster_ip(service).to_string(), "ports": ports}});
        Object::new(Kind::Service, Some(Self::namespace(service)), Self::service(service), body)
    }

    /// The Pods of a service.
    pub fn pods(&self, service: usize) -> impl Iterator<Item = Object> {
        (0..self.members).map(move |member| {
            let node = format!("k-{:04}", (self.of(service).start + member) % self.nodes_count());
            let body = json!({
                "metadata": {"uid": Self::uid(service, member), "annotations": {"weft.dev/injected": "true"}},
                "spec": {
                    "serviceAccountName": Self::service(service),
                    "nodeName": node,
                    "containers": [{"name": "app", "image": "app"}],
                },
                "status": {"podIP": self.ip(service, member).to_string()},
            });
            Object::new(Kind::Pod, Some(Self::namespace(service)), Self::pod(service, member), body)
        })
    }

    fn ip(&self, service: usize, member: usize) -> Ipv4Addr {
        Self::pod_ip(self.of(service).start + member)
    }

    /// The EndpointSlices of a service, with these marks of all endpoints.
    pub fn slices(&self, service: usize, marks: &[u64]) -> impl Iterator<Item = Object> {
        (0..self.members).step_by(IN_SLICE).map(move |first| {
            let members = first..(first + IN_SLICE).min(self.members);
            let endpoints: Vec<Value> = members.map(|member| self.endpoint(service, member, marks)).collect();
            let body = json!({
                "metadata": {"labels": {"kubernetes.io/service-name": Self::service(service)}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080}],
                "endpoints": endpoints,
            });
            let name = format!("{}-{}", Self::service(service), first / IN_SLICE);
            Object::new(Kind::EndpointSlice, Some(Self::namespace(service)), name, body)
        })
    }

    fn endpoint(&self, service: usize, member: usize, marks: &[u64]) -> Value {
        let zone = mark(marks.get(self.of(service).start + member).copied().unwrap_or_default());
        let pod = json!({"kind": "Pod", "name": Self::pod(service, member), "namespace": Self::namespace(service)});
        let addresses = [self.ip(service, member).to_string()];
        json!({"addresses": addresses, "conditions": {"ready": true}, "zone": zone, "targetRef": pod})
    }

    /// One of the two routes of the hot service.
    pub fn route(name: &str, micros: u64) -> Object {
        let service = Self::service(HOT);
        let set = json!({"set": [{"name": MARK_HEADER, "value": mark(micros)}]});
        let rule = json!({
            "matches": [{"path": {"type": "PathPrefix", "value": format!("/{name}")}}],
            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": set}],
            "backendRefs": [{"name": service, "port": 80}],
        });
        let parent = json!({"group": "", "kind": "Service", "name": service, "port": 80});
        let body = json!({"spec": {"parentRefs": [parent], "rules": [rule]}});
        Object::new(Kind::HttpRoute, Some(Self::namespace(HOT)), name.to_owned(), body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_service_has_several_slices_and_each_endpoint_is_in_one() {
        let world = World::new(3, 750, 10, 2).unwrap();
        let mut marks = vec![0; world.endpoints()];
        marks[world.of(1).start + 120] = 7;
        let slices: Vec<Object> = world.slices(1, &marks).collect();
        let names: Vec<&str> = slices.iter().map(|slice| slice.name.as_str()).collect();
        assert_eq!(names, ["s-00001-0", "s-00001-1", "s-00001-2"]);
        let of = |slice: &Object| slice.body["endpoints"].as_array().unwrap().len();
        assert_eq!(slices.iter().map(of).collect::<Vec<_>>(), [100, 100, 50]);
        assert_eq!(slices[1].body["endpoints"][20]["zone"], mark(7));
        assert_eq!(slices[1].body["endpoints"][20]["targetRef"]["name"], World::pod(1, 120));
    }

    #[test]
    fn pods_stand_on_nodes_that_there_are() {
        let world = World::new(3, 750, 10, 2).unwrap();
        let nodes: Vec<String> = world.nodes().map(|node| node.name).collect();
        assert_eq!(nodes.len(), 8);
        assert!(world.pods(2).all(|pod| nodes.iter().any(|node| pod.body["spec"]["nodeName"] == node.as_str())));
    }
}
