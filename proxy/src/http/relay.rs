//! An endpoint's response body on its way to an HTTP/2 client, and the stream that it comes by.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use weft_engine::reason::Reason;

use super::body::BodyError;
use super::outbound::Deadline;
use super::session::Exchange;
use crate::upstream::h2::H2Stream;

/// A response body. When it is dropped, at its end or before, the request is counted and its stream ends.
pub struct Relay {
    body: Incoming,
    exchange: Exchange,
    deadline: Deadline,
    _stream: H2Stream,
}

impl Relay {
    /// The rest of a response. After `deadline` it breaks off.
    pub fn new(body: Incoming, stream: H2Stream, exchange: Exchange, deadline: Deadline) -> Self {
        Self { body, exchange, deadline, _stream: stream }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                this.exchange.reason = Some(Reason::UpstreamReset);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let over = this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
                if !over {
                    return Poll::Pending;
                }
                this.exchange.reason = Some(Reason::RequestTimeout);
                Poll::Ready(Some(Err(BodyError::Deadline)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
