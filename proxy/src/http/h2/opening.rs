//! A stream to an endpoint, and what comes of it.

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::{Request, Response};
use weft_engine::outcome::Failed;
use weft_engine::reason::Reason;

use super::pipe::Incoming;
use crate::http::attempt::Failure;
use crate::http::headers::REASON;
use crate::upstream::h2::H2Stream;
use crate::upstream::{Pool, Target};

/// Connections of the pool that may turn out to have ended before one is found that takes a request.
const STALE: usize = 3;

/// A response's head, and the streams to its endpoint.
pub(super) struct Answer {
    pub(super) head: Response<()>,
    pub(super) body: Incoming,
    // The rest of the request goes here.
    pub(super) up: SendStream<Bytes>,
    pub(super) meshed: bool,
    pub(super) stream: H2Stream,
}

impl Answer {
    pub(super) fn says_not_processed(&self) -> bool {
        self.meshed && self.head.headers().get(REASON).is_some_and(|code| code == Reason::NotProcessed.code())
    }
}

/// A stream to an endpoint, with a request's head sent, which ends with it if `end`.
pub(super) async fn open(
    target: Target<'_>,
    head: &Request<()>,
    end: bool,
) -> Result<(H2Stream, ResponseFuture, SendStream<Bytes>), Failure> {
    let extended = head.extensions().get::<h2::ext::Protocol>().is_some();
    for _ in 0..=STALE {
        let stream = Pool::h2(target).await.map_err(|error| Failure::unsent(error.reason()))?;
        if extended && !stream.takes_extended_connect().await {
            return Err(refused(Reason::UpstreamProtocol));
        }
        match stream.open(head.clone(), end) {
            Ok((response, up)) => return Ok((stream, response, up)),
            Err(error) if error.reason().is_none() && !error.is_io() => {
                tracing::debug!(%error, "a request that cannot be sent");
                return Err(refused(Reason::MalformedRequest));
            }
            // The connection was closing; it is not chosen again.
            Err(_) => stream.leave(),
        }
    }
    Err(Failure::unsent(Reason::ConnectFailed))
}

/// A failure that nobody tries again.
pub(super) fn refused(reason: Reason) -> Failure {
    Failure { what: Failed::ResponseStarted, reason, reused: true, client: true }
}
