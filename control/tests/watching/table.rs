//! What services and slices mean.

use serde_json::{Value, json};
use weft_api::names;
use weft_api::wire::v1;
use weft_api::wire::v1::address::Target;

use super::cluster::{Cluster, endpoints, resource, waits};

/// What a service `web` of one port 80 comes to, from slices of `(family, ports, endpoints)`.
struct Row {
    name: &'static str,
    port: Value,
    slices: Vec<(&'static str, Value, Value)>,
    want: &'static [&'static str],
}

fn row(name: &'static str, endpoints: Value, want: &'static [&'static str]) -> Row {
    let slices = vec![("IPv4", json!([{"name": "http", "port": 8080}]), endpoints)];
    Row { name, port: json!({"name": "http", "port": 80}), slices, want }
}

fn one(ip: &str, conditions: Value) -> Value {
    json!({"addresses": [ip], "conditions": conditions})
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let (yes, no) = (json!({"ready": true}), json!({"ready": false}));
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let http = || json!([{"name": "http", "port": 8080}]);
    vec![
        row("nil-is-ready", json!([one("10.1.0.1", json!({}))]), &["10.1.0.1:8080"]),
        row("not-ready", json!([one("10.1.0.1", yes.clone()), one("10.1.0.2", no.clone())]), &["10.1.0.1:8080"]),
        row("nil-serving-is-ready", json!([one("10.1.0.1", json!({"ready": false, "terminating": true}))]), &[]),
        row("serving-alone-is-not-used", json!([one("10.1.0.1", json!({"ready": false, "serving": true}))]), &[]),
        row("serving-while-terminating", json!([one("10.1.0.1", leaving.clone())]), &["10.1.0.1:8080~"]),
        row(
            "not-while-one-is-ready",
            json!([one("10.1.0.1", leaving.clone()), one("10.1.0.2", yes.clone())]),
            &["10.1.0.2:8080"],
        ),
        // What the controller writes for publishNotReadyAddresses, also while the pod leaves.
        row(
            "publish-not-ready",
            json!([one("10.1.0.1", json!({"ready": true, "serving": false, "terminating": true}))]),
            &["10.1.0.1:8080~"],
        ),
        Row {
            slices: vec![
                ("IPv4", http(), json!([one("10.1.0.1", yes.clone()), one("10.1.0.2", no.clone())])),
                ("IPv4", http(), json!([one("10.1.0.2", yes.clone()), one("10.1.0.3", yes.clone())])),
                ("IPv4", http(), json!([one("10.1.0.1", leaving.clone())])),
            ],
            ..row("slices-and-duplicates", json!([]), &["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"])
        },
        Row {
            slices: vec![
                ("IPv4", http(), json!([one("10.1.0.1", yes.clone())])),
                ("IPv6", http(), json!([one("fd00::1", yes.clone())])),
            ],
            ..row("dual-stack", json!([]), &["10.1.0.1:8080", "[fd00::1]:8080"])
        },
        // A target port by name has as many numbers as the pods have.
        Row {
            port: json!({"name": "http", "port": 80, "targetPort": "web"}),
            slices: vec![
                (
                    "IPv4",
                    json!([{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}]),
                    json!([one("10.1.0.1", yes.clone())]),
                ),
                ("IPv4", json!([{"name": "http", "port": 8081}]), json!([one("10.1.0.2", yes.clone())])),
            ],
            ..row("named-target-port", json!([]), &["10.1.0.1:8080", "10.1.0.2:8081"])
        },
        Row {
            port: json!({"port": 80, "targetPort": 8080}),
            slices: vec![("IPv4", json!([{"port": 8080}]), json!([one("10.1.0.1", yes.clone())]))],
            ..row("numeric-target-port", json!([]), &["10.1.0.1:8080"])
        },
        Row {
            slices: vec![
                (
                    "IPv4",
                    json!([{"name": "http", "port": 8080, "protocol": "UDP"}]),
                    json!([one("10.1.0.1", yes.clone())]),
                ),
                ("IPv4", json!([{"name": "other", "port": 8080}]), json!([one("10.1.0.2", yes)])),
            ],
            ..row("other-ports-and-udp", json!([]), &[])
        },
        row(
            "two-conditions-false",
            json!([one("10.1.0.1", json!({"ready": false, "serving": false, "terminating": true}))]),
            &[],
        ),
        row("no-endpoints", json!([]), &[]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_conditions_of_endpoints_slices_and_ports() {
    let Some(cluster) = Cluster::open().await else { return };
    let mesh = cluster.control(cluster.addr).await;
    for row in rows() {
        cluster.namespace(row.name).await;
        cluster.service(row.name, "web", json!({"ports": [row.port]})).await;
        for (number, (family, ports, endpoints)) in row.slices.into_iter().enumerate() {
            cluster.slice(row.name, &format!("web-{number}"), family, ports, endpoints).await;
        }
        // A mark that comes behind all of it: nothing is under way any more.
        let (namespace, mark) = (row.name, format!("{}-mark", row.name));
        let nothing = json!([one("10.9.9.9", json!({}))]);
        cluster.slice(namespace, &mark, "IPv4", json!([{"name": "mark", "port": 1}]), nothing).await;
        let is_told = || {
            mesh.hub.compiled(|compiled| {
                let model = compiled.model();
                model.slices.contains_key(&name(namespace, &mark))
                    && model.services.contains_key(&name(namespace, "web"))
            })
        };
        waits(&format!("the mark of {namespace}"), is_told).await;
        let got = mesh.hub.compiled(|compiled| endpoints(compiled, namespace, 80));
        assert_eq!(got, row.want, "{namespace}");
        println!("ok  {namespace}: {got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn protocols_headless_services_external_names_and_pods() {
    let Some(cluster) = Cluster::open().await else { return };
    let mesh = cluster.control(cluster.addr).await;
    cluster.namespace("kinds").await;
    let port = |name: &str, port: u16, app: Option<&str>| json!({"name": name, "port": port, "appProtocol": app});
    let ports = json!([
        port("a", 1, Some("kubernetes.io/h2c")),
        port("b", 2, Some("kubernetes.io/ws")),
        port("c", 3, Some("https")),
        port("grpc-d", 4, None),
        port("http-e", 5, None),
        port("f", 6, None),
        port("http-g", 7, Some("redis")),
    ]);
    cluster.service("kinds", "web", json!({"ports": ports})).await;
    cluster.service("kinds", "out", json!({"type": "ExternalName", "externalName": "example.com."})).await;
    cluster.service("kinds", "db", json!({"clusterIP": "None", "ports": [{"port": 5432}]})).await;
    cluster.pod("kinds", "db-0", "web", "10.2.0.1").await;
    let path = "/apis/discovery.k8s.io/v1/namespaces/kinds/endpointslices";
    let member = json!({"addresses": ["10.2.0.1"], "hostname": "db-0", "targetRef": {"kind": "Pod", "name": "db-0", "namespace": "kinds"}});
    let metadata = json!({"name": "db-x", "labels": {"kubernetes.io/service-name": "db"}});
    cluster
        .post(
            path,
            json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 5432}], "endpoints": [member]}),
        )
        .await;

    let protocol = |port| {
        mesh.hub.compiled(|compiled| {
            resource::<v1::Service>(compiled, &names::service("kinds", "web", port)).map(|service| service.protocol())
        })
    };
    waits("the service of many ports", || protocol(7).is_some()).await;
    let (one, two, tcp, detect) = (v1::Protocol::Http1, v1::Protocol::Http2, v1::Protocol::Tcp, v1::Protocol::Detect);
    assert_eq!((1..=7).map(|port| protocol(port).unwrap()).collect::<Vec<_>>(), [two, one, tcp, two, one, detect, tcp]);

    let address = |name: &str| {
        let found = mesh.hub.compiled(|compiled| compiled.address(name));
        <v1::Address as prost::Message>::decode(&*found.bytes).unwrap().target.unwrap()
    };
    let is_out = |target: &Target| matches!(target, Target::Service(name) if name == "service/kinds/out:443");
    waits("the external name", || is_out(&address("out.kinds:443"))).await;
    let out = mesh.hub.compiled(|compiled| compiled.model().services[&name("kinds", "out")].clone());
    assert_eq!(out.external_name.as_deref(), Some("example.com"));
    let is_member =
        |target: &Target| matches!(target, Target::HeadlessMember(member) if member.identity == "/ns/kinds/sa/web");
    waits("the headless member", || is_member(&address("db-0.db.kinds:5432"))).await;
    let is_pod = |target: &Target| matches!(target, Target::Workload(pod) if pod.workload == "kinds/db-0");
    assert!(is_pod(&address("10.2.0.1:5432")), "a pod's own address is that pod");
    println!("ok  appProtocol and port names, ExternalName, headless members, pods by their own address");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_endpoints_are_and_for_whom() {
    let Some(cluster) = Cluster::open().await else { return };
    let mesh = cluster.control(cluster.addr).await;
    cluster.namespace("near").await;
    let port = json!([{"name": "http", "port": 80}]);
    cluster.service("near", "web", json!({"ports": port, "trafficDistribution": "PreferClose"})).await;
    let one = json!({"addresses": ["10.3.0.1"], "nodeName": "n1", "zone": "a"});
    let two = json!({"addresses": ["10.3.0.2"], "nodeName": "n2", "zone": "b", "hints": {"forZones": [{"name": "a"}]}});
    let ports = json!([{"name": "http", "port": 8080}]);
    cluster.slice("near", "web-0", "IPv4", ports, json!([one, two])).await;
    let told = |last: u8| {
        let name = format!("{}/10.3.0.{last}", names::endpoints_of(&names::service("near", "web", 80)));
        let found = mesh.hub.compiled(|compiled| resource::<v1::Endpoint>(compiled, &name))?;
        Some((found.node, found.for_nodes.join(" "), found.for_zones.join(" ")))
    };
    let text = |words: [&str; 3]| Some(words.map(str::to_owned).into());
    // What the controller has not hinted is for its own zone, as the service wants it.
    waits("the endpoints' places", || told(1) == text(["n1", "", "a"]) && told(2) == text(["n2", "", "a"])).await;
    println!("ok  nodeName, zones, hints and trafficDistribution");

    let spec = json!({"ports": port, "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"});
    cluster.service("near", "own", spec).await;
    let own = || mesh.hub.compiled(|compiled| resource::<v1::Service>(compiled, &names::service("near", "own", 80)));
    waits("the service of neighbours", || own().is_some_and(|own| own.node_local && own.sticky)).await;
    println!("ok  internalTrafficPolicy: Local and sessionAffinity: ClientIP");

    let zone = json!({"topology.kubernetes.io/zone": "a"});
    cluster.post("/api/v1/nodes", json!({"metadata": {"name": "n1", "labels": zone}})).await;
    cluster.pod("near", "client", "default", "10.3.0.9").await;
    let bind = json!({"target": {"kind": "Node", "name": "n1"}});
    cluster
        .post(
            "/api/v1/namespaces/near/pods/client/binding",
            json!({"metadata": {"name": "client"}, "target": bind["target"]}),
        )
        .await;
    let place = || {
        let found = mesh.hub.compiled(|compiled| resource::<v1::Workload>(compiled, "workload/near/client"))?;
        Some((found.node, found.zone))
    };
    waits("the client's place", || place() == Some(("n1".to_owned(), "a".to_owned()))).await;
    println!("ok  a pod is in the zone of its node");
}

fn name(namespace: &str, name: &str) -> weft_control::model::Name {
    weft_control::model::Name::new(namespace, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_followed_when_their_kind_is_installed_and_broken_ones_close() {
    let Some(cluster) = Cluster::open().await else { return };
    // Its kind is not installed yet: control is complete all the same.
    let mesh = cluster.control(cluster.addr).await;
    let crds = include_str!("../../../deploy/crds/weft.dev.yaml");
    for document in crds.split("---\n").filter(|document| !document.trim().is_empty()) {
        let request = http::Request::post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions");
        let request = request.header("content-type", "application/yaml").body(document.as_bytes().to_vec()).unwrap();
        cluster.admin.request::<Value>(request).await.unwrap();
    }
    cluster.namespace("pay").await;
    let path = "/apis/weft.dev/v1alpha1/namespaces/pay/authorizationpolicies";
    let policy = || {
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "pay"},
            "spec": {"action": "Allow", "acton": "Deny", "targetRefs": [{"kind": "Service", "name": "pay"}], "rules": [{"from": [{"namespaces": ["shop"]}]}]}})
    };
    cluster.post_at_last(path, policy()).await;
    let found = || mesh.hub.compiled(|compiled| compiled.model().authorization.get(&name("pay", "pay")).cloned());
    waits("the broken policy", || found().is_some()).await;
    let invalid = found().unwrap().policy.invalid;
    assert!(invalid.starts_with("AuthorizationPolicy/pay/pay:spec.acton: unknown field `acton`"), "{invalid}");
    let one = format!("{path}/pay");
    cluster.patch(&one, json!({"spec": {"acton": null}})).await;
    waits("the policy", || found().unwrap().policy.invalid.is_empty()).await;
    let good = found().unwrap().policy;
    assert_eq!(good.rules[0].source, "AuthorizationPolicy/pay/pay:spec.rules[0]");
    // Broken again, and its status written: what was good stays, to the byte.
    cluster.patch(&one, json!({"spec": {"acton": "Deny"}})).await;
    cluster.patch(&format!("{one}/status"), json!({"status": {"conditions": []}})).await;
    cluster.namespace("pay-mark").await;
    waits("the mark", || mesh.hub.compiled(|compiled| compiled.model().namespaces.contains_key("pay-mark"))).await;
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_source_state{state=\"synced\"} 1"), "{text}");
    assert_eq!(found().unwrap().policy, good);
    cluster.delete(&one).await;
    waits("the policy to be gone", || found().is_none()).await;
    println!("ok  policies of a kind that is installed later; a broken one closes, or stays as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_imports_are_services_of_their_own() {
    let Some(cluster) = Cluster::open().await else { return };
    let mesh = cluster.control(cluster.addr).await;
    let group = "multicluster.x-k8s.io";
    cluster.define(group, "v1alpha1", "ServiceImport", "serviceimports").await;
    cluster.namespace("far").await;
    let path = format!("/apis/{group}/v1alpha1/namespaces/far/serviceimports");
    let spec = json!({"type": "ClusterSetIP", "ips": ["10.112.0.7"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    let import = json!({"apiVersion": format!("{group}/v1alpha1"), "kind": "ServiceImport", "metadata": {"name": "web"}, "spec": spec});
    cluster.post_at_last(&path, import).await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/far/endpointslices";
    let metadata = json!({"name": "web-east", "labels": {"multicluster.kubernetes.io/service-name": "web"}});
    let endpoints = json!([one("10.4.0.1", json!({}))]);
    let ports = json!([{"name": "http", "port": 8080}]);
    cluster
        .post(slices, json!({"metadata": metadata, "addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
        .await;
    let head = names::endpoints_of(&names::service("far", &names::imported("web"), 80));
    let members = || mesh.hub.compiled(|compiled| compiled.collection(&head).map(|set| set.members.len()));
    waits("the import's endpoint", || members() == Some(1)).await;
    for address in ["10.112.0.7:80", "web.far.svc.clusterset.local:80"] {
        let found = mesh.hub.compiled(|compiled| compiled.address(address));
        let found = <v1::Address as prost::Message>::decode(&*found.bytes).unwrap().target.unwrap();
        assert!(matches!(&found, Target::Service(name) if names::endpoints_of(name) == head), "{address}: {found:?}");
    }
    cluster.delete(&format!("{path}/web")).await;
    waits("the import to be gone", || members().is_none()).await;
    println!("ok  ServiceImports, of a kind that is installed later");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_followed_and_what_others_write_into_them_sends_nothing() {
    let Some(cluster) = Cluster::open().await else { return };
    let mesh = cluster.control(cluster.addr).await;
    let group = "gateway.networking.k8s.io";
    cluster.define(group, "v1", "HTTPRoute", "httproutes").await;
    cluster.namespace("routes").await;
    for service in ["web", "other"] {
        cluster.service("routes", service, json!({"ports": [{"name": "http", "port": 80}]})).await;
    }
    let path = format!("/apis/{group}/v1/namespaces/routes/httproutes");
    let parent = json!({"group": "", "kind": "Service", "name": "web"});
    let rules = json!([{"backendRefs": [{"name": "other", "port": 80}]}]);
    let route = json!({"apiVersion": format!("{group}/v1"), "kind": "HTTPRoute", "metadata": {"name": "web"},
        "spec": {"parentRefs": [parent], "rules": rules}});
    cluster.post_at_last(&path, route).await;
    let object = names::object("HTTPRoute", "routes", "web");
    let found = || mesh.hub.compiled(|compiled| compiled.get(&object).map(|found| found.version.clone()));
    waits("the route", || found().is_some()).await;
    let attached = mesh
        .hub
        .compiled(|compiled| resource::<v1::Service>(compiled, &names::service("routes", "web", 80)).unwrap().routes);
    assert_eq!(attached, std::slice::from_ref(&object));
    let before = found();
    cluster.patch(&format!("{path}/web"), json!({"metadata": {"labels": {"a": "b"}}})).await;
    cluster.patch(&format!("{path}/web/status"), json!({"status": {"parents": []}})).await;
    cluster.patch(&format!("{path}/web"), json!({"metadata": {"annotations": {"c": "d"}}})).await;
    cluster.namespace("routes-mark").await;
    waits("the mark", || mesh.hub.compiled(|compiled| compiled.model().namespaces.contains_key("routes-mark"))).await;
    assert_eq!(found(), before);
    cluster.delete(&format!("{path}/web")).await;
    waits("the route to be gone", || found().is_none()).await;
    println!("ok  routes; what others write into them sends nothing");
}
