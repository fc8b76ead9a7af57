//! A stream below TLS that is read widely: rustls asks for 4 KiB at a time, which is five calls of the kernel for each full record.
//!
//! Invariant: an idle stream holds no buffer. Bytes are read into the thread's own; a stream keeps it, [`SIZE`] bytes (in bulk
//! [`scratch::BULK`]), only while TLS has not taken all of them, and the thread makes itself another. Who stops reading has TLS take
//! them first ([`Wide::rest`]): it has room for them.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use crate::scratch;
use crate::stream::forward_write;

/// Read at a time, unless much is to be moved: one full record and most of another.
pub const SIZE: usize = 32 << 10;

thread_local! {
    // Empty while they are lent, and before anybody asked.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static SPARE_BULK: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

// The thread's buffer of that kind.
fn spare(bulk: bool) -> Vec<u8> {
    let (spare, size) = if bulk { (&SPARE_BULK, scratch::BULK) } else { (&SPARE, SIZE) };
    let memory = spare.take();
    if memory.is_empty() { vec![0; size] } else { memory }
}

fn give_back(memory: Vec<u8>) {
    let spare = if memory.len() == SIZE { &SPARE } else { &SPARE_BULK };
    spare.set(memory);
}

/// `io`, read in large pieces and given out in whatever is asked for.
#[derive(Debug)]
pub struct Wide<IO> {
    // Empty: nothing is held. Otherwise the bytes from `at` to `end` are.
    memory: Vec<u8>,
    at: usize,
    end: usize,
    bulk: bool,
    rests: bool,
    io: IO,
}

impl<IO> Wide<IO> {
    /// Nothing was read yet.
    pub fn new(io: IO) -> Self {
        Self { memory: Vec::new(), at: 0, end: 0, bulk: false, rests: false, io }
    }

    /// Reads much at a time from now on, or no longer.
    pub fn bulk(&mut self, on: bool) {
        self.bulk = on;
    }

    /// The stream below.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// If something is held, it alone is given out and nothing more is read, until [`Wide::wake`]; whether that is so.
    pub fn rest(&mut self) -> bool {
        self.rests = !self.memory.is_empty();
        self.rests
    }

    /// Reads again.
    pub fn wake(&mut self) {
        self.rests = false;
    }

    // Gives out what fits, and the memory back once it is empty.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let n = (self.end - self.at).min(buf.remaining());
        buf.put_slice(&self.memory[self.at..self.at + n]);
        self.at += n;
        if self.at == self.end {
            give_back(std::mem::take(&mut self.memory));
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Wide<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.memory.is_empty() {
            if this.rests {
                return Poll::Pending;
            }
            let mut memory = spare(this.bulk);
            let mut wide = ReadBuf::new(&mut memory);
            let polled = Pin::new(&mut this.io).poll_read(cx, &mut wide);
            let end = wide.filled().len();
            if end == 0 {
                // The end, an error, or nothing yet.
                give_back(memory);
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

    #[tokio::test]
    async fn one_that_rests_gives_what_it_holds_and_reads_nothing() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Wide::new(near);
        assert!(!stream.rest(), "it holds nothing");
        far.write_all(b"abcd").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        far.write_all(b"e").await.unwrap();
        assert!(stream.rest());
        let mut some = [0; 8];
        assert_eq!(stream.read(&mut some).await.unwrap(), 3);
        assert_eq!(stream.memory.capacity(), 0);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut stream).poll_read(&mut cx, &mut ReadBuf::new(&mut some)).is_pending());
        stream.wake();
        assert_eq!(stream.read_u8().await.unwrap(), b'e');
    }
}
