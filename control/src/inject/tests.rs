use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const SETTINGS: &str = "images: {proxy: example/weft-proxy:1, capture: example/weft-capture:1, pullPolicy: Never}\n";

fn settings() -> Injection {
    Injection::read(SETTINGS).unwrap()
}

fn pod(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "web-" }, "spec": spec })
}

fn web() -> Value {
    pod(
        json!({ "containers": [{ "name": "web", "image": "web", "ports": [{ "name": "http", "containerPort": 8080 }] }] }),
    )
}

fn with(mut pod: Value, path: &[&str], value: Value) -> Value {
    let (last, before) = path.split_last().unwrap();
    let place = before.iter().fold(&mut pod, |at, part| match part.parse::<usize>() {
        Ok(index) => &mut at[index],
        Err(_) => &mut at[*part],
    });
    place[*last] = value;
    pod
}

fn annotated(name: &str, value: &str) -> Value {
    with(web(), &["metadata", "annotations", name], json!(value))
}

fn labelled(pod: Value, value: &str) -> Value {
    with(pod, &["metadata", "labels", INJECT], json!(value))
}

fn injected(settings: &Injection, pod: &Value) -> Value {
    match inject(settings, pod, false).unwrap() {
        Outcome::Injected { pod, warnings } => {
            assert_eq!(warnings, [""; 0]);
            pod
        }
        other => panic!("{other:?}"),
    }
}

fn refusal(pod: &Value) -> String {
    inject(&settings(), pod, false).unwrap_err().to_string()
}

fn named<'p>(pod: &'p Value, name: &str) -> &'p Value {
    pod::containers(pod).find(|container| pod::name(container) == name).unwrap()
}

fn arguments(pod: &Value) -> Vec<&str> {
    named(pod, PROXY)["args"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

fn handlers(pod: &Value) -> Value {
    let arguments = arguments(pod);
    let at = arguments.iter().position(|argument| *argument == "--app-probes").unwrap();
    serde_json::from_str(arguments[at + 1]).unwrap()
}

fn names<'p>(pod: &'p Value, part: &str) -> Vec<&'p str> {
    pod::entries(pod, part).map(pod::name).collect()
}

#[test]
fn a_pod_gets_rules_then_a_sidecar_and_then_runs_its_own() {
    let before = with(web(), &["spec", "initContainers"], json!([{ "name": "migrate", "image": "web" }]));
    let after = injected(&settings(), &before);
    assert_eq!(names(&after, "initContainers"), ["weft-capture", "weft-proxy", "migrate"]);
    assert_eq!(names(&after, "containers"), ["web"]);
    assert_eq!(names(&after, "volumes"), ["weft-identity", "weft-state"]);
    assert_eq!(after["metadata"]["annotations"][INJECTED], "true");
    let proxy = named(&after, PROXY);
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["imagePullPolicy"], "Never");
    assert!(arguments(&after).contains(&"spiffe://cluster.local/ns/$(POD_NAMESPACE)/sa/$(SERVICE_ACCOUNT)"));
    assert_eq!(named(&after, "web")["lifecycle"]["preStop"]["httpGet"]["path"], "/drain-wait");
    // Rules and annotation are one text, which the rules' own reader takes.
    let text = named(&after, "weft-capture")["args"][2].as_str().unwrap();
    assert_eq!(after["metadata"]["annotations"][CAPTURE], text);
    assert_eq!(weft_capture::Settings::parse(text).unwrap(), weft_capture::Settings::default());
}

#[test]
fn the_sidecar_passes_restricted_pod_security_and_so_does_the_proof_of_the_cni_plugin() {
    let cni = Injection { capture: Capture::Cni, ..settings() };
    let after = injected(&cni, &web());
    assert_eq!(names(&after, "initContainers"), ["weft-validate", "weft-proxy"]);
    for name in ["weft-validate", PROXY] {
        let security = &named(&after, name)["securityContext"];
        assert_eq!(security["runAsNonRoot"], true);
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    }
    let init = injected(&settings(), &web());
    assert_eq!(
        named(&init, "weft-capture")["securityContext"]["capabilities"],
        json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] })
    );
}

