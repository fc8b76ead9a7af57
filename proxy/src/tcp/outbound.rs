//! Opaque bytes of our own application, on their way out.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use weft_engine::outcome::MAX_ATTEMPTS;
use weft_engine::reason::Reason;
use weft_engine::route::Opening;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::relay::relay_until;
use super::{Connection, FirstWord, first_word, reset_on_close};
use crate::Shared;
use crate::detect::{Detected, Habit, Prefixed, SILENCE, first_bytes, server_name, server_name_in};
use crate::discovery::snapshot::{Backend, Destination, Endpoint};
use crate::http::session::{outbound_key, outbound_series};
use crate::identity::revoked::{Proof, revoked};
use crate::telemetry::counters::Retired;
use crate::telemetry::{Direction, OTHER, RequestSeries, SeriesKey};
use crate::upstream::pick::{Picked, pick};
use crate::upstream::{Connected, Speak, Stream, Target};

/// How long a connection that turned out to be of no use may take to be closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Relays a connection to what its destination means, by the first bytes that were read of it. `silent`: its client has said nothing yet; it is
/// given back if it speaks HTTP before the server says anything, or TLS whose name decides where it goes, and what it was is told to that habit.
pub async fn serve(
    shared: &Arc<Shared>,
    client: Prefixed<TcpStream>,
    (from, to): (SocketAddr, SocketAddr),
    meaning: &Result<Destination, Reason>,
    silent: Option<&Habit>,
) -> Option<(Detected, Prefixed<TcpStream>)> {
    let mut connection = Connection::begin(shared, Direction::Outbound, from, to);
    let by_name = matches!(meaning, Ok(Destination::Service(service)) if service.reads_tls());
    let (mut tls, mut client) = match look(client, by_name).await {
        Ok((tls, sni, looked)) => {
            connection.sni = sni;
            (tls, looked)
        }
        Err(error) => {
            connection.reason = (error.kind() == ErrorKind::TimedOut).then_some(Reason::RequestTimeout);
            return None;
        }
    };
    let opening = if tls { Opening::Tls { sni: connection.sni.as_deref() } } else { Opening::Opaque };
    let mut opened = Box::pin(open_way(shared, to, meaning, opening)).await;
    let mut said = BytesMut::new();
    if let Some(habit) = silent {
        match hear(client, opened.as_mut().ok(), habit, by_name).await {
            Heard::Client { looked, found } => {
                (tls, client) = (found == Detected::Tls, looked);
                connection.sni = if tls { server_name_in(client.prefix()) } else { None };
            }
            Heard::Server { silent, bytes } => (client, said) = (silent, bytes),
            Heard::Other { looked, found } => {
                connection.forget();
                if let Ok(mut opened) = opened {
                    // In order: a server logs a reset, and says nothing of a client that has thought better of it.
                    let _ = timeout(FAREWELL, opened.stream.shutdown()).await;
                }
                return Some((found, looked));
            }
            Heard::Nobody { silent } => {
                client = silent;
                opened = opened.and(Err(Reason::UpstreamReset));
            }
            Heard::Broken => {
                connection.reason = opened.err();
                return None;
            }
        }
    }
    let opened = match opened {
        Ok(opened) => opened,
        Err(reason) => {
            connection.reason = Some(reason);
            reset_on_close(client.get_ref());
            return None;
        }
    };
    connection.endpoint = Some(Arc::clone(&opened.endpoint.name));
    connection.opened(&opened.series(shared, tls));
    pass(shared, &mut connection, client, Prefixed::with(said, opened.stream), opened.proof).await;
    None
}

// Relays until both have ended, or the server is not believed any more.
async fn pass(
    shared: &Shared,
    connection: &mut Connection,
    mut client: Prefixed<TcpStream>,
    mut server: Prefixed<Stream>,
    mut proof: Option<Proof>,
) {
    let (moved, stopped) = relay_until(&mut client, &mut server, revoked(&mut proof)).await;
    moved.pass_break_on(&client, &server);
    if stopped.is_some() {
        shared.telemetry.retired.add(Direction::Outbound, Retired::Revoked);
        connection.reason = Some(Reason::IdentityRevoked);
        reset_on_close(client.get_ref());
        reset_on_close(server.get_ref().socket());
    }
    connection.moved = moved;
}

/// What became of a silence.
enum Heard {
    /// The client speaks what goes on here.
    Client {
        looked: Prefixed<TcpStream>,
        found: Detected,
    },
    /// The client speaks what goes another way.
    Other {
        looked: Prefixed<TcpStream>,
        found: Detected,
    },
    Server {
        silent: Prefixed<TcpStream>,
        bytes: BytesMut,
    },
    /// One of them has ended, or there is no server to wait for.
    Nobody {
        silent: Prefixed<TcpStream>,
    },
    Broken,
}

