//! HTTP/2 connections to one endpoint: shared by requests, a further one when the streams of those there are used up.
//!
//! Invariants
//! - No lock is held while connecting; one attempt runs at a time and those who wait for it share its outcome, failure included.
//! - A request counts as a stream until its response body has ended.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use weft_engine::reason::Reason;

use super::connect::{ConnectError, Speak, connect};
use super::{SendError, Target};
use crate::http::body::ReqBody;
use crate::http::{H2_HEADER_LIST, H2_STREAM_WINDOW};

/// Connections to one endpoint; beyond, streams queue in those there are.
const MAX_CONNS: usize = 32;
/// HTTP/2's windows towards an endpoint: a small connection window also shrinks h2's budget of frames (reference/deps.md).
const CONN_WINDOW: u32 = 4 << 20;
/// A ping after this much silence while streams are open, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams on a connection before the server's word: the least that RFC 9113 section 6.5.2 recommends. A new connection to a server
/// that is known to take fewer is held to that from its first stream: streams that wait for others to end may wait for ever.
const ASSUMED_STREAMS: usize = 100;

/// One connection.
pub struct H2Conn {
    tx: http2::SendRequest<ReqBody>,
    streams: AtomicUsize,
    // Milliseconds of the proxy's clock; `u64::MAX` while it has streams.
    idle_since: AtomicU64,
    // It takes no further streams: the server has said so, or it has ended.
    leaving: AtomicBool,
}

impl H2Conn {
    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) || self.tx.is_closed()
    }
}

/// A stream of a connection, counted while it lives.
pub struct H2Stream(Arc<H2Conn>);

impl Drop for H2Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl H2Stream {
    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// [`SendError`], with the request if nothing of it was sent.
    pub async fn send(&self, request: Request<ReqBody>) -> Result<Response<Incoming>, SendError> {
        let sending = self.0.tx.clone().try_send_request(request);
        sending.await.map_err(|error| {
            let error = SendError::from_h2(error);
            if error.connection_leaves() {
                self.0.leaving.store(true, Ordering::Relaxed);
            }
            error
        })
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
        let room =
            |conn: &&Arc<H2Conn>| crowded || conn.streams.load(Ordering::Relaxed) < self.max.load(Ordering::Relaxed);
        let conn = conns.iter().filter(room).min_by_key(|conn| conn.streams.load(Ordering::Relaxed))?;
        conn.streams.fetch_add(1, Ordering::Relaxed);
        conn.idle_since.store(u64::MAX, Ordering::Relaxed);
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

    /// Drops connections that are closed, or have been idle since before `idle_before`; true if none is left. To be called every so
    /// often: a connection counts as idle from the first call that finds it without streams.
    pub fn sweep(&self, now: Duration, idle_before: Duration) -> bool {
        let mut conns = self.conns.lock();
        conns.retain(|conn| {
            let millis = now.as_millis() as u64;
            if conn.is_leaving() {
                return false;
            }
            if conn.streams.load(Ordering::Relaxed) > 0 {
                conn.idle_since.store(u64::MAX, Ordering::Relaxed);
                return true;
            }
            let since = conn.idle_since.fetch_min(millis, Ordering::Relaxed).min(millis);
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
    let stream = connect(target.shared, target.endpoint, target.sni, Speak::H2).await?;
    let (tx, mut driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(CONN_WINDOW)
        .max_header_list_size(H2_HEADER_LIST)
        .initial_max_send_streams(ASSUMED_STREAMS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Tcp { addr, error: std::io::Error::other(error) })?;
    let told = Arc::clone(max);
    tokio::spawn(async move {
        let ended = poll_fn(|cx| {
            let polled = Pin::new(&mut driver).poll(cx);
            // hyper polls this at each request, so what it says is at most one request old.
            let streams = driver.current_max_send_streams();
            if streams != ASSUMED_STREAMS {
                told.store(streams, Ordering::Relaxed);
            }
            polled
        })
        .await;
        if let Err(error) = ended {
            tracing::debug!(%addr, %error, "http/2 connection to an endpoint ended");
        }
    });
    Ok(H2Conn {
        tx,
        streams: AtomicUsize::new(1),
        idle_since: AtomicU64::new(u64::MAX),
        leaving: AtomicBool::new(false),
    })
}
