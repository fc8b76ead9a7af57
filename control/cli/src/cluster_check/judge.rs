//! What was seen of a cluster -> findings. Pure: a table of recorded objects tests it.

use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use serde_json::Value;
use weft_certs::inspect::inspect;
use weft_certs::inspect::words::span;

use super::seen::{Seen, is_control, is_meshed, never};
use super::{Finding, Level};
use crate::install::kinds::called;
use crate::install::remove::workload;
use crate::install::state::State;
use crate::install::wait::{lacking, trouble};
use crate::install::{OLDEST, chart, minor};

/// Clocks may differ by this: certificates begin a little before they are made.
const CLOCK: i64 = 30;
/// A root with less left wants to be exchanged.
const ROOT_LEFT: Duration = Duration::from_hours(30 * 24);
/// Names in one sentence.
const NAMED: usize = 5;
const EXPIRY: &str = "weft_control_certificate_expiry_timestamp_seconds ";

fn finding(id: &'static str, level: Level, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { id, level, message: message.into(), remedy: remedy.into(), docs: format!("docs/check.md#{id}") }
}

fn ok(id: &'static str, message: impl Into<String>) -> Finding {
    finding(id, Level::Ok, message, "")
}

fn warning(id: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(id, Level::Warning, message, remedy)
}

fn error(id: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(id, Level::Error, message, remedy)
}

/// Before an installation.
pub fn before(seen: &Seen) -> Vec<Finding> {
    let mut found = vec![version(seen), clock(seen), gateway(seen), permissions(seen)];
    found.push(match &seen.state {
        Some(State::Nothing) => ok("installed", "nothing of Weft is here yet"),
        Some(State::Begun) => {
            warning("installed", "an installation was begun here and not ended", "give `weft install` again")
        }
        Some(State::Ours { version, .. }) => {
            error("installed", format!("Weft {version} is here already"), "`weft upgrade` changes it")
        }
        Some(State::Helm { release }) => error(
            "installed",
            format!("Weft was installed here by Helm (release {release})"),
            format!("`helm upgrade {release}` changes it"),
        ),
        Some(State::Foreign { what }) => {
            error("installed", format!("{what} is here, and neither weft nor Helm has made it"), "remove it")
        }
        None => unread(seen),
    });
    found.extend(setting(seen));
    found.extend(seen.unread.iter().map(|why| error("unread", why.clone(), "see that it may be read")));
    found
}

/// After it.
pub fn after(seen: &Seen) -> Vec<Finding> {
    let mut found = vec![version(seen), clock(seen), gateway(seen)];
    let installed = control(seen, &mut found);
    found.extend(setting(seen));
    if installed {
        found.extend([kinds(seen), injection(seen), bundle(seen), webhook(seen)]);
        found.extend(roots(seen));
        found.extend(own_certificates(seen));
        found.extend(cni(seen));
    }
    found.extend(sidecars(seen, installed));
    found.extend(seen.unread.iter().map(|why| error("unread", why.clone(), "see that it may be read")));
    found
}

fn unread(seen: &Seen) -> Finding {
    error(
        "unread",
        format!("what is installed cannot be told ({} things cannot be read)", seen.unread.len()),
        "see below",
    )
}

fn version(seen: &Seen) -> Finding {
    let called = seen.version["gitVersion"].as_str().unwrap_or("of no version that it tells");
    match minor(&seen.version) {
        Some(minor) if minor >= OLDEST => ok("kubernetes-version", format!("Kubernetes {called}")),
        _ => error(
            "kubernetes-version",
            format!("Kubernetes {called} is too old"),
            format!("bring the cluster to 1.{OLDEST} or later"),
        ),
    }
}

fn clock(seen: &Seen) -> Finding {
    match seen.skew {
        Some(skew) if skew.abs() <= CLOCK => ok("clock", "the API server's clock and this one agree"),
        Some(skew) => warning(
            "clock",
            format!(
                "the API server's clock is {} s {} this one",
                skew.abs(),
                if skew > 0 { "before" } else { "behind" }
            ),
            "run NTP on all nodes: certificates and tokens are refused before their time and after it",
        ),
        None => warning("clock", "the API server does not tell its time", "compare the clocks of the nodes yourself"),
    }
}

fn gateway(seen: &Seen) -> Finding {
    let lacks: Vec<&str> =
        ["httproutes", "grpcroutes"].into_iter().filter(|kind| !seen.gateway.iter().any(|has| has == kind)).collect();
    if lacks.is_empty() {
        return ok("gateway-api", format!("Gateway API: {}", seen.gateway.join(", ")));
    }
    warning(
        "gateway-api",
        format!("Gateway API's {} are not installed: no routes can be written", lacks.join(" and ")),
        "kubectl apply -f its standard-install.yaml of v1.5 or later; control takes them up by itself",
    )
}

