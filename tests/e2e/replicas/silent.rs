//! One of the controls stands still: its connections stay as they are, the kernel even takes new ones, and nobody answers. Its proxies go to the
//! others, what is asked of the mesh meanwhile is decided in bounded time, no request notices; and when it goes on, it is one of them again.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use weft::lab::{Pod, Process, http_get, until};
use weft_tests::Service;
use weft_tests::client::{Got, get};
use weft_tests::load::{Load, Plan};

use super::{REPLICAS, Replicas, control_flag, lab_node, shows};

/// A proxy finds out by pings within 15 s; connecting to others, among which the silent one may be, takes up to 5 s more.
const FOUND_OUT: Duration = Duration::from_secs(20);
/// What nobody has called before: a control that has not answered for 4 s is left, and connecting to others is as above.
const FIRST_CALL: Duration = Duration::from_secs(12);
/// A drain waits for the proxies of the silent one until they are elsewhere, and is told so.
const DRAINED: Duration = Duration::from_secs(22);
/// A third of it is longer than whoever asks for the next one waits for a control that is silent.
const LEAF: Duration = Duration::from_secs(24);
/// Issuers turn for the life of a leaf and some seconds, from when everybody knows the new one.
const ROTATED: Duration = Duration::from_secs(75);
/// HTTP requests a second.
const RATE: u32 = 50;
const CALLERS: [&str; 4] = ["ann-0", "bob-0", "cay-0", "dan-0"];

pub fn stands_still() {
    let mut replicas = Replicas::with(&[&format!("--leaf-ttl={}s", LEAF.as_secs())]);
    let control = control_flag();
    let mesh = &mut replicas.mesh;
    mesh.deploy(Service::http("web").pods(3).sidecar_arg(&control));
    mesh.deploy(Service::tcp("echo").sidecar_arg(&control)).deploy(Service::http("new").sidecar_arg(&control));
    for client in ["ann", "bob", "cay", "dan"] {
        mesh.deploy(Service::own(client).sidecar_arg(&control));
    }
    let clients = vec![mesh.pod("ann-0").clone(), mesh.pod("bob-0").clone()];
    let plan = Plan { clients, http: mesh.address("web"), tcp: mesh.address("echo"), rate: RATE };
    let sessions = plan.sessions();
    let mut load = Load::start(plan);
    // What nobody has called before would be asked of the one that is silent.
    replicas.mesh.until("everybody to have called what is called", || {
        let [one, two] = load.tally.requests.each_ref().map(|count| count.load(Ordering::Relaxed));
        let good = load.tally.open.load(Ordering::Relaxed) == sessions && one.min(two) > u64::from(RATE);
        if good { Ok(()) } else { Err(load.tally.to_string()) }
    });
    replicas.all_connected();
    let all = replicas.mesh.members.len() as f64;
    let connected = replicas.connected();
    let most = connected.iter().copied().fold(0.0, f64::max);
    let still = (0..REPLICAS).find(|replica| connected[usize::from(*replica)] >= most).unwrap();
    let others: Vec<u16> = (0..REPLICAS).filter(|replica| *replica != still).collect();

    let before = report(&replicas, others[0])["issuing"].clone();

    replicas.signal(still, Signal::STOP);
    let begun = Instant::now();
    let hook = leaves(replicas.mesh.pod("web-2"));
    let mut rotate = rotate_issuer(&replicas, others[0]);
    let new = replicas.mesh.address("new");
    let answered = until("what nobody has called before to be answered", FIRST_CALL, || {
        let all: Vec<Got> = CALLERS.iter().map(|client| get(replicas.mesh.pod(client), new, "/")).collect();
        if all.iter().all(|got| got.outcome() == (200, "")) { Ok(begun.elapsed()) } else { Err(format!("{all:?}")) }
    });
    let answered = answered.unwrap();
    let found_out = until("its proxies to be connected to others", FOUND_OUT, || {
        let on = |other: &u16| replicas.metric(*other, "weft_control_connected_proxies", &[]);
        let connected: f64 = others.iter().map(on).sum();
        if (connected - all).abs() < 0.5 { Ok(begun.elapsed()) } else { Err(format!("{connected} of {all}")) }
    });
    let found_out = found_out.unwrap();
    let drained = hook.join().unwrap();
    assert!(drained.status == 200 && drained.took < DRAINED, "{drained:?}");
    replicas.mesh.member_mut("web-2").app = None;
    let ended = rotate.wait(FOUND_OUT).unwrap();
    assert!(ended.success(), "{ended}{}", rotate.log_tail());
    let rotated =
        until("the rotation to end", ROTATED.saturating_sub(begun.elapsed()), || match report(&replicas, others[1]) {
            now if now["rotation"].is_null() && now["issuing"] != before => Ok(begun.elapsed()),
            now => Err(format!("{now:#}")),
        });
    let rotated = rotated.unwrap();
    let tally = Arc::clone(&load.tally);
    let good = |when: &str| assert!(tally.failures().is_empty(), "{when}: {:#?}", tally.failures());
    good("while a control stood still");

    replicas.signal(still, Signal::CONT);
    replicas.all_heard();
    replicas.all_connected();
    replicas.nothing_differs();
    let now: Vec<_> = (0..REPLICAS).map(|replica| report(&replicas, replica)["issuing"].clone()).collect();
    assert!(now.iter().all(|issuing| *issuing == now[0] && *issuing != before), "{now:?}");
    good("after it went on");
    load.end();
    good("at the end");
    eprintln!(
        "replicas: one of {REPLICAS} stood still with {most} of {all} proxies, which were with the others after {found_out:.1?}; what was called for \
         the first time was answered after {answered:.1?}; a pod's leaving was \
         known after {:.1?} ({}), an issuer rotated after {rotated:.1?}; {}",
        drained.took,
        drained.body.trim(),
        tally
    );
}

/// The hook of a pod that is about to end.
fn leaves(pod: &Pod) -> JoinHandle<Got> {
    let pod = pod.clone();
    std::thread::spawn(move || get(&pod, SocketAddr::from((Ipv4Addr::LOCALHOST, 15021)), "/drain-wait"))
}

fn rotate_issuer(replicas: &Replicas, asked: u16) -> Process {
    let ca_dir = format!("--ca-dir={}", replicas.mesh.lab.dir().join("ca").display());
    let control = format!("--control={}", shows(asked));
    let command = ["certs", "rotate-issuer", &ca_dir, &control, "--json", "--no-wait"].map(str::to_owned);
    replicas.mesh.weft("rotate-issuer", &command)
}

/// What a control says of certificates.
fn report(replicas: &Replicas, asked: u16) -> Value {
    let answer = http_get(lab_node(&replicas.mesh), shows(asked), "/debug/certificates").unwrap();
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error} in {answer:?}"))
}
