//! The copy of a request: the bytes that were sent, sent once more.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use weft_engine::head::{Asked, Field, ResponseBody, ResponseHead, read_response};
use weft_engine::outcome::Failed;
use weft_engine::reason::Reason;

use super::drain::drain;
use super::pump::Pump;
use super::sending::Answer;
use super::wire::Wire;
use crate::Shared;
use crate::discovery::snapshot::Endpoint;
use crate::http::attempt::{Failure, Message};
use crate::upstream::h1::H1Conn;
use crate::upstream::{Pool, Target};

/// A whole request.
#[derive(Clone)]
pub(super) struct Copy {
    /// Its head and body, as they were sent.
    pub bytes: Bytes,
    /// What decides whether its response has a body.
    pub asked: Asked,
}

impl Copy {
    async fn ask(&self, conn: &mut H1Conn, limit: usize, fields: &mut Vec<Field>) -> Option<ResponseHead> {
        let mut upload = Pump::new(self.bytes.to_vec(), ResponseBody::None);
        let mut nothing = Wire::new(tokio::io::empty());
        poll_fn(|cx| upload.poll(cx, &mut nothing, &mut conn.wire)).await.ok()?;
        poll_fn(|cx| self.poll_head(cx, conn, limit, fields)).await
    }

    // Interim responses are read over. `None`: it ended, or is none.
    fn poll_head(
        &self,
        cx: &mut Context<'_>,
        conn: &mut H1Conn,
        limit: usize,
        fields: &mut Vec<Field>,
    ) -> Poll<Option<ResponseHead>> {
        loop {
            if conn.poll_revoked(cx).is_ready() {
                return Poll::Ready(None);
            }
            match read_response(conn.wire.held(), limit, self.asked, fields) {
                Ok(Some(head)) if (100..200).contains(&head.status) => conn.wire.consume(head.len),
                Ok(Some(head)) => return Poll::Ready(Some(head)),
                Ok(None) if matches!(ready!(conn.wire.poll_more(cx)), Ok(1..)) => {}
                _ => return Poll::Ready(None),
            }
        }
    }
}

impl Message for Copy {
    type Answer = Answer;

    async fn attempt(&mut self, target: Target<'_>, fresh: bool) -> Result<(Answer, Duration), Failure> {
        let mut fresh = fresh;
        loop {
            let begun = target.shared.clock.now();
            let mut conn = Pool::h1(target, fresh).await.map_err(|error| Failure::unsent(error.reason()))?;
            let connecting = target.shared.clock.now().saturating_sub(begun);
            let mut fields = Vec::new();
            let limit = target.shared.config.limits.head_bytes;
            if let Some(head) = self.ask(&mut conn, limit, &mut fields).await {
                return Ok((Answer::came(target, conn, head, fields), connecting));
            }
            // One of the pool may have ended; a copy that comes twice does no harm.
            if conn.reused.is_none() || !conn.wire.held().is_empty() {
                let (what, reason) = (Failed::ResponseStarted, Reason::UpstreamReset);
                return Err(Failure { what, reason, reused: false, client: false });
            }
            fresh = true;
        }
    }

    fn status(answer: &Answer) -> StatusCode {
        answer.status()
    }

    fn discard(&self, shared: &Arc<Shared>, endpoint: &Arc<Endpoint>, answer: Answer) {
        tokio::spawn(Box::pin(drain(Arc::clone(shared), Arc::clone(endpoint), answer)));
    }

    fn is_replayable(&self) -> bool {
        true
    }

    fn commit(&mut self) {}

    fn not_processed(answer: &Answer) -> bool {
        answer.says_not_processed()
    }
}
