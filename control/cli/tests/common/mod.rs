//! A control in the test's own process, and the command beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use weft_control::{Config, Control};

/// The manifest of a meshed pod, `shop/web-1`.
pub const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, annotations: {weft.dev/injected: \"true\"}}\n\
                       spec: {serviceAccountName: web}\nstatus: {podIP: 10.0.0.1}\n";

pub struct Mesh {
    pub dir: tempfile::TempDir,
    /// Its metrics port.
    pub control: SocketAddr,
    // Ends with the test.
    _running: (Control, Runtime),
}

impl Mesh {
    /// With certificates that live for a second, so that a rotation has little to wait for.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let mut config = Config::new(vec![dir.path().join("files")], dir.path().join("ca"));
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.listen, config.metrics, config.leaf_ttl) = (anywhere, anywhere, Duration::from_secs(1));
        let runtime = Runtime::new().unwrap();
        let control = runtime.block_on(Control::start(config)).unwrap();
        Self { dir, control: control.metrics, _running: (control, runtime) }
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    pub fn pod(&self, text: &str) {
        std::fs::write(self.dir.path().join("files/pods.yaml"), text).unwrap();
    }

    pub fn weft(&self, arguments: &[&str]) -> Output {
        let control = self.control.to_string();
        weft(&[arguments, &["--control", &control]].concat())
    }

    /// What it answers once its exit code is this.
    pub fn until(&self, arguments: &[&str], code: i32) -> String {
        let begun = Instant::now();
        loop {
            let out = self.weft(arguments);
            if out.status.code() == Some(code) {
                return text(&out.stdout).to_owned();
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

pub fn weft(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft")).args(arguments).env("NO_COLOR", "1").output().unwrap()
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
