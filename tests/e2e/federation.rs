//! Two meshes whose controls learn each other's roots from their SPIFFE bundle endpoints: calls in both directions, which go on while one of them
//! exchanges its root. And one mesh in which some sidecars have their certificates from somebody else, under another root.
#![allow(clippy::print_stderr, reason = "the figures are what this test is for")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use weft::lab::{MARK, NODE, Pod, Process, http_get, until};
use weft_certs::ca::Ca;
use weft_certs::ca::rotation::Kind;
use weft_certs::token::{self, Uses};
use weft_engine::identity::Identity;
use weft_tests::mesh::SOON;
use weft_tests::{Mesh, Service, Trial, test_that_waits, test_that_waits_with};

use crate::STRICT;
use crate::opaque::{App, ByHand, MYSQL, issue, mysql_greeting, sidecar};

pub fn tests() -> Vec<Trial> {
    vec![
        test_that_waits("federation_of_two_meshes_through_a_root_rotation", two_meshes),
        test_that_waits_with("federation_with_an_agent_under_another_root", &["curl"], an_agent_under_another_root),
    ]
}

const PARTNER: &str = "partner.example";
/// Ports of the other control: discovery, metrics. The bundle endpoints: ours, theirs.
const OTHERS: (u16, u16) = (25012, 25014);
const BUNDLES: (u16, u16) = (15443, 25443);
/// As fast as they may: an endpoint is read every ten seconds at most.
const PUBLISHING: [&str; 2] = ["--bundle-refresh=10s", "--leaf-ttl=6s"];

/// Between two calls: each is a handshake, and a phase lasts for seconds.
const PAUSE: Duration = Duration::from_millis(20);

/// The entry for a mesh, with the roots that it had when this was written to begin with.
fn list(domain: &str, port: u16, ca_dir: &Path, file: &Path) {
    let seed = file.with_extension("pem");
    std::fs::copy(ca_dir.join("root.pem"), &seed).unwrap();
    let entry = json!([{
        "domain": domain, "url": format!("https://{NODE}:{port}/"), "profile": "https_spiffe", "bundle": seed,
        "endpoint_id": format!("spiffe://{domain}/ns/weft-system/sa/weft-control"),
    }]);
    std::fs::write(file, entry.to_string()).unwrap();
}

/// Another control on the same node, with a CA of its own.
struct Other {
    domain: &'static str,
    files: PathBuf,
    ca_dir: PathBuf,
    _process: Process,
}

impl Other {
    fn start(mesh: &Mesh, domain: &'static str, flags: &[String]) -> Self {
        let dir = mesh.lab.dir().join("other");
        let (files, ca_dir) = (dir.join("files"), dir.join("ca"));
        std::fs::create_dir_all(&files).unwrap();
        let mut args = vec!["control".to_owned(), format!("--trust-domain={domain}")];
        args.push(format!("--files={}", files.display()));
        args.push(format!("--ca-dir={}", ca_dir.display()));
        args.push(format!("--listen={NODE}:{}", OTHERS.0));
        args.push(format!("--metrics={NODE}:{}", OTHERS.1));
        args.extend_from_slice(flags);
        let process = mesh.weft("other", &args);
        mesh.until("the other control to be ready", || {
            match http_get(mesh.lab.node(), (NODE, OTHERS.1).into(), "/healthz/ready") {
                Ok(answer) if answer.status == 200 => Ok(()),
                _ => Err(process.log()),
            }
        });
        Self { domain, files, ca_dir, _process: process }
    }

    /// The one pod of a service, whose sidecar belongs to that control and has this account's identity.
    fn deploy(&self, mesh: &mut Mesh, service: &Service, account: &str, flags: &[String]) -> (Pod, Process) {
        let pod = mesh.lab.pod("shop", &service.pod_name(0)).unwrap();
        let manifest = service.manifest(&[mesh.free_cluster_ip().into()], &[vec![pod.ip().into()]]);
        let [own, wanted] = [&*service.name, account].map(|name| format!("serviceAccountName: {name}"));
        std::fs::write(self.files.join("service.yaml"), manifest.replace(&own, &wanted)).unwrap();
        let identity = Identity::new(self.domain, "shop", account).unwrap();
        let token = token::sign_for(&self.ca_dir, &identity, Uses::Many, Duration::from_mins(10), SystemTime::now());
        let token_file = pod.dir().unwrap().join("token");
        std::fs::write(&token_file, token.unwrap()).unwrap();
        let mut args = vec![
            "proxy".to_owned(),
            format!("--exclude-mark={MARK:#x}"),
            format!("--workload={}", pod.workload()),
            format!("--identity={identity}"),
            format!("--control={NODE}:{}", OTHERS.0),
            format!("--control-ca={}", self.ca_dir.join("root.pem").display()),
            format!("--token-file={}", token_file.display()),
            format!("--state-dir={}", pod.dir().unwrap().join("state").display()),
            format!("--dns={NODE}:53"),
        ];
        args.extend_from_slice(flags);
        let sidecar = pod.start("sidecar", pod.command(weft_tests::program(), args)).unwrap();
        mesh.until("the other control's sidecar to be ready", || {
            match http_get(pod.net(), ([127, 0, 0, 1], 15021).into(), "/healthz/ready") {
                Ok(answer) if answer.status == 200 => Ok(()),
                _ => Err(sidecar.log()),
            }
        });
        (pod, sidecar)
    }
}

