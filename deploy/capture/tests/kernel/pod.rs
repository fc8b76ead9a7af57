//! A pod of two namespaces, and connections of which it is known where they arrive.

use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::fd::{AsFd as _, AsRawFd as _};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use weft_capture::netns::NetNs;
use weft_capture::rules::OWN_APP_PRIORITY;

/// The mark of the sidecar's sockets.
pub const MARK: u32 = 0x539;
/// How long anything may take.
pub const WAIT: Duration = Duration::from_secs(5);

pub fn inside<T: Send>(net: &NetNs, job: impl FnOnce() -> T + Send) -> T {
    net.run(job).unwrap()
}

/// A pod: a namespace with an address, a default route, and a peer namespace that calls it.
pub struct Pod {
    pub net: NetNs,
    pub peer: NetNs,
    pub address: IpAddr,
    /// Somewhere else, to which there is a route and where nobody is.
    pub service: IpAddr,
}

impl Pod {
    pub fn new(v6: bool) -> Self {
        let [address, peer_address, service]: [IpAddr; 3] = if v6 {
            ["fd77::2", "fd77::1", "fd96::1"].map(|text| text.parse().unwrap())
        } else {
            ["10.77.0.2", "10.77.0.1", "10.96.0.1"].map(|text| text.parse().unwrap())
        };
        let (net, peer) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        inside(&net, || wire(&peer));
        inside(&net, || address_link("pod", address));
        inside(&peer, || address_link("peer", peer_address));
        inside(&net, || block(default_route("pod", v6)));
        Self { net, peer, address, service }
    }

    pub fn listen(&self, port: u16) -> TcpListener {
        let any: IpAddr =
            if self.address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        inside(&self.net, || TcpListener::bind((any, port)).unwrap())
    }
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
}

fn handle() -> rtnetlink::Handle {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

fn index(name: &str) -> u32 {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    rustix::net::netdevice::name_to_index(&socket, name).unwrap()
}

fn wire(peer: &NetNs) {
    block(async {
        let links = handle();
        links.link().add(LinkVeth::new("pod", "peer").build()).execute().await.unwrap();
        let message = LinkUnspec::new_with_index(index("peer")).setns_by_fd(peer.as_fd().as_raw_fd()).build();
        links.link().set(message).execute().await.unwrap();
    });
}

fn address_link(name: &str, address: IpAddr) {
    block(async {
        let links = handle();
        for name in ["lo", name] {
            links.link().set(LinkUnspec::new_with_index(index(name)).up().build()).execute().await.unwrap();
        }
        let prefix = if address.is_ipv6() { 64 } else { 24 };
        let mut request = links.address().add(index(name), address, prefix);
        request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        request.execute().await.unwrap();
    });
}

async fn default_route(name: &str, v6: bool) {
    let route = if v6 {
        RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index(name)).build()
    } else {
        RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index(name)).build()
    };
    handle().route().add(route).execute().await.unwrap();
}

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq)]
pub enum Caller {
    App,
    Sidecar,
    SidecarToApp,
}

pub fn connect(address: SocketAddr, caller: Caller, by_mark: bool) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if caller != Caller::App && by_mark {
        socket.set_mark(MARK)?;
    }
    if caller == Caller::SidecarToApp {
        socket.set_priority(OWN_APP_PRIORITY)?;
    }
    socket.connect_timeout(&address.into(), WAIT)?;
    Ok(socket.into())
}

/// The listener gets the connection, and the original destination is still known there.
pub fn arrives(client: std::io::Result<TcpStream>, listener: &TcpListener, meant: SocketAddr) {
    let mut client = client.unwrap_or_else(|error| panic!("to {meant}: {error}"));
    listener.set_nonblocking(false).unwrap();
    SockRef::from(listener).set_read_timeout(Some(WAIT)).unwrap();
    let (mut server, _) = listener.accept().unwrap_or_else(|error| panic!("nobody came for {meant}: {error}"));
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let socket = SockRef::from(&server);
    let original = if meant.is_ipv6() { socket.original_dst_v6() } else { socket.original_dst_v4() };
    let local = server.local_addr().unwrap();
    // Without a translation the local address is the one that was meant (and the kernel may know no other).
    let original = original.ok().and_then(|address| address.as_socket()).unwrap_or(local);
    assert_eq!(original, meant, "accepted at {local}");
}
