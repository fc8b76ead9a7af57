//! Proof that a pod is captured, from within it: connections of our own, caught by ourselves at the sidecar's ports.
//!
//! An init container runs this before the sidecar starts, as an ordinary user without any capability, so the ports are free. It calls the
//! pod's own address: such a connection stays in the pod, whether it is captured or not. A connection is known again at its listener by the
//! address that it comes from, which nobody else can have. Invariants:
//!
//! - Passed means that every way that these settings capture was seen to be captured, in each family that the pod has an address of.
//! - No connection leaves the pod, unless the settings exclude the pod's own address: then one to an address for documentation, or to one
//!   of the included ranges, is made, which leaves only if it is not captured.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::rules::{CHECK_PRIORITY, Capture, takes_dns, takes_inbound, takes_outbound};
use crate::settings::Settings;

/// Exit code for a pod that is not captured; the repair of the node agent, and people, look for it.
pub const NOT_CAPTURED: u8 = 95;
/// How long one connection may take that stays within the pod.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause before a failed proof is tried again: the node agent may be about to repair.
const PAUSE: Duration = Duration::from_millis(200);
const BACKLOG: i32 = 1024;
const DNS: u16 = 53;

/// Why a pod did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something was not captured.
    #[error(
        "this pod's traffic is not captured: {0}. Is weft-cni installed on this node and its agent running? The kubelet tries again; \
         the agent puts in what is missing"
    )]
    NotCaptured(String),
    /// Nothing could be proved.
    #[error("whether this pod's traffic is captured cannot be proved: {0}")]
    Cannot(String),
}

/// What was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved(Vec<String>);

impl fmt::Display for Proved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("these settings capture nothing") } else { f.write_str(&self.0.join("; ")) }
    }
}

/// Proves that these settings are in force here, trying for so long.
///
/// # Errors
/// [`Error::NotCaptured`] with what was seen at the last try; [`Error::Cannot`] where no try could be made.
pub fn validate(settings: &Settings, wait: Duration) -> Result<Proved, Error> {
    if rustix::process::geteuid().as_raw() == settings.uid {
        let uid = settings.uid;
        return Err(Error::Cannot(format!(
            "what uid {uid} sends is the sidecar's own and passes: run this as another uid"
        )));
    }
    let own = own_addresses();
    if own.is_empty() {
        return Err(Error::Cannot("the pod has no address".to_owned()));
    }
    let capture = Capture::from(settings);
    let traps = Traps::open(&capture).map_err(|(port, error)| {
        Error::Cannot(format!(
            "port {port} cannot be listened to, which must be free until the sidecar starts: {error}"
        ))
    })?;
    let until = Instant::now() + wait;
    let mut proved = Vec::new();
    for address in own {
        for proof in proofs(&capture, address) {
            while let Err(seen) = traps.prove(&proof) {
                if Instant::now() >= until {
                    return Err(Error::NotCaptured(format!("{}: {seen}", proof.words("did not come"))));
                }
                std::thread::sleep(PAUSE);
            }
            proved.push(proof.words("comes"));
        }
    }
    Ok(Proved(proved))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Outbound,
    Inbound,
    DnsUdp,
    DnsTcp,
}

/// One thing to be seen: what goes there comes to this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Proof {
    way: Way,
    to: SocketAddr,
    port: u16,
}

impl Proof {
    fn words(&self, verb: &str) -> String {
        let what = match self.way {
            Way::Outbound => "a connection to",
            Way::Inbound => "a connection from elsewhere to",
            Way::DnsUdp => "a DNS question by UDP to",
            Way::DnsTcp => "a DNS question by TCP to",
        };
        format!("{what} {} {verb} to port {}", self.to, self.port)
    }
}

