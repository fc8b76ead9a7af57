//! What the data path looks at: one immutable snapshot, loaded once a request.
//!
//! Invariants
//! - It holds what the application has called, and no more (contract C1).
//! - Long-lived parts (a backend, an endpoint's load and connections) are shared from snapshot to snapshot, so a change of tables
//!   closes no connection and forgets no measurement.
//! - A change of one endpoint swaps one [`EndpointSet`]; nothing else is rebuilt.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use weft_engine::balance::{Hints, Load, Order, Spread};
use weft_engine::identity::Identity;
use weft_engine::keepalive::KeepAlive;
use weft_engine::reason::Reason;
use weft_engine::retry::Budget;
use weft_engine::route::{ConnectionTable, RouteTable};
use weft_engine::{authz, ratelimit};

use crate::detect::Habit;
use crate::telemetry::RequestSeries;
use crate::upstream::Pool;
use crate::worker::PerWorker;

/// Everything that control has told, as of one moment.
#[derive(Default)]
pub struct Snapshot {
    /// Ranges that hold all addresses of services and pods; outside them nobody asks.
    pub extent: Vec<IpNet>,
    /// Whether control has said what the ranges are; until then every address is asked for.
    pub extent_known: bool,
    /// Destinations by the address that the application called.
    pub by_addr: HashMap<SocketAddr, Arc<Entry>>,
    /// Destinations by `host:port`.
    pub by_host: HashMap<Arc<str>, Arc<Entry>>,
    /// Addresses (`IP:PORT` or `host:port`) that have an answer which this build had to refuse, and why: asking again is no use.
    pub refused: HashMap<Arc<str>, Reason>,
    /// The proxy's own side.
    pub inbound: Arc<Inbound>,
}

/// A destination that was called.
pub struct Entry {
    /// What it is.
    pub destination: Destination,
    /// Seconds of the proxy's life at which it was last called; idle ones are forgotten.
    pub last_used: AtomicU64,
}

/// What an address means.
#[derive(Clone)]
pub enum Destination {
    /// A service: routed and balanced.
    Service(Arc<Service>),
    /// That very pod: mTLS, policy and metrics, no routing.
    Endpoint(Arc<Endpoint>),
    /// Not of the mesh: passes as it is, counted as `unmeshed`.
    Outside,
}

/// How a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Recognised from the first bytes.
    #[default]
    Detect,
    /// HTTP/1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Opaque bytes.
    Tcp,
}

/// One port of a service, with its routes and every backend that they name.
pub struct Service {
    /// Resource name, `service/NAMESPACE/NAME:PORT`.
    pub name: Arc<str>,
    /// How it speaks.
    pub protocol: Protocol,
    /// Its name leads to its members, each of which is that very pod.
    pub headless: bool,
    /// What takes HTTP requests. `None`: no route is about them and all go to `own`.
    pub table: Option<Arc<RouteTable>>,
    /// What takes other connections. `None`: as above.
    pub connections: Option<Arc<ConnectionTable>>,
    /// The service's own endpoints.
    pub own: Arc<Backend>,
    /// Every backend of both tables by resource name, `own` included if it is named.
    pub backends: HashMap<Arc<str>, Arc<Backend>>,
}

impl Service {
    /// The backend of this name that a table of this service has chosen.
    pub fn backend(&self, name: &str) -> Option<&Arc<Backend>> {
        if *self.own.name == *name { Some(&self.own) } else { self.backends.get(name) }
    }

    /// Whether the name that a TLS client asks for decides where it goes.
    pub fn reads_tls(&self) -> bool {
        self.connections.as_ref().is_some_and(|table| table.reads_tls())
    }
}

/// A set of endpoints that requests can go to. Lives as long as anything refers to it.
pub struct Backend {
    /// Resource name of its service.
    pub name: Arc<str>,
    /// `NAMESPACE/NAME`, the label in metrics.
    pub label: Arc<str>,
    /// The SNI that it is called by: `NAME.NAMESPACE.PORT.weft` (lower case DNS labels).
    pub sni: Arc<str>,
    /// ExternalName: host and port to resolve instead of `endpoints`.
    pub external: Option<(Arc<str>, u16)>,
    /// Which of its endpoints are used.
    pub spread: Spread,
    /// Swapped when a member changes.
    pub endpoints: ArcSwap<EndpointSet>,
    /// What connections to it were, if it was called as a service.
    pub habit: Habit,
    /// What keeps retries that routes ask for from becoming a storm.
    pub retries: Budget,
    /// Where requests count that went to none of its endpoints; resolved at the first.
    pub unassigned: OnceLock<Arc<RequestSeries>>,
}

