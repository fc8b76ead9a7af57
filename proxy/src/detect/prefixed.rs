//! A stream whose first bytes were read already: they are given back before anything else is read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::stream::forward_write;
use crate::tcp::relay::Joined;

/// `prefix`, then `io`. Once the prefix is read its memory is given back.
#[derive(Debug)]
pub struct Prefixed<IO> {
    prefix: BytesMut,
    io: IO,
}

impl<IO> Prefixed<IO> {
    /// Nothing was read yet.
    pub fn new(io: IO) -> Self {
        Self::with(BytesMut::new(), io)
    }

    /// `prefix` was read from `io`.
    pub fn with(prefix: BytesMut, io: IO) -> Self {
        Self { prefix, io }
    }

    /// What was read and not given back yet.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The stream below.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The bytes not given back yet, and the stream below.
    pub fn into_parts(self) -> (BytesMut, IO) {
        (self.prefix, self.io)
    }
}

impl<IO: Joined> Joined for Prefixed<IO> {
    fn socket(&self) -> Option<&TcpStream> {
        self.io.socket()
    }

    fn read_bulk(&mut self, on: bool) {
        self.io.read_bulk(on);
    }

    fn write_bulk(&mut self, on: bool) {
        self.io.write_bulk(on);
    }

    fn bare_reads(&self) -> Option<&TcpStream> {
        self.io.bare_reads().filter(|_| self.prefix.is_empty())
    }

    fn bare_writes(&self) -> Option<&TcpStream> {
        self.io.bare_writes()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..n]);
        self.prefix.advance(n);
        if self.prefix.is_empty() {
            self.prefix = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

forward_write!(Prefixed<IO> where IO, io in Self { io, .. });

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn gives_the_prefix_back_first_and_frees_it() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b" world").await.unwrap();
        far.shutdown().await.unwrap();
        let mut stream = Prefixed::with(BytesMut::from(&b"hello"[..]), near);
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"he");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "llo world");
        assert_eq!(stream.into_parts().0.capacity(), 0);
    }
}