async fn hear(client: Prefixed<TcpStream>, opened: Option<&mut Opened>, habit: &Habit, by_name: bool) -> Heard {
    let speaks = habit.is_http() || by_name;
    match first_word(client.get_ref(), opened.map(|opened| &mut opened.stream), speaks).await {
        FirstWord::Client => {
            let Ok((found, looked)) = first_bytes(client.into_parts().1, SILENCE).await else { return Heard::Broken };
            habit.learn(found);
            match found {
                Detected::Http1 | Detected::Http2 => Heard::Other { looked, found },
                Detected::Tls if by_name => Heard::Other { looked, found },
                _ => Heard::Client { looked, found },
            }
        }
        FirstWord::Server(bytes) => {
            habit.learn(Detected::Opaque);
            Heard::Server { silent: client, bytes }
        }
        FirstWord::Nobody => Heard::Nobody { silent: client },
    }
}

/// Whether what was read of a connection begins TLS, and the name that its client asks for: read whole if it decides where it goes, else as
/// far as it has come.
async fn look(client: Prefixed<TcpStream>, by_name: bool) -> io::Result<(bool, Option<Arc<str>>, Prefixed<TcpStream>)> {
    if weft_engine::detect::detect(client.prefix()) != Detected::Tls {
        return Ok((false, None, client));
    }
    let (sni, client) =
        if by_name { Box::pin(server_name(client)).await? } else { (server_name_in(client.prefix()), client) };
    Ok((true, sni, client))
}

struct Opened {
    stream: Stream,
    proof: Option<Proof>,
    endpoint: Arc<Endpoint>,
    label: Arc<str>,
    /// The hostname of the route that led here.
    hostname: Option<Arc<str>>,
    _load: Held,
}

impl Opened {
    // Of an application's own TLS by the hostname that it went by: each is one of a route, so there are few.
    fn series(&self, shared: &Shared, tls: bool) -> Arc<RequestSeries> {
        if !tls {
            return Arc::clone(outbound_series(shared, &self.endpoint, &self.label));
        }
        let sni = Some(self.hostname.clone().unwrap_or_else(|| OTHER.into()));
        let key = outbound_key(shared, &self.endpoint, &self.label);
        shared.telemetry.request_series(&SeriesKey { sni, ..key })
    }
}

// Counts as one request of the endpoint's load while it is open: many connections are many users.
struct Held {
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    connected_in: Duration,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.endpoint.state.load.end(self.shared.clock.now(), self.connected_in, true);
    }
}

async fn open_way(
    shared: &Arc<Shared>,
    to: SocketAddr,
    meaning: &Result<Destination, Reason>,
    opening: Opening<'_>,
) -> Result<Opened, Reason> {
    let service = match meaning {
        Err(reason) => return Err(*reason),
        Ok(Destination::Service(service)) => service,
        Ok(Destination::Endpoint(endpoint)) => return open_endpoint(shared, endpoint).await,
        Ok(Destination::Outside) => return open_endpoint(shared, &shared.discovery.external_endpoint(to)).await,
    };
    let taken = service.connections.as_ref().map_or(Ok(None), |table| table.select(opening))?;
    let Some(taken) = taken else { return open_backend(shared, &service.own).await };
    let chosen = taken.backend(fastrand::u64(..))?;
    let backend = service.backend(&chosen.service).ok_or(Reason::InvalidBackend)?;
    let opened = open_backend(shared, backend).await?;
    Ok(Opened { hostname: taken.hostname.map(|hostname| Arc::clone(hostname.text())), ..opened })
}

async fn open_backend(shared: &Arc<Shared>, backend: &Arc<Backend>) -> Result<Opened, Reason> {
    let mut tried: Vec<Picked> = Vec::new();
    let mut last = Reason::NoEndpoints;
    for _ in 0..MAX_ATTEMPTS {
        let Some(picked) = pick(shared, backend, &tried).await? else { break };
        let target = picked.target(shared);
        match open(shared, target, &backend.label).await {
            Ok(opened) => return Ok(opened),
            Err(reason) => last = reason,
        }
        tried.push(picked);
    }
    Err(last)
}

async fn open_endpoint(shared: &Arc<Shared>, endpoint: &Arc<Endpoint>) -> Result<Opened, Reason> {
    open(shared, Target { shared, endpoint, sni: None, dialled: None }, &endpoint.workload).await
}

async fn open(shared: &Arc<Shared>, target: Target<'_>, label: &Arc<str>) -> Result<Opened, Reason> {
    let begun = shared.clock.now();
    let Connected { stream, proof } = target.connect(Speak::Tcp).await.map_err(|error| error.reason())?;
    target.endpoint.state.load.begin();
    let endpoint = Arc::clone(target.endpoint);
    let connected_in = shared.clock.now().saturating_sub(begun);
    let load = Held { shared: Arc::clone(shared), endpoint: Arc::clone(&endpoint), connected_in };
    Ok(Opened { stream, proof, endpoint, label: Arc::clone(label), hostname: None, _load: load })
}
