//! A connection to our own application: who its peer is, what it speaks, and the way that it takes from there.
//!
//! Invariant: the application gets no byte, not even a connection, before the peer is classified and, for HTTP, its first request
//! authorized.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use parking_lot::Mutex;
use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use weft_certs::failure::Failure;
use weft_certs::tls::Leaf;
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use super::outbound::speaking;
use crate::Shared;
use crate::detect::{Detected, Downstream, HESITATION, Hello, Prefixed, SILENCE, client_hello, first_bytes};
use crate::discovery::snapshot::{Destination, Endpoint, InboundPort, Protocol};
use crate::http::h1::serve::IDLE_TIMEOUT;
use crate::http::inbound::{Peer, port_of};
use crate::http::serve::serve_proved;
use crate::http::session::Session;
use crate::identity::revoked::Proof;
use crate::tcp::wide::Wide;
use crate::tcp::{self, reset_on_close};
use crate::telemetry::{Direction, SeriesKey, Tls};
use crate::upstream::Speak;
use crate::upstream::connect::{HANDSHAKE_TIMEOUT, set_user_timeout};

/// On a strict port a peer must speak first; one that has not begun by then is refused.
const STRICT_SILENCE: Duration = Duration::from_secs(5);
/// A peer that control knows as meshed has so long for its first words: its own sidecar does not wait any longer for ours.
const MESHED_SILENCE: Duration = HANDSHAKE_TIMEOUT;
/// HTTP goes on for so long behind the end of a certificate, or for a tenth of what was left of it: sidecars replace their connections before,
/// by their own clocks.
const GRACE: Duration = Duration::from_secs(5);
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
        let endpoint = Arc::new(Endpoint::plain(addr, true, shared.clock.now()));
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
    let http = Box::pin(enter(shared, applications, stream, client, destination)).await;
    if let Some((session, io, proof)) = http {
        serve_proved(session, io, proof).await;
    }
}

// HTTP is given back; all else is served here.
async fn enter(
    shared: Arc<Shared>,
    applications: Arc<Applications>,
    stream: TcpStream,
    client: SocketAddr,
    destination: SocketAddr,
) -> Option<(Arc<Session>, Downstream, Option<Proof>)> {
    set_user_timeout(&stream);
    let port = Arc::clone(port_of(&shared.discovery.snapshot().inbound, destination.port()));
    let application = applications.at(&shared, destination);
    let visit = Visit { shared: &shared, port: &port, application: &application, client, destination };
    let Classified { speak, identity, proof, io } = Box::pin(visit.classify(stream)).await?;
    // Where HTTP is declared nothing goes past its rules by being no HTTP at first sight: what cannot be read as a head is refused.
    let speak = declared(&port).filter(|_| speak == Speak::Tcp).unwrap_or(speak);
    if port.strict && identity.is_none() {
        let why = if speak == Speak::Tcp { "it sent no mesh TLS" } else { "it sent HTTP in the clear" };
        shared.telemetry.audit_plaintext(client, destination.port(), why);
    }
    let mut peer = visit.peer(identity);
    peer.known = proof.as_ref().map(|proof| Arc::clone(proof.known()));
    if speak == Speak::Tcp {
        Box::pin(tcp::inbound::serve(&shared, io, (client, destination), &peer, proof, false)).await;
        return None;
    }
    let ends = proof.as_ref().map(|proof| Instant::now() + proof.left + GRACE.min(proof.left / 10));
    drop((port, application));
    let session = Session { shared, speak, client, destination, inbound: Some(Box::new(peer)), ends };
    Some((Arc::new(session), io, proof))
}

// What a port is said to speak, if that is HTTP.
fn declared(port: &InboundPort) -> Option<Speak> {
    match port.protocol {
        Protocol::Http1 => Some(Speak::H1),
        Protocol::Http2 => Some(Speak::H2),
        Protocol::Detect | Protocol::Tcp => None,
    }
}

struct Classified {
    speak: Speak,
    identity: Option<Identity>,
    proof: Option<Proof>,
    io: Downstream,
}

