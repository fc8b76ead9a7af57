//! Streams for tests: what they give comes in pieces, what they take they take slowly.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::Resting;

/// Gives pieces, each behind a pause; then it ends, or breaks.
pub struct Given {
    pieces: VecDeque<Vec<u8>>,
    pause: bool,
    broken: bool,
}

impl Given {
    /// `bytes` in pieces of so many bytes each, over and over.
    pub fn new(bytes: &[u8], steps: &[usize]) -> Self {
        let (mut pieces, mut rest) = (VecDeque::new(), bytes);
        for step in steps.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, more) = rest.split_at((*step).clamp(1, rest.len()));
            pieces.push_back(piece.to_vec());
            rest = more;
        }
        Self { pieces, pause: false, broken: false }
    }

    /// Breaks where it would end.
    pub fn breaking(self, broken: bool) -> Self {
        Self { broken, ..self }
    }
}

impl Resting for Given {}

impl AsyncRead for Given {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.pause = !self.pause;
        if self.pause {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.pieces.pop_front() {
            Some(mut piece) => {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.pieces.push_front(rest);
                }
            }
            None if self.broken => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {}
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes so many bytes at a time, each after a pause, and no more than `most` in all.
pub struct Taken {
    pub bytes: Vec<u8>,
    step: usize,
    most: usize,
    pause: bool,
}

impl Taken {
    pub fn new(step: usize) -> Self {
        Self { bytes: Vec::new(), step, most: usize::MAX, pause: false }
    }

    /// Breaks after `most` bytes.
    pub fn until(most: usize) -> Self {
        Self { most, ..Self::new(usize::MAX) }
    }
}

impl AsyncWrite for Taken {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.pause = !self.pause;
        if self.pause {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.bytes.len() == self.most {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = self.step.min(buf.len()).min(self.most - self.bytes.len());
        self.bytes.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
