//! The mutating webhook that puts sidecars into pods (`--injection`, `--webhook`), for the API server, over HTTPS with control's certificate.
//!
//! A pod that cannot be as it is asked for is refused, with the reason for whoever made it. What is wrong with the question or with us is an
//! error of HTTP: the API server then does what the webhook's failurePolicy says.
//!
//! Bounds, beside those of [`super::plain`]: time for a handshake and for a connection, bytes of a question.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use weft_certs::files::random_hex;

use super::plain::{accept, http1, plain, typed};
use super::tls::CurrentDoors;
use crate::compile::Compiled;
use crate::distribute::Hub;
use crate::inject::{INJECT, Injection, Outcome, Place, Refusal, Skipped, inject_in, patch};
use crate::listed::Listed;
use crate::metrics::Metrics;

/// Where the API server asks.
pub const PATH: &str = "/inject";
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// The API server keeps its connections and asks again on them.
const TIME: Duration = Duration::from_mins(10);
/// The API server takes objects of 3 MiB at most; an update would have it twice.
const MAX_QUESTION: usize = 8 << 20;
/// Of a sidecar's key; in hex in the pod.
const KEY_BYTES: usize = 16;
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How pods are injected, as the file says now.
#[derive(Debug)]
pub struct Settings {
    file: Listed,
    current: Arc<ArcSwap<Injection>>,
}

impl Settings {
    /// Reads the file of `--injection`.
    ///
    /// # Errors
    /// One sentence, with the place in it.
    pub fn open(file: PathBuf) -> Result<Self, String> {
        let mut file = Listed::new("--injection", &file);
        let read = file.read(|text, _| Injection::read(text))?;
        let Some((text, settings)) = read else { return Err("--injection: the file is empty".to_owned()) };
        file.took(Some(text));
        Ok(Self { file, current: Arc::new(ArcSwap::from_pointee(settings)) })
    }

    fn look(&mut self) {
        match self.file.read(|text, _| Injection::read(text)) {
            Ok(Some((text, settings))) => {
                self.current.store(Arc::new(settings));
                self.file.took(Some(text));
                tracing::info!("new pods are injected by the new --injection");
            }
            Ok(None) => self.file.took(None),
            Err(why) => self.file.refuse(why),
        }
    }

    async fn follow(mut self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look();
        }
    }
}

/// Serves until `stopping`.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    doors: CurrentDoors,
    hub: Arc<Hub>,
    stopping: CancellationToken,
) {
    let metrics = Arc::clone(&hub.metrics);
    let webhook = Webhook { settings: Arc::clone(&settings.current), hub, metrics: Arc::clone(&metrics) };
    let full = || metrics.bound("webhook_connections", 1);
    let accepting = accept(listener, stopping, full, |tcp, _| {
        let (webhook, doors) = (webhook.clone(), Arc::clone(&doors));
        async move { timeout(TIME, webhook.connection(tcp, doors)).await.unwrap_or(Ok(())) }
    });
    tokio::select! {
        () = accepting => {}
        () = settings.follow() => {}
    }
}

#[derive(Clone, Debug)]
struct Webhook {
    settings: Arc<ArcSwap<Injection>>,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
}

/// `admission.k8s.io/v1`, as much of it as is needed.
#[derive(Debug, Deserialize)]
struct Review {
    request: Question,
}

#[derive(Debug, Deserialize)]
struct Question {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Webhook {
    async fn connection(&self, tcp: TcpStream, doors: CurrentDoors) -> Result<(), String> {
        let acceptor = TlsAcceptor::from(Arc::clone(&doors.load().bundle));
        let shaken = timeout(HANDSHAKE_TIME, acceptor.accept(tcp)).await.map_err(|late| late.to_string())?;
        let tls = shaken.map_err(|error| {
            self.metrics.handshake_failures.inc();
            tracing::info!(%error, "the API server's handshake with the webhook failed; is its caBundle ours?");
            error.to_string()
        })?;
        http1(tls, true, |request| self.respond(request)).await
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return plain(StatusCode::NOT_FOUND, "pods are injected at /inject\n");
        }
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only POST\n");
        }
        let Ok(body) = Limited::new(request.into_body(), MAX_QUESTION).collect().await else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "the question cannot be read, or is too large\n");
        };
        match self.review(&body.to_bytes()) {
            Ok(answer) => typed(StatusCode::OK, "application/json", answer),
            Err(why) => {
                self.metrics.webhook.asked("failed");
                plain(StatusCode::BAD_REQUEST, &format!("{why}\n"))
            }
        }
    }

    // What a namespace says of the sidecars of its pods.
    fn said_by(&self, namespace: &str) -> BTreeMap<String, String> {
        let said = |compiled: &Compiled| Some(compiled.model().namespaces.get(namespace)?.injection.clone());
        self.hub.compiled(said).unwrap_or_default()
    }

    fn review(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let review: Review = serde_json::from_slice(body).map_err(|error| format!("no AdmissionReview: {error}"))?;
        let key = random_hex(KEY_BYTES).map_err(|error| format!("no key for the sidecar: {error}"))?;
        let answer = self.answer(review.request, &key);
        let review = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer });
        serde_json::to_vec(&review).map_err(|error| error.to_string())
    }

    // `key`: a new one, for the pod's sidecar and its kubelet.
    fn answer(&self, question: Question, key: &str) -> Answer {
        let Question { uid, namespace, operation, object } = question;
        let allowed = Answer { uid, allowed: true, ..Answer::default() };
        // Nothing can be put into a pod that is there.
        if operation != "CREATE" || object.get("spec").is_none() {
            return allowed;
        }
        let said = self.said_by(&namespace);
        let place = Place { annotations: Some(&said), hook_key: Some(key) };
        let outcome = inject_in(place, &self.settings.load(), &object, false);
        self.metrics.webhook.asked(word(&outcome));
        match outcome {
            Ok(Outcome::Injected { pod, warnings }) => {
                let patch = Some(ByteString(patch(&object, &pod).to_string().into_bytes()));
                Answer { patch_type: Some("JSONPatch"), patch, warnings, ..allowed }
            }
            Ok(Outcome::Unchanged | Outcome::Skipped(Skipped::Disabled)) => allowed,
            Ok(Outcome::Skipped(Skipped::Impossible(why))) => {
                tracing::info!(namespace, pod = called(&object), "{why}");
                let warning = format!("weft: {why}. Say so with the label {INJECT}=disabled");
                Answer { warnings: vec![warning], ..allowed }
            }
            Err(Refusal(why)) => {
                tracing::info!(namespace, pod = called(&object), "a pod was refused: {why}");
                let status = json!({ "code": 400, "reason": "BadRequest", "message": format!("weft: {why}") });
                Answer { allowed: false, status: Some(status), ..allowed }
            }
        }
    }
}

fn word(outcome: &Result<Outcome, Refusal>) -> &'static str {
    match outcome {
        Ok(Outcome::Injected { .. }) => "injected",
        Ok(Outcome::Unchanged) => "unchanged",
        Ok(Outcome::Skipped(_)) => "skipped",
        Err(_) => "refused",
    }
}

// A pod that is being made may have no more than the beginning of a name.
fn called(pod: &Value) -> &str {
    let field = |name: &str| pod.get("metadata").and_then(|metadata| metadata.get(name)).and_then(Value::as_str);
    field("name").or(field("generateName")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
