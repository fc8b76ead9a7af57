//! Services of several clusters (MCS API, KEP-1645; as parents and backends of routes GEP-1748).

use prost::Message;
use weft_api::wire::v1;
use weft_api::wire::v1::address::Target as Means;

use super::*;
use crate::compile::{Compiled, compile};

const IMPORT: &str = "apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceImport
metadata: {name: web, namespace: shop}
spec: {type: ClusterSetIP, ips: [10.112.0.1], ports: [{name: http, port: 80, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]}
status: {clusters: [{cluster: east}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-east
  namespace: shop
  labels: {multicluster.kubernetes.io/service-name: web, multicluster.kubernetes.io/source-cluster: east, kubernetes.io/service-name: derived-web}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1]}]
";
/// The cluster's own service of that name, and the one that a controller has made to have the import's address.
const OTHERS: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: derived-web, namespace: shop}
spec: {clusterIP: 10.112.0.1, ports: [{name: http, port: 80}]}
";

fn compiled(files: &mut Files) -> Compiled {
    let loaded = files.refresh();
    assert_eq!(loaded.problems, Vec::new());
    compile(&loaded.model)
}

fn means(compiled: &Compiled, address: &str) -> Option<String> {
    match v1::Address::decode(&*compiled.address(address).bytes).unwrap().target.unwrap() {
        Means::Service(name) => Some(name),
        _ => None,
    }
}

fn routes(compiled: &Compiled, service: &str) -> Vec<String> {
    v1::Service::decode(&*compiled.get(service).unwrap().bytes).unwrap().routes
}

#[test]
fn a_service_import_is_a_service_of_its_own() {
    let mut files = Files::new(&[("import.yaml", IMPORT), ("others.yaml", OTHERS)]);
    let compiled = compiled(&mut files);
    for address in ["10.112.0.1:80", "web.shop.svc.clusterset.local:80", "Web.Shop.svc.clusterset.local.:80"] {
        assert_eq!(means(&compiled, address).as_deref(), Some("service/shop/web.clusterset:80"), "{address}");
    }
    assert_eq!(means(&compiled, "web.shop.svc.cluster.local:80").as_deref(), Some("service/shop/web:80"));
    assert_eq!(means(&compiled, "nobody.shop.svc.clusterset.local:80"), None);
    assert_eq!(means(&compiled, "shop.svc.clusterset.local:80"), None);
    // Only what is TCP, and by the name of the port.
    let members = |set: &str| compiled.collection(set).map(|set| set.members.len());
    assert_eq!(members("endpoints/shop/web.clusterset:80"), Some(1));
    assert_eq!((members("endpoints/shop/web.clusterset:53"), members("endpoints/shop/web:80")), (None, Some(0)));
}

fn route(namespace: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: {namespace}}}
spec:
  parentRefs: [{{group: multicluster.x-k8s.io, kind: ServiceImport, name: web, namespace: shop, sectionName: http}}]
  rules: [{{backendRefs: [{{{backend}, namespace: shop, port: 80}}]}}]
"
    )
}

fn grant(to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: g, namespace: shop}}
spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: market}}], to: [{{{to}}}]}}
"
    )
}

#[test]
fn a_service_import_is_a_parent_and_a_backend() {
    let import = "group: multicluster.x-k8s.io, kind: ServiceImport, name: web";
    let mut files = Files::new(&[("import.yaml", IMPORT), ("route.yaml", &route("shop", import))]);
    let found = compiled(&mut files);
    assert_eq!(routes(&found, "service/shop/web.clusterset:80"), ["HTTPRoute/shop/web"]);
    let backend = |compiled: &Compiled, route: &str| {
        let mut made = v1::Route::decode(&*compiled.get(route).unwrap().bytes).unwrap();
        made.rules.remove(0).backends.remove(0)
    };
    let own = backend(&found, "HTTPRoute/shop/web");
    assert_eq!((own.service.as_str(), own.invalid.as_str()), ("service/shop/web.clusterset:80", ""));
    // A route on a ServiceImport says nothing of the Service of that name.
    files.write("others.yaml", OTHERS);
    assert!(routes(&compiled(&mut files), "service/shop/web:80").is_empty());
    // Of another namespace each of the two needs a grant of its own kind, but to its parent a route needs none.
    files.write("import.yaml", &IMPORT.replace("name: web,", "name: far,"));
    for (backend_ref, to, granted) in [
        ("group: multicluster.x-k8s.io, kind: ServiceImport, name: far", "group: '', kind: Service", false),
        ("group: multicluster.x-k8s.io, kind: ServiceImport, name: far", "group: '', kind: Service, name: far", false),
        (
            "group: multicluster.x-k8s.io, kind: ServiceImport, name: far",
            "group: multicluster.x-k8s.io, kind: ServiceImport",
            true,
        ),
        (
            "group: multicluster.x-k8s.io, kind: ServiceImport, name: far",
            "group: multicluster.x-k8s.io, kind: ServiceImport, name: far",
            true,
        ),
        ("name: web", "group: multicluster.x-k8s.io, kind: ServiceImport", false),
        ("name: web", "group: '', kind: Service", true),
    ] {
        files.write("route.yaml", &route("market", backend_ref));
        files.write("grant.yaml", &grant(to));
        let found = backend(&compiled(&mut files), "HTTPRoute/market/web");
        assert_eq!(found.invalid.is_empty(), granted, "{backend_ref} by {to}: {}", found.invalid);
    }
}
