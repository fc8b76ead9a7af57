//! Directories of manifests: what is read, what is kept, what is told.

mod imports;
mod restart;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;
use weft_api::wire::v1::{Protocol, route_match::Path as PathMatch};

use super::store::{News, Store};
use super::*;
use crate::model::{Change, Distribution, Name, Target};

/// Without edits, all is told each time.
type Newest = tokio::sync::watch::Receiver<Arc<Loaded>>;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}\n";

fn policy(name: &str, action: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  targetRefs: [{{kind: Service, name: web}}]\n  action: {action}\n  rules: [{{from: [{{identities: [shop/front]}}]}}]\n"
    )
}

fn route(prefix: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: web}}]\n  rules: [{{matches: [{{path: {{value: {prefix}}}}}], backendRefs: [{{name: web, port: 80}}]}}]\n"
    )
}

struct Files {
    dir: TempDir,
    store: Store,
}

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::new(&[dir.path().join("root")], "cluster.local");
        fs::create_dir(dir.path().join("root")).unwrap();
        let found = Self { dir, store };
        for (name, text) in files {
            found.write(name, text);
        }
        found
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        // As an editor does: a new file takes the old one's name.
        let new = self.dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    fn refresh(&mut self) -> Loaded {
        self.store.refresh().expect("something has changed")
    }

    fn told(&self, loaded: &Loaded) -> Vec<String> {
        let root = format!("{}/", self.path("").display().to_string().trim_end_matches('/'));
        loaded.problems.iter().map(|problem| problem.to_string().replace(&root, "")).collect()
    }
}

fn shop(name: &str) -> Name {
    Name::new("shop", name)
}

fn invalid(loaded: &Loaded, name: &str) -> Option<String> {
    loaded.model.authorization.get(&shop(name)).map(|found| found.policy.invalid.clone())
}

