//! The machine against control's own session: whatever is edited, called, forgotten or cut off, in whatever order messages arrive, both
//! ends agree in the end, and nothing that is held is sent again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use weft_api::convert::{self, Decoded};
use weft_control::compile::{Compiled, compile};
use weft_control::distribute::session::{self, Session, Touched};
use weft_control::model::{
    AuthorizationPolicy, Model, Name, Route, Service, ServiceParent, ServicePort, Slice, SliceEndpoint, Target,
    Workload,
};

use super::super::build::Builder;
use super::super::snapshot::{self, Destination, Snapshot};
use super::*;

/// The last one is of another namespace than our proxy.
const SERVICES: [(&str, &str); 3] = [("shop", "web"), ("shop", "cart"), ("data", "db")];

fn service(which: usize) -> Name {
    Name::new(SERVICES[which].0, SERVICES[which].1)
}

/// What happens.
#[derive(Clone, Debug)]
enum Event {
    /// A service comes, changes or goes.
    Service { which: usize, headless: bool, external: bool, gone: bool },
    /// Its endpoints become these, of the pods with these numbers.
    Endpoints { which: usize, pods: BTreeSet<u8> },
    /// A route from one service to others comes, changes or goes, of the service's own namespace, of ours or of another.
    Route { from: usize, to: Vec<usize>, whose: usize, gone: bool },
    /// A policy on a service comes, changes or goes.
    Policy { on: usize, line: u8, gone: bool },
    /// The application calls an address for the first time.
    Call(usize),
    /// It is forgotten.
    Forget(usize),
    /// So many messages arrive at control, and so many at the proxy.
    Deliver { to_control: usize, to_proxy: usize },
    /// The connection breaks and comes back.
    Cut,
}

fn event() -> impl Strategy<Value = Event> {
    let which = 0..SERVICES.len();
    let gone = prop::bool::weighted(0.2);
    prop_oneof![
        1 => (which.clone(), prop::bool::weighted(0.2), prop::bool::weighted(0.2), gone)
            .prop_map(|(which, headless, external, gone)| Event::Service { which, headless, external, gone }),
        4 => (which.clone(), prop::collection::btree_set(0u8..6, 0..6))
            .prop_map(|(which, pods)| Event::Endpoints { which, pods }),
        2 => (which.clone(), prop::collection::vec(which.clone(), 0..3), 0usize..3, gone)
            .prop_map(|(from, to, whose, gone)| Event::Route { from, to, whose, gone }),
        1 => (which.clone(), any::<u8>(), gone).prop_map(|(on, line, gone)| Event::Policy { on, line, gone }),
        4 => (0..ADDRESSES.len()).prop_map(Event::Call),
        1 => (0..ADDRESSES.len()).prop_map(Event::Forget),
        6 => (0usize..4, 0usize..4).prop_map(|(to_control, to_proxy)| Event::Deliver { to_control, to_proxy }),
        1 => Just(Event::Cut),
    ]
}

/// ClusterIPs, pods, names, and what is nobody's.
const ADDRESSES: [&str; 8] = [
    "10.96.0.0:80",
    "10.96.0.1:80",
    "10.96.0.2:80",
    "10.0.0.1:8080",
    "10.0.0.3:8080",
    "web.shop:80",
    "db.data.svc:80",
    "10.9.9.9:1",
];

struct World {
    model: Model,
    compiled: Compiled,
    session: Session,
    limits: session::Limits,
    machine: Machine,
    builder: Builder,
    snapshot: Snapshot,
    to_control: VecDeque<DeltaDiscoveryRequest>,
    to_proxy: VecDeque<DeltaDiscoveryResponse>,
    called: BTreeSet<&'static str>,
    unneeded: Vec<String>,
}

fn own() -> Name {
    Name::new("shop", "pod-0")
}

