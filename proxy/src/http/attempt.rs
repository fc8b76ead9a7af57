//! Sending a request: which endpoint, which connection, and whether to try again. The same for HTTP/1 and HTTP/2, which differ in what a
//! [`Message`] is.
//!
//! Invariants
//! - Another attempt goes to another endpoint, and only if the engine says that it is safe ([`weft_engine::outcome::may_retry`]).
//! - A request that found its pooled connection closed before a byte had left is sent on another connection; that is no attempt.
//! - Attempts are bounded by the engine's `MAX_ATTEMPTS`.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::timeout;
use weft_engine::outcome::{Failed, may_retry};
use weft_engine::reason::Reason;

use super::session::Exchange;
use crate::Shared;
use crate::discovery::snapshot::{Backend, Endpoint};
use crate::upstream::Target;
use crate::upstream::pick::{Picked, pick};

/// Most bytes of a request body that are kept for another attempt.
pub const REPLAY_BYTES: usize = 64 << 10;

/// Where a request may go.
#[derive(Clone, Copy)]
pub enum Goal<'a> {
    /// Any endpoint of it.
    Backend(&'a Arc<Backend>),
    /// That one.
    Endpoint(&'a Arc<Endpoint>),
}

impl Goal<'_> {
    // The name that metrics know it by.
    fn label(&self) -> &Arc<str> {
        match self {
            Self::Backend(backend) => &backend.label,
            Self::Endpoint(endpoint) => &endpoint.workload,
        }
    }
}

/// A request that can be sent.
pub trait Message: Send {
    /// The head of its response, and the connection that the body comes by.
    type Answer: Send;

    /// Sends it to one endpoint, over a new connection if `fresh`, and waits for the head of the response. Also says how long the connection
    /// took to be had.
    ///
    /// # Errors
    /// [`Failure`].
    fn attempt(
        &mut self,
        target: Target<'_>,
        fresh: bool,
    ) -> impl Future<Output = Result<(Self::Answer, Duration), Failure>> + Send;

    /// Whether it could be sent again, whole.
    fn is_replayable(&self) -> bool;

    /// It will not be sent again.
    fn commit(&mut self);

    /// Whether another sidecar says that its application has not seen the request.
    fn not_processed(answer: &Self::Answer) -> bool;
}

/// An attempt without a response that could be passed on.
#[derive(Debug)]
pub struct Failure {
    /// What is known of it.
    pub what: Failed,
    /// The code that the request is answered with if it is not tried again.
    pub reason: Reason,
    /// The connection had served before: its end says nothing about the endpoint.
    pub reused: bool,
    /// It is the client's doing, which says nothing about the endpoint either.
    pub client: bool,
}

impl Failure {
    /// Nothing was sent.
    pub fn unsent(reason: Reason) -> Self {
        Self { what: Failed::NotProcessed, reason, reused: false, client: false }
    }
}

/// Sends a request, again if need be.
///
/// # Errors
/// The reason to refuse with, of the last attempt.
pub async fn send<M: Message>(
    exchange: &mut Exchange,
    goal: Goal<'_>,
    method: &Method,
    message: &mut M,
    limit: Option<Duration>,
) -> Result<M::Answer, Reason> {
    let session = Arc::clone(&exchange.session);
    let shared = &session.shared;
    let mut tried: Vec<Picked> = Vec::new();
    let mut last = Reason::NoEndpoints;
    for attempt in 1.. {
        let Some((picked, fresh)) = next(shared, goal, &tried, last).await? else { return Err(last) };
        exchange.assign(&picked.endpoint, goal.label());
        let target = picked.target(shared);
        let failure = match bounded(message.attempt(target, fresh), limit).await {
            Ok((answer, connecting)) => {
                exchange.connected_in(connecting);
                let again = M::not_processed(&answer)
                    && may_retry(method, Failed::NotProcessed, attempt, message.is_replayable());
                if !again {
                    message.commit();
                    return Ok(answer);
                }
                Failure { what: Failed::NotProcessed, reason: Reason::NotProcessed, reused: true, client: false }
            }
            Err(failure) if failure.client => return Err(failure.reason),
            Err(failure) => failure,
        };
        exchange.answered(false);
        last = failure.reason;
        if !may_retry(method, failure.what, attempt, message.is_replayable()) {
            return Err(last);
        }
        tried.push(Picked { stale: failure.reused, dialled: None, ..picked });
    }
    Err(last)
}

/// The next endpoint to try, and whether only a new connection will do. `None`: there is no other.
async fn next(
    shared: &Shared,
    goal: Goal<'_>,
    tried: &[Picked],
    last: Reason,
) -> Result<Option<(Picked, bool)>, Reason> {
    let found = match goal {
        Goal::Backend(backend) => pick(shared, backend, tried).await?,
        Goal::Endpoint(endpoint) if tried.is_empty() => Some(Picked::only(endpoint)),
        Goal::Endpoint(_) => None,
    };
    if let Some(picked) = found {
        return Ok(Some((picked, false)));
    }
    // No other endpoint: the same one again, if it was only a connection of the pool that had ended.
    match tried.last() {
        Some(picked) if picked.stale && last != Reason::NotProcessed => {
            Ok(Some((Picked { stale: false, ..picked.clone() }, true)))
        }
        _ => Ok(None),
    }
}

async fn bounded<T>(attempt: impl Future<Output = Result<T, Failure>>, limit: Option<Duration>) -> Result<T, Failure> {
    match limit {
        None => attempt.await,
        Some(limit) => timeout(limit, attempt).await.unwrap_or(Err(Failure {
            what: Failed::NoResponseByte,
            reason: Reason::RequestTimeout,
            reused: false,
            client: false,
        })),
    }
}
