//! Heads that two parsers could read differently: refused wherever on a connection they stand, and never passed on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use weft::lab::Pod;
use weft_tests::mesh::SOON;
use weft_tests::{Mesh, Service, Trial, test};

pub fn tests() -> Vec<Trial> {
    vec![
        test("smuggling_a_later_head_is_refused_like_the_first", a_later_head_is_refused),
        test("smuggling_bodies_between_heads_pass", bodies_between_heads_pass),
    ]
}

const GOOD: &str = "GET /good HTTP/1.1\r\nHost: web\r\n\r\n";

/// What RFC 9112 lets a lenient parser take, and ours must not.
const SHAPES: [(&str, &str); 6] = [
    (
        "length and coding",
        "POST /bad HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST /bad HTTP/1.1\r\nHost: web\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
    ("two codings", "POST /bad HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n"),
    ("bare LF", "GET /bad HTTP/1.1\nHost: web\n\n"),
    ("one bare LF", "GET /bad HTTP/1.1\r\nHost: web\nX: y\r\n\r\n"),
    ("space before the colon", "POST /bad HTTP/1.1\r\nHost: web\r\nContent-Length : 1\r\n\r\nx"),
];

fn open(pod: &Pod, to: SocketAddr) -> TcpStream {
    let stream = pod.connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads one answer, by its Content-Length.
fn answer(stream: &mut TcpStream) -> String {
    let mut got = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let fields = head.lines().filter_map(|line| line.split_once(": "));
            let length = fields.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.unwrap_or_else(|| panic!("no length: {text}")).1.parse().unwrap();
            assert!(body.len() <= length, "more than one answer: {text}");
            if body.len() == length {
                return text;
            }
        }
        let mut byte = [0; 1];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "ended within an answer: {text}");
        got.push(byte[0]);
    }
}

/// The rest of what comes until the other end closes.
fn rest(stream: &mut TcpStream, what: &str) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap_or_else(|error| panic!("{what}: {error} after {text:?}"));
    text
}

fn a_later_head_is_refused() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).deploy(Service::own("stranger").unmeshed()).client("client");
    // By the client's own sidecar on its way out, and by the server's on its way in.
    let ways = [("client-0", mesh.address("web")), ("stranger-0", SocketAddr::from((mesh.pod("web-0").ip(), 8080)))];
    let served = || mesh.metric("web-0", "weft_requests_total", &["direction=\"inbound\"", "class=\"2xx\""]);
    for (pod, to) in ways {
        for (name, shape) in SHAPES {
            let what = format!("{name}, from {pod}");
            let before = served();
            let mut stream = open(mesh.pod(pod), to);
            stream.write_all(GOOD.as_bytes()).unwrap();
            assert!(answer(&mut stream).starts_with("HTTP/1.1 200 "), "{what}");
            stream.write_all(shape.as_bytes()).unwrap();
            refused(&rest(&mut stream, &what), pod, &what);
            // Behind the good one in one packet, and in two pieces.
            let mut stream = open(mesh.pod(pod), to);
            let (some, more) = shape.split_at(12);
            stream.write_all(format!("{GOOD}{some}").as_bytes()).unwrap();
            assert!(answer(&mut stream).starts_with("HTTP/1.1 200 "), "{what}");
            stream.write_all(more.as_bytes()).unwrap();
            refused(&rest(&mut stream, &what), pod, &what);
            let mut stream = open(mesh.pod(pod), to);
            stream.write_all(format!("{GOOD}{shape}").as_bytes()).unwrap();
            assert!(answer(&mut stream).starts_with("HTTP/1.1 200 "), "{what}");
            refused(&rest(&mut stream, &what), pod, &what);
            mesh.until(&format!("{what}: three good requests to be counted, and no other"), || {
                match served() - before {
                    passed if (passed - 3.0).abs() < f64::EPSILON => Ok(()),
                    passed => Err(format!("{passed} were served")),
                }
            });
        }
    }
}

fn refused(text: &str, pod: &str, what: &str) {
    assert!(text.starts_with("HTTP/1.1 400 "), "{what}: {text:?}");
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{what}: {text:?}");
    // The reason is for meshed peers; a stranger learns nothing.
    assert_eq!(text.contains("x-weft-reason: malformed_request"), pod == "client-0", "{what}: {text:?}");
}

fn bodies_between_heads_pass() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    let bodies = [
        "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 12\r\n\r\nGET / HTTP/1",
        "POST /b HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nab\n\n\r\n0A\r\n0123456789\r\n0\r\nT: u\r\n\r\n",
        "GET /c HTTP/1.1\r\nHost: web\r\n\r\n",
    ];
    let mut stream = open(mesh.pod("client-0"), mesh.address("web"));
    // One by one, all in one packet, and byte by byte.
    for body in bodies {
        stream.write_all(body.as_bytes()).unwrap();
        assert!(answer(&mut stream).starts_with("HTTP/1.1 200 "), "{body:?}");
    }
    stream.write_all(bodies.concat().as_bytes()).unwrap();
    for body in bodies {
        assert!(answer(&mut stream).starts_with("HTTP/1.1 200 "), "{body:?}");
    }
    for byte in bodies.concat().bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    for body in bodies {
        assert!(answer(&mut stream).starts_with("HTTP/1.1 200 "), "{body:?}");
    }
}
