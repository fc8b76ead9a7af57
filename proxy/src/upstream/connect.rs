//! A new connection to an endpoint: TCP, then mesh TLS if the endpoint has an identity.
//!
//! Invariants
//! - An endpoint with an identity is never spoken to in the clear, and no byte of the application leaves before it has proved to be
//!   exactly that identity and to speak the protocol that was asked for.
//! - Every step has a bound: [`CONNECT_TIMEOUT`], [`HANDSHAKE_TIMEOUT`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_certs::failure::Failure;
use weft_certs::tls::{Leaf, peer_leaf};
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use super::Stream;
use crate::Shared;
use crate::discovery::snapshot::Endpoint;
use crate::identity::Current;
use crate::identity::revoked::Proof;
use crate::tcp::wide::Wide;
use crate::telemetry::Direction;

/// How long a SYN may stay unanswered.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often in a row our first words may come too late (see [`spoke_first`]).
const MAX_LATE: u32 = 3;
/// A peer that acknowledges nothing for so long is dead: without it the kernel goes on for a quarter of an hour. A reader that takes nothing
/// for so long, its window being closed, is dead by that measure too; hence no less.
pub const USER_TIMEOUT: Duration = Duration::from_mins(2);
/// First keep-alive probe after this much silence, and the time between probes.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What is spoken over a connection; decides the ALPN between sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speak {
    /// HTTP/1, `weft1-h1`.
    H1,
    /// HTTP/2, `weft1-h2`.
    H2,
    /// Opaque bytes, `weft1-tcp`.
    Tcp,
}

/// Why there is no connection. Nothing of the application was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP failed.
    #[error("cannot connect to {addr}: {error}; see whether the application listens there")]
    Tcp {
        /// Where to.
        addr: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// TLS failed: the other end is no sidecar, or its certificate or ours was refused.
    #[error("mesh TLS with {addr} failed: {error}; see whether a sidecar runs there and both trust the same CA")]
    Tls {
        /// Where to.
        addr: SocketAddr,
        /// What TLS said.
        error: io::Error,
    },
    /// The other end proved another identity, or none.
    #[error("{addr} proved to be {found}, control says it is {wanted}; nothing was sent to it")]
    Identity {
        /// Where to.
        addr: SocketAddr,
        /// What it proved.
        found: String,
        /// What it should be.
        wanted: Identity,
    },
    /// The other end is not believed any more.
    #[error("{addr} is {who}, which is revoked; nothing was sent to it")]
    Revoked {
        /// Where to.
        addr: SocketAddr,
        /// Who it is.
        who: Identity,
    },
    /// The sidecar there does not speak this protocol on this port.
    #[error("the sidecar of {addr} does not speak {speak:?} on that port")]
    Protocol {
        /// Where to.
        addr: SocketAddr,
        /// What was asked for.
        speak: Speak,
    },
    /// Our own certificate cannot be used.
    #[error("our own certificate cannot be used ({0}); see what control's log says of it, if it can be reached")]
    Own(Reason),
    /// Somebody else's attempt, which this one waited for, failed.
    #[error("another request's attempt to connect has just failed ({0})")]
    Shared(Reason),
    /// The bound on connections to one endpoint is reached.
    #[error("{addr} has as many connections as one endpoint may have")]
    Full {
        /// Where to.
        addr: SocketAddr,
    },
}

impl ConnectError {
    /// The code that a request refused for it carries.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tcp { .. } => Reason::ConnectFailed,
            Self::Tls { error, .. } if Failure::of(error) == Failure::Revoked => Reason::IdentityRevoked,
            Self::Revoked { .. } => Reason::IdentityRevoked,
            Self::Tls { .. } | Self::Identity { .. } => Reason::IdentityMismatch,
            Self::Protocol { .. } => Reason::UpstreamProtocol,
            Self::Own(reason) | Self::Shared(reason) => *reason,
            Self::Full { .. } => Reason::Overloaded,
        }
    }
}

