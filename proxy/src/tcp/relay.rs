//! Two byte streams, joined: half-close, counts, bounded memory.
//!
//! Invariants
//! - An idle pair holds no buffer: bytes are read into the thread's own buffer and written at once; only what the other side does not
//!   take is kept, and nothing more is read meanwhile. That is one read for each direction: 64 KiB, or 256 KiB of one that is moved
//!   in bulk, and of those there are [`MAX_BULK`].
//! - The end of one direction is passed on as a half-close; the other goes on until it ends too.
//! - A stream that breaks while nobody reads from it is noticed within [`LOOK`].

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::reset_on_close;
use super::splice::Pipe;
use crate::scratch;

/// Moves in one poll, after which others get their turn.
const MOVES: usize = 8;
/// Directions that may be moved in bulk at a time; each may hold 256 KiB here, as much encrypted and as much below TLS.
const MAX_BULK: usize = 32;
/// How often a stream is looked at for a reset while it is not read.
const LOOK: Duration = Duration::from_millis(500);

/// A stream that can be joined with another.
pub trait Joined: AsyncRead + AsyncWrite + Unpin {
    /// The socket below; `None` where there is none.
    fn socket(&self) -> Option<&TcpStream>;

    /// Bytes are asked for by the [`scratch::BULK`]; what stands between here and the socket reads as many, until told otherwise.
    fn read_bulk(&mut self, _on: bool) {}

    /// The same for what is written.
    fn write_bulk(&mut self, _on: bool) {}

    /// The socket that the next bytes are read from as they are; `None` if anything changes them, or holds some.
    fn bare_reads(&self) -> Option<&TcpStream> {
        None
    }

    /// The socket that bytes are written to as they are.
    fn bare_writes(&self) -> Option<&TcpStream> {
        None
    }
}

