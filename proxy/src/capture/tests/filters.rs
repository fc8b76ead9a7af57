//! What a route's filters and retries do, by HTTP/1 and HTTP/2 alike.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_engine::retry::Retry;
use weft_engine::route::{
    Backend as RouteBackend, Cors, Filter, Listed, Mirror, Origin, Origins, PathEdit, Redirect, Rewrite, Route, Rule,
};

use super::app::{App, scripted_app};
use super::world::*;
use crate::Shared;
use crate::discovery::snapshot::Destination;
use crate::telemetry::{Direction, SeriesKey, Tls};

/// A proxy with one rule, and where its application connects.
async fn ruled(rule: Rule, members: &[(&str, SocketAddr)]) -> (Arc<Shared>, SocketAddr) {
    let backends = members.iter().map(|(name, addr)| backend(name, vec![endpoint(*addr, None)])).collect();
    let route = Route { name: "HTTPRoute/shop/r".into(), rules: vec![rule], ..Route::default() };
    let destination = Destination::Service(routed(backend("own", vec![]), backends, route).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let side = outbound_side(&proxy, cluster_ip()).await;
    (proxy, side)
}

fn to(name: &str) -> Vec<RouteBackend> {
    vec![RouteBackend { service: name.into(), weight: 1, ..RouteBackend::default() }]
}

/// Status, head and body of a call by HTTP/2.
async fn call_h2(side: SocketAddr, request: Request<Full<Bytes>>) -> (StatusCode, http::HeaderMap, String) {
    let stream = TcpStream::connect(side).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut tx, driver) = handshake.await.unwrap();
    tokio::spawn(driver);
    let (head, body) = tx.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

/// An HTTP/2 application that answers with `:authority` and path.
async fn named_app() -> SocketAddr {
    listen(|stream, _| async move {
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            let said = format!("{} {}", request.uri(), request.headers().contains_key("host"));
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::from(said)))
        });
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

