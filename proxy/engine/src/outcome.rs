//! What became of an attempt, and whether another one is safe.
//!
//! Safe means: the application sees the request at most once, or the method promises that twice is harmless and the client has
//! seen nothing yet.

use http::{Method, StatusCode};

use crate::reason::Reason;

/// Attempts of one request at most, the first included: no failure can multiply traffic by more.
pub const MAX_ATTEMPTS: u32 = 4;

/// How far an attempt that failed had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Certainly not processed: no connection, an HTTP/2 REFUSED_STREAM or a GOAWAY before it, or a sidecar that said
    /// `x-weft-reason: not_processed`.
    NotProcessed,
    /// Sent, perhaps processed; no byte of a response was passed on.
    NoResponseByte,
    /// The client has part of a response.
    ResponseStarted,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A response came.
    Response {
        /// Its status.
        status: StatusCode,
        /// `grpc-status`, from the head or the trailers.
        grpc_status: Option<u32>,
    },
    /// None did.
    Failed {
        /// How far it had come.
        what: Failed,
        /// Why.
        reason: Reason,
    },
}

impl Attempt {
    /// How it counts.
    pub fn class(&self) -> Class {
        match *self {
            Self::Response { status, grpc_status } => classify(status, grpc_status),
            Self::Failed { .. } => Class::Failure,
        }
    }
}

/// How a response counts, in metrics and in the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// As asked.
    Success,
    /// The client's own fault, or a refusal meant for it; no fault of the endpoint.
    ClientError,
    /// The server's.
    Failure,
}

/// gRPC codes that tell of a failing server (grpc/statuscodes.md): unknown, deadline exceeded, internal, unavailable, data loss.
const GRPC_FAILURES: [u32; 5] = [2, 4, 13, 14, 15];

/// Classifies a response; a gRPC status counts more than the HTTP status, which is 200 then.
pub fn classify(status: StatusCode, grpc_status: Option<u32>) -> Class {
    match grpc_status {
        _ if status.is_server_error() => Class::Failure,
        _ if status.is_client_error() => Class::ClientError,
        None | Some(0) => Class::Success,
        Some(code) if GRPC_FAILURES.contains(&code) || code > 16 => Class::Failure,
        Some(_) => Class::ClientError,
    }
}

/// Whether a request whose attempt number `attempt` (the first is 1) failed may go to another endpoint.
///
/// What was not processed may, with any method. What may have been processed only with GET and HEAD (RFC 9110 section 9.2.1: safe), once,
/// and only while the client has seen no byte of a response. The body must be at hand whole.
pub fn may_retry(method: &Method, what: Failed, attempt: u32, body_replayable: bool) -> bool {
    body_replayable
        && match what {
            Failed::NotProcessed => attempt < MAX_ATTEMPTS,
            Failed::NoResponseByte => attempt < 2 && (method == Method::GET || method == Method::HEAD),
            Failed::ResponseStarted => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_classified() {
        for (status, grpc, class) in [
            (200, None, Class::Success),
            (204, None, Class::Success),
            (304, None, Class::Success),
            (404, None, Class::ClientError),
            (429, None, Class::ClientError),
            (500, None, Class::Failure),
            (503, Some(0), Class::Failure),
            (200, Some(0), Class::Success),
            (200, Some(2), Class::Failure),
            (200, Some(5), Class::ClientError),
            (200, Some(7), Class::ClientError),
            (200, Some(14), Class::Failure),
            (200, Some(99), Class::Failure),
        ] {
            assert_eq!(classify(StatusCode::from_u16(status).unwrap(), grpc), class, "{status} {grpc:?}");
        }
        let lost = Attempt::Failed { what: Failed::NoResponseByte, reason: Reason::UpstreamReset };
        assert_eq!(lost.class(), Class::Failure);
    }

    #[test]
    fn only_what_is_safe_is_tried_again() {
        use Failed::{NoResponseByte, NotProcessed, ResponseStarted};
        for (method, what, attempt, replayable, yes) in [
            (Method::POST, NotProcessed, 1, true, true),
            (Method::POST, NotProcessed, MAX_ATTEMPTS - 1, true, true),
            (Method::POST, NotProcessed, MAX_ATTEMPTS, true, false),
            (Method::POST, NotProcessed, 1, false, false),
            (Method::GET, NotProcessed, 1, false, false),
            (Method::GET, NoResponseByte, 1, true, true),
            (Method::HEAD, NoResponseByte, 1, true, true),
            (Method::GET, NoResponseByte, 2, true, false),
            (Method::POST, NoResponseByte, 1, true, false),
            (Method::PUT, NoResponseByte, 1, true, false),
            (Method::OPTIONS, NoResponseByte, 1, true, false),
            (Method::GET, ResponseStarted, 1, true, false),
        ] {
            assert_eq!(may_retry(&method, what, attempt, replayable), yes, "{method} {what:?} {attempt} {replayable}");
        }
    }
}
