//! HTTP/2 through both sides, stream by stream: what happens to one end's stream happens to the other's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::withdrawn::{AT_ONCE, closed_port, reason_is_told};
use super::super::world::*;
use crate::discovery::snapshot::Destination;
use crate::http::h2::STREAM_WINDOW;

/// An application whose requests the test answers itself.
pub struct App {
    pub addr: SocketAddr,
    requests: mpsc::UnboundedReceiver<(Request<RecvStream>, SendResponse<Bytes>)>,
}

impl App {
    pub async fn start(connect: bool) -> Self {
        let (tx, requests) = mpsc::unbounded_channel();
        let addr = listen(move |stream, _| {
            let tx = tx.clone();
            async move {
                let mut bounds = h2::server::Builder::new();
                if connect {
                    bounds.enable_connect_protocol();
                }
                let mut connection = bounds.handshake(stream).await.unwrap();
                while let Some(Ok(request)) = connection.accept().await {
                    tx.send(request).unwrap();
                }
            }
        })
        .await;
        Self { addr, requests }
    }

    pub async fn next(&mut self) -> (Request<RecvStream>, SendResponse<Bytes>) {
        self.requests.recv().await.unwrap()
    }
}

pub async fn client(addr: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (tx, connection) = h2::client::Builder::new().initial_window_size(window).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    tx.ready().await.unwrap()
}

pub fn post() -> Request<()> {
    Request::post("http://shop/a").body(()).unwrap()
}

fn connect(protocol: Option<&'static str>) -> Request<()> {
    let uri = if protocol.is_some() { "http://shop/chat" } else { "shop:80" };
    let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
    if let Some(name) = protocol {
        request.extensions_mut().insert(h2::ext::Protocol::from_static(name));
    }
    request
}

/// The code that an application finds its stream reset with.
pub async fn reset_of(body: &mut RecvStream) -> Reason {
    while let Some(data) = body.data().await {
        match data {
            Ok(_) => {}
            Err(error) => return error.reason().unwrap(),
        }
    }
    panic!("the stream ended in order");
}

#[tokio::test]
async fn a_client_s_code_reaches_the_application() {
    let mut app = App::start(false).await;
    let (addr, _) = through_both(app.addr).await;
    for code in [Reason::CANCEL, Reason::ENHANCE_YOUR_CALM] {
        // Before there is a response, and behind its head.
        for answered in [false, true] {
            let mut tx = client(addr, 65_535).await;
            let (response, mut body) = tx.send_request(post(), false).unwrap();
            let (mut request, mut respond) = app.next().await;
            if answered {
                let _kept = respond.send_response(Response::new(()), false).unwrap();
                response.await.unwrap();
                body.send_reset(code);
                assert_eq!(reset_of(request.body_mut()).await, code);
            } else {
                body.send_reset(code);
                assert_eq!(reset_of(request.body_mut()).await, code);
            }
        }
    }
}

#[tokio::test]
async fn an_application_s_code_reaches_the_client() {
    let mut app = App::start(false).await;
    let (addr, _) = through_both(app.addr).await;
    for code in [Reason::CANCEL, Reason::ENHANCE_YOUR_CALM, Reason::INTERNAL_ERROR] {
        let mut tx = client(addr, 65_535).await;
        let (response, _body) = tx.send_request(post(), false).unwrap();
        let (_request, mut respond) = app.next().await;
        respond.send_reset(code);
        assert_eq!(response.await.unwrap_err().reason(), Some(code));
        let (response, _body) = tx.send_request(post(), false).unwrap();
        let (_request, mut respond) = app.next().await;
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data("part".into(), false).unwrap();
        let mut response = response.await.unwrap();
        assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "part");
        body.send_reset(code);
        assert_eq!(reset_of(response.body_mut()).await, code);
    }
}

#[tokio::test]
async fn interim_responses_trailers_and_cookie_crumbs_pass() {
    let mut app = App::start(false).await;
    let (addr, _) = through_both(app.addr).await;
    let mut tx = client(addr, 65_535).await;
    let mut asked = post();
    asked.headers_mut().insert("expect", "100-continue".parse().unwrap());
    asked.headers_mut().append("cookie", "a=1".parse().unwrap());
    asked.headers_mut().append("cookie", "b=2".parse().unwrap());
    let (mut response, mut body) = tx.send_request(asked, false).unwrap();
    let (mut request, mut respond) = app.next().await;
    let crumbs: Vec<_> = request.headers().get_all("cookie").iter().collect();
    assert_eq!(crumbs, ["a=1", "b=2"]);
    assert_eq!(request.headers()["expect"], "100-continue");
    respond.send_informational(Response::builder().status(100).body(()).unwrap()).unwrap();
    let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
    assert_eq!(interim.status(), 100);
    body.send_data("message".into(), false).unwrap();
    let fields = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
    body.send_trailers(fields.clone()).unwrap();
    assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "message");
    assert_eq!(request.body_mut().trailers().await.unwrap().unwrap(), fields);
    let mut back = respond.send_response(Response::new(()), false).unwrap();
    back.send_trailers(fields.clone()).unwrap();
    let mut response = response.await.unwrap();
    assert!(response.body_mut().data().await.is_none());
    assert_eq!(response.body_mut().trailers().await.unwrap().unwrap(), fields);
}

