//! The copy of a request: its head and what was kept of its body, sent once more.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use tokio::time::timeout;
use weft_engine::outcome::Failed;
use weft_engine::reason::Reason;

use super::opening::{Answer, open};
use super::pipe::{Incoming, Piece, Pipe, Source};
use crate::Shared;
use crate::discovery::snapshot::Endpoint;
use crate::http::attempt::{Failure, Message};
use crate::upstream::Target;

/// How long a response may take that nobody gets; then its stream is reset.
const PATIENCE: Duration = Duration::from_secs(5);

/// A whole request.
#[derive(Clone)]
pub(super) struct Copy {
    /// Its head.
    pub head: Request<()>,
    /// Its body.
    pub body: Whole,
}

/// A whole body.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// Its bytes, in order.
    pub pieces: VecDeque<Bytes>,
    /// What ends it.
    pub trailers: Option<HeaderMap>,
}

impl Source for Whole {
    fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Piece, h2::Error>>> {
        let piece = self.pieces.pop_front().map(Piece::Data).or_else(|| self.trailers.take().map(Piece::Trailers));
        Poll::Ready(piece.map(Ok))
    }

    fn is_end(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none()
    }
}

impl Message for Copy {
    type Answer = Answer;

    async fn attempt(&mut self, target: Target<'_>, _fresh: bool) -> Result<(Answer, Duration), Failure> {
        let begun = target.shared.clock.now();
        let (stream, mut response, mut up) = open(target, &self.head, self.body.is_end()).await?;
        let connecting = target.shared.clock.now().saturating_sub(begun);
        let mut upload = if self.body.is_end() { Pipe::ended() } else { Pipe::default() };
        let mut body = self.body.clone();
        let answered = poll_fn(|cx| {
            // It may be answered although it takes no more.
            let _ = upload.poll(cx, &mut body, &mut up);
            Pin::new(&mut response).poll(cx)
        });
        let Ok(came) = answered.await else {
            let (what, reason) = (Failed::ResponseStarted, Reason::UpstreamReset);
            return Err(Failure { what, reason, reused: true, client: false });
        };
        let (head, body) = came.into_parts();
        let head = http::Response::from_parts(head, ());
        let meshed = target.endpoint.identity.is_some();
        Ok((Answer { head, body: Incoming::new(body, None), up, meshed, stream }, connecting))
    }

    fn status(answer: &Answer) -> StatusCode {
        answer.head.status()
    }

    // Read to its end, so that the application need not hear of a reset.
    fn discard(&self, _: &Arc<Shared>, _: &Arc<Endpoint>, mut answer: Answer) {
        tokio::spawn(async move {
            let end = poll_fn(|cx| {
                loop {
                    match answer.body.poll_piece(cx) {
                        Poll::Ready(Some(Ok(Piece::Data(_)))) => {}
                        Poll::Ready(_) => return Poll::Ready(()),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            });
            // It is let go of all the same.
            let _ = timeout(PATIENCE, end).await;
        });
    }

    fn is_replayable(&self) -> bool {
        true
    }

    fn commit(&mut self) {}

    fn not_processed(answer: &Answer) -> bool {
        answer.says_not_processed()
    }
}
