//! Who runs what, seen from outside: over real TLS, from real files, by the pages of the metrics port.

use std::time::{Duration, Instant};

use crate::common::Mesh;
use serde_json::Value;
use weft_api::names::ResourceType;
use weft_api::wire::v1;

const POLICY: &str = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: shop}\n\
                      spec: {targetRefs: [{group: '', kind: Service, name: web}], action: Allow, rules: []}\n";
const ONLY: &str = "/debug/objects?kind=AuthorizationPolicy&name=shop/only";

/// Of pods that were not connected yet the sentence says for a while that they are away: not looked at here.
fn sentence(said: &Value) -> &str {
    said["sentence"].as_str().unwrap().split(';').next().unwrap()
}

/// Asks until the answer is right: an acknowledgement is on its way.
async fn until(mesh: &Mesh, path: &str, right: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let said = mesh.json(path).await;
        if right(&said) {
            return said;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{path} says {said}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_object_says_who_runs_it_who_lags_and_who_refused_it() {
    let mesh = Mesh::start().await;
    let mut web_1 = mesh.proxy("web-1", "web").await.unwrap();
    let mut web_2 = mesh.proxy("web-2", "web").await.unwrap();
    for (proxy, own) in [(&mut web_1, "workload/shop/web-1"), (&mut web_2, "workload/shop/web-2")] {
        proxy.next().await;
        proxy.ask(v1::Workload::TYPE_URL, &[own]).await;
        proxy.next().await;
    }
    assert_eq!(sentence(&mesh.json(ONLY).await), "no proxy uses it");

    mesh.edit("policy.yaml", POLICY);
    let (first, second) = (web_1.hear().await.unwrap(), web_2.hear().await.unwrap());
    assert_eq!(sentence(&mesh.json(ONLY).await), "applied by 0 of 2 proxies, 2 lag behind");
    web_1.ack(&first).await;
    web_2.refuse(&second, "AuthorizationPolicy/shop/only").await;
    let said = until(&mesh, ONLY, |said| !said["picture"]["refused"].as_object().unwrap().is_empty()).await;
    assert_eq!(sentence(&said), "applied by 1 of 2 proxies, 1 refused: bad: no");
    assert_eq!(said["picture"]["refused"]["bad: no"][0], "shop/web-2");
    assert_eq!(said["resources"][0], "AuthorizationPolicy/shop/only");

    let status = mesh.json("/debug/status").await;
    assert_eq!((&status["ok"], &status["ready"]), (&false.into(), &true.into()), "{status}");
    let mend: Vec<&str> = status["mend"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert!(mend.iter().any(|one| one.starts_with("shop/cart-1 ought to be connected")), "{mend:?}");
    let refused = "AuthorizationPolicy shop/only: applied by 1 of 2 proxies, 1 refused: bad: no";
    assert!(mend.iter().any(|one| one.starts_with(refused)), "{mend:?}");
    assert_eq!(status["sources"]["states"][""], "synced");

    let events = mesh.json("/debug/events?object=AuthorizationPolicy/shop/only").await;
    let event = &events.as_array().unwrap()[0];
    assert_eq!((&event["told"], &event["waiting"], &event["refused"]), (&2.into(), &0.into(), &1.into()), "{event}");
    assert!(event["answered_ms"].as_f64().unwrap() >= event["compiled_ms"].as_f64().unwrap(), "{event}");

    // Mended: one resource, and the proxy says that it runs it.
    mesh.edit("policy.yaml", &POLICY.replace("Allow", "Deny"));
    let mended = web_2.hear().await.unwrap();
    web_2.ack(&mended).await;
    let said = web_1.hear().await.unwrap();
    web_1.ack(&said).await;
    until(&mesh, ONLY, |said| sentence(said) == "applied by 2 of 2 proxies").await;
    // Of the first nobody can say that it converged.
    let text = mesh.get("/metrics").await;
    assert!(text.contains("weft_control_change_convergence_duration_seconds_count 1\n"), "{text}");
    assert!(text.contains("weft_control_changes_total{kind=\"AuthorizationPolicy\"} 2\n"), "{text}");
    assert!(text.contains("weft_control_pushed_bytes_total{type=\"Workload\"}"), "{text}");
}

#[tokio::test]
async fn a_proxys_tables_and_what_differs_are_data() {
    let mesh = Mesh::start().await;
    let mut cart = mesh.proxy("cart-1", "cart").await.unwrap();
    cart.next().await;
    cart.ask(v1::Address::TYPE_URL, &["web.shop:80"]).await;
    cart.next().await;
    let same = |said: &Value| said.as_array().unwrap().is_empty();
    until(&mesh, "/debug/diff?workload=shop/cart-1", same).await;
    let tables = mesh.json("/debug/tables?workload=shop%2Fcart-1").await;
    let of = |name: &str| tables.as_array().unwrap().iter().find(|held| held["name"] == name).unwrap().clone();
    assert_eq!(of("endpoints/shop/web:80/web-2")["runs"]["data"]["ip"], "10.0.0.2");
    assert_eq!(of("service/shop/web:80")["type"], "Service");

    mesh.edit("web.yaml", &crate::common::slice("web", &[("web-1", 1)]));
    let removal = cart.hear().await.unwrap();
    let diff = mesh.json("/debug/diff?workload=shop/cart-1").await;
    assert_eq!(diff.as_array().unwrap().len(), 1, "{diff}");
    let one = &diff[0];
    assert_eq!((&one["name"], &one["now"]), (&"endpoints/shop/web:80/web-2".into(), &Value::Null));
    assert_eq!(one["runs"]["data"]["port"], 8080);
    cart.ack(&removal).await;
    until(&mesh, "/debug/diff?workload=shop/cart-1", same).await;

    let said = mesh.json("/debug/resource?name=service/shop/web%3A80").await;
    assert_eq!((&said["type"], sentence(&said)), (&"Service".into(), "applied by 1 of 1 proxy"));
    let listed = mesh.json("/debug/proxies").await;
    let line = |pod: &str| listed.as_array().unwrap().iter().find(|one| one["workload"] == pod).unwrap().clone();
    assert_eq!((&line("shop/cart-1")["connected"], &line("shop/web-1")["connected"]), (&true.into(), &false.into()));
    for nothing in
        ["/debug/diff?workload=shop/web-1", "/debug/tables", "/debug/objects?kind=Secret&name=a/b", "/debug/resource"]
    {
        let answer = mesh.get(nothing).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{nothing}: {answer}");
    }
}
