//! A control after another one, on an API server in memory: what the second still knows of objects that are broken.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use kube::client::Body;
use parking_lot::Mutex;
use prometheus::IntCounter;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::model::{Model, Name};
use crate::sources::saved;

/// What the server has, by the plural of the kind; who watches it.
#[derive(Default)]
struct Served {
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    watches: BTreeMap<String, Vec<UnboundedSender<Bytes>>>,
    version: u64,
    /// What may not be read.
    forbidden: Vec<&'static str>,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Served>>);

fn line(what: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": what, "object": object})))
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = server.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        Client::new(service, "default")
    }

    /// A watch that lists first, and goes on.
    fn answer(
        &self,
        request: &Request<Body>,
    ) -> Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>> {
        let plural = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let mut served = self.0.lock();
        let (out, lines) = unbounded_channel();
        let frames = UnboundedReceiverStream::new(lines).map(|line| Ok(Frame::data(line)));
        let frames = http_body_util::BodyExt::boxed_unsync(StreamBody::new(frames));
        if served.forbidden.contains(&plural.as_str()) {
            return Response::builder().status(403).body(frames).unwrap();
        }
        // All of Gateway API is installed.
        if plural == "v1" {
            out.send(Bytes::from(json!({"resources": [{"name": "tcproutes"}]}).to_string())).unwrap();
            return Response::new(frames);
        }
        for object in served.objects.entry(plural.clone()).or_default().values() {
            out.send(line("ADDED", object)).unwrap();
        }
        let metadata = json!({"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}});
        out.send(line("BOOKMARK", &json!({ "metadata": metadata }))).unwrap();
        served.watches.entry(plural).or_default().push(out);
        Response::new(frames)
    }

    fn tell(&self, plural: &str, what: &str, object: &Value) {
        let mut served = self.0.lock();
        if let Some(watches) = served.watches.get_mut(plural) {
            watches.retain(|watch| watch.send(line(what, object)).is_ok());
        }
    }

    fn put(&self, plural: &str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        {
            let mut served = self.0.lock();
            served.version += 1;
            object["metadata"]["resourceVersion"] = served.version.to_string().into();
            served.objects.entry(plural.to_owned()).or_default().insert(name, object.clone());
        }
        self.tell(plural, "MODIFIED", &object);
    }

    fn delete(&self, plural: &str, name: &str) {
        let gone = self.0.lock().objects.get_mut(plural).and_then(|objects| objects.remove(name)).unwrap();
        self.tell(plural, "DELETED", &gone);
    }
}

const POLICIES: &str = "authorizationpolicies";

fn object(kind: &str, name: &str, uid: &str, spec: &Value) -> Value {
    let version = if kind.ends_with("Policy") { "weft.dev/v1alpha1" } else { "gateway.networking.k8s.io/v1" };
    let metadata = json!({"name": name, "namespace": "shop", "uid": uid, "labels": {"team": "a-label"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "an-annotation"},
        "creationTimestamp": "2026-01-02T03:04:05Z"});
    json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec, "status": {"conditions": [{"type": "a-condition"}]}})
}

fn policy(name: &str, uid: &str, action: &str) -> Value {
    let target = json!([{"kind": "Service", "name": name}]);
    object("AuthorizationPolicy", name, uid, &json!({"action": action, "targetRefs": target, "rules": [{}]}))
}

fn route(backend: &str, rules: &str) -> Value {
    let parents = json!([{"group": "", "kind": "Service", "name": "web"}]);
    object(
        "HTTPRoute",
        "web",
        "r",
        &json!({"parentRefs": parents, rules: [{"backendRefs": [{"name": backend, "port": 80}]}]}),
    )
}

fn tcp(name: &str) -> Value {
    let parents = json!([{"group": "", "kind": "Service", "name": name}]);
    object(
        "TCPRoute",
        name,
        name,
        &json!({"parentRefs": parents, "rules": [{"backendRefs": [{"name": "v2", "port": 80}]}]}),
    )
}

fn namespace(deny: &str) -> Value {
    json!({"metadata": {"name": "shop", "uid": "n", "annotations": {"weft.dev/default": deny}}})
}

