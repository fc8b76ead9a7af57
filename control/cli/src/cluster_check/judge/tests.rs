//! Objects as API servers have them, and what is found in them.

use k8s_openapi::ByteString;
use serde_json::json;

use super::installed::EXPIRY;
use super::*;

const ROOT: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// A cluster in which all is well.
fn well() -> Seen {
    let values = crate::install::values::whole(json!({"image": {"registry": "registry.example/weft"}})).unwrap();
    let mut objects =
        crate::install::render::render(&values, &crate::install::render::Release::default()).unwrap().objects;
    for object in &mut objects {
        if object["kind"] == "Deployment" {
            object["status"] = json!({"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1});
        }
        for hook in object["webhooks"].as_array_mut().into_iter().flatten() {
            hook["clientConfig"]["caBundle"] = serde_json::to_value(ByteString(ROOT.into())).unwrap();
        }
    }
    Seen {
        version: json!({"minor": "34+", "gitVersion": "v1.34.2"}),
        skew: Some(1),
        gateway: ["httproutes", "grpcroutes"].map(str::to_owned).into(),
        state: Some(State::Nothing),
        objects,
        namespaces: vec![namespace("shop", json!({"weft.dev/inject": "enabled"})), namespace("weft-system", json!({}))],
        pods: vec![sidecar("web", "registry.example/weft/weft-proxy:0.1.0")],
        nodes: vec![json!({"metadata": {"name": "a", "labels": {"kubernetes.io/os": "linux"}}})],
        roots: json!({"root.pem": ROOT}),
        probe: Some(("shop".to_owned(), Ok(sidecar("weft-check", "x:1")))),
        ..Seen::default()
    }
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}})
}

fn pod(name: &str) -> Value {
    let owner = json!([{"controller": true, "kind": "StatefulSet", "name": name}]);
    json!({"metadata": {"name": format!("{name}-0"), "namespace": "shop", "ownerReferences": owner},
        "spec": {"containers": [{"name": name, "image": "x"}]}})
}

fn sidecar(name: &str, image: &str) -> Value {
    let mut pod = pod(name);
    pod["metadata"]["annotations"] = json!({"weft.dev/injected": "true"});
    pod["spec"]["initContainers"] = json!([{"name": "weft-proxy", "image": image}]);
    pod
}

/// What is not well, `LEVEL ID: MESSAGE`.
fn told(findings: Vec<Finding>) -> Vec<String> {
    let wrong = findings.into_iter().filter(|finding| finding.level != Level::Ok);
    // Its root is none.
    wrong
        .filter(|finding| finding.id != "ca")
        .map(|found| format!("{:?} {}: {}", found.level, found.id, found.message))
        .collect()
}

fn changed(change: impl FnOnce(&mut Seen)) -> Vec<String> {
    let mut seen = well();
    change(&mut seen);
    told(after(&seen))
}

fn of<'a>(seen: &'a mut Seen, kind: &str) -> &'a mut Value {
    seen.objects.iter_mut().find(|object| object["kind"] == kind).unwrap()
}

#[test]
fn nothing_is_found_where_all_is_well() {
    assert_eq!(changed(|_| ()), [""; 0]);
    assert_eq!(told(before(&well())), [""; 0]);
}

type Change = fn(&mut Seen);

