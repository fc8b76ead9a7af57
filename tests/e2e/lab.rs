//! The lab itself, before there is any mesh in it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use weft::lab::Lab;
use weft_tests::mesh::SOON;
use weft_tests::sniff::{Sniffer, contains};
use weft_tests::{Mesh, Service, Trial, program, test, test_with};

pub fn tests() -> Vec<Trial> {
    vec![
        test_with("lab_pods_reach_each_other", &["curl"], pods_reach_each_other),
        test("lab_names_are_bound_over_etc_hosts", names_are_bound_over_etc_hosts),
        test("lab_processes_end_with_it", processes_end_with_it),
        test("lab_capture_brings_connections_to_the_sidecar", capture_brings_connections_to_the_sidecar),
        test("lab_sniffer_sees_between_pods", sniffer_sees_between_pods),
    ]
}

fn pods_reach_each_other() {
    let mut mesh = Mesh::without_control();
    mesh.deploy(Service::http("web").unmeshed()).deploy(Service::own("curl").unmeshed());
    let url = format!("http://{}:8080/", mesh.pod("web-0").ip());
    let answer = mesh.curl("curl-0", &[&url]).expect(200);
    assert!(answer.text.contains("web-0"), "{answer:?}");
}

fn names_are_bound_over_etc_hosts() {
    let lab = Lab::new(program(), None).unwrap();
    let pod = lab.plain_pod("shop", "a", None).unwrap();
    lab.name("web.shop", "10.96.0.7".parse().unwrap()).unwrap();
    let hosts = pod.output("/bin/cat", ["/etc/hosts"]).unwrap();
    assert!(String::from_utf8_lossy(&hosts.stdout).contains("10.96.0.7 web.shop"));
    // Seen in the pod only.
    assert!(!std::fs::read_to_string("/etc/hosts").unwrap().contains("web.shop"));
}

fn processes_end_with_it() {
    let lab = Lab::new(program(), None).unwrap();
    let pod = lab.plain_pod("shop", "a", None).unwrap();
    let mut process = pod.spawn("sleep", "/bin/sleep", ["1000"]).unwrap();
    process.terminate();
    assert_eq!(process.wait(SOON).unwrap().signal(), Some(15));
    let process = pod.spawn("sleep", "/bin/sleep", ["1000"]).unwrap();
    let exists = format!("/proc/{}", process.id());
    assert!(std::fs::exists(&exists).unwrap());
    drop(process);
    assert!(!std::fs::exists(&exists).unwrap());
}

fn capture_brings_connections_to_the_sidecar() {
    let lab = Lab::new(program(), None).unwrap();
    let pod = lab.pod("shop", "a").unwrap();
    let outbound = pod.listen(15001).unwrap();
    let meant: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let _client = pod.connect(meant).unwrap();
    let (server, _) = outbound.accept().unwrap();
    let original = socket2::SockRef::from(&server).original_dst_v4().unwrap();
    assert_eq!(original.as_socket(), Some(meant));
}

fn sniffer_sees_between_pods() {
    let lab = Lab::new(program(), None).unwrap();
    let [a, b] = ["a", "b"].map(|name| lab.plain_pod("shop", name, None).unwrap());
    let listener = b.listen(8080).unwrap();
    let sniffer = Sniffer::start(&lab);
    let mut client = a.connect(SocketAddr::from((b.ip(), 8080))).unwrap();
    client.write_all(b"a canary sings").unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    std::io::Read::read_exact(&mut &server, &mut [0; 14]).unwrap();
    assert!(contains(&sniffer.stop(), "a canary sings"));
}
