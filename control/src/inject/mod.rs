//! Puts the sidecar into pods: at admission ([`crate::server::webhook`]) and offline (`weft inject`), by the same pure function [`inject`].
//!
//! ```text
//! is it wanted, can it be? -> what annotations of its namespace and its own say -> ours taken out -> the kubelet's probes to the sidecar -> ours put in
//! ```
//!
//! Invariants
//! - Done twice is done once: what is ours is taken out before it is put in, and originals of probes are read back from the sidecar's own
//!   arguments. So containers that another webhook adds after us get theirs too (`reinvocationPolicy: IfNeeded`).
//! - A pod is edited as data: fields that this build does not know stay as they are.
//! - What cannot be as it was asked for is refused with a sentence; nothing is half injected. Only where the namespace alone asked is a pod
//!   that cannot have a sidecar let in without one, with a warning.

mod capture;
mod manifests;
mod overrides;
mod pod;
mod probes;
mod settings;
mod sidecar;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub use manifests::{Manifest, manifest};
pub use settings::{Capture, Images, Injection, Resources, Sidecar};

use overrides::Settings;
pub use overrides::{ANNOTATIONS, MARKS};
use sidecar::Known;

/// Says on a namespace or a pod whether pods get a sidecar: `enabled` or `disabled`; the pod's counts.
pub const INJECT: &str = "weft.dev/inject";
/// On a pod: it has a sidecar.
pub const INJECTED: &str = "weft.dev/injected";
/// On a pod: what is captured in it, JSON, for the CNI plugin.
pub const CAPTURE: &str = "weft.dev/capture";
/// The sidecar's container.
pub const PROXY: &str = "weft-proxy";
/// The uid that the sidecar runs as, by which its own traffic is known.
pub const UID: u32 = 1337;
/// The sidecar's health port.
pub const HEALTH: u16 = 15021;
/// Ports that the sidecar takes in the pod's network namespace.
pub const PORTS: [u16; 6] = [15000, 15001, 15006, 15020, HEALTH, DNS];
/// The sidecar's resolver.
pub const DNS: u16 = 15053;

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is to be this.
    Injected {
        /// The whole pod, or its template.
        pod: Value,
        /// For whoever made it.
        warnings: Vec<String>,
    },
    /// It has a sidecar already, just so.
    Unchanged,
    /// It gets none, for this reason.
    Skipped(Skipped),
}

/// Why a pod gets no sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skipped {
    /// It says so itself.
    Disabled,
    /// It cannot have one: a sentence for whoever made it.
    Impossible(String),
}

/// The pod cannot be as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

fn refused<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why.into()))
}

/// Puts a sidecar into a pod, or into the template of one. `finishes` says that it belongs to a Job: its sidecar must not outlive it.
///
/// # Errors
/// What is asked for cannot be, or is not understood.
pub fn inject(settings: &Injection, pod: &Value, finishes: bool) -> Result<Outcome, Refusal> {
    inject_in(Place::default(), settings, pod, finishes)
}

/// Where a pod comes to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'p> {
    /// What its namespace says of the sidecars of its pods; `None`: nothing.
    pub annotations: Option<&'p BTreeMap<String, String>>,
    /// Not known to anybody else: by it the sidecar knows that the kubelet calls a hook, and not a stranger. A pod that has one keeps it. `None`:
    /// whoever reaches the sidecar is believed, since a manifest is no place for a secret.
    pub hook_key: Option<&'p str>,
}

/// The same, into a pod of this place.
///
/// # Errors
/// What is asked for cannot be, or is not understood.
pub fn inject_in(place: Place<'_>, settings: &Injection, pod: &Value, finishes: bool) -> Result<Outcome, Refusal> {
    let explicit = match pod::label(pod, INJECT) {
        None => false,
        Some("enabled") => true,
        Some("disabled") => return Ok(Outcome::Skipped(Skipped::Disabled)),
        Some(other) => return refused(format!("the label {INJECT} is `{other}`: say enabled or disabled")),
    };
    if let Some(why) = pod::impossible(pod) {
        return if explicit { refused(why) } else { Ok(Outcome::Skipped(Skipped::Impossible(why))) };
    }
    let nothing = BTreeMap::new();
    let own = overrides::of(settings, place.annotations.unwrap_or(&nothing), pod)?;
    let (own, warnings) = with_job(own, finishes || pod::is_of_job(pod));
    let mut made = pod.clone();
    let mut known = pod::take_out(&mut made);
    known.hook_key = known.hook_key.or_else(|| place.hook_key.map(str::to_owned));
    pod::check(&made)?;
    put_in(settings, &own, &mut made, &known)?;
    Ok(if made == *pod { Outcome::Unchanged } else { Outcome::Injected { pod: made, warnings } })
}

// A container that goes on for ever keeps a Job from ending; a native sidecar does not.
fn with_job(own: Settings, finishes: bool) -> (Settings, Vec<String>) {
    if !finishes || own.sidecar == Sidecar::Native {
        return (own, Vec::new());
    }
    let warning = "a classic sidecar would keep this Job from ending, so that it has a native one".to_owned();
    (Settings { sidecar: Sidecar::Native, ..own }, vec![warning])
}

fn put_in(settings: &Injection, own: &Settings, pod: &mut Value, known: &Known) -> Result<(), Refusal> {
    let (grace, application) = (pod::grace_period(pod), pod::tcp_ports(pod));
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return refused("the pod has no spec") };
    let handlers = probes::rewrite(spec, &known.probes)?;
    probes::drain_first(spec);
    let key = known.hook_key.as_deref();
    let proxy = sidecar::container(settings, own, &handlers, key, grace, &application)?;
    let capture = capture::container(settings, own)?;
    // A native sidecar is there before the first init container of the pod's own, so that these have the mesh. A classic one comes after the
    // last: until it runs nothing may be captured.
    let init = pod::list(spec, "initContainers");
    match own.sidecar {
        Sidecar::Native => {
            init.splice(0..0, [capture, proxy]);
        }
        Sidecar::Classic => {
            init.push(capture);
            pod::list(spec, "containers").insert(0, proxy);
        }
    }
    if let Some(key) = key {
        probes::show_key(spec, key);
    }
    pod::list(spec, "volumes").extend(sidecar::volumes(settings));
    pod::pull_by(spec, &settings.images.pull_secrets);
    pod::annotate(pod, INJECTED, "true");
    pod::annotate(pod, CAPTURE, &capture::text(own)?);
    Ok(())
}

/// The operations (RFC 6902) that make `after` of `before`: the spec and the annotations as a whole, since nothing else is ever touched.
pub fn patch(before: &Value, after: &Value) -> Value {
    let operation = |path: &str| json!({ "op": "add", "path": path, "value": after.pointer(path) });
    let paths = ["/metadata/annotations", "/spec"];
    paths.into_iter().filter(|path| before.pointer(path) != after.pointer(path)).map(operation).collect()
}