#[tokio::test]
async fn a_redirect_is_answered_without_any_backend_and_the_connection_goes_on() {
    let redirect = Redirect {
        scheme: None,
        host: Some("example.org".into()),
        port: None,
        path: Some(PathEdit::Prefix { prefix: "/a".into(), with: "/z".into() }),
        status: StatusCode::PERMANENT_REDIRECT,
    };
    let rule = Rule { filters: vec![Filter::Redirect(redirect)], ..Rule::default() };
    let (proxy, side) = ruled(rule, &[]).await;
    let mut client = Client::connect(side).await;
    for body in ["", "body"] {
        let request = format!("POST /a/b?c HTTP/1.1\r\nHost: shop:81\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let (head, _) = client.send(&request).await;
        assert!(head.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{head}");
        assert!(head.contains("location: http://example.org/z/b?c\r\n") && !head.contains("x-weft"), "{head}");
    }
    let request = Request::get("http://shop/a/b?c").body(Full::default()).unwrap();
    let (status, headers, body) = call_h2(side, request).await;
    assert_eq!((status, body.as_str()), (StatusCode::PERMANENT_REDIRECT, ""));
    assert_eq!(headers["location"], "http://example.org/z/b?c");
    // It counts for the service, by both protocols, as soon as what was answered is dropped.
    let key = SeriesKey {
        direction: Direction::Outbound,
        source: proxy.config.workload.to_string().into(),
        destination: "shop/own".into(),
        destination_workload: "".into(),
        tls: Tls::None,
        sni: None,
    };
    let series = proxy.telemetry.request_series(&key);
    let counted = timeout(Duration::from_secs(5), async {
        while series.requests() != [0, 0, 3, 0, 0] {
            tokio::task::yield_now().await;
        }
    });
    counted.await.unwrap();
}

#[tokio::test]
async fn a_rewrite_changes_path_and_host_by_both_protocols() {
    let rewrite = Rewrite {
        host: Some("b.example".parse().unwrap()),
        path: Some(PathEdit::Prefix { prefix: "/a".into(), with: String::new() }),
    };
    let rule = || Rule { filters: vec![Filter::Rewrite(rewrite.clone())], backends: to("app"), ..Rule::default() };
    let app = App::start("app").await;
    let (_proxy, side) = ruled(rule(), &[("app", app.addr)]).await;
    let mut client = Client::connect(side).await;
    let (_, body) = client.send("GET /a/b?c HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(body.starts_with("app GET /b\n") && body.contains("host: b.example\n"), "{body}");
    assert!(!body.contains("shop"), "{body}");
    let (_proxy, side) = ruled(rule(), &[("app", named_app().await)]).await;
    let request = Request::get("http://shop/a?c=d").body(Full::default()).unwrap();
    let (_, _, body) = call_h2(side, request).await;
    assert_eq!(body, "http://b.example/?c=d false");
}

#[tokio::test]
async fn preflights_are_answered_here_and_responses_say_who_may_read_them() {
    let cors = Cors {
        origins: Origins::These(vec![Origin::parse("https://*.shop.example").unwrap()]),
        credentials: true,
        methods: Listed::Any,
        headers: Listed::None,
        expose: Listed::None,
        max_age: 5,
    };
    let rule = |backends| Rule { filters: vec![Filter::Cors(cors.clone())], backends, ..Rule::default() };
    let app = App::start("app").await;
    let (_proxy, side) = ruled(rule(to("app")), &[("app", app.addr)]).await;
    let mut client = Client::connect(side).await;
    let asks = "OPTIONS /a HTTP/1.1\r\nHost: shop\r\nAccess-Control-Request-Method: PUT\r\nOrigin: https://";
    let (head, _) = client.send(&format!("{asks}www.shop.example\r\n\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 204 No Content\r\n") && !head.contains("content-length"), "{head}");
    assert!(head.contains("access-control-allow-origin: https://www.shop.example\r\n"), "{head}");
    assert!(head.contains("access-control-allow-methods: PUT\r\n"), "{head}");
    let (head, _) = client.send(&format!("{asks}evil.example\r\n\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 204 ") && !head.contains("access-control"), "{head}");
    assert_eq!(app.requests(), 0);
    let get = "GET /a HTTP/1.1\r\nHost: shop\r\nOrigin: https://www.shop.example\r\n\r\n";
    let (head, _) = client.send(get).await;
    assert!(head.contains("access-control-allow-credentials: true\r\n") && head.contains("vary: origin"), "{head}");
    let (head, _) = client.send("GET /a HTTP/1.1\r\nHost: shop\r\nOrigin: https://evil.example\r\n\r\n").await;
    assert!(!head.contains("access-control") && head.contains("vary: origin"), "{head}");
    let request = Request::options("http://shop/a")
        .header("origin", "https://www.shop.example")
        .header("access-control-request-method", "PUT");
    let (status, headers, _) = call_h2(side, request.body(Full::default()).unwrap()).await;
    assert_eq!((status, &headers["access-control-max-age"]), (StatusCode::NO_CONTENT, &"5".parse().unwrap()));
    // A script may read why it was refused.
    let (_proxy, side) = ruled(rule(to("app")), &[("app", nobody().await)]).await;
    let (head, _) = Client::connect(side).await.send(get).await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert!(head.contains("access-control-allow-origin: https://www.shop.example\r\n"), "{head}");
}

/// An application that answers so often with a status before it answers 200; and how many requests have come.
async fn failing_app(h2: bool, status: u16, times: usize) -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (seen, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, opened) = (Arc::clone(&seen), Arc::clone(&connections));
    let addr = listen(move |stream, _| {
        opened.fetch_add(1, Ordering::SeqCst);
        let count = Arc::clone(&count);
        async move {
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let fails = count.fetch_add(1, Ordering::SeqCst) % (times + 1) < times;
                async move {
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let status = StatusCode::from_u16(if fails { status } else { 200 }).unwrap();
                    Ok::<_, std::convert::Infallible>(
                        http::Response::builder().status(status).body(Full::new(body)).unwrap(),
                    )
                }
            });
            let _ = if h2 {
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                http.serve_connection(TokioIo::new(stream), service).await
            } else {
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
            };
        }
    })
    .await;
    (addr, seen, connections)
}

