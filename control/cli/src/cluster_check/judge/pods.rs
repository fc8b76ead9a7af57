//! Pods: who is in the mesh, who is to be and is not, and whose connections are not captured.

use serde_json::Value;

use super::{Finding, configured, containers, error, has_sidecar, ok, some, warning};
use crate::cluster_check::seen::{Seen, is_meshed, never};
use crate::install::remove::workload;

const ANEW: &str = "start them anew: kubectl -n NAMESPACE rollout restart KIND/NAME";

/// Those that live, judged where Weft is installed, or is not any more.
pub(super) fn sidecars(seen: &Seen, installed: bool) -> Vec<Finding> {
    let lives = |pod: &&Value| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let pods: Vec<&Value> = seen.pods.iter().filter(lives).collect();
    let with: Vec<&Value> = pods.iter().copied().filter(|pod| is_injected(pod)).collect();
    if !installed {
        let message = || format!("these have sidecars and no control: {}", some(&names(&with)));
        let remedy = "start them anew, or install Weft again with the CA of before";
        return (!with.is_empty()).then(|| error("orphans", message(), remedy)).into_iter().collect();
    }
    let (host, without): (Vec<&Value>, Vec<&Value>) =
        wanting(seen, &pods).into_iter().partition(|pod| pod["spec"]["hostNetwork"] == true);
    let mut found = Vec::new();
    if !host.is_empty() {
        let message = format!("pods on the host's network have no sidecar: {}", some(&names(&host)));
        found.push(warning("host-network", message, "label them weft.dev/inject=disabled to say that it is meant"));
    }
    found.extend(capture_fails(seen));
    found.push(if without.is_empty() {
        ok("uninjected", format!("all pods of meshed namespaces have a sidecar ({})", with.len()))
    } else {
        warning("uninjected", format!("these are to be meshed and have no sidecar: {}", some(&names(&without))), ANEW)
    });
    found.extend(other_version(seen, &with));
    found
}

fn is_injected(pod: &Value) -> bool {
    pod["metadata"]["annotations"]["weft.dev/injected"] == "true" && has_sidecar(pod)
}

/// Those that the webhook would put a sidecar into, and that have none.
fn wanting<'a>(seen: &Seen, pods: &[&'a Value]) -> Vec<&'a Value> {
    let meshed = seen.namespaces.iter().filter(|one| is_meshed(one));
    let meshed: Vec<&str> = meshed.filter_map(|one| one["metadata"]["name"].as_str()).collect();
    let wanted = |pod: &Value| {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        match pod["metadata"]["labels"]["weft.dev/inject"].as_str() {
            Some("disabled") => false,
            Some("enabled") => !never(namespace),
            _ => meshed.contains(&namespace),
        }
    };
    pods.iter().copied().filter(|pod| wanted(pod) && !is_injected(pod)).collect()
}

fn names(pods: &[&Value]) -> Vec<String> {
    let mut names: Vec<String> = pods.iter().map(|pod| workload(pod)).collect();
    names.sort();
    names.dedup();
    names
}

fn other_version(seen: &Seen, with: &[&Value]) -> Option<Finding> {
    let configured = configured(seen)?;
    let image = configured["images"]["proxy"].as_str().filter(|image| !image.is_empty())?;
    let tag = |image: &str| image.rsplit_once(':').map(|(_, tag)| tag.to_owned());
    let other = |pod: &&Value| {
        let own = pod["metadata"]["annotations"]["weft.dev/proxy-image"].is_string();
        let sidecar = containers(pod).find(|container| container["name"] == "weft-proxy");
        let runs = sidecar.and_then(|container| container["image"].as_str());
        !own && runs.is_some_and(|runs| tag(runs) != tag(image))
    };
    let other: Vec<&Value> = with.iter().copied().filter(other).collect();
    let message = || {
        let wanted = tag(image).unwrap_or_default();
        format!("these have sidecars of another version than {wanted}: {}", some(&names(&other)))
    };
    (!other.is_empty()).then(|| warning("sidecar-version", message(), ANEW))
}

/// Pods whose connections do not come to their sidecars, by the init container that sees to it.
fn capture_fails(seen: &Seen) -> Option<Finding> {
    let fails = |pod: &&Value| {
        let statuses = pod["status"]["initContainerStatuses"].as_array().map_or(&[][..], Vec::as_slice);
        statuses.iter().any(|status| {
            let ours = matches!(status["name"].as_str(), Some("weft-capture" | "weft-validate"));
            let failed = |state: &str| status[state]["terminated"]["exitCode"].as_i64().is_some_and(|code| code != 0);
            ours && status["ready"] != true && (failed("state") || failed("lastState"))
        })
    };
    let names = names(&seen.pods.iter().filter(fails).collect::<Vec<_>>());
    let message = || format!("the connections of these are not captured, so they do not start: {}", some(&names));
    let remedy = "kubectl logs POD -c weft-capture, or -c weft-validate where the CNI plugin captures, says why";
    (!names.is_empty()).then(|| error("capture", message(), remedy))
}
