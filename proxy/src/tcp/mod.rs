//! Connections of opaque bytes: the endpoint is chosen once, and bytes are relayed.
//!
//! Invariants
//! - No byte reaches our application before the peer is authorized, and none after it has ceased to be.
//! - Another endpoint is tried only while nothing was sent.
//! - A stream that breaks breaks the other too: a reset is passed on as a reset.

pub mod inbound;
pub mod outbound;
pub mod relay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use self::relay::Relayed;
use crate::Shared;
use crate::drain::InFlight;
use crate::telemetry::{AccessRecord, Direction, RequestSeries};

/// Has the kernel answer a close with a reset, so that the other end learns that this was no orderly end.
pub fn reset_on_close(socket: &TcpStream) {
    // If it fails the peer sees an orderly end, which is all that could be said then.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// A connection: counted when it is dropped.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    direction: Direction,
    client: SocketAddr,
    destination: SocketAddr,
    started: Duration,
    /// The client's verified identity.
    pub identity: Option<Identity>,
    /// Name of the endpoint.
    pub endpoint: Option<Arc<str>>,
    /// Where it counts.
    pub series: Option<Arc<RequestSeries>>,
    /// Why it was refused or broke off.
    pub reason: Option<Reason>,
    /// What was moved.
    pub moved: Relayed,
    _in_flight: InFlight,
}

impl Connection {
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        direction: Direction,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            direction,
            client,
            destination,
            started: shared.clock.now(),
            identity: None,
            endpoint: None,
            series: None,
            reason: None,
            moved: Relayed::default(),
            _in_flight: shared.drain.guard(),
        }
    }

    /// Both ends are connected.
    pub(crate) fn opened(&mut self, series: &Arc<RequestSeries>) {
        series.tcp_opened();
        self.series = Some(Arc::clone(series));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(series) = &self.series {
            series.tcp_closed(self.moved.sent, self.moved.received);
        }
        if let Some(reason) = self.reason {
            self.shared.telemetry.refused(self.direction, reason);
        }
        self.shared.telemetry.access(AccessRecord {
            direction: self.direction,
            peer: self.identity.as_ref(),
            client: self.client,
            destination: self.destination,
            endpoint: self.endpoint.as_deref(),
            method: None,
            path: None,
            status: None,
            reason: self.reason,
            took: self.shared.clock.now().saturating_sub(self.started),
            bytes: Some((self.moved.sent, self.moved.received)),
        });
    }
}
