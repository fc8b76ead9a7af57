//! What a proxy holds, what a change costs, and how soon it is there.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use http::Method;
use weft::lab::sum;
use weft_tests::client::{get, request, try_send};
use weft_tests::{Mesh, Service, Trial, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("discovery_a_proxy_holds_what_it_has_called", a_proxy_holds_what_it_has_called),
        test("discovery_an_endpoint_costs_one_small_resource", an_endpoint_costs_one_small_resource),
        test("discovery_an_unknown_name_is_answered_at_once", an_unknown_name_is_answered_at_once),
        test("discovery_a_config_map_swap_is_applied_within_a_second", a_config_map_swap),
        test("discovery_an_editors_rename_is_applied_within_a_second", an_editors_rename),
    ]
}

/// Addresses that a proxy holds.
const HELD: &str = "weft_discovery_addresses";

fn a_proxy_holds_what_it_has_called() {
    let mut mesh = Mesh::new();
    let mut crowd = String::new();
    for number in 0..298 {
        let [high, low] = (number as u16 + 1000).to_be_bytes();
        let _ = write!(
            crowd,
            "---
apiVersion: v1
kind: Service
metadata: {{name: crowd-{number}, namespace: shop}}
spec: {{clusterIP: 10.96.{high}.{low}, ports: [{{name: main, port: 80, targetPort: 8080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: crowd-{number}-1, namespace: shop, labels: {{kubernetes.io/service-name: crowd-{number}}}}}
addressType: IPv4
ports: [{{name: main, port: 8080, protocol: TCP}}]
endpoints: [{{addresses: [10.245.{high}.{low}], conditions: {{ready: true}}}}]
"
        );
    }
    mesh.write("crowd.yaml", &crowd);
    mesh.deploy(Service::http("web")).deploy(Service::http("cart")).client("client");
    for service in ["web", "cart"] {
        assert_eq!(get(mesh.pod("client-0"), mesh.address(service), "/").outcome(), (200, ""));
    }
    let known = mesh.control_metrics();
    assert!(sum(&known, "weft_control_resources", &["type=\"Service\""]) >= 300.0, "{known}");
    let held = mesh.metric("client-0", HELD, &[]);
    assert!((held - 2.0).abs() < f64::EPSILON, "the proxy holds {held} addresses after two calls");
}

fn an_endpoint_costs_one_small_resource() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(3)).deploy(Service::http("cart")).client("client").client("other");
    let slice = mesh.slice_apart("web");
    assert_eq!(get(mesh.pod("client-0"), mesh.address("web"), "/").outcome(), (200, ""));
    assert_eq!(get(mesh.pod("other-0"), mesh.address("cart"), "/").outcome(), (200, ""));
    // The newest pod joins: web-2 was not ready, then is.
    let last = slice.rfind("ready: true").unwrap();
    let without = format!("{}ready: false{}", &slice[..last], &slice[last + "ready: true".len()..]);
    let until_endpoints = |mesh: &Mesh, wanted: f64| {
        mesh.until(&format!("{wanted} endpoints to be known"), || {
            let known = mesh.metric("client-0", "weft_discovery_resources", &["type=\"Endpoint\""]);
            if (known - wanted).abs() < f64::EPSILON { Ok(()) } else { Err(format!("{known} are known")) }
        });
    };
    until_endpoints(&mesh, 3.0);
    mesh.write("web-slice.yaml", &without);
    until_endpoints(&mesh, 2.0);
    let counters =
        ["weft_control_pushed_resources_total", "weft_control_pushed_bytes_total", "weft_control_pushes_total"];
    let before = counters.map(|name| mesh.control_metric(name, &[]));
    mesh.write("web-slice.yaml", &slice);
    until_endpoints(&mesh, 3.0);
    let after = counters.map(|name| mesh.control_metric(name, &[]));
    let [resources, bytes, pushes] = [0, 1, 2].map(|index| after[index] - before[index]);
    assert!((resources - 1.0).abs() < f64::EPSILON, "{resources} resources were sent for one endpoint");
    assert!((pushes - 1.0).abs() < f64::EPSILON, "{pushes} proxies were told, one uses it");
    assert!(bytes > 0.0 && bytes < 300.0, "{bytes} bytes were sent for one endpoint");
}

fn an_unknown_name_is_answered_at_once() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    let pod = mesh.pod("client-0");
    assert_eq!(get(pod, mesh.address("web"), "/").outcome(), (200, ""));
    // An address among the pods' that control knows nothing of, asked about for the first time.
    let unknown = mesh.lab.plain_pod("elsewhere", "unknown", None).unwrap();
    let _app = unknown.weft("app", ["app", "http", "--listen=0.0.0.0:8080"]).unwrap();
    let to = SocketAddr::from((unknown.ip(), 8080));
    let local = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 8080));
    mesh.until("the stranger to listen", || unknown.connect(local).map_err(|error| error.to_string()));
    let start = Instant::now();
    let answer = try_send(pod, to, request(Method::GET, "nosuch.shop", "/", &[])).unwrap();
    let took = start.elapsed();
    assert_eq!(answer.outcome(), (200, ""), "{answer:?}");
    assert!(took < Duration::from_millis(100), "answered after {took:?}");
}

fn deny(path: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: no, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  action: Deny
  rules: [{{to: [{{paths: ['{path}']}}]}}]
"
    )
}

/// Waits until `path` is denied, and says how long that took.
fn denied(mesh: &Mesh, path: &str) -> Duration {
    let start = Instant::now();
    mesh.until("the policy to take effect", || match get(mesh.pod("client-0"), mesh.address("web"), path).outcome() {
        (403, "denied_by_policy") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    start.elapsed()
}

fn a_config_map_swap() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    // As the kubelet lays a ConfigMap: data in a dated folder, a link to the folder, and links by way of that one.
    let map = mesh.files.join("map");
    let lay = |folder: &str, text: &str| {
        std::fs::create_dir_all(map.join(folder)).unwrap();
        std::fs::write(map.join(folder).join("policy.yaml"), text).unwrap();
        symlink(folder, map.join("..data_tmp")).unwrap();
        std::fs::rename(map.join("..data_tmp"), map.join("..data")).unwrap();
    };
    lay("..2026_1", &deny("/one"));
    symlink("..data/policy.yaml", map.join("policy.yaml")).unwrap();
    denied(&mesh, "/one");
    lay("..2026_2", &deny("/two"));
    std::fs::remove_dir_all(map.join("..2026_1")).unwrap();
    let took = denied(&mesh, "/two");
    assert!(took < Duration::from_secs(1), "a swap took {took:?}");
    assert_eq!(get(mesh.pod("client-0"), mesh.address("web"), "/one").outcome(), (200, ""));
}

fn an_editors_rename() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    mesh.write("policy.yaml", &deny("/one"));
    denied(&mesh, "/one");
    mesh.write("policy.yaml", &deny("/two"));
    let took = denied(&mesh, "/two");
    assert!(took < Duration::from_secs(1), "a rename took {took:?}");
    // And a file that goes takes its objects with it.
    std::fs::remove_file(mesh.files.join("policy.yaml")).unwrap();
    mesh.until("the policy to be gone", || match get(mesh.pod("client-0"), mesh.address("web"), "/two").outcome() {
        (200, "") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
