//! Opaque bytes to our own application.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use tokio::net::TcpStream;
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use super::relay::relay_until;
use super::{Connection, FirstWord, LAST_WORD, first_word, reset_on_close, spoken};
use crate::Shared;
use crate::detect::{Downstream, Prefixed};
use crate::discovery::snapshot::Inbound;
use crate::http::inbound::{Peer, authorize, port_of};
use crate::identity::revoked::{Proof, revoked};
use crate::telemetry::Direction;
use crate::telemetry::counters::Retired;
use crate::upstream::connect::dial;

/// Relays a connection to our application, if its peer may, and for as long as what that has proved is believed. One whose client is
/// `silent` is given back if the client speaks before the application does.
pub async fn serve(
    shared: &Arc<Shared>,
    client: Downstream,
    (from, to): (SocketAddr, SocketAddr),
    peer: &Peer,
    mut proof: Option<Proof>,
    silent: bool,
) -> Option<Downstream> {
    let mut connection = Connection::begin(shared, Direction::Inbound, from, to);
    connection.identity.clone_from(&peer.identity);
    connection.endpoint = Some(Arc::clone(&peer.application.name));
    let mut watch = Watch::new(shared, to.port(), peer.identity.clone(), None);
    let opened = match watch.check() {
        Err(reason) => Err(reason),
        Ok(()) => dial(peer.application.addr, shared.config.exclude, true).await.map_err(|_| Reason::NotProcessed),
    };
    let mut application = match opened {
        Ok(stream) => stream,
        // As opaque bytes it may not pass; as HTTP it may.
        Err(Reason::NotAllowed | Reason::DeniedByPolicy) if silent && spoken(client.socket(), LAST_WORD).await => {
            connection.forget();
            return Some(client);
        }
        Err(reason) => {
            connection.reason = Some(reason);
            reset_on_close(client.socket());
            return None;
        }
    };
    let mut said = BytesMut::new();
    if silent {
        match first_word(client.socket(), Some(&mut application), true).await {
            FirstWord::Client => {
                connection.forget();
                return Some(client);
            }
            FirstWord::Server(bytes) => {
                peer.application.state.habit.learn_greets();
                said = bytes;
            }
            FirstWord::Nobody => {
                connection.reason = Some(Reason::UpstreamReset);
                reset_on_close(client.socket());
                return None;
            }
        }
    }
    connection.opened(&peer.series);
    let stop = async {
        tokio::select! {
            biased;
            () = revoked(&mut proof) => Reason::IdentityRevoked,
            reason = watch.withdrawn() => reason,
        }
    };
    pass(shared, &mut connection, client, Prefixed::with(said, application), stop).await;
    None
}

// Relays until both have ended, or it has to stop.
async fn pass(
    shared: &Shared,
    connection: &mut Connection,
    mut client: Downstream,
    mut application: Prefixed<TcpStream>,
    stop: impl Future<Output = Reason>,
) {
    let (moved, stopped) = relay_until(&mut client, &mut application, stop).await;
    moved.pass_break_on(&client, &application);
    if let Some(reason) = stopped {
        if reason == Reason::IdentityRevoked {
            shared.telemetry.retired.add(Direction::Inbound, Retired::Revoked);
        }
        connection.reason = Some(reason);
        reset_on_close(application.get_ref());
        reset_on_close(client.socket());
    }
    connection.moved = moved;
}

/// What a long-lived connection was admitted for. It is asked again whenever the tables have changed.
pub struct Watch {
    shared: Arc<Shared>,
    port: u16,
    peer: Option<Identity>,
    http: Option<(http::Method, Arc<str>)>,
    seen: Option<Arc<Inbound>>,
}

impl Watch {
    /// A peer's connection to `port`; `http` is the request that began it, if it was one.
    pub fn new(
        shared: &Arc<Shared>,
        port: u16,
        peer: Option<Identity>,
        http: Option<(http::Method, Arc<str>)>,
    ) -> Self {
        Self { shared: Arc::clone(shared), port, peer, http, seen: None }
    }

    /// Whether it may be open, by the tables as they are now. Costs one comparison while they are the same.
    ///
    /// # Errors
    /// The reason to close it with.
    pub fn check(&mut self) -> Result<(), Reason> {
        let snapshot = self.shared.discovery.snapshot();
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &snapshot.inbound)) {
            return Ok(());
        }
        self.seen = Some(Arc::clone(&snapshot.inbound));
        let http = self.http.as_ref().map(|(method, path)| (method, &**path));
        authorize(port_of(&snapshot.inbound, self.port), self.peer.as_ref(), http)
    }

    /// Ends with the reason when it may no longer be open: as soon as the rules have changed, however idle it is. It is asked before bytes pass
    /// too, so that none does in between.
    pub async fn withdrawn(mut self) -> Reason {
        let mut changes = self.shared.discovery.inbound_changes();
        loop {
            let mut changed = pin!(changes.changed());
            let withdrawn = poll_fn(|cx| match self.check() {
                Err(reason) => Poll::Ready(Some(reason)),
                Ok(()) => match changed.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => Poll::Ready(None),
                    // Nothing will change any more.
                    Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
                },
            });
            if let Some(reason) = withdrawn.await {
                return reason;
            }
        }
    }
}
