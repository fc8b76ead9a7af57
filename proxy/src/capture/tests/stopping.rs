//! How connections are taken, and how the data path stops.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::app::grpc_app;
use super::world::*;
use crate::capture::{Listeners, serve};

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
    let (tell, wait) = (Arc::clone(&came), Arc::clone(&answer));
    let addr = listen(move |stream, _| {
        let (tell, wait) = (Arc::clone(&tell), Arc::clone(&wait));
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
    .await;
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
