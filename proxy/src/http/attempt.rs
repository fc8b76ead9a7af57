//! Sending a request: which endpoint, which connection, and whether to try again. The same for HTTP/1 and HTTP/2, which differ in what a
//! [`Message`] is.
//!
//! Invariants
//! - Another attempt goes to another endpoint, and only if the engine says that it is safe ([`weft_engine::outcome::may_retry`]), or if the
//!   request's route asks for it and its backend's budget allows it ([`weft_engine::retry`]); then also to the same ones again.
//! - A request that found its pooled connection closed before a byte had left is sent on another connection; that is no attempt.
//! - Attempts are bounded by the engine's `MAX_ATTEMPTS`, those that a route asks for by its `MAX_RETRIES`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::{Instant, sleep, timeout_at};
use weft_engine::outcome::{Class, Failed, classify, may_retry};
use weft_engine::reason::Reason;
use weft_engine::retry::{Budget, Ended, Retry};

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

impl<'a> Goal<'a> {
    fn budget(self) -> Option<&'a Budget> {
        match self {
            Self::Backend(backend) => Some(&backend.retries),
            Self::Endpoint(_) => None,
        }
    }

    // The name that metrics know it by.
    fn label(&self) -> &Arc<str> {
        match self {
            Self::Backend(backend) => &backend.label,
            Self::Endpoint(endpoint) => &endpoint.workload,
        }
    }
}

/// What a request's route says of its attempts.
#[derive(Clone, Copy, Default)]
pub struct Terms<'a> {
    /// The time for one, until the whole response has come (GEP-1742).
    pub limit: Option<Duration>,
    /// Which are made beyond those that are safe anyway.
    pub retry: Option<&'a Retry>,
}

/// A response that is passed on.
pub struct Answered<A> {
    /// It.
    pub answer: A,
    /// When the time of its attempt is over.
    pub until: Option<Instant>,
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

    /// A route may ask for further attempts: what is kept of its body is kept although its endpoint lets it wait.
    fn insist(&mut self) {}

    /// The status of its response.
    fn status(answer: &Self::Answer) -> StatusCode;

    /// A response that nobody gets, of an endpoint: its connection may go on.
    fn discard(&self, shared: &Arc<Shared>, endpoint: &Arc<Endpoint>, answer: Self::Answer);

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
    terms: Terms<'_>,
) -> Result<Answered<M::Answer>, Reason> {
    let session = Arc::clone(&exchange.session);
    let shared = &session.shared;
    let mut asked = terms.retry.and_then(|retry| Asked::new(shared, goal, retry));
    if asked.is_some() {
        message.insist();
    }
    let mut tried: Vec<Picked> = Vec::new();
    let mut last = Reason::NoEndpoints;
    let mut before = None;
    for attempt in 1.. {
        let mut found = next(shared, goal, &tried, last).await?;
        if found.is_none()
            && let Some((asked, ended)) = asked.as_mut().zip(before)
            && (asked.again || asked.wants_after(method, ended, message.is_replayable()).await)
        {
            tried.clear();
            found = next(shared, goal, &tried, last).await?;
        }
        let Some((picked, fresh)) = found else { return Err(last) };
        exchange.assign(&picked.endpoint, goal.label());
        let target = picked.target(shared);
        let until = terms.limit.map(|limit| Instant::now() + limit);
        let (ended, stale) = match bounded(message.attempt(target, fresh), until).await {
            Ok((answer, connecting)) => {
                exchange.connected_in(connecting);
                let whole = message.is_replayable();
                let (ended, status) = if M::not_processed(&answer) {
                    (Ended::Failed(Failed::NotProcessed, Reason::NotProcessed), None)
                } else {
                    let status = M::status(&answer);
                    (Ended::Response(status), Some(status))
                };
                if !again(asked.as_mut(), method, ended, attempt, whole) {
                    message.commit();
                    return Ok(Answered { answer, until });
                }
                exchange.answered(status.is_some_and(|status| classify(status, None) != Class::Failure));
                message.discard(shared, &picked.endpoint, answer);
                last = Reason::NotProcessed;
                (ended, true)
            }
            Err(failure) if failure.client => return Err(failure.reason),
            Err(failure) => {
                exchange.answered(false);
                last = failure.reason;
                let ended = Ended::Failed(failure.what, failure.reason);
                if !again(asked.as_mut(), method, ended, attempt, message.is_replayable()) {
                    return Err(last);
                }
                (ended, failure.reused)
            }
        };
        tried.push(Picked { stale, dialled: None, ..picked });
        before = Some(ended);
        if let Some(asked) = asked.as_ref().filter(|asked| asked.again) {
            asked.rest().await;
        }
    }
    Err(last)
}

// Retries that a route asks for.
struct Asked<'a> {
    shared: &'a Shared,
    retry: &'a Retry,
    budget: &'a Budget,
    done: u32,
    // The next attempt is one of them.
    again: bool,
}

impl<'a> Asked<'a> {
    fn new(shared: &'a Shared, goal: Goal<'a>, retry: &'a Retry) -> Option<Self> {
        let budget = goal.budget()?;
        budget.sent(shared.clock.now());
        Some(Self { shared, retry, budget, done: 0, again: false })
    }

    fn wants(&mut self, method: &Method, ended: Ended, whole: bool) -> bool {
        if !self.retry.wants(method, ended, self.done, whole) {
            return false;
        }
        if !self.budget.take(self.shared.clock.now()) {
            self.shared.telemetry.bound_hit("retry_budget");
            return false;
        }
        self.shared.telemetry.retries.fetch_add(1, Ordering::Relaxed);
        self.done += 1;
        self.again = true;
        true
    }

    // The same where nothing else is left to try, with the wait.
    async fn wants_after(&mut self, method: &Method, ended: Ended, whole: bool) -> bool {
        let wanted = self.wants(method, ended, whole);
        if wanted {
            self.rest().await;
        }
        wanted
    }

    // Boxed: a timer would make every request larger.
    async fn rest(&self) {
        Box::pin(sleep(self.retry.wait(self.done.saturating_sub(1), fastrand::u64(..)))).await;
    }
}

/// Whether another attempt is made: one that is safe at once, one that the route asks for after a while.
fn again(asked: Option<&mut Asked<'_>>, method: &Method, ended: Ended, attempt: u32, whole: bool) -> bool {
    let safe = |what| may_retry(method, what, attempt, whole);
    match (asked, ended) {
        (None, Ended::Response(_)) => false,
        (None, Ended::Failed(what, _)) => safe(what),
        (Some(asked), ended) => {
            asked.again = false;
            // What was certainly not processed costs its backend nothing.
            matches!(ended, Ended::Failed(Failed::NotProcessed, _)) && safe(Failed::NotProcessed)
                || asked.wants(method, ended, whole)
        }
    }
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

async fn bounded<T>(attempt: impl Future<Output = Result<T, Failure>>, until: Option<Instant>) -> Result<T, Failure> {
    match until {
        None => attempt.await,
        Some(until) => timeout_at(until, attempt).await.unwrap_or(Err(Failure {
            what: Failed::NoResponseByte,
            reason: Reason::RequestTimeout,
            reused: false,
            client: false,
        })),
    }
}