impl World {
    fn new(message: usize) -> Self {
        let mut model = Model::default();
        for number in 0..6 {
            let pod = Workload {
                ips: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))],
                service_account: "sa".into(),
                meshed: number % 3 != 2,
                ..Workload::default()
            };
            model.workloads.insert(Name::new("shop", format!("pod-{number}")), pod);
        }
        let limits = session::Limits { message, ..session::Limits::default() };
        let mut world = Self {
            compiled: compile(&model),
            model,
            session: Session::new(own(), limits),
            limits,
            machine: Machine::new("workload/shop/pod-0".into(), "cluster.local".into(), Limits::default()),
            builder: Builder::default(),
            snapshot: Snapshot::default(),
            to_control: VecDeque::new(),
            to_proxy: VecDeque::new(),
            called: BTreeSet::new(),
            unneeded: Vec::new(),
        };
        world.to_control.extend(world.machine.open(NOW));
        world
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Call(at) => {
                self.called.insert(ADDRESSES[*at]);
                self.to_control.extend(self.machine.subscribe(&ADDRESSES[*at].into(), NOW));
            }
            Event::Forget(at) => {
                self.called.remove(ADDRESSES[*at]);
                let said = self.machine.unsubscribe(&[ADDRESSES[*at].into()]);
                self.to_control.extend(said);
                self.snapshot = self.builder.snapshot(&self.machine, NOW);
            }
            Event::Deliver { to_control, to_proxy } => {
                (0..*to_control).for_each(|_| self.control_hears());
                (0..*to_proxy).for_each(|_| self.proxy_hears());
            }
            Event::Cut => {
                self.to_control.clear();
                self.to_proxy.clear();
                self.machine.closed();
                self.session = Session::new(own(), self.limits);
                self.to_control.extend(self.machine.open(NOW));
            }
            edit => {
                self.edit(edit);
                let differences = self.compiled.model().changes_to(&self.model);
                let changes = self.compiled.update(differences, BTreeSet::new());
                self.session.touch(&Touched::all(&changes), NOW);
            }
        }
    }

    fn edit(&mut self, event: &Event) {
        match event {
            Event::Service { which, headless, external, gone } => {
                let port = ServicePort { name: "http".into(), port: 80, ..ServicePort::default() };
                let ip = IpAddr::V4(Ipv4Addr::new(10, 96, 0, u8::try_from(*which).unwrap()));
                let plain = !headless && !external;
                let made = Service {
                    cluster_ips: plain.then_some(ip).into_iter().collect(),
                    headless: *headless && !external,
                    external_name: external.then(|| "example.com".into()),
                    ports: vec![port],
                    ..Service::default()
                };
                put(&mut self.model.services, service(*which), made, *gone);
            }
            Event::Endpoints { which, pods } => {
                let endpoint = |number: &u8| SliceEndpoint {
                    ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, *number)),
                    ready: true,
                    serving: true,
                    terminating: false,
                    workload: Some(Name::new("shop", format!("pod-{number}"))),
                    zone: String::new(),
                    hostname: None,
                    node: String::new(),
                    for_nodes: Vec::new(),
                    for_zones: Vec::new(),
                };
                let slice = Slice {
                    service: service(*which).name,
                    ports: vec![("http".into(), 8080)],
                    endpoints: pods.iter().map(endpoint).collect(),
                };
                put(&mut self.model.slices, service(*which), slice, pods.is_empty());
            }
            Event::Route { from, to, whose, gone } => {
                let backend = |which: &usize| v1::RouteBackend {
                    service: names::service(SERVICES[*which].0, SERVICES[*which].1, 80),
                    weight: 1,
                    ..Default::default()
                };
                let Name { namespace, name } = service(*from);
                let own = Name::new([namespace.as_str(), "shop", "third"][*whose], name.as_str());
                let rule = v1::RouteRule { backends: to.iter().map(backend).collect(), ..Default::default() };
                let made = Route {
                    parents: vec![ServiceParent { namespace, name, ..ServiceParent::default() }],
                    rules: vec![rule],
                    ..Route::default()
                };
                let kind = if to.len() == 1 { "TLSRoute" } else { "HTTPRoute" };
                put(&mut self.model.routes, (kind.into(), own), made, *gone);
            }
            Event::Policy { on, line, gone } => {
                let policy = v1::AuthorizationPolicy {
                    namespace: SERVICES[*on].0.into(),
                    name: SERVICES[*on].1.into(),
                    source: format!("p.yaml:{line}"),
                    ..Default::default()
                };
                let made = AuthorizationPolicy { targets: vec![Target::Service(service(*on).name)], policy };
                put(&mut self.model.authorization, service(*on), made, *gone);
            }
            _ => {}
        }
    }

    fn control_hears(&mut self) {
        if let Some(request) = self.to_control.pop_front() {
            let heard = self.session.hear(request, &self.compiled, NOW).unwrap();
            assert!(heard.nacks.is_empty(), "{:?}", heard.nacks);
        }
        if let Some(response) = self.session.next(&self.compiled, NOW) {
            self.to_proxy.push_back(response);
        }
    }

    fn proxy_hears(&mut self) {
        let Some(response) = self.to_proxy.pop_front() else { return };
        let mut held = self.held();
        // The version of a set that is on its way says nothing yet.
        held.retain(|name, _| {
            self.machine.table.collections.get(name.as_str()).is_none_or(super::super::table::Collection::is_steady)
        });
        let again = response.resources.iter().filter(|one| held.get(&one.name) == Some(&one.version));
        self.unneeded.extend(again.map(|one| format!("{} {}", one.name, one.version)));
        let heard = self.machine.hear(response, NOW);
        assert!(heard.refused.is_empty(), "{:?}", heard.refused);
        let mut structure = heard.structure;
        for head in &heard.collections {
            structure |= !self.builder.update_set(&self.machine, head, NOW);
        }
        if structure {
            self.snapshot = self.builder.snapshot(&self.machine, NOW);
        }
        self.to_control.extend(heard.replies);
    }

    /// Until nobody has anything to say.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let quiet = self.to_control.is_empty() && self.to_proxy.is_empty() && !self.session.has_work();
            if quiet {
                // What was lost when an address was forgotten and called again at once is asked for anew.
                let later = NOW + Duration::from_mins(1);
                self.to_control.extend(self.machine.heal(later));
                if self.to_control.is_empty() {
                    return;
                }
            }
            self.control_hears();
            self.proxy_hears();
        }
        panic!("they talk for ever");
    }

    /// Name and version of everything that control would have us hold.
    fn truth(&self) -> BTreeMap<String, String> {
        let roots = self.called.iter().copied().chain(["mesh-extent", "workload/shop/pod-0"]);
        let all = roots.flat_map(|root| self.compiled.closure(root, "shop"));
        all.map(|(name, resource)| (name.to_string(), resource.version.to_string())).collect()
    }

    fn held(&self) -> BTreeMap<String, String> {
        let table = &self.machine.table;
        let nodes = table.nodes.iter().map(|(name, node)| (name.to_string(), node.version.to_string()));
        let heads = table.collections.iter().map(|(name, set)| (name.to_string(), set.version()));
        let members = table.collections.values().flat_map(|set| &set.members);
        let members = members.map(|(name, member)| (name.to_string(), member.version.to_string()));
        nodes.chain(heads).chain(members).collect()
    }

    /// What the data path sees is what the tables say.
    fn check_snapshot(&self) {
        let by_addr = self.snapshot.by_addr.iter().map(|(addr, entry)| (addr.to_string(), entry));
        let by_host = self.snapshot.by_host.iter().map(|(host, entry)| (host.to_string(), entry));
        let seen: HashMap<String, _> = by_addr.chain(by_host).collect();
        let names: HashSet<&str> = seen.keys().map(String::as_str).collect();
        assert_eq!(names, self.called.iter().copied().collect::<HashSet<_>>());
        for (address, entry) in &seen {
            let told = self.compiled.get(address).unwrap();
            let told = <v1::Address as prost::Message>::decode(told.bytes.clone()).unwrap();
            match (&entry.destination, told.target.unwrap()) {
                (Destination::Outside, v1::address::Target::Outside(_))
                | (
                    Destination::Endpoint(_),
                    v1::address::Target::Workload(_) | v1::address::Target::HeadlessMember(_),
                ) => {}
                (Destination::Service(service), v1::address::Target::Service(name)) => {
                    assert_eq!(*service.name, name);
                    self.check_routes(service);
                    for backend in service.backends.values().chain([&service.own]) {
                        let set = backend.endpoints.load();
                        let seen: BTreeSet<&str> = set.members.iter().map(|member| &*member.name).collect();
                        let truth = self.compiled.collection(&names::endpoints_of(&backend.name));
                        let truth: BTreeSet<&str> =
                            truth.into_iter().flat_map(|set| set.members.keys()).map(|name| &**name).collect();
                        assert_eq!(seen, if backend.external.is_some() { BTreeSet::new() } else { truth }, "{address}");
                    }
                }
                (_, told) => panic!("{address} means {told:?}"),
            }
        }
    }
}

