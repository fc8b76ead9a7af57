//! Connections of opaque bytes: the endpoint is chosen once, and bytes are relayed.
//!
//! Invariants
//! - No byte reaches our application before the peer is authorized, and none after it has ceased to be.
//! - Another endpoint is tried only while nothing was sent.
//! - A stream that breaks breaks the other too: a reset is passed on as a reset.

pub mod inbound;
pub mod outbound;
pub mod relay;
pub mod splice;
pub mod wide;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
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

/// Who breaks the silence of a connection on which neither side has spoken.
pub(crate) enum FirstWord {
    /// The client, after all: its bytes say what the connection is. Or it has ended.
    Client,
    /// The server, with these bytes: the connection is opaque.
    Server(BytesMut),
    /// Nobody: the server has ended.
    Nobody,
}

/// How long a client may stay silent once the server's side has ended.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(5);
/// Bytes of the server's that are read while waiting.
const FIRST_WORD: usize = 4 << 10;

/// Waits for either side to speak. A client may connect long before it sends a request (pools of HTTP clients do), and so may a
/// sidecar that is short of CPU: silence alone does not make a connection opaque, a server that speaks first does.
///
/// Where there is no server, or it ends, the client has the last word: it may speak HTTP, and be answered. A server that does not let itself
/// be called at all is told at once to a client that has no such habit.
pub(crate) async fn first_word<S: AsyncRead + Unpin>(
    client: &TcpStream,
    server: Option<&mut S>,
    speaks: bool,
) -> FirstWord {
    let mut bytes = BytesMut::with_capacity(FIRST_WORD);
    let mut byte = [0];
    let patience = match server {
        None if !speaks => Duration::ZERO,
        None => LAST_WORD,
        Some(server) => tokio::select! {
            biased;
            _ = client.peek(&mut byte) => return FirstWord::Client,
            read = server.read_buf(&mut bytes) => if read.is_ok_and(|n| n > 0) {
                return FirstWord::Server(bytes);
            } else {
                LAST_WORD
            },
        },
    };
    if spoken(client, patience).await { FirstWord::Client } else { FirstWord::Nobody }
}

/// Whether the client speaks, or ends, by then.
pub(crate) async fn spoken(client: &TcpStream, patience: Duration) -> bool {
    timeout(patience, client.peek(&mut [0])).await.is_ok()
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
    /// The name that the client of an application's own TLS asks for.
    pub sni: Option<Arc<str>>,
    /// What was moved.
    pub moved: Relayed,
    // It goes on as something else, which counts it.
    forgotten: bool,
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
            sni: None,
            moved: Relayed::default(),
            forgotten: false,
            _in_flight: shared.drain.guard(),
        }
    }

    /// It turned out to be something else, which is counted there.
    pub(crate) fn forget(mut self) {
        self.forgotten = true;
    }

    /// Both ends are connected.
    pub(crate) fn opened(&mut self, series: &Arc<RequestSeries>) {
        series.tcp_opened();
        self.series = Some(Arc::clone(series));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.forgotten {
            return;
        }
        if let Some(series) = &self.series {
            series.tcp_closed(self.moved.sent, self.moved.received);
        }
        if let Some(reason) = self.reason {
            self.shared.telemetry.refused(self.direction, reason);
        }
        if self.moved.crowded {
            self.shared.telemetry.bound_hit("bulk_directions");
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
            sni: self.sni.as_deref(),
        });
    }
}
