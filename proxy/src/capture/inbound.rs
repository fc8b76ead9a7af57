//! A connection to our own application: who its peer is, what it speaks, and the way that it takes from there.
//!
//! Invariant: the application gets no byte, not even a connection, before the peer is classified and, for HTTP, its first request
//! authorized.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use weft_engine::balance::Load;
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use super::outbound::{refuse, speaking};
use crate::Shared;
use crate::detect::{Detected, Downstream, Hello, Prefixed, SILENCE, client_hello, first_bytes};
use crate::discovery::snapshot::{Alpn, Endpoint, EndpointState, InboundPort, Protocol};
use crate::http::inbound::{Peer, port_of};
use crate::http::serve::serve as serve_http;
use crate::http::session::Session;
use crate::tcp::{self, reset_on_close};
use crate::telemetry::{Direction, SeriesKey, Tls};
use crate::upstream::connect::HANDSHAKE_TIMEOUT;
use crate::upstream::{Pool, Speak};

/// On a strict port a peer must speak first; one that has not begun by then is refused.
const STRICT_SILENCE: Duration = Duration::from_secs(5);
/// Ports of our application that have connections kept for them.
const MAX_APPLICATIONS: usize = 1024;

/// The addresses at which our application was called, with the connections to each.
#[derive(Default)]
pub struct Applications(Mutex<HashMap<SocketAddr, Arc<Endpoint>>>);

impl Applications {
    fn at(&self, shared: &Shared, addr: SocketAddr) -> Arc<Endpoint> {
        let mut known = self.0.lock();
        if let Some(endpoint) = known.get(&addr) {
            return Arc::clone(endpoint);
        }
        let endpoint = Arc::new(Endpoint {
            name: addr.to_string().into(),
            addr,
            identity: None,
            alpn: Alpn::default(),
            workload: "".into(),
            weight: 1,
            draining: false,
            state: Arc::new(EndpointState {
                load: Load::new(shared.clock.now()),
                pool: Pool::default(),
                series: std::sync::OnceLock::new(),
            }),
        });
        if known.len() < MAX_APPLICATIONS {
            known.insert(addr, Arc::clone(&endpoint));
        } else {
            drop(known);
            shared.telemetry.bound_hit("application_ports");
        }
        endpoint
    }
}

/// Serves one connection to its end.
pub async fn serve(
    shared: Arc<Shared>,
    applications: Arc<Applications>,
    stream: TcpStream,
    client: SocketAddr,
    destination: SocketAddr,
) {
    let port = Arc::clone(port_of(&shared.discovery.snapshot().inbound, destination.port()));
    let classified = match Box::pin(classify(&shared, &port, stream)).await {
        Ok(Some(classified)) => classified,
        Ok(None) => return,
        Err(refused) => return refuse(&shared, Direction::Inbound, refused, false).await,
    };
    let Classified { speak, identity, io } = classified;
    let application = applications.at(&shared, destination);
    let peer = make_peer(&shared, &port, identity, client, application);
    match speak {
        Speak::Tcp => Box::pin(tcp::inbound::serve(shared, io, client, destination, peer)).await,
        Speak::H1 | Speak::H2 => {
            let inbound = Some(Box::new(peer));
            let session = Session { shared, speak, client, destination, phase: Arc::default(), inbound };
            serve_http(Arc::new(session), io).await;
        }
    }
}

struct Classified {
    speak: Speak,
    identity: Option<Identity>,
    io: Downstream,
}

type Refused = Option<crate::detect::Reject>;

// `None`: it was refused, or it broke.
async fn classify(shared: &Shared, port: &InboundPort, stream: TcpStream) -> Result<Option<Classified>, Refused> {
    let silence = if port.strict { STRICT_SILENCE } else { SILENCE };
    let (found, stream) = first_bytes(stream, silence).await.map_err(|_| None)?;
    let stream = if found == Detected::Tls {
        match client_hello(stream).await.map_err(|_| None)? {
            (Hello::Mesh, stream) => return Ok(mesh(shared, stream).await),
            (Hello::Foreign, stream) => stream,
        }
    } else {
        stream
    };
    let found = match port.protocol {
        Protocol::Tcp => Detected::Opaque,
        Protocol::Detect | Protocol::Http1 | Protocol::Http2 => found,
    };
    // A strict port refuses what comes in the clear: a request with a response that says why, opaque bytes with a reset, both in the
    // room where they would be authorized.
    let (speak, stream) = speaking(found, stream, shared).await?;
    Ok(Some(Classified { speak, identity: None, io: Downstream::Plain(stream) }))
}

// Mesh TLS: the handshake proves who the peer is, and its ALPN says what is spoken.
async fn mesh(shared: &Shared, stream: Prefixed<TcpStream>) -> Option<Classified> {
    match handshake(shared, stream).await {
        Ok(classified) => Some(classified),
        Err((reason, error)) => {
            tracing::debug!(%reason, %error, "mesh TLS refused");
            shared.telemetry.refused(Direction::Inbound, reason);
            None
        }
    }
}

async fn handshake(shared: &Shared, stream: Prefixed<TcpStream>) -> Result<Classified, (Reason, io::Error)> {
    let own = match shared.identity.current() {
        Ok(own) => own,
        Err(reason) => {
            reset_on_close(stream.get_ref());
            return Err((reason, io::Error::other("our own certificate cannot be used")));
        }
    };
    let accepting = TlsAcceptor::from(Arc::clone(&own.server)).accept(stream);
    let tls = timeout(HANDSHAKE_TIMEOUT, accepting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| (Reason::IdentityMismatch, error))?;
    let session = tls.get_ref().1;
    let identity = weft_certs::tls::peer_identity(session.peer_certificates())
        .map_err(|error| (Reason::IdentityMismatch, io::Error::other(error)))?;
    let speak = match session.alpn_protocol() {
        Some(b"weft1-h1") => Speak::H1,
        Some(b"weft1-h2") => Speak::H2,
        Some(b"weft1-tcp") => Speak::Tcp,
        _ => return Err((Reason::UpstreamProtocol, io::Error::other("the peer named no protocol of the mesh"))),
    };
    Ok(Classified { speak, identity: Some(identity), io: Downstream::Mesh(Box::new(tls)) })
}

fn make_peer(
    shared: &Shared,
    port: &InboundPort,
    identity: Option<Identity>,
    client: SocketAddr,
    application: Arc<Endpoint>,
) -> Peer {
    let source = identity.as_ref().map_or_else(|| "unknown".into(), |identity| identity.short().into());
    let series = shared.telemetry.request_series(&SeriesKey {
        direction: Direction::Inbound,
        source,
        destination: Arc::clone(&port.service),
        destination_workload: Arc::from(shared.config.workload.to_string()),
        tls: if identity.is_some() { Tls::Mtls } else { Tls::Plain },
    });
    let certificate = identity
        .as_ref()
        .and_then(|peer| HeaderValue::try_from(format!("By={};URI={peer}", shared.config.identity)).ok());
    let address = HeaderValue::try_from(client.ip().to_canonical().to_string())
        .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
    Peer { identity, certificate, address, application, series, cells: Mutex::default() }
}
