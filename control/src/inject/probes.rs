//! The kubelet is sent to the sidecar with what it asks of the application over the network: a strict port would refuse it, who has no
//! identity of the mesh. `exec` stays as it is, and so does what names another host than the pod.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weft_api::probe::{
    Ask, Field, Grpc, HOOK_KEY_HEADER, HOOKS, Handler, Handlers, HttpGet, Scheme, TcpSocket, key, path,
};

use super::pod::{get_from_sidecar, list, name};
use super::{HEALTH, Refusal, refused};

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// A hook has no time of its own: the kubelet waits for it as long as the pod has to end, which it alone measures.
const HOOK_SECONDS: u32 = 3600;

/// Sends the kubelet to the sidecar, and says what the sidecar is to ask.
pub fn rewrite(spec: &mut Map<String, Value>, known: &Handlers) -> Result<Handlers, Refusal> {
    let mut handlers = Handlers::new();
    for part in ["initContainers", "containers"] {
        for container in spec.get_mut(part).and_then(Value::as_array_mut).into_iter().flatten() {
            let mut rewriting = Rewriting::of(container, known);
            for kind in PROBES {
                rewriting.one(container.get_mut(kind), kind)?;
            }
            for kind in HOOKS {
                rewriting.one(container.get_mut("lifecycle").and_then(|hooks| hooks.get_mut(kind)), kind)?;
            }
            handlers.append(&mut rewriting.handlers);
        }
    }
    Ok(handlers)
}

/// Lets each application container wait, before it is told to stop, until nobody chooses the pod any more; one with a hook of its own knows
/// better.
pub fn drain_first(spec: &mut Map<String, Value>) {
    for container in list(spec, "containers") {
        let Some(container) = container.as_object_mut() else { continue };
        let hooks = container.entry("lifecycle").or_insert_with(|| json!({}));
        if hooks.is_null() {
            *hooks = json!({});
        }
        if let Some(hooks) = hooks.as_object_mut() {
            hooks.entry("preStop").or_insert_with(|| json!({ "httpGet": get_from_sidecar("/drain-wait") }));
        }
    }
}

/// Lets the kubelet show the sidecar's key at each hook that asks the sidecar.
pub fn show_key(spec: &mut Map<String, Value>, key: &str) {
    for part in ["initContainers", "containers"] {
        for container in spec.get_mut(part).and_then(Value::as_array_mut).into_iter().flatten() {
            for kind in HOOKS {
                let get = container.get_mut("lifecycle").and_then(|hooks| hooks.get_mut(kind)?.get_mut("httpGet"));
                if let Some(get) = get.filter(|get| get.get("port").and_then(number) == Some(HEALTH)) {
                    show(get, key);
                }
            }
        }
    }
}

// In a field of its own, which sidecars of before it do not look at.
fn show(get: &mut Value, key: &str) {
    let Some(get) = get.as_object_mut() else { return };
    let fields = list(get, "httpHeaders");
    fields.retain(|field| !name(field).eq_ignore_ascii_case(HOOK_KEY_HEADER));
    fields.push(json!({ "name": HOOK_KEY_HEADER, "value": key }));
}

// Of one container.
struct Rewriting<'k> {
    container: String,
    ports: BTreeMap<String, u16>,
    known: &'k Handlers,
    handlers: Handlers,
}

impl<'k> Rewriting<'k> {
    fn of(container: &Value, known: &'k Handlers) -> Self {
        let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let ports = ports.filter_map(|port| Some((name(port).to_owned(), number(port.get("containerPort")?)?)));
        let ports = ports.filter(|(name, _)| !name.is_empty()).collect();
        Self { container: name(container).to_owned(), ports, known, handlers: Handlers::new() }
    }

    fn one(&mut self, at: Option<&mut Value>, kind: &str) -> Result<(), Refusal> {
        let Some(handler) = at.and_then(Value::as_object_mut) else { return Ok(()) };
        let to = path(&self.container, kind);
        let own_key = key(&to).unwrap_or_default();
        if is_ours(handler, &to) {
            let Some(known) = self.known.get(own_key) else {
                return refused(format!(
                    "container {}: {kind} asks the sidecar at {to}, but no sidecar says what it was; write the probe as it was",
                    self.container
                ));
            };
            self.handlers.insert(own_key.to_owned(), known.clone());
            return Ok(());
        }
        // What asks the sidecar itself, such as our own hook, asks it directly; a container without a name is refused by the API server.
        let asked = self.ask(handler).filter(|(_, ask)| ask.port() != HEALTH && !own_key.is_empty());
        let Some((field, ask)) = asked else { return Ok(()) };
        let said = handler.get("timeoutSeconds").and_then(Value::as_u64).and_then(|s| u32::try_from(s).ok());
        let otherwise = if HOOKS.contains(&kind) { HOOK_SECONDS } else { 1 };
        let timeout_seconds = said.filter(|seconds| *seconds > 0).unwrap_or(otherwise);
        handler.remove(field);
        handler.insert("httpGet".to_owned(), get_from_sidecar(&to));
        self.handlers.insert(own_key.to_owned(), Handler { ask, timeout_seconds });
        Ok(())
    }

    // What the kubelet would ask over the network, of the pod itself. What it would fail at, such as a port by a name that no port has, is left
    // for it to fail at.
    fn ask(&self, handler: &Map<String, Value>) -> Option<(&'static str, Ask)> {
        let at_pod = |ask: &Value| ask.get("host").and_then(Value::as_str).is_none_or(str::is_empty);
        let text = |ask: &Value, field: &str| ask.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(get) = handler.get("httpGet").filter(|get| at_pod(get)) {
            let https = get.get("scheme").and_then(Value::as_str).is_some_and(|scheme| scheme == "HTTPS");
            let fields = get.get("httpHeaders").and_then(Value::as_array).into_iter().flatten();
            return Some((
                "httpGet",
                Ask::HttpGet(HttpGet {
                    port: self.port(get)?,
                    path: text(get, "path"),
                    scheme: if https { Scheme::Https } else { Scheme::Http },
                    http_headers: fields
                        .map(|field| Field { name: name(field).to_owned(), value: text(field, "value") })
                        .collect(),
                }),
            ));
        }
        if let Some(socket) = handler.get("tcpSocket").filter(|socket| at_pod(socket)) {
            return Some(("tcpSocket", Ask::TcpSocket(TcpSocket { port: self.port(socket)? })));
        }
        let grpc = handler.get("grpc")?;
        Some(("grpc", Ask::Grpc(Grpc { port: self.port(grpc)?, service: text(grpc, "service") })))
    }

    // A number, or the name of one of the container's ports, or a number in quotes: in the kubelet's order.
    fn port(&self, ask: &Value) -> Option<u16> {
        let port = ask.get("port")?;
        let Some(text) = port.as_str() else { return number(port) };
        self.ports.get(text).copied().or_else(|| text.parse().ok()).filter(|port| *port > 0)
    }
}

fn is_ours(handler: &Map<String, Value>, to: &str) -> bool {
    let Some(get) = handler.get("httpGet") else { return false };
    get.get("port").and_then(number) == Some(HEALTH) && get.get("path").and_then(Value::as_str) == Some(to)
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)
}
