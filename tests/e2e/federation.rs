//! Two meshes whose controls learn each other's roots from their SPIFFE bundle endpoints: calls in both directions, which go on while one of them
//! exchanges its root.
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
use weft_tests::{Mesh, Service, Trial, test};

use crate::STRICT;
use crate::opaque::{App, ByHand, MYSQL, issue, mysql_greeting, sidecar};

pub fn tests() -> Vec<Trial> {
    vec![test("federation_of_two_meshes_through_a_root_rotation", two_meshes)]
}

const PARTNER: &str = "partner.example";
/// Ports of the other control: discovery, metrics. The bundle endpoints: ours, theirs.
const OTHERS: (u16, u16) = (25012, 25014);
const BUNDLES: (u16, u16) = (15443, 25443);
/// As fast as they may: an endpoint is read every ten seconds at most.
const PUBLISHING: [&str; 2] = ["--bundle-refresh=10s", "--leaf-ttl=6s"];

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

/// The other mesh on the same node: its control, and a server with its sidecar.
struct Partner {
    ca_dir: PathBuf,
    pod: Pod,
    _app: App,
    _control: Process,
    _sidecar: Process,
}

impl Partner {
    fn start(mesh: &mut Mesh, federation: &Path) -> Self {
        let dir = mesh.lab.dir().join("partner");
        let (files, ca_dir) = (dir.join("files"), dir.join("ca"));
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("namespace.yaml"), STRICT).unwrap();
        let pod = mesh.lab.pod("shop", "theirs-0").unwrap();
        let service = Service::own("theirs").ports(MYSQL.port, MYSQL.port);
        let manifest = service.manifest(&[mesh.free_cluster_ip().into()], &[vec![pod.ip().into()]]);
        std::fs::write(files.join("theirs.yaml"), manifest).unwrap();
        let path = |path: &Path| path.display().to_string();
        let mut args: Vec<String> =
            ["control", "--files", &path(&files), "--ca-dir", &path(&ca_dir), "--trust-domain", PARTNER]
                .map(str::to_owned)
                .to_vec();
        args.extend(PUBLISHING.map(str::to_owned));
        args.push(format!("--listen={NODE}:{}", OTHERS.0));
        args.push(format!("--metrics={NODE}:{}", OTHERS.1));
        args.push(format!("--bundle-endpoint={NODE}:{}", BUNDLES.1));
        args.push(format!("--federation={}", federation.display()));
        let control = mesh.weft("partner", &args);
        mesh.until("the partner's control to be ready", || {
            match http_get(mesh.lab.node(), (NODE, OTHERS.1).into(), "/healthz/ready") {
                Ok(answer) if answer.status == 200 => Ok(()),
                _ => Err(control.log()),
            }
        });
        let sidecar = Self::sidecar(&pod, &ca_dir);
        mesh.until("the partner's sidecar to be ready", || {
            match http_get(pod.net(), ([127, 0, 0, 1], 15021).into(), "/healthz/ready") {
                Ok(answer) if answer.status == 200 => Ok(()),
                _ => Err(sidecar.log()),
            }
        });
        Self { ca_dir, _app: App::start(&pod, MYSQL.port, MYSQL.serve), pod, _control: control, _sidecar: sidecar }
    }

    fn sidecar(pod: &Pod, ca_dir: &Path) -> Process {
        let identity = Identity::new(PARTNER, "shop", "theirs").unwrap();
        let token = token::sign_for(ca_dir, &identity, Uses::Many, Duration::from_mins(10), SystemTime::now());
        let token_file = pod.dir().unwrap().join("token");
        std::fs::write(&token_file, token.unwrap()).unwrap();
        let args = [
            "proxy".to_owned(),
            format!("--exclude-mark={MARK:#x}"),
            format!("--workload={}", pod.workload()),
            format!("--identity={identity}"),
            format!("--control={NODE}:{}", OTHERS.0),
            format!("--control-ca={}", ca_dir.join("root.pem").display()),
            format!("--token-file={}", token_file.display()),
            format!("--state-dir={}", pod.dir().unwrap().join("state").display()),
            format!("--dns={NODE}:53"),
        ];
        pod.start("sidecar", pod.command(weft_tests::program(), args)).unwrap()
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
    let partner = Partner::start(&mut mesh, &ours);
    let to_us = || call(&mesh, &partner.ca_dir, &ca_dir, &pod);
    let to_them = || call(&mesh, &ca_dir, &partner.ca_dir, &partner.pod);
    call(&mesh, &partner.ca_dir, &partner.ca_dir, &partner.pod).unwrap();
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