#[tokio::test]
async fn both_ways_of_a_connect_go_on_until_both_end() {
    let mut app = App::start(true).await;
    let (addr, _) = through_both(app.addr).await;
    for protocol in [Some("websocket"), None] {
        let mut tx = client(addr, 65_535).await;
        // A whole exchange before, so that the sidecar's settings have come.
        let (warm, _) = tx.send_request(post(), true).unwrap();
        app.next().await.1.send_response(Response::new(()), true).unwrap();
        warm.await.unwrap();
        assert!(tx.is_extended_connect_protocol_enabled());
        let (response, mut up) = tx.send_request(connect(protocol), false).unwrap();
        let (mut request, mut respond) = app.next().await;
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.extensions().get::<h2::ext::Protocol>().map(h2::ext::Protocol::as_str), protocol);
        let mut down = respond.send_response(Response::new(()), false).unwrap();
        let mut response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        up.send_data("question".into(), false).unwrap();
        assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "question");
        // The application ends its way first; the other goes on.
        down.send_data("answer".into(), true).unwrap();
        assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "answer");
        assert!(response.body_mut().data().await.is_none());
        up.send_data("more".into(), true).unwrap();
        assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "more");
        assert!(request.body_mut().data().await.is_none());
    }
}

#[tokio::test]
async fn a_tunnel_that_is_no_longer_allowed_is_closed_at_once() {
    let mut app = App::start(true).await;
    for protocol in [Some("websocket"), None] {
        let (addr, server) = through_both(app.addr).await;
        let mut tx = client(addr, 65_535).await;
        let (warm, _) = tx.send_request(post(), true).unwrap();
        app.next().await.1.send_response(Response::new(()), true).unwrap();
        warm.await.unwrap();
        let (response, mut up) = tx.send_request(connect(protocol), false).unwrap();
        let (mut request, mut respond) = app.next().await;
        let _down = respond.send_response(Response::new(()), false).unwrap();
        let mut response = response.await.unwrap();
        // Other rules, which allow it too: it goes on.
        crate::testing::replace(&server, enforces(open_port(true)));
        up.send_data("question".into(), false).unwrap();
        assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "question");
        // Nobody says anything when it is withdrawn.
        crate::testing::replace(&server, enforces(closed_port()));
        let (near, far) = (reset_of(response.body_mut()), reset_of(request.body_mut()));
        let codes = timeout(AT_ONCE, async { tokio::join!(near, far) }).await.expect("it is still open");
        assert_eq!(codes, (Reason::CANCEL, Reason::CANCEL), "{protocol:?}");
        reason_is_told(&server).await;
    }
}

