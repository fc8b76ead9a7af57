//! The way out of the proxy: connections to endpoints, and to our own application.
//!
//! - [`connect`]: TCP and mesh TLS, failing closed. [`pick`]: to which endpoint; [`eyeballs`]: to which address of a name.
//! - [`h1`]: HTTP/1 connections, driven by the requests that use them.
//! - [`h2`]: HTTP/2 connections, shared.
//! - [`Pool`]: what an endpoint has of both. It lives in the endpoint's state, so a change of tables closes no connection.
//!
//! Invariants
//! - No lock is held across an await.
//! - A pool is bounded: [`MAX_IDLE`] idle HTTP/1 connections, a fixed number of HTTP/2 ones; what is idle too long is closed.
//! - How long that is to an application, its server teaches ([`weft_engine::keepalive`]): it is we who close, so that no request meets a closed
//!   connection. One that the server closes all the same is noticed when that happens, not when it is looked for.

pub mod connect;
pub mod eyeballs;
pub mod h1;
pub mod h2;
pub mod pick;
pub mod stream;

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep};
use weft_engine::keepalive;

pub use self::connect::{ConnectError, Speak};
use self::h1::H1Conn;
use self::h2::H2Pool;
pub use self::stream::Stream;
use crate::Shared;
use crate::discovery::snapshot::{Endpoint, EndpointState};

/// Idle HTTP/1 connections kept for one endpoint.
pub const MAX_IDLE: usize = 512;
/// Idle time of a connection to another sidecar: its server side keeps idle ones for an hour.
const IDLE_MESH: Duration = Duration::from_secs(30);
/// Nobody looks at idle connections more often than so, nor less often than every sixth of the longest idle time.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A connection that was idle for less is taken as it is; of another the kernel is asked whether it still stands, since the runtime may not have
/// heard of its end yet.
const JUST_USED: Duration = Duration::from_millis(1);
/// Idle time of an HTTP/2 connection; it announces its end, so nothing is lost whichever side closes.
const IDLE_H2: Duration = Duration::from_mins(1);

/// Age of a connection at which it takes no further request: certificates are renewed and sidecars replaced behind those that live long.
const MAX_AGE: Duration = Duration::from_hours(1);

/// When a connection that is opened now is past its age: a quarter less at random, so that those opened together are not closed together.
fn end_of_life(now: Duration) -> Duration {
    now + MAX_AGE.mul_f64(1.0 - fastrand::f64() / 4.0)
}

/// Where a request goes, and by what name.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The proxy.
    pub shared: &'a Shared,
    /// The endpoint.
    pub endpoint: &'a Arc<Endpoint>,
    /// The backend's SNI; `None` for a pod called by its own address.
    pub sni: Option<&'a str>,
    /// A connection to it that was opened to find out whether it answers.
    pub dialled: Option<&'a Mutex<Option<TcpStream>>>,
}

impl Target<'_> {
    /// A connection: the one that is open already, else a new one.
    ///
    /// # Errors
    /// [`ConnectError`]; the endpoint's health has been told.
    pub async fn connect(&self, speak: Speak) -> Result<Stream, ConnectError> {
        match self.dialled.and_then(|dialled| dialled.lock().take()) {
            Some(stream) => Ok(Stream::Plain(stream)),
            None => connect::connect(self.shared, self.endpoint, self.sni, speak).await,
        }
    }
}

/// The connections of one endpoint.
#[derive(Default)]
pub struct Pool {
    idle: Mutex<Idle>,
    h2: H2Pool,
}

#[derive(Default)]
struct Idle {
    // Boxed where they are made: they move from the pool to a response's body and back as pointers.
    #[expect(clippy::vec_box, reason = "a connection moves as a pointer")]
    conns: Vec<Box<H1Conn>>,
    // Whether a task sweeps this pool.
    swept: bool,
    // That task, once it has begun: the end of an idle connection wakes it.
    sweeper: Option<Waker>,
}

