//! From the tables to what the data path looks at.
//!
//! Invariants
//! - What did not change keeps its very allocation: services, backends, endpoints with their load and connections, limits with their
//!   counters.
//! - Never half: a destination is there once everything that it needs is; while a change of it is on its way the one before it stays.
//! - A change of one endpoint replaces one [`EndpointSet`] and nothing else.
//! - Plain endpoints that were read from old files are left out until control has confirmed them: their addresses may have been given
//!   to others.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use weft_api::convert::{self, Address, Decoded};
use weft_api::names;
use weft_engine::balance::{Place, Spread, arrange};
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;
use weft_engine::retry::Budget;
use weft_engine::route::Tables;
use xxhash_rust::xxh3::Xxh3;

use super::inbound::InboundBuilder;
use super::machine::Machine;
use super::snapshot::{
    Alpn, Backend, Destination, Endpoint, EndpointSet, EndpointState, Entry, Protocol, Service, Snapshot,
};
use super::table::Collection;
use crate::detect::Habit;

/// Names and versions, as one number.
#[derive(Default)]
pub struct Fingerprint(Xxh3);

impl Fingerprint {
    /// Adds a name with its version, in order.
    pub fn add(&mut self, name: &str, version: &str) {
        self.0.update(name.as_bytes());
        self.0.update(&[0]);
        self.0.update(version.as_bytes());
        self.0.update(&[0]);
    }

    /// The number.
    pub fn finish(&self) -> u128 {
        self.0.digest128()
    }
}

/// Makes snapshots, and remembers what it made.
#[derive(Default)]
pub struct Builder {
    backends: HashMap<Arc<str>, Arc<Backend>>,
    services: HashMap<Arc<str>, (u128, Arc<Service>)>,
    entries: HashMap<Arc<str>, Arc<Entry>>,
    pods: HashMap<Arc<str>, (Arc<str>, Arc<Endpoint>)>,
    /// Where this proxy is, and whose.
    place: Place,
    client: Arc<str>,
    /// Some destination was not made, or not anew, for want of something that is on its way.
    incomplete: bool,
    /// The proxy's own side.
    pub inbound: InboundBuilder,
}

impl Builder {
    /// An endpoint set changed: swaps it. False if something may have waited for it, so that a snapshot has to be made.
    pub fn update_set(&mut self, machine: &Machine, head: &str, now: Duration) -> bool {
        let Some(set) = machine.table.collections.get(head).filter(|set| set.is_steady()) else { return true };
        let backend = self.backends.get(&*names::service_of(head));
        // One that was an ExternalName until now takes no members: another backend will.
        let Some(backend) = backend.filter(|backend| backend.external.is_none()) else {
            return !self.incomplete;
        };
        let members = members(set, &backend.endpoints.load(), !machine.confirmed(), now);
        backend.endpoints.store(Arc::new(self.arranged(members, backend.spread)));
        true
    }

    fn arranged(&self, mut members: Vec<Arc<Endpoint>>, spread: Spread) -> EndpointSet {
        let order = arrange(&mut members, &self.place, &self.client, spread);
        EndpointSet { members, order }
    }

    /// Where this proxy is. Sets that were made for another place are made anew.
    fn stand(&mut self, machine: &Machine, now: Duration) {
        let Some(own) = machine.own() else { return };
        if self.place == own.place && self.client == own.name {
            return;
        }
        self.place.clone_from(&own.place);
        self.client = Arc::clone(&own.name);
        let heads: Vec<String> = self.backends.keys().map(|name| names::endpoints_of(name)).collect();
        for head in heads {
            self.update_set(machine, &head, now);
        }
    }

