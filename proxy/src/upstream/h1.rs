//! HTTP/1 connections to one endpoint.
//!
//! A request drives its own connection: there is no task per connection and no hop between tasks per request. hyper's `SendRequest` and
//! `Connection` are kept together; whoever has the pair polls the connection in the same poll in which it waits for the answer.
//!
//! Invariants
//! - A connection is in the pool only if hyper says that it is ready for a request, so a response that was not read to its end is
//!   never followed by another request.
//! - An idle connection is looked at when it is taken, so one that the server has closed is dropped and not used.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::coop::unconstrained;

use super::{SendError, Stream};
use crate::http::body::ReqBody;

// hyper does not name the type of a connection that can be upgraded.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Header fields that a response may have; hyper's own default for its server.
const MAX_HEADERS: usize = 128;

/// One connection, with at most one request on it.
pub struct H1Conn {
    tx: http1::SendRequest<ReqBody>,
    // `None` once the connection has ended.
    driver: Option<Driver>,
    /// When it became idle, by the proxy's clock.
    pub(super) idle_since: Duration,
    /// How long it may be idle.
    pub(super) idle_limit: Duration,
    /// Whether it has served a request before: then the server may have closed it meanwhile.
    pub reused: bool,
}

impl H1Conn {
    /// Speaks HTTP/1 over `stream`.
    ///
    /// # Errors
    /// hyper's, for a stream that has ended already.
    pub async fn handshake(stream: Stream, head_bytes: usize, idle_limit: Duration) -> Result<Box<Self>, hyper::Error> {
        let (tx, driver) = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(MAX_HEADERS)
            .max_header_size(head_bytes)
            .handshake(TokioIo::new(stream))
            .await?;
        let driver: Option<Driver> = Some(Box::pin(driver.with_upgrades()));
        Ok(Box::new(Self { tx, driver, idle_since: Duration::ZERO, idle_limit, reused: false }))
    }

    /// Moves bytes of this connection; true once it has ended.
    pub fn poll_drive(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(driver) = &mut self.driver {
            match driver.as_mut().poll(cx) {
                Poll::Pending => return false,
                // What went wrong is told to the request that waits, if there is one.
                Poll::Ready(_) => self.driver = None,
            }
        }
        true
    }

    /// Whether it can take a request now, as far as can be known without asking the server.
    pub fn is_usable(&mut self) -> bool {
        // Nobody waits: the connection is polled again by the request that takes it.
        !self.poll_drive(&mut Context::from_waker(Waker::noop())) && self.tx.is_ready()
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// [`SendError`], with the request if nothing of it was sent.
    pub async fn send(&mut self, request: Request<ReqBody>) -> Result<Response<Incoming>, SendError> {
        // The answer can only come out of a poll of the driver below, so it needs no waker of its own (one would wake this very task
        // while it runs). `unconstrained`, because with an exhausted budget tokio would wake that waker to try again.
        let mut answer = pin!(unconstrained(self.tx.try_send_request(request)));
        let result = poll_fn(|cx| {
            self.poll_drive(cx);
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await;
        result.map_err(SendError::from_h1)
    }

    /// Waits until the connection has ended or was given to an upgrade.
    pub async fn finish(mut self: Box<Self>) {
        poll_fn(|cx| if self.poll_drive(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}
