//! What is on the wire between pods, and what a strict port takes.

use http::Method;
use weft_tests::client::{echo, get, request, try_send};
use weft_tests::sniff::{Sniffer, contains};
use weft_tests::{Mesh, Service, Trial, test};

use crate::STRICT;

pub fn tests() -> Vec<Trial> {
    vec![
        test("wire_no_plaintext_between_meshed_pods", no_plaintext_between_meshed_pods),
        test("wire_strict_refuses_plaintext", strict_refuses_plaintext),
        test("wire_a_port_counts_for_more_than_its_pod_and_that_than_the_mesh", strict_by_mesh_pod_and_port),
        test("wire_a_pod_that_calls_itself_meets_its_own_policy", a_pod_that_calls_itself_meets_its_own_policy),
        test("wire_a_pod_ip_is_that_very_pod", a_pod_ip_is_that_very_pod),
        test("wire_tcp_is_meshed_too", tcp_is_meshed_too),
        // An ordinary user has one uid, so there is no other for the sidecar.
        test("wire_the_sidecar_is_known_by_uid_in_a_pod", the_sidecar_is_known_by_uid).with_ignored_flag(!was_root()),
    ]
}

/// Longer than chance, and not compressible away.
const CANARY: &str = "canary-4f1d0c6b9a";

fn no_plaintext_between_meshed_pods() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).deploy(Service::http("plain").unmeshed()).client("client");
    let send = |service: &str| {
        let to = mesh.address(service);
        let sniffer = Sniffer::start(&mesh.lab);
        let request = request(Method::GET, &to.to_string(), &format!("/{CANARY}"), &[("x-canary", CANARY)]);
        let got = try_send(mesh.pod("client-0"), to, request).unwrap();
        assert_eq!(got.outcome(), (200, ""), "{got:?}");
        assert!(got.body.contains(CANARY), "the application did not get the canary: {got:?}");
        sniffer.stop()
    };
    // The same sniffer sees the canary where there is no mutual TLS ...
    let seen = send("plain");
    assert!(contains(&seen, CANARY), "the sniffer is blind: {} bytes and no canary", seen.len());
    // ... and does not where there is, although the traffic is there.
    let seen = send("web");
    assert!(seen.len() > 1000, "nothing was sniffed");
    assert!(!contains(&seen, CANARY), "plaintext between meshed pods");
}

fn strict_refuses_plaintext() {
    let mut mesh = Mesh::new();
    mesh.write("namespace.yaml", STRICT);
    mesh.deploy(Service::http("web")).deploy(Service::own("stranger").unmeshed()).client("client");
    let web = mesh.pod("web-0").ip();
    let direct = std::net::SocketAddr::from((web, 8080));
    mesh.until("a stranger to be refused", || {
        match try_send(mesh.pod("stranger-0"), direct, request(Method::GET, "web", "/", &[])) {
            Ok(got) if got.status == 200 => Err("it was answered 200".to_owned()),
            // The reason is for meshed peers; a stranger learns nothing.
            Ok(got) => {
                assert_eq!(got.reason(), "");
                Ok(())
            }
            Err(_) => Ok(()),
        }
    });
    let got = get(mesh.pod("client-0"), mesh.address("web"), "/");
    assert_eq!(got.outcome(), (200, ""), "{got:?}");
}

const STRICT_MESH: &str = "apiVersion: v1
kind: Namespace
metadata: {name: weft-system, annotations: {weft.dev/mesh-mtls: strict}}
";

fn strict_by_mesh_pod_and_port() {
    let mut mesh = Mesh::new();
    mesh.write("mesh.yaml", STRICT_MESH);
    mesh.deploy(Service::http("web")).deploy(Service::own("stranger").unmeshed()).client("client");
    mesh.deploy(Service::http("pod").annotation("weft.dev/mtls", "permissive"));
    let by_port = Service::http("port").annotation("weft.dev/mtls", "strict");
    mesh.deploy(by_port.annotation("weft.dev/mtls-ports", "8080=permissive,9=strict"));
    let stranger = |service: &str| {
        let direct = std::net::SocketAddr::from((mesh.pod(&format!("{service}-0")).ip(), 8080));
        try_send(mesh.pod("stranger-0"), direct, request(Method::GET, service, "/", &[]))
            .map_or(0, |got| got.status.as_u16())
    };
    // Before control has spoken nobody is admitted: whoever is, shows what it said.
    assert_eq!((stranger("pod"), stranger("port")), (200, 200));
    assert_ne!(stranger("web"), 200, "the mesh is strict");
    for service in ["web", "pod", "port"] {
        let got = get(mesh.pod("client-0"), mesh.address(service), "/");
        assert_eq!(got.outcome(), (200, ""), "{service}: {got:?}");
    }
    // The mesh changes its mind, and web with it.
    mesh.write("mesh.yaml", &STRICT_MESH.replace("strict", "permissive"));
    mesh.until("a stranger to be let in", || match stranger("web") {
        200_u16 => Ok(()),
        other => Err(format!("{other}")),
    });
}