    /// A snapshot of everything, sharing what did not change.
    pub fn snapshot(&mut self, machine: &Machine, now: Duration) -> Snapshot {
        self.inbound.update(machine);
        self.stand(machine, now);
        self.incomplete = false;
        let mut snapshot = Snapshot::default();
        if let Some(Decoded::MeshExtent(ranges)) = machine.table.decoded(names::MESH_EXTENT) {
            snapshot.extent.clone_from(ranges);
            snapshot.extent_known = true;
        }
        if let Some(inbound) = self.inbound.current() {
            snapshot.inbound = Arc::clone(inbound);
        }
        let mut entries = HashMap::with_capacity(machine.addresses().len());
        for (name, root) in machine.addresses() {
            match self.destination(machine, name, now) {
                Ok(Some(destination)) => {
                    let entry = self.entry(name, destination, root.since);
                    match name.parse::<SocketAddr>() {
                        Ok(addr) => snapshot.by_addr.insert(addr, Arc::clone(&entry)),
                        Err(_) => snapshot.by_host.insert(Arc::clone(name), Arc::clone(&entry)),
                    };
                    entries.insert(Arc::clone(name), entry);
                }
                Ok(None) => {}
                Err(reason) => {
                    snapshot.refused.insert(Arc::clone(name), reason);
                }
            }
        }
        self.entries = entries;
        self.forget();
        snapshot
    }

    /// When an address was last called, by the clock that the entry was touched with.
    pub fn last_used(&self, name: &str) -> Option<Duration> {
        self.entries.get(name).map(|entry| Duration::from_secs(entry.last_used.load(Ordering::Relaxed)))
    }

    fn entry(&self, name: &Arc<str>, destination: Destination, since: Duration) -> Arc<Entry> {
        match self.entries.get(name) {
            Some(entry) if same(&entry.destination, &destination) => Arc::clone(entry),
            before => {
                let used = before.map_or(since.as_secs(), |entry| entry.last_used.load(Ordering::Relaxed));
                Arc::new(Entry { destination, last_used: AtomicU64::new(used) })
            }
        }
    }

    /// What an address means; `None` while it is not known, or not in full and nothing is known from before.
    fn destination(
        &mut self,
        machine: &Machine,
        name: &Arc<str>,
        now: Duration,
    ) -> Result<Option<Destination>, Reason> {
        let before = |this: &Self| this.entries.get(name).map(|entry| entry.destination.clone());
        match machine.table.nodes.get(name).map(|node| (&node.version, &node.decoded)) {
            Some((_, Decoded::Address(Address::Outside { .. }))) => Ok(Some(Destination::Outside)),
            Some((version, Decoded::Address(Address::Workload(pod) | Address::HeadlessMember(pod)))) => {
                if pod.identity.is_none() && !machine.confirmed() {
                    return Ok(None);
                }
                Ok(Some(Destination::Endpoint(self.pod(name, version, pod, now))))
            }
            Some((_, Decoded::Address(Address::Service(service)))) => match self.service(machine, service, now) {
                Ok(Some(service)) => Ok(Some(Destination::Service(service))),
                Ok(None) => Ok(before(self)),
                Err(reason) => before(self).map(Some).ok_or(reason),
            },
            _ => machine.refusal(name).map_or(Ok(None), |error| Err(reason_of(error))),
        }
    }

    fn pod(&mut self, name: &Arc<str>, version: &Arc<str>, pod: &convert::Endpoint, now: Duration) -> Arc<Endpoint> {
        let before = self.pods.get(name);
        if let Some((held, endpoint)) = before
            && held == version
        {
            return Arc::clone(endpoint);
        }
        let state = before.filter(|(_, old)| is_same_place(old, pod)).map(|(_, old)| Arc::clone(&old.state));
        let label: Arc<str> = pod.addr.to_string().into();
        let made = Arc::new(endpoint(&label, pod, state, now));
        self.pods.insert(Arc::clone(name), (Arc::clone(version), Arc::clone(&made)));
        made
    }

