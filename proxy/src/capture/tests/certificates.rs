//! HTTP connections are replaced before the certificates end that they were opened with, and no request notices; opaque sessions and
//! streams that are open live on.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::app::App;
use super::handshakes::until;
use super::http2::streams;
use super::raw::Raw;
use super::withdrawn::{WORD, echo};
use super::world::*;
use crate::Shared;
use crate::telemetry::Direction;
use crate::telemetry::counters::Retired;

const GET: &str = "GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";
/// Certificates end at whole seconds.
const LIFE: Duration = Duration::from_secs(3);
/// Longer than any of them.
const LONG: Duration = Duration::from_secs(5);

/// Both with certificates of that life, which are renewed in time for as long as this is held.
async fn short_lived(app: std::net::SocketAddr) -> (Arc<Both>, tokio::task::JoinSet<()>) {
    let both = Arc::new(both(app).await);
    let (renewing, mut task) = (Arc::clone(&both), tokio::task::JoinSet::new());
    both.world.renew(&both.client, LIFE);
    both.world.renew(&both.server, LIFE);
    task.spawn(async move {
        loop {
            sleep(LIFE / 3).await;
            renewing.world.renew(&renewing.client, LIFE);
            renewing.world.renew(&renewing.server, LIFE);
        }
    });
    (both, task)
}

fn retired(shared: &Shared, direction: Direction) -> u64 {
    shared.telemetry.retired.get(direction, Retired::Certificate)
}

#[tokio::test]
async fn requests_of_http1_do_not_notice() {
    let app = App::start("cart").await;
    let (both, _renewing) = short_lived(app.addr).await;
    let begun = Instant::now();
    let mut clients = vec![Client::connect(both.side).await, Client::connect(both.side).await];
    while begun.elapsed() < LONG {
        for client in &mut clients {
            let (head, _) = client.send(GET).await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!(retired(&both.client, Direction::Outbound) > 0);
    assert_eq!(retired(&both.server, Direction::Inbound), 0, "it is the client's side that replaces");
    let opened = both.client.telemetry.handshakes.successes(Direction::Outbound);
    assert!((2..20).contains(&opened), "{opened}");
}

#[tokio::test]
async fn requests_of_http2_do_not_notice_and_a_stream_outlives_its_certificate() {
    let mut app = streams::App::start(false).await;
    let (both, _renewing) = short_lived(app.addr).await;
    let mut tx = streams::client(both.side, 65_535).await;
    let (response, mut up) = tx.send_request(streams::post(), false).unwrap();
    let (mut long, mut respond) = app.next().await;
    let mut down = respond.send_response(http::Response::new(()), false).unwrap();
    let mut response = response.await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        let (answer, _) = tx.send_request(streams::post(), true).unwrap();
        app.next().await.1.send_response(http::Response::new(()), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200, "{:?}", answer.headers());
        down.send_data("answer".into(), false).unwrap();
        assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "answer");
        up.send_data("question".into(), false).unwrap();
        assert_eq!(long.body_mut().data().await.unwrap().unwrap(), "question");
        let _ = response.body_mut().flow_control().release_capacity(6);
        let _ = long.body_mut().flow_control().release_capacity(8);
        sleep(Duration::from_millis(10)).await;
    }
    assert!(retired(&both.client, Direction::Outbound) > 0);
    let opened = both.client.telemetry.handshakes.successes(Direction::Outbound);
    assert!((2..20).contains(&opened), "{opened}");
}