#[test]
fn ordinary_manifests_are_read_or_skipped_and_counted() {
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: ConfigMap, metadata: {{name: c}}}}\n- {{apiVersion: v1, kind: Pod, metadata: {{name: web-1, namespace: shop, labels: {{a: 1}}, annotations: {{weft.dev/injected: \"true\"}}}}, spec: {{serviceAccountName: web}}, status: {{podIP: 10.0.0.1, phase: Running}}}}\n---\n{}",
        policy("web", "Allow")
    );
    let json = "{\n\t\"apiVersion\": \"discovery.k8s.io/v1\",\n\t\"kind\": \"EndpointSlice\",\n\t\"metadata\": {\"name\": \"web-x\", \"namespace\": \"shop\", \"labels\": {\"kubernetes.io\\/service-name\": \"web\"}},\n\t\"addressType\": \"IPv4\",\n\t\"ports\": [{\"name\": \"http\", \"port\": 8080, \"protocol\": \"TCP\"}],\n\t\"endpoints\": [{\"addresses\": [\"10.0.0.1\"], \"conditions\": {}, \"targetRef\": {\"kind\": \"Pod\", \"name\": \"web-1\"}, \"zone\": \"a\"}]\n}\n";
    let typed = "kind: ServiceList\napiVersion: v1\nitems:\n- metadata: {name: two, namespace: shop}\n  spec: {clusterIP: None, ports: [{port: 53, protocol: UDP}, {port: 53, appProtocol: tcp}]}\n";
    let mut files = Files::new(&[
        ("service.yaml", SERVICE),
        ("sub/deep/list.yml", &list),
        ("slice.json", json),
        ("typed.yaml", typed),
        ("values.yaml", "replicas: 3\n"),
        (".hidden.yaml", "a: [\n"),
        ("notes.txt", "a: [\n"),
    ]);
    let loaded = files.refresh();
    assert_eq!(files.told(&loaded), Vec::<String>::new());
    assert_eq!(loaded.warnings, Vec::new());
    let counts: Vec<_> = loaded.objects.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(counts, [("AuthorizationPolicy", 1), ("EndpointSlice", 1), ("Pod", 1), ("Service", 2)]);
    let skipped: Vec<_> = loaded.skipped.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(skipped, [("(not a Kubernetes object)", 1), ("ConfigMap", 1)]);
    assert_eq!((loaded.files, loaded.state), (5, State::Synced));
    let pod = &loaded.model.workloads[&shop("web-1")];
    assert!(pod.meshed && pod.service_account == "web");
    let endpoint = &loaded.model.slices[&shop("web-x")].endpoints[0];
    assert!(endpoint.ready && endpoint.serving && !endpoint.terminating);
    assert_eq!(endpoint.workload, Some(shop("web-1")));
    let two = &loaded.model.services[&shop("two")];
    assert!(two.headless && two.ports.len() == 1 && two.ports[0].protocol == Protocol::Tcp);
    assert!(files.store.refresh().is_none(), "nothing has changed");
}

#[test]
fn ports_say_what_they_carry() {
    for (app, name, wanted) in [
        (None, "http", Protocol::Http1),
        (None, "http-web", Protocol::Http1),
        (None, "httpweb", Protocol::Detect),
        (None, "grpc", Protocol::Http2),
        (None, "http2", Protocol::Http2),
        (None, "tcp-redis", Protocol::Tcp),
        (None, "", Protocol::Detect),
        (Some("kubernetes.io/h2c"), "http", Protocol::Http2),
        (Some("kubernetes.io/ws"), "", Protocol::Http1),
        (Some("HTTPS"), "", Protocol::Tcp),
        (Some("example.com/own"), "http", Protocol::Detect),
    ] {
        assert_eq!(core::protocol(app, name), wanted, "{app:?} {name}");
    }
}

#[test]
fn a_broken_object_keeps_its_last_good_version_while_the_others_go_on() {
    let both = |action: &str, prefix: &str| format!("{}---\n{}", policy("web", action), route(prefix));
    let mut files = Files::new(&[("service.yaml", SERVICE), ("policy.yaml", &both("Allow", "/a"))]);
    let first = files.refresh();
    assert_eq!(files.told(&first), Vec::<String>::new());

    files.write("policy.yaml", &both("Alow", "/b"));
    let second = files.refresh();
    let wanted = "policy.yaml:6:11: AuthorizationPolicy/shop/web: unknown value `Alow`; did you mean `Allow`?";
    let kept = wanted.replace("; did", " (the last good version stays); did");
    assert_eq!(files.told(&second), [kept]);
    assert_eq!(second.model.authorization, first.model.authorization);
    let path =
        |loaded: &Loaded| loaded.model.routes[&("HTTPRoute".to_owned(), shop("web"))].rules[0].matches[0].path.clone();
    assert_eq!(path(&second), Some(PathMatch::PathPrefix("/b".to_owned())));

    // A broken route stays too, and what is mended counts again.
    files.write("policy.yaml", &both("Deny", "c"));
    let third = files.refresh();
    assert_eq!(third.problems.len(), 1);
    assert_eq!(path(&third), Some(PathMatch::PathPrefix("/b".to_owned())));
    assert_eq!(invalid(&third, "web").as_deref(), Some(""));

    // Deleted is deleted.
    fs::remove_file(files.path("policy.yaml")).unwrap();
    let last = files.refresh();
    assert!(last.model.authorization.is_empty() && last.model.routes.is_empty() && last.problems.is_empty());
    assert_eq!(last.model.services.len(), 1);
}

#[test]
fn a_broken_policy_without_a_good_version_closes_its_targets() {
    let mut files = Files::new(&[("service.yaml", SERVICE), ("policy.yaml", &policy("web", "Alow"))]);
    let loaded = files.refresh();
    let found = &loaded.model.authorization[&shop("web")];
    assert_eq!(found.targets, [Target::Service("web".to_owned())]);
    assert!(found.policy.invalid.contains("policy.yaml:6:11: unknown value `Alow`"), "{}", found.policy.invalid);
    assert!(found.policy.source.ends_with("policy.yaml:1"));
    assert_eq!(loaded.objects.get("AuthorizationPolicy"), None);

    // Its targets cannot be read: the namespace closes.
    files.write("policy.yaml", &policy("web", "Allow").replace("targetRefs", "targetRef"));
    assert_eq!(files.refresh().model.authorization[&shop("web")].targets, [Target::Namespace]);
    // A misspelt kind was meant as a policy too.
    files.write("policy.yaml", &policy("web", "Allow").replace("AuthorizationPolicy", "AuthorizationPolcy"));
    let loaded = files.refresh();
    assert_eq!(loaded.model.authorization[&shop("web")].targets, [Target::Service("web".to_owned())]);
    assert_eq!(
        files.told(&loaded),
        [
            "policy.yaml:2:7: AuthorizationPolicy/shop/web: unknown kind `AuthorizationPolcy` in group `weft.dev`; did you mean `AuthorizationPolicy`?"
        ]
    );
    // Not even YAML.
    files.write("policy.yaml", &policy("web", "[Allow").replace("Allow", "Allow: {"));
    let loaded = files.refresh();
    let (name, found) = loaded.model.authorization.first_key_value().unwrap();
    assert_eq!((name.namespace.as_str(), &found.targets), ("shop", &vec![Target::Namespace]));
    assert!(!found.policy.invalid.is_empty());
    // Others' kinds of the same name close nothing.
    files.write("policy.yaml", &policy("web", "{").replace("weft.dev/v1alpha1", "security.istio.io/v1"));
    assert!(files.refresh().model.authorization.is_empty());
    // A rate limit closes alike; a route is absent.
    let limit = "apiVersion: weft.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: r, namespace: shop}\nspec: {targetRefs: [{kind: Service, name: web}], limits: [{requests: x, per: 1s}]}\n";
    files.write("policy.yaml", &format!("{limit}---\n{}", route("x")));
    let loaded = files.refresh();
    assert!(!loaded.model.rate_limits[&shop("r")].policy.invalid.is_empty());
    assert!(loaded.model.routes.is_empty() && loaded.problems.len() == 2);
}

#[test]
fn a_syntax_error_costs_its_document_only_and_deletes_nothing() {
    let good = format!("{}---\n{SERVICE}---\n{}", policy("web", "Allow"), route("/a"));
    let mut files = Files::new(&[("all.yaml", &good)]);
    let first = files.refresh();
    // The middle document breaks, the last one changes.
    files.write("all.yaml", &good.replace("spec: {clusterIP", "spec: {{clusterIP").replace("/a", "/b"));
    let second = files.refresh();
    assert_eq!(second.model.services, first.model.services);
    assert_eq!(second.model.authorization, first.model.authorization);
    assert_ne!(second.model.routes, first.model.routes);
    let told = files.told(&second);
    assert!(
        told.len() == 1 && told[0].contains("all.yaml:") && told[0].contains("(the last good version stays)"),
        "{told:?}"
    );
    // At a first start the others are there all the same.
    let fresh = load(&[files.path("")], "cluster.local");
    assert!(fresh.model.services.is_empty());
    assert_eq!((fresh.model.authorization.len(), fresh.model.routes.len()), (1, 1));
    // Of a policy that is gone from a file that is otherwise broken nobody can say whether it is gone.
    files.write("all.yaml", &format!("a: [\n---\n{SERVICE}"));
    assert_eq!(files.refresh().model.authorization.len(), 1);
    files.write("all.yaml", SERVICE);
    let last = files.refresh();
    assert!(last.model.authorization.is_empty() && last.problems.is_empty());
}

#[test]
fn one_object_in_two_files_is_told_and_the_first_counts() {
    let mut files = Files::new(&[("a.yaml", &policy("web", "Allow")), ("b.yaml", &policy("web", "Deny"))]);
    let loaded = files.refresh();
    let told = files.told(&loaded);
    assert_eq!(told.len(), 1);
    assert!(
        told[0].starts_with("b.yaml:1:1: AuthorizationPolicy/shop/web: is already defined in ")
            && told[0].contains("a.yaml:1"),
        "{told:?}"
    );
    assert!(loaded.model.authorization[&shop("web")].policy.source.ends_with("a.yaml:1"));
    // The same file by two ways is one.
    let paths = [files.path(""), files.path("a.yaml")];
    fs::remove_file(files.path("b.yaml")).unwrap();
    assert!(load(&paths, "cluster.local").problems.is_empty());
}

#[test]
fn a_vanished_directory_never_becomes_an_empty_model() {
    let mut files = Files::new(&[("service.yaml", SERVICE), ("sub/policy.yaml", &policy("web", "Allow"))]);
    let first = files.refresh();
    let (root, aside) = (files.path(""), files.dir.path().join("aside"));
    fs::rename(&root, &aside).unwrap();
    let lost = files.refresh();
    assert_eq!(lost.model, first.model);
    assert!(matches!(lost.state, State::Lost { .. }) && lost.state.label() == "lost");
    assert!(files.told(&lost)[0].contains("cannot be read"), "{:?}", files.told(&lost));
    // Its mount point, empty.
    fs::create_dir(&root).unwrap();
    let empty = files.refresh();
    assert_eq!(empty.model, first.model);
    assert!(matches!(empty.state, State::Lost { .. }));
    assert!(files.store.refresh().is_none(), "it stays so");
    // It comes back.
    fs::remove_dir(&root).unwrap();
    fs::rename(&aside, &root).unwrap();
    let back = files.refresh();
    assert_eq!((back.model.clone(), back.state), (first.model.clone(), State::Synced));
    // Files deleted one by one from a directory that is there are really deleted, to the last.
    fs::remove_dir_all(files.path("sub")).unwrap();
    assert!(files.refresh().model.authorization.is_empty());
    fs::remove_file(files.path("service.yaml")).unwrap();
    let gone = files.refresh();
    assert!(gone.model.services.is_empty() && gone.state == State::Synced);
}

#[test]
fn a_file_that_cannot_be_read_keeps_what_it_held() {
    let mut files = Files::new(&[("service.yaml", SERVICE), ("policy.yaml", &policy("web", "Allow"))]);
    let first = files.refresh();
    for (name, bytes) in
        [("not UTF-8", vec![0xff, 0xfe]), ("too large", vec![b'#'; (scan::MAX_FILE_BYTES + 1) as usize])]
    {
        fs::write(files.path("policy.yaml"), bytes).unwrap();
        let stale = files.refresh();
        assert_eq!(stale.model, first.model, "{name}");
        assert!(matches!(stale.state, State::Stale { .. }), "{name}");
        assert_eq!(stale.problems.len(), 1, "{name}");
    }
    // A link that leads nowhere is not a deletion.
    fs::remove_file(files.path("policy.yaml")).unwrap();
    symlink("nowhere", files.path("policy.yaml")).unwrap();
    assert_eq!(files.refresh().model, first.model);
    let since = |loaded: &Loaded| match loaded.state {
        State::Stale { since } => since,
        other => panic!("{other:?}"),
    };
    files.write("service.yaml", &format!("{SERVICE}# changed\n"));
    let later = files.refresh();
    assert!(since(&later) <= Instant::now() && later.state.age() > Duration::ZERO);
    let absent = load(&[files.path("absent")], "cluster.local");
    assert!(absent.state.label() == "lost" && !absent.complete && later.complete);
}

#[test]
fn the_mesh_a_pod_and_a_port_say_whether_they_are_strict() {
    let text = |mesh: &str, pod: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: weft-system, annotations: {{{mesh}}}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: web-1, namespace: shop, annotations: {{{pod}}}}}\n"
        )
    };
    let pod = "weft.dev/mtls: strict, weft.dev/mtls-ports: '9090=permissive, 8443=strict'";
    let mut files = Files::new(&[("n.yaml", &text("weft.dev/mesh-mtls: permissive", pod))]);
    let loaded = files.refresh();
    assert_eq!(files.told(&loaded), Vec::<String>::new());
    assert_eq!(loaded.model.namespaces["weft-system"].mesh_strict, Some(false));
    let web = &loaded.model.workloads[&Name::new("shop", "web-1")];
    assert_eq!((web.strict, &web.strict_ports), (Some(true), &[(8443, true), (9090, false)].into()));
    for (mesh, pod, said) in [
        ("weft.dev/mesh-mtls: stict", "", "expected `strict` or `permissive`; did you mean `strict`?"),
        ("", "weft.dev/mtls: on", "expected `strict` or `permissive`"),
        ("", "weft.dev/mtls-ports: '9090'", "`9090` is neither PORT=strict nor PORT=permissive"),
        ("", "weft.dev/mtls-ports: '0=strict'", "`0=strict` is neither"),
        ("", "weft.dev/mtls-ports: '1=strict,1=permissive'", "names a port that stands there already"),
    ] {
        let mut files = Files::new(&[("n.yaml", &text(mesh, pod))]);
        let loaded = files.refresh();
        let told = files.told(&loaded);
        assert!(told.len() == 1 && told[0].contains(said), "{told:?}");
        // What the mesh's word was meant to be is not known: the stricter.
        assert_eq!(loaded.model.namespaces["weft-system"].mesh_strict, (!mesh.is_empty()).then_some(true));
    }
}

