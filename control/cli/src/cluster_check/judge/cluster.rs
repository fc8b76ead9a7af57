//! The cluster itself: its version, its clock, what is installed beside us, and what of its setting does not go with a mesh.

use serde_json::Value;

use super::{Finding, capture, configured, error, ok, some, warning};
use crate::cluster_check::seen::{Seen, is_meshed, never};
use crate::install::{OLDEST, minor};

/// Clocks may differ by this: certificates begin a little before they are made.
const CLOCK: i64 = 30;

pub(super) fn version(seen: &Seen) -> Finding {
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

pub(super) fn clock(seen: &Seen) -> Finding {
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

pub(super) fn gateway(seen: &Seen) -> Finding {
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

pub(super) fn permissions(seen: &Seen) -> Finding {
    if seen.denied.is_empty() {
        return ok("permissions", "you may make everything that an installation makes");
    }
    error("permissions", format!("you may not {}", some(&seen.denied)), "ask for cluster-admin, or for those rights")
}

/// What of the cluster's own setting does not go with a mesh.
pub(super) fn setting(seen: &Seen) -> Vec<Finding> {
    let mut found: Vec<Finding> = [socket_lb(seen), kube_proxy(seen)].into_iter().flatten().collect();
    for namespace in seen.namespaces.iter().filter(|namespace| is_meshed(namespace)) {
        found.extend(two_meshes(namespace));
        found.extend(pod_security(seen, namespace));
    }
    found.extend(seen.namespaces.iter().filter_map(never_meshed));
    found
}

fn text<'a>(data: &'a Value, key: &str) -> &'a str {
    data[key].as_str().unwrap_or_default()
}

fn name(namespace: &Value) -> &str {
    text(&namespace["metadata"], "name")
}

fn socket_lb(seen: &Seen) -> Option<Finding> {
    const ID: &str = "socket-lb";
    let cilium = seen.cilium.is_object().then_some(&seen.cilium)?;
    let replaces = matches!(text(cilium, "kube-proxy-replacement"), "true" | "strict");
    let sockets = replaces || text(cilium, "bpf-lb-sock") == "true";
    if !sockets || text(cilium, "bpf-lb-sock-hostns-only") == "true" {
        return Some(ok(ID, "Cilium leaves the addresses of Services in pods alone"));
    }
    if configured(seen).is_some_and(|injection| injection["socketLb"] == true) {
        return Some(ok(
            ID,
            "Cilium rewrites the addresses of Services in pods' sockets, and sidecars go by their names",
        ));
    }
    Some(error(
        ID,
        "Cilium rewrites the addresses of Services in pods' sockets, before a sidecar sees them: routes and policies of Services would not count",
        "set socketLB.hostNamespaceOnly=true in Cilium's values, or injection.socketLb=true in Weft's",
    ))
}

fn kube_proxy(seen: &Seen) -> Option<Finding> {
    const ID: &str = "kube-proxy";
    let settings = text(seen.kube_proxy.is_object().then_some(&seen.kube_proxy)?, "config.conf");
    let mode = settings.lines().find_map(|row| row.trim().strip_prefix("mode:"));
    let mode = mode.map(|mode| mode.trim().trim_matches('"')).filter(|mode| !mode.is_empty()).unwrap_or("iptables");
    Some(if matches!(mode, "iptables" | "nftables" | "ipvs") {
        ok(ID, format!("kube-proxy in mode {mode}"))
    } else {
        warning(ID, format!("kube-proxy in mode {mode}, which was never tried"), "use nftables or iptables")
    })
}

fn two_meshes(namespace: &Value) -> Option<Finding> {
    let meta = &namespace["metadata"];
    let istio = meta["labels"]["istio-injection"] == "enabled"
        || !meta["labels"]["istio.io/rev"].is_null()
        || !meta["labels"]["istio.io/dataplane-mode"].is_null();
    let linkerd = matches!(text(&meta["annotations"], "linkerd.io/inject"), "enabled" | "ingress");
    let other = if istio { "Istio" } else { linkerd.then_some("Linkerd")? };
    let name = name(namespace);
    Some(error(
        "two-meshes",
        format!("namespace {name} is to be meshed by {other} too: two sidecars would take each other's connections"),
        format!("kubectl label namespace {name} weft.dev/inject-, or take it out of {other}"),
    ))
}

fn pod_security(seen: &Seen, namespace: &Value) -> Option<Finding> {
    let level = text(&namespace["metadata"]["labels"], "pod-security.kubernetes.io/enforce");
    let refuses = matches!(level, "baseline" | "restricted") && capture(seen) == "init";
    let message = || {
        format!(
            "namespace {} enforces Pod Security {level}, which refuses the init container that captures (NET_ADMIN)",
            name(namespace)
        )
    };
    refuses.then(|| error("pod-security", message(), "use the CNI plugin: capture.mode=cni"))
}

fn never_meshed(namespace: &Value) -> Option<Finding> {
    let name = name(namespace);
    let asked = namespace["metadata"]["labels"]["weft.dev/inject"] == "enabled" && never(name);
    let message = || {
        format!(
            "namespace {name} has the label weft.dev/inject=enabled, and is never meshed: the cluster could not start without it"
        )
    };
    asked.then(|| warning("never-meshed", message(), format!("kubectl label namespace {name} weft.dev/inject-")))
}
