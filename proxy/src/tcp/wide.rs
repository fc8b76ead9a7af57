//! A stream below TLS that is read widely: rustls asks for 4 KiB at a time, which is five calls of the kernel for each full record.
//!
//! Invariant: an idle stream holds no buffer. Bytes are read into the thread's own; a stream keeps it, [`SIZE`] bytes, only while TLS has not
//! taken all of them, and the thread makes itself another.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::stream::forward_write;

/// Read at a time: one full record and most of another.
pub const SIZE: usize = 32 << 10;

thread_local! {
    // Empty while it is lent.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// `io`, read in large pieces and given out in whatever is asked for.
#[derive(Debug)]
pub struct Wide<IO> {
    // Empty: nothing is held. Otherwise the bytes from `at` to `end` are.
    memory: Vec<u8>,
    at: usize,
    end: usize,
    io: IO,
}

impl<IO> Wide<IO> {
    /// Nothing was read yet.
    pub fn new(io: IO) -> Self {
        Self { memory: Vec::new(), at: 0, end: 0, io }
    }

    /// The stream below.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    // Gives out what fits, and the memory back once it is empty.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let n = (self.end - self.at).min(buf.remaining());
        buf.put_slice(&self.memory[self.at..self.at + n]);
        self.at += n;
        if self.at == self.end {
            SPARE.set(std::mem::take(&mut self.memory));
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Wide<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.memory.is_empty() {
            let mut memory = SPARE.take();
            if memory.is_empty() {
                memory = vec![0; SIZE];
            }
            let mut wide = ReadBuf::new(&mut memory);
            let polled = Pin::new(&mut this.io).poll_read(cx, &mut wide);
            let end = wide.filled().len();
            if end == 0 {
                // The end, an error, or nothing yet.
                SPARE.set(memory);
                return polled;
            }
            ready!(polled)?;
            (this.memory, this.at, this.end) = (memory, 0, end);
        }
        this.give(buf);
        Poll::Ready(Ok(()))
    }
}

forward_write!(Wide<IO> where IO, io in Self { io, .. });

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_reads_get_what_one_large_one_brought_and_no_memory_stays() {
        let (near, mut far) = tokio::io::duplex(SIZE * 2);
        let data: Vec<u8> = (0..SIZE + 100).map(|i| i as u8).collect();
        far.write_all(&data).await.unwrap();
        far.shutdown().await.unwrap();
        let mut stream = Wide::new(near);
        let mut got = Vec::new();
        let mut some = [0; 4096];
        loop {
            let n = stream.read(&mut some).await.unwrap();
            got.extend_from_slice(&some[..n]);
            if n == 0 {
                break;
            }
            assert_eq!(stream.memory.is_empty(), got.len() == SIZE || got.len() == data.len());
        }
        assert!(got == data);
        assert_eq!(stream.memory.capacity(), 0);
    }
}