#[test]
fn a_namespace_that_is_broken_has_the_strictest_posture_it_may_have_meant() {
    let namespace = |annotations: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{annotations}}}}}\n")
    };
    for (annotations, strict, deny, problem) in [
        ("", None, false, None),
        ("weft.dev/mtls: strict", Some(true), false, None),
        ("weft.dev/default: deny, weft.dev/mtls: permissive", Some(false), true, None),
        ("other.dev/mtls: x", None, false, None),
        (
            "weft.dev/mesh-mtls: strict",
            Some(true),
            false,
            Some("counts on the Namespace weft-system alone; of another say weft.dev/mtls"),
        ),
        (
            "weft.dev/mtls: stict",
            Some(true),
            false,
            Some("annotation weft.dev/mtls is `stict`, expected `strict` or `permissive`; did you mean `strict`?"),
        ),
        ("weft.dev/default: no", None, true, Some("expected `deny` or `allow`")),
        (
            "weft.dev/mtsl: strict",
            Some(true),
            false,
            Some("unknown annotation `weft.dev/mtsl`; did you mean `weft.dev/mtls`?"),
        ),
    ] {
        let mut files = Files::new(&[("n.yaml", &namespace(annotations))]);
        let loaded = files.refresh();
        let found = &loaded.model.namespaces["shop"];
        assert_eq!((found.strict, found.default_deny), (strict, deny), "{annotations}");
        let told = files.told(&loaded);
        assert_eq!(told.len(), usize::from(problem.is_some()), "{told:?}");
        assert!(problem.is_none_or(|problem| told[0].contains(problem)), "{told:?}");
        if problem.is_some() {
            assert!(told[0].starts_with("n.yaml:3:") && told[0].contains("Namespace/shop:"), "{told:?}");
        }
    }
}

