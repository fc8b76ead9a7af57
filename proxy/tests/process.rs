//! The proxy as a process: what its exit codes mean, and how it starts and stops while control is away.

#![allow(clippy::unwrap_used)] // its helpers are tests too

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_engine::identity::Identity;

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";
const PATIENCE: Duration = Duration::from_secs(30);

fn proxy(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Addresses that nobody listens on. All are had at one time, so that none comes twice, and at an address where the other test does not take any.
fn free() -> [SocketAddr; 6] {
    let held: [TcpListener; 6] = std::array::from_fn(|_| TcpListener::bind("127.0.0.2:0").unwrap());
    held.map(|one| one.local_addr().unwrap())
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A proxy in `dir`, whose control is away, and the address of its health port.
fn start(dir: &Path) -> (Killed, SocketAddr) {
    let [health, control, outbound, inbound, metrics, admin] = free();
    let control = control.to_string();
    let ports = [
        format!("--outbound={outbound}"),
        format!("--inbound={inbound}"),
        format!("--metrics={metrics}"),
        format!("--health={health}"),
        format!("--admin={admin}"),
    ];
    let root = dir.join("ca/root.pem");
    let mut command = proxy(&["--workload=shop/web-0", "--identity", IDENTITY, "--control", &control]);
    command.arg("--control-ca").arg(root).arg("--state-dir").arg(dir.join("state")).args(ports);
    let child = command.arg("--dns=127.0.0.1:1").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    (Killed(child), health)
}

fn get(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn terminate(child: &Child) {
    let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn exit_codes_tell_a_wrong_command_line_from_a_machine_that_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("proxy.json");
    std::fs::write(&config, r#"{"worklaod": "shop/web-0"}"#).unwrap();
    let config = config.to_str().unwrap();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let complete = ["--workload=shop/web-0", "--identity", IDENTITY, "--control=127.0.0.1:1", "--control-ca=/nowhere"];
    let ports = ["--outbound=127.0.0.1:0", "--inbound=127.0.0.1:0", "--metrics=127.0.0.1:0", "--health=127.0.0.1:0"];
    let whole: Vec<_> = complete.into_iter().chain(ports).chain(["--admin=127.0.0.1:0"]).collect();
    for (args, code, words) in [
        (&["--workload=shop/web-0"][..], 2, "--identity is missing"),
        (&["--config", config], 4, "worklaod"),
        (&whole, 3, "--control-ca /nowhere"),
    ] {
        let output = proxy(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
}

#[test]
fn a_proxy_without_control_lives_says_why_it_is_not_ready_and_stops_at_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    let (mut child, health) = start(dir.path());
    until("health", || get(health, "/healthz/live").is_ok_and(|answer| answer.contains(" 200 ")));
    let why = get(health, "/healthz/ready").unwrap();
    assert!(why.contains(" 503 ") && why.contains("no valid certificate"), "{why}");
    terminate(&child.0);
    until("the end", || child.0.try_wait().unwrap().is_some());
    assert_eq!(child.0.wait().unwrap().code(), Some(0));

    // With its certificate on disk, but no tables, it knows who it is and not what it admits.
    let identity: Identity = IDENTITY.parse().unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = key.csr(&identity).unwrap();
    let chain = ca.issue(&csr, &identity, Duration::from_hours(1), SystemTime::now()).unwrap();
    Svid::new(key, &chain).unwrap().save(&dir.path().join("state")).unwrap();
    let (_child, health) = start(dir.path());
    until("the saved certificate", || {
        get(health, "/healthz/ready").is_ok_and(|why| why.contains("control has not told yet what shop/web-0 admits"))
    });
}
