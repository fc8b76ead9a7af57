//! Two byte streams, joined: half-close, counts, bounded memory.
//!
//! Invariants
//! - An idle pair holds no buffer: bytes are read into the thread's own buffer and written at once; only what the other side does not
//!   take is kept, and nothing more is read meanwhile. That is one read for each direction: 64 KiB, or 256 KiB of one that is moved
//!   in bulk, and of those there are [`direction::MAX_BULK`].
//! - The end of one direction is passed on as a half-close; the other goes on until it ends too.
//! - A stream that breaks while nobody reads from it is noticed within [`lookout::LOOK`].

mod direction;
mod lookout;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use self::direction::Direction;
use self::lookout::Lookout;
use super::reset_on_close;

/// A stream that can be joined with another.
pub trait Joined: AsyncRead + AsyncWrite + Unpin {
    /// The socket below; `None` where there is none.
    fn socket(&self) -> Option<&TcpStream>;

    /// Bytes are asked for by the [`crate::scratch::BULK`]; what stands between here and the socket reads as many, until told otherwise.
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
