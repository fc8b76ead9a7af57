//! Rolling updates under load: pods come and go one by one, what the kubelet does and what the slice says of it in any order and up to two
//! seconds apart, applications that end at once when they are told to. No request of a client in the mesh fails; those of one outside of it,
//! who hears of endpoints only by the slice, are counted. The figures are printed.
//!
//! `WEFT_ROLLOUTS=100 cargo test -p weft-tests --test e2e -- rollout` makes so many updates.
#![allow(clippy::print_stderr, reason = "the figures are what this test is for")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::Method;
use parking_lot::Mutex;
use rustix::process::Signal;
use weft::lab::{Pod, http_get};
use weft_tests::client::{request, try_send};
use weft_tests::load::{Load, Plan};
use weft_tests::{Mesh, Service, Trial, test_that_waits};

pub fn tests() -> Vec<Trial> {
    vec![test_that_waits("rollout_costs_no_request", costs_no_request)]
}

const REPLICAS: usize = 3;
/// HTTP requests a second.
const RATE: u32 = 200;
/// How far the kubelet and the slice are apart at most.
const APART: Duration = Duration::from_secs(2);
/// A client outside the mesh calls during every so many updates: each pod then waits for three seconds without a connection of his.
const PLAIN_EVERY: usize = 10;

/// One pod of the deployment.
struct Replica {
    name: String,
    ip: IpAddr,
    ready: bool,
}

struct Rollout {
    load: Load,
    service: Service,
    replicas: Vec<Replica>,
    /// What a client outside the mesh knows.
    listed: Arc<Mutex<Vec<SocketAddr>>>,
    /// How long the hooks of pods took that no plain client called.
    drains: Vec<Duration>,
    born: usize,
    mesh: Mesh,
}

impl Rollout {
    fn set() -> Self {
        let mut mesh = Mesh::new();
        let service = Service::http("web").pods(REPLICAS);
        mesh.deploy(service.clone()).deploy(Service::tcp("echo")).client("ann");
        mesh.deploy(Service::own("outside").unmeshed());
        let clients = vec![mesh.pod("ann-0").clone()];
        let plan = Plan { clients, http: mesh.address("web"), tcp: mesh.address("echo"), rate: RATE };
        let replica = |index| {
            let pod = mesh.pod(&service.pod_name(index));
            Replica { name: pod.name().to_owned(), ip: pod.ip().into(), ready: true }
        };
        let replicas = (0..REPLICAS).map(replica).collect();
        let (load, listed) = (Load::start(plan), Arc::default());
        let rollout = Self { load, service, replicas, listed, drains: Vec::new(), born: REPLICAS, mesh };
        rollout.write_apart();
        rollout
    }

    /// Each object in a file of its own.
    fn write_apart(&self) {
        let cluster_ips = &self.mesh.services["web"].1;
        let whole = self.service.manifest(cluster_ips, &[]);
        let rest = whole.strip_suffix(&format!("---\n{}", self.service.slice(&[]))).expect("the slice stands last");
        self.mesh.write("web.yaml", rest);
        for replica in &self.replicas {
            self.write_pod(replica);
        }
        self.write_slice();
    }

    fn write_pod(&self, replica: &Replica) {
        self.mesh.write(&format!("pod-{}.yaml", replica.name), &self.service.pod(&replica.name, &[replica.ip]));
    }

    fn write_slice(&self) {
        let pods: Vec<_> = self.replicas.iter().map(|one| (one.name.as_str(), one.ip, one.ready)).collect();
        self.mesh.write("web-slice.yaml", &self.service.slice_while("1", &pods));
        let ready = self.replicas.iter().filter(|one| one.ready);
        *self.listed.lock() = ready.map(|one| SocketAddr::new(one.ip, self.service.target_port)).collect();
    }

    /// A new pod; in the slice once its sidecar is ready.
    fn surge(&mut self) {
        let name = self.service.pod_name(self.born);
        self.born += 1;
        let ip = IpAddr::from(self.mesh.another_pod("web", &name).ip());
        let replica = Replica { name, ip, ready: true };
        self.write_pod(&replica);
        self.mesh.start_sidecar(&replica.name);
        self.replicas.push(replica);
        self.write_slice();
    }

