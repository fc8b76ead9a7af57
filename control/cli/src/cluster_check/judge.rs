//! What was seen of a cluster -> findings: of the [`cluster`] itself, of what is [`installed`], of its [`pods`]. Pure: a table of recorded
//! objects tests it.

mod cluster;
mod installed;
mod pods;

use serde_json::Value;

use self::cluster::{clock, gateway, permissions, setting, version};
use self::installed::{bundle, cni, control, injection, kinds, own_certificates, roots, webhook};
use self::pods::sidecars;
use super::seen::Seen;
use super::{Finding, Level};
use crate::install::kinds::called;
use crate::install::state::State;

/// Names in one sentence.
const NAMED: usize = 5;

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

/// `a, b and 3 more`.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > NAMED { format!("{shown} and {} more", names.len() - NAMED) } else { shown }
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

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let of = |field: &str| pod["spec"][field].as_array().map_or(&[][..], Vec::as_slice);
    of("initContainers").iter().chain(of("containers"))
}

fn has_sidecar(pod: &Value) -> bool {
    containers(pod).any(|container| container["name"] == "weft-proxy")
}

#[cfg(test)]
mod tests;
