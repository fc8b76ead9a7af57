//! What a pod's own annotations say of its sidecar, and those of its namespace for all of its pods.
//!
//! Invariant: an annotation of this prefix that is not known is refused, with the one that was meant: an exclusion that is silently not made
//! would be found by an outage.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::Value;
use weft_api::kinds::nearest;

use super::{CAPTURE, DNS, INJECT, INJECTED, Injection, Refusal, Resources, Sidecar, UID, pod, refused};

const PREFIX: &str = "weft.dev/";
/// The marks that we leave on a pod.
pub const MARKS: [&str; 2] = [INJECTED, CAPTURE];
/// What a pod, or its namespace, says to us.
pub const ANNOTATIONS: [&str; 14] = [
    "weft.dev/sidecar",
    "weft.dev/proxy-image",
    "weft.dev/proxy-cpu-request",
    "weft.dev/proxy-cpu-limit",
    "weft.dev/proxy-memory-request",
    "weft.dev/proxy-memory-limit",
    "weft.dev/proxy-workers",
    "weft.dev/include-inbound-ports",
    "weft.dev/exclude-inbound-ports",
    "weft.dev/include-outbound-ports",
    "weft.dev/exclude-outbound-ports",
    "weft.dev/include-outbound-cidrs",
    "weft.dev/exclude-outbound-cidrs",
    "weft.dev/dns",
];
/// What it says to the source of control.
const POSTURE: [&str; 2] = ["weft.dev/mtls", "weft.dev/mtls-ports"];

/// What holds for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What kind of container.
    pub sidecar: Sidecar,
    /// The sidecar's image.
    pub image: String,
    /// Its resources.
    pub resources: Resources,
    /// Its threads.
    pub workers: u16,
    /// What is captured.
    pub capture: weft_capture::Settings,
}

/// The mesh's settings, over them what the namespace says for all of its pods, and over that what the pod says.
pub fn of(settings: &Injection, namespace: &BTreeMap<String, String>, pod: &Value) -> Result<Settings, Refusal> {
    let mut own = Settings {
        sidecar: settings.sidecar,
        image: settings.images.proxy.clone(),
        resources: settings.resources.clone(),
        workers: settings.workers,
        capture: weft_capture::Settings {
            uid: UID,
            exclude_inbound_ports: settings.exclude_inbound_ports.clone(),
            exclude_outbound_ports: settings.exclude_outbound_ports.clone(),
            exclude_outbound_cidrs: settings.exclude_outbound_cidrs.clone(),
            dns_port: settings.dns.then_some(DNS),
            ..weft_capture::Settings::default()
        },
    };
    for (name, value) in namespace {
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        own.take(short, value.trim()).map_err(|why| Refusal(format!("annotation {name} of its namespace: {why}")))?;
    }
    for (name, value) in pod::annotations(pod) {
        let Some(short) = name.strip_prefix(PREFIX).filter(|_| !POSTURE.contains(&name)) else { continue };
        own.take(short, value.trim()).map_err(|why| Refusal(format!("annotation {name}: {why}")))?;
    }
    Ok(own)
}

impl Settings {
    fn take(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        let quantity = |value: &str| {
            if value.is_empty() {
                refused("it is empty; give a quantity such as 100m or 64Mi")
            } else {
                Ok(value.to_owned())
            }
        };
        let Resources { requests, limits } = &mut self.resources;
        match name {
            "sidecar" => {
                self.sidecar = match value {
                    "native" => Sidecar::Native,
                    "classic" => Sidecar::Classic,
                    other => return refused(format!("`{other}` is no kind of sidecar; say native or classic")),
                };
            }
            "proxy-image" if value.is_empty() => return refused("it is empty; give an image"),
            "proxy-image" => value.clone_into(&mut self.image),
            "proxy-cpu-request" => drop(requests.insert("cpu".to_owned(), quantity(value)?)),
            "proxy-cpu-limit" => drop(limits.insert("cpu".to_owned(), quantity(value)?)),
            "proxy-memory-request" => drop(requests.insert("memory".to_owned(), quantity(value)?)),
            "proxy-memory-limit" => drop(limits.insert("memory".to_owned(), quantity(value)?)),
            "proxy-workers" => self.workers = one(value, "a number of threads from 1", |number: &u16| *number > 0)?,
            "include-inbound-ports" => self.capture.include_inbound_ports = ports(value)?,
            "exclude-inbound-ports" => self.capture.exclude_inbound_ports.extend(ports(value)?),
            "include-outbound-ports" => self.capture.include_outbound_ports = ports(value)?,
            "exclude-outbound-ports" => self.capture.exclude_outbound_ports.extend(ports(value)?),
            "include-outbound-cidrs" => self.capture.include_outbound_cidrs = cidrs(value)?,
            "exclude-outbound-cidrs" => self.capture.exclude_outbound_cidrs.extend(cidrs(value)?),
            "dns" => self.capture.dns_port = one(value, "true or false", |_: &bool| true)?.then_some(DNS),
            "inject" => return refused(format!("{INJECT} is a label, not an annotation")),
            "injected" | "capture" => {}
            unknown => {
                let known = ANNOTATIONS.into_iter().chain(MARKS).chain(POSTURE);
                let meant = nearest(&format!("{PREFIX}{unknown}"), known);
                let meant = meant.map(|meant| format!("; did you mean {meant}?"));
                return refused(format!("there is none of this name{}", meant.unwrap_or_default()));
            }
        }
        Ok(())
    }
}

fn one<T: FromStr>(text: &str, what: &str, good: impl Fn(&T) -> bool) -> Result<T, Refusal> {
    match text.parse().ok().filter(good) {
        Some(found) => Ok(found),
        None => refused(format!("`{text}` is not {what}")),
    }
}

fn several<T: FromStr + Ord + Display>(text: &str, what: &str, good: impl Fn(&T) -> bool) -> Result<Vec<T>, Refusal> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| one(part, what, &good)).collect()
}

fn ports(text: &str) -> Result<Vec<u16>, Refusal> {
    several(text, "a port from 1 to 65535", |port| *port > 0)
}

fn cidrs(text: &str) -> Result<Vec<IpNet>, Refusal> {
    several(text, "a range of addresses, such as 10.0.0.0/8", |_| true)
}
