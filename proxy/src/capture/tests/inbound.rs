//! Through both sides: identity, authorization, limits, and what the application learns.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_engine::authz::{self, Action, Pattern, Policy, PolicySet};
use weft_engine::ratelimit::{Key, Limiter, Rate};

use super::app::App;
use super::world::*;
use crate::Shared;
use crate::capture::inbound::{Applications, serve as serve_inbound};
use crate::discovery::snapshot::{Destination, InboundPort, Limit};

const GET: &str = "GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";

/// A client pod `web` whose calls go to one pod behind `port`; answers its outbound side, and the server's proxy.
async fn mesh(port: InboundPort, application: SocketAddr) -> (SocketAddr, Arc<Shared>) {
    let world = World::new();
    let server = world.proxy("cart", enforces(port));
    let far = inbound_side(&server, application).await;
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    (outbound_side(&proxy, cluster_ip()).await, server)
}

fn policy(action: Action, methods: &[&str], paths: &[&str]) -> PolicySet {
    let from = authz::From {
        identities: vec![Pattern::parse("spiffe://cluster.local/ns/shop/sa/web")],
        namespaces: vec![],
        trust_domain: None,
    };
    let to = authz::To {
        methods: methods.iter().map(|method| (*method).into()).collect(),
        paths: paths.iter().map(|path| Pattern::parse(path)).collect(),
    };
    let to = if methods.is_empty() && paths.is_empty() { vec![] } else { vec![to] };
    let rule = authz::Rule { source: "p.yaml:1".into(), from: vec![from], to };
    let name = "AuthorizationPolicy/shop/p".into();
    PolicySet::new(vec![Policy { name, source: "p.yaml:1".into(), action, rules: vec![rule], broken: None }], false)
}

