//! `weft certs rotate-root`, `rotate-issuer` and `status`, as a process, with a control beside.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Mesh, POD, text, weft};

impl Mesh {
    fn certs(&self, command: &str, more: &[&str]) -> Output {
        let control = self.control.to_string();
        let mut arguments = vec!["certs", command, "--control", &control];
        let ca = self.ca().display().to_string();
        if command != "status" {
            arguments.extend(["--ca-dir", &ca]);
        }
        arguments.extend(more);
        weft(&arguments)
    }
}

fn root(ca: &Path) -> String {
    std::fs::read_to_string(ca.join("root.pem")).unwrap()
}

#[test]
fn a_root_is_exchanged_and_the_command_says_how_it_goes() {
    let mesh = Mesh::start();
    let before = root(&mesh.ca());
    let out = mesh.certs("rotate-root", &[]);
    let (said, told) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{said}{told}");
    assert_eq!(said, "done: issuer-2 issues, under root-2\n");
    assert!(told.contains("turning (issuer-2 issues, no certificate of issuer may be left)"), "{told}");
    assert!(!root(&mesh.ca()).contains(&before));

    let out = mesh.certs("status", &[]);
    let said = text(&out.stdout);
    assert!(said.contains("root    root-2       published") && said.contains("issuer  issuer-2     issues"), "{said}");
    let out = mesh.certs("rotate-root", &["--abort"]);
    assert_eq!((out.status.code(), text(&out.stderr).trim()), (Some(4), "weft: no rotation is under way"));
}

#[test]
fn what_a_pod_shows_is_asked_of_control() {
    let mesh = Mesh::start();
    let control = mesh.control.to_string();
    let out = weft(&["certs", "inspect", "shop/web-1", "--control", &control]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(4), "{said}");
    assert!(said.contains("shop/web-1 has no stream to control; `weft certs status` lists"), "{said}");
    // A file that is not there is no pod.
    for file in ["absent/svid.pem", "./absent", "/absent/file", "a/b/c"] {
        let out = weft(&["certs", "inspect", file, "--control", &control]);
        assert!(text(&out.stderr).contains("cannot read"), "{file}: {}", text(&out.stderr));
    }
    let out = weft(&["certs", "inspect", "shop/web-1", "--control", "127.0.0.1:1"]);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
}

#[test]
fn who_lags_is_named_and_it_can_be_watched_again_and_turned_back() {
    let mesh = Mesh::start();
    mesh.pod(POD);
    let seen = || {
        let out = mesh.certs("status", &["--json"]);
        let said: Value = serde_json::from_slice(&out.stdout).unwrap();
        (said["proxies"].as_array().unwrap().len() == 1, out.status.code())
    };
    let start = std::time::Instant::now();
    while seen() != (true, Some(1)) {
        assert!(start.elapsed() < Duration::from_secs(20), "the pod is seen, and that it has no proxy");
        std::thread::sleep(Duration::from_millis(50));
    }
    let out = mesh.certs("rotate-root", &["--timeout", "4s"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("  shop/web-1 is not connected\n"), "{}", text(&out.stderr));
    assert!(text(&out.stdout).starts_with("publishing (both roots are believed"), "{}", text(&out.stdout));

    let out = mesh.certs("rotate-issuer", &[]);
    assert_eq!(out.status.code(), Some(4));
    assert!(text(&out.stderr).contains("a rotation of the root is publishing already"), "{}", text(&out.stderr));
    // The same command again joins it.
    let out = mesh.certs("rotate-root", &["--no-wait", "--json"]);
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((said["phase"].as_str(), said["done"].as_bool()), (Some("publishing"), Some(false)));
    let out = mesh.certs("status", &[]);
    assert!(
        text(&out.stdout).contains("rotation of the root from issuer to issuer-2: publishing for"),
        "{}",
        text(&out.stdout)
    );

    assert_eq!(mesh.certs("rotate-root", &["--abort", "--no-wait"]).status.code(), Some(0));
    mesh.pod("");
    let start = std::time::Instant::now();
    let over = || {
        let said: Value = serde_json::from_slice(&mesh.certs("status", &["--json"]).stdout).unwrap();
        said["rotation"].is_null() && said["issuing"] == "issuer"
    };
    while !over() {
        assert!(start.elapsed() < Duration::from_secs(20), "the new root is withdrawn once nobody lags");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn without_a_ca_or_a_control_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent").display().to_string();
    let out = weft(&["certs", "rotate-root", "--ca-dir", &absent]);
    assert_eq!(out.status.code(), Some(4));
    assert!(text(&out.stderr).contains("holds no CA"), "{}", text(&out.stderr));
    let out = weft(&["certs", "status", "--control", "127.0.0.1:9"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).contains("control cannot be asked at 127.0.0.1:9"), "{}", text(&out.stderr));
}
