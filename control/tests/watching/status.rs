//! What people are told on their objects. The script has installed the kinds of Gateway API and ours.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use weft_api::names::ResourceType;
use weft_api::wire::v1;
use weft_control::status::{CONTROLLER, PROGRAMMED, Settings};

use super::cluster::Cluster;
use crate::common::{Mesh, Proxy};

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";
const WEB: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web";
const POLICIES: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/authorizationpolicies";
const LIMITS: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/ratelimitpolicies";
const PAY: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/authorizationpolicies/pay";
const OBJECT: &str = "HTTPRoute/shop/web";
/// A refusal has to be seen within this.
const SEEN: Duration = Duration::from_secs(2);

fn settings() -> Settings {
    Settings { namespace: "weft-system".to_owned() }
}

/// A proxy that acknowledges everything, but the route while it refuses that.
struct Sidecar {
    refuses: Arc<AtomicBool>,
    /// When it refused last.
    refused: Arc<parking_lot::Mutex<Option<Instant>>>,
    _runs: AbortOnDropHandle<()>,
}

async fn sidecar(mesh: &Mesh, pod: &str) -> Sidecar {
    sidecar_at(mesh, mesh.listen, pod).await
}

/// One that calls this replica.
async fn sidecar_at(mesh: &Mesh, listen: SocketAddr, pod: &str) -> Sidecar {
    let svid = mesh.svid("cart", Duration::from_mins(10));
    let mut proxy = Proxy::open(mesh.channel_to(listen, Some(&svid)).await, pod, &[]).await.unwrap();
    proxy.next().await;
    proxy.ask(v1::Address::TYPE_URL, &["web.shop:80"]).await;
    let (refuses, refused) = (Arc::<AtomicBool>::default(), Arc::<parking_lot::Mutex<Option<Instant>>>::default());
    let (whether, when) = (Arc::clone(&refuses), Arc::clone(&refused));
    let runs = tokio::spawn(async move {
        while let Ok(Some(response)) = proxy.incoming.message().await {
            if whether.load(Relaxed) && response.resources.iter().any(|found| found.name == OBJECT) {
                *when.lock() = Some(Instant::now());
                proxy.refuse(&response, OBJECT).await;
            } else {
                proxy.ack(&response).await;
            }
        }
    });
    Sidecar { refuses, refused, _runs: AbortOnDropHandle::new(runs) }
}

fn to(backends: Value) -> Value {
    json!({"spec": {"rules": [{ "backendRefs": backends }]}})
}

/// Our entry; nothing where there is none.
fn ours(object: &Value) -> &Value {
    let parents = object["status"]["parents"].as_array().map_or(&[][..], Vec::as_slice);
    let of_route = parents.iter().find(|entry| entry["controllerName"] == CONTROLLER).map(|entry| &entry["conditions"]);
    of_route.unwrap_or(&object["status"]["conditions"])
}

/// `STATUS REASON: MESSAGE` of a condition, if it is about the object as it is now.
fn said(object: &Value, kind: &str) -> String {
    let conditions = ours(object).as_array().map_or(&[][..], Vec::as_slice);
    let Some(found) = conditions.iter().find(|found| found["type"] == kind) else { return "nothing".to_owned() };
    if found["observedGeneration"] != object["metadata"]["generation"] {
        return "of another generation".to_owned();
    }
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    format!("{} {}: {}", text("status"), text("reason"), text("message"))
}

