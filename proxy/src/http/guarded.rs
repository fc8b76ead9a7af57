//! Time bounds of an HTTP/1 client's connection: a head that has begun must end within [`HEAD_TIMEOUT`], an idle connection lives
//! [`IDLE_TIMEOUT`] or longer, and not twice that.
//!
//! hyper's own timer counts idle time as a slow head, which would close clients' pooled connections after 30 s, and makes a timer for
//! every request. Here a timer is made only when a head comes in pieces; the idle one is made once a connection and, when it fires,
//! starts anew if there was a request meanwhile: no request costs a timer or a look at the clock.
//!
//! What is read goes through [`Heads`], which lets no head pass that could be read differently by the application.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::heads::Heads;
use crate::detect::HEAD_TIMEOUT;
use crate::stream::forward_write;

/// How long a client's connection may at least be idle between requests: longer than any client's own pool keeps it. After twice that
/// it has ended.
pub const IDLE_TIMEOUT: Duration = Duration::from_hours(1);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;
const TUNNEL: u8 = 3;
/// Read at a time while a head is unfinished.
const READ: usize = 2 << 10;

/// Where a connection is in its exchange: told by the handler, read by the stream below hyper.
#[derive(Debug, Default)]
pub struct Phase(AtomicU8);

impl Phase {
    /// A whole head has come.
    pub fn busy(&self) {
        self.0.store(BUSY, Ordering::Relaxed);
    }

    /// The response has been given to hyper whole: the next byte begins a head.
    pub fn idle(&self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }

    /// The client may leave HTTP: what comes from now on is no head.
    pub fn tunnel(&self) {
        self.0.store(TUNNEL, Ordering::Relaxed);
    }
}

/// A stream that ends when its client takes too long.
#[derive(Debug)]
pub struct Guarded<IO> {
    io: IO,
    phase: Arc<Phase>,
    heads: Heads,
    head: Option<Pin<Box<Sleep>>>,
    idle: Option<Pin<Box<Sleep>>>,
    // Whether there was a request since the idle timer was set.
    active: bool,
}

impl<IO> Guarded<IO> {
    /// Watches `io`, whose heads are at most `head_bytes` long.
    pub fn new(io: IO, phase: Arc<Phase>, head_bytes: usize) -> Self {
        Self { io, phase, heads: Heads::new(head_bytes), head: None, idle: None, active: false }
    }

    // Nothing can be read now: says whether that has lasted too long.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.heads.unfinished() {
            // It may have come while the response before it was under way.
            self.begun();
        }
        match self.phase.0.load(Ordering::Relaxed) {
            BUSY | TUNNEL => {
                self.active = true;
                Poll::Pending
            }
            HEAD if self.heads.unfinished() => {
                self.head.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT))).as_mut().poll(cx)
            }
            // Also when a whole head was given to hyper, which looks for more before the handler has begun.
            _ => self.poll_idle(cx),
        }
    }

    // Bytes of a head are there: its time counts from the first.
    fn begun(&mut self) {
        if self.phase.0.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.active = true;
            self.head = None;
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let timer = self.idle.get_or_insert_with(|| Box::pin(sleep(IDLE_TIMEOUT)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if !std::mem::take(&mut self.active) {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
        }
    }
}

impl<IO: AsyncRead + Unpin> Guarded<IO> {
    // Whether bytes came; false at the end of the stream. What may pass is in `buf` or for [`Heads::give`] to give.
    fn poll_some(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        if !self.heads.unfinished() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(false));
            }
            self.begun();
            return Poll::Ready(self.heads.came(buf, before).map(|()| true));
        }
        let mut memory = [0; READ];
        let mut more = ReadBuf::new(&mut memory);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut more))?;
        self.begun();
        Poll::Ready(self.heads.continued(more.filled()).map(|()| !more.filled().is_empty()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let tunnel = this.phase.0.load(Ordering::Relaxed) == TUNNEL;
        if tunnel {
            this.heads.leave_http();
        }
        let before = buf.filled().len();
        loop {
            if this.heads.give(buf) {
                return Poll::Ready(Ok(()));
            }
            if tunnel {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            if this.heads.refused() {
                // The refusal ends the connection; until then there is nothing to read and nobody to wake.
                return Poll::Pending;
            }
            match this.poll_some(cx, buf) {
                Poll::Ready(Ok(true)) if buf.filled().len() == before => {}
                Poll::Ready(result) => return Poll::Ready(result.map(drop)),
                Poll::Pending => match this.poll_timers(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                },
            }
        }
    }
}

forward_write!(Guarded<IO> where IO, io in Self { io, .. });

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn in_a_tunnel_nothing_is_looked_at() {
        let (near, mut far) = tokio::io::duplex(64);
        let phase = Arc::new(Phase::default());
        let mut stream = Guarded::new(near, Arc::clone(&phase), 1 << 10);
        far.write_all(REQUEST).await.unwrap();
        stream.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
        // The beginning of what could be a head is held; granting the tunnel lets it go.
        far.write_all(b"one").await.unwrap();
        let mut three = [0; 3];
        assert!(timeout(Duration::from_millis(1), stream.read(&mut three)).await.is_err());
        phase.tunnel();
        stream.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"one");
        far.write_all(b"\n\n\n").await.unwrap();
        stream.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"\n\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_ends_the_connection_and_an_idle_one_stays() {
        let (near, mut far) = tokio::io::duplex(64);
        let phase = Arc::new(Phase::default());
        let mut stream = Guarded::new(near, Arc::clone(&phase), 1 << 10);
        let mut byte = [0; 1];
        // Idle for half an hour, then one request, then idle again: the hour counts anew.
        assert!(timeout(IDLE_TIMEOUT / 2, stream.read(&mut byte)).await.is_err());
        far.write_all(REQUEST).await.unwrap();
        stream.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
        phase.busy();
        assert!(timeout(IDLE_TIMEOUT, stream.read(&mut byte)).await.is_err());
        phase.idle();
        far.write_all(&REQUEST[..1]).await.unwrap();
        let begun = Instant::now();
        let error = stream.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_long_response_a_connection_may_be_idle_as_ever() {
        let (near, mut far) = tokio::io::duplex(64);
        let phase = Arc::new(Phase::default());
        let mut stream = Guarded::new(near, Arc::clone(&phase), 1 << 10);
        let mut byte = [0; 1];
        assert!(timeout(IDLE_TIMEOUT / 2, stream.read(&mut byte)).await.is_err());
        far.write_all(REQUEST).await.unwrap();
        stream.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
        // As hyper does: it looks for the client's end while the response is under way.
        phase.busy();
        assert!(timeout(IDLE_TIMEOUT * 3, stream.read(&mut byte)).await.is_err());
        phase.idle();
        let begun = Instant::now();
        assert_eq!(stream.read(&mut byte).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!((IDLE_TIMEOUT..IDLE_TIMEOUT * 2).contains(&begun.elapsed()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_comes_whole_makes_no_timer() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Guarded::new(near, Arc::default(), 1 << 10);
        far.write_all(REQUEST).await.unwrap();
        stream.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
        // As hyper does, before the handler has begun.
        assert!(timeout(HEAD_TIMEOUT * 2, stream.read(&mut [0; 1])).await.is_err());
        assert!(stream.head.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_after_an_hour() {
        let (near, _far) = tokio::io::duplex(64);
        let mut stream = Guarded::new(near, Arc::default(), 1 << 10);
        let begun = Instant::now();
        assert!(stream.read(&mut [0; 1]).await.is_err());
        assert_eq!(begun.elapsed().as_secs(), IDLE_TIMEOUT.as_secs());
    }
}