/// What these settings capture in the family of this address of the pod; what they capture nothing of is not listed.
fn proofs(capture: &Capture, own: IpAddr) -> Vec<Proof> {
    let mut found = Vec::new();
    let elsewhere = elsewhere(capture, own);
    let ports =
        if capture.include_outbound_ports.is_empty() { &[80, 443, 8080][..] } else { &capture.include_outbound_ports };
    let mut all = elsewhere.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
    if let Some(to) = all.find(|to| takes_outbound(capture, *to)) {
        found.push(Proof { way: Way::Outbound, to, port: capture.outbound_port });
    }
    let any: Vec<u16> = (20001..20100).collect();
    let ports = if capture.include_inbound_ports.is_empty() { &any } else { &capture.include_inbound_ports };
    if let Some(port) = ports.iter().find(|port| takes_inbound(capture, **port)) {
        found.push(Proof { way: Way::Inbound, to: SocketAddr::new(own, *port), port: capture.inbound_port });
    }
    let servers = elsewhere.iter().map(|ip| SocketAddr::new(*ip, DNS));
    if let (Some(port), Some(to)) = (capture.dns_port, servers.into_iter().find(|to| takes_dns(capture, to.ip()))) {
        found.push(Proof { way: Way::DnsUdp, to, port });
        found.push(Proof { way: Way::DnsTcp, to, port });
    }
    found
}

/// Addresses of one family to call: the pod's own, one for documentation, and one of each included range.
fn elsewhere(capture: &Capture, own: IpAddr) -> Vec<IpAddr> {
    let documentation: IpAddr = if own.is_ipv4() {
        Ipv4Addr::new(192, 0, 2, 1).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    };
    let included = capture.include_cidrs.iter().filter_map(|net| net.hosts().next());
    let all = [own, documentation].into_iter().chain(included);
    all.filter(|ip| ip.is_ipv4() == own.is_ipv4()).collect()
}

/// The pod's address of each family that it has one of.
fn own_addresses() -> Vec<IpAddr> {
    // Connecting a UDP socket sends nothing: it asks for the route.
    let towards = |to: SocketAddr| {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let v4 = towards((Ipv4Addr::new(192, 0, 2, 1), 9).into());
    let v6 = towards((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into());
    // A pod may have an address of IPv6 and no route beyond its link.
    let table = || parse_if_inet6(&std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default());
    [v4, v6.or_else(table)].into_iter().flatten().filter(|ip| !ip.is_loopback()).collect()
}

/// The first address of global scope; a line is address, index, prefix length, scope, flags and name of the interface.
fn parse_if_inet6(table: &str) -> Option<IpAddr> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, _, _, "00", ..] = fields[..] else { return None };
        Some(Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?).into())
    })
}

/// Our listeners at the sidecar's ports.
struct Traps {
    outbound: TcpListener,
    inbound: TcpListener,
    dns: Vec<(UdpSocket, TcpListener)>,
}

impl Traps {
    fn open(capture: &Capture) -> Result<Self, (u16, io::Error)> {
        let tcp = |port: u16| listen(None, port).map_err(|error| (port, error));
        let mut dns = Vec::new();
        for (ip, port) in LOOPBACK.into_iter().zip(std::iter::repeat(capture.dns_port)) {
            let Some(port) = port else { continue };
            let opened = listen(Some(ip), port).and_then(|tcp| Ok((UdpSocket::bind((ip, port))?, tcp)));
            match opened {
                Ok(pair) => dns.push(pair),
                // A kernel or a pod without IPv6.
                Err(_) if ip.is_ipv6() => {}
                Err(error) => return Err((port, error)),
            }
        }
        Ok(Self { outbound: tcp(capture.outbound_port)?, inbound: tcp(capture.inbound_port)?, dns })
    }

