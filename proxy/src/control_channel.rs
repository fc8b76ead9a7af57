//! The gRPC connection to control: names or addresses, resolved by hickory, TCP with the sidecar's mark, TLS that takes nobody but control
//! for control, HTTP/2 with keep-alive.
//!
//! Control may have several replicas. Which one is called: those of the first `--control` before those of the next; among equals (the addresses of
//! a name, or what stands in one flag between commas) whichever falls, but before them those to which control has sent us, until they fail; and last
//! those that have failed or sent us away within [`SHUN`].
//!
//! Invariants
//! - Nothing is sent before the server has proved to be control (the TLS configuration checks it, see
//!   [`weft_certs::tls::control_client_config`]) and to speak HTTP/2.
//! - Every step has a bound; a peer that is silent is found out by keep-alive within 15 s, one that cannot be reached costs [`TCP_TIMEOUT`] and is
//!   tried last the next time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use weft_certs::tls::{CONTROL_SERVER_NAME, control_server_name};

use crate::resolver::{MarkedResolver, connect_marked};

/// Names, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP to one of control's addresses.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// TLS with it: control may be busy with others.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// More addresses than this are not tried at one attempt.
const MAX_ADDRESSES: usize = 8;
/// An address that failed is tried after the others for so long.
const SHUN: Duration = Duration::from_secs(30);
/// Of so many it is known that they failed.
const MAX_SHUNNED: usize = 64;
/// Of those to which control sends us so many are heeded.
const MAX_PREFERRED: usize = 4;
/// Time between keep-alive pings, idle or not.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A ping that is unanswered for this long ends the connection.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A stream's window; the connection's is four times that, since equal ones can deadlock.
const WINDOW: u32 = 1 << 20;

/// Hosts and ports that are equals.
type Tier = Vec<(Arc<str>, u16)>;

/// Where control is, and how its sockets are told from the application's. Clones know the same of what has failed.
#[derive(Clone)]
pub struct Target {
    /// Equals together, those that are preferred first.
    tiers: Arc<[Tier]>,
    server_name: ServerName<'static>,
    mark: Option<u32>,
    resolver: MarkedResolver,
    known: Arc<Mutex<Known>>,
}

/// What is known of single replicas.
#[derive(Default)]
struct Known {
    /// When they failed.
    shunned: HashMap<SocketAddr, Instant>,
    /// Control has sent us there.
    preferred: Vec<SocketAddr>,
}

/// The text is not of the form `HOST:PORT`.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not HOST:PORT; give control's address as `weft-control.weft-system:15012`, `10.0.0.1:15012` or `[::1]:15012`, and several with commas between them"
)]
pub struct BadAddress(String);

impl Target {
    /// Reads `HOST:PORT[,HOST:PORT...]` of each tier, where HOST is a name, an IPv4 address or an IPv6 address in brackets.
    pub fn new(tiers: &[String], mark: Option<u32>, resolver: MarkedResolver) -> Result<Self, BadAddress> {
        let bad = || BadAddress(tiers.join(" "));
        let tiers: Result<Vec<Tier>, _> = tiers.iter().map(|tier| tier.split(',').map(host_port).collect()).collect();
        let tiers: Arc<[_]> = tiers?.into();
        if tiers.is_empty() {
            return Err(bad());
        }
        let server_name = ServerName::try_from(CONTROL_SERVER_NAME).map_err(|_| bad())?;
        Ok(Self { tiers, server_name, mark, resolver, known: Arc::default() })
    }

    /// The same, which is known by the name that we were started with for the trust domain: it may have others.
    #[must_use]
    pub fn known_in(self, trust_domain: &str) -> Self {
        let server_name = ServerName::try_from(control_server_name(trust_domain)).unwrap_or(self.server_name);
        Self { server_name, ..self }
    }

