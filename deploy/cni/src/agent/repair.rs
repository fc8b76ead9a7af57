//! Pods of this node that run without their rules: those that started before the plugin was in the node's configuration, or while somebody
//! had taken it out.
//!
//! Such a pod waits in its init container `weft-validate`, which keeps trying, fails, and is started again by the kubelet. Its rules are
//! written meanwhile; no pod is deleted, and nothing of it ran without them. Invariants:
//!
//! - Only a pod that is captured by the CNI (it has that init container) and has not passed it yet is touched, and only if it has no rules.
//! - What failed is said once for each pod and reason, and tried again every round.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use weft_capture::netns::NetNs;
use weft_capture::rules::{self, Capture};
use weft_capture::settings::{ANNOTATION, Settings};

use crate::agent::http::Told;
use crate::find;

/// The init container that proves capture.
pub const VALIDATE: &str = "weft-validate";

/// The rounds of one agent.
pub struct Repairs {
    proc: PathBuf,
    told: Arc<Told>,
    /// What was said of each pod that waits.
    said: HashMap<String, String>,
}

struct Waiting {
    uid: String,
    name: String,
    addresses: Vec<IpAddr>,
    annotation: String,
}

impl Repairs {
    /// None done yet.
    pub fn new(proc: PathBuf, told: Arc<Told>) -> Self {
        Self { proc, told, said: HashMap::new() }
    }

    /// Looks at these pods, and writes the rules of those that lack them.
    pub fn round(&mut self, pods: &[Arc<Pod>]) {
        let waiting: Vec<Waiting> = pods.iter().filter_map(|pod| waiting(pod)).collect();
        self.told.waiting.set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
        self.said.retain(|uid, _| waiting.iter().any(|pod| pod.uid == *uid));
        if waiting.is_empty() {
            return;
        }
        let wanted = waiting.iter().map(|pod| (pod.uid.clone(), pod.addresses.clone())).collect();
        let mut found = find::namespaces(&self.proc, &wanted);
        for pod in waiting {
            let outcome = match found.remove(&pod.uid) {
                Some(Ok(net)) => repair(&net, &pod.annotation),
                Some(Err(error)) => Err(error.to_string()),
                None => continue,
            };
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    self.told.repaired.inc();
                    tracing::info!(pod = pod.name, uid = pod.uid, "it had no rules: written; its next try will pass");
                }
                Err(error) if self.said.get(&pod.uid) == Some(&error) => {}
                Err(error) => {
                    self.told.unrepaired.inc();
                    tracing::warn!(
                        pod = pod.name,
                        uid = pod.uid,
                        error,
                        "it waits for its rules and cannot be given them yet"
                    );
                    self.said.insert(pod.uid, error);
                }
            }
        }
    }
}

/// Whether there were none.
fn repair(net: &NetNs, annotation: &str) -> Result<bool, String> {
    let capture =
        Capture::from(&Settings::parse(annotation).map_err(|error| format!("annotation {ANNOTATION}: {error}"))?);
    let written = net.run(|| if rules::installed()? { Ok(false) } else { rules::install(&capture).map(|()| true) });
    written.map_err(|error| error.to_string())?.map_err(|error: rules::Error| error.to_string())
}

fn waiting(pod: &Pod) -> Option<Waiting> {
    let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref()?, pod.status.as_ref()?);
    let annotation = meta.annotations.as_ref()?.get(ANNOTATION)?.clone();
    let proves = spec.init_containers.iter().flatten().any(|container| container.name == VALIDATE);
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) || meta.deletion_timestamp.is_some();
    if !proves || over || spec.host_network == Some(true) {
        return None;
    }
    let statuses = status.init_container_statuses.iter().flatten().find(|status| status.name == VALIDATE);
    let exit = statuses.and_then(|status| status.state.as_ref()?.terminated.as_ref()).map(|ended| ended.exit_code);
    let addresses: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if exit == Some(0) || addresses.is_empty() {
        return None;
    }
    let name = format!("{}/{}", meta.namespace.as_deref()?, meta.name.as_deref()?);
    Some(Waiting { uid: meta.uid.clone()?, name, addresses, annotation })
}

/// Keeps of a pod what is looked at: a node's pods cost little memory.
pub fn slim(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.labels = None;
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.retain(|name, _| name == ANNOTATION);
    }
    if let Some(spec) = &mut pod.spec {
        let mut kept = k8s_openapi::api::core::v1::PodSpec { host_network: spec.host_network, ..Default::default() };
        let named = |name: String| k8s_openapi::api::core::v1::Container { name, ..Default::default() };
        let init = spec.init_containers.take().unwrap_or_default().into_iter();
        kept.init_containers =
            Some(init.map(|container| named(container.name)).filter(|container| container.name == VALIDATE).collect());
        *spec = kept;
    }
    if let Some(status) = &mut pod.status {
        status.container_statuses = None;
        status.conditions = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "annotations": {ANNOTATION: "{}", "other": "x"}},
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "first"}, {"name": VALIDATE}]},
            "status": {"phase": "Pending", "podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}],
                "initContainerStatuses": [{"name": VALIDATE, "ready": false, "restartCount": 1, "image": "", "imageID": "",
                    "state": {"terminated": {"exitCode": 95}}}]},
        });
        change(&mut pod);
        let mut pod = serde_json::from_value(pod).unwrap();
        slim(&mut pod);
        pod
    }

    #[test]
    fn a_pod_that_has_not_proved_its_capture_is_waited_for() {
        let waits = waiting(&pod(|_| {})).unwrap();
        assert_eq!((waits.name.as_str(), waits.addresses.len()), ("shop/a", 2));
        assert!(
            waiting(&pod(|pod| pod["status"]["initContainerStatuses"][0]["state"] = json!({"running": {}}))).is_some()
        );
        assert!(waiting(&pod(|pod| pod["status"]["initContainerStatuses"] = json!([]))).is_some());
    }

    #[test]
    fn nobody_else_is_touched() {
        type Change = Box<dyn FnOnce(&mut Value)>;
        let changes: [(&str, Change); 7] = [
            (
                "passed",
                Box::new(|pod| pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] = 0.into()),
            ),
            ("no annotation", Box::new(|pod| pod["metadata"]["annotations"] = json!({}))),
            ("captures itself", Box::new(|pod| pod["spec"]["initContainers"] = json!([{"name": "weft-capture"}]))),
            ("host network", Box::new(|pod| pod["spec"]["hostNetwork"] = true.into())),
            ("over", Box::new(|pod| pod["status"]["phase"] = "Failed".into())),
            ("going", Box::new(|pod| pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into())),
            ("no address", Box::new(|pod| pod["status"]["podIPs"] = json!([]))),
        ];
        for (name, change) in changes {
            assert!(waiting(&pod(change)).is_none(), "{name}");
        }
    }
}