#[test]
fn the_kubelet_asks_the_sidecar_what_it_would_ask_over_the_network() {
    let container = json!({
        "name": "web", "image": "web",
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "livenessProbe": { "httpGet": { "port": "http", "path": "/live?x=$(Y)", "httpHeaders": [{ "name": "a", "value": "b" }] }, "timeoutSeconds": 3, "periodSeconds": 7 },
        "readinessProbe": { "grpc": { "port": 9090, "service": "shop" } },
        "startupProbe": { "tcpSocket": { "port": "9091" } },
        "lifecycle": { "preStop": { "httpGet": { "port": 8080, "path": "bye", "scheme": "HTTPS" } }, "postStart": { "exec": { "command": ["true"] } } },
    });
    let odd = json!({
        "name": "odd", "image": "odd",
        "livenessProbe": { "httpGet": { "port": "nowhere" } },
        "readinessProbe": { "httpGet": { "port": 80, "host": "other" } },
        "startupProbe": { "exec": { "command": ["true"] } },
    });
    let before = pod(json!({ "containers": [container, odd.clone()] }));
    let after = injected(&settings(), &before);
    let web = named(&after, "web");
    let liveness = json!({ "httpGet": { "path": "/app/web/livenessProbe", "port": 15021, "scheme": "HTTP" }, "timeoutSeconds": 3, "periodSeconds": 7 });
    assert_eq!(web["livenessProbe"], liveness);
    assert_eq!(web["readinessProbe"]["httpGet"]["path"], "/app/web/readinessProbe");
    assert_eq!(web["readinessProbe"].get("grpc"), None);
    assert_eq!(web["lifecycle"]["postStart"], json!({ "exec": { "command": ["true"] } }));
    let known = sidecar::known(named(&after, PROXY)).probes;
    assert_eq!(
        serde_json::to_value(&known).unwrap(),
        json!({
            "web/livenessProbe": { "httpGet": { "port": 8080, "path": "/live?x=$(Y)", "scheme": "HTTP", "httpHeaders": [{ "name": "a", "value": "b" }] }, "timeoutSeconds": 3 },
            "web/readinessProbe": { "grpc": { "port": 9090, "service": "shop" }, "timeoutSeconds": 1 },
            "web/startupProbe": { "tcpSocket": { "port": 9091 }, "timeoutSeconds": 1 },
            "web/preStop": { "httpGet": { "port": 8080, "path": "bye", "scheme": "HTTPS" }, "timeoutSeconds": 3600 },
        })
    );
    // The kubelet does not put a variable in its place.
    assert!(arguments(&after).iter().any(|argument| argument.contains("/live?x=$$(Y)")));
    // What it would ask elsewhere, or fail at, stays.
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        assert_eq!(named(&after, "odd")[probe], odd[probe]);
    }
}

