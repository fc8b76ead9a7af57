//! How a pod leaves: `/drain-wait` returns once nobody chooses the pod any more, and no request notices.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::Method;
use rustix::process::Signal;
use weft::lab::{Answer, Pod, http_get};
use weft_tests::client::{Session, get, request, run};
use weft_tests::load::{self, Plan};
use weft_tests::{Mesh, Service, Trial, test, test_that_waits};

pub fn tests() -> Vec<Trial> {
    vec![
        test("drain_a_pod_that_leaves_under_load_costs_no_request", a_pod_that_leaves_under_load),
        test("drain_wait_waits_for_every_proxy", waits_for_every_proxy),
        test("drain_wait_is_not_for_strangers", not_for_strangers),
        test_that_waits("drain_wait_is_bounded_without_control", bounded_without_control),
        test_that_waits("drain_a_pod_that_leaves_while_control_is_away_costs_no_request", leaves_while_control_is_away),
    ]
}

/// What a preStop hook does.
fn drain_wait(pod: &Pod) -> Answer {
    let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 15021));
    http_get(pod.net(), health, "/drain-wait").unwrap_or_else(|error| panic!("/drain-wait of {}: {error}", pod.name()))
}

/// Requests, one after the other on each of a few connections, until it is stopped; one that fails is a panic.
struct Load {
    sent: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(pod: Pod, to: SocketAddr, path: &'static str) -> Self {
        let sent: Arc<Vec<AtomicU64>> = Arc::new((0..4).map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let (counts, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            run(async {
                let workers = counts.iter().map(async |count| {
                    let mut session = Session::open(&pod, to).await.unwrap();
                    while !stopped.load(Ordering::Acquire) {
                        let got = session.send(request(Method::GET, "web", path, &[])).await.unwrap();
                        assert_eq!(got.outcome(), (200, ""), "{got:?}");
                        count.fetch_add(1, Ordering::Release);
                    }
                });
                futures_util::future::join_all(workers).await;
            });
        });
        Self { sent, stop, thread }
    }

    /// Waits until each connection has carried so many more.
    fn more(&self, mesh: &Mesh, requests: u64) {
        let load = || self.sent.iter().map(|count| count.load(Ordering::Acquire));
        let goals: Vec<u64> = load().map(|count| count + requests).collect();
        mesh.until(&format!("{requests} more requests"), || {
            assert!(!self.thread.is_finished(), "a request has failed");
            if load().zip(&goals).all(|(count, goal)| count >= *goal) { Ok(()) } else { Err(format!("{goals:?}")) }
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("no request fails");
    }
}

fn a_pod_that_leaves_under_load() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(3)).client("client");
    let load = Load::start(mesh.pod("client-0").clone(), mesh.address("web"), "/delay/2");
    let served = |pod: &str| mesh.metric(pod, "weft_requests_total", &["direction=\"inbound\""]);
    mesh.until("every pod to have its share", || {
        let shares = ["web-0", "web-1", "web-2"].map(served);
        if shares.iter().all(|share| *share > 20.0) { Ok(()) } else { Err(format!("{shares:?}")) }
    });
    let answer = drain_wait(mesh.pod("web-1"));
    assert_eq!(answer.status, 200, "{answer:?}");
    // What was on its way when the client's proxy acknowledged may still be counted.
    load.more(&mesh, 2);
    let before = ["web-0", "web-1", "web-2"].map(served);
    load.more(&mesh, 100);
    let after = ["web-0", "web-1", "web-2"].map(served);
    assert!((after[1] - before[1]).abs() < f64::EPSILON, "it was chosen still: {before:?}, then {after:?}");
    assert!(after[0] > before[0] && after[2] > before[2], "{before:?}, then {after:?}");
    // Now the kubelet would stop the application; nobody notices.
    mesh.members.get_mut("web-1").unwrap().app = None;
    load.more(&mesh, 100);
    let flying = || mesh.metric("client-0", "weft_requests_in_flight", &["direction=\"outbound\""]);
    mesh.until("requests to be in flight", || if flying() > 0.5 { Ok(()) } else { Err("none".to_owned()) });
    load.end();
    mesh.until("none to be", || if flying() < 0.5 { Ok(()) } else { Err("there are some".to_owned()) });
}

