//! Opaque bytes through both sides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_engine::authz::PolicySet;

use super::app::greeting_app;
use super::world::*;
use crate::Shared;
use crate::detect::{HESITATION, SILENCE};
use crate::discovery::snapshot::{Destination, EndpointSet, InboundPort, Snapshot};

async fn conversation(side: SocketAddr) -> String {
    let mut client = Client::connect(side).await.0;
    // The server speaks first.
    let mut hello = [0; 6];
    client.read_exact(&mut hello).await.unwrap();
    client.write_all(b"words").await.unwrap();
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    String::from_utf8_lossy(&hello).into_owned() + &rest
}

#[tokio::test]
async fn a_server_that_speaks_first_and_half_closes_pass_both_sides() {
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&server, greeting_app().await).await;
    let members = vec![endpoint(nobody().await, Some("cart")), endpoint(far, Some("cart"))];
    let destination = Destination::Service(service(backend("cart", members)).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let side = outbound_side(&proxy, cluster_ip()).await;
    for _ in 0..3 {
        assert_eq!(conversation(side).await, "hello words bye");
    }
}

#[tokio::test]
async fn what_is_outside_of_the_mesh_passes_as_it_is() {
    let app = greeting_app().await;
    let proxy = World::new().proxy("web", calls(cluster_ip(), Destination::Outside));
    assert_eq!(conversation(outbound_side(&proxy, app).await).await, "hello words bye");
}

#[tokio::test]
async fn a_withdrawn_permission_ends_the_connection() {
    let server = World::new().proxy("cart", enforces(open_port(false)));
    let echo = listen(|mut stream, _| async move {
        let mut bytes = [0; 16];
        while let Ok(n @ 1..) = stream.read(&mut bytes).await {
            stream.write_all(&bytes[..n]).await.unwrap();
        }
    })
    .await;
    let mut client = Client::connect(inbound_side(&server, echo).await).await.0;
    let mut heard = [0; 4];
    client.write_all(b"ping").await.unwrap();
    client.read_exact(&mut heard).await.unwrap();
    let closed = InboundPort { policies: PolicySet::new(vec![], true), ..open_port(false) };
    crate::testing::replace(&server, enforces(closed));
    client.write_all(b"ping").await.unwrap();
    assert!(client.read_exact(&mut heard).await.is_err());
}

#[tokio::test]
async fn a_client_that_connects_long_before_it_speaks_is_recognised_all_the_same() {
    let app = super::app::App::start("cart").await;
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(false)));
    let far = inbound_side(&server, app.addr).await;
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    for side in [outbound_side(&proxy, cluster_ip()).await, far] {
        let mut client = Client::connect(side).await;
        let before = app.connections();
        // The connection that was made in case the server spoke first tells that the silence has been noticed.
        while app.connections() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (head, body) = client.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        // Told by a header that only the HTTP way sets.
        assert!(body.contains("x-forwarded-for: 127.0.0.1\n"), "{body}");
    }
}

/// The shortest of some connections from beginning to greeting: what a busy machine adds is not what is measured.
async fn greeted_within(tries: usize, mut side: impl AsyncFnMut() -> SocketAddr) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..tries {
        let side = side().await;
        let begun = Instant::now();
        let mut client = Client::connect(side).await.0;
        client.read_exact(&mut [0; 6]).await.unwrap();
        best = best.min(begun.elapsed());
    }
    best
}

#[tokio::test]
async fn nobody_waits_for_detection() {
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(false)));
    let far = inbound_side(&server, greeting_app().await).await;
    let destination = || Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    // A destination that nobody has called yet, then one that is known.
    let first = greeted_within(8, async || {
        outbound_side(&world.proxy("web", calls(cluster_ip(), destination())), cluster_ip()).await
    })
    .await;
    assert!(HESITATION < first && first < SILENCE, "{first:?}");
    let side = outbound_side(&world.proxy("web", calls(cluster_ip(), destination())), cluster_ip()).await;
    greeted_within(1, async || side).await;
    let then = greeted_within(8, async || side).await;
    assert!(then < HESITATION, "{then:?}");
}

