//! From an endpoint's answer, or a reason, to what an HTTP/2 client gets.

use http::header::HOST;
use http::{Request, Response};
use weft_engine::reason::Reason;

use super::body::ResBody;
use super::h2::Answer;
use super::headers::{REASON, strip_hop_by_hop};
use super::outbound::Deadline;
use super::refuse::refusal;
use super::relay::Relay;
use super::session::Exchange;

/// Why the head itself is refused, if it is: an application that is given several names of itself may take any.
pub fn head_refused<B>(request: &Request<B>) -> Option<Reason> {
    (request.headers().get_all(HOST).iter().take(2).count() > 1).then_some(Reason::MalformedRequest)
}

/// A refusal for `reason`.
pub fn refused(mut exchange: Exchange, reason: Reason, grpc: bool) -> Response<ResBody> {
    let response = refusal(reason, grpc, exchange.session.may_know());
    exchange.status = response.status();
    exchange.grpc_status = grpc.then(|| reason.grpc_status());
    exchange.reason = Some(reason);
    response
}

/// An endpoint's response.
pub fn finish(mut exchange: Exchange, answer: Answer, deadline: Deadline) -> Response<ResBody> {
    let Answer { mut response, stream, .. } = answer;
    let grpc_status = response.headers().get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    exchange.answered_with(response.status(), grpc_status);
    // A refusal by another sidecar is its own to count; here it is told in the log.
    if let Some(code) = response.headers().get(REASON) {
        exchange.reason = code.to_str().ok().and_then(Reason::from_code);
        exchange.refused_there = true;
    }
    strip_hop_by_hop(response.headers_mut());
    response.map(|body| ResBody::Relay(Box::new(Relay::new(body, stream, exchange, deadline))))
}