/// Waits until the conditions say all of this.
async fn says(cluster: &Cluster, path: &str, wanted: &[(&str, &str)]) -> Value {
    let begun = Instant::now();
    loop {
        let object = cluster.get(path).await;
        if wanted.iter().all(|(kind, wanted)| said(&object, kind).starts_with(wanted)) {
            return object;
        }
        let now: Vec<String> = wanted.iter().map(|(kind, _)| said(&object, kind)).collect();
        assert!(begun.elapsed() < Duration::from_secs(30), "{path} says {now:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn scene(cluster: &Cluster) {
    cluster.namespace("shop").await;
    cluster.namespace("other").await;
    let port = json!({"ports": [{"name": "http", "port": 80}]});
    for (namespace, service) in [("shop", "web"), ("shop", "v2"), ("other", "v3")] {
        cluster.service(namespace, service, port.clone()).await;
    }
    for pod in 1..=3 {
        cluster.pod("shop", &format!("cart-{pod}"), "cart", &format!("10.3.1.{pod}")).await;
    }
    let parents = json!([{"name": "a-gateway"}, {"group": "", "kind": "Service", "name": "web"}]);
    let rules = json!([{"backendRefs": [{"name": "v2", "port": 80}]}]);
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
        "spec": {"parentRefs": parents, "rules": rules}});
    cluster.post_at_last(ROUTES, route).await;
    let theirs = json!({"type": "Accepted", "status": "True", "reason": "Theirs", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"});
    let entry =
        json!({"controllerName": "example.com/gateway", "parentRef": {"name": "a-gateway"}, "conditions": [theirs]});
    cluster.patch(&format!("{WEB}/status"), json!({"status": {"parents": [entry]}})).await;
}

const ATTACHED: (&str, &str) = ("Accepted", "True Accepted: attached to Service shop/web");
const RESOLVED: (&str, &str) = ("ResolvedRefs", "True ResolvedRefs: ");
const ALL: (&str, &str) = (PROGRAMMED, "True Programmed: applied by 3 of 3 proxies");

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_an_object_is_on_it() {
    let Some(cluster) = Cluster::open().await else { return };
    scene(&cluster).await;
    let mut mesh = cluster.control_with(cluster.addr, Some(settings())).await;
    let mut sidecars = Vec::new();
    for pod in ["cart-1", "cart-2", "cart-3"] {
        sidecars.push(sidecar(&mesh, pod).await);
    }
    let object = says(&cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;
    assert_eq!(object["status"]["parents"][0]["conditions"][0]["reason"], "Theirs");
    println!("ok  all is well: {}; the entry of another controller is as it was", said(&object, PROGRAMMED));

    refusal(&cluster, &mesh, &sidecars[2]).await;
    two_replicas(&cluster, &mesh).await;
    references(&cluster).await;
    faults(&cluster).await;

    // Somebody removes what we said.
    cluster.patch(&format!("{WEB}/status"), json!({"status": {"parents": []}})).await;
    says(&cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;
    println!("ok  a status that somebody removed is written again");

    let text = mesh.get("/metrics").await;
    let of = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok()).unwrap_or_default()
    };
    let (ok, failed) =
        ("weft_control_status_writes_total{outcome=\"ok\"}", "weft_control_status_writes_total{outcome=\"failed\"}");
    assert_eq!((of(&text, failed), of(&text, "weft_control_lease_errors_total{lease=\"leader\"}")), (0, 0), "{text}");
    println!("ok  {} writes, none refused, with the rights of docs/kubernetes.md alone", of(&text, ok));

    // A second control writes nothing, until the first is killed.
    let second = cluster.control_with(cluster.addr, Some(settings())).await;
    cluster.patch(WEB, to(json!([{"name": "v8", "port": 80}]))).await;
    says(&cluster, WEB, &[("ResolvedRefs", "False BackendNotFound")]).await;
    assert_eq!(of(&second.get("/metrics").await, ok), 0);
    mesh.kill().await;
    let killed = Instant::now();
    cluster.patch(WEB, to(json!([{"name": "v2", "port": 80}]))).await;
    says(&cluster, WEB, &[ATTACHED, RESOLVED]).await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(19), "{took:?}");
    assert!(of(&second.get("/metrics").await, ok) >= 1);
    println!("ok  of two controls one writes; killed, it is followed by the other after {:.1} s", took.as_secs_f64());
}

/// One of three proxies refuses a route that two take.
async fn refusal(cluster: &Cluster, mesh: &Mesh, third: &Sidecar) {
    let runs = || async {
        let tables = mesh.json("/debug/tables?workload=shop/cart-3").await;
        tables.as_array().unwrap().iter().find(|held| held["name"] == OBJECT).unwrap()["runs"].clone()
    };
    let before = runs().await;
    third.refuses.store(true, Relaxed);
    let edited = Instant::now();
    cluster.patch(WEB, to(json!([{"name": "v2", "port": 80, "weight": 3}]))).await;
    let refused = "False Refused: applied by 2 of 3 proxies, 1 refused: bad: no";
    says(cluster, WEB, &[ATTACHED, RESOLVED, (PROGRAMMED, refused)]).await;
    let seen = Instant::now();
    let nacked = third.refused.lock().unwrap();
    assert!(seen - edited < SEEN, "{:?}", seen - edited);
    assert_eq!(runs().await, before, "it keeps what it had");
    println!(
        "ok  a refusal by one proxy is on the route {} ms after it was said, {} ms after the edit; the proxy keeps its last good one",
        (seen - nacked).as_millis(),
        (seen - edited).as_millis()
    );
    third.refuses.store(false, Relaxed);
    cluster.patch(WEB, to(json!([{"name": "v2", "port": 80}]))).await;
    says(cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;
    println!("ok  and gone when it is mended");
}

/// Another replica has a proxy, which refuses a route that three take.
async fn two_replicas(cluster: &Cluster, mesh: &Mesh) {
    cluster.pod("shop", "cart-4", "cart", "10.3.1.4").await;
    let (other, _runs) = cluster.replica(mesh).await;
    let fourth = sidecar_at(mesh, other, "cart-4").await;
    let all = (PROGRAMMED, "True Programmed: applied by 4 of 4 proxies");
    says(cluster, WEB, &[ATTACHED, RESOLVED, all]).await;
    fourth.refuses.store(true, Relaxed);
    cluster.patch(WEB, to(json!([{"name": "v2", "port": 80, "weight": 5}]))).await;
    let refused = "False Refused: applied by 3 of 4 proxies, 1 refused: bad: no";
    says(cluster, WEB, &[ATTACHED, RESOLVED, (PROGRAMMED, refused)]).await;
    let nacked = fourth.refused.lock().unwrap().elapsed();
    assert!(nacked < SEEN, "{nacked:?}");
    println!("ok  a refusal by a proxy of another replica is on the route {} ms after it was said", nacked.as_millis());
    fourth.refuses.store(false, Relaxed);
    cluster.patch(WEB, to(json!([{"name": "v2", "port": 80}]))).await;
    says(cluster, WEB, &[ATTACHED, RESOLVED, all]).await;
    drop(fourth);
    says(cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;
}

async fn references(cluster: &Cluster) {
    cluster.patch(WEB, to(json!([{"name": "v9", "port": 80}]))).await;
    let object =
        says(cluster, WEB, &[ATTACHED, ("ResolvedRefs", "False BackendNotFound: service shop/v9 does not exist"), ALL])
            .await;
    cluster.service("shop", "v9", json!({"ports": [{"name": "http", "port": 80}]})).await;
    says(cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;
    println!("ok  a backend that is missing, until it is there: {}", said(&object, "ResolvedRefs"));

    cluster.patch(WEB, to(json!([{"name": "v3", "namespace": "other", "port": 80}]))).await;
    let object = says(cluster, WEB, &[ATTACHED, ("ResolvedRefs", "False RefNotPermitted: "), ALL]).await;
    let grant = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant", "metadata": {"name": "from-shop"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}],
            "to": [{"group": "", "kind": "Service"}]}});
    cluster.post("/apis/gateway.networking.k8s.io/v1/namespaces/other/referencegrants", grant).await;
    says(cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;
    println!("ok  a grant that is missing, until it is there: {}", said(&object, "ResolvedRefs"));

    let parent = |name: &str| json!({"spec": {"parentRefs": [{"group": "", "kind": "Service", "name": name}]}});
    cluster.patch(WEB, parent("nobody")).await;
    let object =
        says(cluster, WEB, &[("Accepted", "False NoMatchingParent: Service shop/nobody does not exist")]).await;
    cluster.patch(WEB, parent("web")).await;
    says(cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;
    println!("ok  a parent that is missing: {}", said(&object, "Accepted"));
}

async fn faults(cluster: &Cluster) {
    let extension =
        json!({"type": "ExtensionRef", "extensionRef": {"group": "example.com", "kind": "Filter", "name": "f"}});
    let rules = |filters: Value| json!({"spec": {"rules": [{"filters": filters, "backendRefs": [{"name": "v2", "port": 80}]}]}});
    cluster.patch(WEB, rules(json!([extension]))).await;
    let wanted = [
        ("Accepted", "False UnsupportedValue: spec.rules[0].filters[0]"),
        (PROGRAMMED, "False Invalid: the last good version: applied by 3 of 3 proxies"),
    ];
    let object = says(cluster, WEB, &wanted).await;
    println!("ok  a field that is refused: {}", said(&object, "Accepted"));
    cluster.patch(WEB, to(json!([{"group": "example.com", "kind": "Bucket", "name": "b"}]))).await;
    let object =
        says(cluster, WEB, &[("Accepted", "False UnsupportedValue: "), ("ResolvedRefs", "False InvalidKind: ")]).await;
    println!("ok  a backend of another kind: {}", said(&object, "ResolvedRefs"));
    cluster.patch(WEB, rules(json!([]))).await;
    says(cluster, WEB, &[ATTACHED, RESOLVED, ALL]).await;

    kinds(cluster).await;
    let policy = || {
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "pay"},
            "spec": {"action": "Allow", "acton": "Deny", "targetRefs": [{"kind": "Service", "name": "web"}], "rules": [{"from": [{"namespaces": ["shop"]}]}]}})
    };
    cluster.post_at_last(POLICIES, policy()).await;
    let refused = "False Invalid: spec.acton: unknown field `acton`; did you mean `action`?";
    let object = says(cluster, PAY, &[("Accepted", refused)]).await;
    println!("ok  a policy that is refused: {}", said(&object, "Accepted"));
    cluster.patch(PAY, json!({"spec": {"acton": null}})).await;
    says(cluster, PAY, &[("Accepted", "True Accepted: "), (PROGRAMMED, "True Programmed: no proxy uses it")]).await;
    let mut table = http::Request::get(POLICIES).body(Vec::new()).unwrap();
    table.headers_mut().insert("accept", "application/json;as=Table;g=meta.k8s.io;v=v1".parse().unwrap());
    let table: Value = cluster.admin.request(table).await.unwrap();
    let columns: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(columns, ["Name", "Accepted", "Programmed", "Proxies", "Age"]);
    let cells = &table["rows"][0]["cells"].as_array().unwrap()[..4];
    assert_eq!(cells, ["pay", "True", "True", "no proxy uses it"], "{table}");
    println!("ok  and one that is mended; `kubectl get` shows it");
    schema(cluster).await;
}

