//! `weft status`, `weft proxies` and `weft diff`, as a process, with a control beside.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::Runtime;
use weft_control::{Config, Control};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, annotations: {weft.dev/injected: \"true\"}}\n\
                   spec: {serviceAccountName: web}\nstatus: {podIP: 10.0.0.1}\n";

struct Mesh {
    dir: tempfile::TempDir,
    control: SocketAddr,
    // Ends with the test.
    _running: (Control, Runtime),
}

impl Mesh {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let mut config = Config::new(vec![dir.path().join("files")], dir.path().join("ca"));
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.listen, config.metrics) = (anywhere, anywhere);
        let runtime = Runtime::new().unwrap();
        let control = runtime.block_on(Control::start(config)).unwrap();
        Self { dir, control: control.metrics, _running: (control, runtime) }
    }

    fn weft(&self, arguments: &[&str]) -> Output {
        let control = self.control.to_string();
        weft(&[arguments, &["--control", &control]].concat())
    }

    /// What it answers once its exit code is this.
    fn until(&self, arguments: &[&str], code: i32) -> String {
        let begun = Instant::now();
        loop {
            let out = self.weft(arguments);
            if out.status.code() == Some(code) {
                return text(&out.stdout);
            }
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{arguments:?}: {}{}",
                text(&out.stdout),
                text(&out.stderr)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn weft(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft")).args(arguments).env("NO_COLOR", "1").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_exit_code_says_whether_something_has_to_be_mended_and_the_words_say_what() {
    let mesh = Mesh::start();
    let said = mesh.until(&["status"], 0);
    assert!(said.ends_with("nothing has to be mended\n"), "{said}");
    assert!(said.contains("proxies 0 of 0 connected"), "{said}");

    std::fs::write(mesh.dir.path().join("files/pods.yaml"), POD).unwrap();
    let said = mesh.until(&["status"], 1);
    assert!(said.contains("! shop/web-1 ought to be connected and is not"), "{said}");
    let said: Value = serde_json::from_str(&mesh.until(&["status", "--json"], 1)).unwrap();
    assert_eq!((&said["ok"], &said["proxies"]["absent"][0]), (&false.into(), &"shop/web-1".into()));
    let said = mesh.until(&["proxies"], 1);
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["WORKLOAD", "IDENTITY", "SINCE", "SUBSCRIBED", "STATE", "VERSION"]);
    assert_eq!(lines[1], ["shop/web-1", "-", "-", "-", "not", "connected", "-"]);
    let said = mesh.until(&["status", "--object", "Pod/shop/web-1"], 0);
    assert!(said.starts_with("Pod/shop/web-1 no proxy uses it"), "{said}");
    let said = mesh.until(&["events", "--object", "Pod/shop/web-1", "--since", "5m"], 0);
    assert!(said.contains("Z  Pod/shop/web-1: ") && said.contains("nobody uses them"), "{said}");
    assert_eq!(mesh.until(&["events", "--object", "Pod/shop/web-2", "--json"], 0), "[]\n");
}

#[test]
fn what_is_not_there_and_who_cannot_be_asked_is_told_apart() {
    let mesh = Mesh::start();
    for (arguments, code, words) in [
        (&["diff", "shop/web-1"][..], 4, "shop/web-1 has no stream to this control"),
        (&["proxies", "shop/web-1"], 4, "has no stream to this control"),
        (&["proxies", "shop/web-1", "--tables"], 4, "has no stream to this control"),
        (&["proxies", "--tables"], 2, "required"),
        (
            &["status", "--object", "ConfigMap/shop/web"],
            4,
            "nothing is compiled from a ConfigMap; there are AuthorizationPolicy",
        ),
        (&["status", "--object", "nonsense"], 4, "write KIND/NAMESPACE/NAME"),
    ] {
        let out = mesh.weft(arguments);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(words), "{arguments:?}: {}", text(&out.stderr));
        assert!(out.stdout.is_empty(), "{arguments:?}");
    }
    for command in [&["status"][..], &["proxies"], &["diff", "shop/web-1"]] {
        let out = weft(&[command, &["--control", "127.0.0.1:1"]].concat());
        assert_eq!(out.status.code(), Some(3), "{command:?}");
        assert!(text(&out.stderr).contains("control cannot be asked at 127.0.0.1:1"), "{}", text(&out.stderr));
    }
}
