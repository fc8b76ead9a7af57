//! One request of an HTTP/2 client on its way to an endpoint, by hyper: the connection has a task of its own, a request is a stream of it.

use std::time::Duration;

use http::request::Parts;
use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use weft_engine::outcome::Failed;
use weft_engine::reason::Reason;

use super::attempt::{Failure, Message};
use super::body::{Replay, ReqBody};
use super::headers::REASON;
use crate::upstream::h2::H2Stream;
use crate::upstream::{Pool, Seen, SendError, Target};

/// A request, and as much of its body as may have to be sent again.
pub struct Sending {
    parts: Parts,
    replay: Option<Replay>,
}

/// A response's head, and the stream that its body comes by.
pub struct Answer {
    /// The response.
    pub response: Response<Incoming>,
    /// Its stream.
    pub stream: H2Stream,
    /// Whether it comes from another sidecar, whose reason codes count.
    pub meshed: bool,
}

impl Sending {
    /// A request that is ready to be sent.
    pub fn new(request: Request<Incoming>) -> Self {
        let (mut parts, body) = request.into_parts();
        parts.version = Version::HTTP_2;
        let replay = if body.is_end_stream() { None } else { Some(Replay::new(body)) };
        Self { parts, replay }
    }

    fn request(&self) -> Option<Request<ReqBody>> {
        let body = match &self.replay {
            None => ReqBody::Empty,
            Some(replay) => ReqBody::Replay(replay.attempt()?),
        };
        Some(Request::from_parts(self.parts.clone(), body))
    }
}

impl Message for Sending {
    type Answer = Answer;

    async fn attempt(&mut self, target: Target<'_>, _fresh: bool) -> Result<(Answer, Duration), Failure> {
        let Some(mut request) = self.request() else { return Err(Failure::unsent(Reason::UpstreamReset)) };
        let meshed = target.endpoint.identity.is_some();
        let mut again = true;
        loop {
            let begun = target.shared.clock.now();
            let stream = Pool::h2(target).await.map_err(|error| Failure::unsent(error.reason()))?;
            let connecting = target.shared.clock.now().saturating_sub(begun);
            match stream.send(request).await {
                Ok(response) => return Ok((Answer { response, stream, meshed }, connecting)),
                // The connection was closing; it is not chosen again.
                Err(SendError { request: Some(unsent), .. }) if again => {
                    request = *unsent;
                    again = false;
                }
                Err(error) => return Err(failure(&error)),
            }
        }
    }

    fn is_replayable(&self) -> bool {
        self.replay.as_ref().is_none_or(Replay::is_whole)
    }

    fn commit(&mut self) {
        if let Some(replay) = &self.replay {
            replay.commit();
        }
    }

    fn not_processed(answer: &Answer) -> bool {
        answer.meshed && answer.response.headers().get(REASON).is_some_and(|code| code == Reason::NotProcessed.code())
    }
}

fn failure(error: &SendError) -> Failure {
    let what = match error.seen {
        Seen::NotSent | Seen::NotProcessed => Failed::NotProcessed,
        Seen::Broken => Failed::NoResponseByte,
        Seen::Nonsense | Seen::ClientGone => Failed::ResponseStarted,
    };
    Failure { what, reason: error.reason(), reused: true, client: error.seen == Seen::ClientGone }
}
