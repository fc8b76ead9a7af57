//! The chained CNI plugin, versions 0.3.0 to 1.1.0 of the specification.
//!
//! Invariants
//! - A pod without our annotation, or whose annotations the runtime does not give, passes as if we were not there: what came is given back.
//! - A pod with our annotation has its rules before ADD succeeds, or ADD fails with a sentence; the kubelet tries again.
//! - Rules are never written into the namespace that we run in, which is the node's.
//! - DEL never fails because something is gone already.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fd::AsFd as _;
use serde::Deserialize;
use serde_json::{Value, json};
use weft_capture::netns::NetNs;
use weft_capture::rules::{self, Capture};
use weft_capture::settings::{ANNOTATION, Settings};

use crate::conflist::ANNOTATIONS;

/// Versions of the specification that we speak.
const VERSIONS: [&str; 6] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];
/// The newest of them.
const NEWEST: &str = "1.1.0";
/// Largest configuration that is read, in bytes.
const MAX_STDIN: u64 = 1024 * 1024;

/// A failure as the specification has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    code: u32,
    text: String,
}

impl Failure {
    fn new(code: u32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

const INCOMPATIBLE: u32 = 1;
const ENVIRONMENT: u32 = 4;
const INPUT: u32 = 5;
const DECODE: u32 = 6;
const CONFIGURATION: u32 = 7;
/// Of our own: the rules of the pod could not be written, or are not there.
const RULES: u32 = 100;

/// What the runtime says by the environment.
#[derive(Debug, Default)]
pub struct Call {
    command: String,
    netns: Option<PathBuf>,
}

impl Call {
    /// `None`: nobody calls us as a plugin.
    pub fn from_environment(get: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let command = get("CNI_COMMAND")?.to_string_lossy().into_owned();
        let netns = get("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        Some(Self { command, netns })
    }
}

/// What is read of our entry; the rest is not ours.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    cni_version: Option<String>,
    prev_result: Option<Value>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: HashMap<String, Value>,
}

/// Reads standard input, does what is asked for, and gives what to print and the exit code.
pub fn main(call: &Call) -> (String, u8) {
    let mut input = String::new();
    let read = std::io::stdin().take(MAX_STDIN).read_to_string(&mut input);
    let done = match read {
        Ok(_) => run(call, &input),
        Err(error) => Err(Failure::new(INPUT, format!("the configuration cannot be read: {error}"))),
    };
    match done {
        Ok(output) => (output.map_or_else(String::new, |value| value.to_string()), 0),
        Err(Failure { code, text }) => {
            let version = serde_json::from_str::<Config>(&input).ok().and_then(|config| config.cni_version);
            let version = version.unwrap_or_else(|| NEWEST.to_owned());
            (json!({ "cniVersion": version, "code": code, "msg": format!("weft-cni: {text}") }).to_string(), 1)
        }
    }
}

fn run(call: &Call, input: &str) -> Result<Option<Value>, Failure> {
    let config: Config = serde_json::from_str(input)
        .map_err(|error| Failure::new(DECODE, format!("the configuration is not what CNI says: {error}")))?;
    if call.command == "VERSION" {
        return Ok(Some(json!({ "cniVersion": NEWEST, "supportedVersions": VERSIONS })));
    }
    let version = config.cni_version.as_deref().unwrap_or("0.2.0");
    if !VERSIONS.contains(&version) {
        return Err(Failure::new(INCOMPATIBLE, format!("cniVersion {version} is not one of {}", VERSIONS.join(", "))));
    }
    match call.command.as_str() {
        "ADD" => add(call, config).map(Some),
        "CHECK" => check(call, &config).map(|()| None),
        "DEL" => {
            delete(call, &config);
            Ok(None)
        }
        // Nothing is kept outside the pods' namespaces, and nothing else is needed.
        "STATUS" | "GC" => Ok(None),
        other => Err(Failure::new(ENVIRONMENT, format!("CNI_COMMAND {other} is not known"))),
    }
}

fn add(call: &Call, config: Config) -> Result<Value, Failure> {
    if let Some(settings) = wanted(&config)? {
        let capture = Capture::from(&settings);
        let written = inside(call, || rules::install(&capture))?;
        written.map_err(|error| Failure::new(RULES, error.to_string()))?;
    }
    let missing =
        || Failure::new(CONFIGURATION, "no prevResult: weft-cni stands behind the plugin that makes the interface");
    config.prev_result.ok_or_else(missing)
}

fn check(call: &Call, config: &Config) -> Result<(), Failure> {
    if wanted(config)?.is_none() {
        return Ok(());
    }
    match inside(call, rules::installed)? {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(RULES, "the pod's rules are not there")),
        Err(error) => Err(Failure::new(RULES, error.to_string())),
    }
}

// The rules go with the namespace; where that outlives the pod they go now.
fn delete(call: &Call, config: &Config) {
    if matches!(wanted(config), Ok(Some(_))) {
        let _ = inside(call, rules::remove);
    }
}

/// What the pod's annotation asks for.
fn wanted(config: &Config) -> Result<Option<Settings>, Failure> {
    let given = config.runtime.get(ANNOTATIONS);
    let Some(annotation) = given.and_then(|annotations| annotations.get(ANNOTATION)) else { return Ok(None) };
    let text = annotation.as_str().unwrap_or_default();
    let refused = |error: rules::Error| Failure::new(RULES, format!("annotation {ANNOTATION}: {error}"));
    Settings::parse(text).map(Some).map_err(refused)
}

fn inside<T: Send>(call: &Call, job: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    let path = call.netns.as_deref().ok_or_else(|| Failure::new(ENVIRONMENT, "CNI_NETNS is not set"))?;
    let failed = |error: weft_capture::netns::Error| Failure::new(RULES, format!("{}: {error}", path.display()));
    let net = open_foreign(path).map_err(failed)?;
    let node = || Failure::new(ENVIRONMENT, format!("{} is the node's own network namespace", path.display()));
    net.ok_or_else(node)?.run(job).map_err(failed)
}

/// The network namespace at this path; `None` if it is our own.
pub fn open_foreign(path: &Path) -> Result<Option<NetNs>, weft_capture::netns::Error> {
    let (net, own) = (NetNs::open(path)?, NetNs::current()?);
    Ok((identity(&net) != identity(&own)).then_some(net))
}

/// What tells one namespace from another.
pub fn identity(net: &NetNs) -> Option<(u64, u64)> {
    rustix::fs::fstat(net.as_fd()).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str) -> Call {
        Call { command: command.to_owned(), netns: None }
    }

