//! Sending a request: which endpoint, which connection, and whether to try again.
//!
//! Invariants
//! - Another attempt goes to another endpoint, and only if the engine says that it is safe ([`weft_engine::outcome::may_retry`]).
//! - A request that found its pooled connection closed before a byte had left is sent on another connection; that is no attempt.
//! - Attempts are bounded by the engine's `MAX_ATTEMPTS`.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::timeout;
use weft_engine::outcome::{Failed, may_retry};
use weft_engine::reason::Reason;

use super::body::{Replay, ReqBody};
use super::headers::REASON;
use super::relay::Carrier;
use super::session::{Exchange, Session};
use crate::Shared;
use crate::discovery::snapshot::{Backend, Endpoint};
use crate::upstream::pick::{Picked, pick};
use crate::upstream::{Pool, Seen, SendError, Speak, Target};

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

/// A response's head, and the connection that its body comes by.
pub struct Answer {
    /// The response.
    pub response: Response<Incoming>,
    /// Its connection.
    pub carrier: Carrier,
    /// Whether it comes from another sidecar, whose reason codes count.
    pub meshed: bool,
    /// How long the connection took to be had.
    connecting: Duration,
}

/// An attempt without a response that could be passed on.
struct Failure {
    what: Failed,
    reason: Reason,
    // The connection had served before: its end says nothing about the endpoint.
    reused: bool,
}

/// Sends a request, again if need be.
///
/// # Errors
/// The reason to refuse with, of the last attempt.
pub async fn send(
    exchange: &mut Exchange,
    goal: Goal<'_>,
    request: Request<Incoming>,
    attempt_timeout: Option<Duration>,
) -> Result<Answer, Reason> {
    let session = Arc::clone(&exchange.session);
    let shared = &*session.shared;
    let (parts, body) = request.into_parts();
    let replay = if body.is_end_stream() { None } else { Some(Replay::new(body)) };
    let mut tried: Vec<Picked> = Vec::new();
    let mut last = Reason::NoEndpoints;
    for attempt in 1.. {
        let Some((picked, fresh)) = next(shared, goal, &tried, last).await? else { return Err(last) };
        let Some(body) = attempt_body(replay.as_ref()) else { return Err(last) };
        exchange.assign(&picked.endpoint, goal.label());
        let request = Request::from_parts(head(&parts, &session, &body), body);
        let target = Target { shared, endpoint: &picked.endpoint, sni: picked.sni.as_deref() };
        let sent = bounded(once(target, session.speak, request, fresh), attempt_timeout).await;
        if let Ok(answer) = &sent {
            exchange.connected_in(answer.connecting);
        }
        let failure = match sent {
            Ok(answer) => match refused_there(&answer) {
                Some(what) if may_retry(&parts.method, what, attempt, whole(replay.as_ref())) => {
                    Failure { what, reason: Reason::NotProcessed, reused: true }
                }
                _ => {
                    if let Some(replay) = &replay {
                        replay.commit();
                    }
                    return Ok(answer);
                }
            },
            Err(failure) => failure,
        };
        exchange.answered(false);
        last = failure.reason;
        if !may_retry(&parts.method, failure.what, attempt, whole(replay.as_ref())) {
            return Err(last);
        }
        tried.push(Picked { stale: failure.reused, ..picked });
    }
    Err(last)
}

fn whole(replay: Option<&Replay>) -> bool {
    replay.is_none_or(Replay::is_whole)
}

fn attempt_body(replay: Option<&Replay>) -> Option<ReqBody> {
    match replay {
        None => Some(ReqBody::Empty),
        Some(replay) => replay.attempt().map(ReqBody::Replay),
    }
}

// A head for one attempt. HTTP/1.0 ends here: the next hop is spoken to in HTTP/1.1, which wants a `Host`, and hyper answers the client in
// its own version.
fn head(parts: &Parts, session: &Session, body: &ReqBody) -> Parts {
    let mut parts = parts.clone();
    if session.speak == Speak::H2 {
        parts.version = Version::HTTP_2;
        return parts;
    }
    if parts.version == Version::HTTP_10 && !parts.headers.contains_key(HOST) {
        let named = parts.uri.authority().map_or_else(|| session.destination.to_string(), ToString::to_string);
        // An authority and an address are values.
        parts.headers.extend(HeaderValue::try_from(named).ok().map(|named| (HOST, named)));
    }
    parts.version = Version::HTTP_11;
    // Without it hyper takes a GET for one without a body, and drops it.
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    parts
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
        })),
    }
}

/// One attempt at one endpoint.
async fn once(target: Target<'_>, speak: Speak, request: Request<ReqBody>, fresh: bool) -> Result<Answer, Failure> {
    let meshed = target.endpoint.identity.is_some();
    if speak == Speak::H2 {
        return once_h2(target, request, meshed).await;
    }
    let mut request = request;
    let mut fresh = fresh;
    loop {
        let begun = target.shared.clock.now();
        let mut conn = Pool::h1(target, fresh).await.map_err(|error| Failure::unsent(error.reason()))?;
        let connecting = target.shared.clock.now().saturating_sub(begun);
        let reused = conn.reused;
        match conn.send(request).await {
            Ok(response) => return Ok(Answer { response, carrier: Carrier::H1(conn), meshed, connecting }),
            Err(SendError { request: Some(unsent), .. }) if reused => {
                request = *unsent;
                fresh = true;
            }
            Err(error) => return Err(Failure::of(&error, reused)),
        }
    }
}

async fn once_h2(target: Target<'_>, mut request: Request<ReqBody>, meshed: bool) -> Result<Answer, Failure> {
    let mut again = true;
    loop {
        let begun = target.shared.clock.now();
        let stream = Pool::h2(target).await.map_err(|error| Failure::unsent(error.reason()))?;
        let connecting = target.shared.clock.now().saturating_sub(begun);
        match stream.send(request).await {
            Ok(response) => return Ok(Answer { response, carrier: Carrier::H2(stream), meshed, connecting }),
            // The connection was closing; it is not chosen again.
            Err(SendError { request: Some(unsent), .. }) if again => {
                request = *unsent;
                again = false;
            }
            Err(error) => return Err(Failure::of(&error, true)),
        }
    }
}

impl Failure {
    fn unsent(reason: Reason) -> Self {
        Self { what: Failed::NotProcessed, reason, reused: false }
    }

    fn of(error: &SendError, reused: bool) -> Self {
        let what = match error.seen {
            Seen::NotSent | Seen::NotProcessed => Failed::NotProcessed,
            Seen::Broken => Failed::NoResponseByte,
            Seen::Nonsense | Seen::ClientGone => Failed::ResponseStarted,
        };
        Self { what, reason: error.reason(), reused }
    }
}

// A sidecar that says that its application has not seen the request.
fn refused_there(answer: &Answer) -> Option<Failed> {
    let code = answer.response.headers().get(REASON)?;
    (answer.meshed && code == Reason::NotProcessed.code()).then_some(Failed::NotProcessed)
}