fn retrying(attempts: u32, codes: &[u16]) -> Rule {
    let codes = codes.iter().map(|code| StatusCode::from_u16(*code).unwrap()).collect();
    let retry = Retry { attempts, codes, backoff: Duration::from_millis(20) };
    Rule { retry: Some(retry), backends: to("app"), ..Rule::default() }
}

#[tokio::test]
async fn a_listed_status_is_asked_for_again_with_the_same_body() {
    let (addr, seen, connections) = failing_app(false, 500, 2).await;
    let (proxy, side) = ruled(retrying(3, &[500]), &[("app", addr)]).await;
    let mut client = Client::connect(side).await;
    let post = "POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody";
    let begun = std::time::Instant::now();
    let (head, body) = client.send(post).await;
    assert!(head.starts_with("HTTP/1.1 200") && body == "body", "{head}");
    assert!(begun.elapsed() >= Duration::from_millis(20 + 40), "{:?}", begun.elapsed());
    assert_eq!((seen.load(Ordering::SeqCst), connections.load(Ordering::SeqCst)), (3, 1));
    assert_eq!(proxy.telemetry.retries.load(Ordering::Relaxed), 2);
    let (addr, seen, connections) = failing_app(true, 500, 2).await;
    let (_proxy, side) = ruled(retrying(3, &[500]), &[("app", addr)]).await;
    let request = Request::post("http://shop/a").body(Full::from("body")).unwrap();
    let (status, _, body) = call_h2(side, request).await;
    assert_eq!((status.as_u16(), body.as_str(), seen.load(Ordering::SeqCst)), (200, "body", 3));
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // One that is not listed passes, and so does the last of too many.
    for (attempts, codes, sees) in [(3, &[503][..], 1), (1, &[500], 2)] {
        let (addr, seen, _) = failing_app(false, 500, 3).await;
        let (_proxy, side) = ruled(retrying(attempts, codes), &[("app", addr)]).await;
        let (head, body) = Client::connect(side).await.send(post).await;
        assert!(head.starts_with("HTTP/1.1 500") && body == "body", "{head}");
        assert_eq!(seen.load(Ordering::SeqCst), sees);
    }
}

#[tokio::test]
async fn what_may_have_been_processed_is_sent_again_if_that_is_harmless_or_listed() {
    let get = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHost: shop\r\n\r\n";
    for (codes, request, retries) in [(&[][..], get, 3), (&[], post, 0), (&[502], post, 3)] {
        let (proxy, side) = ruled(retrying(3, codes), &[("app", scripted_app("", 1).await)]).await;
        let (head, _) = Client::connect(side).await.send(request).await;
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
        assert_eq!(proxy.telemetry.retries.load(Ordering::Relaxed), retries, "{codes:?} {request}");
    }
}

#[tokio::test]
async fn the_request_timeout_ends_retries_and_the_budget_bounds_them() {
    let (addr, seen, _) = failing_app(false, 503, usize::MAX - 1).await;
    let rule = Rule { request_timeout: Some(Duration::from_millis(50)), ..retrying(20, &[503]) };
    let (_proxy, side) = ruled(rule, &[("app", addr)]).await;
    let (head, _) = Client::connect(side).await.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 504") && seen.load(Ordering::SeqCst) < 4, "{head}");
    // A hundred requests at once that all fail: the budget lets a fifth of what is sent be retries, and ten a second besides.
    let (addr, seen, _) = failing_app(false, 503, usize::MAX - 1).await;
    let mut rule = retrying(5, &[503]);
    rule.retry.iter_mut().for_each(|retry| retry.backoff = Duration::ZERO);
    let (proxy, side) = ruled(rule, &[("app", addr)]).await;
    let mut all = tokio::task::JoinSet::new();
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        all.spawn(async move { Client::connect(side).await.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.0 });
    }
    while let Some(head) = all.join_next().await {
        assert!(head.unwrap().starts_with("HTTP/1.1 503"));
    }
    let most = 100 + 25 + 11 * (2 + usize::try_from(begun.elapsed().as_secs()).unwrap());
    assert!(seen.load(Ordering::SeqCst) <= most, "{} of {most}", seen.load(Ordering::SeqCst));
    assert!(proxy.telemetry.bound_hits("retry_budget") > 0);
}

