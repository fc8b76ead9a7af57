//! The reason codes of refusals: one code, the same in the response header `x-weft-reason`, the metrics, the access log and
//! `weft explain` (contract C7).

use http::StatusCode;
use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $http:expr, $grpc:literal;)*) => {
        /// Why a request or a connection was refused or failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of their declaration.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The code as it travels: lower case, words joined by underscores.
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)* }
            }

            /// The HTTP status that goes with it.
            pub const fn http_status(self) -> StatusCode {
                match self { $(Reason::$name => $http,)* }
            }

            /// The gRPC status code that goes with it (grpc/statuscodes.md).
            pub const fn grpc_status(self) -> u32 {
                match self { $(Reason::$name => $grpc,)* }
            }

            /// The reason of a code; `None` if it is unknown.
            pub fn from_code(code: &str) -> Option<Reason> {
                match code { $($code => Some(Reason::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// A Deny policy matched.
    DeniedByPolicy = "denied_by_policy", StatusCode::FORBIDDEN, 7;
    /// Allow policies exist for the target and none matched, or the default is deny.
    NotAllowed = "not_allowed", StatusCode::FORBIDDEN, 7;
    /// A policy of the target is broken and has no last good version: closed until it is mended.
    PolicyInvalid = "policy_invalid", StatusCode::FORBIDDEN, 7;
    /// The proxy cannot enforce a policy of the target whole.
    PolicyUnsupported = "policy_unsupported", StatusCode::FORBIDDEN, 7;
    /// A plain connection to a port that takes mesh TLS only.
    PlaintextRefused = "plaintext_refused", StatusCode::FORBIDDEN, 7;
    /// The rate limit of the target is used up.
    RateLimited = "rate_limited", StatusCode::TOO_MANY_REQUESTS, 8;
    /// No route of the service matches.
    NoRoute = "no_route", StatusCode::NOT_FOUND, 12;
    /// The matching rule's backend cannot be used.
    InvalidBackend = "invalid_backend", StatusCode::INTERNAL_SERVER_ERROR, 13;
    /// The service has no endpoint.
    NoEndpoints = "no_endpoints", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// Control gave no answer about the destination in time.
    DiscoveryTimeout = "discovery_timeout", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// The name of the destination could not be resolved.
    NameUnresolved = "name_unresolved", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// No connection to the endpoint could be made; nothing was sent.
    ConnectFailed = "connect_failed", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// The endpoint's TLS failed or proved another identity.
    IdentityMismatch = "identity_mismatch", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// The proxy's own certificate has expired.
    IdentityExpired = "identity_expired", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// The peer's identity or certificate, or the proxy's own, has been revoked.
    IdentityRevoked = "identity_revoked", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// The connection broke after the request had been sent.
    UpstreamReset = "upstream_reset", StatusCode::BAD_GATEWAY, 14;
    /// The peer answered against the rules of its protocol.
    UpstreamProtocol = "upstream_protocol", StatusCode::BAD_GATEWAY, 13;
    /// The request did not end in its time.
    RequestTimeout = "request_timeout", StatusCode::GATEWAY_TIMEOUT, 4;
    /// Certainly not processed: the application is gone or leaving. Another endpoint may be tried, for any method.
    NotProcessed = "not_processed", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// The proxy sheds load: a bound was hit.
    Overloaded = "overloaded", StatusCode::SERVICE_UNAVAILABLE, 14;
    /// The request's head is malformed or has the shape of request smuggling.
    MalformedRequest = "malformed_request", StatusCode::BAD_REQUEST, 3;
    /// The request's head is larger than the bound.
    HeaderTooLarge = "header_too_large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, 8;
    /// The connection was made to the proxy's own port.
    LoopRefused = "loop_refused", StatusCode::LOOP_DETECTED, 9;
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn codes_are_unique_and_round_trip() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.code());
        }
    }
}
