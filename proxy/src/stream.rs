//! Streams that stand before other streams pass what they don't touch on, whole: a forgotten `poll_write_vectored` would have every
//! head and body copied into one buffer, or sent apart, and nothing would fail.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::detect::Downstream;
use crate::scratch;
use crate::tcp::relay::Joined;
use crate::upstream::Stream;

/// A stream that may have read more than it was asked for.
pub trait Resting: AsyncRead {
    /// Nothing will be read for now, since nobody takes it: memory that is held for what was read ahead is given back. What has come of
    /// it is ready; an end or an error is told again when it is read. Nobody is woken.
    fn poll_rest(&mut self, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl Resting for tokio::io::Empty {}

// TLS takes the bytes that were read below it; a record that they complete comes out of it.
macro_rules! rest_of_tls {
    ($stream:ty) => {
        impl Resting for $stream {
            fn poll_rest(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                let Self::Mesh(tls) = self else { return Poll::Pending };
                if !tls.get_mut().0.rest() {
                    return Poll::Pending;
                }
                let polled = Pin::new(&mut **tls).poll_read(cx, buf);
                tls.get_mut().0.wake();
                polled
            }
        }
    };
}

rest_of_tls!(Downstream);
rest_of_tls!(Stream);

// Either a bare socket or TLS over one.
macro_rules! joined {
    ($stream:ty) => {
        impl Joined for $stream {
            fn socket(&self) -> Option<&TcpStream> {
                Some(self.socket())
            }

            fn read_bulk(&mut self, on: bool) {
                if let Self::Mesh(io) = self {
                    io.get_mut().0.bulk(on);
                }
            }

            fn write_bulk(&mut self, on: bool) {
                if let Self::Mesh(io) = self {
                    // Records are encrypted up to here before they are written, all at once.
                    io.get_mut().1.set_buffer_limit(Some(if on { scratch::BULK } else { scratch::SIZE }));
                }
            }

            fn bare_reads(&self) -> Option<&TcpStream> {
                match self {
                    Self::Plain(io) => io.bare_reads(),
                    Self::Mesh(_) => None,
                }
            }

            fn bare_writes(&self) -> Option<&TcpStream> {
                match self {
                    Self::Plain(io) => io.bare_writes(),
                    Self::Mesh(_) => None,
                }
            }
        }
    };
}

joined!(Downstream);
joined!(Stream);

/// Implements [`tokio::io::AsyncRead`] by what stands below: `io` is its name in each of the patterns of the type.
macro_rules! forward_read {
    ($stream:ty, $io:ident in $($below:pat_param),+) => {
        impl tokio::io::AsyncRead for $stream {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $($below => std::pin::Pin::new($io).poll_read(cx, buf),)+
                }
            }
        }
    };
}

/// Implements [`tokio::io::AsyncWrite`] by what stands below, whose type may be a parameter (`where IO`); otherwise as [`forward_read`].
macro_rules! forward_write {
    ($stream:ty $(where $generic:ident)?, $io:ident in $($below:pat_param),+) => {
        impl$(<$generic: tokio::io::AsyncWrite + Unpin>)? tokio::io::AsyncWrite for $stream {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $($below => std::pin::Pin::new($io).poll_write(cx, buf),)+
                }
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match self.get_mut() {
                    $($below => std::pin::Pin::new($io).poll_write_vectored(cx, bufs),)+
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $($below => $io.is_write_vectored(),)+
                }
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $($below => std::pin::Pin::new($io).poll_flush(cx),)+
                }
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match self.get_mut() {
                    $($below => std::pin::Pin::new($io).poll_shutdown(cx),)+
                }
            }
        }
    };
}

pub(crate) use {forward_read, forward_write};

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
    use tokio::net::{TcpListener, TcpStream};

    use crate::detect::{Downstream, Prefixed};
    use crate::upstream::Stream;

    /// Answers each call of the write half differently, and not as the default implementations would.
    struct Told;

    impl AsyncWrite for Told {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(1))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(2))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::WouldBlock.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
        }
    }

    fn tells(mut stream: impl AsyncWrite + Unpin) {
        let mut cx = Context::from_waker(Waker::noop());
        let kind = |poll: Poll<io::Result<()>>| match poll {
            Poll::Ready(Err(error)) => error.kind(),
            other => panic!("{other:?}"),
        };
        assert!(matches!(Pin::new(&mut stream).poll_write(&mut cx, b"abc"), Poll::Ready(Ok(1))));
        let bufs = [IoSlice::new(b"a"), IoSlice::new(b"b")];
        assert!(matches!(Pin::new(&mut stream).poll_write_vectored(&mut cx, &bufs), Poll::Ready(Ok(2))));
        assert!(stream.is_write_vectored());
        assert_eq!(kind(Pin::new(&mut stream).poll_flush(&mut cx)), io::ErrorKind::WouldBlock);
        assert_eq!(kind(Pin::new(&mut stream).poll_shutdown(&mut cx)), io::ErrorKind::NotConnected);
    }

    #[test]
    fn the_write_half_is_passed_on_whole() {
        tells(Prefixed::new(Told));
    }

    // Both parts are given in one call, which the default implementation would not do, and arrive; then the end does.
    async fn gathers(mut near: impl AsyncRead + AsyncWrite + Unpin, mut far: TcpStream) {
        assert!(near.is_write_vectored());
        let parts = [IoSlice::new(b"he"), IoSlice::new(b"llo")];
        let written = std::future::poll_fn(|cx| Pin::new(&mut near).poll_write_vectored(cx, &parts)).await.unwrap();
        assert_eq!(written, 5);
        std::future::poll_fn(|cx| Pin::new(&mut near).poll_flush(cx)).await.unwrap();
        std::future::poll_fn(|cx| Pin::new(&mut near).poll_shutdown(cx)).await.unwrap();
        let mut read = String::new();
        far.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "hello");
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_socket_gets_parts_in_one_call() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pair = async || {
            let near = TcpStream::connect(address).await.unwrap();
            (near, listener.accept().await.unwrap().0)
        };
        let (near, far) = pair().await;
        gathers(Stream::Plain(near), far).await;
        let (near, far) = pair().await;
        gathers(Downstream::Plain(Prefixed::new(near)), far).await;
    }
}
