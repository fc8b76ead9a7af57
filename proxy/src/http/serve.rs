//! A client's connection, served by hyper until it ends or the proxy has drained.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::body::ResBody;
use super::guarded::Guarded;
use super::session::Session;
use super::{H2_CONN_WINDOW, H2_HEADER_LIST, H2_STREAM_WINDOW, inbound, outbound};
use crate::detect::Downstream;
use crate::upstream::Speak;

/// Header fields of one request.
const MAX_HEADERS: usize = weft_engine::head::MAX_FIELDS;
/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 200;
/// A ping after this much silence, and how long its answer may take: a dead peer holds no connection for ever.
const PING_EVERY: Duration = Duration::from_mins(1);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves `io` to its end.
pub async fn serve(session: Arc<Session>, io: Downstream) {
    let client = session.client;
    let ended = match session.speak {
        Speak::H2 => serve_h2(session, io).await,
        Speak::H1 | Speak::Tcp => serve_h1(session, io).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "connection ended");
    }
}

async fn answer(session: Arc<Session>, request: Request<Incoming>) -> Result<Response<ResBody>, Infallible> {
    Ok(if session.inbound.is_some() {
        inbound::handle(session, request).await
    } else {
        outbound::handle(session, request).await
    })
}

// Draining needs nothing here: each response says `Connection: close` then. An idle connection stays open until the proxy ends, because
// closing it could cross a request on its way.
async fn serve_h1(session: Arc<Session>, io: Downstream) -> hyper::Result<()> {
    let head_bytes = session.shared.config.limits.head_bytes;
    let io = TokioIo::new(Guarded::new(io, Arc::clone(&session.phase), head_bytes));
    let service = service_fn(move |request| answer(Arc::clone(&session), request));
    http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(MAX_HEADERS)
        .max_header_size(head_bytes)
        .header_read_timeout(None)
        .auto_date_header(false)
        .serve_connection(io, service)
        .with_upgrades()
        .await
}

async fn serve_h2(session: Arc<Session>, io: Downstream) -> hyper::Result<()> {
    let shared = Arc::clone(&session.shared);
    let service = service_fn(move |request| answer(Arc::clone(&session), request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(H2_HEADER_LIST)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONN_WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = shared.drain.wait() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
