//! Opaque bytes of our own application, on their way out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use weft_engine::outcome::MAX_ATTEMPTS;
use weft_engine::reason::Reason;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::relay::{Broken, relay};
use super::{Connection, FirstWord, first_word, reset_on_close};
use crate::Shared;
use crate::detect::{Detected, Habit, Prefixed, SILENCE, first_bytes};
use crate::discovery::snapshot::{Backend, Destination, Endpoint};
use crate::http::session::outbound_series;
use crate::telemetry::Direction;
use crate::upstream::pick::{Picked, pick};
use crate::upstream::{Speak, Stream, Target, connect};

/// How long a connection that turned out to be of no use may take to be closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Relays a connection to what its destination means. `silent`: its client has said nothing yet; it is given back if it speaks HTTP before
/// the server says anything, and what it was is told to that habit.
pub async fn serve(
    shared: &Arc<Shared>,
    mut client: Prefixed<TcpStream>,
    (from, to): (SocketAddr, SocketAddr),
    meaning: &Result<Destination, Reason>,
    silent: Option<&Habit>,
) -> Option<(Detected, Prefixed<TcpStream>)> {
    let mut connection = Connection::begin(shared, Direction::Outbound, from, to);
    let opened = match meaning {
        Err(reason) => Err(*reason),
        Ok(Destination::Service(service)) => Box::pin(open_backend(shared, &service.own)).await,
        Ok(Destination::Endpoint(endpoint)) => Box::pin(open_endpoint(shared, endpoint)).await,
        Ok(Destination::Outside) => {
            let endpoint = shared.discovery.external_endpoint(to);
            Box::pin(open_endpoint(shared, &endpoint)).await
        }
    };
    let mut opened = match opened {
        Ok(opened) => Some(opened),
        Err(reason) => {
            connection.reason = Some(reason);
            None
        }
    };
    let mut said = BytesMut::new();
    if let Some(habit) = silent {
        match first_word(client.get_ref(), opened.as_mut().map(|opened| &mut opened.stream), habit.is_http()).await {
            FirstWord::Client => {
                let (found, looked) = first_bytes(client.into_parts().1, SILENCE).await.ok()?;
                habit.learn(found);
                if matches!(found, Detected::Http1 | Detected::Http2) {
                    connection.forget();
                    if let Some(mut opened) = opened {
                        // In order: a server logs a reset, and says nothing of a client that has thought better of it.
                        let _ = timeout(FAREWELL, opened.stream.shutdown()).await;
                    }
                    return Some((found, looked));
                }
                client = looked;
            }
            FirstWord::Server(bytes) => {
                habit.learn(Detected::Opaque);
                said = bytes;
            }
            FirstWord::Nobody => {
                connection.reason.get_or_insert(Reason::UpstreamReset);
                opened = None;
            }
        }
    }
    let Some(opened) = opened else {
        reset_on_close(client.get_ref());
        return None;
    };
    connection.endpoint = Some(Arc::clone(&opened.endpoint.name));
    connection.opened(outbound_series(shared, &opened.endpoint, &opened.label));
    let mut server = Prefixed::with(said, opened.stream);
    connection.moved = relay(&mut client, &mut server).await;
    match &connection.moved.broken {
        Some(Broken::First(_)) => reset_on_close(server.get_ref().socket()),
        Some(Broken::Second(_)) => reset_on_close(client.get_ref()),
        None => {}
    }
    None
}

struct Opened {
    stream: Stream,
    endpoint: Arc<Endpoint>,
    label: Arc<str>,
    _load: Held,
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

async fn open_backend(shared: &Arc<Shared>, backend: &Arc<Backend>) -> Result<Opened, Reason> {
    let mut tried: Vec<Picked> = Vec::new();
    let mut last = Reason::NoEndpoints;
    for _ in 0..MAX_ATTEMPTS {
        let Some(picked) = pick(shared, backend, &tried).await? else { break };
        let target = Target { shared, endpoint: &picked.endpoint, sni: picked.sni.as_deref() };
        match open(shared, target, &backend.label).await {
            Ok(opened) => return Ok(opened),
            Err(reason) => last = reason,
        }
        tried.push(picked);
    }
    Err(last)
}

async fn open_endpoint(shared: &Arc<Shared>, endpoint: &Arc<Endpoint>) -> Result<Opened, Reason> {
    open(shared, Target { shared, endpoint, sni: None }, &endpoint.workload).await
}

async fn open(shared: &Arc<Shared>, target: Target<'_>, label: &Arc<str>) -> Result<Opened, Reason> {
    let begun = shared.clock.now();
    let stream = connect::connect(target.shared, target.endpoint, target.sni, Speak::Tcp)
        .await
        .map_err(|error| error.reason())?;
    target.endpoint.state.load.begin();
    let endpoint = Arc::clone(target.endpoint);
    let connected_in = shared.clock.now().saturating_sub(begun);
    let load = Held { shared: Arc::clone(shared), endpoint: Arc::clone(&endpoint), connected_in };
    Ok(Opened { stream, endpoint, label: Arc::clone(label), _load: load })
}