// A connection that is being looked at.
struct Visit<'a> {
    shared: &'a Arc<Shared>,
    port: &'a InboundPort,
    application: &'a Arc<Endpoint>,
    client: SocketAddr,
    destination: SocketAddr,
}

impl Visit<'_> {
    // `None`: it was served or refused, or it broke.
    async fn classify(&self, stream: TcpStream) -> Option<Classified> {
        let heard = match declared(self.port) {
            _ if self.port.strict => first_bytes(stream, STRICT_SILENCE).await,
            // A client that has connected beforehand; no server speaks first.
            Some(_) => first_bytes(stream, IDLE_TIMEOUT).await,
            None => self.hesitate(stream).await,
        };
        let (mut found, mut stream) = heard.ok()?;
        if found == Detected::NeedMore {
            (found, stream) = self.wait_for_word(stream).await?;
        }
        if found == Detected::Tls {
            match client_hello(stream).await.ok()? {
                (Hello::Mesh, stream) => return mesh(self.shared, stream, self.client).await,
                (Hello::Foreign, plain) => stream = plain,
            }
        }
        self.application.state.habit.learn(found);
        if self.port.protocol == Protocol::Tcp {
            found = Detected::Opaque;
        }
        // A strict port refuses what comes in the clear: a request with a response that says why, opaque bytes with a reset, both in
        // the room where they would be authorized.
        Some(Classified { speak: speaking(found), identity: None, proof: None, io: Downstream::Plain(stream) })
    }

    // Where the application may speak first, and plain clients are let in: a peer that stays silent will get its word. A sidecar must not be taken for
    // one that waits, because what the application says is no TLS; it may be late when its machine is busy. So control is asked who it is, unless
    // it has said so already and the application is known for speaking first.
    async fn hesitate(&self, stream: TcpStream) -> io::Result<(Detected, Prefixed<TcpStream>)> {
        let begun = Instant::now();
        let source = SocketAddr::new(self.client.ip(), self.destination.port());
        let greets = self.application.state.habit.greets();
        let known = greets && self.shared.discovery.snapshot().by_addr.contains_key(&source);
        let (found, stream) = first_bytes(stream, if known { Duration::ZERO } else { HESITATION }).await?;
        if found != Detected::NeedMore {
            return Ok((found, stream));
        }
        let (_, stream) = stream.into_parts();
        let mut byte = [0];
        let patience = tokio::select! {
            biased;
            spoken = stream.peek(&mut byte) => spoken.map(|_| SILENCE)?,
            known = timeout_at(begun + SILENCE, Box::pin(self.shared.discovery.resolve(source))) => match known {
                Ok(Ok(Destination::Endpoint(peer))) if peer.identity.is_some() => MESHED_SILENCE,
                Ok(Ok(Destination::Endpoint(_))) => Duration::ZERO,
                // Nobody's address may be a node's that stands for many pods, meshed ones among them.
                _ => SILENCE.saturating_sub(begun.elapsed()),
            },
        };
        first_bytes(stream, patience).await
    }

    // A peer that has said nothing: to a strict port no plain peer may say anything; elsewhere the application may speak first.
    async fn wait_for_word(&self, stream: Prefixed<TcpStream>) -> Option<(Detected, Prefixed<TcpStream>)> {
        if self.port.strict {
            self.shared.telemetry.refused(Direction::Inbound, Reason::PlaintextRefused);
            self.shared.telemetry.audit_plaintext(self.client, self.destination.port(), "it said nothing");
            reset_on_close(stream.get_ref());
            return None;
        }
        let ends = (self.client, self.destination);
        let served =
            tcp::inbound::serve(self.shared, Downstream::Plain(stream), ends, &self.peer(None), None, true).await;
        let Some(Downstream::Plain(stream)) = served else { return None };
        let (_, stream) = stream.into_parts();
        first_bytes(stream, SILENCE).await.ok()
    }

    fn peer(&self, identity: Option<Identity>) -> Peer {
        let Self { shared, port, .. } = self;
        let source = identity.as_ref().map_or_else(|| "unknown".into(), |identity| identity.short().into());
        let series = shared.telemetry.request_series(&SeriesKey {
            direction: Direction::Inbound,
            source,
            destination: Arc::clone(&port.service),
            destination_workload: Arc::from(shared.config.workload.to_string()),
            tls: if identity.is_some() { Tls::Mtls } else { Tls::Plain },
            sni: None,
        });
        let certificate = identity
            .as_ref()
            .and_then(|peer| HeaderValue::try_from(format!("By={};URI={peer}", shared.config.identity)).ok());
        let address = HeaderValue::try_from(self.client.ip().to_canonical().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        let application = Arc::clone(self.application);
        Peer { identity, known: None, certificate, address, application, series, cells: Mutex::default() }
    }
}

