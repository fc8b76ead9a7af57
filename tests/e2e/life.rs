//! Parts that come, go and are renewed while traffic flows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use weft::lab::sum;
use weft_tests::client::{Session, get, request, run};
use weft_tests::mesh::SOON;
use weft_tests::sniff::contains;
use weft_tests::{Mesh, Service, Trial, test, test_alone, test_that_waits};

use crate::grpc;

pub fn tests() -> Vec<Trial> {
    vec![
        test("life_proxies_serve_on_without_control", proxies_serve_on_without_control),
        test("life_a_restarted_proxy_starts_from_its_last_good_state", a_restarted_proxy_starts_from_state),
        test("life_a_restarted_control_resends_nothing", a_restarted_control_resends_nothing),
        test_alone("life_sigterm_loses_nothing_in_flight", sigterm_loses_nothing_in_flight),
        test_that_waits("life_leaves_of_ten_seconds_cost_no_request", leaves_of_ten_seconds),
    ]
}

fn proxies_serve_on_without_control() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(2)).client("client");
    let (pod, to) = (mesh.pod("client-0").clone(), mesh.address("web"));
    assert_eq!(get(&pod, to, "/").outcome(), (200, ""));
    mesh.control.as_mut().unwrap().process.kill();
    for _ in 0..100 {
        assert_eq!(get(&pod, to, "/").outcome(), (200, ""));
    }
}

fn a_restarted_proxy_starts_from_state() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    let to = mesh.address("web");
    assert_eq!(get(mesh.pod("client-0"), to, "/").outcome(), (200, ""));
    for (pod, what) in [("client-0", to.to_string()), ("web-0", "workload/shop/web-0".to_owned())] {
        let tables = mesh.pod(pod).dir().unwrap().join("state").join("tables");
        mesh.until("the tables to be saved", || {
            let saved = std::fs::read(&tables).map_err(|error| format!("{}: {error}", tables.display()))?;
            if contains(&saved, &what) { Ok(()) } else { Err(format!("no {what} in {} bytes", saved.len())) }
        });
    }
    mesh.control.as_mut().unwrap().process.kill();
    for name in ["client-0", "web-0"] {
        let Mesh { members, lab, .. } = &mut mesh;
        let member = members.get_mut(name).unwrap();
        // Without warning; what it knows must be on disk already.
        member.sidecar = None;
        member.start_sidecar(lab);
        member.sidecar.as_mut().unwrap().wait_ready().unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(get(mesh.pod("client-0"), to, "/").outcome(), (200, ""));
}

/// Resources that a proxy has received since it started.
const RECEIVED: &str = "weft_discovery_resources_received_total";

/// A route on `web` that adds a header field to answers.
fn versioned(version: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: shop}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web}}]
  rules:
  - filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-version, value: {version}}}]}}}}]
    backendRefs: [{{name: web, port: 80}}]
"
    )
}

fn a_restarted_control_resends_nothing() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(3)).deploy(Service::http("cart")).client("client");
    mesh.write("route.yaml", &versioned("one"));
    let until_version = |mesh: &Mesh, version: &str| {
        mesh.until(&format!("version {version} of the route"), || {
            match get(mesh.pod("client-0"), mesh.address("web"), "/") {
                got if got.header("x-version") == version => Ok(()),
                got => Err(format!("{got:?}")),
            }
        });
    };
    until_version(&mesh, "one");
    assert_eq!(get(mesh.pod("client-0"), mesh.address("cart"), "/").outcome(), (200, ""));
    // All changes of a resource that a proxy can tell apart, summed: new, changed, unchanged, removed, refused.
    let received = |mesh: &Mesh, labels: &[&str]| mesh.metric("client-0", RECEIVED, labels);
    let before = received(&mesh, &[]);
    assert!(before > 0.0);
    mesh.control.as_mut().unwrap().process.kill();
    // One object is edited meanwhile.
    mesh.write("route.yaml", &versioned("two"));
    mesh.start_control();
    until_version(&mesh, "two");
    let changed = received(&mesh, &["type=\"Route\"", "change=\"changed\""]);
    assert!((changed - 1.0).abs() < f64::EPSILON, "{changed} routes have changed");
    // Whatever a new stream says, it says before it tells what comes later.
    let connected = |mesh: &Mesh| {
        let text = mesh.control.as_ref().unwrap().get(&mesh.lab, "/metrics").map_err(|error| error.to_string())?.body;
        match sum(&text, "weft_control_connected_proxies", &[]) {
            count if count > 4.5 => Ok(()),
            count => Err(format!("{count} of 5 proxies are connected")),
        }
    };
    mesh.until("all proxies to be connected again", || connected(&mesh));
    mesh.write("route.yaml", &versioned("three"));
    until_version(&mesh, "three");
    let news = received(&mesh, &[]) - before;
    assert!((news - 2.0).abs() < f64::EPSILON, "{news} resources arrived, two routes were edited");
}

