//! HTTP/2 connections to one endpoint: shared by requests, a further one when the streams of those there are used up.
//!
//! Invariants
//! - No lock is held while connecting; one attempt runs at a time and those who wait for it share its outcome, failure included.
//! - A request counts as a stream until its response body has ended.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use weft_engine::reason::Reason;

use super::connect::{ConnectError, Speak};
use super::{Stream, Target, end_of_life};
use crate::http::h2::{CONN_WINDOW, HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};

/// Connections to one endpoint; beyond, streams queue in those there are.
const MAX_CONNS: usize = 32;
/// A ping after this much time with open streams, and how long its answer may take. To sidecars only: gRPC servers take it for abuse and
/// end the connection (their least interval is five minutes); an application that is gone shows by TCP's own keep-alive.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams on a connection before the server's word: the least that RFC 9113 section 6.5.2 recommends. A new connection to a server
/// that is known to take fewer is held to that from its first stream: streams that wait for others to end may wait for ever.
const ASSUMED_STREAMS: usize = 100;

/// One connection.
pub struct H2Conn {
    tx: SendRequest<Bytes>,
    state: Arc<State>,
    // From then on it takes no further streams.
    until: Duration,
    // Kept open to the next request: see [`H2Stream::ended`].
    last: Mutex<Option<SendStream<Bytes>>>,
}

// What the connection's task and its users tell each other; it keeps nothing open.
struct State {
    streams: AtomicUsize,
    // Milliseconds of the proxy's clock; `u64::MAX` while it has streams.
    idle_since: AtomicU64,
    // It takes no further streams: the server has said so, or it has ended.
    leaving: AtomicBool,
    // The server's settings have come.
    settled: watch::Sender<bool>,
}

impl H2Conn {
    fn is_leaving(&self) -> bool {
        self.state.leaving.load(Ordering::Relaxed)
    }

    fn leave(&self) {
        self.state.leaving.store(true, Ordering::Relaxed);
    }

    fn streams(&self) -> usize {
        self.state.streams.load(Ordering::Relaxed)
    }
}

/// A stream of a connection, counted while it lives.
pub struct H2Stream(Arc<H2Conn>);

impl Drop for H2Stream {
    fn drop(&mut self) {
        self.0.state.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl H2Stream {
    /// Sends the head of a request, which ends with it if `end`.
    ///
    /// # Errors
    /// Nothing was sent: the connection takes no further streams, or the head cannot be written.
    pub fn open(&self, head: Request<()>, end: bool) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let opened = self.0.tx.clone().send_request(head, end);
        drop(self.0.last.lock().take());
        opened
    }

    /// The request and its response have ended in order. The library wakes a connection when a stream is let go of, to see whether it was
    /// the last; it goes with the next request, which wakes the connection anyway: one poll of it in three less.
    pub fn ended(self, up: SendStream<Bytes>) {
        let before = self.0.last.lock().replace(up);
        drop(before);
    }

    /// Its connection is not chosen again.
    pub fn leave(&self) {
        self.0.leave();
    }

    /// Whether the server takes extended CONNECT (RFC 8441); waits for its settings.
    pub async fn takes_extended_connect(&self) -> bool {
        // It fails only if the connection has ended.
        let settled = self.0.state.settled.subscribe().wait_for(|settled| *settled).await.is_ok();
        settled && self.0.tx.is_extended_connect_protocol_enabled()
    }
}

/// All connections to one endpoint.
pub struct H2Pool {
    conns: Mutex<Vec<Arc<H2Conn>>>,
    // Streams that the server takes on one connection, as it has said last on any.
    max: Arc<AtomicUsize>,
    connecting: Semaphore,
    // (number of failed attempts, the last one's reason)
    failed: Mutex<(u64, Option<Reason>)>,
}

impl Default for H2Pool {
    fn default() -> Self {
        Self {
            max: Arc::new(AtomicUsize::new(ASSUMED_STREAMS)),
            conns: Mutex::default(),
            connecting: Semaphore::new(1),
            failed: Mutex::new((0, None)),
        }
    }
}

impl H2Pool {
    /// A stream on a connection that has room, else on a new connection.
    ///
    /// # Errors
    /// [`ConnectError`]: nothing was sent.
    pub async fn stream(&self, target: &Target<'_>) -> Result<H2Stream, ConnectError> {
        if let Some(stream) = self.reserve(false) {
            return Ok(stream);
        }
        Box::pin(self.connect(target)).await
    }

    // The one with the fewest streams that has room; with `crowded` also one that has none.
    fn reserve(&self, crowded: bool) -> Option<H2Stream> {
        let mut conns = self.conns.lock();
        if conns.iter().any(|conn| conn.is_leaving()) {
            conns.retain(|conn| !conn.is_leaving());
        }
        let max = if crowded { usize::MAX } else { self.max.load(Ordering::Relaxed) };
        let conn = conns.iter().filter(|conn| conn.streams() < max).min_by_key(|conn| conn.streams())?;
        conn.state.streams.fetch_add(1, Ordering::Relaxed);
        conn.state.idle_since.store(u64::MAX, Ordering::Relaxed);
        Some(H2Stream(Arc::clone(conn)))
    }