const FAULTS: [(Change, &str); 25] = [
    (|seen| seen.version["minor"] = "28".into(), "Error kubernetes-version: Kubernetes v1.34.2 is too old"),
    (|seen| seen.skew = Some(-90), "Warning clock: the API server's clock is 90 s behind this one"),
    (
        |seen| seen.gateway.clear(),
        "Warning gateway-api: Gateway API's httproutes and grpcroutes are not installed: no routes can be written",
    ),
    (|seen| of(seen, "Deployment")["status"] = json!({}), "Error control: control: 0 of 1 ready"),
    (
        |seen| of(seen, "Deployment")["metadata"]["labels"]["app.kubernetes.io/version"] = "0.0.9".into(),
        "Warning version: control is 0.0.9, this command 0.1.0",
    ),
    (
        |seen| seen.objects.retain(|one| one["metadata"]["name"] != "ratelimitpolicies.weft.dev"),
        "Error kinds: CustomResourceDefinition ratelimitpolicies.weft.dev is not installed: such policies cannot be written",
    ),
    (
        |seen| of(seen, "CustomResourceDefinition")["spec"]["versions"][0]["schema"] = json!({}),
        "Warning kinds: CustomResourceDefinition authorizationpolicies.weft.dev is of another version than this command",
    ),
    (
        |seen| seen.objects.retain(|one| one["metadata"]["name"] != "weft-injection"),
        "Error injection: ConfigMap weft-injection is missing or cannot be read",
    ),
    (
        |seen| seen.objects.retain(|one| one["kind"] != "MutatingWebhookConfiguration"),
        "Error webhook-ca: the webhook weft-injector is not there: no pod is injected",
    ),
    (
        |seen| drop(of(seen, "MutatingWebhookConfiguration")["webhooks"][1]["clientConfig"]["caBundle"].take()),
        "Error webhook-ca: pod.inject.weft.dev has no caBundle: the API server cannot verify control",
    ),
    (
        |seen| seen.roots["root.pem"] = ROOT.replace("AAAA", "BBBB").into(),
        "Error webhook-ca: the caBundle of namespace.inject.weft.dev is not the mesh's roots",
    ),
    (
        |seen| seen.probe = Some(("shop".to_owned(), Ok(pod("weft-check")))),
        "Error webhook: a pod that is asked for in shop gets no sidecar, and no error",
    ),
    (
        |seen| seen.probe = Some(("shop".to_owned(), Err("refused".to_owned()))),
        "Error webhook: a pod cannot be made in shop: refused",
    ),
    (
        |seen| seen.cilium = json!({"kube-proxy-replacement": "true"}),
        "Error socket-lb: Cilium rewrites the addresses of Services in pods' sockets, before a sidecar sees them: routes and policies of Services would not count",
    ),
    (
        |seen| seen.kube_proxy = json!({"config.conf": "mode: userspace\n"}),
        "Warning kube-proxy: kube-proxy in mode userspace, which was never tried",
    ),
    (
        |seen| seen.namespaces[0]["metadata"]["labels"]["istio-injection"] = "enabled".into(),
        "Error two-meshes: namespace shop is to be meshed by Istio too: two sidecars would take each other's connections",
    ),
    (
        |seen| seen.namespaces[0]["metadata"]["annotations"] = json!({"linkerd.io/inject": "enabled"}),
        "Error two-meshes: namespace shop is to be meshed by Linkerd too: two sidecars would take each other's connections",
    ),
    (
        |seen| seen.namespaces[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "restricted".into(),
        "Error pod-security: namespace shop enforces Pod Security restricted, which refuses the init container that captures (NET_ADMIN)",
    ),
    (
        |seen| seen.namespaces.push(namespace("kube-system", json!({"weft.dev/inject": "enabled"}))),
        "Warning never-meshed: namespace kube-system has the label weft.dev/inject=enabled, and is never meshed: the cluster could not start without it",
    ),
    (
        |seen| seen.pods.push(pod("db")),
        "Warning uninjected: these are to be meshed and have no sidecar: shop statefulset/db",
    ),
    (
        |seen| seen.pods.push(sidecar("db", "registry.example/weft/weft-proxy:0.0.9")),
        "Warning sidecar-version: these have sidecars of another version than 0.1.0: shop statefulset/db",
    ),
    (
        |seen| {
            let mut host = pod("node");
            host["spec"]["hostNetwork"] = true.into();
            seen.pods.push(host);
        },
        "Warning host-network: pods on the host's network have no sidecar: shop statefulset/node",
    ),
    (
        |seen| {
            let failed =
                json!({"name": "weft-validate", "ready": false, "lastState": {"terminated": {"exitCode": 95}}});
            seen.pods[0]["status"] = json!({"initContainerStatuses": [failed]});
        },
        "Error capture: the connections of these are not captured, so they do not start: shop statefulset/web",
    ),
    (|seen| seen.unread.push("pods: forbidden".to_owned()), "Error unread: pods: forbidden"),
    (
        |seen| seen.metrics.push(("weft-control-1".to_owned(), Ok(format!("{EXPIRY}1\n")))),
        "Error control-certificate: weft-control-1 has no valid certificate",
    ),
];

#[test]
fn each_fault_is_a_sentence() {
    for (change, wanted) in FAULTS {
        assert_eq!(changed(change), [wanted]);
    }
    for (change, silent) in [
        (
            (|seen| seen.cilium = json!({"kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true"}))
                as Change,
            "hostNamespaceOnly",
        ),
        (
            |seen| {
                seen.cilium = json!({"bpf-lb-sock": "true"});
                for object in &mut seen.objects {
                    if let Some(text) = object["data"]["injection.yaml"].as_str() {
                        object["data"]["injection.yaml"] = text.replace("socketLb: false", "socketLb: true").into();
                    }
                }
            },
            "sidecars go by names",
        ),
        (|seen| seen.kube_proxy = json!({"config.conf": "mode: \"\"\n"}), "the default mode"),
        (
            |seen| {
                let mut done = pod("job");
                done["status"]["phase"] = "Succeeded".into();
                seen.pods.push(done);
            },
            "a pod that has ended",
        ),
        (
            |seen| {
                let mut out = pod("out");
                out["metadata"]["labels"] = json!({"weft.dev/inject": "disabled"});
                seen.pods.push(out);
            },
            "a pod that is out of the mesh",
        ),
    ] {
        assert_eq!(changed(change), [""; 0], "{silent}");
    }
}

#[test]
fn without_control_only_orphans_are_looked_for() {
    let found = changed(|seen| seen.objects.clear());
    assert_eq!(
        found,
        [
            "Error control: Weft is not installed here",
            "Error orphans: these have sidecars and no control: shop statefulset/web"
        ]
    );
}

#[test]
fn the_plugin_has_to_be_on_every_node() {
    let agent = json!({"kind": "DaemonSet", "metadata": {"name": "weft-cni", "namespace": "weft-system"},
        "status": {"desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberReady": 1}});
    let runs = json!({"metadata": {"name": "c", "namespace": "weft-system", "labels": {"app.kubernetes.io/name": "weft-cni"}},
        "spec": {"nodeName": "a"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let set = |seen: &mut Seen| {
        seen.objects.push(agent.clone());
        seen.pods.push(runs.clone());
    };
    assert_eq!(changed(set), [""; 0]);
    let found = changed(|seen| {
        set(seen);
        seen.nodes.push(json!({"metadata": {"name": "b"}}));
    });
    assert_eq!(found, ["Error cni: the CNI plugin is not on node b: meshed pods do not start there"]);
}

#[test]
fn before_an_installation_rights_and_what_is_there_count() {
    let mut seen = well();
    seen.denied = vec!["create clusterroles".to_owned()];
    seen.state = Some(State::Helm { release: "weft".to_owned() });
    let wanted = [
        "Error permissions: you may not create clusterroles",
        "Error installed: Weft was installed here by Helm (release weft)",
    ];
    assert_eq!(told(before(&seen)), wanted);
}

#[test]
fn every_finding_has_a_section_in_the_documentation() {
    let docs = include_str!("../../../../../docs/check.md");
    let sources = [
        include_str!("../judge.rs"),
        include_str!("cluster.rs"),
        include_str!("installed.rs"),
        include_str!("pods.rs"),
    ];
    let mut count = 0;
    let calls = ["ok(", "warning(", "error(", "ID: &str ="];
    let parts = sources.iter().flat_map(|source| calls.iter().flat_map(|call| source.split(call).skip(1)));
    for part in parts {
        let Some(id) = part.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
        assert!(docs.contains(&format!("\n## {id}\n")), "docs/check.md has no section {id}");
        count += 1;
    }
    assert!(count > 30, "{count}");
}
