//! HTTP/1 connections to one endpoint: streams that nobody speaks on.
//!
//! Invariants
//! - A connection is in the pool only if the message before has ended where its framing says, and nothing came behind it.
//! - An idle connection is looked at when it is taken, so one that the server has closed, or has spoken on unasked, is not used.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Stream;
use crate::http::h1::wire::Wire;

/// One connection, with at most one request on it.
#[derive(Debug)]
pub struct H1Conn {
    /// Its bytes.
    pub wire: Wire<Stream>,
    /// When it became idle, by the proxy's clock.
    pub(super) idle_since: Duration,
    /// How long it may be idle.
    pub(super) idle_limit: Duration,
    /// Whether it has served a request before: then the server may have closed it meanwhile.
    pub reused: bool,
}

impl H1Conn {
    /// A connection that has just been made.
    pub fn new(stream: Stream, idle_limit: Duration) -> Self {
        Self { wire: Wire::new(stream), idle_since: Duration::ZERO, idle_limit, reused: false }
    }

    /// Whether it can take a request now, as far as can be known without asking the server.
    pub fn is_usable(&mut self) -> bool {
        // Nobody waits: the stream is polled again by the request that takes it.
        let mut cx = Context::from_waker(Waker::noop());
        self.wire.held().is_empty() && matches!(self.wire.poll_more(&mut cx), Poll::Pending)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_closed_or_spoken_on_is_not_used() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for speaks in [false, true] {
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut far = listener.accept().await.unwrap().0;
            let mut conn = H1Conn::new(Stream::Plain(near), Duration::from_secs(1));
            assert!(conn.is_usable() && conn.is_usable());
            if speaks {
                far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
            } else {
                drop(far);
            }
            // Once the runtime has heard of it.
            while conn.is_usable() {
                tokio::task::yield_now().await;
            }
            assert!(!conn.is_usable());
        }
    }
}
