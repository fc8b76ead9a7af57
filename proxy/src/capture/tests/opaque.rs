//! Opaque bytes through both sides.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_engine::authz::PolicySet;

use super::app::greeting_app;
use super::world::*;
use crate::discovery::snapshot::{Destination, InboundPort};

async fn conversation(side: std::net::SocketAddr) -> String {
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
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let (head, body) = client.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        // Told by a header that only the HTTP way sets.
        assert!(body.contains("x-forwarded-for: 127.0.0.1\n"), "{body}");
    }
}
