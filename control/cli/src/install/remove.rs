//! `weft uninstall`: all that is Weft's goes, what control made too; and who still has a sidecar is told.
//!
//! The order: the webhook first, so that no pod waits for a control that is not there any more; then control, so that it makes nothing anew; then the rest. What is
//! gone already is no error.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::kinds::{Kind, called};
use super::server::{Server, failed};
use super::state::{self, NAMESPACE, State};
use super::{Say, runtime};
use crate::args::Uninstall;
use crate::exit::{Exit, Failure};
use crate::output::{self, Paint};

const PAUSE: Duration = Duration::from_millis(300);
/// The copies of the roots that control made, in any namespace.
const COPIES: &str = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dweft&fieldSelector=metadata.name%3Dweft-roots";
/// Leases of control.
const MADE: &str = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dweft";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases";
/// Workloads with sidecars that are named.
const NAMED: usize = 20;

/// `weft uninstall`.
pub fn run(args: &Uninstall) -> Result<Exit, Failure> {
    runtime()?.block_on(async {
        let server = Server::new(&args.cluster.access()).await?;
        match State::read(&server).await? {
            State::Helm { release } => {
                return Err(Failure::here(format!(
                    "Weft was installed here by Helm: `helm uninstall {release} --namespace {NAMESPACE}` removes it"
                )));
            }
            State::Foreign { what } => {
                return Err(Failure::here(format!("{what} is there and is not ours: remove it yourself")));
            }
            _ => {}
        }
        let found = found(&server, args).await?;
        let sidecars = sidecars(&server).await?;
        if args.dry_run || !args.yes {
            tell(&found, &sidecars);
        }
        if args.dry_run || found.is_empty() {
            return report(args, &[], &sidecars, Ok(()));
        }
        if !args.yes && !confirmed()? {
            return Err(Failure { exit: Exit::Failed, message: "nothing was removed".to_owned() });
        }
        let say = Say { json: args.json, paint: Paint::stderr() };
        let ended = Box::pin(remove(&server, &found, Instant::now() + args.timeout, &say)).await?;
        report(args, &found, &sidecars, ended)
    })
}

/// All that is to go, in the order in which it goes.
async fn found(server: &Server, args: &Uninstall) -> Result<Vec<Value>, Failure> {
    let mut found = state::ours(server).await?;
    // The other way round than it came: but control before what it needs, and what holds the rest last.
    found.reverse();
    found.retain(|object| {
        let kept = match object["kind"].as_str() {
            Some("CustomResourceDefinition") => args.keep_kinds,
            Some("Secret" | "ConfigMap") => {
                args.keep_ca && state::is_kept(object) && !called(object).ends_with("/weft-install")
            }
            Some("Namespace") => args.keep_ca || object["metadata"]["name"] != NAMESPACE,
            _ => false,
        };
        !kept
    });
    let space = found.iter().position(|object| object["kind"] == "Namespace").map(|at| found.remove(at));
    // Not made by the chart, and not always labelled: control may have made them itself.
    if !args.keep_ca {
        for (kind, name) in [("Secret", "weft-ca"), ("ConfigMap", "weft-ca")] {
            let kind = Kind::named(kind);
            let there =
                server.get(&format!("{}/{name}", kind.path(Some(NAMESPACE)))).await.map_err(failed("the CA"))?;
            found.extend(there.filter(|there| !found.iter().any(|object| called(object) == called(there))));
        }
    }
    found.extend(server.list("/api/v1/configmaps", COPIES).await.map_err(failed("copies of the roots"))?);
    found.extend(server.list(LEASES, MADE).await.map_err(failed("Leases"))?);
    found.extend(space);
    Ok(found)
}

async fn remove(server: &Server, found: &[Value], until: Instant, say: &Say) -> Result<Result<(), String>, Failure> {
    let (mut step, mut count) = ("", 0);
    for object in found {
        let (kind, here) = Kind::of(object).map_or((None, "what control made"), |(_, kind)| (Some(kind), kind.step));
        if here != step {
            told(*say, step, count);
            if step == "workloads" {
                // Else control would write what is removed next once more, and a node would keep its CNI plugin.
                if let Err(why) = pods_gone(server, until, say).await {
                    return Ok(Err(why));
                }
            }
            (step, count) = (here, 0);
        }
        let path = kind.map_or_else(
            || format!("{LEASES}/{}", object["metadata"]["name"].as_str().unwrap_or_default()),
            |kind| kind.path_of(object),
        );
        count += usize::from(server.delete(&path).await.map_err(failed(&called(object)))?);
    }
    told(*say, step, count);
    for object in
        found.iter().filter(|object| matches!(object["kind"].as_str(), Some("Namespace" | "CustomResourceDefinition")))
    {
        let Some((_, kind)) = Kind::of(object) else { continue };
        while server.get(&kind.path_of(object)).await.map_err(failed(&called(object)))?.is_some() {
            if Instant::now() > until {
                return Ok(Err(format!("{} is still ending", called(object))));
            }
            say.moving(&format!("{} is ending", called(object)));
            tokio::time::sleep(PAUSE).await;
        }
    }
    say.still();
    Ok(Ok(()))
}

fn told(say: Say, step: &str, count: usize) {
    if count > 0 {
        say.step("removed", &format!("{step} ({count})"));
    }
}

async fn pods_gone(server: &Server, until: Instant, say: &Say) -> Result<(), String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    loop {
        let pods = server
            .list(&path, "labelSelector=app.kubernetes.io%2Fpart-of%3Dweft")
            .await
            .map_err(|error| error.to_string())?;
        let Some(first) = pods.first() else {
            say.still();
            return Ok(());
        };
        if Instant::now() > until {
            say.still();
            return Err(format!("{} does not end; give the command again once it has", called(first)));
        }
        say.moving(&format!("{} pods are ending", pods.len()));
        tokio::time::sleep(PAUSE).await;
    }
}

