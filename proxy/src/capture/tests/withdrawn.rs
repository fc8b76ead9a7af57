//! Permission that is withdrawn closes what it had opened, idle or not, at once and with its reason; what is still allowed goes on.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;
use weft_engine::authz::PolicySet;

use super::raw::{Raw, app};
use super::world::*;
use crate::Shared;
use crate::discovery::snapshot::InboundPort;
use crate::telemetry::scrape;

/// How soon a session that is no longer allowed must be closed.
pub const AT_ONCE: Duration = Duration::from_secs(1);

pub const CHAT: &str = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
pub const WORD: &str = "ping\r\n\r\n";

/// Says back each word that it hears; grants an upgrade.
pub async fn echo() -> SocketAddr {
    app(|mut server| async move {
        while let Some(heard) = server.try_head().await {
            server.say(if heard == WORD { WORD } else { GRANTED }).await;
        }
    })
    .await
}

pub fn closed_port() -> InboundPort {
    InboundPort { policies: PolicySet::new(vec![], true), ..open_port(true) }
}

/// Waits until the second side has counted that it closed something which is not allowed any more.
pub async fn reason_is_told(shared: &Shared) {
    let line = "weft_refused_total{direction=\"inbound\",reason=\"not_allowed\"} ";
    let told = || {
        let text = scrape::text(shared).unwrap();
        text.lines().any(|found| found.strip_prefix(line).is_some_and(|count| count != "0"))
    };
    let telling = async {
        while !told() {
            tokio::task::yield_now().await;
        }
    };
    timeout(AT_ONCE, telling).await.expect("nothing was counted");
}

#[tokio::test]
async fn an_idle_session_is_closed_at_once_and_one_that_is_allowed_is_not() {
    for upgrades in [false, true] {
        let (side, server) = through_both(echo().await).await;
        let mut client = Raw::connect(side).await;
        if upgrades {
            client.say(CHAT).await;
            assert!(client.head().await.starts_with("HTTP/1.1 101"));
        }
        client.say(WORD).await;
        assert_eq!(client.head().await, WORD);
        // Other rules, which allow it too.
        crate::testing::replace(&server, enforces(open_port(true)));
        client.say(WORD).await;
        assert_eq!(client.head().await, WORD);
        crate::testing::replace(&server, enforces(closed_port()));
        let (rest, in_order) = timeout(AT_ONCE, client.rest()).await.expect("it is still open");
        assert!(rest.is_empty() && !in_order, "{upgrades}: {rest}");
        reason_is_told(&server).await;
    }
}