fn sigterm_loses_nothing_in_flight() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).deploy(Service::grpc("say")).client("client");
    let (pod, web, say) = (mesh.pod("client-0").clone(), mesh.address("web"), mesh.address("say"));
    assert_eq!(get(&pod, web, "/").outcome(), (200, ""));
    let load = std::thread::spawn(move || {
        run(async move {
            // Connected first, so that all are in flight at one time however slow the machine is.
            let mut sessions = Vec::new();
            for _ in 0..100 {
                sessions.push(Session::open(&pod, web).await.unwrap());
            }
            let mut sender = grpc::open(&pod, say).await.unwrap();
            let requests = sessions.iter_mut().map(|one| one.send(request(Method::GET, "web", "/delay/2000", &[])));
            let repeat = grpc::repeat(40, 100);
            let stream = grpc::call(&mut sender, "Repeat", &repeat, None);
            futures_util::future::join(futures_util::future::join_all(requests), stream).await
        })
    });
    mesh.until("100 requests and a stream to be in flight", || {
        let flying = ["web-0", "say-0"].map(|name| mesh.metric(name, "weft_work_in_flight", &[]));
        if flying[0] > 99.5 && flying[1] > 0.5 { Ok(()) } else { Err(format!("{flying:?}")) }
    });
    for name in ["web-0", "say-0"] {
        mesh.member_mut(name).sidecar.as_mut().unwrap().process.terminate();
    }
    mesh.until("readiness to go off", || {
        if mesh.sidecar("web-0").is_ready() { Err("still ready".to_owned()) } else { Ok(()) }
    });
    // From now on nothing is accepted.
    let late = mesh.pod("client-0").clone();
    let direct = std::net::SocketAddr::from((mesh.pod("web-0").ip(), 8080));
    let refused = weft_tests::client::try_send(&late, direct, request(Method::GET, "web", "/late", &[]));
    assert!(!refused.as_ref().is_ok_and(|got| got.status == 200), "accepted after readiness went off: {refused:?}");
    let (answers, stream) = load.join().unwrap();
    for answer in answers {
        assert_eq!(answer.as_ref().map(weft_tests::client::Got::outcome), Ok((200, "")), "{answer:?}");
    }
    let (messages, status) = stream.unwrap();
    assert_eq!((status.as_str(), messages.matches("say-0").count()), ("\"0\"", 40));
    let ended = mesh.member_mut("web-0").sidecar.as_mut().unwrap().process.wait(SOON).unwrap();
    assert!(ended.success(), "{ended}");
}

fn leaves_of_ten_seconds() {
    let mut mesh = Mesh::with_control(&["--leaf-ttl=10s"]);
    mesh.deploy(Service::http("web")).client("client");
    let stop = Arc::new(AtomicBool::new(false));
    let (pod, to, stopped) = (mesh.pod("client-0").clone(), mesh.address("web"), stop.clone());
    let load = std::thread::spawn(move || {
        run(async {
            let mut sent = 0;
            while !stopped.load(Ordering::Acquire) {
                // A connection for ten requests, so that handshakes meet every certificate.
                let mut session = Session::open(&pod, to).await.unwrap();
                for _ in 0..10 {
                    let got = session.send(request(Method::GET, "web", "/delay/5", &[])).await.unwrap();
                    assert_eq!(got.outcome(), (200, ""), "after {sent} requests: {got:?}");
                    sent += 1;
                }
            }
            sent
        })
    });
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    let mut keys = [BTreeSet::new(), BTreeSet::new()];
    let start = Instant::now();
    while start.elapsed() < Duration::from_mins(1) && !load.is_finished() {
        for (index, name) in ["client-0", "web-0"].iter().enumerate() {
            let state = mesh.pod(name).dir().unwrap().join("state");
            if let Ok(Some(svid)) = weft_certs::svid::Svid::load(&state) {
                seen[index].insert(svid.serial().to_owned());
                keys[index].insert(svid.key_id());
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, Ordering::Release);
    let sent = load.join().unwrap();
    assert!(sent > 1000, "{sent} requests in a minute");
    for (serials, keys) in seen.iter().zip(&keys) {
        assert!(serials.len() >= 8, "{} serials in a minute", serials.len());
        assert_eq!(keys.len(), serials.len(), "a key was used twice");
    }
}
