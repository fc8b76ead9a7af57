//! HTTP/1 on its way out.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_engine::route::{Backend as RouteBackend, Filter, HeaderEdit, Route, Rule};

use super::app::{App, scripted_app};
use super::http2::streams;
use super::world::*;
use crate::discovery::snapshot::Destination;

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: shop\r\n\r\n";

fn rule(backends: &[(&str, u32)]) -> Rule {
    let backend = |(name, weight): &(&str, u32)| RouteBackend {
        service: (*name).into(),
        weight: *weight,
        ..RouteBackend::default()
    };
    Rule { backends: backends.iter().map(backend).collect(), ..Rule::default() }
}

fn route(rule: Rule) -> Route {
    Route { name: "HTTPRoute/shop/r".into(), rules: vec![rule], ..Route::default() }
}

#[tokio::test]
async fn requests_share_a_connection_and_pass_unchanged() {
    let app = App::start("a").await;
    let destination = Destination::Service(service(backend("a", vec![endpoint(app.addr, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    for _ in 0..3 {
        let (head, body) =
            client.send("POST /x HTTP/1.1\r\nHost: shop\r\nX-CaSe: 1\r\nContent-Length: 4\r\n\r\nbody").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        // From outside of the mesh a reason code is nobody's word.
        assert!(!head.contains("x-weft-reason"), "{head}");
        assert!(body.starts_with("a POST /x\n") && body.ends_with("body"), "{body}");
    }
    assert_eq!((app.connections(), app.requests()), (1, 3));
    // Another client of the same proxy uses the same connection.
    drop(client);
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    assert!(client.send(GET).await.1.starts_with("a GET /a\n"));
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn the_case_of_header_fields_is_kept() {
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(String::new()));
    let keep = std::sync::Arc::clone(&seen);
    let addr = listen(move |mut stream, _| {
        let keep = std::sync::Arc::clone(&keep);
        async move {
            let mut bytes = vec![0; 4096];
            let n = stream.read(&mut bytes).await.unwrap();
            *keep.lock() = String::from_utf8_lossy(&bytes[..n]).into_owned();
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-OwN: 1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let destination = Destination::Service(service(backend("a", vec![endpoint(addr, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    let (head, _) = client.send("GET / HTTP/1.1\r\nHost: shop\r\nX-CaSe: 1\r\n\r\n").await;
    assert!(head.contains("X-OwN: 1"), "{head}");
    assert!(seen.lock().contains("X-CaSe: 1"), "{}", seen.lock());
}

#[tokio::test]
async fn a_connection_that_the_server_ends_after_each_response_costs_nothing() {
    // It never says `Connection: close`: the pool learns of the end when it looks.
    let addr = scripted_app("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1).await;
    let destination = Destination::Service(service(backend("a", vec![endpoint(addr, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    for _ in 0..20 {
        let (head, body) = client.send(GET).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(body, "ok");
    }
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_of_any_method() {
    let app = App::start("a").await;
    let members = vec![endpoint(nobody().await, None), endpoint(app.addr, None), endpoint(nobody().await, None)];
    let destination = Destination::Service(service(backend("a", members)).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    for i in 0..30 {
        let text = format!("POST /{i} HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody");
        let (head, body) = client.send(&text).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(body.ends_with("body"), "{body}");
    }
    assert_eq!(app.requests(), 30);
}

#[tokio::test]
async fn a_get_without_an_answer_goes_to_another_endpoint_and_a_post_does_not() {
    // One endpoint reads the request and ends; the other answers.
    let broken = scripted_app("", 1).await;
    let app = App::start("a").await;
    let members = vec![endpoint(broken, None), endpoint(app.addr, None)];
    let destination = Destination::Service(service(backend("a", members)).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    for _ in 0..10 {
        assert!(client.send(GET).await.0.starts_with("HTTP/1.1 200"));
    }
    let only = Destination::Service(service(backend("a", vec![endpoint(broken, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), only));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    let (head, _) = client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert!(head.contains("x-weft-reason: upstream_reset"), "{head}");
}

#[tokio::test]
async fn routes_choose_the_backend_and_edit_the_heads() {
    let (one, two) = (App::start("one").await, App::start("two").await);
    let own = backend("own", vec![]);
    let backends = vec![backend("one", vec![endpoint(one.addr, None)]), backend("two", vec![endpoint(two.addr, None)])];
    let edit = HeaderEdit { set: vec![("x-set".parse().unwrap(), "1".parse().unwrap())], ..HeaderEdit::default() };
    let filters = vec![Filter::RequestHeaders(edit.clone()), Filter::ResponseHeaders(edit)];
    let rule = Rule { filters, ..rule(&[("one", 0), ("two", 1)]) };
    let destination = Destination::Service(routed(own, backends, route(rule)).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    let (head, body) = client.send(GET).await;
    assert!(head.contains("x-set: 1"), "{head}");
    assert!(body.starts_with("two GET /a\n") && body.contains("x-set: 1"), "{body}");
    assert_eq!(one.requests(), 0);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_504() {
    let addr = listen(|mut stream, _| async move {
        let mut seen = [0; 1024];
        // Reads and never answers.
        while stream.read(&mut seen).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let rule = Rule { request_timeout: Some(Duration::from_millis(50)), ..rule(&[("slow", 1)]) };
    let destination =
        routed(backend("own", vec![]), vec![backend("slow", vec![endpoint(addr, None)])], route(rule)).into();
    let proxy = World::new().proxy("web", calls(cluster_ip(), Destination::Service(destination)));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    let (head, body) = client.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 504") && head.contains("x-weft-reason: request_timeout"), "{head}");
    assert!(body.ends_with(".\n"), "{body}");
}

#[tokio::test]
async fn a_response_that_takes_longer_than_its_attempt_may_breaks_off() {
    let destination = |addr, limit, whole| {
        let rule = Rule { backend_request_timeout: limit, request_timeout: whole, ..rule(&[("slow", 1)]) };
        routed(backend("own", vec![]), vec![backend("slow", vec![endpoint(addr, None)])], route(rule))
    };
    let (short, long) = (Some(Duration::from_millis(50)), Some(Duration::from_mins(10)));
    // HTTP/1: its head comes at once, and half of its body.
    let addr = listen(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        let _ = stream.read(&mut [0; 1024]).await;
    })
    .await;
    for whole in [None, long] {
        let calls = calls(cluster_ip(), Destination::Service(destination(addr, short, whole).into()));
        let proxy = World::new().proxy("web", calls);
        let mut client = TcpStream::connect(outbound_side(&proxy, cluster_ip()).await).await.unwrap();
        client.write_all(GET.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap_err();
        assert!(all.ends_with(b"half"), "{}", all.escape_ascii());
    }
    // HTTP/2: the same.
    let mut app = streams::App::start(false).await;
    let calls = calls(cluster_ip(), Destination::Service(destination(app.addr, short, None).into()));
    let proxy = World::new().proxy("web", calls);
    let mut tx = streams::client(outbound_side(&proxy, cluster_ip()).await, 65_535).await;
    let (response, _body) = tx.send_request(streams::post(), true).unwrap();
    let (_request, mut respond) = app.next().await;
    let mut body = respond.send_response(http::Response::new(()), false).unwrap();
    body.send_data("half".into(), false).unwrap();
    assert_eq!(streams::reset_of(response.await.unwrap().body_mut()).await, h2::Reason::CANCEL);
    // The application learns of it.
    std::future::poll_fn(|cx| body.poll_reset(cx)).await.unwrap();
}

#[tokio::test]
async fn nothing_to_go_to_is_said() {
    let destination = Destination::Service(service(backend("a", vec![])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let side = outbound_side(&proxy, cluster_ip()).await;
    let (head, _) = Client::connect(side).await.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-weft-reason: no_endpoints"), "{head}");
    let grpc = "POST /x HTTP/1.1\r\nHost: shop\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    let (head, _) = Client::connect(side).await.send(grpc).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("grpc-status: 14"), "{head}");
}

#[tokio::test]
async fn a_head_with_two_meanings_is_refused_before_it_is_parsed() {
    let app = App::start("a").await;
    let destination = Destination::Service(service(backend("a", vec![endpoint(app.addr, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let side = outbound_side(&proxy, cluster_ip()).await;
    let smuggling = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let (head, _) = Client::connect(side).await.send(smuggling).await;
    assert!(head.starts_with("HTTP/1.1 400") && head.contains("x-weft-reason: malformed_request"), "{head}");
    let mut client = Client::connect(side).await;
    client.send(GET).await;
    let (head, _) = client.send("GET / HTTP/1.1\r\nHost: shop\r\nHost: other\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn a_head_in_pieces_is_recognised() {
    let app = App::start("a").await;
    let destination = Destination::Service(service(backend("a", vec![endpoint(app.addr, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    for piece in ["G", "ET /a HT", "TP/1.1\r\nHo", "st: shop\r\n"] {
        client.0.write_all(piece.as_bytes()).await.unwrap();
        // Lets the proxy read each piece by itself.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    let (_, body) = client.send("\r\n").await;
    assert!(body.starts_with("a GET /a\n"), "{body}");
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it() {
    let app = App::start("a").await;
    let destination = Destination::Service(service(backend("a", vec![endpoint(app.addr, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    let head = "POST / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
    let (head, _) = client.send(head).await;
    assert!(head.starts_with("HTTP/1.1 100"), "{head}");
    let (head, body) = client.send("body").await;
    assert!(head.starts_with("HTTP/1.1 200") && body.ends_with("body"), "{head}{body}");
}