fn mirrored(service: &str) -> Filter {
    Filter::Mirror(Mirror { service: service.into(), numerator: 1, denominator: 1, invalid: None })
}

/// Waits until so many copies were answered, have failed, or were dropped.
async fn copies(proxy: &Arc<Shared>, wanted: [u64; 3]) {
    let mirrors = &proxy.telemetry.mirrors;
    let told = || [&mirrors.answered, &mirrors.failed, &mirrors.dropped].map(|count| count.load(Ordering::SeqCst));
    let waited = timeout(Duration::from_secs(20), async {
        while told() != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{:?} wanted {wanted:?}", told());
}

#[tokio::test]
async fn copies_go_to_every_mirror_and_their_answers_nowhere() {
    let (app, copy) = (App::start("app").await, App::start("copy").await);
    let dead = nobody().await;
    let filters = vec![mirrored("copy"), mirrored("copy"), mirrored("dead"), mirrored("unknown")];
    let rule = Rule { filters, backends: to("app"), ..Rule::default() };
    let (proxy, side) = ruled(rule, &[("app", app.addr), ("copy", copy.addr), ("dead", dead)]).await;
    let mut client = Client::connect(side).await;
    for sent in 1..=3 {
        let (head, body) = client.send("POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody").await;
        assert!(head.contains("x-app: app\r\n") && body.ends_with("body"), "{head}");
        copies(&proxy, [2 * sent, sent, 0]).await;
    }
    let chunked = "POST /a HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    assert!(client.send(chunked).await.1.ends_with("body"));
    copies(&proxy, [8, 4, 0]).await;
    assert_eq!((app.requests(), copy.requests()), (4, 8));
    assert!(copy.connections() < 8, "a copy's connection is used again");
    // Of what is too long to be kept there is no copy, and the request is none the worse.
    let body = "x".repeat(100 << 10);
    let long = format!("POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    assert!(client.send(&long).await.1.ends_with(&body));
    copies(&proxy, [8, 4, 3]).await;
}

#[tokio::test]
async fn a_copy_delays_nothing_and_goes_by_http2_too() {
    // Reads and never answers.
    let silent = listen(|mut stream, _| async move {
        let mut seen = [0; 1024];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut seen).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let app = App::start("app").await;
    let rule = |name| Rule { filters: vec![mirrored(name)], backends: to("app"), ..Rule::default() };
    let (_proxy, side) = ruled(rule("silent"), &[("app", app.addr), ("silent", silent)]).await;
    let begun = std::time::Instant::now();
    let (head, _) = Client::connect(side).await.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && begun.elapsed() < Duration::from_secs(10), "{head}");
    let (app, seen, _) = failing_app(true, 500, 0).await;
    let (copy, copied, connections) = failing_app(true, 500, 1).await;
    let (proxy, side) = ruled(rule("copy"), &[("app", app), ("copy", copy)]).await;
    for (sent, body) in [(1, String::new()), (2, "body".to_owned()), (3, "y".repeat(40 << 10))] {
        let request = Request::post("http://shop/a").body(Full::from(body.clone())).unwrap();
        let (status, _, got) = call_h2(side, request).await;
        assert_eq!((status.as_u16(), got == body), (200, true));
        copies(&proxy, [sent, 0, 0]).await;
    }
    assert_eq!((seen.load(Ordering::SeqCst), copied.load(Ordering::SeqCst)), (3, 3));
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}
