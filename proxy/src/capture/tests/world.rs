//! What the tests are made of: proxies without kernel redirection (a listener stands for each), applications, and clients.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_engine::authz::PolicySet;
use weft_engine::balance::{Hints, Spread};
use weft_engine::identity::Identity;
use weft_engine::retry::Budget;
use weft_engine::route::{Route, Tables};

use crate::Shared;
use crate::capture::inbound::{Applications, serve as serve_inbound};
use crate::capture::outbound::serve as serve_outbound;
use crate::detect::Habit;
use crate::discovery::snapshot::{
    Alpn, Backend, Destination, Endpoint, EndpointSet, EndpointState, Entry, Inbound, InboundPort, Protocol, Service,
    Snapshot,
};
use crate::identity::Current;

/// A trust domain.
pub struct World {
    ca: Ca,
    _dir: tempfile::TempDir,
}

pub fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account).unwrap()
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
        Self { ca, _dir: dir }
    }

    /// A proxy that runs as `account`.
    pub fn proxy(&self, account: &str, snapshot: Snapshot) -> Arc<Shared> {
        self.proxy_by(self, account, snapshot)
    }

    /// A proxy of this world that takes the peers of another.
    pub fn proxy_that_trusts(&self, other: &Self, account: &str) -> Arc<Shared> {
        self.proxy_by(other, account, Snapshot::default())
    }

    fn proxy_by(&self, trusted: &Self, account: &str, snapshot: Snapshot) -> Arc<Shared> {
        let shared = crate::testing::shared(identity(account), snapshot);
        self.issue(trusted, &shared, Duration::from_hours(1));
        shared
    }

    /// Gives a proxy another certificate.
    pub fn renew(&self, shared: &Arc<Shared>, life: Duration) {
        self.issue(self, shared, life);
    }

    fn issue(&self, trusted: &Self, shared: &Arc<Shared>, life: Duration) {
        let id = &shared.config.identity;
        let key = KeyPair::generate().unwrap();
        let chain = self.ca.issue(&key.csr(id).unwrap(), id, life, SystemTime::now()).unwrap();
        let svid = Svid::new(key, &chain).unwrap();
        let roots = trusted.ca.roots().clone().denying(shared.trust.revoked.denied());
        shared.identity.install(Arc::new(Current::new(Arc::new(svid), &roots).unwrap()));
    }
}

pub fn endpoint(addr: SocketAddr, account: Option<&str>) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        name: addr.to_string().into(),
        addr,
        identity: account.map(identity),
        alpn: Alpn { h1: true, h2: true, tcp: true },
        workload: "shop/pod".into(),
        weight: 1,
        draining: false,
        hints: Hints::default(),
        application: false,
        state: Arc::new(EndpointState::new(Duration::ZERO)),
    })
}

pub fn backend(name: &str, members: Vec<Arc<Endpoint>>) -> Arc<Backend> {
    Arc::new(Backend {
        name: name.into(),
        label: format!("shop/{name}").into(),
        sni: format!("{name}.shop.80.weft").into(),
        external: None,
        spread: Spread::default(),
        endpoints: ArcSwap::from_pointee(EndpointSet { members, ..EndpointSet::default() }),
        habit: Habit::default(),
        retries: Budget::default(),
        unassigned: OnceLock::new(),
    })
}

pub fn service(own: Arc<Backend>) -> Service {
    Service {
        name: Arc::clone(&own.name),
        protocol: Protocol::Detect,
        headless: false,
        table: None,
        connections: None,
        own,
        backends: HashMap::new(),
    }
}

/// A service with one route, whose backends are all there.
pub fn routed(own: Arc<Backend>, backends: Vec<Arc<Backend>>, route: Route) -> Service {
    routed_by(own, backends, vec![route])
}

/// The same with several routes.
pub fn routed_by(own: Arc<Backend>, backends: Vec<Arc<Backend>>, routes: Vec<Route>) -> Service {
    let backends = backends.into_iter().map(|backend| (Arc::clone(&backend.name), backend)).collect();
    let Tables { requests, connections } = Tables::new(routes);
    Service { table: requests.map(Arc::new), connections: connections.map(Arc::new), backends, ..service(own) }
}