#[test]
fn core_objects_say_what_the_mesh_needs() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: out, namespace: shop}\nspec: {type: ExternalName, externalName: Example.COM., ports: [{port: 443}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: done, namespace: shop}\nspec: {unknown: [1, {}]}\nstatus: {phase: Succeeded, podIPs: [{ip: 10.0.0.9}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: host, deletionTimestamp: 2026-01-01T00:00:00Z, annotations: {weft.dev/injected: true}}\nspec: {hostNetwork: true}\nstatus: {podIP: 10.0.0.8}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: orphan}\naddressType: IPv4\nendpoints: []\n";
    let mut files = Files::new(&[("a.yaml", text)]);
    let loaded = files.refresh();
    assert_eq!(files.told(&loaded), Vec::<String>::new());
    assert_eq!(loaded.model.services[&shop("out")].external_name.as_deref(), Some("example.com"));
    assert!(loaded.model.workloads[&shop("done")].ips.is_empty());
    let host = &loaded.model.workloads[&Name::new("default", "host")];
    assert!(host.ips.is_empty() && !host.meshed && host.terminating && host.service_account == "default");
    assert_eq!(loaded.skipped.get("EndpointSlice of no Service"), Some(&1));
    for (text, wanted) in [
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.0.0.300}\n",
            "a.yaml:4:19: Service/default/a: `10.0.0.300` is no IP address",
        ),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: A}\n", "`A` is no name"),
        ("apiVersion: v1\nkind: Service\nspec: {}\n", "Service has no name"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 0}]}\n", "port 0 is no port"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {weft.dev/inject: 'true'}}\n",
            "did you mean `weft.dev/injected`?",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {weft.dev/injected: 'yes'}}\n",
            "expected `true` or `false`",
        ),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}\n",
            "did you mean `discovery.k8s.io/v1`?",
        ),
        (
            "apiVersion: weft.dev/v1alpha1\nknid: AuthorizationPolicy\n",
            "unknown field `knid`, and `kind` is missing; did you mean `kind`?",
        ),
        ("kind: Service\n", "field `apiVersion` is missing"),
        ("- 1\n- 2\n", ""),
    ] {
        files.write("a.yaml", text);
        let loaded = files.refresh();
        let told = files.told(&loaded);
        assert!(
            told.is_empty() && wanted.is_empty() || told.len() == 1 && told[0].contains(wanted),
            "{text}: {told:?}"
        );
    }
}