impl Joined for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn bare_reads(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn bare_writes(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// What was relayed.
#[derive(Debug, Default)]
pub struct Relayed {
    /// Bytes from the first stream to the second.
    pub sent: u64,
    /// Bytes from the second to the first.
    pub received: u64,
    /// `None`: both directions ended in order.
    pub broken: Option<Broken>,
    /// Too many others were moved in bulk for it to be.
    pub crowded: bool,
}

/// Which stream broke, and how.
#[derive(Debug)]
pub enum Broken {
    /// The first.
    First(io::Error),
    /// The second.
    Second(io::Error),
}

impl Relayed {
    /// If one stream broke, has the close of the other be a reset, so that its end learns of it.
    pub fn pass_break_on(&self, a: &impl Joined, b: &impl Joined) {
        let other = match &self.broken {
            Some(Broken::First(_)) => b.socket(),
            Some(Broken::Second(_)) => a.socket(),
            None => None,
        };
        if let Some(socket) = other {
            reset_on_close(socket);
        }
    }
}

/// Relays until both directions have ended or one stream breaks.
pub async fn relay<A, B>(a: &mut A, b: &mut B) -> Relayed
where
    A: Joined,
    B: Joined,
{
    relay_until(a, b, std::future::pending::<()>()).await.0
}

/// As [`relay`], until `stop` completes. It is asked before any byte is moved, each time that there may be some.
pub async fn relay_until<A, B, T>(a: &mut A, b: &mut B, stop: impl Future<Output = T>) -> (Relayed, Option<T>)
where
    A: Joined,
    B: Joined,
{
    let mut there = Direction::default();
    let mut back = Direction::default();
    let mut lookout = Lookout::default();
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
        if forth && backwards {
            return Poll::Ready((None, None));
        }
        let unread = (there.unread().then(|| a.socket()).flatten(), back.unread().then(|| b.socket()).flatten());
        lookout.poll(cx, unread).map(|broken| (Some(broken), None))
    })
    .await;
    let crowded = there.crowded || back.crowded;
    (Relayed { sent: there.moved, received: back.moved, broken, crowded }, stopped)
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

/// Looks at streams that nobody reads from: those that have ended, and those whose bytes the other side does not take. The runtime has no way
/// to wait for an error alone while others use the stream, and an error is rare; so it is asked for.
#[derive(Default)]
struct Lookout {
    // Runs on while both are read, and wakes this at most once then.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Lookout {
    // Those of the two that are not read; ready when one has broken.
    fn poll(&mut self, cx: &mut Context<'_>, (a, b): (Option<&TcpStream>, Option<&TcpStream>)) -> Poll<Broken> {
        if a.is_none() && b.is_none() {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if let Some(error) = a.and_then(fault) {
                return Poll::Ready(Broken::First(error));
            }
            if let Some(error) = b.and_then(fault) {
                return Poll::Ready(Broken::Second(error));
            }
            timer.as_mut().reset(Instant::now() + LOOK);
        }
    }
}

fn fault(socket: &TcpStream) -> Option<io::Error> {
    socket.take_error().unwrap_or_else(Some)
}

/// A place among the directions that are moved in bulk: what they hold for slow readers would be too much for any number.
#[derive(Debug)]
struct Place(());

static FREE: AtomicUsize = AtomicUsize::new(MAX_BULK);

impl Place {
    fn take() -> Option<Self> {
        FREE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1)).ok().map(|_| Self(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        FREE.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Direction {
    // Read, and not taken by the other side yet.
    held: Bytes,
    // Many bytes are moved at a time. Each costs less then: fewer calls of the kernel, and above all fewer times that a process is woken.
    bulk: Option<Place>,
    // In bulk between two bare sockets: they stay in the kernel.
    pipe: Option<Pipe>,
    moved: u64,
    crowded: bool,
    unflushed: bool,
    ended: bool,
    closed: bool,
}

impl Direction {
    fn size(&self) -> usize {
        if self.bulk.is_some() { scratch::BULK } else { scratch::SIZE }
    }

    // After a read: many bytes are moved at a time from the first that brings as many as usual, until one that brings fewer.
    fn learn<R: Joined, W: Joined>(&mut self, read: usize, from: &mut R, to: &mut W) {
        let many = read >= scratch::SIZE;
        if many == self.bulk.is_some() {
            return;
        }
        self.bulk = if many { Place::take() } else { None };
        self.crowded |= many && self.bulk.is_none();
        from.read_bulk(self.bulk.is_some());
        to.write_bulk(self.bulk.is_some());
    }

    // Whether nothing is read: a reset would not be noticed.
    fn unread(&self) -> bool {
        self.ended || !self.held.is_empty() || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Fault>>
    where
        R: Joined,
        W: Joined,
    {
        for _ in 0..MOVES {
            while !self.held.is_empty() {
                let n = ready!(write(cx, to, &self.held))?;
                self.held.advance(n);
                self.moved += n as u64;
            }
            ready!(self.drain(cx, to))?;
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

    // Hands on what the pipe holds. It is given back when bulk is over.
    fn drain<W: Joined>(&mut self, cx: &mut Context<'_>, to: &W) -> Poll<Result<(), Fault>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        while pipe.held() > 0 {
            let Some(socket) = to.bare_writes() else {
                return Poll::Ready(Err(Fault::Writing(io::ErrorKind::Unsupported.into())));
            };
            self.moved += ready!(pipe.drain(cx, socket)).map_err(Fault::Writing)? as u64;
        }
        if self.bulk.is_none()
            && let Some(pipe) = self.pipe.take()
        {
            pipe.give_back();
        }
        Poll::Ready(Ok(()))
    }

    // In bulk between bare sockets: reads into a pipe. `None`: it is to be copied.
    fn splice<R: Joined, W: Joined>(
        &mut self,
        cx: &mut Context<'_>,
        from: &R,
        to: &W,
    ) -> Option<Poll<io::Result<usize>>> {
        self.bulk.as_ref()?;
        let socket = from.bare_reads().filter(|_| to.bare_writes().is_some())?;
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        Some(self.pipe.as_mut()?.fill(cx, socket))
    }

    // Reads what there is, and writes it as far as the other side takes it.
    fn fill<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Fault>>
    where
        R: Joined,
        W: Joined,
    {
        if let Some(spliced) = self.splice(cx, from, to) {
            let read = ready!(spliced).map_err(Fault::Reading)?;
            self.ended = read == 0;
            self.learn(read, from, to);
            return Poll::Ready(Ok(()));
        }
        let mut fault = None;
        let read = scratch::with_size(self.size(), |memory| {
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
            Poll::Ready(Ok(read.len()))
        });
        if let Some(fault) = fault {
            return Poll::Ready(Err(fault));
        }
        let read = ready!(read).map_err(Fault::Reading)?;
        self.learn(read, from, to);
        Poll::Ready(Ok(()))
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
mod tests;
