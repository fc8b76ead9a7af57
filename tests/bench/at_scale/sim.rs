//! One simulated proxy: the sidecar's own end of the protocol ([`Machine`]) over a connection of its own. It applies, acknowledges, and after a
//! loss says what it holds, as a sidecar does; what it does not do is carry requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tokio_rustls::TlsConnector;
use weft_api::names::{self, ResourceType};
use weft_api::wire::core::Node;
use weft_api::wire::discovery::{DeltaDiscoveryResponse, Resource};
use weft_api::wire::v1;
use weft_proxy::discovery::machine::{Limits, Machine};

use super::client::Shared;
use super::grpc::{self, Broken, Stream};
use super::world::{self, TRUST_DOMAIN, World};

/// Waits between attempts, as a sidecar has them.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// One of them.
pub struct Proxy {
    index: usize,
    machine: Machine,
    roots: Vec<Arc<str>>,
    node: Node,
    to: SocketAddr,
    tls: TlsConnector,
    in_sync: bool,
}

impl Proxy {
    /// That of a pod of this world, which has not connected yet.
    pub fn new(world: &World, index: usize, to: SocketAddr, tls: TlsConnector) -> Self {
        let (service, member) = world.place(index);
        let (namespace, pod) = (World::namespace(service), World::pod(service, member));
        let (machine, roots) = machine(world, index);
        Self { index, machine, roots, node: node(&format!("{namespace}/{pod}"), index), to, tls, in_sync: false }
    }

    /// Connects, and again after each loss.
    pub async fn keep(mut self, shared: Arc<Shared>) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let ended = self.converse(&shared).await;
            self.machine.closed();
            if self.in_sync {
                backoff = FIRST_BACKOFF;
            }
            self.in_sync = false;
            shared.ended(self.index, &ended);
            tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn converse(&mut self, shared: &Shared) -> Broken {
        match self.stream(shared).await {
            Ok(never) => match never {},
            Err(broken) => broken,
        }
    }

    async fn stream(&mut self, shared: &Shared) -> Result<std::convert::Infallible, Broken> {
        let Ok(handshake) = shared.handshakes.acquire().await else { std::future::pending().await };
        let mut first = self.machine.open(shared.now());
        if let Some(first) = first.first_mut() {
            first.node = Some(self.node.clone());
        }
        let (mut stream, bytes) = grpc::open(self.to, &self.tls, &first).await?;
        drop(handshake);
        shared.counts.lock().sent(first.len(), bytes);
        loop {
            let message = stream.next().await?;
            self.hear(message, &mut stream, shared)?;
        }
    }

    fn hear(&mut self, message: bytes::Bytes, stream: &mut Stream, shared: &Shared) -> Result<(), Broken> {
        let length = message.len() + grpc::PREFIX;
        let response = DeltaDiscoveryResponse::decode(message)?;
        let marks: Vec<Mark> = response.resources.iter().filter_map(|one| Mark::of(one, &response.type_url)).collect();
        let heard = self.machine.hear(response, shared.now());
        let mut bytes = 0;
        for reply in &heard.replies {
            bytes += stream.send(reply)?;
        }
        let at = world::now();
        let mut counts = shared.counts.lock();
        counts.heard(length, &heard);
        counts.sent(heard.replies.len(), bytes);
        for mark in marks {
            if self.in_sync {
                counts.acknowledged(at.saturating_sub(mark.micros), mark.route_bytes);
            }
            if let Some(place) = mark.of {
                shared.holds(self.index, place, mark.micros);
            }
        }
        drop(counts);
        if !self.in_sync && self.is_whole() {
            self.in_sync = true;
            shared.in_sync(self.index, at);
        }
        Ok(())
    }

    /// Everything that was asked for is there.
    fn is_whole(&self) -> bool {
        let table = &self.machine.table;
        self.machine.unanswered().is_none()
            && table.reach(self.roots.iter()).iter().all(|name| table.holds(name))
            && table.collections.values().all(weft_proxy::discovery::table::Collection::is_steady)
    }
}

/// The sidecar's end for a pod of this world, and the names that it asks for.
pub fn machine(world: &World, index: usize) -> (Machine, Vec<Arc<str>>) {
    let (service, member) = world.place(index);
    let own: Arc<str> = names::workload(&World::namespace(service), &World::pod(service, member)).into();
    let mut machine = Machine::new(Arc::clone(&own), TRUST_DOMAIN.into(), Limits::default());
    let mut roots = vec![own, names::MESH_EXTENT.into()];
    for service in world.calls(index) {
        let address: Arc<str> = World::address(service).into();
        machine.subscribe(&address, Duration::ZERO);
        roots.push(address);
    }
    (machine, roots)
}

/// The time at which something that came had been written.
struct Mark {
    micros: u64,
    /// Of an endpoint: which.
    of: Option<(usize, usize)>,
    /// Of a route: how large it is, encoded.
    route_bytes: Option<usize>,
}

impl Mark {
    fn of(resource: &Resource, response: &str) -> Option<Self> {
        let any = resource.resource.as_ref()?;
        let type_url = if any.type_url.is_empty() { response } else { &any.type_url };
        if type_url == v1::Endpoint::TYPE_URL {
            let zone = v1::Endpoint::decode(any.value.as_slice()).ok()?.zone;
            return Some(Self {
                micros: world::read_mark(&zone)?,
                of: World::place_of(&resource.name),
                route_bytes: None,
            });
        }
        if type_url != v1::Route::TYPE_URL {
            return None;
        }
        let route = v1::Route::decode(any.value.as_slice()).ok()?;
        let filters = route.rules.iter().flat_map(|rule| &rule.filters);
        let headers = filters.filter_map(|filter| match filter.filter.as_ref()? {
            v1::filter::Filter::RequestHeaders(edit) => Some(&edit.set),
            _ => None,
        });
        let micros = headers.flatten().find_map(|header| world::read_mark(&header.value))?;
        Some(Self { micros, of: None, route_bytes: Some(any.value.len()) })
    }
}

/// Who it is, for control.
fn node(id: &str, index: usize) -> Node {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let features = weft_api::FEATURES.iter().map(|feature| text(feature)).collect();
    let features = Value { kind: Some(Kind::ListValue(ListValue { values: features })) };
    let fields = [("features".to_owned(), features), ("instance".to_owned(), text(&format!("{index:016x}")))];
    Node {
        id: id.to_owned(),
        metadata: Some(Struct { fields: fields.into_iter().collect() }),
        user_agent_name: "weft-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Node::default()
    }
}
