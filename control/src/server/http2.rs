//! A proxy's connection: HTTP/2 by the library that the sidecar has, all of it in one task.
//!
//! What control has to say is made, framed, encrypted and written in one go, and an answer is read and taken in another: no task, channel or
//! wake-up stands between. It is also what makes an idle connection small.
//!
//! Invariants
//! - A peer that has been silent for a while is asked whether it lives, and cut off if it does not answer.
//! - At most [`MAX_STREAMS`] streams at a time; of what is written at most [`SEND_ROOM`] bytes and a message wait for each that reads nothing.
//! - A connection that control ends says so, and goes on until its streams have ended.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use super::tls::{Connection, Spoke};
use crate::auth::Peer;
use crate::distribute::ads::Ads;
use crate::replicas::follow::PING;
use crate::replicas::tell;

/// Streams on one connection: discovery, a drain, a certificate.
const MAX_STREAMS: u32 = 16;
const SEND_ROOM: usize = 64 * 1024;
/// Of all header fields of a request.
const MAX_HEADERS: u32 = 16 * 1024;
/// For the first bytes of HTTP/2, which a client sends at once.
const PREFACE_TIME: Duration = Duration::from_secs(10);

/// What is served.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) ads: Ads,
    /// All but discovery.
    pub(super) others: Routes,
    /// How long a peer may be silent, and how long it may think when asked whether it lives.
    pub(super) keepalive: (Duration, Duration),
}

/// One stream, until it has ended.
type Exchange = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves a connection until it ends, or until `stopping` and then until its streams have ended.
///
/// Not itself `async`: what a task was begun with has its place in it for as long as it lasts, beside what came of it.
pub(super) fn serve(
    io: Connection,
    services: Arc<Services>,
    stopping: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let (peer, spoke) = (Arc::new(io.peer()), io.spoke());
    // Boxed: it is needed once.
    let shaken = Box::pin(async move {
        let mut builder = Builder::new();
        builder.max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEADERS).max_send_buffer_size(SEND_ROOM);
        let shaken = tokio::time::timeout(PREFACE_TIME, builder.handshake::<_, Bytes>(io)).await;
        shaken.ok()?.ok().map(Box::new)
    });
    async move {
        let Some(connection) = shaken.await else { return };
        exchanges(connection, spoke, &peer, &services, &stopping).await;
    }
}

async fn exchanges(
    mut connection: Box<h2::server::Connection<Connection, Bytes>>,
    spoke: Spoke,
    peer: &Peer,
    services: &Services,
    stopping: &CancellationToken,
) {
    let replica = AtomicBool::new(false);
    let mut dead = pin!(silent(connection.ping_pong(), spoke, services.keepalive, &replica));
    let mut stop = pin!(stopping.cancelled());
    let (mut stops, mut open) = (false, Vec::<Exchange>::with_capacity(1));
    poll_fn(|cx| {
        if dead.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !stops && stop.as_mut().poll(cx).is_ready() {
            stops = true;
            connection.graceful_shutdown();
        }
        loop {
            // First what they have to say: it goes out with what the connection writes then.
            open.retain_mut(|exchange| exchange.as_mut().poll(cx).is_pending());
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    // Whoever says so without being one is only asked more often.
                    replica.fetch_or(tell::is_for(&request), Ordering::Relaxed);
                    open.extend(exchange(services, peer, request, respond));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// Returns when the peer is dead. Another control is asked as often as it asks us: while it may be there, decisions wait for it.
async fn silent(
    pings: Option<PingPong>,
    spoke: Spoke,
    (interval, patience): (Duration, Duration),
    replica: &AtomicBool,
) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        let replica = replica.load(Ordering::Relaxed);
        let bounded = |time: Duration| if replica { time.min(PING) } else { time };
        let (interval, patience) = (bounded(interval), bounded(patience));
        tokio::time::sleep(interval).await;
        if !spoke.take() && tokio::time::timeout(patience, pings.ping(Ping::opaque())).await.is_err() {
            return;
        }
    }
}

/// `None`: it was answered at once.
fn exchange(
    services: &Services,
    peer: &Peer,
    mut request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Option<Exchange> {
    request.extensions_mut().insert(peer.clone());
    if Ads::is_for(&request) {
        return services.ads.serve(request, respond).map(|stream| Box::pin(stream) as Exchange);
    }
    let others = services.others.clone();
    Some(Box::pin(async move {
        // Whether the peer took it does not matter any more.
        let _ = answer(others, request, respond).await;
    }))
}

/// A call of a service that knows nothing of this connection.
async fn answer(
    mut services: Routes,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let request = request.map(|stream| Body::new(Incoming(stream)));
    let response = tokio::select! {
        response = services.call(request) => response.unwrap_or_else(|never| match never {}),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return Ok(()),
    };
    let (head, mut body) = response.into_parts();
    let ended = body.is_end_stream();
    let mut out = respond.send_response(Response::from_parts(head, ()), ended)?;
    while !out_ended(ended, &mut body, &mut out).await? {}
    Ok(())
}

/// Waits until the peer has room for more than was said. False if it takes nothing any more.
pub(crate) async fn room(out: &mut SendStream<Bytes>) -> bool {
    out.reserve_capacity(1);
    while out.capacity() == 0 {
        if !matches!(poll_fn(|cx| out.poll_capacity(cx)).await, Some(Ok(_))) {
            return false;
        }
    }
    true
}

/// Passes on the next part of a body. Whether it was the last.
async fn out_ended(ended: bool, body: &mut Body, out: &mut SendStream<Bytes>) -> Result<bool, h2::Error> {
    if ended || !room(out).await {
        return Ok(true);
    }
    let frame = tokio::select! {
        frame = body.frame() => frame,
        _ = poll_fn(|cx| out.poll_reset(cx)) => return Ok(true),
    };
    let Some(Ok(frame)) = frame else {
        out.send_data(Bytes::new(), true)?;
        return Ok(true);
    };
    match frame.into_data().map_err(Frame::into_trailers) {
        Ok(data) => out.send_data(data, false).map(|()| false),
        Err(trailers) => out.send_trailers(trailers.unwrap_or_default()).map(|()| true),
    }
}

/// The body of a request.
struct Incoming(RecvStream);

impl hyper::body::Body for Incoming {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self(stream) = &mut *self;
        loop {
            return match std::task::ready!(stream.poll_data(cx)) {
                // That of an empty frame.
                Some(Ok(data)) if data.is_empty() => continue,
                Some(Ok(data)) => {
                    // Who reads it bounds it. It fails only for more than was given.
                    let _ = stream.flow_control().release_capacity(data.len());
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Some(Err(error)) => Poll::Ready(Some(Err(io::Error::other(error)))),
                None => {
                    let trailers: Result<Option<HeaderMap>, h2::Error> = std::task::ready!(stream.poll_trailers(cx));
                    let trailers = trailers.map_err(io::Error::other).transpose();
                    Poll::Ready(trailers.map(|fields| fields.map(Frame::trailers)))
                }
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
