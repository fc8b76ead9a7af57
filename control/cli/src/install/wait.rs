//! Until what was applied is ready: or what it waits for, in words.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::Say;
use super::kinds::{Kind, called};
use super::render::Rendered;
use super::server::{Server, failed};
use super::state::NAMESPACE;
use crate::exit::Failure;

const PAUSE: Duration = Duration::from_millis(500);

/// Until the kinds are served.
pub async fn established<'a>(
    server: &Server,
    kinds: impl Iterator<Item = &'a Value>,
    timeout: Duration,
) -> Result<(), Failure> {
    let until = Instant::now() + timeout;
    for object in kinds {
        let path = Kind::named("CustomResourceDefinition").path_of(object);
        loop {
            let found = server.get(&path).await.map_err(failed(&called(object)))?.unwrap_or_default();
            if holds(&found, "Established") {
                break;
            }
            if Instant::now() > until {
                return Err(Failure::here(format!("{} is not served", called(object))));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

fn holds(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    conditions.iter().any(|found| found["type"] == condition && found["status"] == "True")
}

/// Until all that runs is ready, and the webhook can be verified; or the reason why not.
pub async fn ready(server: &Server, rendered: &Rendered, until: Instant, say: &Say) -> Result<(), String> {
    for object in &rendered.objects {
        let Some((_, kind)) = Kind::of(object) else { continue };
        if !matches!(kind.name, "Deployment" | "DaemonSet" | "MutatingWebhookConfiguration") {
            continue;
        }
        loop {
            let found = server.get(&kind.path_of(object)).await;
            let lacking = match &found {
                Ok(Some(found)) => lacking(found),
                Ok(None) => Some("it is gone".to_owned()),
                // It may come back.
                Err(error) => Some(error.to_string()),
            };
            let Some(lacking) = lacking else {
                say.still();
                say.step("ready", &called(object));
                break;
            };
            say.moving(&format!("{}: {lacking}", called(object)));
            if Instant::now() > until {
                say.still();
                let pods = server.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), "").await.unwrap_or_default();
                let why = pods.iter().find_map(trouble).map(|why| format!(" ({why})")).unwrap_or_default();
                return Err(format!("{}: {lacking}{why}", called(object)));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// What an object lacks to be ready.
pub fn lacking(object: &Value) -> Option<String> {
    let number = |path: &str| object.pointer(path).and_then(Value::as_u64).unwrap_or_default();
    if object["kind"] == "MutatingWebhookConfiguration" {
        let hooks = object["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
        let without =
            hooks.iter().filter(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().is_empty());
        return (without.count() > 0).then(|| "control has not written its caBundle yet".to_owned());
    }
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return Some("not seen yet by its controller".to_owned());
    }
    let (wanted, updated, ready) = if object["kind"] == "DaemonSet" {
        (
            number("/status/desiredNumberScheduled"),
            number("/status/updatedNumberScheduled"),
            number("/status/numberReady"),
        )
    } else {
        (number("/spec/replicas"), number("/status/updatedReplicas"), number("/status/readyReplicas"))
    };
    let old = number("/status/replicas").saturating_sub(wanted);
    match (updated.min(ready), old) {
        (ready, _) if ready < wanted => Some(format!("{ready} of {wanted} ready")),
        (_, 0) => None,
        (_, old) => Some(format!("{old} of the version before still there")),
    }
}

/// Why a pod does not start, if it says so.
pub fn trouble(pod: &Value) -> Option<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let statuses =
        ["initContainerStatuses", "containerStatuses"].into_iter().filter_map(|field| pod["status"][field].as_array());
    let waits = statuses.flatten().find_map(|status| {
        let waiting = &status["state"]["waiting"];
        let reason =
            waiting["reason"].as_str().filter(|reason| !matches!(*reason, "ContainerCreating" | "PodInitializing"))?;
        let last = status["lastState"]["terminated"]["exitCode"].as_i64().map(|code| format!(", exit code {code}"));
        Some(format!("{reason}{}", last.unwrap_or_default()))
    });
    let conditions = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let unscheduled = conditions.iter().find(|found| found["type"] == "PodScheduled" && found["status"] == "False");
    let why = waits.or_else(|| unscheduled.and_then(|found| found["message"].as_str().map(str::to_owned)))?;
    Some(format!("pod {name}: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_ready_says_what_it_lacks() {
        let deployment = |status: Value| json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status});
        for (object, wanted) in [
            (deployment(json!({"observedGeneration": 1})), Some("not seen yet by its controller")),
            (
                deployment(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "readyReplicas": 3})),
                Some("1 of 3 ready"),
            ),
            (
                deployment(json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "readyReplicas": 4})),
                Some("1 of the version before still there"),
            ),
            (
                deployment(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3})),
                None,
            ),
            (
                json!({"kind": "DaemonSet", "status": {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberReady": 1}}),
                Some("1 of 2 ready"),
            ),
            (
                json!({"kind": "MutatingWebhookConfiguration", "webhooks": [{"clientConfig": {}}]}),
                Some("control has not written its caBundle yet"),
            ),
            (
                json!({"kind": "MutatingWebhookConfiguration", "webhooks": [{"clientConfig": {"caBundle": "YQ=="}}]}),
                None,
            ),
        ] {
            assert_eq!(lacking(&object).as_deref(), wanted, "{object}");
        }
        let pod = json!({"metadata": {"name": "weft-control-1"}, "status": {"containerStatuses": [
            {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": 2}}}]}});
        assert_eq!(trouble(&pod).as_deref(), Some("pod weft-control-1: CrashLoopBackOff, exit code 2"));
    }
}
