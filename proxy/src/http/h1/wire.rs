//! One side of an HTTP/1 exchange: a stream, and what was read of it and not used yet.
//!
//! Invariants
//! - Bytes are read into the thread's own buffer; a connection holds memory only for what is unfinished, and none while it is idle.
//! - Nobody reads more while [`MOST`] bytes are held.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::scratch;
use crate::stream::Resting;

/// Bytes that are read at a time: what a receiver that has stopped makes its connection hold.
pub const READ: usize = 32 << 10;
/// Bytes that may be held before nothing more is read.
pub const MOST: usize = 64 << 10;

/// A stream with what was read ahead.
#[derive(Debug)]
pub struct Wire<IO> {
    io: IO,
    held: Vec<u8>,
    // Bytes were written that the stream may still hold back.
    unflushed: bool,
}

impl<IO> Wire<IO> {
    /// Nothing is held.
    pub fn new(io: IO) -> Self {
        Self { io, held: Vec::new(), unflushed: false }
    }

    /// The stream.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// What was read and not used.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Takes the first `len` bytes; the others stay.
    pub fn split(&mut self, len: usize) -> Vec<u8> {
        if len >= self.held.len() {
            return std::mem::take(&mut self.held);
        }
        let taken = self.held[..len].to_vec();
        self.consume(len);
        taken
    }

    /// The first `len` bytes are used.
    pub fn consume(&mut self, len: usize) {
        if len >= self.held.len() {
            self.held = Vec::new();
        } else {
            self.held.drain(..len);
        }
    }

    /// What is held is of no use any more, nor is its memory.
    pub fn forget(&mut self) {
        self.held = Vec::new();
    }

    /// Holds bytes that came and are not used yet.
    pub fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The stream, and what is held.
    pub fn into_parts(self) -> (IO, Vec<u8>) {
        (self.io, self.held)
    }
}

impl<IO: AsyncRead + Unpin> Wire<IO> {
    /// Reads once into the thread's buffer and gives the bytes to `take`, none at the end of the stream.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_some<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Self, &mut Context<'_>, &[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        scratch::with(|memory| {
            let size = memory.len().min(READ);
            let mut buf = ReadBuf::new(&mut memory[..size]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            Poll::Ready(Ok(take(self, cx, buf.filled())))
        })
    }

    /// Reads once, to be held; how many bytes came.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_some(cx, |wire, _, bytes| {
            wire.hold(bytes);
            bytes.len()
        })
    }

    /// While nothing of the other end is waited for: holds what it sends ahead. Ready once it has ended, with or without an error.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.held.len() < MOST {
            match ready!(self.poll_more(cx)) {
                Ok(read) if read > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}

impl<IO: Resting> Wire<IO> {
    /// Nothing is read for now, since nobody takes it: the stream gives back the memory of what it has read ahead.
    pub fn rest(&mut self, cx: &mut Context<'_>) {
        let Self { io, held, .. } = self;
        let rested = scratch::with(|memory| {
            let mut buf = ReadBuf::new(memory);
            ready!(io.poll_rest(cx, &mut buf))?;
            held.extend_from_slice(buf.filled());
            Poll::Ready(Ok(()))
        });
        // An end or an error comes again when it is read.
        drop(rested);
    }
}

impl<IO: AsyncWrite + Unpin> Wire<IO> {
    /// Writes some of `bytes`.
    ///
    /// # Errors
    /// The stream's; `WriteZero` if it takes nothing.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.unflushed = true;
        Poll::Ready(if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) })
    }

    /// Has the stream send what it holds back.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing more will be written.
    ///
    /// # Errors
    /// The stream's.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
