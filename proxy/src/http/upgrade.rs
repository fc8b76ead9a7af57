//! Connections that leave HTTP: WebSocket and whatever else an `Upgrade` names, and CONNECT.
//!
//! Each hop is upgraded on its own; between them bytes are relayed. The tunnel counts as one request until it ends.

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, on};
use hyper_util::rt::TokioIo;

use super::session::Exchange;
use crate::tcp::relay::relay;
use crate::upstream::h1::H1Conn;

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
            let moved = relay(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
            tracing::debug!(sent = moved.sent, received = moved.received, "upgraded connection ended");
            drop(exchange);
        });
    }
}
