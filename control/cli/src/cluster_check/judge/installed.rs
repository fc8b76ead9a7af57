//! What is installed: control and its certificates, the CA, the webhook, the kinds, the CNI plugin.

use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use serde_json::Value;
use weft_certs::inspect::inspect;
use weft_certs::inspect::words::span;

use super::{Finding, capture, configured, error, has_sidecar, object, ok, some, warning};
use crate::cluster_check::seen::{Seen, is_control};
use crate::install::chart;
use crate::install::kinds::called;
use crate::install::wait::{lacking, trouble};

/// A root with less left wants to be exchanged.
const ROOT_LEFT: Duration = Duration::from_hours(30 * 24);
/// The metric of control that says so, of its own.
pub(super) const EXPIRY: &str = "weft_control_certificate_expiry_timestamp_seconds ";

/// Says whether there is a control.
pub(super) fn control(seen: &Seen, found: &mut Vec<Finding>) -> bool {
    let Some(control) = object(seen, "Deployment weft-system/weft-control") else {
        let remedy = "`weft install`, or `helm install weft`";
        found.push(error("control", "Weft is not installed here", remedy));
        return false;
    };
    let why = seen.pods.iter().filter(|pod| is_control(pod)).find_map(trouble);
    found.push(match lacking(control) {
        None => ok("control", format!("control is ready ({} replicas)", control["status"]["readyReplicas"])),
        Some(lacks) => error(
            "control",
            format!("control: {lacks}{}", why.map(|why| format!(" ({why})")).unwrap_or_default()),
            "kubectl -n weft-system logs deployment/weft-control",
        ),
    });
    let version = control["metadata"]["labels"]["app.kubernetes.io/version"].as_str().unwrap_or_default();
    found.push(if version == chart::VERSION {
        ok("version", format!("control and this command are {version}"))
    } else {
        let message = format!("control is {version}, this command {}", chart::VERSION);
        warning("version", message, "use the command of control's version, or upgrade control")
    });
    true
}

pub(super) fn kinds(seen: &Seen) -> Finding {
    let wanted = weft_api::kinds::crd::definitions();
    for document in weft_api::kinds::documents(&wanted) {
        let Ok(wanted) = weft_api::kinds::parse(document).map(|node| node.to_json()) else { continue };
        let Some(found) = object(seen, &called(&wanted)) else {
            let message = format!("{} is not installed: such policies cannot be written", called(&wanted));
            return error("kinds", message, "`weft upgrade`, or `helm upgrade` with crds.install=true");
        };
        if found["spec"]["versions"][0]["schema"] != wanted["spec"]["versions"][0]["schema"] {
            let message = format!("{} is of another version than this command", called(found));
            return warning("kinds", message, "`weft upgrade`, or `helm upgrade`");
        }
    }
    ok("kinds", "AuthorizationPolicy and RateLimitPolicy are installed")
}

pub(super) fn injection(seen: &Seen) -> Finding {
    let remedy = "`weft upgrade`, or `helm upgrade`, writes it anew";
    match configured(seen) {
        None => error("injection", "ConfigMap weft-injection is missing or cannot be read", remedy),
        Some(found) => match (found["images"]["proxy"].as_str(), found["capture"].as_str()) {
            (Some(image), Some(capture)) => ok("injection", format!("pods get {image}, captured by {capture}")),
            _ => error("injection", "ConfigMap weft-injection names no image, or no capture", remedy),
        },
    }
}

