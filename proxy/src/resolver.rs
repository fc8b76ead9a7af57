//! Names to addresses by hickory, never by getaddrinfo, which a static binary must not call.
//!
//! Invariant: every socket of the look-ups carries the sidecar's mark where one is configured, so that none is captured by the
//! pod's own redirection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioRuntimeProvider};
use hickory_resolver::{Resolver, ResolverBuilder};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long a TCP connection to a name server may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A resolver whose sockets are the sidecar's own.
pub type MarkedResolver = Resolver<Marked>;

/// A resolver that asks `servers`, or those of /etc/resolv.conf if there are none. It caches by TTL; make one and share it.
pub fn resolver(servers: &[SocketAddr], mark: Option<u32>) -> Result<MarkedResolver, NetError> {
    let runtime = Marked { tokio: TokioRuntimeProvider::new(), mark };
    let builder: ResolverBuilder<Marked> = if servers.is_empty() {
        Resolver::builder(runtime)?
    } else {
        let servers = servers.iter().map(|server| {
            let port = |mut connection: ConnectionConfig| {
                connection.port = server.port();
                connection
            };
            NameServerConfig::new(server.ip(), true, vec![port(ConnectionConfig::udp()), port(ConnectionConfig::tcp())])
        });
        Resolver::builder_with_config(ResolverConfig::from_name_servers(servers.collect()), runtime)
    };
    builder.build()
}

/// Tokio's sockets, marked.
#[derive(Clone)]
pub struct Marked {
    tokio: TokioRuntimeProvider,
    mark: Option<u32>,
}

impl RuntimeProvider for Marked {
    type Handle = TokioHandle;
    type Timer = <TokioRuntimeProvider as RuntimeProvider>::Timer;
    type Udp = UdpSocket;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        wait: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = new_socket(server, mark)?;
            if let Some(bind) = bind {
                socket.bind(bind)?;
            }
            let stream = timeout(wait.unwrap_or(CONNECT_TIMEOUT), socket.connect(server)).await??;
            Ok(hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            set_mark(&SockRef::from(&socket), mark)?;
            Ok(socket)
        })
    }
}

/// Connects with the sidecar's mark, without delay of small writes, within `wait`.
pub async fn connect_marked(to: SocketAddr, mark: Option<u32>, wait: Duration) -> io::Result<TcpStream> {
    timeout(wait, new_socket(to, mark)?.connect(to)).await?
}

fn new_socket(to: SocketAddr, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    set_mark(&SockRef::from(&socket), mark)?;
    Ok(socket)
}

fn set_mark(socket: &SockRef<'_>, mark: Option<u32>) -> io::Result<()> {
    mark.map_or(Ok(()), |mark| socket.set_mark(mark))
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{Message, MessageType};
    use hickory_resolver::proto::rr::rdata::A;
    use hickory_resolver::proto::rr::{RData, Record};
    use tokio::net::TcpListener;

    use super::*;

    /// A name server that answers every question with one address.
    async fn name_server(address: std::net::Ipv4Addr) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let local = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                let mut message = Message::from_vec(&buffer[..len]).unwrap();
                message.metadata.message_type = MessageType::Response;
                let name = message.queries[0].name().clone();
                message.add_answer(Record::from_rdata(name, 60, RData::A(A(address))));
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        });
        local
    }

    #[tokio::test]
    async fn asks_the_given_server_at_its_port() {
        let address = "10.1.2.3".parse().unwrap();
        let resolver = resolver(&[name_server(address).await], None).unwrap();
        let found: Vec<_> = resolver.lookup_ip("weft-control.example.").await.unwrap().iter().collect();
        assert_eq!(found, [std::net::IpAddr::V4(address)]);
    }

    #[tokio::test]
    async fn sockets_carry_the_mark() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let second = Duration::from_secs(1);
        match connect_marked(to, Some(0x539), second).await {
            Ok(stream) => assert_eq!(SockRef::from(&stream).mark().unwrap(), 0x539),
            // Without CAP_NET_ADMIN there is no mark, and then no socket either: it would be captured.
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
        }
        let stream = connect_marked(to, None, second).await.unwrap();
        assert!(stream.nodelay().unwrap());
    }
}
