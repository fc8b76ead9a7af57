//! Who is revoked is refused by the handshake, and what he has open ends at once, whatever is spoken on it and whichever side he is; what
//! others have open goes on.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use weft_api::convert::Revoked;
use weft_certs::failure::Failure;

use super::app::App;
use super::handshakes::until;
use super::http2::streams;
use super::raw::Raw;
use super::withdrawn::{AT_ONCE, CHAT, WORD, echo};
use super::world::*;
use crate::Shared;
use crate::telemetry::counters::Retired;
use crate::telemetry::{Direction, scrape};

const GET: &str = "GET /a HTTP/1.1\r\nHost: shop\r\n\r\n";

/// Tells one side.
fn revoke(shared: &Shared, accounts: &[&str]) {
    let identities = accounts.iter().map(|account| identity(account)).collect();
    shared.trust.revoked.tell(&Revoked { identities, serials: Vec::new() });
}

fn retired(shared: &Shared, direction: Direction) -> u64 {
    shared.telemetry.retired.get(direction, Retired::Revoked)
}

fn refused(shared: &Shared, direction: &str) -> bool {
    let line = format!("weft_refused_total{{direction=\"{direction}\",reason=\"identity_revoked\"}} ");
    scrape::text(shared).unwrap().lines().any(|found| found.strip_prefix(&line).is_some_and(|count| count != "0"))
}

/// The sides at which a revocation is told of who is at the other end.
fn sides(both: &Both) -> [(&Arc<Shared>, &'static str, Direction); 2] {
    [(&both.server, "web", Direction::Inbound), (&both.client, "cart", Direction::Outbound)]
}

#[tokio::test]
async fn opaque_sessions_and_upgraded_ones_end_and_those_of_others_do_not() {
    for upgrades in [false, true] {
        for at in [0, 1] {
            let both = both(echo().await).await;
            let (side, who, direction) = sides(&both)[at];
            let (_other, others) = calls_cart(&both.world, "other", both.far).await;
            let (mut client, mut bystander) = (Raw::connect(both.side).await, Raw::connect(others).await);
            for raw in [&mut client, &mut bystander] {
                if upgrades {
                    raw.say(CHAT).await;
                    assert!(raw.head().await.starts_with("HTTP/1.1 101"));
                }
                raw.say(WORD).await;
                assert_eq!(raw.head().await, WORD);
            }
            revoke(side, &["nobody"]);
            client.say(WORD).await;
            assert_eq!(client.head().await, WORD);
            revoke(side, &[who]);
            let (rest, in_order) = timeout(AT_ONCE, client.rest()).await.expect("it is still open");
            // In order or by a reset: an upgraded session may end either way.
            assert!(rest.is_empty() && (upgrades || !in_order), "{upgrades} {who}: {rest}");
            until("it is counted", || retired(side, direction) == 1 && refused(side, direction.label())).await;
            bystander.say(WORD).await;
            assert_eq!(bystander.head().await, WORD);
        }
    }
}

#[tokio::test]
async fn idle_connections_of_the_pool_end_and_new_ones_are_refused_until_it_is_over() {
    let app = App::start("cart").await;
    for at in [0, 1] {
        let both = both(app.addr).await;
        let (side, who, direction) = sides(&both)[at];
        let mut client = Client::connect(both.side).await;
        assert!(client.send(GET).await.0.starts_with("HTTP/1.1 200"));
        let opened = both.client.telemetry.handshakes.successes(Direction::Outbound);
        revoke(side, &[who]);
        until("the idle connection ends", || retired(side, direction) == 1).await;
        let (head, _) = client.send(GET).await;
        assert!(head.starts_with("HTTP/1.1 50"), "{head}");
        if at == 1 {
            // Its own word, for the list is here.
            assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-weft-reason: identity_revoked"), "{head}");
            assert_eq!(both.client.telemetry.handshakes.successes(Direction::Outbound), opened);
        }
        let failures = || side.telemetry.handshakes.failures(direction, Failure::Revoked);
        until("the handshake is refused", || failures() > 0 && refused(side, direction.label())).await;
        let before = app.requests();
        let (head, _) = client.send(GET).await;
        assert!(head.starts_with("HTTP/1.1 50") && app.requests() == before, "{head}");
        revoke(side, &[]);
        let heard = async { while !client.send(GET).await.0.starts_with("HTTP/1.1 200") {} };
        timeout(Duration::from_secs(10), heard).await.expect("it is over");
    }
}

#[tokio::test]
async fn a_request_in_flight_ends_with_its_reason() {
    // Takes a request, and does not answer.
    let silent = listen(|mut stream, _| async move {
        let mut heard = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut heard).await;
        let _ = stream.shutdown().await;
    })
    .await;
    for at in [0, 1] {
        let both = both(silent).await;
        let (side, who, direction) = sides(&both)[at];
        let mut client = Client::connect(both.side).await;
        client.0.write_all(GET.as_bytes()).await.unwrap();
        until("the request is there", || both.server.drain.in_flight() == 1).await;
        revoke(side, &[who]);
        let (head, _) = timeout(AT_ONCE, client.response()).await.expect("it is still open");
        let code = if at == 1 { "identity_revoked" } else { "upstream_reset" };
        assert!(head.contains(&format!("x-weft-reason: {code}")), "{head}");
        until("it is counted", || retired(side, direction) == 1 && refused(side, direction.label())).await;
        until("nothing is left", || both.server.drain.in_flight() == 0).await;
    }
}