/// A connection, and what its other end has proved; `None` where it need not prove anything.
#[derive(Debug)]
pub struct Connected {
    /// Its bytes.
    pub stream: Stream,
    /// Who is there.
    pub proof: Option<Proof>,
}

impl Connected {
    /// In the clear.
    pub fn plain(stream: TcpStream) -> Self {
        Self { stream: Stream::Plain(stream), proof: None }
    }
}

/// Options that every connection of the data path has, accepted or opened: no Nagle, keep-alive against dead peers.
pub fn set_options(socket: &TcpStream) {
    // Failing only costs latency or a late notice of a dead peer: go on.
    let _ = socket.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// Options of a connection to another pod, whose machine may vanish without a word. Our own application has our kernel.
pub fn set_user_timeout(socket: &TcpStream) {
    // Failing only costs a late notice.
    let _ = SockRef::from(socket).set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// `SO_PRIORITY` of the sockets by which the inbound side calls our own application. The pod's rules (weft-capture, where the constant is
/// `OWN_APP_PRIORITY`) let these through, and bring all else that we send to the pod's own address to our inbound side.
const OWN_APP_PRIORITY: u32 = 6;

/// Connects to `addr`, marking the socket so that our own rules do not capture it again. `application`: it is our own, called by our
/// inbound side.
///
/// # Errors
/// What the kernel says, or `TimedOut` after [`CONNECT_TIMEOUT`].
pub async fn dial(addr: SocketAddr, mark: Option<u32>, application: bool) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    if application {
        SockRef::from(&socket).set_priority(OWN_APP_PRIORITY)?;
    }
    let stream = match timeout(CONNECT_TIMEOUT, socket.connect(addr)).await {
        Ok(connected) => connected?,
        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within a second")),
    };
    set_options(&stream);
    if !application {
        set_user_timeout(&stream);
    }
    Ok(stream)
}

/// A connection to `endpoint` for `speak`: mesh TLS if it has an identity, else in the clear.
///
/// # Errors
/// [`ConnectError`]; the endpoint's health has been told.
pub async fn connect(
    shared: &Shared,
    endpoint: &Endpoint,
    sni: Option<&str>,
    speak: Speak,
) -> Result<Connected, ConnectError> {
    let result = try_connect(shared, endpoint, sni, speak).await;
    // Our own certificate says nothing about the endpoint.
    if let Err(error) = &result
        && !matches!(error, ConnectError::Own(_))
    {
        endpoint.state.load.failed(shared.clock.now());
        tracing::debug!(endpoint = &*endpoint.name, %error, "connect");
    }
    result
}

async fn try_connect(
    shared: &Shared,
    endpoint: &Endpoint,
    sni: Option<&str>,
    speak: Speak,
) -> Result<Connected, ConnectError> {
    let addr = endpoint.addr;
    let Some(wanted) = &endpoint.identity else {
        let stream = dial(addr, shared.config.exclude, endpoint.application)
            .await
            .map_err(|error| ConnectError::Tcp { addr, error })?;
        return Ok(Connected::plain(stream));
    };
    let takes = match speak {
        Speak::H1 => endpoint.alpn.h1,
        Speak::H2 => endpoint.alpn.h2,
        Speak::Tcp => endpoint.alpn.tcp,
    };
    if !takes {
        return Err(ConnectError::Protocol { addr, speak });
    }
    let own = shared.identity.current().map_err(ConnectError::Own)?;
    if shared.trust.revoked.has(&shared.config.identity, &own.serial) {
        // The other end would say so too, but only once our request is with it.
        return Err(ConnectError::Own(Reason::IdentityRevoked));
    }
    let mut late = 0;
    loop {
        let dialled = dial(addr, shared.config.exclude, false).await;
        let stream = dialled.map_err(|error| ConnectError::Tcp { addr, error })?;
        match handshake(shared, stream, &own, server_name(sni, addr), wanted, speak).await {
            Err(ConnectError::Tls { error, .. }) if late < MAX_LATE && spoke_first(&error) => late += 1,
            done => return done,
        }
    }
}

/// Whether the other end has sent what is no TLS. A permissive sidecar does when our first words were late, as on a busy machine: it took us
/// for a plain client that waits, and its application spoke. Nothing was sent, and the next connection's words may come in time.
fn spoke_first(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

/// The whole of the client's side of mesh TLS over a fresh connection, counted.
async fn handshake(
    shared: &Shared,
    stream: TcpStream,
    own: &Current,
    name: ServerName<'static>,
    wanted: &Identity,
    speak: Speak,
) -> Result<Connected, ConnectError> {
    let begun = shared.clock.now();
    let handshakes = &shared.telemetry.handshakes;
    let config = match speak {
        Speak::H1 => &own.client_h1,
        Speak::H2 => &own.client_h2,
        Speak::Tcp => &own.client_tcp,
    };
    let shaken = shake(shared, stream, Arc::clone(config), name, wanted, speak).await;
    let admitted = shaken.and_then(|(tls, addr, leaf)| {
        let proof = shared.trust.revoked.admit(leaf, own.not_after, SystemTime::now());
        let proof = proof.ok_or_else(|| (Failure::Revoked, ConnectError::Revoked { addr, who: wanted.clone() }))?;
        Ok((tls, proof))
    });
    match admitted {
        Ok((tls, proof)) => {
            handshakes.finished(Direction::Outbound, tls.get_ref().1, shared.clock.now().saturating_sub(begun));
            Ok(Connected { stream: Stream::Mesh(tls), proof: Some(proof) })
        }
        Err((failure, error)) => {
            handshakes.failed(Direction::Outbound, failure);
            shared.telemetry.audit(Direction::Outbound, failure, wanted, &error);
            Err(error)
        }
    }
}

async fn shake(
    shared: &Shared,
    stream: TcpStream,
    config: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
    wanted: &Identity,
    speak: Speak,
) -> Result<(Box<TlsStream<Wide<TcpStream>>>, SocketAddr, Leaf), (Failure, ConnectError)> {
    let addr = stream.peer_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    let tls = match timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, Wide::new(stream))).await {
        Ok(done) => done.map_err(|error| (Failure::of(&error), classify(addr, error)))?,
        Err(_) => {
            let error = io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
            return Err((Failure::Timeout, ConnectError::Tcp { addr, error }));
        }
    };
    let session = tls.get_ref().1;
    let expected: &[u8] = match speak {
        Speak::H1 => b"weft1-h1",
        Speak::H2 => b"weft1-h2",
        Speak::Tcp => b"weft1-tcp",
    };
    let found =
        peer_leaf(session.peer_certificates()).map(|leaf| shared.trust.known(leaf)).map_err(|error| error.to_string());
    let expected_leaf =
        found.and_then(|leaf| if leaf.identity == *wanted { Ok(leaf) } else { Err(leaf.identity.to_string()) });
    let leaf = expected_leaf.map_err(|found| {
        (Failure::UnexpectedIdentity, ConnectError::Identity { addr, found, wanted: wanted.clone() })
    })?;
    if session.alpn_protocol() != Some(expected) {
        return Err((Failure::Protocol, ConnectError::Protocol { addr, speak }));
    }
    Ok((Box::new(tls), addr, leaf))
}

/// A peer that goes away in the handshake (it is being stopped) is not one that proves the wrong thing.
fn classify(addr: SocketAddr, error: io::Error) -> ConnectError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => ConnectError::Tcp { addr, error },
        _ => ConnectError::Tls { addr, error },
    }
}

/// A name that is no DNS name (a label of over 63 bytes) is left out: identities are proved by SPIFFE ID, the SNI is only a label.
fn server_name(sni: Option<&str>, addr: SocketAddr) -> ServerName<'static> {
    sni.and_then(|name| ServerName::try_from(name.to_owned()).ok()).unwrap_or_else(|| ServerName::from(addr.ip()))
}
