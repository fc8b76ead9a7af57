//! Two byte streams, joined: half-close, counts, bounded memory.
//!
//! Invariants
//! - An idle pair holds no buffer: bytes are read into the thread's own buffer and written at once; only what the other side does not
//!   take is kept, [`scratch::SIZE`] bytes at most for each direction, and nothing more is read meanwhile.
//! - The end of one direction is passed on as a half-close; the other goes on until it ends too.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::scratch;

/// Moves in one poll, after which others get their turn.
const MOVES: usize = 16;

/// What was relayed.
#[derive(Debug, Default)]
pub struct Relayed {
    /// Bytes from the first stream to the second.
    pub sent: u64,
    /// Bytes from the second to the first.
    pub received: u64,
    /// `None`: both directions ended in order.
    pub broken: Option<Broken>,
}

/// Which stream broke, and how.
#[derive(Debug)]
pub enum Broken {
    /// The first.
    First(io::Error),
    /// The second.
    Second(io::Error),
}

/// Relays until both directions have ended or one stream breaks.
pub async fn relay<A, B>(a: &mut A, b: &mut B) -> Relayed
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    relay_until(a, b, std::future::pending::<()>()).await.0
}

/// As [`relay`], until `stop` completes. It is asked before any byte is moved, each time that there may be some.
pub async fn relay_until<A, B, T>(a: &mut A, b: &mut B, stop: impl Future<Output = T>) -> (Relayed, Option<T>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = Direction::default();
    let mut back = Direction::default();
    let mut stop = std::pin::pin!(stop);
    let (broken, stopped) = poll_fn(|cx| {
        if let Poll::Ready(stopped) = stop.as_mut().poll(cx) {
            return Poll::Ready((None, Some(stopped)));
        }
        let forth = match there.poll(cx, a, b) {
            Poll::Ready(Err(fault)) => return Poll::Ready((Some(fault.of(Broken::First, Broken::Second)), None)),
            polled => polled.is_ready(),
        };
        let backwards = match back.poll(cx, b, a) {
            Poll::Ready(Err(fault)) => return Poll::Ready((Some(fault.of(Broken::Second, Broken::First)), None)),
            polled => polled.is_ready(),
        };
        if forth && backwards { Poll::Ready((None, None)) } else { Poll::Pending }
    })
    .await;
    (Relayed { sent: there.moved, received: back.moved, broken }, stopped)
}

enum Fault {
    Reading(io::Error),
    Writing(io::Error),
}

impl Fault {
    fn of(self, from: fn(io::Error) -> Broken, to: fn(io::Error) -> Broken) -> Broken {
        match self {
            Self::Reading(error) => from(error),
            Self::Writing(error) => to(error),
        }
    }
}

#[derive(Default)]
struct Direction {
    // Read, and not taken by the other side yet.
    held: Bytes,
    moved: u64,
    unflushed: bool,
    ended: bool,
    closed: bool,
}

