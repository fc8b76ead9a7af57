//! What is asked of a cluster for `weft check`: gathered once, judged elsewhere ([`super::judge`]), so that judgements can be tested on what was recorded.

use std::time::{Duration, SystemTime};

use http::{Method, Request};
use serde_json::{Value, json};
use weft_control::cluster::Access;

use crate::exit::Failure;
use crate::install::kinds::{KINDS, Kind};
use crate::install::server::{Server, failed};
use crate::install::state::{self, NAMESPACE, State};

/// A pod that nobody starts, for the webhook to be asked about.
const PROBE: &str = "weft-check";

/// Everything that is judged. What could not be read is `null`, and [`Seen::unread`] says why.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `/version`.
    pub version: Value,
    /// Seconds by which the API server's clock is before ours; negative: behind.
    pub skew: Option<i64>,
    /// Plurals of `gateway.networking.k8s.io/v1`.
    pub gateway: Vec<String>,
    /// What may not be done: `VERB KIND`.
    pub denied: Vec<String>,
    /// What is installed.
    pub state: Option<State>,
    /// Objects of the chart, whoever installed them.
    pub objects: Vec<Value>,
    /// All namespaces.
    pub namespaces: Vec<Value>,
    /// All pods.
    pub pods: Vec<Value>,
    /// All nodes.
    pub nodes: Vec<Value>,
    /// Data of ConfigMap kube-system/kube-proxy.
    pub kube_proxy: Value,
    /// Data of ConfigMap kube-system/cilium-config.
    pub cilium: Value,
    /// Data of ConfigMap weft-system/weft-ca.
    pub roots: Value,
    /// Of each pod of control by name: its metrics, or why they cannot be had.
    pub metrics: Vec<(String, Result<String, String>)>,
    /// What came of asking for a pod, without making it, in this namespace.
    pub probe: Option<(String, Result<Value, String>)>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
    /// When that was.
    pub now: Option<SystemTime>,
}

impl Seen {
    /// Asks the API server; with `pre` only what can be asked before an installation.
    ///
    /// # Errors
    /// It cannot be asked at all.
    pub async fn gather(access: &Access, pre: bool) -> Result<Self, Failure> {
        let server = Server::new(access).await?;
        let version = server.get("/version").await.map_err(failed("the API server"))?.unwrap_or_default();
        let mut seen = Self { version, now: Some(SystemTime::now()), skew: skew(access).await, ..Self::default() };
        seen.gateway = seen.kinds(&server).await;
        seen.state = seen.kept("what is installed", State::read(&server).await);
        seen.namespaces = seen.all(&server, "namespaces").await;
        seen.nodes = seen.all(&server, "nodes").await;
        seen.kube_proxy = seen.data(&server, "kube-system", "kube-proxy").await;
        seen.cilium = seen.data(&server, "kube-system", "cilium-config").await;
        if pre {
            seen.denied = seen.denied(&server).await;
            return Ok(seen);
        }
        let objects = state::wefts(&server).await;
        seen.objects = seen.kept("Weft's objects", objects).unwrap_or_default();
        seen.pods = seen.all(&server, "pods").await;
        seen.roots = seen.data(&server, NAMESPACE, "weft-ca").await;
        seen.metrics = metrics(&server, &seen.pods).await;
        seen.probe = probe(&server, &seen.namespaces).await;
        Ok(seen)
    }

    fn kept<T, E: std::fmt::Display>(&mut self, what: &str, answer: Result<T, E>) -> Option<T> {
        answer.map_err(|error| self.unread.push(format!("{what}: {error}"))).ok()
    }

    async fn all(&mut self, server: &Server, plural: &str) -> Vec<Value> {
        let answer = server.list(&format!("/api/v1/{plural}"), "").await;
        self.kept(plural, answer).unwrap_or_default()
    }

    async fn data(&mut self, server: &Server, namespace: &str, name: &str) -> Value {
        let answer = server.get(&format!("/api/v1/namespaces/{namespace}/configmaps/{name}")).await;
        let found = self.kept(&format!("ConfigMap {namespace}/{name}"), answer).flatten();
        found.map(|mut found| found["data"].take()).unwrap_or_default()
    }

