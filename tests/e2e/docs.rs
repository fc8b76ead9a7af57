//! What docs/running.md tells people to type is typed here, and what builds on it in docs/identity.md.

use std::os::unix::fs::PermissionsExt as _;

use libtest_mimic::Trial;
use weft::lab::Lab;
use weft_tests::{program, test_with, tools};

const RUNNING: &str = include_str!("../../docs/running.md");
const IDENTITY: &str = include_str!("../../docs/identity.md");

pub fn tests() -> Vec<Trial> {
    vec![
        test_with("docs_a_mesh_by_hand", &["curl"], a_mesh_by_hand),
        test_with("docs_exchanging_the_root", &["curl"], exchanging_the_root),
        test_with(
            "docs_an_applications_own_identity",
            &["curl", "python3", "spiffe", "openssl"],
            an_applications_own_identity,
        ),
    ]
}

fn a_mesh_by_hand() {
    let said = type_in(&typed(RUNNING));
    assert!(said.contains("weft_certificate_expiry_timestamp_seconds") && said.contains("\"shop/web-0\""), "{said}");
}

fn an_applications_own_identity() {
    let (_, section) = IDENTITY.split_once("## An application's own identity\n").unwrap();
    let lines = typed(section.split("\n## ").next().unwrap());
    let (flags, rest) = lines.split_once('\n').unwrap();
    let running = typed(RUNNING).replace("--state-dir state &", "--state-dir state $weft_proxy_flags &");
    assert!(flags.starts_with("weft_proxy_flags=") && running.contains("$weft_proxy_flags"), "{flags}{running}");
    let said = type_in(&format!("{flags}\n{running}\n{rest}"));
    assert!(said.contains("svid.pem: OK") && said.contains("URI:spiffe://cluster.local/ns/shop/sa/web"), "{said}");
}

fn exchanging_the_root() {
    let (_, section) = IDENTITY.split_once("## Exchanging the root or the issuer\n").unwrap();
    let lines = typed(section.split("\n## ").next().unwrap());
    // It takes as long as certificates live.
    let running = typed(RUNNING).replace("weft control ", "weft control --leaf-ttl 4s ");
    assert!(lines.starts_with("weft certs rotate-root") && running.contains("--leaf-ttl"), "{lines}{running}");
    // Between two streams of a sidecar there is nothing to see.
    let inspect = "for _ in $(seq 20); do weft certs inspect shop/web-0 && break; sleep 0.2; done";
    let said = type_in(&format!("{running}\n{lines}\nweft certs status\n{inspect}"));
    assert!(said.contains("done: issuer-2 issues, under root-2") && said.contains("shop/web-0"), "{said}");
    assert!(said.contains("1  leaf") && said.contains("verifies: "), "{said}");
}

/// What stands indented.
fn typed(text: &str) -> String {
    text.lines().filter_map(|line| line.strip_prefix("    ")).collect::<Vec<_>>().join("\n")
}

/// Types it into a shell in a pod of its own; gives what was said.
fn type_in(typed: &str) -> String {
    let lab = Lab::new(program(), None).unwrap();
    let pod = lab.plain_pod("shop", "hand", None).unwrap();
    let dir = pod.dir().unwrap();
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let mut programs = vec![("weft", program().display().to_string())];
    // -S: without the machine's own packages, which need not go together with those that were fetched.
    programs.extend(tools::find("python3").map(|python| ("python3", format!("{} -S", python.display()))));
    for (name, program) in programs {
        let file = bin.join(name);
        std::fs::write(&file, format!("#!/bin/sh\nexec {program} \"$@\"\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let script = format!(
        "set -euo pipefail; cd {}; export PATH={}:$PATH PYTHONPATH={}\ntrap 'kill $(jobs -p); wait' EXIT\n{typed}\n",
        dir.display(),
        bin.display(),
        tools::python_path().display(),
    );
    let output = pod.output("timeout", ["60", "bash", "-c", &script]).unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    format!("{out}{err}")
}