/// A server, and the state directory of the controls that watch it one after the other.
struct Scene {
    server: Server,
    dir: TempDir,
    errors: IntCounter,
}

/// A control, as far as the source goes.
struct Process {
    source: Kubernetes,
    model: Model,
}

impl Process {
    /// Waits until what is in force fits.
    async fn until(&mut self, what: &str, fits: impl Fn(&Model) -> bool) {
        let waits = async {
            while !(self.source.complete() && fits(&self.model)) {
                for change in self.source.next().await.changes {
                    self.model.apply(change);
                }
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(20), waits).await.is_ok();
        assert!(came, "{what} never came: {:?}", self.model);
    }
}

impl Scene {
    fn new() -> Self {
        let (dir, errors) = (tempfile::tempdir().unwrap(), IntCounter::new("errors", "e").unwrap());
        Self { server: Server::default(), dir, errors }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    async fn start_with(&self, keep: Option<Keep>) -> Process {
        let metrics = Arc::new(Metrics::new().unwrap());
        let source = Kubernetes::watch(&self.server.client(), &metrics, keep).unwrap();
        let mut process = Process { source, model: Model::default() };
        process.until("all there is", |_| true).await;
        process
    }

    async fn start(&self) -> Process {
        self.start_with(Some(Keep { dir: self.state(), errors: self.errors.clone() })).await
    }
}

fn invalid(model: &Model, name: &str) -> Option<String> {
    model.authorization.get(&Name::new("shop", name)).map(|found| found.policy.invalid.clone())
}

#[tokio::test]
async fn an_object_that_is_broken_at_start_is_what_it_was_before() {
    let scene = Scene::new();
    scene.server.put(POLICIES, policy("pay", "p", "Deny"));
    scene.server.put("httproutes", route("v2", "rules"));
    scene.server.put("namespaces", namespace("allow"));
    let mut first = scene.start().await;
    first.until("the route", |model| !model.routes.is_empty() && invalid(model, "pay").is_some()).await;
    let good = first.model.clone();
    scene.server.put(POLICIES, policy("pay", "p", "Dney"));
    while first.source.problems() == 0 {
        assert!(first.source.next().await.changes.is_empty(), "the last good version stays");
    }
    drop(first);
    // One is broken while control looks, the others while it is away.
    scene.server.put("httproutes", route("v2", "ruels"));
    scene.server.put("namespaces", namespace("dney"));
    // Not once only: what is broken stays saved.
    for _ in 0..3 {
        let again = scene.start().await;
        assert_eq!((&again.model, again.source.problems()), (&good, 3));
    }
    // Without the state directory the policy closes its target, and the namespace what it may have meant to.
    let closed = scene.start_with(None).await.model;
    assert!(invalid(&closed, "pay").is_some_and(|why| why.contains("spec.action: unknown value")));
    assert!(closed.routes.is_empty() && closed.namespaces["shop"].default_deny);
    assert_eq!(scene.errors.get(), 0);
}

#[tokio::test]
async fn the_newest_good_version_counts_and_nothing_else_is_written() {
    let scene = Scene::new();
    scene.server.put(POLICIES, policy("pay", "p", "Allow"));
    scene.server.put(
        "pods",
        json!({"metadata": {"name": "web-1", "namespace": "shop", "uid": "w"}, "spec": {"secret": "of-a-pod"}}),
    );
    let mut first = scene.start().await;
    scene.server.put(POLICIES, policy("pay", "p", "Deny"));
    let denies = |model: &Model| model.authorization.values().any(|found| found.policy.action == 1);
    first.until("the newest", denies).await;
    drop(first);
    let path = scene.state().join(kept::FILE);
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    assert!(text.contains("Deny") && !text.contains("Allow"), "{text}");
    for left_out in ["a-label", "an-annotation", "a-condition", "of-a-pod"] {
        assert!(!text.contains(left_out), "{text}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    scene.server.put(POLICIES, policy("pay", "p", "None"));
    assert!(denies(&scene.start().await.model));
}

#[tokio::test]
async fn what_was_deleted_is_forgotten() {
    let scene = Scene::new();
    for name in ["seen", "away", "again"] {
        scene.server.put(POLICIES, policy(name, name, "Allow"));
    }
    let mut first = scene.start().await;
    first.until("all three", |model| model.authorization.len() == 3).await;
    scene.server.delete(POLICIES, "seen");
    first.until("one less", |model| model.authorization.len() == 2).await;
    drop(first);
    scene.server.delete(POLICIES, "away");
    // Gone and made anew while nobody looked: another object.
    scene.server.put(POLICIES, policy("again", "another", "Alow"));
    let mut second = scene.start().await;
    assert!(
        second.model.authorization.len() == 1 && invalid(&second.model, "again").is_some_and(|why| !why.is_empty())
    );
    // What comes back, and broken, is not what it was.
    scene.server.put(POLICIES, policy("seen", "seen", "Alow"));
    scene.server.put(POLICIES, policy("away", "away", "Alow"));
    second.until("both", |model| model.authorization.len() == 3).await;
    drop(second);
    let third = scene.start().await.model;
    assert!(["seen", "away", "again"].iter().all(|name| invalid(&third, name).is_some_and(|why| !why.is_empty())));
    assert!(saved::load(&scene.state(), kept::FILE).unwrap().documents.is_empty());
}

#[tokio::test]
async fn damaged_state_is_counted_and_ignored() {
    let scene = Scene::new();
    scene.server.put(POLICIES, policy("pay", "p", "Allow"));
    drop(scene.start().await);
    scene.server.put(POLICIES, policy("pay", "p", "Alow"));
    let path = scene.state().join(kept::FILE);
    let mut text = std::fs::read(&path).unwrap();
    *text.last_mut().unwrap() ^= 1;
    std::fs::write(&path, text).unwrap();
    let again = scene.start().await;
    assert!(invalid(&again.model, "pay").is_some_and(|why| !why.is_empty()));
    assert_eq!(scene.errors.get(), 1);
}

#[tokio::test]
async fn of_a_kind_that_may_not_be_read_and_can_be_spared_what_was_kept_is_in_force() {
    let scene = Scene::new();
    for name in ["stays", "goes"] {
        scene.server.put("tcproutes", tcp(name));
    }
    let mut first = scene.start().await;
    first.until("both", |model| model.routes.len() == 2).await;
    let good = first.model.clone();
    drop(first);
    scene.server.0.lock().forbidden = vec!["tcproutes"];
    scene.server.delete("tcproutes", "goes");
    let mut second = scene.start().await;
    assert_eq!(second.model, good);
    assert!(matches!(second.source.state(), State::Stale { .. }));
    // Nothing is known of them without the state directory, and control begins all the same.
    let without = scene.start_with(None).await;
    assert_eq!((without.model.routes.len(), without.source.state()), (0, State::Synced));
    // Allowed again, it is as the server has it.
    scene.server.0.lock().forbidden.clear();
    second.until("one", |model| model.routes.len() == 1).await;
    assert_eq!(second.source.state(), State::Synced);
}

#[tokio::test(start_paused = true)]
async fn a_policy_kind_that_may_not_be_read_keeps_control_from_answering() {
    let scene = Scene::new();
    scene.server.0.lock().forbidden = vec!["ratelimitpolicies", "v1alpha1"];
    let metrics = Arc::new(Metrics::new().unwrap());
    let mut source = Kubernetes::watch(&scene.server.client(), &metrics, None).unwrap();
    let told = async {
        while !source.missing().iter().any(|missing| missing.contains("ratelimitpolicies.weft.dev")) {
            source.next().await;
        }
        std::future::pending::<()>().await;
    };
    assert!(tokio::time::timeout(Duration::from_mins(10), told).await.is_err());
    assert!(!source.complete() && source.missing().len() == 1, "{:?}", source.missing());
    let forbidden = |metrics: &Metrics| metrics.text().map(|text| String::from_utf8(text).unwrap()).unwrap();
    let line = "weft_control_source_forbidden{kind=\"RateLimitPolicy\"}";
    assert!(forbidden(&metrics).contains(&format!("{line} 1")));
    scene.server.0.lock().forbidden.clear();
    while !source.complete() {
        source.next().await;
    }
    assert!(forbidden(&metrics).contains(&format!("{line} 0")));
}