/// Who still has a sidecar: `NAMESPACE KIND/NAME`, and how many pods.
async fn sidecars(server: &Server) -> Result<BTreeMap<String, usize>, Failure> {
    let pods = server.list("/api/v1/pods", "").await.map_err(failed("pods"))?;
    Ok(workloads(&pods))
}

/// The workloads of those pods that have a sidecar.
pub fn workloads(pods: &[Value]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod["metadata"]["annotations"]["weft.dev/injected"] == "true") {
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if !ended {
            *found.entry(workload(pod)).or_default() += 1;
        }
    }
    found
}

/// What a pod belongs to, as `kubectl` takes it: `NAMESPACE KIND/NAME`. Of a ReplicaSet its Deployment.
pub fn workload(pod: &Value) -> String {
    let meta = &pod["metadata"];
    let namespace = meta["namespace"].as_str().unwrap_or("default");
    let owner =
        meta["ownerReferences"].as_array().and_then(|owners| owners.iter().find(|owner| owner["controller"] == true));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Some(owner) = owner else { return format!("{namespace} pod/{}", text(&meta["name"])) };
    let (kind, name) = (text(&owner["kind"]).to_lowercase(), text(&owner["name"]));
    let hash = meta["labels"]["pod-template-hash"].as_str().map(|hash| format!("-{hash}"));
    match hash.and_then(|hash| name.strip_suffix(&hash).map(str::to_owned)) {
        Some(name) if kind == "replicaset" => format!("{namespace} deployment/{name}"),
        _ => format!("{namespace} {kind}/{name}"),
    }
}

fn tell(found: &[Value], sidecars: &BTreeMap<String, usize>) {
    for object in found {
        output::say(format_args!("   {}", called(object)));
    }
    if found.iter().any(|object| object["kind"] == "CustomResourceDefinition") {
        output::say("With the kinds go all policies of these kinds, in all namespaces (--keep-kinds keeps them).");
    }
    if found.iter().any(|object| called(object) == format!("Secret {NAMESPACE}/weft-ca")) {
        output::say("With the CA goes the mesh's root for good (--keep-ca keeps it).");
    }
    if !sidecars.is_empty() {
        output::say(
            "Some pods have sidecars still, which will lose their certificates: take them out of the mesh first.",
        );
    }
}

/// Asks the person at the terminal.
fn confirmed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("this removes what is listed above; give --yes to say that it is meant"));
    }
    output::draw("Remove all of this? Type yes: ");
    let mut line = String::new();
    let _ = std::io::stdin().lock().read_line(&mut line);
    Ok(line.trim() == "yes")
}

fn report(
    args: &Uninstall,
    removed: &[Value],
    sidecars: &BTreeMap<String, usize>,
    ended: Result<(), String>,
) -> Result<Exit, Failure> {
    let exit = if ended.is_ok() { Exit::Ok } else { Exit::Failed };
    if args.json {
        let objects: Vec<_> = removed.iter().map(called).collect();
        output::json(&json!({"ok": ended.is_ok(), "removed": objects, "sidecars": sidecars, "why": ended.err()}));
        return Ok(exit);
    }
    if !sidecars.is_empty() {
        output::say(format_args!("{} These still have sidecars; start them anew:", Paint::stderr().warn("note:")));
        for (workload, pods) in sidecars.iter().take(NAMED) {
            let (namespace, name) = workload.split_once(' ').unwrap_or_default();
            output::say(format_args!("   kubectl -n {namespace} rollout restart {name}    ({pods} pods)"));
        }
        if sidecars.len() > NAMED {
            output::say(format_args!("   and {} more", sidecars.len() - NAMED));
        }
    }
    match ended {
        Ok(()) if args.dry_run => Ok(exit),
        Ok(()) if removed.is_empty() => {
            output::say("Weft is not installed here: there is nothing to remove");
            Ok(exit)
        }
        Ok(()) => {
            output::say(Paint::stderr().good("Weft is removed"));
            Ok(exit)
        }
        Err(why) => Err(Failure { exit, message: format!("removed, but not all of it has ended: {why}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_with_sidecars_are_counted_by_what_starts_them() {
        let pod = |name: &str, injected: &str, owner: Value, hash: Option<&str>| {
            json!({"metadata": {"name": name, "namespace": "shop", "annotations": {"weft.dev/injected": injected},
                "labels": {"pod-template-hash": hash}, "ownerReferences": [owner]}})
        };
        let owner = |kind: &str, name: &str| json!({"controller": true, "kind": kind, "name": name});
        let pods = [
            pod("web-5f-a", "true", owner("ReplicaSet", "web-5f"), Some("5f")),
            pod("web-5f-b", "true", owner("ReplicaSet", "web-5f"), Some("5f")),
            pod("old-1", "true", owner("ReplicaSet", "old"), None),
            pod("db-0", "true", owner("StatefulSet", "db"), None),
            pod("plain-1", "false", owner("ReplicaSet", "plain-1"), Some("1")),
            json!({"metadata": {"name": "alone", "namespace": "shop", "annotations": {"weft.dev/injected": "true"}}}),
        ];
        let found: Vec<_> = workloads(&pods).into_iter().collect();
        let wanted =
            [("shop deployment/web", 2), ("shop pod/alone", 1), ("shop replicaset/old", 1), ("shop statefulset/db", 1)];
        assert_eq!(found, wanted.map(|(name, pods)| (name.to_owned(), pods)));
    }
}
