//! An endpoint's response body on its way to the client, and the connection that it comes by.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;
use weft_engine::reason::Reason;

use super::body::BodyError;
use super::session::Exchange;
use crate::upstream::Pool;
use crate::upstream::h1::H1Conn;
use crate::upstream::h2::H2Stream;

/// The connection that a response comes by.
pub enum Carrier {
    /// Driven by whoever reads the body.
    H1(Box<H1Conn>),
    /// A stream, counted while it lives. The connection has a task of its own.
    H2(H2Stream),
}

/// A response body. When it is dropped, at its end or before, the request is counted and its connection given back or closed.
pub struct Relay {
    body: Incoming,
    // Taken when it is given back.
    carrier: Option<Carrier>,
    exchange: Exchange,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Relay {
    /// The rest of a response. After `deadline` it breaks off.
    pub fn new(body: Incoming, carrier: Carrier, exchange: Exchange, deadline: Option<Pin<Box<Sleep>>>) -> Self {
        Self { body, carrier: Some(carrier), exchange, deadline }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(Carrier::H1(conn)) = &mut self.carrier else {
            return Pin::new(&mut self.body).poll_frame(cx);
        };
        // The first look tells hyper's connection that a frame is wanted; the frame then comes out of driving it, so the body needs no
        // waker of its own.
        let mut quiet = Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(&mut quiet) {
            return Poll::Ready(frame);
        }
        conn.poll_drive(cx);
        Pin::new(&mut self.body).poll_frame(&mut quiet)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        match this.poll_body(cx) {
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

impl Drop for Relay {
    fn drop(&mut self) {
        let session = &self.exchange.session;
        session.phase.idle();
        if let (Some(Carrier::H1(conn)), Some(endpoint)) = (self.carrier.take(), self.exchange.endpoint()) {
            // Given back while the body is still there: a body that was not read to its end keeps hyper's connection from being ready, and
            // then it is closed, not used again.
            Pool::put(&session.shared, endpoint, conn);
        }
    }
}
