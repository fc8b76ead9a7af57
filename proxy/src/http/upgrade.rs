//! Connections that leave HTTP: WebSocket and whatever else an `Upgrade` names, and CONNECT.
//!
//! Each hop is upgraded on its own; between them bytes are relayed. The tunnel counts as one request until it ends.

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, on};
use hyper_util::rt::TokioIo;
use weft_engine::reason::Reason;

use super::session::Exchange;
use crate::tcp::inbound::Watch;
use crate::tcp::relay::relay_until;
use crate::upstream::h1::H1Conn;

// Ends when the peer may no longer make the request that began the tunnel; never for our own application.
fn withdrawn(exchange: &Exchange) -> impl Future<Output = Reason> + use<> {
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

/// A client that asks to leave HTTP.
pub struct Upgrade {
    /// The request's method.
    pub method: Method,
    client: OnUpgrade,
}

impl Upgrade {
    /// Of a request that [`super::headers::wants_upgrade`].
    pub fn of(request: &mut Request<Incoming>) -> Self {
        Self { method: request.method().clone(), client: on(request) }
    }

    /// Relays between both ends, in a task of its own, once hyper has sent the response.
    pub fn tunnel(self, response: &mut Response<Incoming>, conn: Box<H1Conn>, exchange: Exchange) {
        let server = on(response);
        exchange.session.phase.tunnel();
        tokio::spawn(async move {
            // hyper hands the connection over when it has been driven to the end of its HTTP.
            conn.finish().await;
            let (client, server) = match tokio::join!(self.client, server) {
                (Ok(client), Ok(server)) => (client, server),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::debug!(%error, "an upgrade was granted and did not happen");
                    return;
                }
            };
            let mut exchange = exchange;
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            let (moved, withdrawn) = relay_until(&mut client, &mut server, withdrawn(&exchange)).await;
            tracing::debug!(sent = moved.sent, received = moved.received, "upgraded connection ended");
            if withdrawn.is_some() {
                exchange.reason = withdrawn;
            }
        });
    }
}
