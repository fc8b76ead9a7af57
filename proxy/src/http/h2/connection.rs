//! A client's HTTP/2 connection: it is driven by one task, and each request that comes gets a task of its own.
//!
//! Invariants
//! - A peer that answers no PING in time holds no connection: [`PING_EVERY`], [`PING_TIMEOUT`].
//! - A connection that leaves says GOAWAY twice (RFC 9113 section 6.8): first with no stream refused, and once the client must have
//!   heard of it with the last stream that is served.
//! - While requests are turned away it leaves with the next that comes: what waits for one costs nothing, as over HTTP/1.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, Builder, Handshake};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::exchange::run;
use super::pipe::Settles;
use crate::http::session::Session;

/// A ping every so often, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_mins(1);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The connection; it ends when the client has, or when it was told to leave and its last stream has ended.
pub struct Connection<T> {
    session: Arc<Session>,
    state: State<T>,
    leaving: bool,
}

enum State<T> {
    Handshake(Handshake<T, Bytes>),
    Open(Open<T>),
}

struct Open<T> {
    connection: server::Connection<T, Bytes>,
    // Ends when the peer is dead.
    alive: Pin<Box<dyn Future<Output = ()> + Send>>,
    // The peer has acknowledged our settings.
    settled: watch::Receiver<bool>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Open<T> {
    fn new(mut connection: server::Connection<T, Bytes>) -> Self {
        let (settles, settled) = watch::channel(false);
        let alive = Box::pin(keep_alive(connection.ping_pong(), settles));
        Self { connection, alive, settled }
    }

    fn settles(&self) -> Option<Settles> {
        if *self.settled.borrow() {
            return None;
        }
        let mut settled = self.settled.clone();
        // It fails only if the connection has ended.
        Some(Box::pin(async move { drop(settled.wait_for(|settled| *settled).await) }))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Connection<T> {
    /// A connection of which nothing was read, with bounds of the caller's.
    pub fn new(session: Arc<Session>, io: T, bounds: &Builder) -> Self {
        Self { session, state: State::Handshake(bounds.handshake(io)), leaving: false }
    }

    /// Takes no further streams; those that are open end in their own time.
    pub fn leave(&mut self) {
        self.leaving = true;
        if let State::Open(open) = &mut self.state {
            open.connection.graceful_shutdown();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Connection<T> {
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let State::Handshake(handshake) = &mut this.state {
            let mut connection = ready!(Pin::new(handshake).poll(cx))?;
            if this.leaving {
                connection.graceful_shutdown();
            }
            this.state = State::Open(Open::new(connection));
        }
        let State::Open(open) = &mut this.state else { return Poll::Pending };
        if open.alive.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while let Poll::Ready(came) = open.connection.poll_accept(cx) {
            match came {
                Some(Ok((request, respond))) => {
                    if !this.leaving && this.session.turns_away() {
                        this.leaving = true;
                        open.connection.graceful_shutdown();
                    }
                    // As a pointer: the runtime moves what it is given several times, and this is kilobytes.
                    tokio::spawn(Box::pin(run(Arc::clone(&this.session), request, respond, open.settles())));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        Poll::Pending
    }
}

// Ends when the peer is dead. Its answer to the first ping comes behind its acknowledgement of our settings (RFC 9113 section 6.5.3).
async fn keep_alive(pings: Option<PingPong>, settles: watch::Sender<bool>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    if timeout(PING_EVERY + PING_TIMEOUT, pings.ping(Ping::opaque())).await.is_err() {
        return;
    }
    settles.send_replace(true);
    loop {
        sleep(PING_EVERY).await;
        // An error is the connection's own, and ends it.
        if timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await.is_err() {
            return;
        }
    }
}
