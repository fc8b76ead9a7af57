//! What a proxy answers itself, and how that looks in HTTP/2. Refusals: the reason's status, its code in `x-weft-reason`, one sentence for people;
//! to a gRPC client gRPC's own form.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use weft_engine::reason::Reason;
use weft_engine::route::Ended;

use super::headers::REASON;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What is answered instead of passing a request on.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Why it is refused; `None`: a filter of its route answers.
    pub reason: Option<Reason>,
    /// What else the client is told.
    pub headers: HeaderMap,
}

impl From<Reason> for Reply {
    fn from(reason: Reason) -> Self {
        Self { status: reason.http_status(), reason: Some(reason), headers: HeaderMap::new() }
    }
}

impl From<Ended> for Reply {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Refused(reason) => reason.into(),
            Ended::Answered(answer) => Self { status: answer.status, reason: None, headers: answer.headers },
        }
    }
}

/// A refusal, and its text. `grpc`: the client speaks gRPC and gets a response of trailers only. `named`: the code may be told to this
/// peer.
pub fn refusal(reason: Reason, grpc: bool, named: bool) -> (Response<()>, Bytes) {
    let (mut response, text) = if grpc { grpc_refusal(reason) } else { plain_refusal(reason) };
    if named {
        response.headers_mut().insert(REASON, HeaderValue::from_static(reason.code()));
    }
    (response, text)
}

fn plain_refusal(reason: Reason) -> (Response<()>, Bytes) {
    let text = sentence(reason);
    let mut response = Response::new(());
    *response.status_mut() = reason.http_status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    (response, Bytes::from_static(text.as_bytes()))
}

fn grpc_refusal(reason: Reason) -> (Response<()>, Bytes) {
    let mut response = Response::new(());
    *response.headers_mut() = grpc_trailers(reason);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    (response, Bytes::new())
}

/// How a gRPC client hears of it: its status and a message.
pub fn grpc_trailers(reason: Reason) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(4);
    fields.insert(GRPC_STATUS, HeaderValue::from(reason.grpc_status()));
    // The sentences are ASCII without `%`, so they need no percent-encoding.
    fields.insert(GRPC_MESSAGE, HeaderValue::from_static(sentence(reason).trim_ascii_end()));
    fields
}

/// One sentence: what happened and what to look at. ASCII, without `%`.
pub const fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::DeniedByPolicy => "A Deny policy of the destination matches this request.\n",
        Reason::NotAllowed => "No Allow policy of the destination matches this request.\n",
        Reason::PolicyInvalid => {
            "A policy of the destination is invalid, so it is closed until the policy is mended.\n"
        }
        Reason::PolicyUnsupported => "The destination's proxy cannot enforce one of its policies, so it is closed.\n",
        Reason::PlaintextRefused => "The destination takes mesh TLS only; this connection came in the clear.\n",
        Reason::RateLimited => {
            "The rate limit of the destination is used up; try again after the time in Retry-After.\n"
        }
        Reason::NoRoute => "No route of the service matches this request.\n",
        Reason::InvalidBackend => "The route that matches names a backend that cannot be used.\n",
        Reason::NoEndpoints => "The service has no endpoint that can be used.\n",
        Reason::DiscoveryTimeout => "Control has not said in time what this destination is.\n",
        Reason::NameUnresolved => "The name of the destination could not be resolved.\n",
        Reason::ConnectFailed => "No connection to the destination could be made; nothing was sent.\n",
        Reason::IdentityMismatch => "The destination could not prove its identity; nothing was sent.\n",
        Reason::IdentityExpired => "This proxy's own certificate has expired; see whether control can be reached.\n",
        Reason::IdentityRevoked => {
            "The destination's identity or certificate is revoked, or this proxy's own; nothing more is sent.\n"
        }
        Reason::UpstreamReset => "The connection to the destination broke after the request was sent.\n",
        Reason::UpstreamProtocol => "The destination answered against the rules of its protocol.\n",
        Reason::RequestTimeout => "The request did not end in its time.\n",
        Reason::NotProcessed => "The application is gone or leaving; this request was not processed.\n",
        Reason::Overloaded => "This proxy sheds load: a bound was hit.\n",
        Reason::MalformedRequest => "The head of the request is malformed or ambiguous.\n",
        Reason::HeaderTooLarge => "The head of the request is too large.\n",
        Reason::LoopRefused => "This request would come back to the proxy that sends it.\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_can_be_told_in_every_form() {
        for reason in Reason::ALL {
            let text = sentence(*reason);
            assert!(text.is_ascii() && !text.contains('%') && text.ends_with(".\n"), "{reason}");
            let (plain, body) = refusal(*reason, false, true);
            assert_eq!(plain.status(), reason.http_status());
            assert_eq!((&plain.headers()[REASON], &*body), (&reason.code().parse().unwrap(), text.as_bytes()));
            let (grpc, body) = refusal(*reason, true, false);
            assert!(grpc.status() == StatusCode::OK && body.is_empty());
            assert_eq!(grpc.headers()["grpc-status"], reason.grpc_status().to_string());
            assert!(!grpc.headers().contains_key(REASON));
        }
    }
}
