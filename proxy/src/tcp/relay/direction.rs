//! One way of a pair: bytes are read and written at once, and what is not taken is held.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Broken, Joined};
use crate::scratch;
use crate::tcp::splice::Pipe;

/// Moves in one poll, after which others get their turn.
const MOVES: usize = 8;
/// Directions that may be moved in bulk at a time; each may hold 256 KiB here, as much encrypted and as much below TLS.
pub const MAX_BULK: usize = 32;

/// Which end of a direction broke.
pub enum Fault {
    /// The one that is read.
    Reading(io::Error),
    /// The one that is written.
    Writing(io::Error),
}

impl Fault {
    /// It, by the names of the two streams: the one that is read, and the one that is written.
    pub fn of(self, from: fn(io::Error) -> Broken, to: fn(io::Error) -> Broken) -> Broken {
        match self {
            Self::Reading(error) => from(error),
            Self::Writing(error) => to(error),
        }
    }
}

/// A place among the directions that are moved in bulk: what they hold for slow readers would be too much for any number.
#[derive(Debug)]
pub struct Place(());

pub static FREE: AtomicUsize = AtomicUsize::new(MAX_BULK);

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

/// One of the two ways of a pair.
#[derive(Default)]
pub struct Direction {
    /// Read, and not taken by the other side yet.
    pub held: Bytes,
    /// Many bytes are moved at a time. Each costs less then: fewer calls of the kernel, and above all fewer times that a process is woken.
    pub bulk: Option<Place>,
    // In bulk between two bare sockets: they stay in the kernel.
    pipe: Option<Pipe>,
    /// Bytes that were handed on.
    pub moved: u64,
    /// There was no place for it among those in bulk.
    pub crowded: bool,
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

    /// Whether nothing is read: a reset would not be noticed.
    pub fn unread(&self) -> bool {
        self.ended || !self.held.is_empty() || self.pipe.as_ref().is_some_and(|pipe| pipe.held() > 0)
    }

    /// Moves what can be moved; ready when its end has been handed on.
    pub fn poll<R, W>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Fault>>
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