    /// A service with all that it needs; `None` while something is on its way and nothing was made before.
    fn service(&mut self, machine: &Machine, name: &Arc<str>, now: Duration) -> Result<Option<Arc<Service>>, Reason> {
        let before = self.services.get(name).map(|(print, service)| (*print, Arc::clone(service)));
        let parts = match parts(machine, name) {
            Ok(parts) => parts,
            Err(Missing::OnItsWay) => {
                self.incomplete = true;
                return Ok(before.map(|(_, service)| service));
            }
            Err(Missing::Refused(reason)) => return before.map(|(_, service)| Some(service)).ok_or(reason),
        };
        if let Some((print, service)) = &before
            && *print == parts.print
        {
            return Ok(Some(Arc::clone(service)));
        }
        let mut backend = |told: &convert::Service| Some((Arc::clone(&told.name), self.backend(machine, told, now)?));
        let backends: Option<HashMap<_, _>> = parts.backends.into_iter().map(&mut backend).collect();
        let (Some(backends), Some((_, own))) = (backends, backend(parts.own)) else {
            self.incomplete = true;
            return Ok(before.map(|(_, service)| service));
        };
        let tables = Tables::new(parts.routes.into_iter().cloned().collect());
        let service = Arc::new(Service {
            name: Arc::clone(name),
            protocol: protocol(parts.own.protocol),
            headless: parts.own.headless,
            table: tables.requests.map(Arc::new),
            connections: tables.connections.map(Arc::new),
            own,
            backends,
        });
        self.services.insert(Arc::clone(name), (parts.print, Arc::clone(&service)));
        Ok(Some(service))
    }

    /// A backend whose endpoints are known; the one made before unless it names another place.
    fn backend(&mut self, machine: &Machine, told: &convert::Service, now: Duration) -> Option<Arc<Backend>> {
        let external = told.external_name.as_ref().map(|host| (Arc::clone(host), told.port));
        if let Some(backend) = self.backends.get(&told.name)
            && backend.external == external
            && backend.spread == told.spread
        {
            return Some(Arc::clone(backend));
        }
        let members = match &external {
            Some(_) => Vec::new(),
            None => {
                let set = machine.table.collections.get(&*names::endpoints_of(&told.name))?;
                if !set.is_steady() {
                    return None;
                }
                members(set, &EndpointSet::default(), !machine.confirmed(), now)
            }
        };
        let backend = Arc::new(Backend {
            name: Arc::clone(&told.name),
            label: format!("{}/{}", told.namespace, told.service).into(),
            sni: format!("{}.{}.{}.weft", told.service, told.namespace, told.port).into(),
            external,
            spread: told.spread,
            endpoints: ArcSwap::from_pointee(self.arranged(members, told.spread)),
            habit: Habit::default(),
            retries: Budget::default(),
            unassigned: OnceLock::new(),
        });
        self.backends.insert(Arc::clone(&told.name), Arc::clone(&backend));
        Some(backend)
    }

    /// Forgets what no entry uses any more.
    fn forget(&mut self) {
        let used = self.entries.values().filter_map(|entry| match &entry.destination {
            Destination::Service(service) => Some(service),
            _ => None,
        });
        let mut services = HashSet::new();
        let mut backends = HashSet::new();
        for service in used {
            services.insert(Arc::clone(&service.name));
            backends.extend(service.backends.keys().cloned());
            backends.insert(Arc::clone(&service.own.name));
        }
        self.services.retain(|name, _| services.contains(name));
        self.backends.retain(|name, _| backends.contains(name));
        self.pods.retain(|name, _| self.entries.contains_key(name));
    }
}

/// What a service is made of.
struct Parts<'m> {
    print: u128,
    own: &'m convert::Service,
    routes: Vec<&'m weft_engine::route::Route>,
    backends: Vec<&'m convert::Service>,
}

enum Missing {
    OnItsWay,
    Refused(Reason),
}

fn parts<'m>(machine: &'m Machine, name: &Arc<str>) -> Result<Parts<'m>, Missing> {
    let mut print = Fingerprint::default();
    let mut find = |name: &str| match machine.table.nodes.get(name) {
        Some(node) => {
            print.add(name, &node.version);
            Ok(&node.decoded)
        }
        None => Err(machine.refusal(name).map_or(Missing::OnItsWay, |error| Missing::Refused(reason_of(error)))),
    };
    let Decoded::Service(own) = find(name)? else { return Err(Missing::OnItsWay) };
    let mut names = &own.routes;
    if let Some(consumer) = own.consumer(&machine.table.namespace) {
        let Decoded::Consumer(consumer) = find(&consumer)? else { return Err(Missing::OnItsWay) };
        if !consumer.routes.is_empty() {
            names = &consumer.routes;
        }
    }
    let mut routes = Vec::with_capacity(names.len());
    for route in names {
        let Decoded::Route(route) = find(route)? else { return Err(Missing::OnItsWay) };
        routes.push(route);
    }
    let named = routes.iter().flat_map(|route| &route.rules).flat_map(weft_engine::route::Rule::services);
    let mut backends: Vec<&convert::Service> = Vec::new();
    for name in named {
        if backends.iter().any(|known| known.name == *name) {
            continue;
        }
        let Decoded::Service(service) = find(name)? else { return Err(Missing::OnItsWay) };
        backends.push(service);
    }
    Ok(Parts { print: print.finish(), own, routes, backends })
}

