//! Workloads as people write them: where the pod is in each.

use serde_json::Value;

use super::{Injection, Outcome, Refusal, Skipped, inject};

/// What became of one object of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// It has a pod, and this became of it.
    Workload(Outcome),
    /// It has none.
    Other,
}

/// Puts a sidecar into the pod of an object: itself, or its template. In a `List`, into those of all its items.
///
/// # Errors
/// As [`inject`], with the object's name.
pub fn manifest(settings: &Injection, object: &Value) -> Result<Manifest, Refusal> {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    let (path, finishes) = match kind {
        "List" => return list(settings, object),
        "Pod" => ("", false),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" => {
            ("/spec/template", false)
        }
        "Job" => ("/spec/template", true),
        "CronJob" => ("/spec/jobTemplate/spec/template", true),
        _ => return Ok(Manifest::Other),
    };
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("without a name");
    let refused = |why: &dyn std::fmt::Display| Refusal(format!("{kind} {name}: {why}"));
    let Some(pod) = object.pointer(path) else { return Err(refused(&format!("it has no {path}"))) };
    let outcome = match inject(settings, pod, finishes).map_err(|refusal| refused(&refusal))? {
        Outcome::Injected { pod, warnings } => {
            let mut whole = object.clone();
            if let Some(place) = whole.pointer_mut(path) {
                *place = pod;
            }
            let warnings = warnings.iter().map(|warning| format!("{kind} {name}: {warning}")).collect();
            Outcome::Injected { pod: whole, warnings }
        }
        Outcome::Skipped(Skipped::Impossible(why)) => {
            Outcome::Skipped(Skipped::Impossible(format!("{kind} {name}: {why}")))
        }
        outcome => outcome,
    };
    Ok(Manifest::Workload(outcome))
}

fn list(settings: &Injection, object: &Value) -> Result<Manifest, Refusal> {
    let mut whole = object.clone();
    let (mut all, mut some) = (Vec::new(), false);
    for item in whole.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        match manifest(settings, item)? {
            Manifest::Workload(Outcome::Injected { pod, warnings }) => {
                *item = pod;
                all.extend(warnings);
                some = true;
            }
            Manifest::Workload(Outcome::Skipped(Skipped::Impossible(why))) => all.push(why),
            Manifest::Workload(Outcome::Unchanged | Outcome::Skipped(Skipped::Disabled)) | Manifest::Other => {}
        }
    }
    Ok(if some { Manifest::Workload(Outcome::Injected { pod: whole, warnings: all }) } else { Manifest::Other })
}
