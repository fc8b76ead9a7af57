//! What docs/running.md tells people to type is typed here.

use std::os::unix::fs::PermissionsExt as _;

use libtest_mimic::Trial;
use weft::lab::Lab;
use weft_tests::{program, test_with};

const RUNNING: &str = include_str!("../../docs/running.md");

pub fn tests() -> Vec<Trial> {
    vec![test_with("docs_a_mesh_by_hand", &["curl"], a_mesh_by_hand)]
}

fn a_mesh_by_hand() {
    let lab = Lab::new(program(), None).unwrap();
    let pod = lab.plain_pod("shop", "hand", None).unwrap();
    let dir = pod.dir().unwrap();
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let weft = bin.join("weft");
    std::fs::write(&weft, format!("#!/bin/sh\nexec {} \"$@\"\n", program().display())).unwrap();
    std::fs::set_permissions(&weft, std::fs::Permissions::from_mode(0o755)).unwrap();
    let typed: Vec<&str> = RUNNING.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let script = format!(
        "set -euo pipefail; cd {}; export PATH={}:$PATH\ntrap 'kill $(jobs -p); wait' EXIT\n{}\n",
        dir.display(),
        bin.display(),
        typed.join("\n")
    );
    let output = pod.output("timeout", ["60", "bash", "-c", &script]).unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("weft_certificate_expiry_timestamp_seconds") && out.contains("\"shop/web-0\""), "{out}{err}");
}