pub fn calls(addr: SocketAddr, destination: Destination) -> Snapshot {
    let entry = Arc::new(Entry { destination, last_used: 0.into() });
    Snapshot { by_addr: HashMap::from([(addr, entry)]), ..Snapshot::default() }
}

/// What the other side enforces, on all ports.
pub fn enforces(port: InboundPort) -> Snapshot {
    let inbound = Inbound { workload: "shop/pod".into(), ports: HashMap::new(), default: Arc::new(port) };
    Snapshot { inbound: Arc::new(inbound), ..Snapshot::default() }
}

pub fn open_port(strict: bool) -> InboundPort {
    InboundPort { strict, policies: PolicySet::new(Vec::new(), false), ..InboundPort::default() }
}

/// An address for services that nobody listens at.
pub fn cluster_ip() -> SocketAddr {
    "10.96.0.1:80".parse().unwrap()
}

/// Stands for a client pod's redirection: what connects here meant to connect to `destination`.
pub async fn outbound_side(shared: &Arc<Shared>, destination: SocketAddr) -> SocketAddr {
    let shared = Arc::clone(shared);
    listen(move |stream, client| serve_outbound(Arc::clone(&shared), stream, client, destination)).await
}

/// Stands for a server pod: what connects here meant to connect to the application at `application`.
pub async fn inbound_side(shared: &Arc<Shared>, application: SocketAddr) -> SocketAddr {
    let shared = Arc::clone(shared);
    let applications = Arc::new(Applications::default());
    listen(move |stream, client| {
        serve_inbound(Arc::clone(&shared), Arc::clone(&applications), stream, client, application)
    })
    .await
}

/// A listener whose connections are each served by a task.
pub async fn listen<F>(serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, client)) = listener.accept().await {
            tokio::spawn(serve(stream, client));
        }
    });
    addr
}

/// An address at which nobody listens.
pub async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// An HTTP/1 client that reads responses with a `Content-Length`.
pub struct Client(pub TcpStream);

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        Self(TcpStream::connect(addr).await.unwrap())
    }

    /// Sends bytes and reads one response: its head as text, and its body.
    pub async fn send(&mut self, request: &str) -> (String, String) {
        self.0.write_all(request.as_bytes()).await.unwrap();
        self.response().await
    }

    pub async fn response(&mut self) -> (String, String) {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert_ne!(self.0.read_buf(&mut bytes).await.unwrap(), 0, "ended after {}", bytes.escape_ascii());
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let length: usize = length.unwrap_or_default();
        while bytes.len() < end + length {
            assert_ne!(self.0.read_buf(&mut bytes).await.unwrap(), 0, "ended after {}", bytes.escape_ascii());
        }
        (head, String::from_utf8(bytes.split_off(end)).unwrap())
    }
}

/// Where a client connects whose calls go through two sidecars to `app`; and the second of them.
pub async fn through_both(app: SocketAddr) -> (SocketAddr, Arc<Shared>) {
    let Both { side, server, .. } = both(app).await;
    (side, server)
}

/// Two sidecars before an application.
pub struct Both {
    pub world: World,
    /// Where clients connect.
    pub side: SocketAddr,
    /// The clients', `shop/web`.
    pub client: Arc<Shared>,
    /// The application's, `shop/cart`.
    pub server: Arc<Shared>,
    /// Where that is.
    pub far: SocketAddr,
}

pub async fn both(app: SocketAddr) -> Both {
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&server, app).await;
    let (client, side) = calls_cart(&world, "web", far).await;
    Both { world, side, client, server, far }
}

/// A sidecar of that account which is told that `cart` is at `far`; and where its application connects.
pub async fn calls_cart(world: &World, account: &str, far: SocketAddr) -> (Arc<Shared>, SocketAddr) {
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    let proxy = world.proxy(account, calls(cluster_ip(), destination));
    let side = outbound_side(&proxy, cluster_ip()).await;
    (proxy, side)
}
