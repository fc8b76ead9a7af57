//! Identity never costs a request: under a steady load leaves turn every few seconds, issuer and root are rotated, and control is killed
//! again and again. The figures are printed.
#![allow(clippy::print_stderr, reason = "the figures are what these tests are for")]

use std::time::{Duration, Instant};

use weft_tests::load::{Load, Plan};
use weft_tests::{Mesh, Service, Trial, test_alone};

use crate::STRICT;

pub fn tests() -> Vec<Trial> {
    vec![test_alone("rotation_leaves_turn_while_control_dies", leaves_turn_while_control_dies)]
}

/// Life of a leaf. Control must not be away for longer than the third of it that is left when it is renewed.
const LEAF: Duration = Duration::from_secs(8);
/// Sidecars that carry the load.
const LOADED: [&str; 6] = ["web-0", "web-1", "echo-0", "ann-0", "bob-0", "cay-0"];
/// HTTP requests a second that are sent; the issue asks for 500.
const RATE: u32 = 550;

/// A mesh under load.
struct Stage {
    mesh: Mesh,
    load: Load,
}

impl Stage {
    fn set() -> Self {
        let leaf = format!("--leaf-ttl={}s", LEAF.as_secs());
        let mut mesh = Mesh::with_control(&[&leaf, "--debug-remote"]);
        mesh.write("namespace.yaml", STRICT);
        mesh.deploy(Service::http("web").pods(2)).deploy(Service::tcp("echo"));
        mesh.client("ann").client("bob").client("cay");
        let clients: Vec<_> = ["ann-0", "bob-0", "cay-0"].iter().map(|name| mesh.pod(name).clone()).collect();
        let plan = Plan { clients, http: mesh.address("web"), tcp: mesh.address("echo"), rate: RATE };
        let load = Load::start(plan);
        let stage = Self { mesh, load };
        stage.mesh.until("the load to be under way", || {
            let open = stage.load.tally.open.load(std::sync::atomic::Ordering::Relaxed);
            if open == 9 { Ok(()) } else { Err(format!("{open} of 9 sessions are open; {}", stage.load.tally)) }
        });
        stage
    }

    /// Nothing has failed so far.
    fn good(&self, when: &str) {
        let failures = self.load.tally.failures();
        assert!(failures.is_empty(), "{when}: {failures:#?}; {}", self.load.tally);
    }

    /// Lets the load go on.
    fn wait(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::thread::sleep(Duration::from_millis(50));
            self.good("under way");
        }
    }

    /// Certificates that a sidecar has had from control.
    fn renewals(&self, pod: &str) -> u64 {
        self.mesh.metric(pod, "weft_certificate_renewals_total", &["result=\"issued\""]) as u64
    }

    /// SIGKILL, and a start at once, as a supervisor would.
    fn kill_control(&mut self) -> Duration {
        let start = Instant::now();
        self.mesh.control.as_mut().unwrap().process.kill();
        self.mesh.start_control();
        start.elapsed()
    }
}

fn leaves_turn_while_control_dies() {
    let mut stage = Stage::set();
    let before: Vec<_> = LOADED.iter().map(|pod| stage.renewals(pod)).collect();
    let mut away = Vec::new();
    let start = Instant::now();
    while start.elapsed() < 4 * LEAF {
        stage.wait(Duration::from_millis(fastrand::u64(1_000..4_000)));
        away.push(stage.kill_control());
    }
    let (rate, after): (_, Vec<_>) = (stage.load.rate(), LOADED.iter().map(|pod| stage.renewals(pod)).collect());
    stage.load.end();
    eprintln!(
        "{} at {rate:.0} a second; control was killed {} times, away for at most {:?}",
        stage.load.tally,
        away.len(),
        away.iter().max()
    );
    stage.good("at the end");
    for ((pod, before), after) in LOADED.iter().zip(before).zip(after) {
        assert!(after >= before + 3, "{pod} had {before} certificates, now {after}");
    }
    assert!(rate >= 500.0, "{rate} requests a second");
}
