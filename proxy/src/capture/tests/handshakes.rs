//! Each handshake is counted where it is made, by how it went or by why it failed.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};
use weft_certs::failure::Failure;

use super::app::App;
use super::world::*;
use crate::Shared;
use crate::telemetry::{Direction, scrape};

const GET: &str = "GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";

/// One side may count after the other has answered.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let held = timeout(Duration::from_secs(10), async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(held.await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn a_good_one_is_counted_by_version_and_group_on_both_sides() {
    let app = App::start("cart").await;
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(true)));
    let (proxy, side) = calls_cart(&world, "web", inbound_side(&server, app.addr).await).await;
    let mut client = Client::connect(side).await;
    for _ in 0..3 {
        assert!(client.send(GET).await.0.starts_with("HTTP/1.1 200"));
    }
    for (shared, direction) in [(&proxy, "outbound"), (&server, "inbound")] {
        let text = scrape::text(shared).unwrap();
        let way = format!("direction=\"{direction}\",version=\"TLSv1.3\",group=\"X25519MLKEM768\",resumed=\"false\"");
        // One connection serves all three requests.
        for line in [
            format!("weft_tls_handshakes_total{{{way}}} 1"),
            format!("weft_tls_handshake_duration_seconds_count{{direction=\"{direction}\"}} 1"),
            format!("weft_tls_handshake_failures_total{{direction=\"{direction}\",reason=\"untrusted\"}} 0"),
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        for (name, certificate) in [("start", "leaf"), ("expiry", "leaf"), ("expiry", "issuer"), ("expiry", "root")] {
            let metric = format!("weft_certificate_{name}_timestamp_seconds{{certificate=\"{certificate}\"}} ");
            assert!(text.contains(&metric), "no {metric} in\n{text}");
        }
    }
}

#[tokio::test]
async fn a_server_of_another_ca_is_untrusted_and_hears_that_it_was_refused() {
    let app = App::start("cart").await;
    let server = World::new().proxy("cart", enforces(open_port(true)));
    let (proxy, side) = calls_cart(&World::new(), "web", inbound_side(&server, app.addr).await).await;
    let (head, _) = Client::connect(side).await.send(GET).await;
    assert!(head.contains("x-weft-reason: identity_mismatch"), "{head}");
    let of = |shared: &Shared, direction, failure| shared.telemetry.handshakes.failures(direction, failure);
    assert!(of(&proxy, Direction::Outbound, Failure::Untrusted) > 0);
    until("the server counts it", || of(&server, Direction::Inbound, Failure::RefusedByPeer) > 0).await;
    assert_eq!(proxy.telemetry.handshakes.successes(Direction::Outbound), 0);
    assert_eq!(app.connections(), 0);
}

#[tokio::test]
async fn a_client_that_is_not_trusted_is_counted_by_the_server() {
    let app = App::start("cart").await;
    let (ours, theirs) = (World::new(), World::new());
    let server = ours.proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&server, app.addr).await;
    let trusting = theirs.proxy_that_trusts(&ours, "web");
    let own = trusting.identity.current().unwrap();
    let tcp = tokio::net::TcpStream::connect(far).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&own.client_h1));
    let mut tls = connector.connect("cart.shop.80.weft".try_into().unwrap(), tcp).await.unwrap();
    let _ = tls.write_all(GET.as_bytes()).await;
    let failures = |failure| server.telemetry.handshakes.failures(Direction::Inbound, failure);
    until("the server counts it", || failures(Failure::Untrusted) == 1).await;
    assert_eq!(server.telemetry.handshakes.successes(Direction::Inbound), 0);
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_counted_as_that() {
    let app = App::start("admin").await;
    let world = World::new();
    let server = world.proxy("admin", enforces(open_port(true)));
    let (proxy, side) = calls_cart(&world, "web", inbound_side(&server, app.addr).await).await;
    let (head, _) = Client::connect(side).await.send(GET).await;
    assert!(head.contains("x-weft-reason: identity_mismatch"), "{head}");
    assert!(proxy.telemetry.handshakes.failures(Direction::Outbound, Failure::UnexpectedIdentity) > 0);
    assert_eq!(proxy.telemetry.handshakes.successes(Direction::Outbound), 0);
}

#[tokio::test]
async fn what_is_no_tls_and_what_hangs_up_are_told_apart() {
    let greets = listen(|mut stream, _| async move {
        let _ = stream.write_all(b"220 smtp.example ESMTP\r\n").await;
        sleep(Duration::from_secs(5)).await;
    })
    .await;
    let hangs_up = listen(|stream, _| async move { drop(stream) }).await;
    for (far, failure) in [(greets, Failure::Protocol), (hangs_up, Failure::Closed)] {
        let (proxy, side) = calls_cart(&World::new(), "web", far).await;
        Client::connect(side).await.send(GET).await;
        assert!(proxy.telemetry.handshakes.failures(Direction::Outbound, failure) > 0, "{failure:?}");
    }
}