#[tokio::test]
async fn an_opaque_session_lives_on() {
    let (both, _renewing) = short_lived(echo().await).await;
    let mut client = Raw::connect(both.side).await;
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        client.say(WORD).await;
        assert_eq!(client.head().await, WORD);
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn where_no_other_connection_can_be_had_the_one_there_is_serves_to_the_end() {
    let app = App::start("cart").await;
    let both = both(app.addr).await;
    both.world.renew(&both.client, LIFE);
    let mut client = Client::connect(both.side).await;
    assert!(client.send(GET).await.0.starts_with("HTTP/1.1 200"));
    let ends = both.client.identity.current().unwrap().not_after;
    // From now on it takes no peer: `cart` has another CA's certificate.
    let strange = World::new();
    strange.renew(&both.server, LIFE * 10);
    let mut served = 0;
    let refused = loop {
        let (head, _) = client.send(GET).await;
        if !head.starts_with("HTTP/1.1 200") {
            break head;
        }
        served += 1;
        sleep(Duration::from_millis(5)).await;
    };
    assert!(served > 10 && std::time::SystemTime::now() >= ends - Duration::from_millis(20), "{served}: {refused}");
    assert!(refused.contains("x-weft-reason: identity_"), "{refused}");
}

#[tokio::test]
async fn a_peer_that_does_not_replace_its_connection_is_asked_to_and_never_cut_off() {
    let app = App::start("cart").await;
    let both = both(app.addr).await;
    both.world.renew(&both.client, LIFE);
    let own = both.client.identity.current().unwrap();
    let dial = async || {
        let tcp = TcpStream::connect(both.far).await.unwrap();
        let connector = TlsConnector::from(Arc::clone(&own.client_h1));
        connector.connect("cart.shop.80.weft".try_into().unwrap(), tcp).await.unwrap()
    };
    let (mut idle, mut busy) = (dial().await, dial().await);
    let ask = async |tls: &mut tokio_rustls::client::TlsStream<TcpStream>| {
        tls.write_all(GET.as_bytes()).await.unwrap();
        tls.flush().await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"cart GET /a\n") && !String::from_utf8_lossy(&heard).contains("cart GET /a") {
            assert_ne!(tokio::io::AsyncReadExt::read_buf(tls, &mut heard).await.unwrap(), 0);
        }
        String::from_utf8(heard).unwrap().to_lowercase()
    };
    assert!(!ask(&mut idle).await.contains("connection: close"));
    let begun = Instant::now();
    while !ask(&mut busy).await.contains("connection: close") {
        assert!(begun.elapsed() < LONG, "it goes on");
        sleep(Duration::from_millis(10)).await;
    }
    // The other one asked nothing, and is closed.
    let mut rest = Vec::new();
    let closed = timeout(LONG, tokio::io::AsyncReadExt::read_to_end(&mut idle, &mut rest)).await;
    assert!(closed.is_ok() && !String::from_utf8_lossy(&rest).contains("HTTP"), "{}", rest.escape_ascii());
    until("both are counted", || retired(&both.server, Direction::Inbound) == 2).await;
}

#[tokio::test]
async fn an_http2_peer_is_told_to_go_away_and_its_streams_end_in_their_time() {
    let mut app = streams::App::start(false).await;
    let both = both(app.addr).await;
    both.world.renew(&both.client, LIFE);
    let own = both.client.identity.current().unwrap();
    let tcp = TcpStream::connect(both.far).await.unwrap();
    let connector = TlsConnector::from(Arc::clone(&own.client_h2));
    let tls = connector.connect("cart.shop.80.weft".try_into().unwrap(), tcp).await.unwrap();
    let (mut tx, connection) = h2::client::handshake(tls).await.unwrap();
    let driven = tokio::spawn(connection);
    let (response, mut up) = tx.send_request(streams::post(), false).unwrap();
    let (mut request, mut respond) = app.next().await;
    let mut down = respond.send_response(http::Response::new(()), false).unwrap();
    let mut response = response.await.unwrap();
    until("it is told", || retired(&both.server, Direction::Inbound) == 1).await;
    sleep(Duration::from_millis(100)).await;
    assert!(std::future::poll_fn(|cx| tx.poll_ready(cx)).await.is_err(), "it takes another stream");
    down.send_data("answer".into(), true).unwrap();
    up.send_data("question".into(), true).unwrap();
    assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "answer");
    assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "question");
    drop((response, request, down, up, tx));
    timeout(LONG, driven).await.expect("it is still open").unwrap().unwrap();
}
