//! A client, or an application, that says and hears bytes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::*;
use crate::discovery::snapshot::Destination;

/// One end of a connection, with what was heard and not taken yet.
pub struct Raw {
    pub io: TcpStream,
    heard: Vec<u8>,
}

impl Raw {
    pub fn new(io: TcpStream) -> Self {
        Self { io, heard: Vec::new() }
    }

    pub async fn connect(addr: SocketAddr) -> Self {
        Self::new(TcpStream::connect(addr).await.unwrap())
    }

    pub async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn more(&mut self) -> bool {
        self.io.read_buf(&mut self.heard).await.is_ok_and(|n| n > 0)
    }

    /// So many bytes.
    pub async fn take(&mut self, len: usize) -> String {
        while self.heard.len() < len {
            assert!(self.more().await, "ended after {}", self.heard.escape_ascii());
        }
        String::from_utf8(self.heard.drain(..len).collect()).unwrap()
    }

    /// A head with its empty line; `None` at the end.
    pub async fn try_head(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.heard.windows(4).position(|four| four == b"\r\n\r\n") {
                return Some(self.take(at + 4).await);
            }
            if !self.more().await {
                assert!(self.heard.is_empty(), "ended after {}", self.heard.escape_ascii());
                return None;
            }
        }
    }

    pub async fn head(&mut self) -> String {
        self.try_head().await.expect("it ended")
    }

    /// A response's head, and a body as long as that says.
    pub async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let body = self.take(length.unwrap_or_default()).await;
        (head, body)
    }

    /// All that comes until the end, and whether that was in order.
    pub async fn rest(&mut self) -> (String, bool) {
        loop {
            match self.io.read_buf(&mut self.heard).await {
                Ok(n) if n > 0 => {}
                ended => {
                    return (String::from_utf8_lossy(&std::mem::take(&mut self.heard)).into_owned(), ended.is_ok());
                }
            }
        }
    }
}

/// An application whose connections are served so.
pub async fn app<F>(serve: impl Fn(Raw) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    listen(move |stream, _| serve(Raw::new(stream))).await
}

/// Out through one proxy, to an application in the clear.
pub async fn direct(application: SocketAddr) -> SocketAddr {
    let destination = Destination::Service(service(backend("a", vec![endpoint(application, None)])).into());
    outbound_side(&World::new().proxy("web", calls(cluster_ip(), destination)), cluster_ip()).await
}

/// Out through one proxy and in through another.
pub async fn meshed(application: SocketAddr) -> SocketAddr {
    let world = World::new();
    let far = inbound_side(&world.proxy("cart", enforces(open_port(true))), application).await;
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    outbound_side(&world.proxy("web", calls(cluster_ip(), destination)), cluster_ip()).await
}

/// Both ways to an application.
pub async fn ways(application: SocketAddr) -> [SocketAddr; 2] {
    [direct(application).await, meshed(application).await]
}
