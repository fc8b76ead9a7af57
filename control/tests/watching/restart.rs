//! What control still knows after a restart of objects that are broken by then. The script has installed the kinds of Gateway API and ours.

use serde_json::{Value, json};
use weft_control::model::Name;

use super::cluster::{Cluster, waits};
use crate::common::Mesh;

const POLICIES: &str = "/apis/weft.dev/v1alpha1/namespaces/kept/authorizationpolicies";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/kept/httproutes";

fn policy(name: &str) -> Value {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": name},
        "spec": {"action": "Allow", "targetRefs": [{"kind": "Service", "name": name}], "rules": [{"from": [{"namespaces": ["kept"]}]}]}})
}

/// A field that nobody knows: the API server keeps it, and control refuses it.
fn misspelt() -> Value {
    json!({"spec": {"acton": "Deny"}})
}

/// What is wrong with a policy as it is in force; empty: nothing; `None`: there is none.
fn invalid(mesh: &Mesh, name: &str) -> Option<String> {
    let name = Name::new("kept", name);
    mesh.hub.compiled(|compiled| Some(compiled.model().authorization.get(&name)?.policy.invalid.clone()))
}

fn routes(mesh: &Mesh) -> usize {
    mesh.hub.compiled(|compiled| compiled.model().routes.keys().filter(|(_, name)| name.namespace == "kept").count())
}

/// Waits until so many objects are broken.
async fn broken(mesh: &Mesh, count: usize) {
    let said = format!("weft_control_source_problems {count}\n");
    let begun = std::time::Instant::now();
    while !mesh.get("/metrics").await.contains(&said) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(40), "there are not {count} broken objects");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_good_outlives_control() {
    let Some(cluster) = Cluster::open().await else { return };
    cluster.namespace("kept").await;
    for name in ["pay", "gone"] {
        cluster.post_at_last(POLICIES, policy(name)).await;
    }
    let parents = json!([{"group": "", "kind": "Service", "name": "pay"}]);
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "pay"},
        "spec": {"parentRefs": parents, "rules": [{"backendRefs": [{"name": "pay", "port": 80}]}]}});
    cluster.post_at_last(ROUTES, route).await;
    let state = tempfile::tempdir().unwrap();
    let mut mesh = cluster.control_keeping(Some(state.path())).await;
    let all = |mesh: &Mesh| invalid(mesh, "pay").is_some() && invalid(mesh, "gone").is_some() && routes(mesh) == 1;
    waits("the objects", || all(&mesh)).await;
    let good = mesh.hub.compiled(|compiled| compiled.model().clone());
    cluster.patch(&format!("{POLICIES}/pay"), misspelt()).await;
    broken(&mesh, 1).await;
    assert_eq!(invalid(&mesh, "pay").as_deref(), Some(""));
    let kept = state.path().join("cluster-objects");
    let text = || String::from_utf8_lossy(&std::fs::read(&kept).unwrap_or_default()).into_owned();
    waits("all three to be kept", || ["pay", "gone"].iter().all(|name| text().contains(name))).await;
    mesh.kill().await;

    // The route is broken while no control looks; a policy is deleted, and made again, broken.
    let extension =
        json!({"type": "ExtensionRef", "extensionRef": {"group": "example.com", "kind": "Filter", "name": "f"}});
    let filtered = json!([{"filters": [extension], "backendRefs": [{"name": "pay", "port": 80}]}]);
    cluster.patch(&format!("{ROUTES}/pay"), json!({"spec": {"rules": filtered}})).await;
    cluster.delete(&format!("{POLICIES}/gone")).await;
    let mut again = policy("gone");
    again["spec"]["acton"] = "Deny".into();
    cluster.post(POLICIES, again).await;

    let mesh = cluster.control_keeping(Some(state.path())).await;
    broken(&mesh, 3).await;
    assert_eq!(invalid(&mesh, "pay").as_deref(), Some(""), "the last good version is in force");
    let now = mesh.hub.compiled(|compiled| compiled.model().clone());
    let pay = Name::new("kept", "pay");
    assert_eq!(now.authorization[&pay], good.authorization[&pay]);
    assert_eq!((&now.routes, routes(&mesh)), (&good.routes, 1));
    println!("ok  after a restart a broken policy and a broken route are what they were before it");
    assert!(invalid(&mesh, "gone").is_some_and(|why| why.contains("unknown field `acton`")));
    println!("ok  one that was deleted meanwhile, and made again broken, closes its target");

    let without = cluster.control_keeping(None).await;
    assert!(invalid(&without, "pay").is_some_and(|why| why.contains("unknown field `acton`")) && routes(&without) == 0);
    println!("ok  without a state directory a policy that is broken at the start closes its target");
    for path in [format!("{POLICIES}/pay"), format!("{POLICIES}/gone"), format!("{ROUTES}/pay")] {
        cluster.delete(&path).await;
    }
}