/// What the API server itself says to policies that are good, or wrong.
async fn kinds(cluster: &Cluster) {
    for text in [
        include_str!("../../../deploy/examples/shop/ledger-policy.yaml"),
        include_str!("../../../deploy/examples/shop/payments.yaml"),
        include_str!("../../../deploy/examples/bench/policy.yaml"),
    ] {
        for document in text.split("---\n").filter(|document| document.contains("apiVersion: weft.dev")) {
            let plural = if document.contains("kind: RateLimitPolicy") { LIMITS } else { POLICIES };
            // Whatever namespace it is for; nothing is stored.
            let document = document.replace("namespace: bench", "namespace: shop");
            let request = http::Request::post(format!("{plural}?dryRun=All&fieldValidation=Strict"));
            let request = request.header("content-type", "application/yaml").body(document.into_bytes()).unwrap();
            cluster.admin.request::<Value>(request).await.unwrap();
        }
    }
    println!("ok  the policies of deploy/examples are taken");
    let target = json!([{"kind": "Service", "name": "web"}]);
    let limit = |limits: Value| json!({"targetRefs": target, "limits": limits});
    let rules = |rules: Value| json!({"targetRefs": target, "action": "Deny", "rules": rules});
    for (plural, spec, wanted) in [
        (
            POLICIES,
            json!({"targetRefs": target, "action": "Alow"}),
            "spec.action: Unsupported value: \"Alow\": supported values: \"Allow\", \"Deny\"",
        ),
        (POLICIES, json!({"targetRefs": target}), "spec.action: Required value"),
        (
            POLICIES,
            json!({"targetRefs": [], "action": "Deny"}),
            "spec.targetRefs: Invalid value: 0: spec.targetRefs in body should have at least 1 items",
        ),
        (
            POLICIES,
            json!({"targetRefs": [{"kind": "Deployment", "name": "web"}], "action": "Deny"}),
            "spec.targetRefs[0].kind: Unsupported value",
        ),
        (
            POLICIES,
            rules(json!("all")),
            "spec.rules: Invalid value: \"string\": spec.rules in body must be of type array",
        ),
        (
            POLICIES,
            rules(json!([{"from": [{"namespaces": "shop"}]}])),
            "spec.rules[0].from[0].namespaces: Invalid value: \"string\"",
        ),
        (POLICIES, rules(json!([{"from": []}])), "spec.rules[0].from: Invalid value: 0"),
        (POLICIES, rules(json!([{"to": [{"paths": ["/*/x"]}]}])), "spec.rules[0].to[0].paths[0]: Invalid value"),
        (
            LIMITS,
            limit(json!([{"requests": 0, "per": "1s"}])),
            "spec.limits[0].requests: Invalid value: 0: spec.limits[0].requests in body should be greater than or equal to 1",
        ),
        (LIMITS, limit(json!([{"requests": 1, "per": "soon"}])), "spec.limits[0].per: Invalid value: \"soon\""),
        (LIMITS, limit(json!([{"requests": 1, "per": "0s"}])), "`per` must be longer than nothing"),
        (
            LIMITS,
            limit(json!([{"requests": 1, "per": "1s", "key": "Client"}])),
            "spec.limits[0].key: Unsupported value",
        ),
        (
            LIMITS,
            limit(json!([{"requests": 1, "per": "1s", "match": [{"path": {"value": "x"}}]}])),
            "a path must start with `/`",
        ),
        (
            LIMITS,
            limit(json!([{"requests": 1, "per": "1s", "name": "a"}, {"requests": 2, "per": "1s", "name": "a"}])),
            "two limits have the same name",
        ),
    ] {
        let kind = if plural == LIMITS { "RateLimitPolicy" } else { "AuthorizationPolicy" };
        let body =
            json!({"apiVersion": "weft.dev/v1alpha1", "kind": kind, "metadata": {"name": "wrong"}, "spec": spec});
        let said = match cluster.ask(Method::POST, plural, "application/json", body).await {
            Err(kube::Error::Api(status)) if status.code == 422 => status.message.clone(),
            other => panic!("{spec}: {other:?}"),
        };
        assert!(said.contains(wanted), "{said}, not {wanted}");
    }
    println!("ok  wrong types and values are refused by the API server, with the field and what is wrong");
    // Nothing is taken away on the way to control: an empty `from` is not one that was left out, and nobody's field is not dropped.
    for (field, wanted) in [
        (json!({"from": null}), "spec.rules[0].from: `from` is empty: leave it out if anybody is meant"),
        (json!({"from": [{"identites": ["shop/web"]}]}), "spec.rules[0].from[0].identites: unknown field `identites`"),
    ] {
        let body = json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "pay"}, "spec": rules(json!([field]))});
        cluster.post_at_last(POLICIES, body).await;
        let object = says(cluster, PAY, &[("Accepted", &format!("False Invalid: {wanted}"))]).await;
        println!("ok  what a schema cannot say reaches control: {}", said(&object, "Accepted"));
        cluster.delete(PAY).await;
    }
}

