//! The accept loop that the servers share: bounded connections, an end in bounded time.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::exit::Failure;

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 16_384;

/// Listens, or says why not.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).await.map_err(|error| Failure::here(format!("cannot listen on {addr}: {error}")))
}

/// Becomes true at SIGTERM or SIGINT.
pub fn stop() -> Result<watch::Receiver<bool>, Failure> {
    let on = |kind| signal(kind).map_err(|error| Failure::here(format!("cannot watch for signals: {error}")));
    let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = tell.send(true);
        // Receivers see the value, not the sender's end.
        tell.closed().await;
    });
    Ok(told)
}

/// Hands each connection to `handle` until `stop`, then waits for those at work, `grace` at most.
pub async fn accept<F, Fut>(listener: TcpListener, mut stop: watch::Receiver<bool>, grace: Duration, handle: F)
where
    F: Fn(TcpStream, watch::Receiver<bool>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let told = stop.clone();
    loop {
        while connections.try_join_next().is_some() {}
        tokio::select! {
            biased;
            _ = stop.wait_for(|stopping| *stopping) => break,
            _ = connections.join_next(), if connections.len() >= MAX_CONNECTIONS => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(handle(stream, told.clone()));
                }
                // Out of file descriptors, or the peer went away: neither is for ever.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
}
