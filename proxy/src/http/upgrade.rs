//! Connections that have left HTTP: WebSocket and whatever else an `Upgrade` names, and CONNECT.
//!
//! Each hop is upgraded on its own; between them bytes are relayed. The tunnel counts as one request until it ends.

use weft_engine::reason::Reason;

use super::session::Exchange;
use crate::identity::revoked::{Proof, revoked};
use crate::tcp::inbound::Watch;
use crate::tcp::relay::{Joined, relay_until};
use crate::tcp::reset_on_close;
use crate::telemetry::Direction;
use crate::telemetry::counters::Retired;

/// Ends as soon as the peer may no longer make the request that began the tunnel; never for our own application.
pub fn withdrawn(exchange: &Exchange) -> impl Future<Output = Reason> + use<> {
    let session = &exchange.session;
    let watch = session.inbound.as_ref().map(|peer| {
        let request = Some(exchange.request());
        Watch::new(&session.shared, session.destination.port(), peer.identity.clone(), request)
    });
    async move {
        match watch {
            Some(watch) => watch.withdrawn().await,
            None => std::future::pending().await,
        }
    }
}

/// Relays between both ends until they have ended, or the server that has proved this is not believed any more.
pub async fn tunnel<A, B>(mut client: A, mut server: B, mut exchange: Exchange, mut server_proof: Option<Proof>)
where
    A: Joined,
    B: Joined,
{
    let ended = withdrawn(&exchange);
    let stop = async {
        tokio::select! {
            biased;
            () = revoked(&mut server_proof) => Reason::IdentityRevoked,
            reason = ended => reason,
        }
    };
    let (moved, withdrawn) = relay_until(&mut client, &mut server, stop).await;
    moved.pass_break_on(&client, &server);
    tracing::debug!(sent = moved.sent, received = moved.received, "upgraded connection ended");
    if server_proof.is_some_and(|proof| proof.known().is_revoked()) {
        exchange.session.shared.telemetry.retired.add(Direction::Outbound, Retired::Revoked);
    }
    if withdrawn.is_some() {
        exchange.reason = withdrawn;
        // No orderly end: neither side has said that it is done.
        for socket in [client.socket(), server.socket()].into_iter().flatten() {
            reset_on_close(socket);
        }
    }
}