/// The code for an address that this build cannot serve.
fn reason_of(error: &convert::ResourceError) -> Reason {
    match error.code {
        convert::ErrorCode::UnsupportedFeature | convert::ErrorCode::UnknownValue | convert::ErrorCode::UnknownType => {
            Reason::PolicyUnsupported
        }
        _ => Reason::InvalidBackend,
    }
}

fn same(one: &Destination, two: &Destination) -> bool {
    match (one, two) {
        (Destination::Service(one), Destination::Service(two)) => Arc::ptr_eq(one, two),
        (Destination::Endpoint(one), Destination::Endpoint(two)) => Arc::ptr_eq(one, two),
        (Destination::Outside, Destination::Outside) => true,
        _ => false,
    }
}

/// Where an endpoint is, and who: what decides whether something learnt of it holds.
type Whereabouts<'e> = (SocketAddr, Option<&'e Identity>);

/// Members of a set as the data path uses them. One that is in the set before it, unchanged, stays the very same.
fn members(set: &Collection, before: &EndpointSet, hide_plain: bool, now: Duration) -> Vec<Arc<Endpoint>> {
    let by_name: HashMap<&str, &Arc<Endpoint>> = before.members.iter().map(|old| (&*old.name, old)).collect();
    // Endpoints get new names when slices are rewritten: their place tells them then. Made only if it is needed.
    let by_place: OnceLock<HashMap<Whereabouts<'_>, &Arc<Endpoint>>> = OnceLock::new();
    let made = set.members.iter().filter(|(_, member)| !hide_plain || member.endpoint.identity.is_some());
    let made = made.map(|(name, member)| {
        let told = &member.endpoint;
        match by_name.get(&**name) {
            Some(old) if is_same(old, told) => Arc::clone(old),
            Some(old) if is_same_place(old, told) => Arc::new(endpoint(name, told, Some(Arc::clone(&old.state)), now)),
            _ => {
                let places = by_place.get_or_init(|| {
                    before.members.iter().map(|old| ((old.addr, old.identity.as_ref()), old)).collect()
                });
                let state = places.get(&(told.addr, told.identity.as_ref())).map(|old| Arc::clone(&old.state));
                Arc::new(endpoint(name, told, state, now))
            }
        }
    });
    made.collect()
}

fn is_same_place(old: &Endpoint, told: &convert::Endpoint) -> bool {
    old.addr == told.addr && old.identity == told.identity
}

fn is_same(old: &Endpoint, told: &convert::Endpoint) -> bool {
    is_same_place(old, told)
        && old.alpn == alpn(told.alpn)
        && old.workload == told.workload
        && old.weight == told.weight
        && old.draining == told.draining
        && old.hints == told.hints
}

fn endpoint(name: &Arc<str>, told: &convert::Endpoint, state: Option<Arc<EndpointState>>, now: Duration) -> Endpoint {
    Endpoint {
        name: Arc::clone(name),
        addr: told.addr,
        identity: told.identity.clone(),
        alpn: alpn(told.alpn),
        workload: Arc::clone(&told.workload),
        weight: told.weight,
        draining: told.draining,
        hints: told.hints.clone(),
        application: false,
        state: state.unwrap_or_else(|| Arc::new(EndpointState::new(now))),
    }
}

fn alpn(told: convert::Alpn) -> Alpn {
    Alpn { h1: told.h1, h2: told.h2, tcp: told.tcp }
}

/// How a port speaks.
pub fn protocol(told: convert::Protocol) -> Protocol {
    match told {
        convert::Protocol::Detect => Protocol::Detect,
        convert::Protocol::Http1 => Protocol::Http1,
        convert::Protocol::Http2 => Protocol::Http2,
        convert::Protocol::Tcp => Protocol::Tcp,
    }
}