    async fn connect(&self, target: &Target<'_>) -> Result<H2Stream, ConnectError> {
        let failures = self.failed.lock().0;
        let _turn = self.connecting.acquire().await;
        if let Some(stream) = self.reserve(false) {
            return Ok(stream);
        }
        // Somebody else tried while this one waited: the endpoint is as dead for us.
        let (now_failed, reason) = *self.failed.lock();
        if now_failed != failures {
            return Err(ConnectError::Shared(reason.unwrap_or(Reason::ConnectFailed)));
        }
        if self.conns.lock().len() >= MAX_CONNS {
            target.shared.telemetry.bound_hit("upstream_h2_connections");
            return self.reserve(true).ok_or(ConnectError::Full { addr: target.endpoint.addr });
        }
        match open(target, &self.max).await {
            Ok(conn) => {
                let conn = Arc::new(conn);
                self.conns.lock().push(Arc::clone(&conn));
                Ok(H2Stream(conn))
            }
            Err(error) => {
                let mut failed = self.failed.lock();
                failed.0 += 1;
                failed.1 = Some(error.reason());
                Err(error)
            }
        }
    }

    /// Drops connections that are closed, or have been idle since before `idle_before`, or are past their age: those end with their last
    /// stream. True if none is left. To be called every so often: a connection counts as idle from the first call that finds it without
    /// streams.
    pub fn sweep(&self, now: Duration, idle_before: Duration) -> bool {
        let mut conns = self.conns.lock();
        conns.retain(|conn| {
            let millis = now.as_millis() as u64;
            if now >= conn.until {
                conn.leave();
            }
            if conn.is_leaving() {
                return false;
            }
            if conn.streams() > 0 {
                conn.state.idle_since.store(u64::MAX, Ordering::Relaxed);
                return true;
            }
            let since = conn.state.idle_since.fetch_min(millis, Ordering::Relaxed).min(millis);
            u128::from(since) >= idle_before.as_millis()
        });
        conns.is_empty()
    }

    /// Open connections.
    pub fn count(&self) -> usize {
        self.conns.lock().len()
    }
}

// A connection with one stream taken; a task moves its bytes until its last user has gone.
async fn open(target: &Target<'_>, max: &Arc<AtomicUsize>) -> Result<H2Conn, ConnectError> {
    let addr = target.endpoint.addr;
    let stream = target.connect(Speak::H2).await?;
    let (tx, mut connection) = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONN_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .initial_max_send_streams(ASSUMED_STREAMS)
        .enable_push(false)
        .handshake(stream)
        .await
        .map_err(|error| ConnectError::Tcp { addr, error: std::io::Error::other(error) })?;
    let state = Arc::new(State {
        streams: AtomicUsize::new(1),
        idle_since: AtomicU64::new(u64::MAX),
        leaving: AtomicBool::new(false),
        settled: watch::Sender::new(false),
    });
    let alive = keep_alive(connection.ping_pong(), Arc::clone(&state), target.endpoint.identity.is_some());
    let (driven, told) = (Arc::clone(&state), Arc::clone(max));
    tokio::spawn(async move {
        let ended = drive(connection, alive, &told).await;
        driven.leaving.store(true, Ordering::Relaxed);
        // Nobody waits for settings that will not come.
        driven.settled.send_replace(true);
        if let Err(error) = ended {
            tracing::debug!(%addr, %error, "http/2 connection to an endpoint ended");
        }
    });
    Ok(H2Conn { tx, state, until: end_of_life(target.shared.clock.now()), last: Mutex::default() })
}

async fn drive(
    mut connection: Connection<Stream, Bytes>,
    alive: impl Future<Output = ()>,
    max: &AtomicUsize,
) -> Result<(), h2::Error> {
    let mut alive = pin!(alive);
    poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        let streams = connection.max_concurrent_send_streams();
        if streams != ASSUMED_STREAMS {
            // A server that takes any number is given no more than our window has room for.
            max.store(streams.min(MAX_STREAMS as usize), Ordering::Relaxed);
        }
        if polled.is_pending() { alive.as_mut().poll(cx).map(Ok) } else { polled }
    })
    .await
}

// Ends when the server is dead. Its answer to the first ping comes behind its settings.
async fn keep_alive(pings: Option<PingPong>, state: Arc<State>, sidecar: bool) {
    let Some(mut pings) = pings else { return };
    if timeout(PING_EVERY + PING_TIMEOUT, pings.ping(Ping::opaque())).await.is_err() {
        return;
    }
    state.settled.send_replace(true);
    loop {
        sleep(PING_EVERY).await;
        let busy = state.streams.load(Ordering::Relaxed) > 0;
        // An error is the connection's own, and ends it.
        if sidecar && busy && timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn past_its_age_a_connection_takes_no_further_stream_and_ends_with_its_last() {
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut server = h2::server::handshake(far).await.unwrap();
            while server.accept().await.is_some() {}
        });
        let (tx, connection) = client::handshake(near).await.unwrap();
        let mut ended = tokio::spawn(connection);
        let state = Arc::new(State {
            streams: AtomicUsize::new(0),
            idle_since: AtomicU64::new(u64::MAX),
            leaving: AtomicBool::new(false),
            settled: watch::Sender::new(false),
        });
        let pool = H2Pool::default();
        let until = Duration::from_secs(10);
        pool.conns.lock().push(Arc::new(H2Conn { tx, state, until, last: Mutex::default() }));
        let stream = pool.reserve(false).unwrap();
        assert!(!pool.sweep(Duration::from_millis(9_999), Duration::ZERO));
        drop(pool.reserve(false).unwrap());
        assert!(pool.sweep(until, Duration::ZERO));
        assert!(pool.reserve(false).is_none());
        assert!(timeout(Duration::from_millis(50), &mut ended).await.is_err(), "it has a stream yet");
        drop(stream);
        timeout(Duration::from_secs(5), ended).await.unwrap().unwrap().unwrap();
    }
}
