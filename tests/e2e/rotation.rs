//! Identity never costs a request: under a steady load leaves turn every few seconds, issuer and root are rotated, the trust domain gets
//! another name, and control is killed in every phase of that. The figures are printed.
//!
//! `WEFT_ROTATIONS=N cargo test -p weft-tests --test e2e -- rotation` does it N times over, with the load going on,
//! and turns a rotation of the root back each time.
#![allow(clippy::print_stderr, reason = "the figures are what this test is for")]

mod machine;
mod name;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weft_tests::client::{echo, get};
use weft_tests::load::{Load, Plan};
use weft_tests::{Mesh, Service, Trial, test_alone};

use crate::STRICT;
use machine::Rotating;

pub fn tests() -> Vec<Trial> {
    vec![test_alone("rotation_of_leaves_issuer_root_and_name_costs_no_request", costs_no_request)]
}

/// Life of a leaf. Control must not be away for longer than the third of it that is left when it is renewed.
const LEAF: Duration = Duration::from_secs(10);
/// Sidecars that carry the load.
const LOADED: [&str; 6] = ["web-0", "web-1", "echo-0", "ann-0", "bob-0", "cay-0"];
/// HTTP requests a second that are sent.
const RATE: u32 = 550;
/// What must have been answered of them each second: in the long form, which is for figures; and on a machine that does other things beside.
const PROMISED: [f64; 2] = [500.0, 400.0];
/// One more, which begins again and again with the state that it had before the first rotation.
const KEPT: &str = "kept-0";

/// A mesh under load.
struct Stage {
    // First, so that it ends before what it runs through.
    load: Load,
    mesh: Mesh,
    /// Certificates that the sidecars of [`LOADED`] had when the load began.
    had: [u64; 6],
    /// How long each of control's absences lasted.
    away: Vec<Duration>,
}

impl Stage {
    fn set() -> Self {
        let leaf = format!("--leaf-ttl={}s", LEAF.as_secs());
        let mut mesh = Mesh::with_control(&[&leaf, "--debug-remote"]);
        mesh.write("namespace.yaml", STRICT);
        mesh.deploy(Service::http("web").pods(2)).deploy(Service::tcp("echo"));
        mesh.client("ann").client("bob").client("cay").client("kept");
        let clients: Vec<_> = ["ann-0", "bob-0", "cay-0"].iter().map(|name| mesh.pod(name).clone()).collect();
        let plan = Plan { clients, http: mesh.address("web"), tcp: mesh.address("echo"), rate: RATE };
        let sessions = plan.sessions();
        let load = Load::start(plan);
        mesh.until("all sessions to be open", || match load.tally.open.load(Ordering::Relaxed) {
            open if open == sessions => Ok(()),
            _ => Err(load.tally.to_string()),
        });
        let mut stage = Self { load, mesh, had: [0; 6], away: Vec::new() };
        stage.had = stage.renewals();
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

    /// Certificates that each sidecar of [`LOADED`] has had from control.
    fn renewals(&self) -> [u64; 6] {
        LOADED.map(|pod| self.mesh.metric(pod, "weft_certificate_renewals_total", &["result=\"issued\""]) as u64)
    }

    /// SIGKILL, and a start at once, as a supervisor would. `meanwhile` happens while it is away.
    fn kill_control(&mut self, meanwhile: impl FnOnce(&mut Mesh)) {
        let start = Instant::now();
        self.mesh.control.as_mut().unwrap().process.kill();
        meanwhile(&mut self.mesh);
        self.mesh.start_control();
        self.away.push(start.elapsed());
    }

    /// A pod of the mesh whose sidecar is not there yet, and which was given these roots.
    fn expect(mesh: &mut Mesh, name: &str, roots: &str) {
        mesh.deploy(Service::own(name).later());
        let pod = mesh.pod(&format!("{name}-0"));
        std::fs::write(pod.dir().unwrap().join("root.pem"), roots).unwrap();
    }

    /// A pod's sidecar starts, and the pod calls others.
    fn join(&mut self, name: &str) {
        self.mesh.start_sidecar(name);
        let pod = self.mesh.pod(name);
        assert_eq!(get(pod, self.mesh.address("web"), "/").outcome(), (200, ""), "{name} has joined");
        echo(pod, self.mesh.address("echo"), "echo-0 v1", name);
        self.good(name);
    }
}

fn costs_no_request() {
    let rounds = std::env::var("WEFT_ROTATIONS").ok().map_or(1, |rounds| rounds.parse().expect("a number"));
    let mut stage = Stage::set();
    let mut figures = Vec::new();
    for round in 0..rounds {
        // Leaves turn, and control dies at any moment.
        for _ in 0..2 {
            stage.wait(Duration::from_millis(fastrand::u64(1_000..4_000)));
            stage.kill_control(|_| ());
        }
        figures.extend(Rotating::issuer(&mut stage, round));
        figures.extend(Rotating::root(&mut stage, round));
        figures.extend(name::rename(&mut stage, round));
        if rounds > 1 {
            figures.extend(Rotating::turned_back(&mut stage, round));
        }
    }
    let (rate, seconds, had) = (stage.load.rate(), stage.load.start.elapsed().as_secs(), stage.renewals());
    stage.load.end();
    let turned = had.iter().zip(stage.had).map(|(now, before)| now - before);
    let phases: Vec<_> = figures.iter().map(|(phase, took)| format!("{phase} {:.1} s", took.as_secs_f64())).collect();
    eprintln!(
        "{} at {rate:.0} requests a second in {seconds} s; {} leaves turned on {} sidecars; control was killed {} times, away for at most {:.1} s; {}",
        stage.load.tally,
        turned.clone().sum::<u64>(),
        LOADED.len(),
        stage.away.len(),
        stage.away.iter().max().unwrap().as_secs_f64(),
        phases.join(", ")
    );
    stage.good("at the end");
    let at_least = seconds / LEAF.as_secs();
    for (pod, turned) in LOADED.iter().zip(turned) {
        assert!(turned >= at_least, "{pod} had {turned} certificates, and should have had {at_least}");
    }
    assert!(rate >= PROMISED[usize::from(rounds == 1)], "{rate} requests a second");
}
