//! A client's connection, served until it ends or the proxy has drained: HTTP/1 by [`super::h1`], HTTP/2 by hyper.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::body::ResBody;
use super::session::Session;
use super::{H2_CONN_WINDOW, H2_HEADER_LIST, H2_STREAM_WINDOW, h1, inbound, outbound};
use crate::detect::Downstream;
use crate::upstream::Speak;

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
        Speak::H1 | Speak::Tcp => {
            h1::serve::serve(session, io).await;
            Ok(())
        }
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
