//! Requests of our own application, on their way out: destination, route, filters, endpoint.
//!
//! Invariants
//! - What the destination is, is asked anew for each request: a change of tables applies to the next request on an open connection.
//! - A request goes to a meshed endpoint over mesh TLS or not at all.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Sleep, sleep_until};
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;
use weft_engine::route::{Called, Ended, Filters, HeaderEdit, Rule};

use super::attempt::{Answered, Goal, Terms};
use super::refuse::Reply;
use super::session::Session;
use crate::discovery::named;
use crate::discovery::snapshot::{Backend, Destination};

/// Where a request goes, and what its route says of it.
pub struct Way<'a> {
    /// Where to.
    pub goal: Goal<'a>,
    /// What is done to it and its response.
    pub filters: Filters<'a>,
    cors: Option<Box<HeaderEdit>>,
    /// Where copies of it go.
    pub mirrors: Vec<Arc<Backend>>,
    rule: Option<&'a Rule>,
}

/// What a session's request for this authority means to reach, as of now.
///
/// # Errors
/// Control has not said it in time; there is no memory for another request.
pub async fn destination(session: &Session, authority: &[u8]) -> Result<Destination, Reason> {
    session.shared.memory.admit_request()?;
    let discovery = &session.shared.discovery;
    Ok(match discovery.resolve(session.destination).await? {
        // It was of the mesh when the connection was opened; now it is not.
        Destination::Outside => Destination::Endpoint(discovery.external_endpoint(session.destination)),
        Destination::Endpoint(endpoint) if session.shared.config.socket_lb => {
            let called = named::by_authority(authority);
            Box::pin(named::meant(&session.shared, endpoint, called, session.destination)).await
        }
        known => known,
    })
}

/// The way of one request to its destination.
///
/// # Errors
/// No route matches, or one that names a backend that cannot be used, or one that answers itself.
pub fn way<'a>(destination: &'a Destination, request: &RequestView<'_>, called: &Called<'_>) -> Result<Way<'a>, Ended> {
    let plain = |goal| Ok(Way { goal, filters: Filters::default(), cors: None, mirrors: Vec::new(), rule: None });
    let service = match destination {
        Destination::Service(service) => service,
        Destination::Endpoint(endpoint) => return plain(Goal::Endpoint(endpoint)),
        Destination::Outside => return Err(Reason::NoEndpoints.into()),
    };
    let Some(table) = &service.table else { return plain(Goal::Backend(&service.own)) };
    let choice = table.choose(request, called, fastrand::u64(..))?;
    let rule = choice.rule;
    let chosen = &rule.backends[choice.backend];
    let backend = service.backend(&chosen.service).ok_or(Reason::InvalidBackend)?;
    let cors = choice.filters.cors_edit(request);
    let drawn = choice.filters.mirrors().filter(|mirror| mirror.takes(fastrand::u64(..)));
    let mirrors = drawn.filter_map(|mirror| service.backend(&mirror.service)).cloned().collect();
    Ok(Way { goal: Goal::Backend(backend), filters: choice.filters, cors, mirrors, rule: Some(rule) })
}

impl Way<'_> {
    /// What is changed of the response's fields, in order.
    pub fn response_edits(&self) -> impl Iterator<Item = &HeaderEdit> {
        self.cors.as_deref().into_iter().chain(self.filters.response_edits())
    }

    /// A refusal on this way, which a browser's script may read if it may read the response.
    pub fn refused(&self, reason: Reason) -> Box<Reply> {
        let mut reply = Reply::from(reason);
        if let Some(edit) = &self.cors {
            edit.apply(&mut reply.headers);
        }
        Box::new(reply)
    }

    /// The time for the whole request, retries and the response's body included.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.rule.and_then(|rule| rule.request_timeout).filter(|limit| *limit > Duration::ZERO)
    }

    /// What holds for its attempts.
    pub fn terms(&self) -> Terms<'_> {
        let Some(rule) = self.rule else { return Terms::default() };
        Terms { limit: rule.backend_request_timeout, retry: rule.retry.as_ref() }
    }
}

/// The time of a whole request, kept going while its response's body is passed on.
pub type Deadline = Option<Pin<Box<Sleep>>>;

/// Waits for an answer, not longer than that. What is left is the time for its body: the attempt's may be over sooner than the request's.
///
/// # Errors
/// The answer's; [`Reason::RequestTimeout`].
pub async fn within<T>(
    deadline: &mut Deadline,
    answering: impl Future<Output = Result<Answered<T>, Reason>>,
) -> Result<T, Reason> {
    let Answered { answer, until } = match deadline {
        None => answering.await?,
        Some(sleep) => tokio::select! {
            biased;
            answered = answering => answered?,
            () = sleep.as_mut() => return Err(Reason::RequestTimeout),
        },
    };
    if let Some(until) = until
        && deadline.as_ref().is_none_or(|sleep| until < sleep.deadline())
    {
        *deadline = Some(Box::pin(sleep_until(until)));
    }
    Ok(answer)
}
