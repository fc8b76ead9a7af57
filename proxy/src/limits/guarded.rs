//! An HTTP/2 client's connection, whose frames are counted on their way to the library that parses them.
//!
//! Invariants
//! - Nothing is changed or held: bytes pass as they came.
//! - Too many frames of a kind end the connection, as a read that fails, and count under the bound's name.
//!
//! What the library bounds by itself (h2 0.4.20): streams at a time, resets of streams that it has not handed over yet, a header block by
//! bytes and by CONTINUATION frames, empty and tiny DATA by a lifetime's budget. One PING and one SETTINGS are answered before the next is
//! read, so that a client that does not read has one answer of each waiting; how many come is bounded by nobody but this.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use weft_engine::flood::Frames;

use crate::Shared;
use crate::detect::Downstream;

/// What a connection has shown of itself.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicBool,
    progress: AtomicBool,
}

impl Activity {
    /// Whether its preface and the head of its first frame have come.
    pub fn begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether a request or a piece of a body has come since this was asked last.
    pub fn take_progress(&self) -> bool {
        self.progress.swap(false, Ordering::Relaxed)
    }
}

/// The connection.
pub struct Guarded {
    io: Downstream,
    frames: Frames,
    shared: Arc<Shared>,
    activity: Arc<Activity>,
}

impl Guarded {
    /// Guards `io`, of which nothing has been read.
    pub fn new(io: Downstream, shared: Arc<Shared>) -> Self {
        Self { io, frames: Frames::default(), shared, activity: Arc::default() }
    }

    /// What it has shown so far, to be looked at from beside.
    pub fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    fn look(&mut self, bytes: &[u8]) -> io::Result<()> {
        let clock = &self.shared.clock;
        self.frames.came(bytes, || clock.now()).map_err(|flood| {
            self.shared.telemetry.bound_hit(flood.code());
            io::Error::other(flood.code())
        })?;
        if self.frames.begun() && !self.activity.begun() {
            self.activity.begun.store(true, Ordering::Relaxed);
        }
        if self.frames.take_progress() {
            self.activity.progress.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let held = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        Poll::Ready(this.look(&buf.filled()[held..]))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.frames.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        this.frames.sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
