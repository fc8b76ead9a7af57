//! HTTP/2 through both sides.

pub mod streams;

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::app::grpc_app;
use super::world::*;
use crate::discovery::snapshot::Destination;

async fn client(addr: std::net::SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (tx, driver) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(driver);
    tx
}

fn call(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://shop/shop.Cart/Add")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body.into()))
        .unwrap()
}

#[tokio::test]
async fn calls_share_one_connection_and_trailers_pass() {
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&server, grpc_app().await).await;
    let target = endpoint(far, Some("cart"));
    let destination = Destination::Service(service(backend("cart", vec![Arc::clone(&target)])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let tx = client(outbound_side(&proxy, cluster_ip()).await).await;
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut tx = tx.clone();
        all.spawn(async move {
            let response = tx.send_request(call("message")).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(body.to_bytes(), "message");
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    assert_eq!(target.state.pools.mine().shared_connections(), 1);
}

#[tokio::test]
async fn more_calls_than_streams_open_another_connection() {
    // Each call waits until all have come.
    let arrived = Arc::new(tokio::sync::Semaphore::new(0));
    let seen = Arc::clone(&arrived);
    let addr = listen(move |stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let seen = Arc::clone(&seen);
                async move {
                    if request.uri().path() != "/warm" {
                        seen.add_permits(1);
                        let _all = seen.acquire_many(12).await.unwrap();
                    }
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::default()))
                }
            });
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = http.max_concurrent_streams(4).serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await;
    let target = endpoint(addr, None);
    let destination = Destination::Service(service(backend("a", vec![Arc::clone(&target)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut tx = client(outbound_side(&proxy, cluster_ip()).await).await;
    // After two whole exchanges the pool knows the server's limit.
    for _ in 0..2 {
        let warm = Request::get("http://shop/warm").body(Full::default()).unwrap();
        tx.send_request(warm).await.unwrap().into_body().collect().await.unwrap();
    }
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..12 {
        all.spawn(tx.send_request(call("")));
    }
    while let Some(done) = all.join_next().await {
        assert_eq!(done.unwrap().unwrap().status(), 200);
    }
    assert!(target.state.pools.mine().shared_connections() >= 2, "{}", target.state.pools.mine().shared_connections());
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_call() {
    let app = grpc_app().await;
    let members = vec![endpoint(nobody().await, None), endpoint(app, None)];
    let destination = Destination::Service(service(backend("a", members)).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut tx = client(outbound_side(&proxy, cluster_ip()).await).await;
    for _ in 0..20 {
        let response = tx.send_request(call("message")).await.unwrap();
        assert!(!response.headers().contains_key("x-weft-reason"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "message");
    }
}
