//! The way out of the proxy: connections to endpoints, and to our own application.
//!
//! - [`connect`]: TCP and mesh TLS, failing closed. [`pick`]: to which endpoint; [`eyeballs`]: to which address of a name.
//! - [`h1`]: HTTP/1 connections, driven by the requests that use them.
//! - [`h2`]: HTTP/2 connections, shared.
//! - [`ends`]: when a connection is replaced.
//! - [`Pool`]: what an endpoint has of both. It lives in the endpoint's state, so a change of tables closes no connection.
//!
//! Invariants
//! - No lock is held across an await.
//! - A pool is bounded: [`MAX_IDLE`] idle HTTP/1 connections, a fixed number of HTTP/2 ones; what is idle too long is closed.
//! - How long that is to an application, its server teaches ([`weft_engine::keepalive`]): it is we who close, so that no request meets a closed
//!   connection. One that the server closes all the same is noticed when that happens, not when it is looked for.
//! - A connection that is due is replaced by one that stands already; one whose server is revoked ends at once.

pub mod connect;
pub mod ends;
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

pub use self::connect::{ConnectError, Connected, Speak};
use self::h1::H1Conn;
use self::h2::H2Pool;
pub use self::stream::Stream;
use crate::Shared;
use crate::discovery::snapshot::{Endpoint, EndpointState};
use crate::telemetry::Direction;
use crate::telemetry::counters::{Retired, Retirements};

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
/// After a connection could not be replaced, nobody tries to for so long.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Where a request goes, and by what name.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The proxy.
    pub shared: &'a Arc<Shared>,
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
    pub async fn connect(&self, speak: Speak) -> Result<Connected, ConnectError> {
        match self.dialled.and_then(|dialled| dialled.lock().take()) {
            Some(stream) => Ok(Connected::plain(stream)),
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
    // Connections that were opened in place of others, which were in use and are not put back.
    replaced: usize,
    // A task opens one.
    replacing: bool,
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
    pub fn put(shared: &Arc<Shared>, endpoint: &Arc<Endpoint>, mut conn: Box<H1Conn>, answered: Duration) {
        let now = shared.clock.now();
        if limit(endpoint, now).is_none() {
            return;
        }
        let seen = Seen::of(endpoint, shared);
        if conn.ends.is_over(now) || conn.is_revoked() {
            return seen.retired(&conn);
        }
        let due = conn.ends.is_due(now);
        conn.idle_since = now;
        conn.counts_from = if endpoint.identity.is_some() { now } else { answered.min(now) };
        let mut idle = endpoint.state.pools.mine().idle.lock();
        if !conn.is_usable(idle.sweeper.as_ref().unwrap_or(Waker::noop())) {
            drop(idle);
            return seen.ended(&conn, now);
        }
        if due && idle.replaced > 0 {
            idle.replaced -= 1;
            drop(idle);
            return seen.retired(&conn);
        }
        if idle.conns.len() >= MAX_IDLE {
            drop(idle);
            shared.telemetry.bound_hit("upstream_idle_connections");
            return;
        }
        let sni = if due { conn.sni.clone() } else { None };
        idle.conns.push(conn);
        let replace = due && !idle.replacing;
        idle.replacing |= due;
        drop(idle);
        keep_swept(shared, endpoint);
        if replace {
            tokio::spawn(replace_h1(Arc::clone(shared), Arc::clone(endpoint), sni));
        }
    }

    // Takes a connection in the place of one that is due; gives that back if it is idle, else it will not be put back.
    fn replace(&self, mut conn: Box<H1Conn>, now: Duration) -> Option<Box<H1Conn>> {
        (conn.idle_since, conn.counts_from) = (now, now);
        let mut idle = self.idle.lock();
        let due = idle.conns.iter().position(|old| old.ends.is_due(now));
        let old = due.map(|at| idle.conns.remove(at));
        idle.replaced += usize::from(old.is_none());
        idle.conns.push(conn);
        old
    }

    // Closes what has been idle too long or was closed by the server; when to look again, `None` if nothing is left.
    fn sweep(&self, now: Duration, limit: Option<Duration>, waker: &Waker, seen: &Seen<'_>) -> Option<Duration> {
        let mut closed = Vec::new();
        let no_h2 = self.h2.sweep(now, now.saturating_sub(IDLE_H2), seen.retired);
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
        for (conn, usable) in &closed {
            if conn.is_revoked() || conn.ends.is_over(now) {
                seen.retired(conn);
            } else if !usable {
                seen.ended(conn, now);
            }
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
    let seen = Seen::of(endpoint, shared);
    loop {
        let mut conn = endpoint.state.pools.mine().idle.lock().conns.pop()?;
        if conn.is_revoked() || conn.ends.is_over(now) {
            seen.retired(&conn);
            continue;
        }
        if conn.left(now, limit).is_zero() {
            continue;
        }
        let idle = now.saturating_sub(conn.idle_since);
        if conn.is_usable(Waker::noop()) && (idle < JUST_USED || conn.is_silent()) {
            conn.reused = Some(idle);
            return Some(conn);
        }
        seen.ended(&conn, now);
    }
}

// One connection that is due is replaced at a time.
async fn replace_h1(shared: Arc<Shared>, endpoint: Arc<Endpoint>, sni: Option<Arc<str>>) {
    let target = Target { shared: &shared, endpoint: &endpoint, sni: sni.as_deref(), dialled: None };
    let opened = open_h1(target).await;
    let pool = endpoint.state.pools.mine();
    match opened {
        Ok(conn) => {
            if let Some(old) = pool.replace(conn, shared.clock.now()) {
                Seen::of(&endpoint, &shared).retired(&old);
            }
            keep_swept(&shared, &endpoint);
        }
        // Those there are go on for as long as they may.
        Err(_) => sleep(TRY_AGAIN).await,
    }
    pool.idle.lock().replacing = false;
}

// How long a connection may be idle; `None`: none is kept.
fn limit(endpoint: &Endpoint, now: Duration) -> Option<Duration> {
    if endpoint.identity.is_some() { Some(IDLE_MESH) } else { endpoint.state.keepalive.limit(now) }
}

async fn open_h1(target: Target<'_>) -> Result<Box<H1Conn>, ConnectError> {
    let connected = target.connect(Speak::H1).await?;
    let sni = connected.proof.as_ref().and(target.sni).map(Arc::from);
    Ok(Box::new(H1Conn::new(connected, target.shared.clock.now(), sni)))
}

// What became of an idle connection: counted, and learnt from if it is the server's doing. Sidecars are not learnt from: they end idle ones when they leave.
struct Seen<'a> {
    state: &'a EndpointState,
    mesh: bool,
    count: &'a AtomicU64,
    retired: &'a Retirements,
}

impl<'a> Seen<'a> {
    fn of(endpoint: &'a Endpoint, shared: &'a Shared) -> Self {
        let (count, retired) = (&*shared.telemetry.idle_closed, &*shared.telemetry.retired);
        Self { state: &endpoint.state, mesh: endpoint.identity.is_some(), count, retired }
    }

    // By us. Elsewhere than in the mesh that is a matter of age alone.
    fn retired(&self, conn: &H1Conn) {
        if self.mesh {
            self.retired.add(Direction::Outbound, if conn.is_revoked() { Retired::Revoked } else { conn.ends.why });
        }
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
    let clock = shared.clock.clone();
    let counts = (Arc::clone(&shared.telemetry.idle_closed), Arc::clone(&shared.telemetry.retired));
    // Described anew, it is still what it was: in the mesh or not.
    let (state, mesh) = (Arc::downgrade(&endpoint.state), endpoint.identity.is_some());
    // Without a budget of polls: what is not polled for want of one would wake the task at once, for ever. A pool is bounded.
    tokio::spawn(unconstrained(sweep(state, mesh, clock, counts)));
}

// Looks whenever a connection is due, or ends.
async fn sweep(
    state: Weak<EndpointState>,
    mesh: bool,
    clock: crate::Clock,
    (count, retired): (Arc<AtomicU64>, Arc<Retirements>),
) {
    let mut timer = pin!(sleep(LOOK_AGAIN));
    std::future::poll_fn(|cx| {
        loop {
            let Some(state) = state.upgrade() else { return Poll::Ready(()) };
            let now = clock.now();
            let limit = if mesh { Some(IDLE_MESH) } else { state.keepalive.limit(now) };
            let seen = Seen { state: &state, mesh, count: &count, retired: &retired };
            let Some(next) = state.pools.mine().sweep(now, limit, cx.waker(), &seen) else { return Poll::Ready(()) };
            timer.as_mut().reset(Instant::now() + next);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}