    /// The oldest pod goes: `kubelet` and `slice` after these times.
    fn retire(&mut self, kubelet: Duration, slice: Duration, plain: bool) {
        let start = Instant::now();
        let name = self.replicas[0].name.clone();
        let pod = self.mesh.pod(&name).clone();
        let mut app = self.mesh.member_mut(&name).app.take().unwrap();
        let hook = std::thread::spawn(move || {
            std::thread::sleep(kubelet);
            let begun = Instant::now();
            let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 15021));
            let answer = http_get(pod.net(), health, "/drain-wait").unwrap();
            let took = begun.elapsed();
            app.kill();
            (answer, took)
        });
        std::thread::sleep(slice.saturating_sub(start.elapsed()));
        self.replicas[0].ready = false;
        self.write_slice();
        let (answer, took) = hook.join().unwrap();
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        if !plain {
            self.drains.push(took);
        }
        // The application has gone; now the sidecar is told, and then the pod is no more.
        let sidecar = self.mesh.member_mut(&name).sidecar.as_mut().unwrap();
        sidecar.process.signal(Signal::TERM);
        sidecar.process.wait(Duration::from_secs(20)).unwrap();
        self.replicas.remove(0);
        self.write_slice();
        self.mesh.members.remove(&name);
        let _ = std::fs::remove_file(self.mesh.files.join(format!("pod-{name}.yaml")));
        self.good(&name);
    }

    fn good(&self, when: &str) {
        let failures = self.load.tally.failures();
        assert!(failures.is_empty(), "when {when} went: {failures:#?}; {}", self.load.tally);
    }
}

/// A client outside the mesh: each request on a connection of its own to one of the endpoints that the slice lists as ready.
struct Plain {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Plain {
    fn start(pod: Pod, listed: Arc<Mutex<Vec<SocketAddr>>>) -> Self {
        let (stop, sent, failed) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (stopped, all, lost) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&failed));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let known = listed.lock().clone();
                let to = known[fastrand::usize(..known.len())];
                let got = try_send(&pod, to, request(Method::GET, "web", "/bytes/64", &[]));
                all.fetch_add(1, Ordering::Relaxed);
                lost.fetch_add(u64::from(!got.is_ok_and(|got| got.status == 200)), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, sent, failed, thread }
    }

    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        (self.sent.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

fn costs_no_request() {
    let updates = std::env::var("WEFT_ROLLOUTS").map_or(2, |text| text.parse().expect("WEFT_ROLLOUTS is a number"));
    let mut rollout = Rollout::set();
    let mut outside = (0, 0);
    for update in 0..updates {
        // Not the first: then nobody outside has called yet, as in most meshes.
        let plain = update % PLAIN_EVERY == 1;
        let client = rollout.mesh.pod("outside-0").clone();
        let caller = plain.then(|| Plain::start(client, Arc::clone(&rollout.listed)));
        for _ in 0..REPLICAS {
            rollout.surge();
            let apart = APART.mul_f64(fastrand::f64());
            let (kubelet, slice) = if fastrand::bool() { (apart, Duration::ZERO) } else { (Duration::ZERO, apart) };
            rollout.retire(kubelet, slice, plain);
        }
        if let Some((sent, failed)) = caller.map(Plain::end) {
            outside = (outside.0 + sent, outside.1 + failed);
        }
    }
    rollout.load.end();
    rollout.good("all");
    let drains = &mut rollout.drains;
    drains.sort_unstable();
    let p99 = drains.len().checked_sub(1).map(|last| drains[last * 99 / 100]);
    eprintln!(
        "rollout: {updates} updates of {REPLICAS} pods: {}; the hook took {:.0?} at the 99th percentile of {}; outside the mesh {} of {} failed",
        rollout.load.tally,
        p99.unwrap_or_default(),
        drains.len(),
        outside.1,
        outside.0,
    );
    let sent = rollout.load.tally.answered();
    assert!(sent > 0 && outside.0 > 0, "{sent} {outside:?}");
}
