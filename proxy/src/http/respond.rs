//! From an endpoint's answer, or a reason, to what the client gets.

use std::pin::Pin;

use http::header::{CONNECTION, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use tokio::time::Sleep;
use weft_engine::reason::Reason;

use super::attempt::Answer;
use super::body::ResBody;
use super::headers::{REASON, grants_upgrade, strip_hop_by_hop};
use super::refuse::refusal;
use super::relay::{Carrier, Relay};
use super::session::{Exchange, Session};
use super::upgrade::Upgrade;
use crate::upstream::Speak;

/// Why the head itself is refused, if it is. RFC 9112 section 3.2: an HTTP/1.1 request has exactly one `Host`; one without is what
/// [`super::heads`] puts in the place of a head that hyper must not see, and it says why.
pub fn head_refused<B>(request: &Request<B>) -> Option<Reason> {
    let hosts = request.headers().get_all(HOST).iter().take(2).count();
    let named = request.version() == Version::HTTP_11 && *request.method() != Method::CONNECT;
    if if named { hosts == 1 } else { hosts <= 1 } {
        return None;
    }
    let code = request.headers().get(REASON).and_then(|code| code.to_str().ok());
    let too_large = code == Some(Reason::HeaderTooLarge.code());
    Some(if too_large { Reason::HeaderTooLarge } else { Reason::MalformedRequest })
}

/// A refusal for `reason`.
pub fn refused(mut exchange: Exchange, reason: Reason, grpc: bool) -> Response<ResBody> {
    let session = std::sync::Arc::clone(&exchange.session);
    let mut response = refusal(reason, grpc, session.may_know());
    exchange.status = response.status();
    exchange.grpc_status = grpc.then(|| reason.grpc_status());
    exchange.reason = Some(reason);
    // Its body is at hand: as far as the connection is concerned the exchange is over.
    session.phase.idle();
    close_if_draining(&session, &mut response);
    response
}

/// An endpoint's response, or the tunnel that it grants.
pub fn finish(
    mut exchange: Exchange,
    answer: Answer,
    upgrade: Option<Upgrade>,
    deadline: Option<Pin<Box<Sleep>>>,
) -> Response<ResBody> {
    let session = std::sync::Arc::clone(&exchange.session);
    let Answer { mut response, carrier, .. } = answer;
    let grpc_status = response.headers().get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    exchange.answered_with(response.status(), grpc_status);
    // A refusal by another sidecar is its own to count; here it is told in the log.
    if let Some(code) = response.headers().get(REASON) {
        exchange.reason = code.to_str().ok().and_then(Reason::from_code);
        exchange.refused_there = true;
    }
    match (upgrade, carrier) {
        (Some(upgrade), Carrier::H1(conn)) if grants_upgrade(&upgrade.method, response.status()) => {
            upgrade.tunnel(&mut response, conn, exchange);
            let keep = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let (mut parts, _) = response.into_parts();
            strip_hop_by_hop(&mut parts.headers, keep);
            Response::from_parts(parts, ResBody::Empty)
        }
        (_, carrier) => {
            strip_hop_by_hop(response.headers_mut(), false);
            let relay = |body| ResBody::Relay(Box::new(Relay::new(body, carrier, exchange, deadline)));
            let mut response = response.map(relay);
            close_if_draining(&session, &mut response);
            response
        }
    }
}

/// While the proxy drains, each HTTP/1 connection ends with the response that it carries; HTTP/2 ones have been told by GOAWAY.
fn close_if_draining(session: &Session, response: &mut Response<ResBody>) {
    if session.speak == Speak::H1 && session.shared.drain.begun() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