/// Members of a backend at one moment.
#[derive(Default)]
pub struct EndpointSet {
    /// Stable while the set lives.
    pub members: Vec<Arc<Endpoint>>,
    /// How they are chosen from.
    pub order: Order,
}

/// One endpoint, as control describes it, with what was learnt of it.
pub struct Endpoint {
    /// Resource name; for an endpoint found by DNS or by pod address, its address.
    pub name: Arc<str>,
    /// Where it is.
    pub addr: SocketAddr,
    /// Whom it must prove to be. `None`: outside the mesh, spoken to in the clear.
    pub identity: Option<Identity>,
    /// Mesh protocols of its sidecar on this port.
    pub alpn: Alpn,
    /// `NAMESPACE/POD`, or empty.
    pub workload: Arc<str>,
    /// At least 1.
    pub weight: u32,
    /// Leaving: chosen only if no other is left.
    pub draining: bool,
    /// Where it is, and who is to prefer it.
    pub hints: Hints,
    /// Our own application, called by our inbound side: its sockets are told apart for the pod's rules. Never so for what control names.
    pub application: bool,
    /// Survives changes of weight, zone and draining; new if address or identity change.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// An address that nobody has described, spoken to in the clear; of our own `application` or of somebody outside the mesh.
    pub fn plain(addr: SocketAddr, application: bool, now: Duration) -> Self {
        Self {
            name: addr.to_string().into(),
            addr,
            identity: None,
            alpn: Alpn::default(),
            workload: "".into(),
            weight: 1,
            draining: false,
            hints: Hints::default(),
            application,
            state: Arc::new(EndpointState::new(now)),
        }
    }
}

/// Mesh protocols that an endpoint takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alpn {
    /// `weft1-h1`.
    pub h1: bool,
    /// `weft1-h2`.
    pub h2: bool,
    /// `weft1-tcp`.
    pub tcp: bool,
}

/// What was learnt of an endpoint.
pub struct EndpointState {
    /// Its load and health.
    pub load: Load,
    /// Its connections.
    pub pools: PerWorker<Pool>,
    /// When it ends idle ones, unless it is a sidecar.
    pub keepalive: KeepAlive,
    /// Its series, resolved at first use.
    pub series: OnceLock<Arc<RequestSeries>>,
    /// What connections to it were, if it was called by its own address.
    pub habit: Habit,
}

impl EndpointState {
    /// Nothing is known of it yet.
    pub fn new(now: Duration) -> Self {
        Self {
            load: Load::new(now),
            pools: PerWorker::default(),
            keepalive: KeepAlive::default(),
            series: OnceLock::new(),
            habit: Habit::default(),
        }
    }
}

/// What the proxy's own side enforces.
#[derive(Default)]
pub struct Inbound {
    /// `NAMESPACE/POD`.
    pub workload: Arc<str>,
    /// Ports that say something; others have `default`.
    pub ports: HashMap<u16, Arc<InboundPort>>,
    /// For every other port.
    pub default: Arc<InboundPort>,
}

/// One port of the proxy's own workload.
pub struct InboundPort {
    /// How it speaks.
    pub protocol: Protocol,
    /// Mesh TLS only.
    pub strict: bool,
    /// `NAMESPACE/NAME` of the service it backs (the first by name), or empty: the label in metrics.
    pub service: Arc<str>,
    /// Who may.
    pub policies: authz::PolicySet,
    /// How often; the counters survive changes of other things.
    pub limits: Vec<Arc<Limit>>,
}

/// A compiled limit with its counters.
pub struct Limit {
    /// `RateLimitPolicy/NAMESPACE/NAME` and the limit's name.
    pub name: Arc<str>,
    /// What it says, and its counters by key.
    pub limiter: ratelimit::Limiter,
}

impl Default for InboundPort {
    /// Before control has spoken nothing is admitted: strict, deny.
    fn default() -> Self {
        Self {
            protocol: Protocol::Detect,
            strict: true,
            service: "".into(),
            policies: authz::PolicySet::new(Vec::new(), true),
            limits: Vec::new(),
        }
    }
}