    // What went wrong is told by what was seen.
    fn prove(&self, proof: &Proof) -> Result<(), String> {
        let dns = self.dns.iter().find(|(udp, _)| udp.local_addr().is_ok_and(|at| at.is_ipv4() == proof.to.is_ipv4()));
        let no_loopback = || "no loopback address of this family to listen at".to_owned();
        match proof.way {
            Way::Outbound => caught(&self.outbound, proof.to, None),
            Way::Inbound => caught(&self.inbound, proof.to, Some(CHECK_PRIORITY)),
            Way::DnsTcp => caught(&dns.ok_or_else(no_loopback)?.1, proof.to, None),
            Way::DnsUdp => asked(&dns.ok_or_else(no_loopback)?.0, proof.to),
        }
    }
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// At this address, or at all of both families, and of IPv4 alone where the kernel has no other.
fn listen(ip: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let address = ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
    let socket = match Socket::new(Domain::for_address((address, port).into()), Type::STREAM, None) {
        Err(_) if ip.is_none() => return listen(Some(Ipv4Addr::UNSPECIFIED.into()), port),
        socket => socket?,
    };
    if ip.is_none() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(address, port).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn caught(trap: &TcpListener, to: SocketAddr, priority: Option<u32>) -> Result<(), String> {
    let client = connect(to, priority).map_err(|error| error.to_string())?;
    let local = client.local_addr().map_err(|error| error.to_string())?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match trap.accept() {
            Ok((_, from)) if (from.ip().to_canonical(), from.port()) == (local.ip(), local.port()) => return Ok(()),
            // Somebody else, who calls this pod already, or who went away again.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("somebody else answered".to_owned())
}

fn connect(to: SocketAddr, priority: Option<u32>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(priority) = priority {
        socket.set_priority(priority)?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

fn asked(trap: &UdpSocket, to: SocketAddr) -> Result<(), String> {
    let ask = || -> io::Result<()> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = UdpSocket::bind((any, 0))?;
        client.connect(to)?;
        let local = client.local_addr()?;
        client.send(b"captured?")?;
        SockRef::from(trap).set_read_timeout(Some(PATIENCE))?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let (_, from) = trap.recv_from(&mut [0; 16])?;
            if from == local {
                // The answer must look as if it came from where the question went.
                trap.send_to(b"yes", from)?;
                client.set_read_timeout(Some(PATIENCE))?;
                return client.recv(&mut [0; 16]).map(drop);
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    };
    ask().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => "it did not come".to_owned(),
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Exclude;

    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 9));

    fn listed(capture: &Capture) -> Vec<String> {
        proofs(capture, OWN).iter().map(|proof| proof.words("comes")).collect()
    }

    #[test]
    fn what_is_proved_stays_in_the_pod_where_it_can() {
        let all = Capture { dns_port: Some(15053), ..Capture::new(Exclude::Uid(1337)) };
        assert_eq!(
            listed(&all),
            [
                "a connection to 10.244.0.9:80 comes to port 15001",
                "a connection from elsewhere to 10.244.0.9:20001 comes to port 15006",
                "a DNS question by UDP to 10.244.0.9:53 comes to port 15053",
                "a DNS question by TCP to 10.244.0.9:53 comes to port 15053",
            ]
        );
    }

    #[test]
    fn only_what_is_captured_is_proved() {
        let base = Capture { exclude_cidrs: vec!["10.0.0.0/8".parse().unwrap()], ..Capture::new(Exclude::Uid(1337)) };
        let outbound = |capture: &Capture| {
            proofs(capture, OWN).iter().find(|proof| proof.way == Way::Outbound).map(|proof| proof.to.to_string())
        };
        assert_eq!(outbound(&base).unwrap(), "192.0.2.1:80");
        let ranges = vec!["fd00::/8".parse().unwrap(), "172.20.0.0/16".parse().unwrap()];
        let some = Capture { include_cidrs: ranges, include_outbound_ports: vec![5432], ..base.clone() };
        assert_eq!(outbound(&some).unwrap(), "172.20.0.1:5432");
        let none = Capture { include_cidrs: vec!["10.1.0.0/16".parse().unwrap()], ..base };
        assert_eq!(outbound(&none), None);
        let inbound = Capture {
            include_inbound_ports: vec![15021, 9100, 8080],
            exclude_inbound_ports: vec![9100],
            ..Capture::new(Exclude::Uid(1337))
        };
        assert!(listed(&inbound).iter().any(|proof| proof.contains("10.244.0.9:8080 comes to port 15006")));
    }

    #[test]
    fn an_address_of_ipv6_without_a_route_beyond_its_link_is_found() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n\
                     fd000000000000000000000000000002 04 40 00 82     eth0\n";
        assert_eq!(parse_if_inet6(table).unwrap().to_string(), "fd00::2");
        assert_eq!(parse_if_inet6(""), None);
    }
}
