//! A connection of our own application: what its destination means, what it speaks, and the way that it takes from there.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;
use weft_engine::detect::detect;
use weft_engine::reason::Reason;

use crate::Shared;
use crate::detect::{Detected, Downstream, Habit, Prefixed, SILENCE, first_bytes, server_name};
use crate::discovery::named;
use crate::discovery::snapshot::{Destination, Protocol};
use crate::http::serve::serve as serve_http;
use crate::http::session::Session;
use crate::tcp;
use crate::upstream::Speak;

/// Serves one connection to its end.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream, client: SocketAddr, destination: SocketAddr) {
    let ends = (client, destination);
    let begun = Instant::now();
    let meaning = shared.discovery.resolve(destination).await;
    if matches!(meaning, Ok(Destination::Outside)) {
        shared.telemetry.unmeshed();
    }
    let recognised = Box::pin(recognise(&shared, stream, begun, ends, &meaning)).await;
    let Some((speak, stream)) = recognised else { return };
    if speak == Speak::Tcp {
        if shared.config.socket_lb {
            Box::pin(by_name(&shared, stream, ends, meaning)).await;
            return;
        }
        Box::pin(tcp::outbound::serve(&shared, stream, ends, &meaning, None)).await;
        return;
    }
    // Each request asks anew what its destination means.
    drop(meaning);
    let session = Session { shared, speak, client, destination, inbound: None, ends: None };
    serve_http(Arc::new(session), Downstream::Plain(stream)).await;
}

/// A connection that is no HTTP, where the name that its client asks for by TLS may say more than a pod's address.
async fn by_name(
    shared: &Arc<Shared>,
    mut stream: Prefixed<TcpStream>,
    ends: (SocketAddr, SocketAddr),
    mut meaning: Result<Destination, Reason>,
) {
    if let Ok(Destination::Endpoint(endpoint)) = &meaning
        && detect(stream.prefix()) == Detected::Tls
    {
        // What decides where it goes is read whole.
        let Ok((sni, looked)) = server_name(stream).await else { return };
        let called = sni.as_deref().map_or_else(Vec::new, |sni| named::by_sni(sni, ends.1));
        meaning = Ok(named::meant(shared, Arc::clone(endpoint), called, ends.1).await);
        stream = looked;
    }
    tcp::outbound::serve(shared, stream, ends, &meaning, None).await;
}

/// What a connection speaks. `None`: its bytes are opaque and it has been served, or it broke.
///
/// A client that is silent may be waiting for the server, which is called then, with what is known: that no HTTP has come. How long it is
/// silent before, depends on what connections to this destination were before: not at all, or long enough for any client. The time that it
/// took to find out what the destination means is part of that: the client could have spoken.
async fn recognise(
    shared: &Arc<Shared>,
    stream: TcpStream,
    begun: Instant,
    ends: (SocketAddr, SocketAddr),
    meaning: &Result<Destination, Reason>,
) -> Option<(Speak, Prefixed<TcpStream>)> {
    let (protocol, habit, by_name) = match meaning {
        Ok(Destination::Service(service)) => (service.protocol, Some(&service.own.habit), service.reads_tls()),
        // Not ours to look into.
        Ok(Destination::Outside) => (Protocol::Tcp, None, false),
        Ok(Destination::Endpoint(endpoint)) => (Protocol::Detect, Some(&endpoint.state.habit), false),
        Err(_) => (Protocol::Detect, None, false),
    };
    match protocol {
        Protocol::Tcp if !by_name => return Some((Speak::Tcp, Prefixed::new(stream))),
        Protocol::Http1 => return Some((Speak::H1, Prefixed::new(stream))),
        Protocol::Http2 => return Some((Speak::H2, Prefixed::new(stream))),
        Protocol::Tcp | Protocol::Detect => {}
    }
    let speaking = |found| if protocol == Protocol::Tcp { Speak::Tcp } else { speaking(found) };
    // Where names decide, TLS is expected: its clients speak first, and whom to call before they have is not known.
    let patience = habit.filter(|_| !by_name).map_or(SILENCE, Habit::patience);
    let patience = patience.saturating_sub(begun.elapsed());
    let (found, stream) = first_bytes(stream, patience).await.ok()?;
    if let Some(habit) = habit {
        habit.learn(found);
    }
    if found != Detected::NeedMore {
        return Some((speaking(found), stream));
    }
    let (found, stream) =
        tcp::outbound::serve(shared, stream, ends, meaning, Some(habit.unwrap_or(&Habit::default()))).await?;
    Some((speaking(found), stream))
}

/// What a connection in the clear speaks, by its first bytes.
pub fn speaking(found: Detected) -> Speak {
    match found {
        Detected::Http1 => Speak::H1,
        Detected::Http2 => Speak::H2,
        Detected::Tls | Detected::Opaque | Detected::NeedMore => Speak::Tcp,
    }
}