/// Somebody of the first mesh calls the pod of the second, as the CAs are now.
fn call(mesh: &Mesh, from: &Path, to: &Path, pod: &Pod) -> Result<(), String> {
    let (from, to) = (Ca::load(from).unwrap(), Ca::load(to).unwrap());
    let by_hand = ByHand::new(sidecar(Some(&issue(&from, "caller")), &to), Duration::ZERO);
    greeted(mesh, &by_hand, pod)
}

fn greeted(mesh: &Mesh, by_hand: &ByHand, pod: &Pod) -> Result<(), String> {
    let greeting = mysql_greeting();
    match by_hand.call(mesh.lab.node(), (pod.ip(), MYSQL.port).into(), greeting.len()).words {
        Ok(words) if words == greeting => Ok(()),
        Ok(words) => Err(words.escape_ascii().to_string()),
        Err((words, error)) => Err(format!("{} and {error}", words.escape_ascii())),
    }
}

fn two_meshes() {
    let mut mesh = Mesh::without_control();
    let (ours, theirs) = (mesh.lab.dir().join("ours.json"), mesh.lab.dir().join("theirs.json"));
    // Nobody is known yet.
    for list in [&ours, &theirs] {
        std::fs::write(list, "[]").unwrap();
    }
    mesh.control_flags = PUBLISHING.map(str::to_owned).to_vec();
    mesh.control_flags.push(format!("--bundle-endpoint={NODE}:{}", BUNDLES.0));
    mesh.control_flags.push(format!("--federation={}", theirs.display()));
    mesh.start_control();
    mesh.write("namespace.yaml", STRICT);
    mesh.deploy(Service::own(MYSQL.name).ports(MYSQL.port, MYSQL.port));
    let pod = mesh.pod("mysql-0").clone();
    let _app = App::start(&pod, MYSQL.port, MYSQL.serve);
    let ca_dir = mesh.control.as_ref().unwrap().ca_dir().to_owned();
    let mut flags = PUBLISHING.map(str::to_owned).to_vec();
    flags.push(format!("--bundle-endpoint={NODE}:{}", BUNDLES.1));
    flags.push(format!("--federation={}", ours.display()));
    let partner = Other::start(&mesh, PARTNER, &flags);
    std::fs::write(partner.files.join("namespace.yaml"), STRICT).unwrap();
    let theirs_too = Service::own("theirs").ports(MYSQL.port, MYSQL.port);
    let (their_pod, _sidecar) = partner.deploy(&mut mesh, &theirs_too, "theirs", &[]);
    let _their_app = App::start(&their_pod, MYSQL.port, MYSQL.serve);
    let to_us = || call(&mesh, &partner.ca_dir, &ca_dir, &pod);
    let to_them = || call(&mesh, &ca_dir, &partner.ca_dir, &their_pod);
    call(&mesh, &partner.ca_dir, &partner.ca_dir, &their_pod).unwrap();
    assert!(to_us().is_err() && to_them().is_err(), "somebody is believed whom nobody has listed");

    list(PARTNER, BUNDLES.1, &partner.ca_dir, &theirs);
    list("cluster.local", BUNDLES.0, &ca_dir, &ours);
    mesh.until("theirs to be believed by us", to_us);
    mesh.until("ours to be believed by them", to_them);

    let before = Ca::load(&partner.ca_dir).unwrap();
    let of_before = ByHand::new(sidecar(Some(&issue(&before, "caller")), &Ca::load(&ca_dir).unwrap()), Duration::ZERO);
    before.begin(Kind::Root, SystemTime::now()).unwrap();
    let (begun, mut calls) = (Instant::now(), 0);
    while Ca::load(&partner.ca_dir).unwrap().authorities().rotation().is_some() {
        for (direction, called) in [("to us", to_us()), ("to them", to_them())] {
            calls += 1;
            called.unwrap_or_else(|error| panic!("{direction}, {:?} into the rotation: {error}", begun.elapsed()));
        }
        std::thread::sleep(PAUSE);
        assert!(begun.elapsed() < 8 * SOON, "the rotation does not end");
    }
    eprintln!(
        "federation: {calls} calls in both directions during {:?} of a root rotation, none failed",
        begun.elapsed()
    );
    assert_ne!(Ca::load(&partner.ca_dir).unwrap().root_pem(), before.root_pem());
    to_us().unwrap();
    to_them().unwrap();
    // What was withdrawn there is withdrawn here, as soon as it was read.
    let withdrawn =
        until("the root of before to be believed no more", 2 * SOON, || match greeted(&mesh, &of_before, &pod) {
            Ok(()) => Err("it is believed".to_owned()),
            Err(_) => Ok(()),
        });
    withdrawn.unwrap();
    to_us().unwrap();
}

