//! A connection of our own application: what its destination means, what it speaks, and the way that it takes from there.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use weft_engine::reason::Reason;

use crate::Shared;
use crate::detect::{Detected, Downstream, Prefixed, SILENCE, first_bytes};
use crate::discovery::snapshot::{Destination, Protocol};
use crate::http::serve::serve as serve_http;
use crate::http::session::Session;
use crate::tcp;
use crate::upstream::Speak;

/// Serves one connection to its end.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream, client: SocketAddr, destination: SocketAddr) {
    let ends = (client, destination);
    let meaning = shared.discovery.resolve(destination).await;
    if matches!(meaning, Ok(Destination::Outside)) {
        shared.telemetry.unmeshed();
    }
    let recognised = Box::pin(recognise(&shared, stream, ends, &meaning)).await;
    let Some((speak, stream)) = recognised else { return };
    if speak == Speak::Tcp {
        Box::pin(tcp::outbound::serve(&shared, stream, ends, &meaning, false)).await;
        return;
    }
    // Each request asks anew what its destination means.
    drop(meaning);
    let session = Session { shared, speak, client, destination, inbound: None };
    serve_http(Arc::new(session), Downstream::Plain(stream)).await;
}

/// What a connection speaks. `None`: the server spoke first and it has been served, or it broke.
async fn recognise(
    shared: &Arc<Shared>,
    stream: TcpStream,
    ends: (SocketAddr, SocketAddr),
    meaning: &Result<Destination, Reason>,
) -> Option<(Speak, Prefixed<TcpStream>)> {
    let protocol = match meaning {
        Ok(Destination::Service(service)) => service.protocol,
        // Not ours to look into.
        Ok(Destination::Outside) => Protocol::Tcp,
        Ok(Destination::Endpoint(_)) | Err(_) => Protocol::Detect,
    };
    let (found, stream) = match protocol {
        Protocol::Tcp => return Some((Speak::Tcp, Prefixed::new(stream))),
        Protocol::Http1 => return Some((Speak::H1, Prefixed::new(stream))),
        Protocol::Http2 => return Some((Speak::H2, Prefixed::new(stream))),
        Protocol::Detect => first_bytes(stream, SILENCE).await.ok()?,
    };
    if found != Detected::NeedMore {
        return Some((speaking(found), stream));
    }
    let stream = tcp::outbound::serve(shared, stream, ends, meaning, true).await?;
    let (_, stream) = stream.into_parts();
    let (found, stream) = first_bytes(stream, SILENCE).await.ok()?;
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