impl Direction {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..MOVES {
            while !self.held.is_empty() {
                let n = ready!(write(cx, to, &self.held))?;
                self.held.advance(n);
                self.moved += n as u64;
            }
            if self.ended {
                if !self.closed {
                    // Flushes too.
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Fault::Writing)?;
                    self.closed = true;
                }
                return Poll::Ready(Ok(()));
            }
            match self.fill(cx, from, to) {
                Poll::Ready(done) => done?,
                Poll::Pending => {
                    if self.unflushed && self.held.is_empty() {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Fault::Writing)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    // Reads what there is, and writes it as far as the other side takes it.
    fn fill<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut fault = None;
        let read = scratch::with(|memory| {
            let mut buf = ReadBuf::new(memory);
            let outcome = ready!(gather(cx, from, &mut buf));
            self.ended = matches!(outcome, Ok(true));
            fault = outcome.err().map(Fault::Reading);
            let read = buf.filled();
            self.unflushed |= !read.is_empty();
            let mut at = 0;
            while at < read.len() {
                match write(cx, to, &read[at..]) {
                    Poll::Ready(Ok(n)) => at += n,
                    Poll::Ready(Err(broken)) => {
                        fault = Some(broken);
                        break;
                    }
                    Poll::Pending => {
                        self.held = Bytes::copy_from_slice(&read[at..]);
                        break;
                    }
                }
            }
            self.moved += at as u64;
            Poll::Ready(Ok(()))
        });
        match fault {
            Some(fault) => Poll::Ready(Err(fault)),
            None => read.map_err(Fault::Reading),
        }
    }
}

/// Reads until the buffer is full or nothing more is there, and says whether the stream has ended. TLS gives one record at a time; four of them
/// in one write are a quarter of the calls of the kernel. Pending: nothing was read. An error comes beside what was read before it.
fn gather<R: AsyncRead + Unpin>(cx: &mut Context<'_>, from: &mut R, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
    while buf.remaining() > 0 {
        let before = buf.filled().len();
        match Pin::new(&mut *from).poll_read(cx, buf) {
            Poll::Pending if before == 0 => return Poll::Pending,
            Poll::Pending => break,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) if buf.filled().len() == before => return Poll::Ready(Ok(true)),
            Poll::Ready(Ok(())) => {}
        }
    }
    Poll::Ready(Ok(false))
}

fn write<W: AsyncWrite + Unpin>(cx: &mut Context<'_>, to: &mut W, bytes: &[u8]) -> Poll<Result<usize, Fault>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(Fault::Writing(io::ErrorKind::WriteZero.into()))),
        Ok(n) => Poll::Ready(Ok(n)),
        Err(error) => Poll::Ready(Err(Fault::Writing(error))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn joined(capacity: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Relayed>) {
        let (client, mut a) = duplex(capacity);
        let (server, mut b) = duplex(capacity);
        let task = tokio::spawn(async move { relay(&mut a, &mut b).await });
        (client, server, task)
    }

    #[tokio::test]
    async fn one_direction_ends_and_the_other_goes_on() {
        let (mut client, mut server, task) = joined(1024);
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        server.write_all(b"a longer answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "a longer answer");
        let relayed = task.await.unwrap();
        assert_eq!((relayed.sent, relayed.received), (8, 15));
        assert!(relayed.broken.is_none());
    }

    #[tokio::test]
    async fn a_slow_reader_is_waited_for_and_nothing_is_lost() {
        let (mut client, mut server, task) = joined(100);
        let data: Vec<u8> = (0..1_000_000_u32).map(|i| i as u8).collect();
        let sent = data.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert!(got == data);
        drop(server);
        drop(writer.await.unwrap());
        assert_eq!(task.await.unwrap().sent, 1_000_000);
    }

    /// Gives the pieces, from the last to the first, then it breaks.
    struct Breaks(Vec<&'static [u8]>);

    impl AsyncRead for Breaks {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let piece = self.0.pop().ok_or(io::ErrorKind::ConnectionReset);
            Poll::Ready(piece.map(|piece| buf.put_slice(piece)).map_err(io::Error::from))
        }
    }

    #[tokio::test]
    async fn what_came_before_a_break_arrives() {
        let mut a = tokio::io::join(Breaks(vec![b"words", b"last "]), tokio::io::sink());
        let (mut server, mut b) = duplex(1024);
        let relayed = relay(&mut a, &mut b).await;
        assert!(matches!(relayed.broken, Some(Broken::First(_))), "{relayed:?}");
        let mut heard = [0; 10];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"last words");
        assert_eq!(relayed.sent, 10);
    }

    #[tokio::test]
    async fn a_stop_ends_it() {
        let (_client, mut a) = duplex(16);
        let (_server, mut b) = duplex(16);
        let (relayed, stopped) = relay_until(&mut a, &mut b, async { 7 }).await;
        assert_eq!(stopped, Some(7));
        assert_eq!(relayed.sent, 0);
    }
}