fn permissions(seen: &Seen) -> Finding {
    if seen.denied.is_empty() {
        return ok("permissions", "you may make everything that an installation makes");
    }
    error("permissions", format!("you may not {}", some(&seen.denied)), "ask for cluster-admin, or for those rights")
}

/// `a, b and 3 more`.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{shown} and {} more", names.len() - NAMED) } else { shown }
}

/// What of the cluster's own setting does not go with a mesh.
fn setting(seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    let of = |data: &Value, key: &str| data[key].as_str().unwrap_or_default().to_owned();
    if seen.cilium.is_object() {
        let replaces = matches!(of(&seen.cilium, "kube-proxy-replacement").as_str(), "true" | "strict");
        let sockets = replaces || of(&seen.cilium, "bpf-lb-sock") == "true";
        found.push(if sockets && of(&seen.cilium, "bpf-lb-sock-hostns-only") != "true" {
            error(
                "socket-lb",
                "Cilium rewrites the addresses of Services in pods' sockets, before a sidecar sees them: routes and policies of Services would not count",
                "set socketLB.hostNamespaceOnly=true in Cilium's values",
            )
        } else {
            ok("socket-lb", "Cilium leaves the addresses of Services in pods alone")
        });
    }
    if seen.kube_proxy.is_object() {
        let text = of(&seen.kube_proxy, "config.conf");
        let mode = text
            .lines()
            .find_map(|row| row.trim().strip_prefix("mode:"))
            .map(|mode| mode.trim().trim_matches('"').to_owned());
        let mode = mode.filter(|mode| !mode.is_empty()).unwrap_or_else(|| "iptables".to_owned());
        found.push(if matches!(mode.as_str(), "iptables" | "nftables" | "ipvs") {
            ok("kube-proxy", format!("kube-proxy in mode {mode}"))
        } else {
            warning(
                "kube-proxy",
                format!("kube-proxy in mode {mode}, which was never tried"),
                "use nftables or iptables",
            )
        });
    }
    let other = |namespace: &Value| {
        let meta = &namespace["metadata"];
        let istio = meta["labels"]["istio-injection"] == "enabled"
            || !meta["labels"]["istio.io/rev"].is_null()
            || !meta["labels"]["istio.io/dataplane-mode"].is_null();
        let linkerd = matches!(meta["annotations"]["linkerd.io/inject"].as_str(), Some("enabled" | "ingress"));
        if istio { Some("Istio") } else { linkerd.then_some("Linkerd") }
    };
    for namespace in seen.namespaces.iter().filter(|namespace| is_meshed(namespace)) {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        if let Some(other) = other(namespace) {
            found.push(error(
                "two-meshes",
                format!(
                    "namespace {name} is to be meshed by {other} too: two sidecars would take each other's connections"
                ),
                format!("kubectl label namespace {name} weft.dev/inject-, or take it out of {other}"),
            ));
        }
        let enforced = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].as_str();
        if let Some(level @ ("baseline" | "restricted")) = enforced.filter(|_| capture(seen) == "init") {
            found.push(error(
                "pod-security",
                format!("namespace {name} enforces Pod Security {level}, which refuses the init container that captures (NET_ADMIN)"),
                "use the CNI plugin: capture.mode=cni",
            ));
        }
    }
    for namespace in
        seen.namespaces.iter().filter(|namespace| namespace["metadata"]["labels"]["weft.dev/inject"] == "enabled")
    {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        if never(name) {
            found.push(warning(
                "never-meshed",
                format!("namespace {name} has the label weft.dev/inject=enabled, and is never meshed: the cluster could not start without it"),
                format!("kubectl label namespace {name} weft.dev/inject-"),
            ));
        }
    }
    found
}

fn object<'a>(seen: &'a Seen, name: &str) -> Option<&'a Value> {
    seen.objects.iter().find(|object| called(object) == name)
}

/// How pods are captured, as far as the installation says.
fn capture(seen: &Seen) -> String {
    configured(seen).and_then(|found| found["capture"].as_str().map(str::to_owned)).unwrap_or_default()
}

fn configured(seen: &Seen) -> Option<Value> {
    let text = object(seen, "ConfigMap weft-system/weft-injection")?["data"]["injection.yaml"].as_str()?.to_owned();
    let document = weft_api::kinds::documents(&text).into_iter().next()?;
    weft_api::kinds::parse(document).ok().map(|node| node.to_json())
}