// Mesh TLS: the handshake proves who the peer is, and its ALPN says what is spoken.
async fn mesh(shared: &Shared, stream: Prefixed<TcpStream>, client: SocketAddr) -> Option<Classified> {
    match handshake(shared, stream, client).await {
        Ok(classified) => Some(classified),
        Err((reason, error)) => {
            tracing::debug!(%reason, %error, "mesh TLS refused");
            shared.telemetry.refused(Direction::Inbound, reason);
            None
        }
    }
}

// The whole of the server's side of it, counted.
async fn handshake(
    shared: &Shared,
    stream: Prefixed<TcpStream>,
    client: SocketAddr,
) -> Result<Classified, (Reason, io::Error)> {
    let own = match shared.identity.current() {
        Ok(own) => own,
        Err(reason) => {
            reset_on_close(stream.get_ref());
            return Err((reason, io::Error::other("our own certificate cannot be used")));
        }
    };
    let begun = shared.clock.now();
    let shaken = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(Arc::clone(&own.server)).accept(Wide::new(stream)));
    let checked = shaken.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let checked = checked.map_err(|error| not_shaken(Failure::of(&error), error)).and_then(|tls| {
        let (leaf, speak) = proved(tls.get_ref().1)?;
        let leaf = shared.trust.known(leaf);
        let identity = leaf.identity.clone();
        let proof = shared.trust.revoked.admit(leaf, own.not_after, SystemTime::now());
        let proof = proof.ok_or_else(|| not_shaken(Failure::Revoked, io::Error::other("the peer is revoked")))?;
        Ok((Box::new(tls), identity, proof, speak))
    });
    let handshakes = &shared.telemetry.handshakes;
    match checked {
        Ok((tls, identity, proof, speak)) => {
            handshakes.finished(Direction::Inbound, tls.get_ref().1, shared.clock.now().saturating_sub(begun));
            Ok(Classified { speak, identity: Some(identity), proof: Some(proof), io: Downstream::Mesh(tls) })
        }
        Err((failure, reason, error)) => {
            handshakes.failed(Direction::Inbound, failure);
            shared.telemetry.audit(Direction::Inbound, failure, &client, &error);
            Err((reason, error))
        }
    }
}

// What is counted of a peer whose handshake has failed for that.
fn not_shaken(failure: Failure, error: io::Error) -> (Failure, Reason, io::Error) {
    let revoked = failure == Failure::Revoked;
    (failure, if revoked { Reason::IdentityRevoked } else { Reason::IdentityMismatch }, error)
}

// Who the client of a finished handshake is, and what it will speak.
fn proved(session: &ServerConnection) -> Result<(Leaf, Speak), (Failure, Reason, io::Error)> {
    let leaf = weft_certs::tls::peer_leaf(session.peer_certificates())
        .map_err(|error| not_shaken(Failure::NoCertificate, io::Error::other(error)))?;
    let speak = match session.alpn_protocol() {
        Some(b"weft1-h1") => Speak::H1,
        Some(b"weft1-h2") => Speak::H2,
        Some(b"weft1-tcp") => Speak::Tcp,
        _ => {
            let error = io::Error::other("the peer named no protocol of the mesh");
            return Err((Failure::Protocol, Reason::UpstreamProtocol, error));
        }
    };
    Ok((leaf, speak))
}
