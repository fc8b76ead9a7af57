//! How pods are injected: the file of `--injection`, YAML or JSON, read strictly.
//!
//! ```yaml
//! images: {proxy: registry.example/weft-proxy:0.1.0, capture: registry.example/weft-capture:0.1.0, pullPolicy: IfNotPresent}
//! control: weft-control.weft-system.svc:15012
//! sidecar: native          # or classic
//! capture: init            # or cni
//! resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 128Mi}}
//! ```

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::Deserialize;
use weft_api::kinds::decode::decode;
use weft_api::kinds::{Fault, Position, documents, parse};
use weft_engine::identity::Identity;

use crate::cluster::{Access, ask};

/// Where an installation has it, in control's namespace.
pub const CONFIG_MAP: &str = "weft-injection";
/// The file in it.
const KEY: &str = "injection.yaml";

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Injection {
    /// What is run.
    pub images: Images,
    /// Where sidecars call control, HOST:PORT.
    #[serde(default = "control")]
    pub control: String,
    /// Trust domain of the pods' identities.
    #[serde(default = "trust_domain")]
    pub trust_domain: String,
    /// The ConfigMap with the roots, in each namespace (`--roots-configmap`).
    #[serde(default = "roots")]
    pub roots_config_map: String,
    /// Audience of the pods' tokens.
    #[serde(default = "audience")]
    pub audience: String,
    /// Who writes the rules that redirect connections.
    #[serde(default)]
    pub capture: Capture,
    /// What kind of container the sidecar is.
    #[serde(default)]
    pub sidecar: Sidecar,
    /// The sidecar's.
    #[serde(default)]
    pub resources: Resources,
    /// Threads of a sidecar that carry traffic.
    #[serde(default = "workers")]
    pub workers: u16,
    /// Ports of pods that are reached directly.
    #[serde(default)]
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports elsewhere that are called directly.
    #[serde(default)]
    pub exclude_outbound_ports: Vec<u16>,
    /// Addresses elsewhere that are called directly.
    #[serde(default)]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Whether sidecars answer their pods' questions for names.
    #[serde(default)]
    pub dns: bool,
    /// Whether something in the cluster rewrites ClusterIPs where applications connect, as Cilium's socket-level load balancer does.
    #[serde(default)]
    pub socket_lb: bool,
}

/// What is run, and how it is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Images {
    /// The sidecar's.
    pub proxy: String,
    /// That of the rules.
    pub capture: String,
    /// As of a container; the orchestrator's default if it is not said.
    #[serde(default)]
    pub pull_policy: Option<String>,
    /// Secrets that the pod's namespace must have.
    #[serde(default)]
    pub pull_secrets: Vec<String>,
}

/// Who writes the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Capture {
    /// An init container, which needs `NET_ADMIN` in the pod.
    #[default]
    Init,
    /// The CNI plugin on the node; an init container without rights proves that it has.
    Cni,
}

/// What kind of container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sidecar {
    /// An init container that stays (KEP-753): there before the application, gone after it. Kubernetes 1.29 and later.
    #[default]
    Native,
    /// A container beside the others.
    Classic,
}

/// As in a container, by name of the resource.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// What it is sure to get.
    #[serde(default)]
    pub requests: BTreeMap<String, String>,
    /// What it may take.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
}

impl Default for Resources {
    /// Measured in docs/performance.md: an idle sidecar takes 10 MiB, one with a thousand destinations 25.
    fn default() -> Self {
        let one = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Self {
            requests: BTreeMap::from([one("cpu", "10m"), one("memory", "32Mi")]),
            limits: BTreeMap::from([one("memory", "256Mi")]),
        }
    }
}

impl Injection {
    /// Reads the text.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn read(text: &str) -> Result<Self, Fault> {
        let start = Position { line: 1, column: 1 };
        let mut documents = documents(text).into_iter();
        let (Some(document), None) = (documents.next(), documents.next()) else {
            return Err(Fault::new(start, "write one document: the settings of the injection"));
        };
        let read: Self = decode(&parse(document)?)?;
        read.check().map_err(|why| Fault::new(start, why))?;
        Ok(read)
    }

    /// What control was installed with: the ConfigMap `weft-injection` of its namespace.
    ///
    /// # Errors
    /// A sentence that says why it cannot be read.
    pub async fn of_cluster(access: &Access, namespace: &str) -> Result<Self, String> {
        let client = access.client().await.map_err(|error| error.to_string())?;
        let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
        let found = ask(maps.get(CONFIG_MAP)).await;
        let map = found.map_err(|error| format!("the ConfigMap {namespace}/{CONFIG_MAP} cannot be read: {error}"))?;
        let text = map.data.as_ref().and_then(|data| data.get(KEY));
        let text = text.ok_or_else(|| format!("the ConfigMap {namespace}/{CONFIG_MAP} has no {KEY}"))?;
        Self::read(text).map_err(|fault| format!("the ConfigMap {namespace}/{CONFIG_MAP}, {KEY}:{fault}"))
    }

    fn check(&self) -> Result<(), String> {
        for (what, text) in [
            ("images.proxy", &self.images.proxy),
            ("images.capture", &self.images.capture),
            ("control", &self.control),
            ("rootsConfigMap", &self.roots_config_map),
            ("audience", &self.audience),
        ] {
            if text.is_empty() {
                return Err(format!("`{what}` is empty"));
            }
        }
        if self.workers == 0 {
            return Err("`workers` is 0: a sidecar needs a thread that carries traffic".to_owned());
        }
        Identity::new(&self.trust_domain, "any", "any").map_err(|error| format!("`trustDomain`: {error}"))?;
        Ok(())
    }
}

fn control() -> String {
    "weft-control.weft-system.svc:15012".to_owned()
}

fn trust_domain() -> String {
    "cluster.local".to_owned()
}

fn roots() -> String {
    "weft-roots".to_owned()
}

fn audience() -> String {
    "weft".to_owned()
}

fn workers() -> u16 {
    2
}
