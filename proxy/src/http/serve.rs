//! A client's connection, served until it ends or the proxy has drained: HTTP/1 by [`super::h1`], HTTP/2 by [`super::h2`].

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use h2::server::Builder;
use tokio::time::{Instant, sleep, sleep_until};

use super::h1;
use super::h1::serve::IDLE_TIMEOUT;
use super::h2::connection::Connection;
use super::h2::{CONN_WINDOW, HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use super::session::Session;
use crate::Shared;
use crate::detect::{Downstream, HEAD_TIMEOUT};
use crate::identity::revoked::Proof;
use crate::limits::guarded::{Activity, Guarded};
use crate::telemetry::Direction;
use crate::telemetry::counters::Retired;
use crate::upstream::Speak;

/// Streams that a client has reset before they were looked at (rapid reset); h2's own default, said here because it is a bound.
const MAX_UNSEEN_RESETS: usize = 20;
/// Streams of one connection that broke HTTP/2's rules, over its life; h2's own default.
const MAX_ERROR_RESETS: usize = 1024;

/// Serves `io` to its end, or until the client that has proved this is not believed any more.
pub fn serve_proved(
    session: Arc<Session>,
    io: Downstream,
    mut proof: Option<Proof>,
) -> impl Future<Output = ()> + Send {
    let shared = Arc::clone(&session.shared);
    // Boxed: an async function would hold it twice, as its argument and where it is polled.
    let mut serving = Box::pin(serve(session, io));
    poll_fn(move |cx| {
        // Before anything else: no byte passes that has come since.
        if proof.as_mut().is_some_and(|proof| proof.poll_revoked(cx).is_ready()) {
            shared.telemetry.retired.add(Direction::Inbound, Retired::Revoked);
            return Poll::Ready(());
        }
        serving.as_mut().poll(cx)
    })
}

/// Serves `io` to its end.
pub async fn serve(session: Arc<Session>, io: Downstream) {
    let client = session.client;
    let ended = match session.speak {
        // Boxed: it is larger, and idle connections of HTTP/1 would be as large.
        Speak::H2 => Box::pin(serve_h2(session, io)).await,
        Speak::H1 | Speak::Tcp => {
            h1::serve::serve(session, io).await;
            Ok(())
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "connection ended");
    }
}

async fn serve_h2(session: Arc<Session>, io: Downstream) -> Result<(), h2::Error> {
    let shared = Arc::clone(&session.shared);
    let io = Guarded::new(io, Arc::clone(&shared));
    let activity = io.activity();
    let mut bounds = Builder::new();
    bounds
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .max_header_list_size(HEADER_LIST)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONN_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        // What an application takes is known when it is called; one that does not is answered so.
        .enable_connect_protocol();
    let connection = Connection::new(Arc::clone(&session), io, &bounds);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return count_bound(&shared, ended),
        () = shared.drain.wait() => connection.leave(),
        () = over(session.ends) => {
            session.retired();
            connection.leave();
        }
        silent = silence(&activity) => match silent {
            Silent::Never => {
                shared.telemetry.bound_hit("h2_preface_time");
                return Ok(());
            }
            // Streams that are open end in their own time.
            Silent::Idle => connection.leave(),
        },
    }
    count_bound(&shared, connection.await)
}

// The certificates have ended. Streams that are open end in their own time.
async fn over(ends: Option<Instant>) {
    match ends {
        Some(ends) => sleep_until(ends).await,
        None => std::future::pending().await,
    }
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
fn count_bound(shared: &Shared, ended: Result<(), h2::Error>) -> Result<(), h2::Error> {
    let told = ended.as_ref().err();
    if told.is_some_and(|error| error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)) {
        shared.telemetry.bound_hit("h2_calm");
    }
    ended
}
