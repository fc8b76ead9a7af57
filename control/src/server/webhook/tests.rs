use super::*;

fn webhook() -> Webhook {
    let settings = Injection::read("images: {proxy: a, capture: b}").unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let hub = Arc::new(Hub::new(crate::distribute::session::Limits::default(), Arc::clone(&metrics)));
    let injection = [("weft.dev/proxy-workers", "3"), ("weft.dev/exclude-outbound-ports", "9000")];
    let injection = injection.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let namespace = crate::model::Namespace { injection, ..crate::model::Namespace::default() };
    hub.publish([crate::model::Change::Namespace("shop".to_owned(), Some(namespace))]);
    Webhook { settings: Arc::new(ArcSwap::from_pointee(settings)), hub, metrics }
}

fn ask(object: Value) -> Value {
    let request = json!({ "uid": "u1", "namespace": "shop", "operation": "CREATE", "object": object });
    let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request });
    let answer = webhook().review(&serde_json::to_vec(&review).unwrap()).unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((&answer["response"]["uid"], &answer["kind"]), (&json!("u1"), &json!("AdmissionReview")));
    answer["response"].clone()
}

fn pod(labels: Value, spec: Value) -> Value {
    json!({ "metadata": { "generateName": "web-", "labels": labels }, "spec": spec })
}

fn patch_of(answer: &Value) -> Value {
    let patch: ByteString = serde_json::from_value(answer["patch"].clone()).unwrap();
    serde_json::from_slice(&patch.0).unwrap()
}

#[test]
fn a_pod_is_patched() {
    let answer = ask(pod(json!({}), json!({ "containers": [{ "name": "web" }] })));
    assert_eq!((&answer["allowed"], &answer["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = patch_of(&answer);
    assert_eq!(patch[0]["path"], "/metadata/annotations");
    assert_eq!(patch[1]["value"]["initContainers"][1]["name"], "weft-proxy");
    assert_eq!(patch.as_array().unwrap().len(), 2);
}

#[test]
fn each_pod_gets_a_key_of_its_own() {
    let key = || {
        let patch = patch_of(&ask(pod(json!({}), json!({ "containers": [{ "name": "web" }] }))));
        let (sidecar, web) = (&patch[1]["value"]["initContainers"][1], &patch[1]["value"]["containers"][0]);
        let key = sidecar["env"][3]["value"].as_str().unwrap().to_owned();
        assert_eq!(web["lifecycle"]["preStop"]["httpGet"]["httpHeaders"][0]["value"], key);
        key
    };
    let (one, other) = (key(), key());
    assert_eq!((one.len(), other.len()), (32, 32));
    assert_ne!(one, other);
}

#[test]
fn what_its_namespace_says_holds_where_the_pod_does_not() {
    let mut asked = pod(json!({}), json!({ "containers": [{ "name": "web" }] }));
    for (own, workers, excluded) in [
        (json!({}), "3", "[9000]"),
        (json!({ "weft.dev/proxy-workers": "1", "weft.dev/exclude-outbound-ports": "9001" }), "1", "[9000,9001]"),
    ] {
        asked["metadata"]["annotations"] = own;
        let patch = patch_of(&ask(asked.clone())).to_string();
        assert!(patch.contains(&format!("\"--workers\",\"{workers}\"")), "{patch}");
        assert!(patch.contains(&format!("\\\"excludeOutboundPorts\\\":{excluded}")), "{patch}");
    }
}

#[test]
fn who_cannot_have_one_is_told_so() {
    let answer = ask(pod(json!({}), json!({ "hostNetwork": true, "containers": [] })));
    assert_eq!((&answer["allowed"], answer.get("patch")), (&json!(true), None));
    assert!(answer["warnings"][0].as_str().unwrap().contains("the host's network"), "{answer}");
    let answer = ask(pod(json!({ INJECT: "yes" }), json!({ "containers": [] })));
    assert_eq!(answer["allowed"], false);
    assert!(answer["status"]["message"].as_str().unwrap().contains("say enabled or disabled"), "{answer}");
    let answer = ask(pod(json!({ INJECT: "disabled" }), json!({ "containers": [] })));
    assert_eq!(answer, json!({ "uid": "u1", "allowed": true }));
}

#[test]
fn what_is_no_question_is_an_error() {
    for bad in ["", "{}", "[]", r#"{"request":{}}"#, "\u{0}"] {
        assert!(webhook().review(bad.as_bytes()).is_err(), "{bad}");
    }
}
