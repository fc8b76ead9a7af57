//! The gRPC connection to control: a name or address, resolved by hickory, TCP with the sidecar's mark, TLS that takes nobody but control
//! for control, HTTP/2 with keep-alive.
//!
//! Invariants
//! - Nothing is sent before the server has proved to be control (the TLS configuration checks it, see
//!   [`weft_certs::tls::control_client_config`]) and to speak HTTP/2.
//! - Every step has a bound; a peer that is silent is found out by keep-alive within 15 s.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use weft_certs::tls::{CONTROL_SERVER_NAME, control_server_name};

use crate::resolver::{MarkedResolver, connect_marked};

/// Name, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP to one of control's addresses.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// More addresses of control's name than this are not tried at one attempt.
const MAX_ADDRESSES: usize = 4;
/// Time between keep-alive pings, idle or not.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A ping that is unanswered for this long ends the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream's window; the connection's is four times that, since equal ones can deadlock.
const WINDOW: u32 = 1 << 20;

/// Where control is, and how its sockets are told from the application's.
#[derive(Clone)]
pub struct Target {
    host: Arc<str>,
    port: u16,
    server_name: ServerName<'static>,
    mark: Option<u32>,
    resolver: MarkedResolver,
}

/// The text is not of the form `HOST:PORT`.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not HOST:PORT; give control's address as `weft-control.weft-system:15012`, `10.0.0.1:15012` or `[::1]:15012`"
)]
pub struct BadAddress(String);

impl Target {
    /// Reads `HOST:PORT`, where HOST is a name, an IPv4 address or an IPv6 address in brackets.
    pub fn new(address: &str, mark: Option<u32>, resolver: MarkedResolver) -> Result<Self, BadAddress> {
        let bad = || BadAddress(address.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare.is_empty() || (bare == host && host.contains(':')) {
            return Err(bad());
        }
        let server_name = ServerName::try_from(CONTROL_SERVER_NAME).map_err(|_| bad())?;
        Ok(Self { host: bare.into(), port, server_name, mark, resolver })
    }

    /// The same, which is known by the name that we were started with for the trust domain: it may have others.
    #[must_use]
    pub fn known_in(self, trust_domain: &str) -> Self {
        let server_name = ServerName::try_from(control_server_name(trust_domain)).unwrap_or(self.server_name);
        Self { server_name, ..self }
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let found = self.resolver.lookup_ip(&*self.host).await.map_err(io::Error::other)?;
        let mut addresses: Vec<_> = found.iter().map(|ip| SocketAddr::new(ip, self.port)).collect();
        // Every proxy would else begin with the same replica.
        fastrand::shuffle(&mut addresses);
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host));
        for address in self.addresses().await? {
            match connect_marked(address, self.mark, TCP_TIMEOUT).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = io::Error::new(e.kind(), format!("{address}: {e}")),
            }
        }
        Err(last)
    }

    async fn connect(self, tls: Arc<ClientConfig>) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = self.tcp().await?;
        let stream = TlsConnector::from(tls).connect(self.server_name, stream).await?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Ok(TokioIo::new(stream))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "control does not speak HTTP/2 on this port"))
        }
    }
}

/// A channel to control that connects at its first request, and again after each loss. To be made inside a runtime.
///
/// `tls` is [`weft_certs::tls::control_client_config`]'s; a new certificate needs a new channel.
pub fn channel(target: &Target, tls: Arc<ClientConfig>) -> Channel {
    let target = target.clone();
    // The connector does the TLS; the URI only gives `:authority` and `:scheme`.
    Endpoint::from_static("http://weft-control")
        .origin(http::Uri::from_static("https://weft-control"))
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .connect_with_connector_lazy(tower::service_fn(move |_| target.clone().connect(Arc::clone(&tls))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_names_and_addresses() {
        let resolver = crate::resolver::resolver(&["127.0.0.1:53".parse().unwrap()], None).unwrap();
        let read = |text: &str| Target::new(text, None, resolver.clone());
        for (text, host, port) in [
            ("weft-control.weft-system:15012", "weft-control.weft-system", 15012),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]:15012", "::1", 15012),
        ] {
            let target = read(text).unwrap();
            assert_eq!((&*target.host, target.port), (host, port));
        }
        assert_eq!(read("[::1]:15012").unwrap().addresses().await.unwrap(), ["[::1]:15012".parse().unwrap()]);
        for bad in ["", "control", ":15012", "control:", "control:0", "control:65536", "::1:15012", "[]:1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