#[test]
fn a_service_says_which_of_its_endpoints_are_for_whom() {
    let read = |spec: &str| {
        let dir = tempfile::tempdir().unwrap();
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  clusterIP: 10.96.0.1\n  ports: [{{port: 80}}]\n{spec}\n"
        );
        fs::write(dir.path().join("web.yaml"), service).unwrap();
        let loaded = load(&[dir.path().to_owned()], "cluster.local");
        match loaded.problems.first() {
            Some(problem) => Err(problem.to_string()),
            None => Ok(loaded.model.services[&shop("web")].clone()),
        }
    };
    let spread = |spec: &str| read(spec).map(|found| (found.distribution, found.node_local, found.sticky));
    assert_eq!(spread(""), Ok((None, false, false)));
    assert_eq!(spread("  trafficDistribution: PreferClose"), Ok((Some(Distribution::Zone), false, false)));
    assert_eq!(spread("  trafficDistribution: PreferSameNode"), Ok((Some(Distribution::Node), false, false)));
    assert_eq!(spread("  internalTrafficPolicy: Local\n  sessionAffinity: ClientIP"), Ok((None, true, true)));
    assert_eq!(spread("  internalTrafficPolicy: Cluster\n  sessionAffinity: None"), Ok((None, false, false)));
    for wrong in ["trafficDistribution: PreferFar", "internalTrafficPolicy: local", "sessionAffinity: Cookie"] {
        let said = read(&format!("  {wrong}")).unwrap_err();
        assert!(said.contains(wrong.split(':').next().unwrap()), "{said}");
    }
}

