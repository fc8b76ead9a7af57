//! Against an API server of the test's own; the real one is asked by `tests/e2e/api-signer`.

use std::sync::Arc;

use http::{Method, Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::Value;
use weft_engine::identity::Identity;

use super::*;

const OBJECTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SIGNER: &str = "example.com/mesh";

/// What becomes of a request that is approved, or of the question.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Sign,
    Deny,
    Nothing,
    /// That path is answered with that status.
    Fail(&'static str, u16),
    Away,
}

struct Server {
    act: Act,
    objects: BTreeMap<String, Value>,
    /// As it was made, and what was removed.
    made: Vec<Value>,
    removed: Vec<String>,
}

type Shared = Arc<Mutex<Server>>;

fn server(act: Act) -> Shared {
    Arc::new(Mutex::new(Server { act, objects: BTreeMap::new(), made: Vec::new(), removed: Vec::new() }))
}

fn requests(server: &Shared, approve: bool) -> Requests {
    let server = Arc::clone(server);
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = Arc::clone(&server);
        async move {
            let (head, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
            let (status, answer) = server.lock().answer(&head.method, head.uri.path(), body)?;
            let answer = Body::from(serde_json::to_vec(&answer)?);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::builder().status(status).body(answer)?)
        }
    });
    Requests::new(Client::new(service, "default"), SIGNER, approve)
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, body: Value) -> std::io::Result<(u16, Value)> {
        let status = |code: u16| {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "by the test", "reason": "", "code": code });
            Ok((code, status))
        };
        match self.act {
            Act::Away => return Err(std::io::ErrorKind::ConnectionRefused.into()),
            Act::Fail(end, code) if path.ends_with(end) => return status(code),
            _ => {}
        }
        let name = path.strip_prefix(OBJECTS).unwrap_or_default().trim_matches('/').to_owned();
        match (method.as_str(), name.strip_suffix("/approval").unwrap_or(&name)) {
            ("POST", _) => {
                self.made.push(body.clone());
                self.objects.insert(body["metadata"]["name"].as_str().unwrap().to_owned(), body.clone());
                Ok((201, body))
            }
            ("GET", "") => {
                let items: Vec<_> = self.objects.values().collect();
                Ok((
                    200,
                    json!({ "kind": "CertificateSigningRequestList", "apiVersion": "certificates.k8s.io/v1", "metadata": {}, "items": items }),
                ))
            }
            (_, name) if !self.objects.contains_key(name) => status(404),
            ("PATCH", name) => {
                self.objects.get_mut(name).unwrap()["status"] = body["status"].clone();
                Ok((200, self.objects[name].clone()))
            }
            ("GET", name) => {
                let mut seen = self.objects[name].clone();
                let approved = seen["status"]["conditions"][0]["type"] == "Approved";
                match self.act {
                    Act::Sign if approved => seen["status"]["certificate"] = json!(ByteString(b"PEM".to_vec())),
                    Act::Deny => {
                        let no = json!({ "type": "Denied", "status": "True", "reason": "Sunday", "message": "come\u{7} back" });
                        seen["status"] = json!({ "conditions": [no] });
                    }
                    _ => {}
                }
                Ok((200, seen))
            }
            ("DELETE", name) => {
                self.removed.push(name.to_owned());
                Ok((200, self.objects.remove(name).unwrap()))
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn ask(server: &Shared, approve: bool) -> Result<Vec<String>, Failed> {
    let web = Identity::new("cluster.local", "shop", "web").unwrap();
    let question = Question { csr: "the request", identity: &web, token: None, life: Duration::from_mins(1) };
    let asked = requests(server, approve).ask(&question, Instant::now() + Duration::from_secs(9)).await;
    let seen = server.lock();
    assert!(seen.objects.is_empty(), "{:?} is left", seen.objects);
    asked
}

#[tokio::test(start_paused = true)]
async fn a_request_is_made_approved_and_removed_and_says_whom_it_is_for() {
    let server = server(Act::Sign);
    assert_eq!(ask(&server, true).await.unwrap(), ["PEM"]);
    assert_eq!(ask(&server, true).await.unwrap(), ["PEM"]);
    let seen = server.lock();
    let (one, other) = (&seen.made[0], &seen.made[1]);
    assert_eq!(one["spec"]["signerName"], SIGNER);
    assert_eq!(one["spec"]["usages"], json!(USAGES));
    assert_eq!(one["spec"]["expirationSeconds"], 600, "the API server takes no less");
    assert_eq!(one["spec"]["request"], json!(ByteString(b"the request".to_vec())));
    assert_eq!(one["metadata"]["annotations"][IDENTITY], "spiffe://cluster.local/ns/shop/sa/web");
    let name = |made: &Value| made["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name(one).len() == 37 && name(one) != name(other), "{} {}", name(one), name(other));
    assert_eq!(seen.removed, [name(one), name(other)]);
}

#[tokio::test(start_paused = true)]
async fn whatever_becomes_of_it_is_said_and_nothing_is_left_behind() {
    for (act, approve, wanted) in [
        (Act::Deny, true, "Refused(\"the request was denied: Sunday: come back\")"),
        (Act::Nothing, true, "nobody has signed it in time"),
        // Nobody else approves it.
        (Act::Sign, false, "nobody has approved and signed it in time"),
        (Act::Fail("/approval", 403), true, "--approved-elsewhere"),
        (Act::Fail("/certificatesigningrequests", 403), true, "Refused(\"making it is not allowed to control"),
        (Act::Fail("/certificatesigningrequests", 500), true, "Slow("),
        (Act::Fail("/certificatesigningrequests", 422), true, "Refused("),
        (Act::Away, true, "Away("),
    ] {
        let said = format!("{:?}", ask(&server(act), approve).await.unwrap_err());
        assert!(said.contains(wanted), "{act:?}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_is_removed_although_whoever_asked_has_gone_away() {
    let server = server(Act::Nothing);
    let gone = tokio::time::timeout(Duration::from_secs(1), ask(&server, true)).await;
    assert!(gone.is_err() && server.lock().objects.len() == 1);
    sleep(Duration::from_secs(10)).await;
    let seen = server.lock();
    assert_eq!((seen.objects.len(), seen.removed.len()), (0, 1));
}

#[tokio::test]
async fn what_a_control_has_left_behind_that_died_is_swept_and_nothing_else() {
    let server = server(Act::Nothing);
    let made = |seconds: i64| {
        let at = k8s_openapi::jiff::Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_secs(seconds);
        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    for (name, signer, age) in [("old", SIGNER, 400), ("young", SIGNER, 10), ("another's", "example.com/other", 400)] {
        let spec = json!({ "signerName": signer, "request": "", "usages": [] });
        let object = json!({ "metadata": { "name": name, "creationTimestamp": made(age) }, "spec": spec });
        server.lock().objects.insert(name.to_owned(), object);
    }
    assert_eq!(requests(&server, true).sweep().await.unwrap(), 1);
    assert_eq!(server.lock().removed, ["old"]);
}