#[tokio::test]
async fn streams_of_http2_end() {
    for at in [0, 1] {
        let mut app = streams::App::start(false).await;
        let both = both(app.addr).await;
        let (side, who, direction) = sides(&both)[at];
        let mut tx = streams::client(both.side, 65_535).await;
        let (response, mut up) = tx.send_request(streams::post(), false).unwrap();
        let (mut request, mut respond) = app.next().await;
        let mut down = respond.send_response(http::Response::new(()), false).unwrap();
        let mut response = response.await.unwrap();
        revoke(side, &["nobody"]);
        down.send_data("answer".into(), false).unwrap();
        up.send_data("question".into(), false).unwrap();
        assert_eq!(response.body_mut().data().await.unwrap().unwrap(), "answer");
        assert_eq!(request.body_mut().data().await.unwrap().unwrap(), "question");
        revoke(side, &[who]);
        let ended = timeout(AT_ONCE, async {
            tokio::join!(streams::reset_of(response.body_mut()), async {
                while request.body_mut().data().await.is_some_and(|data| data.is_ok()) {}
            })
        });
        ended.await.expect("it is still open");
        until("it is counted", || retired(side, direction) == 1 && refused(side, direction.label())).await;
    }
}

#[tokio::test]
async fn who_is_revoked_himself_says_so_without_troubling_others() {
    let app = App::start("cart").await;
    let both = both(app.addr).await;
    revoke(&both.client, &["web"]);
    let (head, _) = Client::connect(both.side).await.send(GET).await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-weft-reason: identity_revoked"), "{head}");
    let seen = &both.server.telemetry.handshakes;
    assert_eq!((seen.successes(Direction::Inbound), app.connections()), (0, 0));
    revoke(&both.client, &[]);
    assert!(Client::connect(both.side).await.send(GET).await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn by_its_number_only_that_certificate_is_refused() {
    let app = App::start("cart").await;
    let both = both(app.addr).await;
    let serial = both.client.identity.current().unwrap().serial.parse::<weft_certs::revoked::Serial>().unwrap();
    let serials = vec![bytes::Bytes::copy_from_slice(serial.bytes())];
    both.server.trust.revoked.tell(&Revoked { identities: Vec::new(), serials });
    let mut client = Client::connect(both.side).await;
    assert!(!client.send(GET).await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(app.requests(), 0);
    both.world.renew(&both.client, Duration::from_hours(1));
    let heard = async { while !client.send(GET).await.0.starts_with("HTTP/1.1 200") {} };
    timeout(Duration::from_secs(10), heard).await.expect("another certificate is another");
}