pub(super) fn bundle(seen: &Seen) -> Finding {
    let Some(hook) = object(seen, "MutatingWebhookConfiguration weft-injector") else {
        return error(
            "webhook-ca",
            "the webhook weft-injector is not there: no pod is injected",
            "`weft upgrade`, or `helm upgrade`",
        );
    };
    let hooks = hook["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
    let roots = seen.roots["root.pem"].as_str().unwrap_or_default();
    for hook in hooks {
        let name = hook["name"].as_str().unwrap_or_default();
        let written =
            serde_json::from_value::<ByteString>(hook["clientConfig"]["caBundle"].clone()).unwrap_or_default().0;
        let remedy = "control writes it: kubectl -n weft-system logs deployment/weft-control";
        if written.is_empty() {
            return error(
                "webhook-ca",
                format!("{name} has no caBundle: the API server cannot verify control"),
                remedy,
            );
        }
        if !roots.is_empty() && certificates(&String::from_utf8_lossy(&written)) != certificates(roots) {
            return error("webhook-ca", format!("the caBundle of {name} is not the mesh's roots"), remedy);
        }
    }
    ok("webhook-ca", "the webhook's caBundle is the mesh's roots")
}

/// The certificates of a PEM text, in any order.
fn certificates(pem: &str) -> Vec<String> {
    let mut found: Vec<String> = pem
        .split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .map(|part| part.split("-----END").next().unwrap_or_default().split_whitespace().collect())
        .collect();
    found.sort();
    found
}

pub(super) fn webhook(seen: &Seen) -> Finding {
    let Some((namespace, answer)) = &seen.probe else {
        return error("webhook", "the webhook was not asked", "try again");
    };
    match answer {
        Err(why) => error(
            "webhook",
            format!("a pod cannot be made in {namespace}: {why}"),
            "if it names the webhook: see that control is ready and that the API server reaches it (Service weft-control, port 443, to 15017)",
        ),
        Ok(pod) if has_sidecar(pod) => {
            ok("webhook", format!("a pod that is asked for in {namespace} gets its sidecar"))
        }
        Ok(_) => error(
            "webhook",
            format!("a pod that is asked for in {namespace} gets no sidecar, and no error"),
            "look at failurePolicy and the selectors of MutatingWebhookConfiguration weft-injector",
        ),
    }
}

pub(super) fn roots(seen: &Seen) -> Vec<Finding> {
    let now = seen.now.unwrap_or_else(SystemTime::now);
    let Some(pem) = seen.roots["root.pem"].as_str() else {
        return vec![error(
            "ca",
            "the mesh has no CA yet: ConfigMap weft-ca is empty",
            "control makes it at its first start: see its log",
        )];
    };
    let report = match inspect(pem.as_bytes(), None, now) {
        Ok(report) => report,
        Err(why) => {
            return vec![error("ca", format!("the mesh's roots cannot be read: {why}"), "put ConfigMap weft-ca back")];
        }
    };
    let Some(first) = report.certificates.iter().min_by_key(|one| one.not_after) else { return Vec::new() };
    let rotate = "weft certs rotate-root --ca-secret weft-system/weft-ca";
    vec![match first.not_after.duration_since(now) {
        Err(_) => error("ca", format!("the root {} has expired", first.subject), rotate),
        Ok(left) if left < ROOT_LEFT => {
            warning("ca", format!("the root {} ends in {}", first.subject, span(left)), rotate)
        }
        Ok(left) => ok("ca", format!("the root ends in {}", span(left))),
    }]
}

pub(super) fn own_certificates(seen: &Seen) -> Vec<Finding> {
    let now = seen.now.unwrap_or_else(SystemTime::now);
    let left = |metrics: &String| {
        let seconds: f64 = metrics.lines().find_map(|row| row.strip_prefix(EXPIRY))?.trim().parse().ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?.duration_since(now).ok()
    };
    let judged = seen.metrics.iter().map(|(pod, metrics)| match metrics {
        Ok(metrics) => match left(metrics) {
            Some(left) if left > Duration::from_mins(2) => {
                ok("control-certificate", format!("{pod}'s certificate ends in {}", span(left)))
            }
            _ => error(
                "control-certificate",
                format!("{pod} has no valid certificate"),
                "see why in its log: it renews by itself",
            ),
        },
        Err(why) => warning(
            "control-certificate",
            format!("{pod} cannot be asked for its certificate: {why}"),
            "it is asked by the API server's proxy: you need `get` of pods/proxy in weft-system",
        ),
    });
    judged.collect()
}

pub(super) fn cni(seen: &Seen) -> Option<Finding> {
    let agent = object(seen, "DaemonSet weft-system/weft-cni");
    match (capture(seen).as_str(), agent) {
        ("cni", None) => Some(error(
            "cni",
            "pods are to be captured by the CNI plugin, which is not installed",
            "`weft upgrade --set capture.mode=cni`",
        )),
        (_, None) => None,
        (_, Some(agent)) => {
            let without: Vec<String> = seen.nodes.iter().filter_map(|node| without_agent(seen, node)).collect();
            let remedy = "kubectl -n weft-system get pods -l app.kubernetes.io/name=weft-cni -o wide";
            Some(match (lacking(agent), without.is_empty()) {
                (None, true) => ok("cni", format!("the CNI plugin is on all {} nodes", seen.nodes.len())),
                (Some(lacks), true) => error("cni", format!("the CNI plugin: {lacks}"), remedy),
                (_, false) => {
                    let message =
                        format!("the CNI plugin is not on {}: meshed pods do not start there", some(&without));
                    error("cni", message, remedy)
                }
            })
        }
    }
}

fn without_agent(seen: &Seen, node: &Value) -> Option<String> {
    let name = node["metadata"]["name"].as_str()?;
    let linux = node["metadata"]["labels"]["kubernetes.io/os"].as_str().is_none_or(|os| os == "linux");
    let runs = seen.pods.iter().any(|pod| {
        let conditions = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        pod["metadata"]["labels"]["app.kubernetes.io/name"] == "weft-cni"
            && pod["spec"]["nodeName"] == name
            && conditions.iter().any(|found| found["type"] == "Ready" && found["status"] == "True")
    });
    (linux && !runs).then(|| format!("node {name}"))
}