/// Says whether there is a control.
fn control(seen: &Seen, found: &mut Vec<Finding>) -> bool {
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

fn kinds(seen: &Seen) -> Finding {
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

fn injection(seen: &Seen) -> Finding {
    let remedy = "`weft upgrade`, or `helm upgrade`, writes it anew";
    match configured(seen) {
        None => error("injection", "ConfigMap weft-injection is missing or cannot be read", remedy),
        Some(found) => match (found["images"]["proxy"].as_str(), found["capture"].as_str()) {
            (Some(image), Some(capture)) => ok("injection", format!("pods get {image}, captured by {capture}")),
            _ => error("injection", "ConfigMap weft-injection names no image, or no capture", remedy),
        },
    }
}

fn bundle(seen: &Seen) -> Finding {
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

fn webhook(seen: &Seen) -> Finding {
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

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let of = |field: &str| pod["spec"][field].as_array().map_or(&[][..], Vec::as_slice);
    of("initContainers").iter().chain(of("containers"))
}

fn has_sidecar(pod: &Value) -> bool {
    containers(pod).any(|container| container["name"] == "weft-proxy")
}

fn roots(seen: &Seen) -> Vec<Finding> {
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

fn own_certificates(seen: &Seen) -> Vec<Finding> {
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

fn cni(seen: &Seen) -> Option<Finding> {
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
    let mut names: Vec<String> = seen.pods.iter().filter(fails).map(workload).collect();
    names.sort();
    names.dedup();
    let message = || format!("the connections of these are not captured, so they do not start: {}", some(&names));
    let remedy = "kubectl logs POD -c weft-capture, or -c weft-validate where the CNI plugin captures, says why";
    (!names.is_empty()).then(|| error("capture", message(), remedy))
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

fn sidecars(seen: &Seen, installed: bool) -> Vec<Finding> {
    let lives = |pod: &&Value| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let meshed: Vec<&str> = seen
        .namespaces
        .iter()
        .filter(|one| is_meshed(one))
        .filter_map(|one| one["metadata"]["name"].as_str())
        .collect();
    let injected = |pod: &Value| pod["metadata"]["annotations"]["weft.dev/injected"] == "true" && has_sidecar(pod);
    let wanted = |pod: &Value| {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let own = pod["metadata"]["labels"]["weft.dev/inject"].as_str();
        own == Some("enabled") && !never(namespace) || own != Some("disabled") && meshed.contains(&namespace)
    };
    let pods: Vec<&Value> = seen.pods.iter().filter(lives).collect();
    let names = |pods: Vec<&&Value>| {
        let mut names: Vec<String> = pods.iter().map(|pod| workload(pod)).collect();
        names.sort();
        names.dedup();
        names
    };
    let mut found = Vec::new();
    let with: Vec<&&Value> = pods.iter().filter(|pod| injected(pod)).collect();
    if !installed {
        if !with.is_empty() {
            found.push(error(
                "orphans",
                format!("these have sidecars and no control: {}", some(&names(with))),
                "start them anew, or install Weft again with the CA of before",
            ));
        }
        return found;
    }
    let (host, without): (Vec<&&Value>, Vec<&&Value>) =
        pods.iter().filter(|pod| wanted(pod) && !injected(pod)).partition(|pod| pod["spec"]["hostNetwork"] == true);
    if !host.is_empty() {
        let message = format!("pods on the host's network have no sidecar: {}", some(&names(host)));
        found.push(warning("host-network", message, "label them weft.dev/inject=disabled to say that it is meant"));
    }
    found.extend(capture_fails(seen));
    let counted = with.len();
    let without = names(without);
    found.push(if without.is_empty() {
        ok("uninjected", format!("all pods of meshed namespaces have a sidecar ({counted})"))
    } else {
        let message = format!("these are to be meshed and have no sidecar: {}", some(&without));
        warning("uninjected", message, "start them anew: kubectl -n NAMESPACE rollout restart KIND/NAME")
    });
    let image =
        configured(seen).and_then(|found| found["images"]["proxy"].as_str().map(str::to_owned)).unwrap_or_default();
    let tag = |image: &str| image.rsplit_once(':').map(|(_, tag)| tag.to_owned());
    let other = |pod: &&&Value| {
        let own = pod["metadata"]["annotations"]["weft.dev/proxy-image"].is_string();
        let runs = containers(pod)
            .find(|container| container["name"] == "weft-proxy")
            .and_then(|container| container["image"].as_str());
        !own && !image.is_empty() && runs.is_some_and(|runs| tag(runs) != tag(&image))
    };
    let other = names(with.into_iter().filter(other).collect());
    if !other.is_empty() {
        let message = format!(
            "these have sidecars of another version than {}: {}",
            tag(&image).unwrap_or_default(),
            some(&other)
        );
        found.push(warning(
            "sidecar-version",
            message,
            "start them anew: kubectl -n NAMESPACE rollout restart KIND/NAME",
        ));
    }
    found
}

#[cfg(test)]
mod tests;
