//! Against an API server of the test's own, which keeps objects and their versions; the real one is asked by `tests/e2e/api-roots`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_certs::ca::Ca;
use weft_certs::ca::rotation::Kind;

use super::*;
use crate::issue::signers::CertificateAuthority;
use crate::metrics::Metrics;

const MAPS: &str = "/api/v1/configmaps";
const HOOK: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/weft";

#[derive(Default)]
struct Server {
    objects: Mutex<BTreeMap<String, Value>>,
    refusing: Mutex<Option<u16>>,
}

impl Server {
    fn client(self: &Arc<Self>) -> kube::Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                    std::future::pending::<()>().await;
                }
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (status, answer) = server.answer(&head.method, head.uri.path(), serde_json::from_slice(&body).ok());
                let answer = Body::from(serde_json::to_vec(&answer)?);
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::builder().status(status).body(answer)?)
            }
        });
        kube::Client::new(service, "default")
    }

    fn answer(&self, method: &Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let failed = |code: u16, message: &str| {
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code });
            (StatusCode::from_u16(code).unwrap(), status)
        };
        let mut objects = self.objects.lock();
        let refused = *self.refusing.lock();
        match (method, path, body) {
            (&Method::GET, "/api/v1/namespaces" | MAPS, _) => {
                let items: Vec<_> = objects.iter().filter(|(at, _)| is_listed(path, at)).map(|(_, one)| one).collect();
                let kind = if path == MAPS { "ConfigMapList" } else { "PartialObjectMetadataList" };
                let list =
                    json!({ "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items });
                (StatusCode::OK, list)
            }
            (&Method::GET, path, _) => match objects.get(path) {
                Some(found) => (StatusCode::OK, found.clone()),
                None => failed(404, "not found"),
            },
            (_, path, Some(mut body)) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let at = if *method == Method::POST { format!("{path}/{name}") } else { path.to_owned() };
                let before = objects.get(&at).map(|found| found["metadata"]["resourceVersion"].clone());
                if let Some(code) = refused {
                    return failed(code, "refused by the test");
                }
                let expected = body["metadata"].get("resourceVersion").cloned();
                if expected != before {
                    return failed(409, "another version is there");
                }
                let version = before.and_then(|before| before.as_str()?.parse::<u64>().ok()).unwrap_or(10) + 1;
                body["metadata"]["resourceVersion"] = version.to_string().into();
                body["metadata"]["namespace"] = at.split('/').nth(4).into();
                objects.insert(at, body.clone());
                (StatusCode::OK, body)
            }
            _ => failed(405, "not of this test"),
        }
    }

    fn has(&self, at: &str, object: Value) {
        self.objects.lock().insert(at.to_owned(), object);
    }

    fn namespace(&self, name: &str, leaves: bool) {
        let mut metadata = json!({ "name": name, "resourceVersion": "1" });
        if leaves {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        self.has(
            &format!("/api/v1/namespaces/{name}"),
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }),
        );
    }

    fn roots_in(&self, namespace: &str) -> Option<String> {
        let objects = self.objects.lock();
        let found = objects.get(&format!("/api/v1/namespaces/{namespace}/configmaps/weft-roots"))?;
        found["data"][KEY].as_str().map(str::to_owned)
    }
}

fn is_listed(list: &str, at: &str) -> bool {
    let parts = at.split('/').count();
    if list == MAPS { at.contains("/configmaps/") } else { at.starts_with(list) && parts == 5 }
}

struct Lab {
    server: Arc<Server>,
    ca: watch::Sender<Arc<dyn CertificateAuthority>>,
    hub: Arc<Hub>,
    dir: tempfile::TempDir,
}

fn lab() -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    let hub = Arc::new(Hub::new(crate::distribute::session::Limits::default(), Arc::new(Metrics::new().unwrap())));
    Lab { server: Arc::default(), ca: watch::Sender::new(Arc::new(ca)), hub, dir }
}

impl Lab {
    fn start(&self, settings: &Settings) -> AbortOnDropHandle<()> {
        start(self.server.client(), settings, self.ca.subscribe(), Arc::clone(&self.hub))
    }

    fn behind(&self) -> Vec<String> {
        let behind = self.hub.copies_behind(Roots::of(&**self.ca.borrow()).told());
        behind.into_iter().map(|one| format!("{} {}", one.workload, one.why)).collect()
    }

