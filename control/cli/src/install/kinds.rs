//! The kinds that the chart makes, in the order in which they are applied, and where the API server has them.

use serde_json::Value;

/// A kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `GROUP/VERSION`, or `v1`.
    pub api_version: &'static str,
    /// As it is written.
    pub name: &'static str,
    /// As a path has it.
    pub plural: &'static str,
    /// Whether its objects are in a namespace.
    pub namespaced: bool,
    /// The step that it belongs to, as people are told it.
    pub step: &'static str,
}

const fn kind(
    api_version: &'static str,
    name: &'static str,
    plural: &'static str,
    namespaced: bool,
    step: &'static str,
) -> Kind {
    Kind { api_version, name, plural, namespaced, step }
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const MONITORING: &str = "monitoring.coreos.com/v1";
const RIGHTS: &str = "rights";
const WORKLOADS: &str = "workloads";

/// What is called first must be there first; the webhook is last, when there is somebody who can answer it.
pub const KINDS: [Kind; 18] = [
    kind("v1", "Namespace", "namespaces", false, "namespace"),
    kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", false, "kinds"),
    kind("v1", "ServiceAccount", "serviceaccounts", true, RIGHTS),
    kind(RBAC, "ClusterRole", "clusterroles", false, RIGHTS),
    kind(RBAC, "ClusterRoleBinding", "clusterrolebindings", false, RIGHTS),
    kind(RBAC, "Role", "roles", true, RIGHTS),
    kind(RBAC, "RoleBinding", "rolebindings", true, RIGHTS),
    kind("v1", "Secret", "secrets", true, "CA and configuration"),
    kind("v1", "ConfigMap", "configmaps", true, "CA and configuration"),
    kind("v1", "Service", "services", true, WORKLOADS),
    kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true, WORKLOADS),
    kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", true, WORKLOADS),
    kind("apps/v1", "DaemonSet", "daemonsets", true, WORKLOADS),
    kind("apps/v1", "Deployment", "deployments", true, WORKLOADS),
    kind(MONITORING, "ServiceMonitor", "servicemonitors", true, "monitoring"),
    kind(MONITORING, "PodMonitor", "podmonitors", true, "monitoring"),
    kind(MONITORING, "PrometheusRule", "prometheusrules", true, "monitoring"),
    kind(
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        false,
        "webhook",
    ),
];

impl Kind {
    /// That of an object, and its place in the order.
    pub fn of(object: &Value) -> Option<(usize, Self)> {
        let (version, name) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        KINDS.into_iter().enumerate().find(|(_, kind)| kind.api_version == version && kind.name == name)
    }

    /// That of this name.
    ///
    /// # Panics
    /// Never, with a name of [`KINDS`].
    pub fn named(name: &str) -> Self {
        KINDS.into_iter().find(|kind| kind.name == name).unwrap_or(KINDS[0])
    }

    /// Where all of its objects are, in a namespace if one is given.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.api_version.contains('/') { "/apis" } else { "/api" };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.api_version, self.plural),
            None => format!("{root}/{}/{}", self.api_version, self.plural),
        }
    }

    /// Where an object is.
    pub fn path_of(&self, object: &Value) -> String {
        let meta = &object["metadata"];
        format!("{}/{}", self.path(meta["namespace"].as_str()), meta["name"].as_str().unwrap_or_default())
    }
}

/// What people call an object.
pub fn called(object: &Value) -> String {
    let (kind, meta) = (object["kind"].as_str().unwrap_or_default(), &object["metadata"]);
    let name = meta["name"].as_str().unwrap_or_default();
    match meta["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