fn waits_for_every_proxy() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(2).sidecar_arg("--drain-deadline=3")).client("client");
    let (pod, to) = (mesh.pod("client-0").clone(), mesh.address("web"));
    assert_eq!(get(&pod, to, "/").outcome(), (200, ""));
    let client = |mesh: &mut Mesh, signal| {
        mesh.member_mut("client-0").sidecar.as_mut().unwrap().process.signal(signal);
    };
    client(&mut mesh, Signal::STOP);
    let answer = drain_wait(mesh.pod("web-1"));
    client(&mut mesh, Signal::CONT);
    assert_eq!(answer.status, 503, "it returned before the client's proxy had heard: {answer:?}");
    assert!(answer.body.contains("shop/client-0"), "who lags is not named: {answer:?}");
    // It hears now; whoever asks again is told so.
    let answer = drain_wait(mesh.pod("web-1"));
    assert_eq!(answer.status, 200, "{answer:?}");
    for _ in 0..50 {
        assert_eq!(get(&pod, to, "/").by(), "web-0");
    }
}

fn not_for_strangers() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").sidecar_arg("--hook-key=k1"));
    mesh.deploy(Service::own("outside").unmeshed());
    let leaving = || mesh.control_metric("weft_control_draining_workloads", &[]);
    let web = mesh.pod("web-0");
    let answer = http_get(mesh.pod("outside-0").net(), (web.ip(), 15021).into(), "/drain-wait").unwrap();
    assert_eq!((answer.status, leaving()), (403, 0.0), "{answer:?}");
    // The pod itself may.
    assert_eq!((drain_wait(web).status, leaving()), (200, 1.0));
}

fn bounded_without_control() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").sidecar_arg("--drain-deadline=3")).client("client");
    mesh.deploy(Service::own("outside").unmeshed());
    let to = mesh.address("web");
    assert_eq!(get(mesh.pod("client-0"), to, "/").outcome(), (200, ""));
    for (signal, why) in [(Signal::STOP, "control did not answer in time"), (Signal::KILL, "control could not be told")]
    {
        mesh.control.as_mut().unwrap().process.signal(signal);
        let start = Instant::now();
        let answer = drain_wait(mesh.pod("web-0"));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.body.contains(why), "{answer:?}");
        // A caller whose sidecar could have gone elsewhere is told so; one that has none is served.
        assert_eq!(get(mesh.pod("client-0"), to, "/").outcome(), (503, "not_processed"));
        let web = SocketAddr::from((mesh.pod("web-0").ip(), 8080));
        assert_eq!(get(mesh.pod("outside-0"), web, "/").outcome(), (200, ""));
        // The pod was not deleted: it serves again.
        mesh.until("it to serve again", || match get(mesh.pod("client-0"), to, "/").outcome() {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

/// Nobody can be told that the pod leaves: its sidecar turns their requests away before its application is stopped. Each of its connections has a
/// request in hand nearly all the time.
fn leaves_while_control_is_away() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(3).sidecar_arg("--drain-deadline=4")).deploy(Service::tcp("echo"));
    mesh.client("client");
    let (pod, web) = (mesh.pod("client-0").clone(), mesh.address("web"));
    let slow = Load::start(pod.clone(), web, "/delay/50");
    // HTTP/2 too, and at a pace.
    let mut paced = load::Load::start(Plan { clients: vec![pod], http: web, tcp: mesh.address("echo"), rate: 100 });
    let served = |mesh: &Mesh| mesh.metric("web-1", "weft_requests_total", &["direction=\"inbound\""]);
    mesh.until(
        "the pod to have its share",
        || {
            if served(&mesh) > 50.0 { Ok(()) } else { Err(served(&mesh).to_string()) }
        },
    );
    mesh.control.as_mut().unwrap().process.kill();
    let answer = drain_wait(mesh.pod("web-1"));
    assert!(answer.status == 503 && answer.body.contains("control could not be told"), "{answer:?}");
    mesh.member_mut("web-1").app = None;
    slow.more(&mesh, 20);
    slow.end();
    paced.end();
    assert!(paced.tally.failures().is_empty(), "{:#?}; {}", paced.tally.failures(), paced.tally);
}
