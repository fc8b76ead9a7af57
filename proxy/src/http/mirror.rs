//! Copies of requests, for the backends of a route's mirrors. They go through the same balancing and mutual TLS as any request.
//!
//! Invariants
//! - Nobody waits for a copy, and what becomes of it is nobody's: it neither delays nor fails the request that it is of.
//! - A copy is made of what is kept for another attempt, so that it costs no more: of a longer body there is none.
//! - [`PLACES`] at a time in one proxy, [`PATIENCE`] each. One that has no place is not sent, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::attempt::{Answered, Goal, Message, Terms, send};
use super::session::{Exchange, Session};
use crate::discovery::snapshot::Backend;

/// Copies under way at most.
const PLACES: usize = 256;
/// How long one may take, until the head of its response.
const PATIENCE: Duration = Duration::from_secs(15);

/// What became of copies, and room for more.
#[derive(Debug)]
pub struct Mirrors {
    places: Arc<Semaphore>,
    /// Those that were answered, whatever the answer.
    pub answered: AtomicU64,
    /// Those that were not.
    pub failed: AtomicU64,
    /// Those that were not sent: no place, or the request was too long or did not end.
    pub dropped: AtomicU64,
}

impl Default for Mirrors {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(PLACES));
        Self { places, answered: AtomicU64::new(0), failed: AtomicU64::new(0), dropped: AtomicU64::new(0) }
    }
}

impl Mirrors {
    /// Copies were wanted that cannot be made.
    pub fn drop_all(&self, wanted: &[Arc<Backend>]) {
        if !wanted.is_empty() {
            self.dropped.fetch_add(wanted.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Sends a copy to each of these.
pub fn copy<M: Message + Clone + 'static>(
    session: &Arc<Session>,
    to: Vec<Arc<Backend>>,
    method: &Method,
    path: &str,
    message: &M,
) {
    let mirrors = &session.shared.telemetry.mirrors;
    for backend in to {
        let Ok(place) = Arc::clone(&mirrors.places).try_acquire_owned() else {
            session.shared.telemetry.bound_hit("mirrors");
            mirrors.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let exchange = Exchange::begin(session, method.clone(), path);
        let (method, message) = (method.clone(), message.clone());
        tokio::spawn(Box::pin(async move {
            one(exchange, backend, method, message).await;
            drop(place);
        }));
    }
}

async fn one<M: Message>(mut exchange: Exchange, backend: Arc<Backend>, method: Method, mut message: M) {
    let session = Arc::clone(&exchange.session);
    let shared = &session.shared;
    let sending = send(&mut exchange, Goal::Backend(&backend), &method, &mut message, Terms::default());
    let answered = timeout(PATIENCE, sending).await;
    match (answered, exchange.endpoint().cloned()) {
        (Ok(Ok(Answered { answer, .. })), Some(endpoint)) => {
            exchange.answered_with(M::status(&answer), None);
            message.discard(shared, &endpoint, answer);
            shared.telemetry.mirrors.answered.fetch_add(1, Ordering::Relaxed);
        }
        (failed, _) => {
            exchange.status = http::StatusCode::BAD_GATEWAY;
            tracing::debug!(backend = &*backend.name, failed = ?failed.map(Result::err), "a copy was not answered");
            shared.telemetry.mirrors.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
