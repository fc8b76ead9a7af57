//! The init container that writes the rules, or proves that the CNI plugin has.

use serde_json::{Value, json};

use super::overrides::Settings;
use super::sidecar::{argument, restricted};
use super::{Capture, Injection, Refusal};

/// Writes the rules.
pub const INSTALL: &str = "weft-capture";
/// Proves that they are there.
pub const VALIDATE: &str = "weft-validate";
/// The binary in its image.
const PROGRAM: &str = "/weft-capture";
/// Whom it runs as where it needs no rights.
const NOBODY: u32 = 65534;

/// What is captured, as JSON.
pub fn text(own: &Settings) -> Result<String, Refusal> {
    own.capture.check().map_err(|error| Refusal(error.to_string()))?;
    Ok(own.capture.to_json())
}

/// The container.
pub fn container(settings: &Injection, own: &Settings) -> Result<Value, Refusal> {
    let (name, action, security) = match settings.capture {
        Capture::Init => (INSTALL, "install", privileged()),
        Capture::Cni => (VALIDATE, "validate", restricted(NOBODY)),
    };
    let mut container = json!({
        "name": name,
        "image": settings.images.capture,
        "command": [PROGRAM],
        "args": [action, "--settings", argument(&text(own)?)],
        "securityContext": security,
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
    });
    if let Some(policy) = &settings.images.pull_policy {
        container["imagePullPolicy"] = Value::from(policy.as_str());
    }
    Ok(container)
}

// Rules are written with this one right, and only root of a container can be given it.
fn privileged() -> Value {
    let mut security = restricted(0);
    security["runAsNonRoot"] = Value::from(false);
    security["capabilities"]["add"] = json!(["NET_ADMIN"]);
    security
}