#[test]
fn references_are_looked_up() {
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: other}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: \"\", kind: Service, name: far}]}\n";
    let far =
        SERVICE.replace("name: web, namespace: shop", "name: far, namespace: other").replace("10.96.0.1", "10.96.0.2");
    let foreign = route("/a")
        .replace("[{name: web, port: 80}]}", "[{name: far, namespace: other, port: 80}, {name: web, port: 81}]}");
    let mut files = Files::new(&[("a.yaml", &format!("{SERVICE}---\n{far}---\n{foreign}"))]);
    let loaded = files.refresh();
    let refused = |loaded: &Loaded, route: &str| {
        let mut warned = loaded.warnings.iter().map(ToString::to_string);
        warned.any(|text| {
            text.contains(&format!("no ReferenceGrant in other lets {route}/shop/web use Service other/far: its share"))
        })
    };
    assert!(refused(&loaded, "HTTPRoute"), "{:?}", loaded.warnings);
    let warned: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(warned.iter().any(|text| text.contains("backend service shop/web has no port 81")), "{warned:?}");
    files.write("grant.yaml", grant);
    let loaded = files.refresh();
    assert!(!refused(&loaded, "HTTPRoute") && loaded.model.grants.len() == 1);

    // Routes of connections need the same permission, for their own kind.
    let tls = foreign
        .replace("kind: HTTPRoute", "kind: TLSRoute")
        .replace("  rules: [{matches: [{path: {value: /a}}], ", "  hostnames: [a.example]\n  rules: [{");
    files.write("tls.yaml", &tls);
    let loaded = files.refresh();
    let tls_route = |loaded: &Loaded| loaded.model.routes[&("TLSRoute".to_owned(), shop("web"))].clone();
    assert_eq!(tls_route(&loaded).hostnames, ["a.example"]);
    assert!(refused(&loaded, "TLSRoute") && !refused(&loaded, "HTTPRoute"));
    let warned: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(warned.iter().any(|text| text.contains("no TLS gets there")), "{warned:?}");
    files.write("grant.yaml", &grant.replace("kind: HTTPRoute", "kind: TLSRoute"));
    let loaded = files.refresh();
    assert!(refused(&loaded, "HTTPRoute") && !refused(&loaded, "TLSRoute"));
    fs::remove_file(files.path("tls.yaml")).unwrap();

    // The name of a port leads to its number.
    let named = route("/a").replace(
        "name: web}]",
        "name: web, sectionName: http}, {group: \"\", kind: Service, name: web, sectionName: no}]",
    );
    files.write("a.yaml", &format!("{SERVICE}---\n{named}"));
    let loaded = files.refresh();
    let parents = &loaded.model.routes[&("HTTPRoute".to_owned(), shop("web"))].parents;
    let ports: Vec<_> = parents.iter().map(|parent| loaded.model.parent_port(parent).ok()).collect();
    assert_eq!(ports, [Some(Some(80)), None]);
    assert!(loaded.warnings.iter().any(|warning| warning.message.contains("no such port named `no`")));

    let doubtful = format!(
        "{}---\n{}",
        policy("p", "Allow")
            .replace("name: web}]", "name: absent}]")
            .replace("shop/front]", "\"spiffe://far/ns/a/sa/b\"]"),
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: none}}\nendpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: ghost}}]\n"
    );
    files.write("a.yaml", &doubtful);
    let warned: Vec<_> = files.refresh().warnings.iter().map(|warning| warning.message.clone()).collect();
    for wanted in [
        "target Service shop/absent does not exist",
        "`spiffe://far/ns/a/sa/b` is not of the trust domain",
        "Service shop/none does not exist",
        "Pod shop/ghost does not exist",
    ] {
        assert!(warned.iter().any(|text| text.contains(wanted)), "{wanted}: {warned:?}");
    }
}

#[test]
fn bounds_are_kept_and_counted() {
    let mut files = Files::new(&[("service.yaml", SERVICE)]);
    symlink("..", files.path("loop")).unwrap();
    fs::create_dir_all(files.path(&"d/".repeat(40))).unwrap();
    let loaded = files.refresh();
    assert_eq!((loaded.files, loaded.bounds_hit), (1, 1));
    assert_eq!(loaded.problems.len(), 1);
    for _ in 0..2 {
        files.write("big.yaml", &"#".repeat(scan::MAX_FILE_BYTES as usize + 1));
    }
    assert_eq!(files.refresh().bounds_hit, 2);
}

#[test]
fn a_report_is_for_programs_too() {
    let files = Files::new(&[("p.yaml", &policy("web", "Alow"))]);
    let report = check(&[files.path("")], "cluster.local");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((json["ok"].as_bool(), json["files"].as_u64()), (Some(false), Some(1)));
    let problem = &json["problems"][0];
    assert_eq!((problem["line"].as_u64(), problem["column"].as_u64()), (Some(6), Some(11)));
    assert_eq!(problem["object"], "AuthorizationPolicy/shop/web");
    assert_eq!(problem["suggestion"], "Allow");
}

/// The next state that fits, within a second of now.
async fn within_a_second(watch: &mut Newest, fits: impl Fn(&Loaded) -> bool) -> Arc<Loaded> {
    let wait = watch.wait_for(|loaded| fits(loaded));
    let found = tokio::time::timeout(Duration::from_secs(1), wait).await.expect("seen within a second");
    Arc::clone(&found.expect("goes on watching"))
}

fn action(loaded: &Loaded) -> i32 {
    loaded.model.authorization.get(&shop("web")).map_or(-1, |found| found.policy.action)
}