#[tokio::test]
async fn while_a_destination_is_looked_up_its_client_could_have_spoken() {
    let world = World::new();
    let app = greeting_app().await;
    let mut best = Duration::MAX;
    for _ in 0..8 {
        let extent = vec!["10.96.0.0/16".parse().unwrap()];
        let proxy = world.proxy("web", Snapshot { extent, ..Snapshot::default() });
        let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await.0;
        tokio::time::sleep(HESITATION * 2).await;
        let destination = Destination::Service(service(backend("cart", vec![endpoint(app, None)])).into());
        crate::testing::replace(&proxy, calls(cluster_ip(), destination));
        let answered = Instant::now();
        client.read_exact(&mut [0; 6]).await.unwrap();
        best = best.min(answered.elapsed());
    }
    assert!(best < HESITATION, "{best:?}");
}

#[tokio::test]
async fn what_was_learnt_of_a_destination_may_be_wrong() {
    let app = super::app::App::start("cart").await;
    let (opaque, http) = (greeting_app().await, app.addr);
    let proxy = World::new().proxy("web", Snapshot::default());
    let own = backend("cart", vec![endpoint(opaque, None)]);
    crate::testing::replace(&proxy, calls(cluster_ip(), Destination::Service(service(Arc::clone(&own)).into())));
    let side = outbound_side(&proxy, cluster_ip()).await;
    for _ in 0..2 {
        own.endpoints.store(Arc::new(EndpointSet { members: vec![endpoint(opaque, None)], ..EndpointSet::default() }));
        for _ in 0..2 {
            assert_eq!(conversation(side).await, "hello words bye");
        }
        own.endpoints.store(Arc::new(EndpointSet { members: vec![endpoint(http, None)], ..EndpointSet::default() }));
        for _ in 0..2 {
            let (head, _) = Client::connect(side).await.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
    }
}

#[tokio::test]
async fn opaque_words_that_come_late_go_by_the_connection_that_is_open() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let echo = listen(move |mut stream, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    })
    .await;
    let destination = Destination::Service(service(backend("redis", vec![endpoint(echo, None)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let side = outbound_side(&proxy, cluster_ip()).await;
    for open in 1..4 {
        let mut client = Client::connect(side).await.0;
        while connections.load(Ordering::SeqCst) < open {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.write_all(b"PING\r\n").await.unwrap();
        client.read_exact(&mut [0; 6]).await.unwrap();
        assert_eq!(connections.load(Ordering::SeqCst), open);
    }
}

/// A sidecar whose ClientHello comes late; what the application says first.
async fn late_sidecar(proxy: &Shared, side: SocketAddr, late: Duration) -> std::io::Result<String> {
    let stream = TcpStream::connect(side).await?;
    tokio::time::sleep(late).await;
    let config = Arc::clone(&proxy.identity.current().unwrap().client_tcp);
    let name = rustls::pki_types::ServerName::from(side.ip());
    let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
    let mut hello = [0; 6];
    tls.read_exact(&mut hello).await?;
    Ok(String::from_utf8_lossy(&hello).into_owned())
}

#[tokio::test]
async fn a_permissive_port_that_speaks_first_serves_meshed_and_plain_clients() {
    let world = World::new();
    let app = greeting_app().await;
    let web = world.proxy("web", Snapshot::default());
    let source = |account| {
        let peer = Destination::Endpoint(endpoint(SocketAddr::new(app.ip(), 9), account));
        Snapshot { inbound: enforces(open_port(false)).inbound, ..calls(SocketAddr::new(app.ip(), app.port()), peer) }
    };
    let ms = Duration::from_millis;
    // Nobody knows the client's address.
    let server = world.proxy("cart", enforces(open_port(false)));
    let side = inbound_side(&server, app).await;
    for late in [0, 5, 30, 60, 80] {
        assert_eq!(late_sidecar(&web, side, ms(late)).await.unwrap(), "hello ", "{late} ms late");
    }
    assert_eq!(conversation(side).await, "hello words bye");
    assert!(late_sidecar(&web, side, ms(500)).await.is_err(), "taken for a plain client");
    // Control knows it as meshed. A plain client at a meshed address is served too.
    let server = world.proxy("cart", source(Some("web")));
    let side = inbound_side(&server, app).await;
    for late in [0, 80, 500] {
        assert_eq!(late_sidecar(&web, side, ms(late)).await.unwrap(), "hello ", "{late} ms late");
    }
    assert_eq!(conversation(side).await, "hello words bye");
    // Control knows it as none of the mesh: it does not wait, at all once the application has been heard to speak first.
    let side = inbound_side(&world.proxy("cart", source(None)), app).await;
    let greeted = greeted_within(1, async || side).await;
    assert!(greeted > HESITATION, "{greeted:?}");
    let greeted = greeted_within(8, async || side).await;
    assert!(greeted < HESITATION, "{greeted:?}");
}

#[tokio::test]
async fn what_was_learnt_of_an_application_may_be_wrong() {
    let app = super::app::App::start("cart").await;
    let (greets, http) = (greeting_app().await, app.addr);
    // One port that is now this application, now that.
    let now = Arc::new(parking_lot::Mutex::new(greets));
    let which = Arc::clone(&now);
    let port = listen(move |mut stream, _| {
        let to = *which.lock();
        async move {
            let mut server = TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
        }
    })
    .await;
    let peer = Destination::Endpoint(endpoint(SocketAddr::new(port.ip(), 9), None));
    let tables = Snapshot { inbound: enforces(open_port(false)).inbound, ..calls(port, peer) };
    let side = inbound_side(&World::new().proxy("cart", tables), port).await;
    for _ in 0..2 {
        *now.lock() = greets;
        for _ in 0..2 {
            assert_eq!(conversation(side).await, "hello words bye");
        }
        *now.lock() = http;
        for _ in 0..2 {
            let (head, body) = Client::connect(side).await.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            // Told by a header that only the HTTP way sets.
            assert!(body.contains("x-forwarded-for: 127.0.0.1\n"), "{body}");
        }
    }
}

#[tokio::test]
async fn who_may_not_call_a_server_that_speaks_first_hears_nothing_of_it() {
    let world = World::new();
    let app = greeting_app().await;
    let denied = || InboundPort { policies: PolicySet::new(vec![], true), ..open_port(false) };
    let server = world.proxy("cart", enforces(denied()));
    let side = inbound_side(&server, app).await;
    assert!(late_sidecar(&world.proxy("web", Snapshot::default()), side, Duration::ZERO).await.is_err());
    for words in [&b""[..], b"PING\r\n"] {
        let mut client = Client::connect(side).await.0;
        client.write_all(words).await.unwrap();
        let mut heard = Vec::new();
        let ended = client.read_to_end(&mut heard).await;
        assert_eq!(heard, b"", "{ended:?}");
    }
}

/// A connection through both sides, and the application's end of it.
async fn through_both(world: &World) -> (TcpStream, TcpStream) {
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let app = listen(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            let _ = stream.write_all(b"hello ").await;
            let _ = tell.send(stream).await;
        }
    })
    .await;
    let server = world.proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&server, app).await;
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let mut client = TcpStream::connect(outbound_side(&proxy, cluster_ip()).await).await.unwrap();
    client.read_exact(&mut [0; 6]).await.unwrap();
    (client, told.recv().await.unwrap())
}

#[tokio::test]
async fn a_reset_is_a_reset_and_an_end_is_an_end_at_the_other_end_of_the_mesh() {
    let world = World::new();
    for from_client in [true, false] {
        let ends = async || {
            let (client, server) = through_both(&world).await;
            if from_client { (client, server) } else { (server, client) }
        };
        let (near, mut far) = ends().await;
        crate::tcp::reset_on_close(&near);
        drop(near);
        let heard = far.read(&mut [0; 1]).await;
        assert_eq!(heard.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "from the client: {from_client}");
        // An end in order is none.
        let (mut near, mut far) = ends().await;
        near.write_all(b"last words").await.unwrap();
        near.shutdown().await.unwrap();
        let mut words = String::new();
        far.read_to_string(&mut words).await.unwrap();
        assert_eq!(words, "last words");
        far.write_all(b"heard").await.unwrap();
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "heard");
    }
}

#[tokio::test]
async fn a_dead_peer_is_noticed_on_every_connection_to_another_pod() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    for application in [false, true] {
        let stream = crate::upstream::connect::dial(addr, None, application).await.unwrap();
        let socket = socket2::SockRef::from(&stream);
        let expected = (!application).then_some(crate::upstream::connect::USER_TIMEOUT);
        assert_eq!(socket.tcp_user_timeout().unwrap(), expected);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
    }
}
