//! The plugin as a runtime calls it, and the repair of a pod, in real network namespaces.
//!
//! Runs without libtest, because an ordinary user must enter a user namespace before any thread exists.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unnecessary_wraps,
    reason = "a test binary of its own"
)]

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, ExitCode, Stdio};
use weft_capture::netns::{NetNs, enter_user_namespace};
use weft_capture::rules::{self, installed};
use weft_cni::find::{Error, Pods, namespaces};

fn main() -> ExitCode {
    if let Err(error) = enter_user_namespace() {
        eprintln!("these tests need namespaces: {error}");
        return ExitCode::from(3);
    }
    let trials = vec![
        Trial::test("a_pod_that_asks_gets_its_rules_and_loses_them", a_pod_that_asks_gets_its_rules_and_loses_them),
        Trial::test("a_pod_that_does_not_ask_gets_none", a_pod_that_does_not_ask_gets_none),
        Trial::test("what_cannot_be_captured_does_not_start", what_cannot_be_captured_does_not_start),
        Trial::test("a_pods_namespace_is_found_by_its_processes", a_pods_namespace_is_found_by_its_processes),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What a runtime does: the program with the environment and the configuration of the specification.
fn call(command: &str, netns: &str, annotations: &Value) -> (bool, String) {
    let input = json!({
        "cniVersion": "1.0.0", "name": "x", "type": "weft-cni",
        "runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations},
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]},
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/x")])
        .env("CNI_NETNS", netns)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn has_rules(net: &NetNs) -> bool {
    net.run(|| installed().unwrap()).unwrap()
}

fn a_pod_that_asks_gets_its_rules_and_loses_them() -> Result<(), Failed> {
    let net = NetNs::create()?;
    let path = net.path_for_children();
    let asks = json!({"weft.dev/capture": r#"{"outboundPort":15001,"uid":1337,"excludeInboundPorts":[9100]}"#});
    assert!(!call("CHECK", &path, &asks).0);
    let (ok, output) = call("ADD", &path, &asks);
    assert!(ok && output.contains("10.1.2.3/24"), "{output}");
    assert!(has_rules(&net));
    assert!(call("CHECK", &path, &asks).0);
    assert!(call("DEL", &path, &asks).0 && !has_rules(&net));
    assert!(call("DEL", "/proc/nowhere", &asks).0);
    assert!(call("DEL", "", &asks).0);
    Ok(())
}

fn a_pod_that_does_not_ask_gets_none() -> Result<(), Failed> {
    let net = NetNs::create()?;
    for annotations in [json!({}), json!({"other": "x"}), Value::Null] {
        let (ok, output) = call("ADD", &net.path_for_children(), &annotations);
        assert!(ok && output.contains("10.1.2.3/24"), "{output}");
        assert!(!has_rules(&net));
    }
    Ok(())
}

fn what_cannot_be_captured_does_not_start() -> Result<(), Failed> {
    let asks = json!({"weft.dev/capture": "{}"});
    let (ok, output) = call("ADD", "/proc/nowhere/ns/net", &asks);
    let failure: Value = serde_json::from_str(&output)?;
    assert!(!ok && failure["code"] == 100 && failure["msg"].as_str().unwrap().contains("/proc/nowhere"), "{output}");
    let (ok, output) = call("ADD", "/proc/self/ns/net", &asks);
    assert!(!ok && output.contains("node's own"), "{output}");
    Ok(())
}

fn loopback_up() {
    let up = async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let message = rtnetlink::LinkUnspec::new_with_index(1).up().build();
        handle.link().set(message).execute().await.unwrap();
    };
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(up);
}

/// Processes are as in /proc: a directory with a number, its cgroups, and its namespace.
fn a_pods_namespace_is_found_by_its_processes() -> Result<(), Failed> {
    let proc = tempfile::tempdir()?;
    let nets = [NetNs::create()?, NetNs::create()?, NetNs::create()?];
    for (number, (net, uid)) in nets.iter().zip(["aa-1", "aa-1", "bb-2"]).enumerate() {
        let path = proc.path().join((number + 10).to_string());
        std::fs::create_dir_all(path.join("ns"))?;
        std::fs::write(path.join("cgroup"), format!("0::/kubepods/besteffort/pod{uid}/x\n"))?;
        std::os::unix::fs::symlink(net.path_for_children(), path.join("ns/net"))?;
    }
    // A namespace whose loopback is up has one address.
    for net in &nets {
        net.run(loopback_up)?;
    }
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let own = proc.path().join("1");
    std::fs::create_dir_all(own.join("ns"))?;
    std::fs::write(own.join("cgroup"), "0::/kubepods/besteffort/podcc-3/x\n")?;
    std::os::unix::fs::symlink("/proc/self/ns/net", own.join("ns/net"))?;
    let ask = |uid: &str, address: &str| {
        let pods = Pods::from([(uid.to_owned(), vec![address.parse().unwrap()])]);
        namespaces(proc.path(), &pods).remove(uid).unwrap()
    };
    let local = address.to_string();
    assert_eq!(ask("aa-1", &local).unwrap_err(), Error::Ambiguous(2));
    assert_eq!(ask("bb-2", "10.9.9.9").unwrap_err(), Error::NoAddress(1));
    assert_eq!(ask("dd-4", &local).unwrap_err(), Error::NoProcess);
    assert_eq!(ask("cc-3", &local).unwrap_err(), Error::NoProcess, "never the node's own");
    let found = ask("bb-2", &local).unwrap();
    found.run(|| rules::install(&rules::Capture::new(rules::Exclude::Uid(1337))))??;
    assert!(has_rules(&nets[2]) && !has_rules(&nets[0]) && !has_rules(&nets[1]));
    Ok(())
}
