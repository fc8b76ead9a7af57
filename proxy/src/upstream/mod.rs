//! The way out of the proxy: connections to endpoints, and to our own application.
//!
//! - [`connect`]: TCP and mesh TLS, failing closed.
//! - [`h1`]: HTTP/1 connections, driven by the requests that use them.
//! - [`h2`]: HTTP/2 connections, shared.
//! - [`Pool`]: what an endpoint has of both. It lives in the endpoint's state, so a change of tables closes no connection.
//!
//! Invariants
//! - No lock is held across an await.
//! - A pool is bounded: [`MAX_IDLE`] idle HTTP/1 connections, a fixed number of HTTP/2 ones; what is idle too long is closed.

pub mod connect;
pub mod h1;
pub mod h2;
pub mod pick;
pub mod stream;

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

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
/// Idle time of a connection to an application: below the shortest keep-alive that common servers have (gunicorn 2 s, Node 5 s), so
/// that it is we who close and no request meets a closed connection. Connecting again within the pod costs some 50 us.
const IDLE_PLAIN: Duration = Duration::from_millis(1800);
/// Idle time of an HTTP/2 connection; it announces its end, so nothing is lost whichever side closes.
const IDLE_H2: Duration = Duration::from_mins(1);

/// Where a request goes, and by what name.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The proxy.
    pub shared: &'a Shared,
    /// The endpoint.
    pub endpoint: &'a Arc<Endpoint>,
    /// The backend's SNI; `None` for a pod called by its own address.
    pub sni: Option<&'a str>,
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
}

impl Pool {
    /// An HTTP/1 connection: the one used last that still stands, else a new one.
    ///
    /// # Errors
    /// [`ConnectError`]: nothing was sent.
    pub async fn h1(target: Target<'_>, fresh: bool) -> Result<Box<H1Conn>, ConnectError> {
        if !fresh && let Some(conn) = target.endpoint.state.pools.mine().take(target.shared.clock.now()) {
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

    fn take(&self, now: Duration) -> Option<Box<H1Conn>> {
        loop {
            let mut conn = self.idle.lock().conns.pop()?;
            if now < conn.idle_since + conn.idle_limit && conn.is_usable() {
                conn.reused = true;
                return Some(conn);
            }
        }
    }

    /// Gives a connection back. One that is not ready for another request is closed.
    pub fn put(shared: &Shared, endpoint: &Arc<Endpoint>, mut conn: Box<H1Conn>) {
        if !conn.is_usable() {
            return;
        }
        conn.idle_since = shared.clock.now();
        let mut idle = endpoint.state.pools.mine().idle.lock();
        if idle.conns.len() >= MAX_IDLE {
            drop(idle);
            shared.telemetry.bound_hit("upstream_idle_connections");
            return;
        }
        idle.conns.push(conn);
        drop(idle);
        keep_swept(shared, endpoint);
    }

    /// Closes what has been idle too long or was closed by the server; true if nothing is left.
    fn sweep(&self, now: Duration) -> bool {
        let mut closed = Vec::new();
        let no_h2 = self.h2.sweep(now, now.saturating_sub(IDLE_H2));
        let mut idle = self.idle.lock();
        let mut i = 0;
        while let Some(conn) = idle.conns.get_mut(i) {
            if now < conn.idle_since + conn.idle_limit && conn.is_usable() {
                i += 1;
            } else {
                // Order is kept: the one used last is taken first. They are closed after the lock is free.
                closed.push(idle.conns.remove(i));
            }
        }
        let empty = idle.conns.is_empty() && no_h2;
        idle.swept = !empty;
        empty
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

async fn open_h1(target: Target<'_>) -> Result<Box<H1Conn>, ConnectError> {
    let stream = connect::connect(target.shared, target.endpoint, target.sni, Speak::H1).await?;
    let limit = if target.endpoint.identity.is_some() { IDLE_MESH } else { IDLE_PLAIN };
    // A quarter less at random, so that connections opened together are not closed together.
    let limit = limit.mul_f64(1.0 - fastrand::f64() / 4.0);
    Ok(Box::new(H1Conn::new(stream, limit)))
}

// One task per endpoint that has idle connections, none for one that has not.
fn keep_swept(shared: &Shared, endpoint: &Arc<Endpoint>) {
    let mut idle = endpoint.state.pools.mine().idle.lock();
    if idle.swept {
        return;
    }
    idle.swept = true;
    drop(idle);
    let every = if endpoint.identity.is_some() { IDLE_MESH / 6 } else { IDLE_PLAIN / 2 };
    tokio::spawn(sweep(Arc::downgrade(&endpoint.state), shared.clock.clone(), every));
}

async fn sweep(state: Weak<EndpointState>, clock: crate::Clock, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(state) = state.upgrade() else { return };
        if state.pools.mine().sweep(clock.now()) {
            return;
        }
    }
}
