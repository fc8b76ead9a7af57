//! HTTP/2 connections to one endpoint: shared by requests, a further one when the streams of those there are used up.
//!
//! Invariants
//! - No lock is held while connecting; one attempt runs at a time and those who wait for it share its outcome, failure included.
//! - A request counts as a stream until its response body has ended.
//! - A connection that is due takes no further streams once another stands that has room; it ends with its last stream.

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

use super::connect::{ConnectError, Connected, Speak};
use super::ends::Ends;
use super::{Stream, TRY_AGAIN, Target};
use crate::Shared;
use crate::discovery::snapshot::Endpoint;
use crate::http::h2::{CONN_WINDOW, HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};
use crate::identity::revoked::{Known, revoked};
use crate::telemetry::Direction;
use crate::telemetry::counters::{Retired, Retirements};

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
    // When it takes no further streams.
    ends: Ends,
    // What its server has proved.
    known: Option<Arc<Known>>,
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

    // Takes no further streams, for being due; true, so that it is let go of.
    fn retire(&self, retired: &Retirements) -> bool {
        if !self.state.leaving.swap(true, Ordering::Relaxed) && self.known.is_some() {
            retired.add(Direction::Outbound, self.ends.why);
        }
        true
    }

    fn is_gone(&self, now: Duration, retired: &Retirements) -> bool {
        self.is_leaving() || self.ends.is_over(now) && self.retire(retired)
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

    /// Whether its server is not believed any more.
    pub fn is_revoked(&self) -> bool {
        self.0.known.as_ref().is_some_and(|known| known.is_revoked())
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
    // A task opens one in place of those that are due.
    replacing: AtomicBool,
    // (number of failed attempts, the last one's reason)
    failed: Mutex<(u64, Option<Reason>)>,
}

impl Default for H2Pool {
    fn default() -> Self {
        Self {
            max: Arc::new(AtomicUsize::new(ASSUMED_STREAMS)),
            conns: Mutex::default(),
            connecting: Semaphore::new(1),
            replacing: AtomicBool::new(false),
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
        let now = target.shared.clock.now();
        if let Some(stream) = self.reserve(now, false, &target.shared.telemetry.retired) {
            if stream.0.ends.is_due(now) && !self.replacing.swap(true, Ordering::Relaxed) {
                let sni = target.sni.map(Arc::from);
                tokio::spawn(replace(Arc::clone(target.shared), Arc::clone(target.endpoint), sni));
            }
            return Ok(stream);
        }
        Box::pin(self.connect(target)).await
    }

    // The one with the fewest streams that has room; with `crowded` also one that has none. One that is due only if no other has.
    fn reserve(&self, now: Duration, crowded: bool, retired: &Retirements) -> Option<H2Stream> {
        let mut conns = self.conns.lock();
        if conns.iter().any(|conn| conn.is_leaving() || conn.ends.is_over(now)) {
            conns.retain(|conn| !conn.is_gone(now, retired));
        }
        let max = if crowded { usize::MAX } else { self.max.load(Ordering::Relaxed) };
        let with_room = conns.iter().filter(|conn| conn.streams() < max);
        let chosen = with_room.min_by_key(|conn| (conn.ends.is_due(now), conn.streams())).map(Arc::clone)?;
        chosen.state.streams.fetch_add(1, Ordering::Relaxed);
        chosen.state.idle_since.store(u64::MAX, Ordering::Relaxed);
        if !chosen.ends.is_due(now) && conns.iter().any(|conn| conn.ends.is_due(now)) {
            conns.retain(|conn| !conn.ends.is_due(now) || !conn.retire(retired));
        }
        Some(H2Stream(chosen))
    }

    async fn connect(&self, target: &Target<'_>) -> Result<H2Stream, ConnectError> {
        let failures = self.failed.lock().0;
        let _turn = self.connecting.acquire().await;
        let retired = &target.shared.telemetry.retired;
        if let Some(stream) = self.reserve(target.shared.clock.now(), false, retired) {
            return Ok(stream);
        }
        // Somebody else tried while this one waited: the endpoint is as dead for us.
        let (now_failed, reason) = *self.failed.lock();
        if now_failed != failures {
            return Err(ConnectError::Shared(reason.unwrap_or(Reason::ConnectFailed)));
        }
        if self.conns.lock().len() >= MAX_CONNS {
            target.shared.telemetry.bound_hit("upstream_h2_connections");
            let crowded = self.reserve(target.shared.clock.now(), true, retired);
            return crowded.ok_or(ConnectError::Full { addr: target.endpoint.addr });
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
    pub fn sweep(&self, now: Duration, idle_before: Duration, retired: &Retirements) -> bool {
        let mut conns = self.conns.lock();
        conns.retain(|conn| {
            let millis = now.as_millis() as u64;
            if conn.is_gone(now, retired) {
                return false;
            }
            if conn.streams() > 0 {
                conn.state.idle_since.store(u64::MAX, Ordering::Relaxed);
                return true;
            }
            let since = conn.state.idle_since.fetch_min(millis, Ordering::Relaxed).min(millis);
            // Nobody has wanted it since the last look: who does next opens another.
            if conn.ends.is_due(now) && since < millis {
                return !conn.retire(retired);
            }
            u128::from(since) >= idle_before.as_millis()
        });
        conns.is_empty()
    }

    /// Open connections.
    pub fn count(&self) -> usize {
        self.conns.lock().len()
    }
}

// Opens a connection beside those that are due. They are let go of when a stream is wanted next; if there is no other they go on.
async fn replace(shared: Arc<Shared>, endpoint: Arc<Endpoint>, sni: Option<Arc<str>>) {
    let target = Target { shared: &shared, endpoint: &endpoint, sni: sni.as_deref(), dialled: None };
    let pool = &endpoint.state.pools.mine().h2;
    let full = pool.conns.lock().len() >= MAX_CONNS;
    match open(&target, &pool.max).await {
        Ok(conn) if !full => {
            let conn = Arc::new(conn);
            pool.conns.lock().push(Arc::clone(&conn));
            drop(H2Stream(conn));
        }
        _ => sleep(TRY_AGAIN).await,
    }
    pool.replacing.store(false, Ordering::Relaxed);
}

// A connection with one stream taken; a task moves its bytes until its last user has gone.
async fn open(target: &Target<'_>, max: &Arc<AtomicUsize>) -> Result<H2Conn, ConnectError> {
    let addr = target.endpoint.addr;
    let Connected { stream, proof } = target.connect(Speak::H2).await?;
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
    let (driven, told, retired) = (Arc::clone(&state), Arc::clone(max), Arc::clone(&target.shared.telemetry.retired));
    let known = proof.as_ref().map(|proof| Arc::clone(proof.known()));
    let ends = Ends::of(target.shared.clock.now(), proof.as_ref().map(|proof| proof.left));
    tokio::spawn(async move {
        let mut proof = proof;
        let ended = tokio::select! {
            biased;
            () = revoked(&mut proof) => {
                retired.add(Direction::Outbound, Retired::Revoked);
                Ok(())
            }
            ended = drive(connection, alive, &told) => ended,
        };
        driven.leaving.store(true, Ordering::Relaxed);
        // Nobody waits for settings that will not come.
        driven.settled.send_replace(true);
        if let Err(error) = ended {
            tracing::debug!(%addr, %error, "http/2 connection to an endpoint ended");
        }
    });
    Ok(H2Conn { tx, state, ends, known, last: Mutex::default() })
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

    const SECOND: Duration = Duration::from_secs(1);

    // One that is due and over then, and the task that drives it.
    async fn conn(due: Duration, over: Duration) -> (Arc<H2Conn>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut server = h2::server::handshake(far).await.unwrap();
            while server.accept().await.is_some() {}
        });
        let (tx, connection) = client::handshake(near).await.unwrap();
        let state = Arc::new(State {
            streams: AtomicUsize::new(0),
            idle_since: AtomicU64::new(u64::MAX),
            leaving: AtomicBool::new(false),
            settled: watch::Sender::new(false),
        });
        let conn = H2Conn { tx, state, ends: Ends::at(due, over), known: None, last: Mutex::default() };
        (Arc::new(conn), tokio::spawn(connection))
    }

    #[tokio::test]
    async fn past_its_end_a_connection_takes_no_further_stream_and_ends_with_its_last() {
        let (pool, retired) = (H2Pool::default(), Retirements::default());
        let (conn, mut ended) = conn(10 * SECOND, 10 * SECOND).await;
        pool.conns.lock().push(conn);
        let stream = pool.reserve(SECOND, false, &retired).unwrap();
        assert!(!pool.sweep(Duration::from_millis(9_999), Duration::ZERO, &retired));
        drop(pool.reserve(SECOND, false, &retired).unwrap());
        assert!(pool.sweep(10 * SECOND, Duration::ZERO, &retired));
        assert!(pool.reserve(10 * SECOND, false, &retired).is_none());
        assert!(timeout(Duration::from_millis(50), &mut ended).await.is_err(), "it has a stream yet");
        drop(stream);
        timeout(Duration::from_secs(5), ended).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_that_is_due_serves_until_another_has_room() {
        let (pool, retired) = (H2Pool::default(), Retirements::default());
        let (old, mut ended) = conn(SECOND, 10 * SECOND).await;
        let (new, _driven) = conn(20 * SECOND, 30 * SECOND).await;
        pool.conns.lock().push(Arc::clone(&old));
        let first = pool.reserve(2 * SECOND, false, &retired).unwrap();
        assert!(Arc::ptr_eq(&first.0, &old), "there is no other");
        assert!(!pool.sweep(2 * SECOND, Duration::ZERO, &retired), "it has a stream");
        // One that has no room is no other.
        pool.max.store(1, Ordering::Relaxed);
        new.state.streams.store(1, Ordering::Relaxed);
        pool.conns.lock().push(Arc::clone(&new));
        assert!(pool.reserve(2 * SECOND, false, &retired).is_none());
        assert_eq!(pool.count(), 2);
        new.state.streams.store(0, Ordering::Relaxed);
        let second = pool.reserve(2 * SECOND, false, &retired).unwrap();
        assert!(Arc::ptr_eq(&second.0, &new));
        assert!(pool.count() == 1 && old.is_leaving());
        drop(old);
        assert!(timeout(Duration::from_millis(50), &mut ended).await.is_err(), "its stream goes on");
        drop(first);
        timeout(Duration::from_secs(5), ended).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_that_is_due_and_idle_is_closed() {
        let (pool, retired) = (H2Pool::default(), Retirements::default());
        let (conn, ended) = conn(SECOND, 10 * SECOND).await;
        pool.conns.lock().push(conn);
        assert!(!pool.sweep(SECOND / 2, Duration::ZERO, &retired));
        assert!(pool.sweep(SECOND, Duration::ZERO, &retired));
        timeout(Duration::from_secs(5), ended).await.unwrap().unwrap().unwrap();
    }
}
