//! What control does with fewer rights than docs/kubernetes.md lists. The script has installed the kinds of Gateway API and ours, and no others.

use std::time::{Duration, Instant};

use http::Request;
use serde_json::{Value, json};

use super::cluster::{Cluster, waits};
use crate::common::Mesh;

const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/weft-source";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/rights/tcproutes";

/// Takes the right to a kind away, or gives it back with the rest; returns once the API server acts so.
async fn may(cluster: &Cluster, role: &Value, without: Option<&str>, path: &str) {
    let mut rules = role["rules"].clone();
    for rule in rules.as_array_mut().unwrap() {
        rule["resources"].as_array_mut().unwrap().retain(|resource| resource.as_str() != without);
    }
    rules.as_array_mut().unwrap().retain(|rule| !rule["resources"].as_array().unwrap().is_empty());
    cluster.patch(ROLE, json!({ "rules": rules })).await;
    let own = cluster.own().await;
    let begun = Instant::now();
    loop {
        let answer = own.request::<Value>(Request::get(path).body(Vec::new()).unwrap()).await;
        let forbidden = matches!(&answer, Err(kube::Error::Api(status)) if status.code == 403);
        if forbidden == without.is_some() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{path}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a page says it.
async fn says(mesh: &Mesh, page: &str, wanted: &str) {
    let begun = Instant::now();
    loop {
        let text = mesh.get(page).await;
        if text.contains(wanted) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "{page} does not say {wanted}:\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_needed_is_waited_for_and_what_can_be_spared_is_not() {
    let Some(cluster) = Cluster::open().await else { return };
    let role = cluster.get(ROLE).await;
    cluster.namespace("rights").await;
    let (group, ours) = ("/apis/gateway.networking.k8s.io/v1", "/apis/weft.dev/v1alpha1");

    may(&cluster, &role, Some("serviceimports"), "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports").await;
    let mesh = cluster.control(cluster.addr).await;
    let status = mesh.json("/debug/status").await;
    assert!(status["ready"] == true && status["sources"]["forbidden"] == json!([]), "{status}");
    drop(mesh);
    println!("ok  a kind that may not be read, and is not installed, is missed by nobody");

    may(&cluster, &role, Some("tcproutes"), &format!("{group}/tcproutes")).await;
    let mesh = cluster.control(cluster.addr).await;
    says(&mesh, "/healthz/ready", "200 OK").await;
    let sentence = "control may not list and watch tcproutes.gateway.networking.k8s.io: connections go as if";
    says(&mesh, "/debug/status", sentence).await;
    says(&mesh, "/metrics", "weft_control_source_forbidden{kind=\"TCPRoute\"} 1").await;
    says(&mesh, "/metrics", "weft_control_source_state{state=\"synced\"} 1").await;
    println!("ok  without TCPRoutes control begins, and says what it lacks");
    let parents = json!([{"group": "", "kind": "Service", "name": "db"}]);
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "TCPRoute", "metadata": {"name": "db"},
        "spec": {"parentRefs": parents, "rules": [{"name": "all", "backendRefs": [{"name": "db", "port": 80}]}]}});
    cluster.post_at_last(ROUTES, route).await;
    may(&cluster, &role, None, &format!("{group}/tcproutes")).await;
    let is_there = || mesh.hub.compiled(|compiled| compiled.model().routes.keys().any(|(kind, _)| kind == "TCPRoute"));
    waits("the route", is_there).await;
    says(&mesh, "/metrics", "weft_control_source_forbidden{kind=\"TCPRoute\"} 0").await;
    drop(mesh);
    println!("ok  given the right, it follows them");

    may(&cluster, &role, Some("authorizationpolicies"), &format!("{ours}/authorizationpolicies")).await;
    let mesh = cluster.begins().await;
    let sentence =
        "control may not list and watch authorizationpolicies.weft.dev: whom these policies deny would be let in";
    says(&mesh, "/healthz/ready", sentence).await;
    let page = mesh.get("/healthz/ready").await;
    assert!(page.contains("503 Service Unavailable") && page.contains("docs/kubernetes.md"), "{page}");
    says(&mesh, "/debug/status", sentence).await;
    assert!(!*mesh.hub.loaded().borrow());
    println!("ok  without AuthorizationPolicies nobody is answered, and it is said why");
    may(&cluster, &role, None, &format!("{ours}/authorizationpolicies")).await;
    waits("control to serve", || *mesh.hub.loaded().borrow()).await;
    println!("ok  given that right too, it serves");
    cluster.delete(&format!("{ROUTES}/db")).await;
}