/// A sidecar takes its certificate from an agent (another control's sidecar, in the place of SPIRE's) whose root control was told of, and has
/// traffic with one of ours in both directions.
fn an_agent_under_another_root() {
    let mut mesh = Mesh::without_control();
    let (roots, socket) = (mesh.lab.dir().join("svid-roots.pem"), mesh.lab.dir().join("api.sock"));
    let other = Other::start(&mesh, "cluster.local", &["--leaf-ttl=10s".to_owned()]);
    std::fs::copy(other.ca_dir.join("root.pem"), &roots).unwrap();
    // It has the service account of whom it serves, which is how a sidecar can be an agent.
    let (agent, serves) = (Service::own("agent"), [format!("--workload-api={}", socket.display())]);
    let (_agent, _sidecar) = other.deploy(&mut mesh, &agent, "shopfront", &serves);
    let stranger = Ca::open(&mesh.lab.dir().join("stranger"), "cluster.local").unwrap();
    let strangers = mesh.lab.dir().join("stranger.pem");
    std::fs::write(&strangers, stranger.root_pem()).unwrap();

    mesh.control_flags = vec![format!("--svid-roots={}", roots.display())];
    mesh.start_control();
    mesh.write("namespace.yaml", STRICT);
    mesh.deploy(Service::http("api"));
    mesh.deploy(Service::http("shopfront").sidecar_arg(&format!("--svid-from=unix:{}", socket.display())));

    let both = || -> Result<(), String> {
        for (from, to) in [("api-0", "shopfront"), ("shopfront-0", "api")] {
            let got = mesh.curl(from, &[&format!("http://{to}.shop/hello")]);
            if got.status != 200 {
                return Err(format!("{from} to {to}: {got:?}"));
            }
        }
        Ok(())
    };
    mesh.until("traffic in both directions", both);
    let log = mesh.sidecar("shopfront-0").process.log();
    assert!(log.contains("certificate of the Workload API taken into use"), "{log}");
    // By mutual TLS, as the strict port demands, and on through renewals.
    for pod in ["api-0", "shopfront-0"] {
        let mtls = ["direction=\"inbound\"", "tls=\"mtls\""];
        mesh.counts(pod, "weft_requests_total", &mtls, |count| count > 0.5);
    }
    let renewed = until("two renewals", 4 * SOON, || {
        both().unwrap();
        match mesh.metric("shopfront-0", "weft_certificate_renewals_total", &["result=\"issued\""]) {
            issued if issued > 2.5 => Ok(()),
            issued => Err(format!("{issued}")),
        }
    });
    renewed.unwrap();
    // For a moment it is not, each time that the certificate is exchanged.
    mesh.counts("shopfront-0", "weft_control_connected", &[], |connected| connected > 0.5);

    // Withdrawn: control and sidecars believe it no more.
    std::fs::copy(&strangers, &roots).unwrap();
    let refused =
        until("its requests to be refused", 2 * SOON, || match mesh.curl("shopfront-0", &["http://api.shop/"]) {
            got if got.status >= 500 => Ok(()),
            got => Err(format!("{got:?}")),
        });
    refused.unwrap();
    let untrusted = ["direction=\"inbound\"", "reason=\"untrusted\""];
    mesh.counts("api-0", "weft_tls_handshake_failures_total", &untrusted, |count| count > 0.5);
}