fn a_pod_that_calls_itself_meets_its_own_policy() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web"));
    mesh.write("deny.yaml", DENY_SECRET);
    let (pod, to) = (mesh.pod("web-0"), mesh.address("web"));
    mesh.until("the policy to take effect", || match get(pod, to, "/secret").outcome() {
        (403, "denied_by_policy") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(get(pod, to, "/").outcome(), (200, ""));
    // By its own address too.
    let own = std::net::SocketAddr::from((pod.ip(), 8080));
    assert_eq!(get(pod, own, "/").outcome(), (200, ""));
    assert_eq!(get(pod, own, "/secret").outcome(), (403, "denied_by_policy"));
}

const DENY_SECRET: &str = "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: Deny
  rules:
    - to: [{paths: ['/secret']}]
";

fn a_pod_ip_is_that_very_pod() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(3)).client("client");
    for name in ["web-0", "web-1", "web-2"] {
        let to = std::net::SocketAddr::from((mesh.pod(name).ip(), 8080));
        for _ in 0..5 {
            let got = get(mesh.pod("client-0"), to, "/");
            assert_eq!((got.by().as_str(), got.outcome()), (name, (200, "")));
        }
    }
    // With mutual TLS: the server's sidecar has counted no plain request.
    mesh.counts("web-0", "weft_requests_total", &["direction=\"inbound\"", "tls=\"mtls\""], |count| count >= 5.0);
}

fn tcp_is_meshed_too() {
    use std::io::Read as _;
    let mut mesh = Mesh::new();
    mesh.deploy(Service::tcp("echo")).client("client");
    let sniffer = Sniffer::start(&mesh.lab);
    // The server speaks first.
    let mut stream = echo(mesh.pod("client-0"), mesh.address("echo"), "echo-0 v1", CANARY);
    // Half-close: the end of one direction reaches the server, whose end comes back.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    assert!(!contains(&sniffer.stop(), CANARY));
}

/// Whether this process is root beyond its own user namespace, and so can have other uids.
pub fn was_root() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.split_whitespace().nth(2) != Some("1"))
        && rustix::process::geteuid().is_root()
}

fn the_sidecar_is_known_by_uid() {
    use weft_capture::rules::{Capture, Exclude};
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    for name in ["web-0", "client-0"] {
        let Mesh { members, lab, .. } = &mut mesh;
        let member = members.get_mut(name).unwrap();
        member.sidecar = None;
        // As in a pod: no mark, no capability, a uid of its own.
        member.pod.capture(&Capture::new(Exclude::Uid(1337))).unwrap();
        std::fs::remove_dir_all(member.pod.dir().unwrap().join("state")).unwrap();
        let sidecar = member.sidecar.insert(lab.sidecar_as(&member.pod, &member.account, 1337, &[]).unwrap());
        sidecar.wait_ready().unwrap_or_else(|error| panic!("{error}"));
    }
    let (client, to) = (mesh.pod("client-0"), mesh.address("web"));
    assert_eq!(get(client, to, "/").outcome(), (200, ""));
    mesh.counts("web-0", "weft_requests_total", &["direction=\"inbound\"", "tls=\"mtls\""], |count| count >= 1.0);
    // A pod that calls its own Service goes through both sides of its own sidecar, which have one uid.
    assert_eq!(get(mesh.pod("web-0"), to, "/").outcome(), (200, ""));
    mesh.counts("web-0", "weft_requests_total", &["direction=\"outbound\""], |count| count >= 1.0);
    mesh.counts("web-0", "weft_requests_total", &["direction=\"inbound\"", "tls=\"mtls\""], |count| count >= 2.0);
}
