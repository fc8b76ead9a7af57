//! What somebody tries who is not whom he says he is, against real sidecars: each is refused by its reason. (Requests for certificates and
//! streams of configuration: `control/tests/issuing`; SPIFFE IDs, chains and the bytes of TLS: `certs/src/tls/tests`.)

use std::path::Path;

use weft_certs::ca::Ca;
use weft_certs::svid::Svid;
use weft_tests::client::get;
use weft_tests::{Mesh, Service, Trial, test, test_with, tools};

use crate::STRICT;
use crate::opaque::issue;

pub fn tests() -> Vec<Trial> {
    vec![
        test_with("attacks_on_a_strict_port", &["openssl", "curl"], on_a_strict_port),
        test("attacks_an_endpoint_that_shows_anothers_certificate", an_endpoint_that_shows_anothers),
    ]
}

const FAILURES: &str = "weft_tls_handshake_failures_total";
const REFUSED: &str = "weft_refused_total";

/// Sends a request by openssl from the attacker's pod; gives all that it and the other side said.
fn openssl(mesh: &Mesh, args: &str) -> String {
    let command = format!(
        "printf 'GET / HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n' | timeout 10 {} s_client -quiet -connect {}:8080 \
         -servername web.shop.80.weft -alpn weft1-h1 {args} 2>&1 || true",
        tools::program("openssl").display(),
        mesh.pod("web-0").ip(),
    );
    let output = mesh.pod("attacker-0").output("bash", ["-c", &command]).unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A certificate as openssl takes it.
fn keep(svid: &Svid, dir: &Path, name: &str) -> String {
    let dir = dir.join(name);
    svid.save(&dir).unwrap();
    let file = dir.join("svid.pem").display().to_string();
    format!("-cert {file} -cert_chain {file} -key {file}")
}

/// A line of the sidecar's audit log has all of these.
pub fn audited(mesh: &Mesh, pod: &str, texts: &[&str]) {
    mesh.until(&format!("{texts:?} in the audit log of {pod}"), || {
        let log = mesh.sidecar(pod).process.log();
        let mut lines = log.lines().filter(|line| line.contains("weft::audit") && line.contains(" refused "));
        if lines.any(|line| texts.iter().all(|text| line.contains(text))) { Ok(()) } else { Err(log) }
    });
}

fn on_a_strict_port() {
    let mut mesh = Mesh::without_control();
    let dir = mesh.lab.dir().to_owned();
    // Somebody whom we are federated with, and who makes certificates in our name.
    let partner = Ca::open(&dir.join("partner"), "cluster.local").unwrap();
    std::fs::write(dir.join("partner.pem"), partner.root_pem()).unwrap();
    mesh.control_flags = vec![format!("--federate=partner.example={}/partner.pem", dir.display())];
    mesh.start_control();
    mesh.write("namespace.yaml", STRICT);
    mesh.deploy(Service::http("web")).client("client").deploy(Service::own("attacker").unmeshed());
    let ours = Ca::open(mesh.control.as_ref().unwrap().ca_dir(), "cluster.local").unwrap();
    let good = keep(&issue(&ours, "client"), &dir, "good");
    let count = |metric: &str, label: &str| mesh.metric("web-0", metric, &["direction=\"inbound\"", label]);
    let counted = |metric: &str, label: &str, before: f64| {
        mesh.until(&format!("{metric}{{{label}}} to grow"), || match count(metric, label) {
            now if now > before + 0.5 => Ok(()),
            now => Err(format!("{before}, now {now}")),
        });
    };

    // All that follows fails for the one thing that is wrong with it: this is right.
    let kept = dir.join("session");
    let answer = openssl(&mesh, &format!("-tls1_3 {good} -sess_out {}", kept.display()));
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
    // Nothing that another, or the same, could come back with.
    assert!(!kept.exists(), "a ticket was given: {answer}");

    let before = count(REFUSED, "reason=\"plaintext_refused\"");
    let plain = mesh.curl("attacker-0", &[&format!("http://{}:8080/", mesh.pod("web-0").ip())]);
    assert_ne!(plain.status, 200, "{plain:?}");
    counted(REFUSED, "reason=\"plaintext_refused\"", before);
    let attacker = format!("peer={}:", mesh.pod("attacker-0").ip());
    let told = ["connection refused", "cause=\"plaintext_refused\"", "HTTP in the clear", "port=8080", &attacker];
    audited(&mesh, "web-0", &told);
    mesh.until("the access log to tell of it", || {
        let log = mesh.sidecar("web-0").process.log();
        if log.contains("plaintext_refused") { Ok(()) } else { Err(log) }
    });

    let claims_ours = keep(&issue(&partner, "client"), &dir, "claims-ours");
    for (args, reason) in [
        (format!("-tls1_2 {good}"), "protocol"),
        (format!("-tls1_3 {claims_ours}"), "untrusted"),
        ("-tls1_3".to_owned(), "no_certificate"),
    ] {
        let label = format!("reason=\"{reason}\"");
        let before = count(FAILURES, &label);
        let answer = openssl(&mesh, &args);
        assert!(!answer.contains("HTTP/1.1"), "{reason}: {answer}");
        counted(FAILURES, &label, before);
        audited(&mesh, "web-0", &["direction=\"inbound\"", &format!("cause=\"{reason}\""), &attacker]);
    }
    // Who meant well is in no such line.
    assert_eq!(mesh.sidecar("web-0").process.log().matches("handshake refused").count(), 3);
    assert_eq!(get(mesh.pod("client-0"), mesh.address("web"), "/").outcome(), (200, ""));
}

/// Its pod was taken over by somebody who has another workload's certificate, a good one.
fn an_endpoint_that_shows_anothers() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    let to = mesh.address("web");
    assert_eq!(get(mesh.pod("client-0"), to, "/").outcome(), (200, ""));
    let state = mesh.pod("web-0").dir().unwrap().join("state");
    mesh.until("the tables to be saved", || std::fs::metadata(state.join("tables")).map_err(|error| error.to_string()));
    let ca = Ca::open(mesh.control.as_ref().unwrap().ca_dir(), "cluster.local").unwrap();
    {
        let Mesh { members, lab, .. } = &mut mesh;
        let member = members.get_mut("web-0").unwrap();
        member.sidecar = None;
        issue(&ca, "admin").save(&state).unwrap();
        "admin".clone_into(&mut member.account);
        member.start_sidecar(lab);
    }
    mesh.until("the other certificate to be refused", || {
        let got = get(mesh.pod("client-0"), to, "/");
        if got.outcome() == (503, "identity_mismatch") { Ok(()) } else { Err(format!("{got:?}")) }
    });
    let told = ["direction=\"outbound\"", "reason=\"unexpected_identity\""];
    assert!(mesh.metric("client-0", FAILURES, &told) > 0.5);
    let wanted = "peer=spiffe://cluster.local/ns/shop/sa/web";
    audited(&mesh, "client-0", &["direction=\"outbound\"", "cause=\"unexpected_identity\"", wanted, "sa/admin"]);
    // Control, too, gives it nothing that is of web-0.
    mesh.until("the audit log to tell of its stream", || {
        let log = mesh.control.as_ref().unwrap().process.log();
        let line = log.lines().find(|line| line.contains("stream refused") && line.contains("sa/admin"));
        line.filter(|line| line.contains("not_yours")).map(drop).ok_or(log)
    });
}