#[tokio::test]
async fn the_application_learns_who_calls_from_us_alone() {
    let app = App::start("cart").await;
    let (side, _) = mesh(open_port(true), app.addr).await;
    let mut client = Client::connect(side).await;
    let forged = "GET /a HTTP/1.1\r\nHost: shop\r\nX-Forwarded-Client-Cert: URI=spiffe://x\r\nX-Weft-Reason: y\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    let (head, body) = client.send(forged).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let by = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/shop/sa/cart;URI=spiffe://cluster.local/ns/shop/sa/web\n";
    assert!(body.contains(by) && body.contains("x-forwarded-for: 9.9.9.9, 127.0.0.1\n"), "{body}");
    assert!(!body.contains("spiffe://x") && !body.contains("x-weft"), "{body}");
    // Nor does the application speak for the mesh.
    assert!(!head.contains("x-weft-reason"), "{head}");
    for _ in 0..5 {
        client.send(GET).await;
    }
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn policies_decide_each_request() {
    let app = App::start("cart").await;
    let port = InboundPort { policies: policy(Action::Allow, &["GET"], &["/a*"]), ..open_port(true) };
    let (side, server) = mesh(port, app.addr).await;
    let mut client = Client::connect(side).await;
    assert!(client.send(GET).await.0.starts_with("HTTP/1.1 200"));
    let (head, body) = client.send("GET /b HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403") && head.contains("x-weft-reason: not_allowed"), "{head}");
    assert!(body.ends_with(".\n"), "{body}");
    let (head, _) = client.send("DELETE /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    // A change applies to the next request on the same connection.
    crate::testing::replace(
        &server,
        enforces(InboundPort { policies: policy(Action::Deny, &[], &[]), ..open_port(true) }),
    );
    let (head, _) = client.send(GET).await;
    assert!(head.contains("x-weft-reason: denied_by_policy"), "{head}");
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn limits_say_when_to_come_again() {
    let app = App::start("cart").await;
    let rate = Rate { requests: 1, per: Duration::from_mins(1), burst: 2 };
    let limiter = Limiter::new("few", rate, Key::ClientIdentity, vec![]);
    let limits = vec![Arc::new(Limit { name: "RateLimitPolicy/shop/p/few".into(), limiter })];
    let (side, _) = mesh(InboundPort { limits, ..open_port(true) }, app.addr).await;
    let mut client = Client::connect(side).await;
    let mut limited = 0;
    for _ in 0..6 {
        let (head, _) = client.send(GET).await;
        if head.starts_with("HTTP/1.1 429") {
            limited += 1;
            assert!(head.contains("retry-after: ") && head.contains("x-weft-reason: rate_limited"), "{head}");
            assert!(head.contains("ratelimit-policy: \"few\";q=1;w=60"), "{head}");
            assert!(head.contains("ratelimit: \"few\";r=0;t="), "{head}");
        }
    }
    assert!(limited >= 3, "{limited}");
    assert_eq!(app.requests(), 6 - limited);
}

#[tokio::test]
async fn a_strict_port_takes_nothing_in_the_clear() {
    let app = App::start("cart").await;
    let server = World::new().proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&server, app.addr).await;
    let (head, _) = Client::connect(far).await.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 403") && !head.contains("x-weft-reason"), "{head}");
    let mut opaque = Client::connect(far).await.0;
    opaque.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
    assert_eq!(opaque.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn a_permissive_port_takes_both() {
    let app = App::start("cart").await;
    let server = World::new().proxy("cart", enforces(open_port(false)));
    let far = inbound_side(&server, app.addr).await;
    let (head, body) = Client::connect(far).await.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!body.contains("x-forwarded-client-cert"), "{body}");
}

#[tokio::test]
async fn a_server_that_is_somebody_else_gets_no_byte() {
    let app = App::start("cart").await;
    let world = World::new();
    let server = world.proxy("impostor", enforces(open_port(true)));
    let far = inbound_side(&server, app.addr).await;
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let (head, _) = Client::connect(outbound_side(&proxy, cluster_ip()).await).await.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-weft-reason: identity_mismatch"), "{head}");
    // Nor does a server that is no sidecar at all: control says it is one.
    let destination = Destination::Service(service(backend("cart", vec![endpoint(app.addr, Some("cart"))])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let (head, _) = Client::connect(outbound_side(&proxy, cluster_ip()).await).await.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn a_sidecar_that_took_us_for_a_silent_client_is_called_again() {
    let app = App::start("cart").await;
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(false)));
    let calls_so_far = Arc::new(AtomicUsize::new(0));
    let (count, applications) = (Arc::clone(&calls_so_far), Arc::new(Applications::default()));
    // Our first words come late to it, once, and its application speaks first, as every HTTP/2 server does.
    let far = listen(move |mut stream, client| {
        let late = count.fetch_add(1, Ordering::SeqCst) == 0;
        let (server, applications) = (Arc::clone(&server), Arc::clone(&applications));
        async move {
            if late {
                let _ = stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0").await;
                let _ = stream.read(&mut [0; 1]).await;
            } else {
                serve_inbound(server, applications, stream, client, app.addr).await;
            }
        }
    })
    .await;
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    let (head, _) = client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(calls_so_far.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_application_that_is_gone_costs_no_request_of_any_method() {
    let app = App::start("cart").await;
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(true)));
    let alive = inbound_side(&server, app.addr).await;
    let dead = inbound_side(&server, nobody().await).await;
    let members = vec![endpoint(dead, Some("cart")), endpoint(alive, Some("cart"))];
    let destination = Destination::Service(service(backend("cart", members)).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    for i in 0..10 {
        let text = format!("POST /{i} HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody");
        let (head, body) = client.send(&text).await;
        assert!(head.starts_with("HTTP/1.1 200") && body.ends_with("body"), "{head}{body}");
    }
    // With no other endpoint it is said.
    let destination = Destination::Service(service(backend("cart", vec![endpoint(dead, Some("cart"))])).into());
    let proxy = world.proxy("web", calls(cluster_ip(), destination));
    let (head, _) = Client::connect(outbound_side(&proxy, cluster_ip()).await).await.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-weft-reason: not_processed"), "{head}");
}

#[tokio::test]
async fn an_upgrade_passes_both_sides() {
    let addr = listen(|mut stream, _| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        let seen = String::from_utf8(seen).unwrap().to_lowercase();
        assert!(seen.contains("connection: upgrade") && seen.contains("upgrade: websocket"), "{seen}");
        let granted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst ";
        stream.write_all(granted.as_bytes()).await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word).await.unwrap();
    })
    .await;
    let (side, _) = mesh(open_port(true), addr).await;
    let mut client = Client::connect(side).await;
    let ask = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.0.write_all(ask.as_bytes()).await.unwrap();
    client.0.write_all(b"ping").await.unwrap();
    let mut all = String::new();
    client.0.read_to_string(&mut all).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 101") && all.ends_with("\r\n\r\nfirst ping"), "{all}");
}

#[tokio::test]
async fn while_it_drains_each_connection_ends_with_its_response() {
    let app = App::start("cart").await;
    let server = World::new().proxy("cart", enforces(open_port(false)));
    let far = inbound_side(&server, app.addr).await;
    let mut client = Client::connect(far).await;
    assert!(!client.send(GET).await.0.contains("connection: close"));
    server.drain.begin();
    let (head, _) = client.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("connection: close"), "{head}");
    assert_eq!(client.0.read(&mut [0; 1]).await.unwrap(), 0);
}
