//! What a connection costs while nothing happens on it, besides its socket: thousands of them are idle in a pod.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};

use super::world::*;
use crate::capture::inbound::{Applications, serve as serve_inbound};
use crate::capture::outbound::serve as serve_outbound;
use crate::detect::{Downstream, Prefixed};
use crate::discovery::snapshot::Snapshot;
use crate::http::h1::serve::serve as serve_h1;
use crate::http::serve::serve;
use crate::http::session::Session;
use crate::tcp::relay::relay;
use crate::upstream::{Speak, Stream};

#[tokio::test]
async fn an_idle_connection_is_small() {
    let shared = World::new().proxy("web", Snapshot::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stream = async || TcpStream::connect(addr).await.unwrap();
    let session = Session {
        shared: Arc::clone(&shared),
        speak: Speak::H1,
        client: addr,
        destination: addr,
        inbound: None,
        ends: None,
    };
    let session_size = size_of_val(&session);
    let again = Session { shared: Arc::clone(&shared), inbound: None, ..session };
    let io = Downstream::Plain(Prefixed::new(stream().await));
    let http = size_of_val(&serve_h1(Arc::new(again), io));
    let again = Session { shared: Arc::clone(&shared), inbound: None, ..session };
    let served = size_of_val(&serve(Arc::new(again), Downstream::Plain(Prefixed::new(stream().await))));
    let outbound = size_of_val(&serve_outbound(Arc::clone(&shared), stream().await, addr, addr));
    let inbound =
        size_of_val(&serve_inbound(Arc::clone(&shared), Arc::<Applications>::default(), stream().await, addr, addr));
    let (mut near, mut far) = (Prefixed::new(stream().await), Prefixed::new(Stream::Plain(stream().await)));
    let opaque = size_of_val(&relay(&mut near, &mut far));
    // With the task's header, the idle timer and the permit below 2 KiB.
    assert!(http < 700, "HTTP/1: {http}");
    assert!(outbound + session_size < 1280, "outbound: {outbound}");
    assert!(inbound + served + session_size < 1280, "inbound: {inbound} + {served} + {session_size}");
    assert!(opaque < 512, "relay: {opaque}");
}
