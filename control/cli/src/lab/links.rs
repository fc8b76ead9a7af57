//! The wires: one bridge on the node, one veth pair a pod. Spoken over rtnetlink, in a thread inside the namespace meant.

use std::net::{Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::fd::{AsFd as _, AsRawFd as _};
use weft_capture::netns::NetNs;

use super::{BRIDGE, Error, NODE, NODE6, POD_PREFIX, POD_PREFIX6};

/// The name of a pod's interface, as in any cluster.
const POD_LINK: &str = "eth0";

/// A bridge without an address of its own takes the lowest of its ports', and so another one when a pod comes; pods that have
/// looked it up before then talk to nobody until they look again.
const BRIDGE_MAC: [u8; 6] = [0x02, 0, 0, 0xf4, 0, 0x01];

/// Brings up the node's bridge and its addresses; says whether it has one of IPv6.
pub fn bridge(node: &NetNs) -> Result<bool, Error> {
    inside(node, "make the node's bridge", async |links| {
        up(&links, "lo").await?;
        said(links.link().add(LinkBridge::new(BRIDGE).address(BRIDGE_MAC.to_vec()).build()).execute().await)?;
        said(links.address().add(index(BRIDGE)?, NODE.into(), POD_PREFIX).execute().await)?;
        up(&links, BRIDGE).await
    })?;
    // A machine without IPv6 has a lab without.
    Ok(inside(node, "give the node an IPv6 address", async |links| add6(&links, BRIDGE, NODE6).await).is_ok())
}

/// Wires a pod's namespace to the node: addresses, default routes, loopback.
pub fn pod(node: &NetNs, pod: &NetNs, number: u16, (address, six): (Ipv4Addr, Option<Ipv6Addr>)) -> Result<(), Error> {
    let (outer, inner) = (format!("weft{number}a"), format!("weft{number}b"));
    let target = pod.as_fd().as_raw_fd();
    inside(node, &format!("wire the pod at {address} to the node"), async |links| {
        said(links.link().add(LinkVeth::new(&outer, &inner).build()).execute().await)?;
        let port = LinkUnspec::new_with_index(index(&outer)?).controller(index(BRIDGE)?).up();
        said(links.link().set(port.build()).execute().await)?;
        let moved = LinkUnspec::new_with_index(index(&inner)?).name(POD_LINK).setns_by_fd(target);
        said(links.link().set(moved.build()).execute().await)
    })?;
    inside(pod, &format!("address the pod at {address}"), async |links| {
        up(&links, "lo").await?;
        let link = index(POD_LINK)?;
        said(links.address().add(link, address.into(), POD_PREFIX).execute().await)?;
        up(&links, POD_LINK).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(NODE).output_interface(link).build();
        said(links.route().add(route).execute().await)?;
        let Some(six) = six else { return Ok(()) };
        add6(&links, POD_LINK, six).await?;
        let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(NODE6).output_interface(link).build();
        said(links.route().add(route).execute().await)
    })
}

/// Usable at once: nobody else here can have the address, so the kernel need not ask around for a second.
async fn add6(links: &Handle, name: &str, address: Ipv6Addr) -> Result<(), String> {
    let mut add = links.address().add(index(name)?, address.into(), POD_PREFIX6);
    add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    said(add.execute().await)
}

/// Runs a conversation with the kernel about the links of a namespace.
fn inside(net: &NetNs, what: &str, job: impl AsyncFnOnce(Handle) -> Result<(), String> + Send) -> Result<(), Error> {
    let told = |reason: String| Error::Links { what: what.to_owned(), reason };
    net.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|e| e.to_string())?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            job(handle).await
        })
    })?
    .map_err(told)
}

fn said(result: Result<(), rtnetlink::Error>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

async fn up(links: &Handle, name: &str) -> Result<(), String> {
    said(links.link().set(LinkUnspec::new_with_index(index(name)?).up().build()).execute().await)
}

/// The number of an interface of the calling thread's namespace.
fn index(name: &str) -> Result<u32, String> {
    let found = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
        .and_then(|socket| Ok(rustix::net::netdevice::name_to_index(&socket, name)?));
    found.map_err(|error| format!("interface {name}: {error}"))
}
