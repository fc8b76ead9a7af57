//! How connections are taken, and how the data path stops.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use weft_engine::reason::Reason;

use super::app::{App, grpc_app};
use super::world::*;
use crate::capture::{Listeners, serve};
use crate::http::attempt::REPLAY_BYTES;
use crate::telemetry::Direction;

#[tokio::test]
async fn a_connection_that_was_not_redirected_is_refused() {
    let any = "127.0.0.1:0".parse().unwrap();
    let listeners = Listeners::bind(any, any, 1).unwrap().remove(0);
    let ends = [listeners.outbound.local_addr().unwrap(), listeners.inbound.local_addr().unwrap()];
    let proxy = World::new().proxy("web", enforces(open_port(false)));
    tokio::spawn(serve(Arc::clone(&proxy), listeners));
    for end in ends {
        let mut client = TcpStream::connect(end).await.unwrap();
        assert!(client.read(&mut [0; 1]).await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
    // Draining closes the inbound side; the outbound one may be needed to the end.
    proxy.drain.begin();
    while TcpStream::connect(ends[1]).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(TcpStream::connect(ends[0]).await.is_ok());
}

#[tokio::test]
async fn calls_in_flight_end_well_and_later_ones_go_elsewhere() {
    // A call is answered when the test says so.
    let (came, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let addr = slow_app(Arc::clone(&came), Arc::clone(&answer)).await;
    let world = World::new();
    let leaving = world.proxy("cart", enforces(open_port(true)));
    let first = inbound_side(&leaving, addr).await;
    let second = inbound_side(&world.proxy("cart", enforces(open_port(true))), grpc_app().await).await;
    let members = vec![endpoint(first, Some("cart"))];
    let own = backend("cart", members);
    let destination = crate::discovery::snapshot::Destination::Service(service(Arc::clone(&own)).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let stream = TcpStream::connect(outbound_side(&proxy, cluster_ip()).await).await.unwrap();
    let (mut tx, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(driver);
    let call = || Request::post("http://shop/a").body(Full::<Bytes>::from("quick")).unwrap();
    let slow = tokio::spawn(tx.send_request(call()));
    came.notified().await;
    leaving.drain.begin();
    // Control has told by now that the endpoint leaves; another has come.
    own.endpoints.store(Arc::new(crate::discovery::snapshot::EndpointSet {
        members: vec![endpoint(second, Some("cart"))],
        ..Default::default()
    }));
    for _ in 0..5 {
        let response = tx.send_request(call()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "quick");
    }
    assert_eq!(leaving.drain.in_flight(), 1);
    answer.notify_one();
    let response = slow.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow");
    leaving.drain.idle().await;
}

#[tokio::test]
async fn while_it_turns_away_requests_of_the_mesh_go_elsewhere() {
    let (app, other) = (App::start("leaving").await, App::start("other").await);
    let world = World::new();
    let leaving = world.proxy("cart", enforces(open_port(false)));
    let far = inbound_side(&leaving, app.addr).await;
    let stays = inbound_side(&world.proxy("cart", enforces(open_port(true))), other.addr).await;
    let (_, alone) = calls_cart(&world, "ann", far).await;
    let mut before = Client::connect(alone).await;
    assert!(before.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await.0.starts_with("HTTP/1.1 200"));
    leaving.drain.turn_away(leaving.clock.now() + Duration::from_hours(1));

    // Each by another sidecar: one that was turned away goes elsewhere first.
    for i in 0..20 {
        let members = vec![endpoint(far, Some("cart")), endpoint(stays, Some("cart"))];
        let destination = crate::discovery::snapshot::Destination::Service(service(backend("cart", members)).into());
        let proxy = world.proxy("web", calls(cluster_ip(), destination));
        let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
        let text = format!("POST /{i} HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody");
        let (head, body) = client.send(&text).await;
        assert!(head.starts_with("HTTP/1.1 200") && body.starts_with("other"), "{head}{body}");
    }
    assert_eq!((app.requests(), other.requests()), (1, 20));
    assert!(leaving.telemetry.refusals(Reason::NotProcessed) > 0, "it was never asked");

    // By a connection of before too; it is said where there is no other.
    let (head, _) = before.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-weft-reason: not_processed"), "{head}");
    // What its client's sidecar cannot keep is served, and so is a client without a sidecar.
    let long = "x".repeat(REPLAY_BYTES + 1);
    let text = format!("POST /a HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n{long}", long.len());
    assert!(before.send(&text).await.0.starts_with("HTTP/1.1 200"));
    let mut plain = Client::connect(far).await;
    let (head, _) = plain.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && !head.to_lowercase().contains("connection: close"), "{head}");
}

#[tokio::test]
async fn calls_that_are_turned_away_go_elsewhere_and_those_in_flight_end() {
    // A call is answered when the test says so.
    let (came, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let slow = slow_app(Arc::clone(&came), Arc::clone(&answer)).await;
    let world = World::new();
    let leaving = world.proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&leaving, slow).await;
    let stays = inbound_side(&world.proxy("cart", enforces(open_port(true))), grpc_app().await).await;
    let client = async |members| {
        let destination = crate::discovery::snapshot::Destination::Service(service(backend("cart", members)).into());
        let proxy = world.proxy("web", calls(cluster_ip(), destination));
        let stream = TcpStream::connect(outbound_side(&proxy, cluster_ip()).await).await.unwrap();
        let (tx, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(driver);
        tx
    };
    let call = || Request::post("http://shop/a").body(Full::<Bytes>::from("quick")).unwrap();
    let mut early = client(vec![endpoint(far, Some("cart"))]).await;
    let slow = tokio::spawn(early.send_request(call()));
    came.notified().await;
    leaving.drain.turn_away(leaving.clock.now() + Duration::from_hours(1));
    // By the connection of before too.
    let refused = early.send_request(call()).await.unwrap();
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["x-weft-reason"]),
        (503, &"not_processed".parse().unwrap())
    );
    for _ in 0..20 {
        let mut tx = client(vec![endpoint(far, Some("cart")), endpoint(stays, Some("cart"))]).await;
        let response = tx.send_request(call()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "quick");
    }
    assert!(leaving.telemetry.refusals(Reason::NotProcessed) > 1, "it was never asked");
    // That one is in hand still.
    while leaving.telemetry.requests_in_flight(Direction::Inbound) != 1 {
        tokio::task::yield_now().await;
    }
    answer.notify_one();
    let response = slow.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow");
}

/// An HTTP/2 application that says when a call has come, and answers it when it is told to.
async fn slow_app(came: Arc<Notify>, answer: Arc<Notify>) -> std::net::SocketAddr {
    listen(move |stream, _| {
        let (tell, wait) = (Arc::clone(&came), Arc::clone(&answer));
        async move {
            let service = hyper::service::service_fn(move |_| {
                let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
                async move {
                    tell.notify_one();
                    wait.notified().await;
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::from("slow")))
                }
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

#[test]
fn a_connection_costs_little_memory() {
    // What an open connection's task holds, its buffers aside. A future that has grown by accident shows here.
    let world = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    world.block_on(async {
        let proxy = World::new().proxy("web", enforces(open_port(false)));
        let pair = || async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (near, _) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            near.unwrap()
        };
        let to = cluster_ip();
        let outbound = crate::capture::outbound::serve(Arc::clone(&proxy), pair().await, to, to);
        let inbound = crate::capture::inbound::serve(Arc::clone(&proxy), Arc::default(), pair().await, to, to);
        let (outbound, inbound) = (size_of_val(&outbound), size_of_val(&inbound));
        assert!(outbound <= 4096 && inbound <= 4096, "{outbound} {inbound}");
    });
}
