//! Where connections come in: two listeners that the pod's redirection leads to, and what each connection wanted to reach.
//!
//! Invariants
//! - A connection that was not redirected here, or whose original destination is the listener itself, is refused: nobody talks to the
//!   proxy as such, and no request circles through it.
//! - Connections are bounded, in all and by source; beyond a bound, or the memory budget, a new one is closed at once and counted.
//! - Running out of file descriptors pauses accepting; it does not end it, and the last [`SPARE`] are not for new connections.

mod inbound;
mod outbound;

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use weft_engine::reason::Reason;

use self::inbound::Applications;
use crate::Shared;
use crate::discovery::address::canonical;
use crate::limits::sources::Place;
use crate::tcp::reset_on_close;
use crate::telemetry::Direction;
use crate::upstream::connect::set_options;

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4096;
/// Pause after the kernel had no file descriptor or memory for a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// File descriptors that are left to what is open already: who is served may need another connection to an endpoint.
const SPARE: u64 = 32;

/// Both listeners of one worker, open.
pub struct Listeners {
    /// Of our application's connections.
    pub outbound: std::net::TcpListener,
    /// Of connections to our application.
    pub inbound: std::net::TcpListener,
}

impl Listeners {
    /// Opens both for each of so many workers. The kernel spreads connections over them; nothing is handed from one worker to another.
    ///
    /// # Errors
    /// What the kernel says: most often that the port is taken.
    pub fn bind(outbound: SocketAddr, inbound: SocketAddr, workers: usize) -> io::Result<Vec<Self>> {
        let shared = workers > 1;
        if shared {
            // Ports that are shared could be shared with another proxy of the same user, too: one that nobody has can be had alone.
            drop((listen(outbound)?, listen(inbound)?));
        }
        (0..workers).map(|_| Ok(Self { outbound: open(outbound, shared)?, inbound: open(inbound, shared)? })).collect()
    }
}

/// A listener that shares its port with no other.
///
/// # Errors
/// What the kernel says.
pub fn listen(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    open(addr, false)
}

// `[::]` is every address of both families, and of IPv4 alone where the kernel has no other.
fn open(addr: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let (addr, socket) = match Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)) {
        Err(_) if addr.ip() == Ipv6Addr::UNSPECIFIED => {
            let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port()));
            (addr, Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?)
        }
        socket => (addr, socket?),
    };
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// One worker's data path: serves both listeners until the proxy has drained, or for ever.
///
/// Once drain has begun the inbound listener takes what the kernel has completed already and closes. The outbound one goes on: requests in
/// flight may need it to their end.
///
/// # Errors
/// A listener that tokio does not take.
pub async fn serve(shared: Arc<Shared>, listeners: Listeners) -> io::Result<()> {
    let outbound = TcpListener::from_std(listeners.outbound)?;
    let inbound = TcpListener::from_std(listeners.inbound)?;
    let applications = Arc::new(Applications::default());
    let out = Accept { shared: Arc::clone(&shared), direction: Direction::Outbound };
    let into = Accept { shared: Arc::clone(&shared), direction: Direction::Inbound };
    let outward = out.run(outbound, outbound::serve);
    let inward = into.run(inbound, |shared, stream, client, destination| {
        inbound::serve(shared, Arc::clone(&applications), stream, client, destination)
    });
    tokio::join!(outward, inward);
    Ok(())
}

struct Accept {
    shared: Arc<Shared>,
    direction: Direction,
}

impl Accept {
    async fn run<F>(self, listener: TcpListener, serve: impl Fn(Arc<Shared>, TcpStream, SocketAddr, SocketAddr) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let drained = async {
            if self.direction == Direction::Inbound {
                self.shared.drain.wait().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let mut drained = std::pin::pin!(drained);
        let mut scarce = false;
        loop {
            tokio::select! {
                accepted = listener.accept(), if !scarce => match accepted {
                    Ok((stream, client)) => {
                        scarce = is_scarce(stream.as_fd());
                        self.take(stream, client, &serve);
                    }
                    Err(error) => self.failed(&error).await,
                },
                // Those that nobody accepts wait in the kernel.
                () = self.pause(&"few file descriptors are left"), if scarce => scarce = !has_spare(&listener),
                () = drained.as_mut() => break,
            }
        }
        // Connections that the kernel has completed were promised an answer.
        while let Some(Ok((stream, client))) = now_or_never(listener.accept()).await {
            self.take(stream, client, &serve);
        }
    }

    fn take<F>(
        &self,
        stream: TcpStream,
        client: SocketAddr,
        serve: &impl Fn(Arc<Shared>, TcpStream, SocketAddr, SocketAddr) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let telemetry = &self.shared.telemetry;
        let Some(room) = self.room(client) else {
            reset_on_close(&stream);
            return;
        };
        let Some(destination) = original_destination(&stream) else {
            telemetry.refused(self.direction, Reason::LoopRefused);
            tracing::debug!(%client, "refused: the connection was made to the proxy itself");
            reset_on_close(&stream);
            return;
        };
        set_options(&stream);
        let serving = serve(Arc::clone(&self.shared), stream, canonical(client), destination);
        tokio::spawn(async move {
            serving.await;
            drop(room);
        });
    }

    // Room for one more connection, for as long as it is held; what has none is counted here.
    fn room(&self, client: SocketAddr) -> Option<(OwnedSemaphorePermit, Option<Place>)> {
        let Shared { telemetry, memory, connections, sources, .. } = &*self.shared;
        if let Err(reason) = memory.admit_connection() {
            telemetry.refused(self.direction, reason);
            return None;
        }
        let Ok(permit) = Arc::clone(connections).try_acquire_owned() else {
            telemetry.bound_hit("connections");
            return None;
        };
        // Outbound there is one source, our own application.
        if self.direction == Direction::Outbound {
            return Some((permit, None));
        }
        let place = sources.take(client.ip());
        if place.is_none() {
            telemetry.bound_hit("connections_per_source");
        }
        Some((permit, Some(place?)))
    }

    async fn failed(&self, error: &io::Error) {
        // A connection that ended before it was accepted is its own business.
        if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
            self.pause(error).await;
        }
    }

    async fn pause(&self, error: &(dyn Display + Sync)) {
        self.shared.telemetry.bound_hit("file_descriptors");
        tracing::warn!(%error, "cannot accept a connection; raise the limit of open files if this stays");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether there are enough again. The kernel gives the lowest that is free, so that its number says how many are used.
fn has_spare(listener: &TcpListener) -> bool {
    rustix::io::fcntl_dupfd_cloexec(listener, 0).is_ok_and(|lowest| !is_scarce(lowest.as_fd()))
}

/// Whether the lowest descriptor that was free leaves fewer than [`SPARE`].
fn is_scarce(lowest: BorrowedFd<'_>) -> bool {
    let used = u64::try_from(lowest.as_raw_fd()).unwrap_or_default();
    getrlimit(Resource::Nofile).current.is_some_and(|limit| used.saturating_add(SPARE) >= limit)
}

/// Where a redirected connection wanted to go; `None` if it was not redirected: then it was made to us.
fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    // A listener of both families sees IPv4 inside IPv6; the kernel's record of the connection is IPv4's.
    let local = canonical(stream.local_addr().ok()?);
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let original = canonical(original.ok()?.as_socket()?);
    (original != local).then_some(original)
}

async fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
pub(crate) mod tests;
