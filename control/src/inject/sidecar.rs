//! The sidecar's container and its volumes.

use serde_json::{Value, json};
use weft_api::probe::{HOOK_KEY_VARIABLE, Handlers};

use super::overrides::Settings;
use super::pod::{get_from_sidecar, name};
use super::{DNS, HEALTH, Injection, PROXY, Refusal, Sidecar, UID};

/// Those that are ours.
pub const VOLUMES: [&str; 2] = [IDENTITY, STATE];
/// The pod's token and the mesh's roots.
const IDENTITY: &str = "weft-identity";
/// Memory, for the key and the last good tables.
const STATE: &str = "weft-state";
const IDENTITY_DIR: &str = "/var/run/weft/identity";
const STATE_DIR: &str = "/var/run/weft/state";
/// The kubelet exchanges it long before.
const TOKEN_SECONDS: u32 = 3600;
/// The binary in its image.
const PROGRAM: &str = "/weft-proxy";
/// The flag that has the originals of probes.
const APP_PROBES: &str = "--app-probes";
/// How long a start may take, in seconds: the CA may be away.
const START: u32 = 600;
/// How long one question whether it is ready may wait for the answer.
const START_WAIT: u32 = 10;

/// The container.
pub fn container(
    settings: &Injection,
    own: &Settings,
    probes: &Handlers,
    hook_key: Option<&str>,
    grace: u64,
    application: &[u16],
) -> Result<Value, Refusal> {
    let mut container = json!({
        "name": PROXY,
        "image": own.image,
        "command": [PROGRAM],
        "args": arguments(settings, own, probes, grace)?,
        "env": [
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ],
        "ports": [
            { "name": "weft-metrics", "containerPort": 15020, "protocol": "TCP" },
            { "name": "weft-health", "containerPort": HEALTH, "protocol": "TCP" },
        ],
        "readinessProbe": {
            "httpGet": get_from_sidecar("/healthz/ready"), "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 2,
        },
        "securityContext": restricted(UID),
        "resources": { "requests": own.resources.requests, "limits": own.resources.limits },
        "volumeMounts": [
            { "name": IDENTITY, "mountPath": IDENTITY_DIR, "readOnly": true },
            { "name": STATE, "mountPath": STATE_DIR },
        ],
    });
    if let (Some(key), Some(variables)) = (hook_key, container["env"].as_array_mut()) {
        variables.push(json!({ "name": HOOK_KEY_VARIABLE, "value": key }));
    }
    if let Some(policy) = &settings.images.pull_policy {
        container["imagePullPolicy"] = Value::from(policy.as_str());
    }
    match own.sidecar {
        Sidecar::Native => {
            container["restartPolicy"] = Value::from("Always");
            // The next container begins as soon as it is ready: the answer waits for that, since the kubelet asks once a second at best.
            container["startupProbe"] = json!({
                "httpGet": get_from_sidecar(&format!("/healthz/ready?wait={START_WAIT}")),
                "periodSeconds": 1, "timeoutSeconds": START_WAIT + 1, "failureThreshold": START / START_WAIT,
            });
        }
        Sidecar::Classic => {
            let ports: Vec<_> = application.iter().map(u16::to_string).collect();
            let gone = if ports.is_empty() { String::new() } else { format!("?gone={}", ports.join(",")) };
            // Containers are started in their order, each after the hook of the one before it.
            container["lifecycle"] = json!({
                "postStart": { "exec": { "command": [PROGRAM, "wait", "--for", format!("{START}s")] } },
                // It is told to stop together with the application, and stays for its last calls.
                "preStop": { "httpGet": get_from_sidecar(&format!("/drain-wait{gone}")) },
            });
        }
    }
    Ok(container)
}

fn arguments(settings: &Injection, own: &Settings, probes: &Handlers, grace: u64) -> Result<Vec<String>, Refusal> {
    let pair = |name: &str, value: String| [name.to_owned(), value];
    let mut all = [
        pair("--workload", "$(POD_NAMESPACE)/$(POD_NAME)".to_owned()),
        pair("--identity", format!("spiffe://{}/ns/$(POD_NAMESPACE)/sa/$(SERVICE_ACCOUNT)", settings.trust_domain)),
        pair("--control", settings.control.clone()),
        pair("--control-ca", format!("{IDENTITY_DIR}/root.pem")),
        pair("--token-file", format!("{IDENTITY_DIR}/token")),
        // Its own directory, which nobody but it may open; the volume's is everybody's.
        pair("--state-dir", format!("{STATE_DIR}/proxy")),
        pair("--workers", own.workers.to_string()),
        pair("--drain-deadline", drain_deadline(grace).to_string()),
    ]
    .concat();
    if own.capture.dns_port.is_some() {
        all.extend(pair("--dns-listen", format!("127.0.0.1:{DNS}")));
    }
    if settings.socket_lb {
        all.push("--socket-lb".to_owned());
    }
    if !probes.is_empty() {
        let text = serde_json::to_string(probes);
        let text = text.map_err(|error| Refusal(format!("the probes cannot be written: {error}")))?;
        all.extend(pair(APP_PROBES, argument(&text)));
    }
    Ok(all)
}

/// Of the seconds that the pod has to end: what is left is the application's own time, after the hook has let it go.
fn drain_deadline(grace: u64) -> u64 {
    (grace * 2 / 3).max(1)
}

/// A text as an argument of a container: the kubelet would put variables in place of `$(NAME)`.
pub fn argument(text: &str) -> String {
    text.replace("$(", "$$(")
}

/// What the sidecar of an injection before this one was told.
#[derive(Debug, Default)]
pub struct Known {
    /// Originals of its application's probes.
    pub probes: Handlers,
    /// By which it knows the kubelet.
    pub hook_key: Option<String>,
}

/// What a sidecar that is there already was told.
pub fn known(container: &Value) -> Known {
    let variables = container.get("env").and_then(Value::as_array).into_iter().flatten();
    let hook_key = variables.filter(|variable| name(variable) == HOOK_KEY_VARIABLE).find_map(|variable| {
        let key = variable.get("value")?.as_str()?;
        (!key.is_empty()).then(|| key.to_owned())
    });
    Known { probes: known_probes(container), hook_key }
}

fn known_probes(container: &Value) -> Handlers {
    let arguments = container.get("args").and_then(Value::as_array).into_iter().flatten();
    let mut arguments = arguments.filter_map(Value::as_str).skip_while(|argument| *argument != APP_PROBES).skip(1);
    let text = arguments.next().map(|text| text.replace("$$(", "$("));
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Its volumes.
pub fn volumes(settings: &Injection) -> [Value; 2] {
    let token = json!({ "audience": settings.audience, "expirationSeconds": TOKEN_SECONDS, "path": "token" });
    let roots =
        json!({ "name": settings.roots_config_map, "items": [{ "key": crate::copies::KEY, "path": "root.pem" }] });
    [
        json!({ "name": IDENTITY, "projected": { "sources": [{ "serviceAccountToken": token }, { "configMap": roots }] } }),
        json!({ "name": STATE, "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } }),
    ]
}

fn field(name: &str, path: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } })
}

/// What the restricted Pod Security Standard asks for, of a container that runs as `uid`.
pub fn restricted(uid: u32) -> Value {
    json!({
        "runAsUser": uid,
        "runAsGroup": uid,
        "runAsNonRoot": true,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}
