//! The mesh over IPv6: addresses of services and pods, capture, mutual TLS, HTTP and opaque TCP; and both families at once.

use std::net::SocketAddr;

use http::Method;
use weft_tests::client::{echo, get, request, try_send};
use weft_tests::manifests::Family;
use weft_tests::sniff::{Sniffer, contains};
use weft_tests::{Mesh, Service, Trial, test};

use crate::STRICT;

pub fn tests() -> Vec<Trial> {
    let tests = vec![
        test("ipv6_http_and_tcp_are_meshed", http_and_tcp_are_meshed),
        test("ipv6_plaintext_meets_the_ports_mode", plaintext_meets_the_ports_mode),
        test("ipv6_a_service_of_both_families", a_service_of_both_families),
    ];
    tests.into_iter().map(|test| test.with_ignored_flag(!has_ipv6())).collect()
}

/// Whether namespaces of this machine have IPv6.
pub fn has_ipv6() -> bool {
    let off = |which| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"));
    ["all", "default"].into_iter().all(|which| off(which).is_ok_and(|text| text.trim() == "0"))
}

const CANARY: &str = "canary-7c2e91d05f";

fn six(mesh: &Mesh, pod: &str, port: u16) -> SocketAddr {
    SocketAddr::from((mesh.pod(pod).ip6().unwrap(), port))
}

fn http_and_tcp_are_meshed() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").pods(2).family(Family::V6)).deploy(Service::tcp("echo").family(Family::V6));
    mesh.deploy(Service::own("client").family(Family::V6));
    let sniffer = Sniffer::start(&mesh.lab);
    // By the service's address, and by that of one pod, which is that very pod.
    let (client, web) = (mesh.pod("client-0"), mesh.address("web"));
    assert!(web.is_ipv6());
    for to in [web, six(&mesh, "web-0", 8080), six(&mesh, "web-1", 8080)] {
        for _ in 0..5 {
            let request = request(Method::GET, &to.to_string(), &format!("/{CANARY}"), &[]);
            let got = try_send(client, to, request).unwrap();
            assert_eq!(got.outcome(), (200, ""), "{to}: {got:?}");
            assert!(got.body.contains(CANARY), "{got:?}");
            // The application learns who calls, by address and by certificate.
            assert!(got.body.contains(&client.ip6().unwrap().to_string()), "{got:?}");
            assert!(got.body.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{got:?}");
            if let Some(name) = ["web-0", "web-1"].into_iter().find(|name| six(&mesh, name, 8080) == to) {
                assert_eq!(got.by(), name);
            }
        }
    }
    for to in [mesh.address("echo"), six(&mesh, "echo-0", 7000)] {
        assert!(to.is_ipv6());
        echo(mesh.pod("client-0"), to, "echo-0 v1", CANARY);
    }
    let seen = sniffer.stop();
    assert!(seen.len() > 1000, "nothing was sniffed");
    assert!(!contains(&seen, CANARY), "plaintext between meshed pods");
    let meshed = |pod| mesh.metric(pod, "weft_requests_total", &["direction=\"inbound\"", "tls=\"mtls\""]);
    mesh.until("15 requests to have come by mutual TLS", || match meshed("web-0") + meshed("web-1") {
        served if (served - 15.0).abs() < f64::EPSILON => Ok(()),
        served => Err(format!("{served} have")),
    });
}

fn plaintext_meets_the_ports_mode() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").family(Family::V6));
    mesh.deploy(Service::own("stranger").family(Family::V6).unmeshed());
    let to = six(&mesh, "web-0", 8080);
    assert_eq!(get(mesh.pod("stranger-0"), to, "/").outcome(), (200, ""));
    let labels = ["direction=\"inbound\"", "tls=\"plain\""];
    mesh.counts("web-0", "weft_requests_total", &labels, |plain| (plain - 1.0).abs() < f64::EPSILON);
    mesh.write("namespace.yaml", STRICT);
    mesh.until("a stranger to be refused", || {
        match try_send(mesh.pod("stranger-0"), to, request(Method::GET, "web", "/", &[])) {
            Ok(got) if got.status == 200 => Err("it was answered 200".to_owned()),
            _ => Ok(()),
        }
    });
}

fn a_service_of_both_families() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web").family(Family::Dual)).deploy(Service::tcp("echo").family(Family::Dual));
    mesh.deploy(Service::own("client").family(Family::Dual));
    let client = mesh.pod("client-0");
    let addresses = mesh.addresses("web");
    assert_eq!(addresses.iter().map(SocketAddr::is_ipv6).collect::<Vec<_>>(), [true, false]);
    let pod = [six(&mesh, "web-0", 8080), SocketAddr::from((mesh.pod("web-0").ip(), 8080))];
    for to in addresses.iter().chain(&pod) {
        for _ in 0..5 {
            assert_eq!(get(client, *to, "/").outcome(), (200, ""), "{to}");
        }
    }
    for to in mesh.addresses("echo") {
        echo(mesh.pod("client-0"), to, "echo-0 v1", CANARY);
    }
    let labels = ["direction=\"inbound\"", "tls=\"mtls\""];
    mesh.counts("web-0", "weft_requests_total", &labels, |meshed| (meshed - 20.0).abs() < f64::EPSILON);
}
