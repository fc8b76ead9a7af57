//! splice(2): bytes between two sockets that stay in the kernel, through a pipe.
//!
//! Invariants
//! - A pipe that holds bytes belongs to one direction of one connection. An empty one is lent by its thread, which keeps one.
//! - It holds [`SIZE`] bytes at most, and takes no more before it is empty.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::scratch::BULK as SIZE;

thread_local! {
    static SPARE: Cell<Option<Pipe>> = const { Cell::new(None) };
}

/// A pipe.
#[derive(Debug)]
pub struct Pipe {
    front: OwnedFd,
    back: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty one; `None` if the kernel has none for us, and bytes must be copied.
    pub fn take() -> Option<Self> {
        SPARE.take().or_else(|| {
            let (front, back) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // Where a user's share of memory for pipes is used up it stays as small as they are made.
            let _ = fcntl_setpipe_size(&back, SIZE);
            Some(Self { front, back, held: 0 })
        })
    }

    /// Gives it back. With bytes in it, it is closed, and they are lost.
    pub fn give_back(self) {
        if self.held == 0 {
            SPARE.set(Some(self));
        }
    }

    /// Bytes in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes in what has come on a socket, as much as fits; 0 is the end of the stream. The pipe must be empty: the kernel does not say which of
    /// the two it would wait for.
    ///
    /// # Errors
    /// The socket's.
    pub fn fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<io::Result<usize>> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            ready!(from.poll_read_ready(cx))?;
            let moved = from.try_io(Interest::READABLE, || Ok(splice(from, None, &self.back, None, SIZE, flags)?));
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(moved) => {
                    self.held += moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }

    /// Gives out to a socket what it takes of them, and says how many they were.
    ///
    /// # Errors
    /// The socket's.
    pub fn drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            ready!(to.poll_write_ready(cx))?;
            let moved = to.try_io(Interest::WRITABLE, || Ok(splice(&self.front, None, to, None, self.held, flags)?));
            match moved {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(moved) => {
                    self.held -= moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }
}

/// Whether this thread has a pipe to lend: one was used.
#[cfg(test)]
pub fn has_spare() -> bool {
    let spare = SPARE.take();
    let has = spare.is_some();
    SPARE.set(spare);
    has
}
