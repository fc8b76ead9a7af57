//! HTTP/1 connections to one endpoint: streams that nobody speaks on.
//!
//! Invariants
//! - A connection is in the pool only if the message before has ended where its framing says, and nothing came behind it.
//! - An idle connection is looked at when it is taken, so one that the server has closed, or has spoken on unasked, is not used.

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;

use super::Stream;
use super::connect::Connected;
use super::ends::Ends;
use crate::http::h1::wire::Wire;
use crate::identity::revoked::Proof;

/// One connection, with at most one request on it.
#[derive(Debug)]
pub struct H1Conn {
    /// Its bytes.
    pub wire: Wire<Stream>,
    /// When it became idle, by the proxy's clock.
    pub(super) idle_since: Duration,
    /// The earliest moment from which the server may count its idle time.
    pub(super) counts_from: Duration,
    /// When it is to be replaced.
    pub(super) ends: Ends,
    /// What its server has proved.
    pub(crate) proof: Option<Proof>,
    /// By what name it was called.
    pub(super) sni: Option<Arc<str>>,
    // Its share of the idle time, from three quarters: connections opened together are not closed together.
    share: f32,
    /// How long it had been idle when it was taken, if it has served a request before: then the server may have closed it meanwhile.
    pub reused: Option<Duration>,
}

impl H1Conn {
    /// A connection that has just been made.
    pub fn new(connected: Connected, now: Duration, sni: Option<Arc<str>>) -> Self {
        let Connected { stream, proof } = connected;
        Self {
            wire: Wire::new(stream),
            ends: Ends::of(now, proof.as_ref().map(|proof| proof.left)),
            proof,
            sni,
            idle_since: Duration::ZERO,
            counts_from: Duration::ZERO,
            share: 1.0 - fastrand::f32() / 4.0,
            reused: None,
        }
    }

    /// Whether it can take a request now, as far as the runtime has heard. `waker` learns of its end, until it is asked again.
    pub fn is_usable(&mut self, waker: &Waker) -> bool {
        let mut cx = Context::from_waker(waker);
        self.poll_revoked(&mut cx).is_pending()
            && self.wire.held().is_empty()
            && matches!(self.wire.poll_more(&mut cx), Poll::Pending)
    }

    /// Ready once its server is not believed any more.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.proof.as_mut().map_or(Poll::Pending, |proof| proof.poll_revoked(cx))
    }

    /// Whether that is so.
    pub fn is_revoked(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.known().is_revoked())
    }

    /// The same by the kernel's own word: nothing has come, no end either.
    pub(super) fn is_silent(&self) -> bool {
        let peeked = SockRef::from(self.wire.get_ref().socket()).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// How long it may stay idle, if the server's limit is this.
    pub(super) fn left(&self, now: Duration, limit: Option<Duration>) -> Duration {
        let until = self.counts_from + limit.unwrap_or_default().mul_f32(self.share);
        until.saturating_sub(now).min(self.ends.left(now))
    }

    /// Whether its server had certainly ended it before any byte of `sent`, which left in one write, reached its kernel. To be asked at the
    /// end of the stream.
    ///
    /// By TCP's own word: the end (FIN) has come in order, and then a reset. Had those bytes been taken in before the server closed, the end
    /// would have acknowledged them, and nothing would be left to reset. So it must be one segment: of several, the first may have been read.
    pub(crate) fn was_closed_before(&self, sent: usize, application: bool) -> bool {
        let most = if application { ONE_SEGMENT_HERE } else { ONE_SEGMENT };
        let Stream::Plain(socket) = self.wire.get_ref() else { return false };
        // Linux: EPIPE is a reset behind the end, ECONNRESET one without (tcp_reset).
        sent <= most && matches!(socket.take_error(), Ok(Some(error)) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// Bytes that leave in one segment whatever the path: the least MTU of IPv6, less its header and TCP's with options.
const ONE_SEGMENT: usize = 1280 - 100;
/// The same to our own kernel, whose segments are as large as 64 KiB.
const ONE_SEGMENT_HERE: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (H1Conn, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (H1Conn::new(Connected::plain(near), Duration::ZERO, None), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_or_spoken_on_is_not_used() {
        for speaks in [false, true] {
            let (mut conn, mut far) = pair().await;
            assert!(conn.is_usable(Waker::noop()) && conn.is_usable(Waker::noop()));
            assert!(conn.is_silent());
            if speaks {
                far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
            } else {
                drop(far);
            }
            // The kernel knows before the runtime has heard of it.
            assert!(!conn.is_silent());
            while conn.is_usable(Waker::noop()) {
                tokio::task::yield_now().await;
            }
            assert!(!conn.is_usable(Waker::noop()));
        }
    }

    #[test]
    fn its_time_counts_from_the_response_and_is_never_more_than_the_limit() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (mut conn, _far) = runtime.block_on(pair());
        let second = Duration::from_secs(1);
        (conn.counts_from, conn.idle_since) = (second, second * 5);
        let left = conn.left(second * 5, Some(second * 8));
        assert!((second * 2..=second * 4).contains(&left), "{left:?}");
        assert_eq!(conn.left(second * 10, Some(second * 8)), Duration::ZERO);
        assert_eq!(conn.left(second * 2, None), Duration::ZERO);
    }

    // Writes without asking whether anything has come, as a request does that meets the server's end halfway.
    async fn write(conn: &mut H1Conn, bytes: &[u8]) {
        let written = poll_fn(|cx| conn.wire.poll_write(cx, bytes)).await;
        assert_eq!(written.unwrap(), bytes.len());
    }

    // What is read at the end.
    async fn end(conn: &mut H1Conn) -> std::io::Result<usize> {
        poll_fn(|cx| conn.wire.poll_more(cx)).await
    }

    #[tokio::test]
    async fn what_a_closed_server_never_saw_is_told_from_what_it_may_have_read() {
        let request = b"POST / HTTP/1.1\r\n\r\n";
        // Closed before.
        let (mut conn, far) = pair().await;
        drop(far);
        write(&mut conn, request).await;
        assert_eq!(end(&mut conn).await.unwrap(), 0);
        assert!(conn.was_closed_before(request.len(), false));
        // Read, and closed.
        let (mut conn, mut far) = pair().await;
        write(&mut conn, request).await;
        far.read_exact(&mut [0; 22][..request.len()]).await.unwrap();
        drop(far);
        assert_eq!(end(&mut conn).await.unwrap(), 0);
        assert!(!conn.was_closed_before(request.len(), false));
        // Partly read, and closed.
        let (mut conn, mut far) = pair().await;
        write(&mut conn, request).await;
        far.read_exact(&mut [0; 4]).await.unwrap();
        drop(far);
        assert!(end(&mut conn).await.is_err());
        assert!(!conn.was_closed_before(request.len(), false));
        // Come, not read, and closed.
        let (mut conn, far) = pair().await;
        write(&mut conn, request).await;
        far.readable().await.unwrap();
        drop(far);
        assert!(end(&mut conn).await.is_err());
        assert!(!conn.was_closed_before(request.len(), false));
        // Its first part read, then closed, then the rest: nobody can say that by the reset, so it is asked only of what left at once.
        let (mut conn, far) = pair().await;
        drop(far);
        write(&mut conn, request).await;
        end(&mut conn).await.unwrap();
        assert!(!conn.was_closed_before(ONE_SEGMENT + 1, false));
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_end() {
        let (mut conn, far) = pair().await;
        let ended = poll_fn(|cx| if conn.is_usable(cx.waker()) { Poll::Pending } else { Poll::Ready(()) });
        let closing = async { drop(far) };
        tokio::join!(ended, closing);
    }
}
