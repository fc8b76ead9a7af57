//! Requests of our own application, on their way out: destination, route, filters, endpoint.
//!
//! Invariants
//! - What the destination is, is asked anew for each request: a change of tables applies to the next request on an open connection.
//! - A request goes to a meshed endpoint over mesh TLS or not at all.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::Sleep;
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;
use weft_engine::route::{self, Filter, HeaderEdit, Rule};

use super::attempt::Goal;
use super::session::Session;
use crate::discovery::snapshot::Destination;

/// Where a request goes, and what its route says of it.
pub struct Way<'a> {
    /// Where to.
    pub goal: Goal<'a>,
    rule: Option<(&'a Rule, &'a route::Backend)>,
}

/// What a session's requests mean to reach, as of now.
///
/// # Errors
/// Control has not said it in time; there is no memory for another request.
pub async fn destination(session: &Session) -> Result<Destination, Reason> {
    session.shared.memory.admit_request()?;
    let discovery = &session.shared.discovery;
    Ok(match discovery.resolve(session.destination).await? {
        // It was of the mesh when the connection was opened; now it is not.
        Destination::Outside => Destination::Endpoint(discovery.external_endpoint(session.destination)),
        known => known,
    })
}

/// The way of one request to its destination.
///
/// # Errors
/// No route matches, or one that names a backend that cannot be used.
pub fn way<'a>(destination: &'a Destination, request: &RequestView<'_>) -> Result<Way<'a>, Reason> {
    let service = match destination {
        Destination::Service(service) => service,
        Destination::Endpoint(endpoint) => return Ok(Way { goal: Goal::Endpoint(endpoint), rule: None }),
        Destination::Outside => return Err(Reason::NoEndpoints),
    };
    let Some(table) = &service.table else { return Ok(Way { goal: Goal::Backend(&service.own), rule: None }) };
    let choice = table.choose(request, fastrand::u64(..))?;
    let rule = choice.rule;
    let chosen = &rule.backends[choice.backend];
    let backend = service.backend(&chosen.service).ok_or(Reason::InvalidBackend)?;
    Ok(Way { goal: Goal::Backend(backend), rule: Some((rule, chosen)) })
}

impl<'a> Way<'a> {
    /// What its filters change of the request, or of the response: the route's first, then the backend's.
    pub fn edits(&self, request: bool) -> Vec<&'a HeaderEdit> {
        let Some((rule, backend)) = self.rule else { return Vec::new() };
        let of = |filter: &'a Filter| match filter {
            Filter::RequestHeaders(edit) if request => Some(edit),
            Filter::ResponseHeaders(edit) if !request => Some(edit),
            Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => None,
        };
        rule.filters.iter().chain(&backend.filters).filter_map(of).collect()
    }

    /// The time for the whole request, retries and the response's body included.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.rule.and_then(|(rule, _)| rule.request_timeout).filter(|limit| *limit > Duration::ZERO)
    }

    /// The time for one attempt, until the response's head.
    pub fn attempt_timeout(&self) -> Option<Duration> {
        self.rule.and_then(|(rule, _)| rule.backend_request_timeout)
    }
}

/// The time of a whole request, kept going while its response's body is passed on.
pub type Deadline = Option<Pin<Box<Sleep>>>;

/// Waits for an answer, not longer than that.
///
/// # Errors
/// The answer's; [`Reason::RequestTimeout`].
pub async fn within<T>(
    deadline: &mut Deadline,
    answering: impl Future<Output = Result<T, Reason>>,
) -> Result<T, Reason> {
    let Some(sleep) = deadline else { return answering.await };
    tokio::select! {
        biased;
        answer = answering => answer,
        () = sleep.as_mut() => Err(Reason::RequestTimeout),
    }
}
