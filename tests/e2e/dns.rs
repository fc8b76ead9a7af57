//! The application's DNS, captured: answered by its sidecar, from its cache, and while the name server is away.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use weft::lab::{MARK, NODE, Pod};
use weft_capture::rules::{Capture, Exclude};
use weft_tests::dns::Dns;
use weft_tests::{Mesh, Service, Trial, test};

pub fn tests() -> Vec<Trial> {
    vec![test("dns_of_the_application_is_answered_by_its_sidecar", is_answered_by_its_sidecar)]
}

/// What an application in this pod is told by the name server in its configuration.
fn ask(pod: &Pod, name: &str) -> Option<(ResponseCode, Vec<IpAddr>)> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let bytes = message.to_vec().unwrap();
    let answer = pod.net().run(|| {
        let socket = UdpSocket::bind((pod.ip(), 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        // Only an answer from whom was asked is taken.
        socket.connect(SocketAddr::from((NODE, 53))).unwrap();
        socket.send(&bytes).unwrap();
        let mut buffer = [0; 1500];
        let length = socket.recv(&mut buffer).ok()?;
        Message::from_vec(&buffer[..length]).ok()
    });
    let answer = answer.unwrap()?;
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        _ => None,
    });
    Some((answer.metadata.response_code, addresses.collect()))
}

fn is_answered_by_its_sidecar() {
    let mut mesh = Mesh::new();
    let dns = Dns::start(&mesh.lab);
    dns.set("db.example.com", "192.0.2.7".parse().unwrap(), 1);
    dns.set("web.example.com", "192.0.2.8".parse().unwrap(), 300);
    mesh.deploy(Service::own("client").sidecar_arg("--dns-listen=127.0.0.1:15053"));
    let captured = Capture { dns_port: Some(15053), ..Capture::new(Exclude::Mark(MARK)) };
    mesh.pod("client-0").capture(&captured).unwrap();
    let (pod, known) =
        (mesh.pod("client-0"), |last| Some((ResponseCode::NoError, vec![IpAddr::from([192, 0, 2, last])])));
    let before = dns.asked();
    for _ in 0..5 {
        assert_eq!(ask(pod, "web.example.com."), known(8));
    }
    assert_eq!(dns.asked(), before + 1, "once is enough");
    assert_eq!(ask(pod, "db.example.com."), known(7));
    assert_eq!(ask(pod, "nobody.example.com.").unwrap().0, ResponseCode::NXDomain);
    mesh.counts("client-0", "weft_dns_questions_total", &["result=\"cached\""], |cached| cached >= 4.0);

    // The name server goes: what is known is told, beyond its time too, and said in a metric; what is not fails in bounded time.
    drop(dns);
    mesh.until("an answer beyond its time", || {
        assert_eq!(ask(mesh.pod("client-0"), "db.example.com."), known(7));
        match mesh.metric("client-0", "weft_dns_questions_total", &["result=\"stale\""]) {
            stale if stale >= 1.0 => Ok(()),
            stale => Err(format!("{stale} were stale")),
        }
    });
    let pod = mesh.pod("client-0");
    assert_eq!(ask(pod, "web.example.com."), known(8));
    assert_eq!(ask(pod, "new.example.com.").map(|(code, _)| code), Some(ResponseCode::ServFail));
}