#[tokio::test]
async fn an_editors_rename_and_a_new_folder_are_seen() {
    let files = Files::new(&[("policy.yaml", &policy("web", "Allow"))]);
    let mut watch = watch(&[files.path("")], "cluster.local", None).unwrap().newest;
    assert_eq!(action(&watch.borrow()), 0);
    files.write("policy.yaml", &policy("web", "Deny"));
    within_a_second(&mut watch, |loaded| action(loaded) == 1).await;
    // Written in place.
    fs::write(files.path("policy.yaml"), policy("web", "Allow")).unwrap();
    within_a_second(&mut watch, |loaded| action(loaded) == 0).await;
    files.write("new/folder/service.yaml", SERVICE);
    within_a_second(&mut watch, |loaded| loaded.model.services.len() == 1).await;
    files.write("new/folder/service.yaml", &SERVICE.replace("name: web", "name: other"));
    within_a_second(&mut watch, |loaded| loaded.model.services.contains_key(&shop("other"))).await;
    // The whole directory goes, and comes back.
    let (root, aside) = (files.path(""), files.dir.path().join("aside"));
    fs::rename(&root, &aside).unwrap();
    let lost = within_a_second(&mut watch, |loaded| loaded.state.label() == "lost").await;
    assert_eq!(lost.model.services.len(), 1);
    fs::rename(&aside, &root).unwrap();
    within_a_second(&mut watch, |loaded| loaded.state == State::Synced).await;
    files.write("policy.yaml", &policy("web", "Deny"));
    within_a_second(&mut watch, |loaded| action(loaded) == 1).await;
}

