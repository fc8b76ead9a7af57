//! A connection of our own application: what its destination means, what it speaks, and the way that it takes from there.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use weft_engine::reason::Reason;

use crate::Shared;
use crate::detect::{Detected, Downstream, Prefixed, Reject, SILENCE, first_bytes, whole_head};
use crate::discovery::snapshot::{Destination, Protocol};
use crate::http::refuse::raw_refusal;
use crate::http::serve::serve as serve_http;
use crate::http::session::Session;
use crate::tcp;
use crate::telemetry::Direction;
use crate::upstream::Speak;

/// Serves one connection to its end.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream, client: SocketAddr, destination: SocketAddr) {
    let ends = (client, destination);
    let meaning = shared.discovery.resolve(destination).await;
    if matches!(meaning, Ok(Destination::Outside)) {
        shared.telemetry.unmeshed();
    }
    let recognised = match Box::pin(recognise(&shared, stream, ends, &meaning)).await {
        Ok(recognised) => recognised,
        Err(refused) => return refuse(&shared, Direction::Outbound, refused, true).await,
    };
    let Some((speak, stream)) = recognised else { return };
    if speak == Speak::Tcp {
        Box::pin(tcp::outbound::serve(&shared, stream, ends, &meaning, false)).await;
        return;
    }
    // Each request asks anew what its destination means.
    drop(meaning);
    let session = Session { shared, speak, client, destination, phase: Arc::default(), inbound: None };
    serve_http(Arc::new(session), Downstream::Plain(stream)).await;
}

/// What a connection speaks. `None`: the server spoke first, and it has been served.
async fn recognise(
    shared: &Arc<Shared>,
    stream: TcpStream,
    ends: (SocketAddr, SocketAddr),
    meaning: &Result<Destination, Reason>,
) -> Result<Option<(Speak, Prefixed<TcpStream>)>, Option<Reject>> {
    let protocol = match meaning {
        Ok(Destination::Service(service)) => service.protocol,
        // Not ours to look into.
        Ok(Destination::Outside) => Protocol::Tcp,
        Ok(Destination::Endpoint(_)) | Err(_) => Protocol::Detect,
    };
    let (found, stream) = match protocol {
        Protocol::Tcp => return Ok(Some((Speak::Tcp, Prefixed::new(stream)))),
        Protocol::Http1 => return Ok(Some((Speak::H1, Prefixed::new(stream)))),
        Protocol::Http2 => return Ok(Some((Speak::H2, Prefixed::new(stream)))),
        Protocol::Detect => first_bytes(stream, SILENCE).await.map_err(|_| None)?,
    };
    if found != Detected::NeedMore {
        return speaking(found, stream, shared).await.map(Some);
    }
    let Some(stream) = tcp::outbound::serve(shared, stream, ends, meaning, true).await else { return Ok(None) };
    let (_, stream) = stream.into_parts();
    let (found, stream) = first_bytes(stream, SILENCE).await.map_err(|_| None)?;
    speaking(found, stream, shared).await.map(Some)
}

/// What a connection in the clear speaks, by its first bytes. The first head of an HTTP/1 one has been read and checked.
///
/// # Errors
/// A head that must not be parsed.
pub async fn speaking(
    found: Detected,
    stream: Prefixed<TcpStream>,
    shared: &Shared,
) -> Result<(Speak, Prefixed<TcpStream>), Option<Reject>> {
    match found {
        Detected::Http1 => {
            let stream = whole_head(stream, shared.config.limits.head_bytes).await.map_err(Some)?;
            Ok((Speak::H1, stream))
        }
        Detected::Http2 => Ok((Speak::H2, stream)),
        Detected::Tls | Detected::Opaque | Detected::NeedMore => Ok((Speak::Tcp, stream)),
    }
}

/// Answers a head that must not be parsed, in so many bytes, and closes.
pub async fn refuse(shared: &Shared, direction: Direction, refused: Option<Reject>, named: bool) {
    let Some(Reject { reason, mut stream }) = refused else { return };
    shared.telemetry.refused(direction, reason);
    // The client may be gone already; then there is nobody to tell.
    let _ = stream.write_all(&raw_refusal(reason, named)).await;
    let _ = stream.shutdown().await;
}
