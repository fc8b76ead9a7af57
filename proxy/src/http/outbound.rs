//! Requests of our own application, on their way out: destination, route, filters, endpoint.
//!
//! Invariants
//! - What the destination is, is asked anew for each request: a change of tables applies to the next request on an open connection.
//! - A request goes to a meshed endpoint over mesh TLS or not at all.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Sleep;
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;
use weft_engine::route::{Filter, Rule};

use super::attempt::{Answer, Goal, send};
use super::body::ResBody;
use super::headers::{REASON, is_grpc, strip_hop_by_hop, wants_upgrade};
use super::respond::{finish, head_refused, refused};
use super::session::{Exchange, Session};
use super::upgrade::Upgrade;
use crate::discovery::snapshot::{Backend, Destination, Service};

/// Answers one request.
pub async fn handle(session: Arc<Session>, mut request: Request<Incoming>) -> Response<ResBody> {
    session.phase.busy();
    let mut exchange = Exchange::begin(&session, request.method(), request.uri());
    let grpc = is_grpc(request.headers());
    if let Some(reason) = head_refused(&request) {
        return refused(exchange, reason, grpc);
    }
    let upgrade = wants_upgrade(&request).then(|| Upgrade::of(&mut request));
    strip_hop_by_hop(request.headers_mut(), upgrade.is_some());
    let mut deadline = None;
    match forward(&mut exchange, request, &mut deadline).await {
        Ok(answer) => finish(exchange, answer, upgrade, deadline),
        Err(reason) => refused(exchange, reason, grpc),
    }
}

/// The time of a whole request, kept going while its response's body is passed on.
type Deadline = Option<Pin<Box<Sleep>>>;

async fn forward(
    exchange: &mut Exchange,
    request: Request<Incoming>,
    deadline: &mut Deadline,
) -> Result<Answer, Reason> {
    let session = Arc::clone(&exchange.session);
    match session.shared.discovery.resolve(session.destination).await? {
        Destination::Service(service) => to_service(exchange, &service, request, deadline).await,
        Destination::Endpoint(endpoint) => {
            let mut answer = send(exchange, Goal::Endpoint(&endpoint), request, None).await?;
            clean(&mut answer);
            Ok(answer)
        }
        // It was of the mesh when the connection was opened; now it is not.
        Destination::Outside => {
            let endpoint = session.shared.discovery.external_endpoint(session.destination);
            let mut answer = send(exchange, Goal::Endpoint(&endpoint), request, None).await?;
            clean(&mut answer);
            Ok(answer)
        }
    }
}

async fn to_service(
    exchange: &mut Exchange,
    service: &Service,
    mut request: Request<Incoming>,
    deadline: &mut Deadline,
) -> Result<Answer, Reason> {
    let Some(table) = &service.table else {
        let mut answer = send(exchange, Goal::Backend(&service.own), request, None).await?;
        clean(&mut answer);
        return Ok(answer);
    };
    let choice = table.choose(&RequestView::of(&request), fastrand::u64(..))?;
    let rule = choice.rule;
    let chosen = &rule.backends[choice.backend];
    let backend = find(service, &chosen.service).ok_or(Reason::InvalidBackend)?;
    edit(request.headers_mut(), &rule.filters, &chosen.filters, true);
    let sending = send(exchange, Goal::Backend(backend), request, rule.backend_request_timeout);
    let mut answer = within(rule, deadline, sending).await?;
    clean(&mut answer);
    edit(answer.response.headers_mut(), &rule.filters, &chosen.filters, false);
    Ok(answer)
}

fn find<'a>(service: &'a Service, name: &str) -> Option<&'a Arc<Backend>> {
    if *service.own.name == *name { Some(&service.own) } else { service.backends.get(name) }
}

// The rule's time for the whole request, retries and the response's body included.
async fn within(
    rule: &Rule,
    deadline: &mut Deadline,
    sending: impl Future<Output = Result<Answer, Reason>>,
) -> Result<Answer, Reason> {
    let Some(limit) = rule.request_timeout.filter(|limit| *limit > Duration::ZERO) else { return sending.await };
    let sleep = deadline.insert(Box::pin(tokio::time::sleep(limit)));
    tokio::select! {
        biased;
        answer = sending => answer,
        () = sleep.as_mut() => Err(Reason::RequestTimeout),
    }
}

// The route's filters, then the backend's.
fn edit(headers: &mut http::HeaderMap, rule: &[Filter], backend: &[Filter], request: bool) {
    for filter in rule.iter().chain(backend) {
        match filter {
            Filter::RequestHeaders(edit) if request => edit.apply(headers),
            Filter::ResponseHeaders(edit) if !request => edit.apply(headers),
            Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => {}
        }
    }
}

// Reason codes are the mesh's: from outside of it they are nobody's word.
fn clean(answer: &mut Answer) {
    if !answer.meshed {
        answer.response.headers_mut().remove(REASON);
    }
}