    /// All addresses, in the order in which they are to be tried. A name that cannot be resolved takes none of the others away.
    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let mut tiers = Vec::new();
        let mut failed = None;
        for tier in self.tiers.iter() {
            let mut equals = Vec::new();
            for (host, port) in tier {
                match self.resolve(host, *port).await {
                    Ok(found) => equals.extend(found),
                    Err(error) => failed = Some(error),
                }
            }
            tiers.push(equals);
        }
        let ordered = ordered(tiers, &mut self.known.lock(), Instant::now());
        match failed {
            Some(error) if ordered.is_empty() => Err(error),
            _ => Ok(ordered),
        }
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let found = self.resolver.lookup_ip(host).await.map_err(io::Error::other)?;
        Ok(found.iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    fn shun(&self, address: SocketAddr) {
        let mut known = self.known.lock();
        known.preferred.retain(|preferred| *preferred != address);
        if known.shunned.len() < MAX_SHUNNED || known.shunned.contains_key(&address) {
            known.shunned.insert(address, Instant::now());
        }
    }

    /// Control has sent us to these. Where the flags say an order, that is the one.
    fn prefer(&self, addresses: &str) {
        let preferred: Vec<_> =
            addresses.split(',').filter_map(|address| address.parse().ok()).take(MAX_PREFERRED).collect();
        if self.tiers.len() == 1 && !preferred.is_empty() {
            self.known.lock().preferred = preferred;
        }
    }

    async fn connect(self, tls: Arc<ClientConfig>, reached: Reached) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "control's name has no address");
        for address in self.addresses().await? {
            *reached.at.lock() = Some(address);
            match self.connect_to(address, Arc::clone(&tls)).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = io::Error::new(e.kind(), format!("{address}: {e}")),
            }
            self.shun(address);
        }
        Err(last)
    }

    async fn connect_to(
        &self,
        address: SocketAddr,
        tls: Arc<ClientConfig>,
    ) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = connect_marked(address, self.mark, TCP_TIMEOUT).await?;
        let shaken = timeout(TLS_TIMEOUT, TlsConnector::from(tls).connect(self.server_name.clone(), stream));
        let stream = shaken.await??;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            Ok(TokioIo::new(stream))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "control does not speak HTTP/2 on this port"))
        }
    }
}

fn host_port(address: &str) -> Result<(Arc<str>, u16), BadAddress> {
    let bad = || BadAddress(address.to_owned());
    let (host, port) = address.trim().rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.is_empty() || (bare == host && host.contains(':')) {
        return Err(bad());
    }
    Ok((bare.into(), port))
}

/// Tier by tier, in any order within each, the preferred before them; last those that are shunned, the one that failed longest ago first.
fn ordered(tiers: Vec<Vec<SocketAddr>>, known: &mut Known, now: Instant) -> Vec<SocketAddr> {
    let Known { shunned, preferred } = known;
    shunned.retain(|_, since| now.duration_since(*since) < SHUN);
    let mut all: Vec<SocketAddr> = Vec::new();
    for mut equals in std::iter::once(preferred.clone()).chain(tiers) {
        // Every proxy would else begin with the same replica.
        fastrand::shuffle(&mut equals);
        equals.retain(|address| !all.contains(address));
        all.extend(equals);
    }
    all.sort_by_key(|address| shunned.get(address).copied());
    all.truncate(MAX_ADDRESSES);
    all
}

/// Which of control's replicas a channel has reached.
#[derive(Clone)]
pub struct Reached {
    target: Target,
    at: Arc<Mutex<Option<SocketAddr>>>,
}

impl Reached {
    /// It has sent us to others: those are tried first, if it named any. Says which it is.
    pub fn moved(&self, to: &str) -> Option<SocketAddr> {
        self.target.prefer(to);
        self.shun()
    }

    /// It has failed, or sent us away: others are tried first for a while. Says which it is.
    pub fn shun(&self) -> Option<SocketAddr> {
        let at = *self.at.lock();
        if let Some(at) = at {
            self.target.shun(at);
        }
        at
    }

    /// Where it is.
    pub fn at(&self) -> Option<SocketAddr> {
        *self.at.lock()
    }
}

