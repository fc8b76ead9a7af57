//! Names of addresses: `IP:PORT` or `host:port`.

use std::net::{IpAddr, SocketAddr};

/// The longest host name that DNS knows.
const MAX_HOST: usize = 253;

/// An address as it is known by: IPv4 inside IPv6 is IPv4, and scopes are no part of it.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whether a resource of this name can be an address.
pub fn is_name(name: &str) -> bool {
    name.parse::<SocketAddr>().is_ok()
        || name
            .rsplit_once(':')
            .is_some_and(|(host, port)| is_host(host) && port.parse().is_ok_and(|port: u16| port > 0))
}

fn is_host(host: &str) -> bool {
    let is_char = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !host.is_empty() && host.len() <= MAX_HOST && host.bytes().all(is_char)
}

/// What a host and port mean.
#[derive(Debug, PartialEq, Eq)]
pub enum Host {
    /// The host is an IP address.
    Addr(SocketAddr),
    /// The name of its address: lower case, without the dot that ends an absolute name.
    Name(String),
    /// No host at all.
    Invalid,
}

/// Reads the host that an application gave.
pub fn host(host: &str, port: u16) -> Host {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Host::Addr(canonical(SocketAddr::new(ip, port)));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if is_host(host) { Host::Name(format!("{}:{port}", host.to_ascii_lowercase())) } else { Host::Invalid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read() {
        assert_eq!(host("Web.Shop.", 80), Host::Name("web.shop:80".into()));
        assert_eq!(host("[::1]", 80), Host::Addr("[::1]:80".parse().unwrap()));
        assert_eq!(host("::ffff:10.0.0.1", 80), Host::Addr("10.0.0.1:80".parse().unwrap()));
        for bad in ["", ".", "a b", "a/b", &"x".repeat(254)] {
            assert_eq!(host(bad, 80), Host::Invalid, "{bad}");
        }
    }

    #[test]
    fn names_are_told_from_other_resources() {
        for good in ["10.0.0.1:80", "[::1]:80", "web.shop:80"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["10.0.0.1", "service/a/b:80", "web:0", "web:", ":80", "mesh-extent", ""] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