#[test]
fn containers_that_come_later_are_taken_in_and_nothing_is_done_twice() {
    let before = with(web(), &["spec", "containers", "0", "livenessProbe"], json!({ "tcpSocket": { "port": 8080 } }));
    let once = injected(&settings(), &before);
    assert_eq!(inject(&settings(), &once, false).unwrap(), Outcome::Unchanged);
    let mut more = once.clone();
    more["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "late", "readinessProbe": { "tcpSocket": { "port": 1 } } }));
    let twice = injected(&settings(), &more);
    assert_eq!(
        handlers(&twice).as_object().unwrap().keys().collect::<Vec<_>>(),
        ["late/readinessProbe", "web/livenessProbe"]
    );
    assert_eq!(inject(&settings(), &twice, false).unwrap(), Outcome::Unchanged);
    // Another version of the sidecar takes the place of the one that is there.
    let newer =
        Injection { images: Images { proxy: "example/weft-proxy:2".into(), ..settings().images }, ..settings() };
    let after = injected(&newer, &twice);
    assert_eq!(named(&after, PROXY)["image"], "example/weft-proxy:2");
    assert_eq!(names(&after, "initContainers"), names(&twice, "initContainers"));
    // A probe of ours without the sidecar that knew it cannot be mended here.
    let mut lost = once;
    lost["spec"]["initContainers"] = json!([]);
    assert!(refusal(&lost).contains("livenessProbe asks the sidecar"), "{}", refusal(&lost));
}

#[test]
fn a_classic_sidecar_begins_first_and_captures_last() {
    let before =
        with(annotated("weft.dev/sidecar", "classic"), &["spec", "initContainers"], json!([{ "name": "migrate" }]));
    let after = injected(&settings(), &before);
    assert_eq!(names(&after, "initContainers"), ["migrate", "weft-capture"]);
    assert_eq!(names(&after, "containers"), [PROXY, "web"]);
    let proxy = named(&after, PROXY);
    assert_eq!(proxy.get("restartPolicy"), None);
    assert_eq!(proxy["lifecycle"]["postStart"]["exec"]["command"][1], "wait");
    assert_eq!(proxy["lifecycle"]["preStop"]["httpGet"]["path"], "/drain-wait?gone=8080");
    assert_eq!(inject(&settings(), &after, false).unwrap(), Outcome::Unchanged);
    // It would keep a Job from ending.
    let job = with(before, &["metadata", "ownerReferences"], json!([{ "kind": "Job", "name": "j" }]));
    let Outcome::Injected { pod, warnings } = inject(&settings(), &job, false).unwrap() else { panic!() };
    assert_eq!(named(&pod, PROXY)["restartPolicy"], "Always");
    assert!(warnings[0].contains("keep this Job from ending"));
}

// What a hook shows to the sidecar.
fn shown(pod: &Value, container: &str) -> Value {
    named(pod, container)["lifecycle"]["preStop"]["httpGet"]["httpHeaders"].clone()
}

fn injected_by(key: &str, pod: &Value) -> Value {
    match inject_in(Place { hook_key: Some(key), ..Place::default() }, &settings(), pod, false).unwrap() {
        Outcome::Injected { pod, .. } => pod,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_kubelet_shows_a_key_that_the_sidecar_has() {
    let field = |key: &str| json!([{ "name": "x-weft-hook-key", "value": key }]);
    let variable = |pod: &Value| named(pod, PROXY)["env"][3].clone();
    let own = json!({
        "name": "own", "lifecycle": { "preStop": { "httpGet": {
            "path": "/drain-wait", "port": 15021, "httpHeaders": [{ "name": "X-Weft-Hook-Key", "value": "old" }, { "name": "a", "value": "b" }],
        } } },
    });
    let other = json!({ "name": "other", "lifecycle": {
        "preStop": { "httpGet": { "path": "/drain-wait", "port": 8080 } }, "postStart": { "httpGet": { "path": "/", "host": "a", "port": 80 } },
    } });
    let exec = json!({ "name": "exec", "lifecycle": { "preStop": { "exec": { "command": ["true"] } } } });
    for (sidecar, hooks) in [("native", vec!["web"]), ("classic", vec!["web", PROXY])] {
        let mut before = annotated("weft.dev/sidecar", sidecar);
        before["spec"]["containers"].as_array_mut().unwrap().extend([own.clone(), other.clone(), exec.clone()]);
        let once = injected_by("k1", &before);
        assert_eq!(variable(&once), json!({ "name": "WEFT_HOOK_KEY", "value": "k1" }));
        for container in hooks {
            assert_eq!(shown(&once, container), field("k1"), "{sidecar}: {container}");
        }
        // A hook of its own that asks the sidecar has it too, and one that asks it in the kubelet's place; and nobody else.
        assert_eq!(
            shown(&once, "own"),
            json!([{ "name": "a", "value": "b" }, { "name": "x-weft-hook-key", "value": "k1" }])
        );
        assert_eq!((shown(&once, "other"), shown(&once, "exec")), (field("k1"), Value::Null));
        assert_eq!(named(&once, "other")["lifecycle"]["postStart"]["httpGet"].get("httpHeaders"), None);
        // Asked again, such as after another webhook, it stays the same, also for containers that come later.
        let again = inject_in(Place { hook_key: Some("k2"), ..Place::default() }, &settings(), &once, false);
        assert_eq!(again.unwrap(), Outcome::Unchanged);
        let mut more = once.clone();
        more["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "late" }));
        assert_eq!(shown(&injected_by("k2", &more), "late"), field("k1"));
        assert_eq!(inject(&settings(), &once, false).unwrap(), Outcome::Unchanged);
    }
    // A manifest has none; the webhook adds it.
    let offline = injected(&settings(), &web());
    assert_eq!((variable(&offline), shown(&offline, "web")), (Value::Null, Value::Null));
    let admitted = injected_by("k1", &offline);
    assert_eq!((&variable(&admitted)["value"], shown(&admitted, "web")), (&json!("k1"), field("k1")));
}

#[test]
fn annotations_say_what_holds_for_one_pod() {
    let mut before = annotated("weft.dev/exclude-outbound-ports", "3306, 6379");
    for (name, value) in [
        ("weft.dev/proxy-cpu-limit", "2"),
        ("weft.dev/proxy-memory-request", "1Gi"),
        ("weft.dev/proxy-image", "mine:2"),
        ("weft.dev/proxy-workers", "4"),
        ("weft.dev/include-inbound-ports", "8080"),
        ("weft.dev/exclude-outbound-cidrs", "10.1.0.0/16,fd00::/8"),
        ("weft.dev/dns", "true"),
        ("other.dev/anything", "x"),
    ] {
        pod::annotate(&mut before, name, value);
    }
    let mesh = Injection { exclude_outbound_ports: vec![25], socket_lb: true, ..settings() };
    let after = injected(&mesh, &before);
    let proxy = named(&after, PROXY);
    assert_eq!(proxy["image"], "mine:2");
    assert_eq!(
        proxy["resources"],
        json!({ "requests": { "cpu": "10m", "memory": "1Gi" }, "limits": { "cpu": "2", "memory": "256Mi" } })
    );
    let text = after["metadata"]["annotations"][CAPTURE].as_str().unwrap();
    let capture = weft_capture::Settings::parse(text).unwrap();
    assert_eq!((capture.exclude_outbound_ports, capture.include_inbound_ports), (vec![25, 3306, 6379], vec![8080]));
    assert_eq!((capture.exclude_outbound_cidrs.len(), capture.dns_port), (2, Some(15053)));
    let arguments = arguments(&after);
    assert!(arguments.windows(2).any(|pair| pair == ["--workers", "4"]));
    assert!(arguments.contains(&"--socket-lb"));
    assert!(arguments.windows(2).any(|pair| pair == ["--dns-listen", "127.0.0.1:15053"]));
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    for (pod, want) in [
        (annotated("weft.dev/exclude-outbound-port", "1"), "did you mean weft.dev/exclude-outbound-ports?"),
        (annotated("weft.dev/exclude-outbound-ports", "http"), "`http` is not a port from 1 to 65535"),
        (annotated("weft.dev/exclude-outbound-cidrs", "10.0.0.0/33"), "`10.0.0.0/33` is not a range of addresses"),
        (annotated("weft.dev/sidecar", "none"), "say native or classic"),
        (annotated("weft.dev/inject", "enabled"), "weft.dev/inject is a label"),
        (annotated("weft.dev/proxy-workers", "0"), "`0` is not a number of threads"),
        (labelled(web(), "true"), "the label weft.dev/inject is `true`: say enabled or disabled"),
        (
            with(web(), &["spec", "containers", "0", "securityContext"], json!({ "runAsUser": 1337 })),
            "container web runs as uid 1337",
        ),
        (with(web(), &["spec", "securityContext"], json!({ "runAsUser": 1337 })), "the pod runs as uid 1337"),
        (
            with(web(), &["spec", "containers", "0", "ports"], json!([{ "containerPort": 15021 }])),
            "container web has port 15021",
        ),
        (
            labelled(with(web(), &["spec", "hostNetwork"], json!(true)), "enabled"),
            "a pod on the host's network gets no sidecar",
        ),
    ] {
        assert!(refusal(&pod).contains(want), "{}", refusal(&pod));
    }
    let many: Vec<String> = (1..=100).map(|port| port.to_string()).collect();
    assert!(refusal(&annotated("weft.dev/exclude-outbound-ports", &many.join(","))).contains("at most 64"));
}

#[test]
fn who_cannot_have_a_sidecar_goes_without_one_if_only_its_namespace_asked() {
    for pod in [
        with(web(), &["spec", "hostNetwork"], json!(true)),
        with(web(), &["spec", "os"], json!({ "name": "windows" })),
        annotated("kubernetes.io/config.mirror", "x"),
    ] {
        assert!(matches!(inject(&settings(), &pod, false), Ok(Outcome::Skipped(Skipped::Impossible(_)))), "{pod}");
    }
    assert_eq!(inject(&settings(), &labelled(web(), "disabled"), false), Ok(Outcome::Skipped(Skipped::Disabled)));
    assert!(matches!(inject(&settings(), &labelled(web(), "enabled"), false), Ok(Outcome::Injected { .. })));
}

#[test]
fn workloads_of_every_kind_have_their_pod_where_kubernetes_has_it() {
    let template = json!({ "metadata": { "labels": { "app": "web" } }, "spec": web()["spec"] });
    let of = |kind: &str, spec: Value| json!({ "kind": kind, "metadata": { "name": "web" }, "spec": spec });
    for (object, path) in [
        (of("Deployment", json!({ "template": template })), "/spec/template"),
        (of("Job", json!({ "template": template })), "/spec/template"),
        (
            of("CronJob", json!({ "jobTemplate": { "spec": { "template": template } } })),
            "/spec/jobTemplate/spec/template",
        ),
        (web(), ""),
    ] {
        let Manifest::Workload(Outcome::Injected { pod, .. }) = manifest(&settings(), &object).unwrap() else {
            panic!("{object}")
        };
        assert_eq!(names(pod.pointer(path).unwrap(), "initContainers"), ["weft-capture", "weft-proxy"]);
        let again = manifest(&settings(), &pod).unwrap();
        assert_eq!(again, Manifest::Workload(Outcome::Unchanged));
    }
    assert_eq!(manifest(&settings(), &of("Service", json!({}))).unwrap(), Manifest::Other);
    let list = json!({ "kind": "List", "items": [of("Service", json!({})), web()] });
    let Manifest::Workload(Outcome::Injected { pod, .. }) = manifest(&settings(), &list).unwrap() else { panic!() };
    assert_eq!(names(&pod["items"][1], "initContainers"), ["weft-capture", "weft-proxy"]);
    let broken = manifest(&settings(), &of("Deployment", json!({}))).unwrap_err().to_string();
    assert_eq!(broken, "Deployment web: it has no /spec/template");
}

#[test]
fn settings_are_read_strictly() {
    for (text, want) in [
        (
            "images: {proxy: a, capture: b}\nsidecars: native\n",
            "2:1: unknown field `sidecars`; did you mean `sidecar`?",
        ),
        ("images: {proxy: a, capture: ''}\n", "1:1: `images.capture` is empty"),
        ("images: {proxy: a}\n", "field `capture` is missing"),
        ("images: {proxy: a, capture: b}\ncapture: ebpf\n", "2:10: "),
        ("images: {proxy: a, capture: b}\nworkers: 0\n", "`workers` is 0"),
        ("images: {proxy: a, capture: b}\ntrustDomain: Upper Case\n", "`trustDomain`"),
        ("", "write one document"),
    ] {
        let error = Injection::read(text).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let read =
        Injection::read("images: {proxy: a, capture: b}\nexcludeOutboundCidrs: [10.0.0.0/8]\ncapture: cni\n").unwrap();
    assert_eq!((read.capture, read.exclude_outbound_cidrs.len(), read.sidecar), (Capture::Cni, 1, Sidecar::Native));
}

// Anything that the API server may hand us, and much that it would not.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0_u64..20_000).prop_map(Value::from),
        "[a-z/-]{0,6}".prop_map(Value::from),
    ];
    let field = prop_oneof![
        Just("name"),
        Just("ports"),
        Just("containerPort"),
        Just("livenessProbe"),
        Just("httpGet"),
        Just("port"),
        Just("path"),
        Just("tcpSocket"),
        Just("lifecycle"),
        Just("preStop"),
        Just("args"),
        Just("securityContext"),
        Just("runAsUser"),
    ];
    leaf.prop_recursive(4, 48, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(field.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_pod_panics_and_what_is_injected_is_not_injected_again(
        containers in anything(), init in anything(), volumes in anything(), annotations in anything()
    ) {
        let before = json!({
            "metadata": { "annotations": annotations },
            "spec": { "containers": containers, "initContainers": init, "volumes": volumes },
        });
        if let Ok(Outcome::Injected { pod, .. }) = inject(&settings(), &before, false) {
            prop_assert_eq!(inject(&settings(), &pod, false), Ok(Outcome::Unchanged));
        }
    }
}
