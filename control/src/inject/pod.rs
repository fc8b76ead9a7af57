//! Reading and editing a pod as data.

use serde_json::{Map, Value, json};

use super::sidecar::Known;
use super::{HEALTH, PORTS, PROXY, Refusal, UID, capture, refused, sidecar};

/// What the API server assumes, in seconds.
const GRACE: u64 = 30;

/// The value of a label.
pub fn label<'p>(pod: &'p Value, name: &str) -> Option<&'p str> {
    pod.pointer("/metadata/labels")?.get(name)?.as_str()
}

/// Its annotations.
pub fn annotations(pod: &Value) -> impl Iterator<Item = (&str, &str)> {
    let all = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    all.into_iter().flatten().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
}

/// Sets an annotation.
pub fn annotate(pod: &mut Value, name: &str, value: &str) {
    let Some(pod) = pod.as_object_mut() else { return };
    let metadata = pod.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[name] = Value::from(value);
}

/// A list of the spec, made if it is not there.
pub fn list<'s>(spec: &'s mut Map<String, Value>, name: &str) -> &'s mut Vec<Value> {
    let found = spec.entry(name).or_insert_with(|| json!([]));
    if !found.is_array() {
        *found = json!([]);
    }
    match found {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list"),
    }
}

/// The entries of a list of the spec.
pub fn entries<'p>(pod: &'p Value, name: &str) -> impl Iterator<Item = &'p Value> {
    pod.get("spec").and_then(|spec| spec.get(name)).and_then(Value::as_array).into_iter().flatten()
}

/// Init containers and containers.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    entries(pod, "initContainers").chain(entries(pod, "containers"))
}

/// What a container, a volume or an owner is called.
pub fn name(of: &Value) -> &str {
    of.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// In seconds.
pub fn grace_period(pod: &Value) -> u64 {
    pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE)
}

/// Where its application takes TCP connections, as far as it says.
pub fn tcp_ports(pod: &Value) -> Vec<u16> {
    let ports = entries(pod, "containers").filter_map(|container| container.get("ports")?.as_array()).flatten();
    let tcp =
        ports.filter(|port| port.get("protocol").and_then(Value::as_str).is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|port| u16::try_from(port.get("containerPort")?.as_u64()?).ok()).collect()
}

/// Whether a Job owns it.
pub fn is_of_job(pod: &Value) -> bool {
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    owners.into_iter().flatten().any(|owner| owner.get("kind").and_then(Value::as_str) == Some("Job"))
}

/// Why it cannot have a sidecar at all.
pub fn impossible(pod: &Value) -> Option<String> {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str);
    if pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true) {
        let why = "a pod on the host's network gets no sidecar: its connections are the node's, and cannot be told from others'";
        return Some(format!("{why}; it stays outside the mesh"));
    }
    if text("/spec/os/name").is_some_and(|os| os != "linux") {
        return Some("a pod of another system than Linux gets no sidecar; it stays outside the mesh".to_owned());
    }
    if annotations(pod).any(|(name, _)| name == "kubernetes.io/config.mirror") {
        return Some("a static pod is the kubelet's own and cannot be changed; it stays outside the mesh".to_owned());
    }
    None
}

/// Refuses what would not work beside a sidecar. Ours is not in it.
pub fn check(pod: &Value) -> Result<(), Refusal> {
    let user = |at: &Value| at.pointer("/securityContext/runAsUser").and_then(Value::as_u64) == Some(u64::from(UID));
    if pod.get("spec").is_some_and(user) {
        return refused(format!(
            "the pod runs as uid {UID}, which is the sidecar's: its traffic would pass by the mesh; take another uid"
        ));
    }
    for container in containers(pod) {
        let name = name(container);
        if user(container) {
            return refused(format!(
                "container {name} runs as uid {UID}, which is the sidecar's: its traffic would pass by the mesh; take another uid"
            ));
        }
        let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let ports = ports.filter_map(|port| u16::try_from(port.get("containerPort")?.as_u64()?).ok());
        if let Some(port) = ports.into_iter().find(|port| PORTS.contains(port)) {
            return refused(format!("container {name} has port {port}, which is the sidecar's; take another one"));
        }
    }
    Ok(())
}

/// Takes out what an injection has put in, and gives back what the sidecar knew.
pub fn take_out(pod: &mut Value) -> Known {
    let known = containers(pod).find(|container| name(container) == PROXY).map(sidecar::known).unwrap_or_default();
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return known };
    for (part, ours) in [
        ("initContainers", &[PROXY, capture::INSTALL, capture::VALIDATE][..]),
        ("containers", &[PROXY]),
        ("volumes", &sidecar::VOLUMES),
    ] {
        if let Some(Value::Array(entries)) = spec.get_mut(part) {
            entries.retain(|entry| !ours.contains(&name(entry)));
        }
    }
    known
}

/// Names Secrets by which images are pulled, beside those of the pod.
pub fn pull_by(spec: &mut Map<String, Value>, secrets: &[String]) {
    for secret in secrets {
        let known = list(spec, "imagePullSecrets");
        if !known.iter().any(|one| name(one) == secret) {
            known.push(json!({ "name": secret }));
        }
    }
}

/// A GET of the kubelet's to the sidecar.
pub fn get_from_sidecar(path: &str) -> Value {
    json!({ "path": path, "port": HEALTH, "scheme": "HTTP" })
}