/// A status of ours is what its definition says.
async fn schema(cluster: &Cluster) {
    let path = format!("{PAY}/status");
    let one = json!({"type": "example.com/Seen", "status": "True", "reason": "Seen", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"});
    let with = |field: &str, value: Value| {
        let mut condition = one.clone();
        condition[field] = value;
        condition
    };
    let nonsense = [
        ("a status of another word", json!([with("status", json!("Perhaps"))])),
        ("a time that is none", json!([with("lastTransitionTime", json!("yesterday"))])),
        ("no reason", json!([with("reason", Value::Null)])),
        ("a type with spaces", json!([with("type", json!("all is well"))])),
        ("a generation in words", json!([with("observedGeneration", json!("two"))])),
        ("two conditions of a type", json!([one, one])),
        ("conditions in words", json!("all is well")),
    ];
    for (what, conditions) in nonsense {
        let body = json!({"status": {"conditions": conditions}});
        let answer = cluster.ask(Method::PATCH, &path, "application/merge-patch+json", body).await;
        assert!(matches!(&answer, Err(kube::Error::Api(status)) if status.code == 422), "{what}: {answer:?}");
    }
    // Another controller applies a condition of its own; what is no field is not kept.
    let body =
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy", "status": {"conditions": [one]}});
    let applied = format!("{path}?fieldManager=example");
    cluster.ask(Method::PATCH, &applied, "application/apply-patch+yaml", body).await.unwrap();
    cluster.patch(&path, json!({"status": {"nonsense": 1}})).await;
    let object = cluster.get(PAY).await;
    let types: Vec<_> = object["status"]["conditions"].as_array().unwrap().iter().map(|found| &found["type"]).collect();
    assert_eq!(types.len(), 3, "{object}");
    assert!(types.contains(&&json!("example.com/Seen")) && object["status"].get("nonsense").is_none(), "{object}");
    // Ours is written beside it.
    cluster.patch(PAY, json!({"spec": {"action": "Deny"}})).await;
    let object = says(cluster, PAY, &[("Accepted", "True Accepted: ")]).await;
    assert_eq!(object["status"]["conditions"].as_array().unwrap().len(), 3, "{object}");
    println!("ok  the schema of a status is in force: nonsense is refused, conditions of others stay");
}
