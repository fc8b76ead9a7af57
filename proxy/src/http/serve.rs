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
use tokio::time::sleep;

use super::body::ResBody;
use super::h1::serve::IDLE_TIMEOUT;
use super::session::Session;
use super::{H2_CONN_WINDOW, H2_HEADER_LIST, H2_STREAM_WINDOW, h1, inbound, outbound};
use crate::Shared;
use crate::detect::{Downstream, HEAD_TIMEOUT};
use crate::limits::guarded::{Activity, Guarded};
use crate::upstream::Speak;

/// Requests at a time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 200;
/// A ping after this much silence, and how long its answer may take: a dead peer holds no connection for ever.
const PING_EVERY: Duration = Duration::from_mins(1);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that a client has reset before they were looked at (rapid reset); h2's own default, said here because it is a bound.
const MAX_UNSEEN_RESETS: usize = 20;
/// Streams of one connection that broke HTTP/2's rules, over its life; h2's own default.
const MAX_ERROR_RESETS: usize = 1024;

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
    let io = Guarded::new(io, Arc::clone(&shared));
    let activity = io.activity();
    let service = service_fn(move |request| answer(Arc::clone(&session), request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .max_header_list_size(H2_HEADER_LIST)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONN_WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return count_bound(&shared, ended),
        () = shared.drain.wait() => connection.as_mut().graceful_shutdown(),
        silent = silence(&activity) => match silent {
            Silent::Never => {
                shared.telemetry.bound_hit("h2_preface_time");
                return Ok(());
            }
            // Streams that are open end in their own time.
            Silent::Idle => connection.as_mut().graceful_shutdown(),
        },
    }
    count_bound(&shared, connection.await)
}

enum Silent {
    // Preface and settings have not come in their time.
    Never,
    // There was no request for long.
    Idle,
}

async fn silence(activity: &Activity) -> Silent {
    sleep(HEAD_TIMEOUT).await;
    if !activity.begun() {
        return Silent::Never;
    }
    loop {
        activity.take_progress();
        sleep(IDLE_TIMEOUT).await;
        if !activity.take_progress() {
            return Silent::Idle;
        }
    }
}

// The library's own bounds end a connection with ENHANCE_YOUR_CALM.
fn count_bound(shared: &Shared, ended: hyper::Result<()>) -> hyper::Result<()> {
    let below = ended.as_ref().err().and_then(std::error::Error::source);
    let told = below.and_then(|error| error.downcast_ref::<h2::Error>());
    if told.is_some_and(|error| error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)) {
        shared.telemetry.bound_hit("h2_calm");
    }
    ended
}
