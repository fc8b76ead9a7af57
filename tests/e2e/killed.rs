//! Control is killed at random moments, starting up included, while what it reads is edited all the time and a mesh serves: no request fails,
//! and in the end every sidecar has exactly the tables that the files compile to from nothing. The figures are printed.
//!
//! `WEFT_KILLS=50 cargo test -p weft-tests --test e2e -- killed` kills it so often.
#![allow(clippy::print_stderr, reason = "the figures are what this test is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weft_control::compile::Compiled;
use weft_control::distribute::describe::{Difference, Held};
use weft_tests::load::{Load, Plan};
use weft_tests::mesh::{SOON, write_by_rename};
use weft_tests::{Mesh, Service, Trial, test};

pub fn tests() -> Vec<Trial> {
    vec![test("killed_control_costs_no_request", costs_no_request)]
}

const REPLICAS: usize = 3;
/// HTTP requests a second.
const RATE: u32 = 200;
/// Between two edits.
const EDIT: Duration = Duration::from_millis(40);
/// It lives so long at most, from the moment that it is ready or, each other time, that it is started, and it is gone for so long at most.
const LIFE: Duration = Duration::from_secs(1);
const AWAY: Duration = Duration::from_millis(500);

/// Edits the files until it is told to stop, each time another of them.
struct Churn {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

/// What is edited.
struct Edited {
    files: PathBuf,
    service: Service,
    pods: Vec<(String, IpAddr)>,
}

impl Churn {
    fn start(edited: Edited) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut edits = 0;
            while !stopped.load(Ordering::Relaxed) {
                edited.edit(edits);
                edits += 1;
                std::thread::sleep(EDIT);
            }
            edits
        });
        Self { stop, thread }
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Edited {
    fn edit(&self, number: usize) {
        let file = |name: &str| self.files.join(name);
        match number % 5 {
            // One endpoint or none is out, whose pod serves on what it has in hand.
            0 | 1 => {
                let out = fastrand::usize(..=REPLICAS);
                let pods = self.pods.iter().enumerate().filter(|(index, _)| *index != out);
                let pods: Vec<_> = pods.map(|(_, pod)| pod.clone()).collect();
                write_by_rename(&file("web-slice.yaml"), &self.service.slice_of("1", &pods));
            }
            2 => write_by_rename(&file("route.yaml"), &route("shop", fastrand::u32(..=9))),
            3 => write_by_rename(&file("policy.yaml"), &policy(number)),
            // Routes of the clients' own come and go.
            _ if fastrand::bool() => write_by_rename(&file("own.yaml"), &route("market", fastrand::u32(..=9))),
            _ => _ = std::fs::remove_file(file("own.yaml")),
        }
    }
}

/// Shares `web` with another service.
fn route(namespace: &str, weight: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, namespace: shop}}]
  rules:
  - backendRefs: [{{name: web, namespace: shop, port: 80, weight: 10}}, {{name: more, namespace: shop, port: 80, weight: {weight}}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {{name: from-{namespace}, namespace: shop}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {namespace}}}]
  to: [{{group: '', kind: Service}}]
"
    )
}

/// Always lets the clients in, and is always another one.
fn policy(number: usize) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: web, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  action: Allow
  rules: [{{from: [{{namespaces: [shop, market]}}]}}, {{from: [{{identities: [shop/nobody-{number}]}}]}}]
"
    )
}

fn set() -> (Mesh, Load, Churn) {
    let mut mesh = Mesh::with_control(&["--debug-remote"]);
    let service = Service::http("web").pods(REPLICAS);
    mesh.deploy(service.clone()).deploy(Service::http("more")).deploy(Service::tcp("echo")).client("ann");
    mesh.deploy(Service { namespace: "market".to_owned(), ..Service::own("bob") });
    mesh.slice_apart("web");
    let clients = vec![mesh.pod("ann-0").clone(), mesh.pod("bob-0").clone()];
    let plan = Plan { clients, http: mesh.address("web"), tcp: mesh.address("echo"), rate: RATE };
    let load = Load::start(plan);
    // A route's other service is known before control goes for the first time.
    mesh.write("route.yaml", &route("shop", 1));
    mesh.until("the load to run", || if load.tally.answered() > 50 { Ok(()) } else { Err(load.tally.to_string()) });
    let pod = |index| (service.pod_name(index), mesh.pod(&service.pod_name(index)).ip().into());
    let edited = Edited { files: mesh.files.clone(), pods: (0..REPLICAS).map(pod).collect(), service };
    let churn = Churn::start(edited);
    (mesh, load, churn)
}