impl World {
    /// Requests and connections are taken by the routes that are ours for this service.
    fn check_routes(&self, seen: &snapshot::Service) {
        let decoded = |name: &str| {
            let resource = self.compiled.get(name).unwrap();
            convert::decode(resource.type_url, &resource.bytes, "cluster.local").unwrap()
        };
        let Decoded::Service(told) = decoded(&seen.name) else { panic!() };
        let own = match told.consumer("shop").map(|name| decoded(&name)) {
            Some(Decoded::Consumer(consumer)) => consumer.routes,
            _ => Vec::new(),
        };
        let wanted: BTreeSet<_> = if own.is_empty() { told.routes } else { own }.into_iter().collect();
        let requests = seen.table.iter().flat_map(|table| table.rules());
        let connections = seen.connections.iter().flat_map(|table| table.rules());
        let rules: BTreeSet<_> = requests.chain(connections).map(|rule| Arc::clone(&rule.route)).collect();
        assert_eq!(rules, wanted, "{}", seen.name);
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V, gone: bool) {
    if gone {
        map.remove(&key);
    } else {
        map.insert(key, value);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn both_ends_agree(
        events in prop::collection::vec(event(), 1..40), message in prop_oneof![Just(300usize), Just(100_000)],
        meanwhile in event(),
    ) {
        let mut world = World::new(message);
        for event in &events {
            world.happen(event);
        }
        world.settle();
        prop_assert_eq!(world.held(), world.truth());
        prop_assert!(world.machine.table.collections.values().all(super::super::table::Collection::is_steady));
        world.check_snapshot();
        // An answer may be on its way while its address is forgotten and called again; what is claimed on a new stream is believed
        // only as long as nothing changes.
        if !events.iter().any(|event| matches!(event, Event::Forget(_) | Event::Cut)) {
            prop_assert!(world.unneeded.is_empty(), "sent though held: {:?}", world.unneeded);
        }
        // Cut off when all is quiet: nothing is sent again, but for what is edited meanwhile.
        let before = world.truth();
        world.happen(&meanwhile);
        world.happen(&Event::Cut);
        let mut sent = BTreeSet::new();
        for _ in 0..200 {
            world.control_hears();
            sent.extend(world.to_proxy.iter().flat_map(|response| &response.resources).map(|one| one.name.clone()));
            world.proxy_hears();
        }
        let after = world.truth();
        let edited = after.iter().filter(|(name, version)| before.get(*name) != Some(*version));
        let edited: BTreeSet<String> = edited.map(|(name, _)| name.clone()).collect();
        if !matches!(meanwhile, Event::Call(_) | Event::Forget(_) | Event::Deliver { .. } | Event::Cut) || edited.is_empty() {
            prop_assert_eq!(sent, edited);
        }
        prop_assert_eq!(world.held(), after);
    }
}
