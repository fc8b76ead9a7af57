//! Three controls serve one mesh and are replaced one after the other, told to stop or killed, while others call each other and a pod leaves: no
//! request notices, every proxy has what is true afterwards, and the pod that leaves hears when all know it.
#![allow(clippy::print_stderr, reason = "the figures are shown")]

mod near;
mod silent;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use weft::lab::{NODE, Process, http_get, sum};
use weft_tests::load::{Load, Plan};
use weft_tests::mesh::SOON;
use weft_tests::{Mesh, Service, Trial, test_that_waits};

pub fn tests() -> Vec<Trial> {
    vec![
        test_that_waits("replicas_nearby_have_the_proxies_of_their_zone", near::have_their_own),
        test_that_waits("replicas_one_stands_still_and_goes_on", silent::stands_still),
        test_that_waits("replicas_are_replaced_and_die_without_notice", are_replaced_and_die),
    ]
}

const REPLICAS: u16 = 3;
/// HTTP requests a second.
const RATE: u32 = 100;
/// How often one is killed at random.
const KILLS: usize = 4;

/// What a sidecar is told of where they are.
fn control_flag() -> String {
    let all = (0..REPLICAS).map(|replica| serves(replica).to_string());
    format!("--control={}", all.collect::<Vec<_>>().join(","))
}

fn serves(replica: u16) -> SocketAddr {
    SocketAddr::from((NODE, 15_012 + 10 * replica))
}

fn shows(replica: u16) -> SocketAddr {
    SocketAddr::from((NODE, 15_014 + 10 * replica))
}

struct Replicas {
    mesh: Mesh,
    running: Vec<Option<Process>>,
    /// Flags of each of them.
    flags: Vec<String>,
}

impl Replicas {
    fn with(flags: &[&str]) -> Self {
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut replicas = Self { mesh: Mesh::without_control(), running: Vec::new(), flags };
        for replica in 0..REPLICAS {
            replicas.running.push(None);
            replicas.start(replica);
        }
        replicas
    }