impl Pool {
    /// An HTTP/1 connection: the one used last that still stands, else a new one.
    ///
    /// # Errors
    /// [`ConnectError`]: nothing was sent.
    pub async fn h1(target: Target<'_>, fresh: bool) -> Result<Box<H1Conn>, ConnectError> {
        if !fresh && let Some(conn) = take(target) {
            return Ok(conn);
        }
        Box::pin(open_h1(target)).await
    }

    /// A stream of an HTTP/2 connection.
    ///
    /// # Errors
    /// [`ConnectError`]: nothing was sent.
    pub async fn h2(target: Target<'_>) -> Result<h2::H2Stream, ConnectError> {
        let stream = target.endpoint.state.pools.mine().h2.stream(&target).await?;
        keep_swept(target.shared, target.endpoint);
        Ok(stream)
    }

    /// Gives a connection back. One that is not ready for another request is closed. `answered`: when its response began to come, from which
    /// the server may count what we read later.
    pub fn put(shared: &Shared, endpoint: &Arc<Endpoint>, mut conn: Box<H1Conn>, answered: Duration) {
        let now = shared.clock.now();
        if limit(endpoint, now).is_none() || now >= conn.until {
            return;
        }
        conn.idle_since = now;
        conn.counts_from = if endpoint.identity.is_some() { now } else { answered.min(now) };
        let mut idle = endpoint.state.pools.mine().idle.lock();
        if !conn.is_usable(idle.sweeper.as_ref().unwrap_or(Waker::noop())) {
            drop(idle);
            return Seen::of(endpoint, shared).ended(&conn, now);
        }
        if idle.conns.len() >= MAX_IDLE {
            drop(idle);
            shared.telemetry.bound_hit("upstream_idle_connections");
            return;
        }
        idle.conns.push(conn);
        drop(idle);
        keep_swept(shared, endpoint);
    }

    // Closes what has been idle too long or was closed by the server; when to look again, `None` if nothing is left.
    fn sweep(&self, now: Duration, limit: Option<Duration>, waker: &Waker, seen: &Seen<'_>) -> Option<Duration> {
        let mut closed = Vec::new();
        let no_h2 = self.h2.sweep(now, now.saturating_sub(IDLE_H2));
        let mut idle = self.idle.lock();
        let mut next = IDLE_MESH / 6;
        let mut i = 0;
        while let Some(conn) = idle.conns.get_mut(i) {
            let left = conn.left(now, limit);
            let usable = conn.is_usable(waker);
            if usable && !left.is_zero() {
                next = next.min(left);
                i += 1;
            } else {
                // Order is kept: the one used last is taken first. They are closed after the lock is free.
                closed.push((idle.conns.remove(i), usable));
            }
        }
        let empty = idle.conns.is_empty() && no_h2;
        idle.swept = !empty;
        idle.sweeper = (!empty).then(|| waker.clone());
        drop(idle);
        for (conn, _) in closed.iter().filter(|(_, usable)| !usable) {
            seen.ended(conn, now);
        }
        (!empty).then(|| next.max(LOOK_AGAIN))
    }

    /// Idle HTTP/1 connections.
    pub fn idle(&self) -> usize {
        self.idle.lock().conns.len()
    }

    /// HTTP/2 connections.
    pub fn shared_connections(&self) -> usize {
        self.h2.count()
    }
}

// The connection used last that still stands.
fn take(target: Target<'_>) -> Option<Box<H1Conn>> {
    let Target { shared, endpoint, .. } = target;
    let now = shared.clock.now();
    let limit = limit(endpoint, now);
    loop {
        let mut conn = endpoint.state.pools.mine().idle.lock().conns.pop()?;
        if conn.left(now, limit).is_zero() {
            continue;
        }
        let idle = now.saturating_sub(conn.idle_since);
        if conn.is_usable(Waker::noop()) && (idle < JUST_USED || conn.is_silent()) {
            conn.reused = Some(idle);
            return Some(conn);
        }
        Seen::of(endpoint, shared).ended(&conn, now);
    }
}

