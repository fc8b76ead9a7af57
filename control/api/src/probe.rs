//! Probes and hooks of an application that its sidecar runs in the kubelet's place: what the injector takes out of a pod and hands to the
//! sidecar (`weft-proxy --app-probes`).
//!
//! The kubelet has no identity of the mesh, so that a strict port refuses it. The injector sends it to the sidecar's health port instead, at
//! [`path`], and the sidecar asks the application, from inside the pod. Shapes and defaults are the kubelet's own (core/v1 `Probe`,
//! `LifecycleHandler`), with port numbers where a pod may have names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// First part of the paths.
const PREFIX: &str = "/app/";

/// What the kubelet calls a handler for: the field of a container that has it.
pub const KINDS: [&str; 5] = ["livenessProbe", "readinessProbe", "startupProbe", "preStop", "postStart"];

/// Those of them that make the application do something. The kubelet calls them alone.
pub const HOOKS: [&str; 2] = ["preStop", "postStart"];

/// The header in which the kubelet shows, at a hook, that it was the injector who sent it to the sidecar.
pub const HOOK_KEY_HEADER: &str = "x-weft-hook-key";
/// The sidecar's environment variable that has the same key. The injector gives no flag, which sidecars of before it would refuse.
pub const HOOK_KEY_VARIABLE: &str = "WEFT_HOOK_KEY";

/// Handlers by `CONTAINER/KIND`.
pub type Handlers = BTreeMap<String, Handler>;

/// Where the kubelet is sent for a container's handler.
pub fn path(container: &str, kind: &str) -> String {
    format!("{PREFIX}{container}/{kind}")
}

/// The key of [`Handlers`] that a path means, if it is one of ours.
pub fn key(path: &str) -> Option<&str> {
    let key = path.strip_prefix(PREFIX)?;
    let (container, kind) = key.split_once('/')?;
    (!container.is_empty() && KINDS.contains(&kind)).then_some(key)
}

/// Whether a path is that of a container's hook.
pub fn is_hook(path: &str) -> bool {
    key(path).and_then(|key| key.split_once('/')).is_some_and(|(_, kind)| HOOKS.contains(&kind))
}

/// One thing that the kubelet would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handler {
    /// What.
    #[serde(flatten)]
    pub ask: Ask,
    /// How long the kubelet waits, in seconds.
    #[serde(default = "second")]
    pub timeout_seconds: u32,
}

/// A question to the application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// Good if it answers with 200 to 399.
    HttpGet(HttpGet),
    /// Good if it takes a connection.
    TcpSocket(TcpSocket),
    /// Good if `grpc.health.v1.Health/Check` answers SERVING.
    Grpc(Grpc),
}

impl Ask {
    /// The application's port.
    pub fn port(&self) -> u16 {
        match self {
            Self::HttpGet(ask) => ask.port,
            Self::TcpSocket(ask) => ask.port,
            Self::Grpc(ask) => ask.port,
        }
    }
}

/// An HTTP request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Port of the pod.
    pub port: u16,
    /// Path and query; none means `/`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// HTTP, or HTTPS with any certificate.
    #[serde(default)]
    pub scheme: Scheme,
    /// Header fields in their order; `Host` among them is the request's authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<Field>,
}

/// How HTTP is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    /// In the clear.
    #[default]
    Http,
    /// Over TLS; nobody's certificate is checked, as the kubelet checks none.
    Https,
}

/// A header field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpSocket {
    /// Port of the pod.
    pub port: u16,
}

/// The gRPC health protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grpc {
    /// Port of the pod.
    pub port: u16,
    /// Of which service; none means the server as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

fn second() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_read_and_written_as_kubernetes_has_them() {
        let text = r#"{"web/livenessProbe":{"httpGet":{"port":8080,"path":"/ok","scheme":"HTTPS","httpHeaders":[{"name":"a","value":"b"}]},"timeoutSeconds":3},"web/preStop":{"tcpSocket":{"port":1},"timeoutSeconds":1}}"#;
        let read: Handlers = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let short: Handler = serde_json::from_str(r#"{"grpc":{"port":9}}"#).unwrap();
        assert_eq!(short, Handler { ask: Ask::Grpc(Grpc { port: 9, service: String::new() }), timeout_seconds: 1 });
        assert_eq!(short.ask.port(), 9);
        for bad in [r#"{"timeoutSeconds":1}"#, r#"{"httpGet":{"port":"web"}}"#, r#"{"exec":{"command":["true"]}}"#] {
            assert!(serde_json::from_str::<Handler>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_paths_of_ours_have_a_key() {
        assert_eq!(key(&path("web", "readinessProbe")), Some("web/readinessProbe"));
        for other in ["/app/", "/app/web", "/app//preStop", "/app/web/exec", "/healthz/ready"] {
            assert_eq!(key(other), None, "{other}");
        }
    }
}