    async fn kinds(&mut self, server: &Server) -> Vec<String> {
        let answer = server.get("/apis/gateway.networking.k8s.io/v1").await;
        let found = self.kept("kinds of Gateway API", answer).flatten().unwrap_or_default();
        let listed = found["resources"].as_array().map_or(&[][..], Vec::as_slice);
        listed
            .iter()
            .filter_map(|kind| kind["name"].as_str())
            .filter(|name| !name.contains('/'))
            .map(str::to_owned)
            .collect()
    }

    /// What an installation needs and who asks may not.
    async fn denied(&mut self, server: &Server) -> Vec<String> {
        let mut denied = Vec::new();
        for kind in KINDS.into_iter().filter(|kind| !kind.api_version.starts_with("monitoring")) {
            for verb in ["get", "list", "create", "patch", "delete"] {
                let group = kind.api_version.split_once('/').map_or("", |(group, _)| group);
                let asked = json!({"group": group, "resource": kind.plural, "verb": verb,
                    "namespace": if kind.namespaced { NAMESPACE } else { "" }});
                let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                    "spec": {"resourceAttributes": asked}});
                let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
                let answer = server.ask(Method::POST, path, "application/json", Some(&review)).await;
                match self.kept("permissions", answer) {
                    Some(answer) if answer["status"]["allowed"] == true => {}
                    Some(_) => denied.push(format!("{verb} {}", kind.plural)),
                    None => return denied,
                }
            }
        }
        denied
    }
}

/// By the `Date` of an answer, half of the way to it taken off.
async fn skew(access: &Access) -> Option<i64> {
    let client = access.client().await.ok()?;
    let request = Request::get("/version").body(kube::client::Body::empty()).ok()?;
    let asked = SystemTime::now();
    let answer = tokio::time::timeout(Duration::from_secs(5), client.send(request)).await.ok()?.ok()?;
    let took = asked.elapsed().unwrap_or_default();
    let ours = asked.checked_add(took / 2)?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let theirs = http_date(answer.headers().get("date")?.to_str().ok()?)?;
    i64::try_from(theirs).ok()?.checked_sub(i64::try_from(ours).ok()?)
}

/// Seconds since 1970 of a time such as `Sun, 22 Nov 2026 21:07:44 GMT`.
pub fn http_date(text: &str) -> Option<u64> {
    let mut parts = text.strip_suffix(" GMT")?.split_whitespace().skip(1);
    let (day, month, year, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? + 1;
    weft_api::kinds::unix_seconds(&format!("{year}-{month:02}-{day}T{time}Z"))
}

async fn metrics(server: &Server, pods: &[Value]) -> Vec<(String, Result<String, String>)> {
    let mut found = Vec::new();
    for pod in pods.iter().filter(|pod| is_control(pod)).take(8) {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:15014/proxy/metrics");
        let answer = server.text(&path).await.map_err(|error| error.to_string());
        found.push((name, answer));
    }
    found
}

/// Whether a pod is one of control's.
pub fn is_control(pod: &Value) -> bool {
    pod["metadata"]["namespace"] == NAMESPACE && pod["metadata"]["labels"]["app.kubernetes.io/name"] == "weft-control"
}

/// Whether a namespace is meshed.
pub fn is_meshed(namespace: &Value) -> bool {
    let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
    namespace["metadata"]["labels"]["weft.dev/inject"] == "enabled" && !never(name)
}

/// Namespaces that the webhook passes by.
pub fn never(namespace: &str) -> bool {
    matches!(namespace, "kube-system" | "kube-node-lease" | "kube-public" | NAMESPACE)
}

/// Asks for a pod in a meshed namespace, or for a meshed one in `default`, and makes none.
async fn probe(server: &Server, namespaces: &[Value]) -> Option<(String, Result<Value, String>)> {
    let meshed =
        namespaces.iter().find(|namespace| is_meshed(namespace) && namespace["status"]["phase"] != "Terminating");
    let namespace = meshed.and_then(|found| found["metadata"]["name"].as_str()).unwrap_or("default").to_owned();
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": PROBE, "namespace": namespace, "labels": {"weft.dev/inject": "enabled"}},
        "spec": {"restartPolicy": "Never", "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": PROBE, "image": PROBE,
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
    let path = format!("{}?dryRun=All", Kind { plural: "pods", ..Kind::named("ConfigMap") }.path(Some(&namespace)));
    let answer = server.ask_through_webhooks(&path, &pod).await;
    Some((namespace, answer))
}