// How long a connection may be idle; `None`: none is kept.
fn limit(endpoint: &Endpoint, now: Duration) -> Option<Duration> {
    if endpoint.identity.is_some() { Some(IDLE_MESH) } else { endpoint.state.keepalive.limit(now) }
}

async fn open_h1(target: Target<'_>) -> Result<Box<H1Conn>, ConnectError> {
    let stream = target.connect(Speak::H1).await?;
    Ok(Box::new(H1Conn::new(stream, end_of_life(target.shared.clock.now()))))
}

// What the server did with an idle connection: counted, and learnt from. Sidecars are not learnt from: they end idle ones when they leave.
struct Seen<'a> {
    state: &'a EndpointState,
    mesh: bool,
    count: &'a AtomicU64,
}

impl<'a> Seen<'a> {
    fn of(endpoint: &'a Endpoint, shared: &'a Shared) -> Self {
        Self { state: &endpoint.state, mesh: endpoint.identity.is_some(), count: &shared.telemetry.idle_closed }
    }

    fn ended(&self, conn: &H1Conn, now: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if !self.mesh {
            self.state.keepalive.closed(now.saturating_sub(conn.idle_since), now);
        }
    }
}

/// Learns from a response over `conn`: that its server had kept it, and what it says of that.
pub fn answered(endpoint: &Endpoint, conn: &H1Conn, keep_alive: Option<&[u8]>) {
    if endpoint.identity.is_some() {
        return;
    }
    if let Some(idle) = conn.reused {
        endpoint.state.keepalive.outlived(idle);
    }
    if let Some(timeout) = keep_alive.and_then(keepalive::timeout) {
        endpoint.state.keepalive.told(timeout);
    }
}

/// Learns that `conn`, which was taken from the pool, had been ended before the request reached its server.
pub fn ended_before(target: Target<'_>, conn: &H1Conn) {
    let Some(idle) = conn.reused else { return };
    target.shared.telemetry.idle_closed.fetch_add(1, Ordering::Relaxed);
    if target.endpoint.identity.is_none() {
        target.endpoint.state.keepalive.closed(idle, target.shared.clock.now());
    }
}

// One task per endpoint that has idle connections, none for one that has not.
fn keep_swept(shared: &Shared, endpoint: &Arc<Endpoint>) {
    let mut idle = endpoint.state.pools.mine().idle.lock();
    if idle.swept {
        return;
    }
    idle.swept = true;
    drop(idle);
    let (clock, count) = (shared.clock.clone(), Arc::clone(&shared.telemetry.idle_closed));
    // Described anew, it is still what it was: in the mesh or not.
    let (state, mesh) = (Arc::downgrade(&endpoint.state), endpoint.identity.is_some());
    // Without a budget of polls: what is not polled for want of one would wake the task at once, for ever. A pool is bounded.
    tokio::spawn(unconstrained(sweep(state, mesh, clock, count)));
}

// Looks whenever a connection is due, or ends.
async fn sweep(state: Weak<EndpointState>, mesh: bool, clock: crate::Clock, count: Arc<AtomicU64>) {
    let mut timer = pin!(sleep(LOOK_AGAIN));
    std::future::poll_fn(|cx| {
        loop {
            let Some(state) = state.upgrade() else { return Poll::Ready(()) };
            let now = clock.now();
            let limit = if mesh { Some(IDLE_MESH) } else { state.keepalive.limit(now) };
            let seen = Seen { state: &state, mesh, count: &count };
            let Some(next) = state.pools.mine().sweep(now, limit, cx.waker(), &seen) else { return Poll::Ready(()) };
            timer.as_mut().reset(Instant::now() + next);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}
