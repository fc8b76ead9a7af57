//! What a pod's address means together with a name, where `--socket-lb` says that the cluster rewrites ClusterIPs to pods' addresses in the
//! applications' own calls to connect: the sidecar never sees the ClusterIP then.
//!
//! Invariants
//! - The pod's address is that very pod, unless the name is exactly that of a Service which is not headless and which this address and port is
//!   an endpoint of: then it means that Service, with its routes and all its endpoints.
//! - Whatever cannot be said in time, or is no Service's name, leaves it at that very pod: what it meant without the name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::address::canonical;
use super::snapshot::{Destination, Endpoint, Service};
use crate::Shared;

/// A host and port that a client has called.
pub type Called = (String, u16);

/// The port of `http` where none is said, and of what is called by TLS.
const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// What an HTTP request's authority calls; nothing for an address.
pub fn by_authority(authority: &[u8]) -> Vec<Called> {
    let Ok(text) = std::str::from_utf8(authority) else { return Vec::new() };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => return Vec::new(),
        },
        None => (text, HTTP),
    };
    called(host, &[port])
}

/// What the name of a TLS connection calls: it says no port, so it may be that of HTTPS or the one that was called.
pub fn by_sni(sni: &str, at: SocketAddr) -> Vec<Called> {
    called(sni, &[HTTPS, at.port()])
}

fn called(host: &str, ports: &[u16]) -> Vec<Called> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    ports.iter().map(|port| (host.to_owned(), *port)).collect()
}

/// A Service's name for control, by one that may leave out the client's own namespace. `None`: no Service can have this name, and nobody has to be
/// asked.
fn qualified(host: &str, namespace: &str) -> Option<String> {
    let labels: Vec<&str> = host.split('.').collect();
    match labels[..] {
        [name] => Some(format!("{name}.{namespace}")),
        [_, _] | [_, _, "svc"] | [_, _, "svc", _, ..] => Some(host.to_owned()),
        _ => None,
    }
}

/// What this pod means to a client that has called one of these names.
pub async fn meant(shared: &Shared, endpoint: Arc<Endpoint>, called: Vec<Called>, at: SocketAddr) -> Destination {
    for (host, port) in called {
        let Some(name) = qualified(&host.to_ascii_lowercase(), &shared.config.workload.namespace) else { continue };
        if let Ok(Destination::Service(service)) = shared.discovery.resolve_host(&name, port).await
            && holds(&service, canonical(at))
        {
            return Destination::Service(service);
        }
    }
    Destination::Endpoint(endpoint)
}

fn holds(service: &Service, at: SocketAddr) -> bool {
    !service.headless && service.own.endpoints.load().members.iter().any(|member| member.addr == at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::tests::world;

    #[test]
    fn what_a_name_calls() {
        let http = |text: &str| by_authority(text.as_bytes());
        let one = |host: &str, port: u16| vec![(host.to_owned(), port)];
        assert_eq!(http("web"), one("web", 80));
        assert_eq!(http("web.shop.svc.cluster.local.:8080"), one("web.shop.svc.cluster.local", 8080));
        for nothing in ["", "10.1.2.3", "10.1.2.3:80", "[fd00::1]:80", "[fd00::1]", "web:x", "."] {
            assert_eq!(http(nothing), [], "{nothing}");
        }
        let at = "10.1.2.3:8443".parse().unwrap();
        assert_eq!(by_sni("web.shop", at), [("web.shop".to_owned(), 443), ("web.shop".to_owned(), 8443)]);
    }

    #[test]
    fn only_what_can_be_a_services_name_is_asked_for() {
        for (host, name) in [
            ("web", Some("web.shop")),
            ("web.other", Some("web.other")),
            ("web.other.svc", Some("web.other.svc")),
            ("web.other.svc.cluster.local", Some("web.other.svc.cluster.local")),
            ("api.example.com", None),
            ("www.api.example.com", None),
        ] {
            assert_eq!(qualified(host, "shop").as_deref(), name, "{host}");
        }
    }

    #[test]
    fn it_is_the_service_only_if_the_pod_is_its_endpoint_and_it_is_not_headless() {
        let [here, elsewhere] = ["10.1.2.3:8080", "10.1.2.3:9090"].map(|text| text.parse::<SocketAddr>().unwrap());
        let member = Arc::new(Endpoint::plain(here, false, std::time::Duration::ZERO));
        let service = world::service(world::backend("web", vec![member]));
        assert!(holds(&service, here));
        assert!(!holds(&service, elsewhere));
        assert!(!holds(&Service { headless: true, ..service }, here));
    }
}
