//! Time bounds of an HTTP/1 client's connection: a head that has begun must end within [`HEAD_TIMEOUT`], an idle connection lives
//! [`IDLE_TIMEOUT`].
//!
//! hyper's own timer counts idle time as a slow head, which would close clients' pooled connections after 30 s, and makes a timer for
//! every request. Here a timer is made only when a head comes in pieces; the idle one is made once a connection and looks at the
//! clock when it fires.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::detect::HEAD_TIMEOUT;

/// How long a client's connection may be idle between requests: longer than any client's own pool keeps it.
pub const IDLE_TIMEOUT: Duration = Duration::from_hours(1);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;

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
}

/// A stream that ends when its client takes too long.
#[derive(Debug)]
pub struct Guarded<IO> {
    io: IO,
    phase: Arc<Phase>,
    head: Option<Pin<Box<Sleep>>>,
    idle: Option<Pin<Box<Sleep>>>,
    last_byte: Instant,
}

impl<IO> Guarded<IO> {
    /// Watches `io`.
    pub fn new(io: IO, phase: Arc<Phase>) -> Self {
        Self { io, phase, head: None, idle: None, last_byte: Instant::now() }
    }

    // Nothing can be read now: says whether that has lasted too long.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.phase.0.load(Ordering::Relaxed) {
            BUSY => Poll::Pending,
            HEAD => {
                let deadline = self.last_byte + HEAD_TIMEOUT;
                self.head.get_or_insert_with(|| Box::pin(sleep_until(deadline))).as_mut().poll(cx)
            }
            _ => self.poll_idle(cx),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.last_byte + IDLE_TIMEOUT;
            let timer = self.idle.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // There was a request meanwhile: look again later.
            timer.as_mut().reset(deadline);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > before
                    && this.phase.0.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
                {
                    // The time of a head counts from its first byte.
                    this.last_byte = Instant::now();
                    this.head = None;
                }
                Poll::Ready(result)
            }
            Poll::Pending => match this.poll_timers(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            },
        }
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_ends_the_connection_and_an_idle_one_stays() {
        let (near, mut far) = tokio::io::duplex(64);
        let phase = Arc::new(Phase::default());
        let mut stream = Guarded::new(near, Arc::clone(&phase));
        let mut byte = [0; 1];
        // Idle for half an hour, then one request, then idle again: the hour counts anew.
        assert!(tokio::time::timeout(IDLE_TIMEOUT / 2, stream.read(&mut byte)).await.is_err());
        far.write_all(b"G").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
        phase.busy();
        assert!(tokio::time::timeout(IDLE_TIMEOUT, stream.read(&mut byte)).await.is_err());
        phase.idle();
        far.write_all(b"G").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
        let begun = Instant::now();
        let error = stream.read(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_after_an_hour() {
        let (near, _far) = tokio::io::duplex(64);
        let mut stream = Guarded::new(near, Arc::default());
        let begun = Instant::now();
        assert!(stream.read(&mut [0; 1]).await.is_err());
        assert_eq!(begun.elapsed().as_secs(), IDLE_TIMEOUT.as_secs());
    }
}