    async fn until(&self, holds: impl Fn(&[String]) -> bool) {
        let reached = async {
            while !holds(&self.behind()) {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        let reached = tokio::time::timeout(std::time::Duration::from_mins(1), reached).await;
        assert!(reached.is_ok(), "{:?}", self.behind());
    }
}

fn in_namespaces() -> Settings {
    Settings { roots_configmap: Some("weft-roots".into()), ..Settings::default() }
}

#[tokio::test(start_paused = true)]
async fn each_namespace_gets_the_roots_and_again_when_they_change() {
    let lab = lab();
    for name in ["shop", "pay"] {
        lab.server.namespace(name, false);
    }
    lab.server.namespace("leaving", true);
    let _keeping = lab.start(&in_namespaces());
    assert_eq!(lab.behind(), ["copies of the roots have not been read yet"]);
    lab.until(<[String]>::is_empty).await;
    let first = lab.ca.borrow().root_pem().to_owned();
    assert_eq!(lab.server.roots_in("shop").as_ref(), Some(&first));
    assert_eq!(lab.server.roots_in("leaving"), None, "nothing can be made there");

    let rotating = Ca::load(&lab.dir.path().join("ca")).unwrap().begin(Kind::Root, SystemTime::now()).unwrap();
    let both = rotating.root_pem().to_owned();
    lab.ca.send_replace(Arc::new(rotating));
    assert!(!lab.behind().is_empty(), "at once, before anything was written");
    lab.until(<[String]>::is_empty).await;
    assert_eq!((lab.server.roots_in("shop"), lab.server.roots_in("pay")), (Some(both.clone()), Some(both)));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_cannot_be_written_is_named_and_tried_again() {
    let lab = lab();
    lab.server.namespace("shop", false);
    *lab.server.refusing.lock() = Some(403);
    let _keeping = lab.start(&in_namespaces());
    lab.until(|behind| behind.iter().any(|one| one.contains("namespace shop") && one.contains("refused by the test")))
        .await;
    *lab.server.refusing.lock() = None;
    lab.until(<[String]>::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn a_webhooks_bundle_follows_and_one_that_is_not_installed_holds_nothing_up() {
    let lab = lab();
    let hook = |bundle: &str| json!({ "name": "inject.weft.dev", "clientConfig": { "caBundle": bundle }, "admissionReviewVersions": ["v1"], "sideEffects": "None" });
    let settings = Settings { roots_webhook: vec!["weft".into(), "absent".into()], ..Settings::default() };
    lab.server.has(
        HOOK,
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": "weft", "resourceVersion": "5" }, "webhooks": [hook("bm90aGluZw==")],
        }),
    );
    let _keeping = lab.start(&settings);
    lab.until(<[String]>::is_empty).await;
    let written = lab.server.objects.lock()[HOOK].clone();
    let bundle = k8s_openapi::ByteString(lab.ca.borrow().root_pem().as_bytes().to_vec());
    assert_eq!(written["webhooks"][0]["clientConfig"], json!({ "caBundle": bundle }));
    assert_eq!(written["webhooks"][0].as_object().map(serde_json::Map::len), Some(2), "nothing else of it is ours");
}

#[tokio::test(start_paused = true)]
async fn what_goes_with_a_webhook_is_made_when_that_is_there_and_names_it() {
    let lab = lab();
    lab.server.namespace("shop", false);
    let settings = Settings { roots_webhook: vec!["weft".into()], ..in_namespaces() };
    let _keeping = lab.start(&settings);
    lab.until(<[String]>::is_empty).await;
    assert_eq!(lab.server.roots_in("shop"), None, "nobody would take it away");
    let hook = json!({ "name": "inject.weft.dev", "clientConfig": {}, "admissionReviewVersions": ["v1"], "sideEffects": "None" });
    lab.server.has(
        HOOK,
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": { "name": "weft", "uid": "one", "resourceVersion": "5" }, "webhooks": [hook],
        }),
    );
    let made = async {
        while lab.server.roots_in("shop").is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_mins(1), made).await.unwrap();
    let owners =
        lab.server.objects.lock()["/api/v1/namespaces/shop/configmaps/weft-roots"]["metadata"]["ownerReferences"]
            .clone();
    let owner = json!([{
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "name": "weft", "uid": "one",
    }]);
    assert_eq!(owners, owner);
}