#[tokio::test]
async fn the_swap_of_a_config_map_is_seen_each_time() {
    let dir = TempDir::new().unwrap();
    let version = |number: u32, action: &str| {
        let data = dir.path().join(format!("..2026_{number}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("policy.yaml"), policy("web", action)).unwrap();
        symlink(format!("..2026_{number}"), dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        if number > 0 {
            fs::remove_dir_all(dir.path().join(format!("..2026_{}", number - 1))).unwrap();
        }
    };
    version(0, "Allow");
    symlink("..data/policy.yaml", dir.path().join("policy.yaml")).unwrap();
    let mut watch = watch(&[dir.path().to_owned()], "cluster.local", None).unwrap().newest;
    assert_eq!(action(&watch.borrow()), 0);
    for (number, (name, wanted)) in [("Deny", 1), ("Allow", 0), ("Deny", 1)].into_iter().enumerate() {
        version(number as u32 + 1, name);
        let loaded = within_a_second(&mut watch, |loaded| action(loaded) == wanted).await;
        assert_eq!((loaded.problems.len(), loaded.state), (0, State::Synced));
    }
}

#[tokio::test]
async fn half_a_file_is_not_taken_for_the_whole() {
    use std::io::Write;
    let files = Files::new(&[("all.yaml", &format!("{SERVICE}---\n{}", policy("web", "Allow")))]);
    let mut watch = watch(&[files.path("")], "cluster.local", None).unwrap().newest;
    let mut file = fs::File::create(files.path("all.yaml")).unwrap();
    file.write_all(SERVICE.as_bytes()).unwrap();
    // The writer pauses longer than notices are gathered, within the time that an open file is waited for.
    tokio::time::sleep(Duration::from_millis(120)).await;
    file.write_all(format!("---\n{}", policy("web", "Deny")).as_bytes()).unwrap();
    drop(file);
    let mut states = Vec::new();
    while states.last() != Some(&1) {
        let changed = tokio::time::timeout(Duration::from_secs(1), watch.changed()).await;
        changed.expect("seen within a second").unwrap();
        states.push(action(&watch.borrow_and_update()));
    }
    assert_eq!(states, [1], "the policy was never gone");
}

#[test]
fn three_hundred_services_are_read_at_once_and_one_edit_reads_one_file() {
    let service = |number: u32| {
        SERVICE
            .replace("name: web", &format!("name: s{number}"))
            .replace("10.96.0.1", &format!("10.96.{}.{}", number / 250, number % 250 + 1))
    };
    let texts: Vec<(String, String)> = (0..300).map(|number| (format!("s{number}.yaml"), service(number))).collect();
    let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut files = Files::new(&texts);
    assert_eq!(files.refresh().model.services.len(), 300);
    files.write("s7.yaml", &service(7).replace("port: 80", "port: 81"));
    let start = Instant::now();
    let loaded = files.refresh();
    assert_eq!(loaded.model.services[&shop("s7")].ports[0].port, 81);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_bytes_never_panic_and_never_lose_what_was_good(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..300) {
        let mut files = Files::new(&[("a.yaml", SERVICE), ("b.yaml", &policy("web", "Allow"))]);
        let first = files.refresh();
        let mut text = policy("web", "Allow").into_bytes();
        let at = cut.min(text.len());
        text.splice(at..at, bytes);
        fs::write(Path::new(&files.path("b.yaml")), text).unwrap();
        let loaded = files.store.refresh().unwrap_or(first.clone());
        prop_assert_eq!(&loaded.model.services, &first.model.services);
        if !loaded.problems.is_empty() {
            prop_assert!(!loaded.model.authorization.is_empty());
        }
    }
}

/// Something that somebody does to one of a few files.
#[derive(Clone, Debug)]
enum Deed {
    Write(usize, Vec<usize>),
    Remove(usize),
    /// All of it is told, as when nothing happens for a while.
    Rest,
}

/// Good ones, two that are the same object, one that is doubtful, a broken one, none of ours.
fn text(number: usize) -> String {
    match number {
        0 => SERVICE.to_owned(),
        1 => SERVICE.replace("port: 80", "port: 81"),
        2 => policy("web", "Allow"),
        3 => policy("web", "Deny"),
        4 => policy("other", "Allow"),
        5 => route("/a"),
        6 => policy("web", "Alow"),
        _ => "apiVersion: v1\nkind: Secret\nmetadata: {name: web, namespace: shop}\n".to_owned(),
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => (0..3usize, prop::collection::vec(0..8usize, 0..3)).prop_map(|(file, texts)| Deed::Write(file, texts)),
        1 => (0..3usize).prop_map(Deed::Remove),
        1 => Just(Deed::Rest),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// What is told edit by edit is what is told of all of it, whatever is broken or doubled meanwhile.
    #[test]
    fn edits_make_what_all_of_it_makes(deeds in prop::collection::vec(deed(), 1..12)) {
        let mut files = Files::new(&[("a.yaml", SERVICE)]);
        let mut whole = Store::new(&[files.path("")], "cluster.local");
        let mut told = whole.refresh().unwrap().model;
        prop_assert_eq!(&files.refresh().model, &told);
        for deed in deeds {
            match deed {
                Deed::Write(file, texts) => {
                    let texts: Vec<String> = texts.into_iter().map(text).collect();
                    files.write(&format!("{file}.yaml"), &texts.join("---\n"));
                }
                Deed::Remove(file) => _ = fs::remove_file(files.path(&format!("{file}.yaml"))),
                Deed::Rest if files.store.behind => {
                    let (edited, all) = (files.store.edited().assemble(), files.store.all());
                    prop_assert_eq!(&all.model, &told);
                    prop_assert_eq!(edited.report(), all.report());
                    prop_assert_eq!((edited.model, edited.state), (all.model, all.state));
                    continue;
                }
                Deed::Rest => continue,
            }
            match files.store.look() {
                News::Nothing => {}
                News::Edit(changes) => {
                    for change in changes {
                        prop_assert!(told.apply(change.clone()), "{:?} is no change", change);
                    }
                }
                News::All(loaded) => told = loaded.model,
            }
            if let Some(all) = whole.refresh() {
                prop_assert_eq!(&told, &all.model);
            }
        }
    }
}

#[test]
fn an_edit_of_one_file_among_many_tells_just_what_has_changed() {
    let mut files = Files::new(&[("a.yaml", SERVICE), ("b.yaml", &policy("web", "Allow"))]);
    files.refresh();
    let edited = |files: &mut Files, name: &str, text: &str| {
        files.write(name, text);
        match files.store.look() {
            News::Edit(changes) => Some(changes),
            News::All(_) => None,
            News::Nothing => Some(Vec::new()),
        }
    };
    let changes = edited(&mut files, "b.yaml", &policy("web", "Deny")).expect("an edit");
    assert!(
        matches!(&changes[..], [Change::Authorization(name, Some(policy))] if *name == shop("web") && policy.policy.action == 1)
    );
    let moved = edited(&mut files, "b.yaml", &format!("{}# a word\n", policy("web", "Deny")));
    assert_eq!(moved, Some(Vec::new()), "the same objects");
    assert!(files.store.behind);
    assert!(edited(&mut files, "c.yaml", SERVICE).is_none(), "it stands in two files");
    assert!(edited(&mut files, "c.yaml", &policy("other", "Deny")).is_none(), "until all is well again");
    assert!(edited(&mut files, "c.yaml", &policy("other", "Allow")).is_some());
}

#[tokio::test]
async fn an_edit_is_told_at_once_and_what_all_of_it_comes_to_when_there_are_no_more() {
    let files = Files::new(&[("a.yaml", SERVICE), ("b.yaml", &policy("web", "Allow"))]);
    let mut watch = watch(&[files.path("")], "cluster.local", None).unwrap();
    for action in ["Deny", "Allow", "Deny"] {
        files.write("b.yaml", &policy("web", action));
        let edit = tokio::time::timeout(Duration::from_secs(5), watch.edits.recv()).await.expect("told").unwrap();
        assert_eq!(edit.changes.len(), 1);
    }
    let all = watch.newest.wait_for(|loaded| action(loaded) == 1);
    let all = tokio::time::timeout(Duration::from_secs(10), all).await.expect("put together").unwrap().clone();
    assert_eq!((all.number, all.news, all.files), (3, false, 2));
    files.write("b.yaml", &policy("web", "Alow"));
    let all = tokio::time::timeout(Duration::from_secs(5), watch.newest.wait_for(|loaded| loaded.news)).await;
    let all = all.expect("told").unwrap().clone();
    assert_eq!((all.number, all.problems.len(), action(&all)), (4, 1, 1), "the last good one, edited as it was");
}