fn costs_no_request() {
    let kills = std::env::var("WEFT_KILLS").map_or(6, |text| text.parse().expect("WEFT_KILLS is a number"));
    let (mut mesh, mut load, churn) = set();
    let mut at_start = 0;
    for kill in 0..kills {
        if kill % 2 == 1 {
            mesh.until("control to be ready", || is_ready(&mesh).then_some(()).ok_or_else(String::new));
        }
        std::thread::sleep(LIFE.mul_f64(fastrand::f64()));
        at_start += usize::from(!is_ready(&mesh));
        mesh.control.as_mut().unwrap().process.kill();
        std::thread::sleep(AWAY.mul_f64(fastrand::f64()));
        let flags: Vec<&str> = mesh.control_flags.iter().map(String::as_str).collect();
        mesh.control = Some(mesh.lab.control_unready(&mesh.files, &flags).unwrap_or_else(|error| panic!("{error}")));
        let failures = load.tally.failures();
        assert!(failures.is_empty(), "after kill {kill}: {failures:#?}; {}", load.tally);
    }
    let edits = churn.end();
    let quiet = Instant::now();
    let held = all_agree(&mesh);
    let agreed = quiet.elapsed();
    load.end();
    assert!(load.tally.failures().is_empty(), "{:#?}; {}", load.tally.failures(), load.tally);
    eprintln!(
        "killed: {kills} times, {at_start} of them before it was ready, while {edits} edits were made: {}; {held} resources of {} sidecars \
         are what they are from nothing, {agreed:.1?} after the last edit",
        load.tally,
        mesh.members.len(),
    );
}

fn is_ready(mesh: &Mesh) -> bool {
    let control = mesh.control.as_ref().unwrap();
    control.get(&mesh.lab, "/healthz/ready").is_ok_and(|answer| answer.status == 200)
}

/// Waits until every sidecar has what the files say, and nothing else; gives how many resources they have together.
fn all_agree(mesh: &Mesh) -> usize {
    let loaded = weft_control::sources::files::load(std::slice::from_ref(&mesh.files), "cluster.local");
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    let compiled = weft_control::compile::compile(&loaded.model);
    let mut count = 0;
    for member in mesh.members.values().filter(|member| member.sidecar.is_some()) {
        let workload = member.pod.workload();
        let agree = || agrees(mesh, &compiled, &workload);
        count +=
            weft::lab::until(&format!("the tables of {workload}"), SOON * 2, agree).unwrap_or_else(|e| panic!("{e}"));
    }
    count
}

/// Whether a sidecar has what it should, by what is compiled here from nothing and by what control itself says.
fn agrees(mesh: &Mesh, compiled: &Compiled, workload: &str) -> Result<usize, String> {
    let ask = |page: &str| {
        let answer = mesh.control.as_ref().unwrap().get(&mesh.lab, &format!("/debug/{page}?workload={workload}"));
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(answer.body) } else { Err(format!("{} {}", answer.status, answer.body)) }
    };
    let differ: Vec<Difference> = serde_json::from_str(&ask("diff")?).map_err(|error| error.to_string())?;
    if !differ.is_empty() {
        return Err(format!("control says: {differ:?}"));
    }
    let held: Vec<Held> = serde_json::from_str(&ask("tables")?).map_err(|error| error.to_string())?;
    // Whom to believe is not in the files, and the head of a set says nothing after the first time.
    let held = held.iter().filter(|held| !["Trust", "Revoked", "EndpointHead"].contains(&held.type_.as_str()));
    let held: BTreeMap<&str, _> =
        held.map(|held| (&*held.name, held.runs.as_ref().map(|runs| &*runs.version))).collect();
    let own = format!("workload/{workload}");
    let roots = held.keys().copied().filter(|name| weft_api::names::is_address(name));
    let client = workload.split('/').next().unwrap_or_default();
    let wanted = roots.chain(["mesh-extent", &own]).flat_map(|root| compiled.closure(root, client));
    let wanted: BTreeMap<_, _> = wanted.filter(|(name, _)| !is_beside(name, compiled)).collect();
    let wanted: BTreeMap<&str, _> = wanted.iter().map(|(name, made)| (&**name, Some(&*made.version))).collect();
    let names = held.keys().chain(wanted.keys()).collect::<BTreeSet<_>>();
    let wrong: Vec<_> = names.into_iter().filter(|name| held.get(*name) != wanted.get(*name)).collect();
    if wrong.is_empty() { Ok(held.len()) } else { Err(format!("other than from nothing: {wrong:?}")) }
}

fn is_beside(name: &str, compiled: &Compiled) -> bool {
    ["trust", "revoked"].contains(&name) || compiled.collection(name).is_some()
}