#[tokio::test]
async fn an_application_without_extended_connect_is_not_asked() {
    let mut app = App::start(false).await;
    let (addr, _) = through_both(app.addr).await;
    let mut tx = client(addr, 65_535).await;
    let (warm, _) = tx.send_request(post(), true).unwrap();
    app.next().await.1.send_response(Response::new(()), true).unwrap();
    warm.await.unwrap();
    let (response, _up) = tx.send_request(connect(Some("websocket")), false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["x-weft-reason"], "upstream_protocol");
    assert!(app.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_request_for_two_names_is_refused() {
    let mut app = App::start(false).await;
    let (addr, _) = through_both(app.addr).await;
    let mut tx = client(addr, 65_535).await;
    let mut asked = post();
    asked.headers_mut().insert("host", "other".parse().unwrap());
    let (response, _) = tx.send_request(asked, true).unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-weft-reason"]),
        (400, &"malformed_request".parse().unwrap())
    );
    assert!(response.body_mut().data().await.unwrap().unwrap().starts_with(b"The head"));
    assert!(app.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_refused_call_has_grpc_s_own_status() {
    let destination = Destination::Service(service(backend("a", Vec::new())).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut tx = client(outbound_side(&proxy, cluster_ip()).await, 65_535).await;
    let mut asked = post();
    asked.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
    let (response, _) = tx.send_request(asked, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["x-weft-reason"], "no_endpoints");
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn a_response_that_breaks_off_ends_in_grpc_s_own_status() {
    // The application's connection ends behind the first message.
    let addr = listen(|stream, _| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data("part".into(), false).unwrap();
        let closing = timeout(Duration::from_millis(100), connection.accept());
        assert!(closing.await.is_err());
    })
    .await;
    let (addr, _) = through_both(addr).await;
    let mut tx = client(addr, 65_535).await;
    let mut asked = post();
    asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let (response, _) = tx.send_request(asked, true).unwrap();
    let mut response = response.await.unwrap();
    assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "part");
    assert!(response.body_mut().data().await.is_none());
    assert_eq!(response.body_mut().trailers().await.unwrap().unwrap()["grpc-status"], "14");
}

/// What two sidecars take for a client that does not read: its own window, a window and a send buffer on each hop, and a frame here and
/// there.
const UNREAD: usize = 320 << 10;

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_application() {
    const WHOLE: usize = 10 << 20;
    let mut app = App::start(false).await;
    let (addr, _) = through_both(app.addr).await;
    let mut tx = client(addr, 65_535).await;
    let (response, _) = tx.send_request(post(), true).unwrap();
    let (_request, mut respond) = app.next().await;
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        let mut left = WHOLE;
        while left > 0 {
            body.reserve_capacity(left.min(16 << 10));
            let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap().min(left);
            left -= room;
            body.send_data(vec![b'x'; room].into(), left == 0).unwrap();
            count.fetch_add(room, Ordering::Relaxed);
        }
    });
    let mut response = response.await.unwrap();
    // It has stopped when a while has brought nothing more.
    let mut before = 0;
    while sent.load(Ordering::Relaxed) > before || before == 0 {
        before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(before <= UNREAD, "{before} bytes were taken for a client that does not read");
    // Others on the same connections are served meanwhile.
    let (other, _) = tx.send_request(post(), true).unwrap();
    app.next().await.1.send_response(Response::new(()), true).unwrap();
    other.await.unwrap();
    let mut got = 0;
    while let Some(data) = response.body_mut().data().await {
        let data = data.unwrap();
        got += data.len();
        response.body_mut().flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(got, WHOLE);
    sending.await.unwrap();
}

/// A frame: its type, flags, stream and payload.
async fn frame(stream: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
}

/// What opens a connection, and an empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The head of an answer to a PING, and a whole acknowledgement of SETTINGS.
const PONG: &[u8] = b"\0\0\x08\x06\x01\0\0\0\0";
const ACKNOWLEDGED: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";

/// Answers the next PING; gives the streams whose windows were opened before it came.
async fn answer_ping(raw: &mut TcpStream) -> Vec<u32> {
    let mut opened = Vec::new();
    loop {
        match frame(raw).await {
            (6, 0, _, payload) => {
                raw.write_all(&[PONG, &payload].concat()).await.unwrap();
                return opened;
            }
            (8, _, stream, _) => opened.push(stream),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_body_that_began_before_our_window_was_known_goes_on() {
    let mut app = App::start(false).await;
    let proxy = World::new().proxy("cart", enforces(open_port(false)));
    let mut raw = TcpStream::connect(inbound_side(&proxy, app.addr).await).await.unwrap();
    // POST / on stream 1, and as many bytes as its window will turn out to have.
    raw.write_all(PREFACE).await.unwrap();
    raw.write_all(b"\0\0\x03\x01\x04\0\0\0\x01\x83\x86\x84").await.unwrap();
    for length in [16 << 10, STREAM_WINDOW - (16 << 10)] {
        let [_, a, b, c] = length.to_be_bytes();
        let bytes = vec![b'x'; length as usize];
        raw.write_all(&[&[a, b, c, 0, 0, 0, 0, 0, 1][..], &bytes].concat()).await.unwrap();
    }
    let (mut request, _respond) = app.next().await;
    let mut taken = 0;
    while taken < STREAM_WINDOW as usize {
        taken += request.body_mut().data().await.unwrap().unwrap().len();
    }
    // All of it was passed on when the settings are acknowledged.
    raw.write_all(ACKNOWLEDGED).await.unwrap();
    assert!(!answer_ping(&mut raw).await.contains(&1), "it has more than half of the window that all have");
    let opened = async { while !matches!(frame(&mut raw).await, (8, _, 1, _)) {} };
    timeout(10 * AT_ONCE, opened).await.expect("the stream has no window");
}

#[tokio::test]
async fn a_proxy_that_leaves_says_goaway_twice() {
    let mut app = App::start(false).await;
    let proxy = World::new().proxy("cart", enforces(open_port(false)));
    let addr = inbound_side(&proxy, app.addr).await;
    let mut raw = TcpStream::connect(addr).await.unwrap();
    // GET / on stream 1 (method, scheme and path of the static table).
    raw.write_all(PREFACE).await.unwrap();
    raw.write_all(b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84").await.unwrap();
    let (_request, mut respond) = app.next().await;
    answer_ping(&mut raw).await;
    proxy.drain.begin();
    let mut goaways = Vec::new();
    while goaways.len() < 2 {
        match frame(&mut raw).await {
            (7, _, _, payload) => goaways.push(payload[..8].to_vec()),
            (6, 0, _, payload) => {
                assert_eq!(goaways.len(), 1, "the second is sent a round trip later");
                raw.write_all(&[PONG, &payload].concat()).await.unwrap();
            }
            _ => {}
        }
    }
    assert_eq!(goaways, [b"\x7f\xff\xff\xff\0\0\0\0".to_vec(), b"\0\0\0\x01\0\0\0\0".to_vec()]);
    // What is in flight ends well, and then the connection.
    respond.send_response(Response::new(()), true).unwrap();
    loop {
        let (kind, flags, stream, _) = frame(&mut raw).await;
        if kind == 1 {
            assert_eq!((flags & 1, stream), (1, 1));
            break;
        }
    }
    let mut rest = Vec::new();
    raw.read_to_end(&mut rest).await.unwrap();
}
