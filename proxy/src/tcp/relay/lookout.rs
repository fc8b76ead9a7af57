//! A look at streams that nobody reads from: those that have ended, and those whose bytes the other side does not take. The runtime has no way
//! to wait for an error alone while others use the stream, and an error is rare; so it is asked for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::Broken;

/// How often a stream is looked at for a reset while it is not read.
pub const LOOK: Duration = Duration::from_millis(500);

/// Looks at the two streams of a pair.
#[derive(Default)]
pub struct Lookout {
    // Runs on while both are read, and wakes this at most once then.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Lookout {
    /// Those of the two that are not read; ready when one has broken.
    pub fn poll(&mut self, cx: &mut Context<'_>, (a, b): (Option<&TcpStream>, Option<&TcpStream>)) -> Poll<Broken> {
        if a.is_none() && b.is_none() {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if let Some(error) = a.and_then(fault) {
                return Poll::Ready(Broken::First(error));
            }
            if let Some(error) = b.and_then(fault) {
                return Poll::Ready(Broken::Second(error));
            }
            timer.as_mut().reset(Instant::now() + LOOK);
        }
    }
}

/// What broke this stream, told once.
pub fn fault(socket: &TcpStream) -> Option<io::Error> {
    socket.take_error().unwrap_or_else(Some)
}