/// A channel to control that connects at its first request, and again after each loss; and which replica it has reached. To be made inside a
/// runtime.
///
/// `tls` is [`weft_certs::tls::control_client_config`]'s; a new certificate needs a new channel.
pub fn channel(target: &Target, tls: Arc<ClientConfig>) -> (Channel, Reached) {
    let target = target.clone();
    let reached = Reached { target: target.clone(), at: Arc::default() };
    let connected = reached.clone();
    // The connector does the TLS; the URI only gives `:authority` and `:scheme`.
    let channel = Endpoint::from_static("http://weft-control")
        .origin(http::Uri::from_static("https://weft-control"))
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            target.clone().connect(Arc::clone(&tls), connected.clone())
        }));
    (channel, reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tiers: &[&str]) -> Result<Target, BadAddress> {
        let resolver = crate::resolver::resolver(&["127.0.0.1:53".parse().unwrap()], None).unwrap();
        Target::new(&tiers.iter().map(ToString::to_string).collect::<Vec<_>>(), None, resolver)
    }

    #[tokio::test]
    async fn reads_names_and_addresses() {
        for (text, host, port) in [
            ("weft-control.weft-system:15012", "weft-control.weft-system", 15012),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("[::1]:15012", "::1", 15012),
        ] {
            assert_eq!(read(&[text]).unwrap().tiers[..], [vec![(host.into(), port)]]);
        }
        assert_eq!(read(&["[::1]:15012"]).unwrap().addresses().await.unwrap(), ["[::1]:15012".parse().unwrap()]);
        assert_eq!(read(&["10.0.0.1:1, 10.0.0.2:2", "control:3"]).unwrap().tiers.len(), 2);
        for bad in ["", "control", ":15012", "control:", "control:0", "control:65536", "::1:15012", "[]:1", "a:1,"] {
            assert!(read(&[bad]).is_err(), "{bad}");
        }
        assert!(read(&[]).is_err());
    }

    #[tokio::test]
    async fn the_first_tier_comes_first_and_what_has_failed_last() {
        let target = read(&["10.0.0.1:1,10.0.0.2:1", "10.0.0.3:1,10.0.0.1:1"]).unwrap();
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 1));
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let tried = target.addresses().await.unwrap();
            assert_eq!((tried.len(), tried[2]), (3, address(3)));
            firsts.insert(tried[0]);
        }
        assert_eq!(firsts.len(), 2, "equals are tried in any order");
        let now = Instant::now();
        let shunned = HashMap::from([(address(1), now), (address(2), now + Duration::from_secs(1))]);
        let mut known = Known { shunned, ..Known::default() };
        let tiers = || vec![vec![address(1), address(2)], vec![address(3)]];
        let (soon, later) = (now + SHUN, now + SHUN + Duration::from_secs(1));
        assert_eq!(ordered(tiers(), &mut known, now), [3, 1, 2].map(address));
        assert_eq!(ordered(tiers(), &mut known, soon), [1, 3, 2].map(address));
        assert_eq!(ordered(tiers(), &mut known, later)[2], address(3));
        assert!(known.shunned.is_empty());
    }

    #[tokio::test]
    async fn where_control_sends_us_is_tried_first_until_it_fails() {
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 1));
        let target = read(&["10.0.0.1:1,10.0.0.2:1,10.0.0.3:1"]).unwrap();
        let reached = Reached { target: target.clone(), at: Arc::new(Mutex::new(Some(address(1)))) };
        assert_eq!(reached.moved("10.0.0.3:1,nonsense,10.0.0.9:1"), Some(address(1)));
        for _ in 0..20 {
            let tried = target.addresses().await.unwrap();
            let (mut first, rest) = (tried[..2].to_vec(), &tried[2..]);
            first.sort();
            assert_eq!((&*first, rest), (&[address(3), address(9)][..], &[address(2), address(1)][..]));
        }
        target.shun(address(9));
        assert_eq!(target.addresses().await.unwrap(), [3, 2, 1].map(address), "one that no flag names is forgotten");
        // An end without names takes nothing back.
        reached.moved("1");
        assert_eq!(target.addresses().await.unwrap()[0], address(3));
        // An order that the operator has given stands.
        let target = read(&["10.0.0.1:1", "10.0.0.2:1"]).unwrap();
        Reached { target: target.clone(), at: Arc::default() }.moved("10.0.0.2:1");
        assert_eq!(target.addresses().await.unwrap(), [1, 2].map(address));
    }
}