    /// Starts one, and waits until it serves and hears the others that run.
    fn start(&mut self, replica: u16) {
        let (lab, files) = (&self.mesh.lab, &self.mesh.files);
        let mut args: Vec<String> = vec!["control".into(), "--debug-remote".into()];
        args.push(format!("--replica-name=control-{replica}"));
        args.push(format!("--files={}", files.display()));
        args.push(format!("--ca-dir={}", lab.dir().join("ca").display()));
        args.push(format!("--state-dir={}", lab.dir().join(format!("control-{replica}")).display()));
        args.push(format!("--listen={}", serves(replica)));
        args.push(format!("--metrics={}", shows(replica)));
        args.push(format!("--zone=zone-{replica}"));
        args.extend((0..REPLICAS).map(|other| format!("--replica={}", serves(other))));
        args.extend(self.flags.iter().cloned());
        self.running[usize::from(replica)] = Some(self.mesh.weft(&format!("control-{replica}"), &args));
        self.mesh.until("a control to serve", || {
            match http_get(lab_node(&self.mesh), shows(replica), "/healthz/ready") {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        self.hears_the_others(replica);
    }

    fn hears_the_others(&self, replica: u16) {
        let others = self.running.iter().flatten().count() - 1;
        self.mesh.until("it to hear the others", || {
            let heard = self.metric(replica, "weft_control_replicas", &["state=\"heard\""]);
            if (heard - others as f64).abs() < 0.5 { Ok(()) } else { Err(format!("it hears {heard} of {others}")) }
        });
    }

    /// Each of them hears each other one.
    fn all_heard(&self) {
        (0..REPLICAS).for_each(|replica| self.hears_the_others(replica));
    }

    fn signal(&mut self, replica: u16, signal: Signal) {
        self.running[usize::from(replica)].as_mut().unwrap().signal(signal);
    }

    fn metric(&self, replica: u16, name: &str, labels: &[&str]) -> f64 {
        http_get(lab_node(&self.mesh), shows(replica), "/metrics").map_or(0.0, |answer| sum(&answer.body, name, labels))
    }

    fn connected(&self) -> Vec<f64> {
        (0..REPLICAS).map(|replica| self.metric(replica, "weft_control_connected_proxies", &[])).collect()
    }

    /// Every sidecar has its stream, somewhere.
    fn all_connected(&self) {
        let all = self.mesh.members.len() as f64;
        self.mesh.until("every proxy to be connected", || {
            let connected = self.connected();
            if (connected.iter().sum::<f64>() - all).abs() < 0.5 { Ok(()) } else { Err(format!("{connected:?}")) }
        });
    }

    /// Told to stop, as in a rolling update: it ends by itself, with code 0.
    fn stop(&mut self, replica: u16) {
        self.signal(replica, Signal::TERM);
        let process = self.running[usize::from(replica)].as_mut().unwrap();
        let ended = process.wait(SOON).unwrap();
        assert!(ended.success(), "{ended}");
        self.running[usize::from(replica)] = None;
    }

    fn kill(&mut self, replica: u16) {
        self.running[usize::from(replica)].as_mut().unwrap().kill();
        self.running[usize::from(replica)] = None;
    }

    /// What the proxy of each pod runs is what its control has, made from scratch when it was started last; whichever control is asked.
    fn nothing_differs(&self) {
        for pod in self.mesh.members.keys() {
            let page = format!("/debug/diff?workload=shop/{pod}");
            for replica in 0..REPLICAS {
                self.mesh.until(&format!("{pod} to have what is true"), || {
                    match http_get(lab_node(&self.mesh), shows(replica), &page) {
                        Ok(answer) if answer.status == 200 && answer.body == "[]" => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                });
            }
        }
        let all = self.mesh.members.len();
        // The one that came last hears the others, who may not have heard of it yet.
        self.mesh.until("the first to know all of them", || {
            let answer = http_get(lab_node(&self.mesh), shows(0), "/debug/status").unwrap();
            let status: Value = serde_json::from_str(&answer.body).unwrap();
            let others = status["replicas"].as_array().unwrap().len();
            let connected = &status["proxies"]["connected"];
            let good = (connected, &status["ok"], others) == (&all.into(), &true.into(), usize::from(REPLICAS) - 1);
            if good { Ok(()) } else { Err(format!("{status:#}")) }
        });
    }
}

fn lab_node(mesh: &Mesh) -> &weft_capture::netns::NetNs {
    mesh.lab.node()
}

fn are_replaced_and_die() {
    let mut replicas = Replicas::with(&[]);
    let control = control_flag();
    let mesh = &mut replicas.mesh;
    mesh.deploy(Service::http("web").pods(3).sidecar_arg(&control));
    mesh.deploy(Service::tcp("echo").sidecar_arg(&control));
    mesh.deploy(Service::own("ann").sidecar_arg(&control)).deploy(Service::own("bob").sidecar_arg(&control));
    let clients = vec![mesh.pod("ann-0").clone(), mesh.pod("bob-0").clone()];
    let plan = Plan { clients, http: mesh.address("web"), tcp: mesh.address("echo"), rate: RATE };
    let mut load = Load::start(plan);
    let good = |when: &str| assert!(load.tally.failures().is_empty(), "{when}: {:#?}", load.tally.failures());
    replicas.all_connected();
    let begun = Instant::now();

    // A rolling update of control; in the middle of it a pod leaves, and its application ends as soon as it may.
    for replica in 0..REPLICAS {
        let leaver = replicas.mesh.pod("web-2").clone();
        let hook = (replica == 1).then(|| {
            std::thread::spawn(move || {
                http_get(leaver.net(), SocketAddr::from((Ipv4Addr::LOCALHOST, 15021)), "/drain-wait")
            })
        });
        replicas.stop(replica);
        replicas.start(replica);
        if let Some(hook) = hook {
            let answer = hook.join().unwrap().unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            replicas.mesh.member_mut("web-2").app = None;
        }
        replicas.all_connected();
        good("while controls were replaced");
    }
    let rolled = begun.elapsed();

    // The proxies go elsewhere at once, and what is edited meanwhile reaches them.
    for round in 0..KILLS {
        let replica = fastrand::u16(..REPLICAS);
        replicas.kill(replica);
        let note = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: more, namespace: shop}}\nspec: {{clusterIP: 10.96.250.{}, ports: [{{port: 80}}]}}\n",
            round + 1
        );
        replicas.mesh.write("more.yaml", &note);
        replicas.all_connected();
        replicas.start(replica);
        good("after a control was killed");
    }
    replicas.nothing_differs();
    let load_said = load.tally.to_string();
    load.end();
    assert!(load.tally.failures().is_empty(), "{:#?}", load.tally.failures());
    eprintln!(
        "replicas: {REPLICAS} controls replaced in {rolled:.1?}, {KILLS} killed; proxies by control {:?}; {load_said}",
        replicas.connected()
    );
    assert!(load.tally.answered() > 0 && rolled > Duration::ZERO);
}