    fn config(version: &str, annotations: &Value) -> String {
        json!({
            "cniVersion": version, "name": "x", "type": "weft-cni", "capabilities": {ANNOTATIONS: true},
            "runtimeConfig": {ANNOTATIONS: annotations}, "prevResult": {"cniVersion": version, "ips": [{"address": "10.1.2.3/24"}]},
        })
        .to_string()
    }

    #[test]
    fn a_pod_that_asks_for_nothing_passes_as_it_came() {
        for version in VERSIONS {
            let output = run(&call("ADD"), &config(version, &json!({"a": "b"}))).unwrap().unwrap();
            assert_eq!(output["ips"][0]["address"], "10.1.2.3/24");
            for command in ["CHECK", "DEL", "STATUS", "GC"] {
                assert_eq!(run(&call(command), &config(version, &json!({}))), Ok(None));
            }
        }
        let bare = r#"{"cniVersion":"1.0.0","prevResult":{}}"#;
        assert_eq!(run(&call("ADD"), bare), Ok(Some(json!({}))));
    }

    #[test]
    fn every_version_is_named_and_no_other_is_taken() {
        let output = run(&call("VERSION"), r#"{"cniVersion":"9.9.9"}"#).unwrap().unwrap();
        assert!(output["supportedVersions"].as_array().unwrap().contains(&json!("0.4.0")));
        assert_eq!(run(&call("ADD"), &config("2.0.0", &json!({}))).unwrap_err().code, INCOMPATIBLE);
    }

    #[test]
    fn what_cannot_be_done_is_a_failure_with_a_sentence() {
        let wants = |text: &str| config("1.0.0", &json!({ANNOTATION: text}));
        for (command, input, code, part) in [
            ("ADD", wants("{}"), ENVIRONMENT, "CNI_NETNS"),
            ("ADD", wants(r#"{"outbound":1}"#), RULES, "unknown field"),
            ("ADD", "{".to_owned(), DECODE, "CNI"),
            ("ADD", r#"{"cniVersion":"1.0.0"}"#.to_owned(), CONFIGURATION, "prevResult"),
            ("JUMP", wants("{}"), ENVIRONMENT, "JUMP"),
        ] {
            let failure = run(&call(command), &input).unwrap_err();
            assert!(failure.code == code && failure.text.contains(part), "{failure:?}");
        }
        // The pod's end must not hang on what it asked for.
        assert_eq!(run(&call("DEL"), &wants("nonsense")), Ok(None));
    }

    #[test]
    fn the_nodes_own_namespace_is_never_written_to() {
        let call = Call { command: "ADD".to_owned(), netns: Some("/proc/thread-self/ns/net".into()) };
        let failure = run(&call, &config("1.0.0", &json!({ANNOTATION: "{}"}))).unwrap_err();
        assert!(failure.text.contains("node's own"), "{failure:?}");
    }
}
