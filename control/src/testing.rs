//! Models for tests: a small shop, and random edits of a small universe.

pub mod cluster;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_api::names;
use weft_api::wire::v1;

use crate::model::{
    AuthorizationPolicy, Change, Distribution, ForeignRef, Grant, Granted, Model, Name, Namespace, Node,
    RateLimitPolicy, Route, SYSTEM_NAMESPACE, Service, ServiceParent, ServicePort, Slice, SliceEndpoint, Target,
    Workload,
};

/// Nothing said, strict or permissive.
fn mode(number: u8) -> Option<bool> {
    [None, Some(true), Some(false)][usize::from(number % 3)]
}

/// `10.A.B.C`.
pub fn ip(a: u8, b: u8, c: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, a, b, c))
}

pub fn port(name: &str, port: u16) -> ServicePort {
    ServicePort { name: name.to_owned(), port, protocol: v1::Protocol::Http1 }
}

pub fn service(last: u8) -> Service {
    Service { cluster_ips: vec![ip(96, 0, last)], ports: vec![port("http", 80)], ..Service::default() }
}

pub fn pod(last: u8) -> Workload {
    let service_account = "web".to_owned();
    Workload { ips: vec![ip(0, 0, last)], service_account, meshed: true, ..Workload::default() }
}

pub fn ready(last: u8, pod: Option<&str>) -> SliceEndpoint {
    SliceEndpoint {
        ip: ip(0, 0, last),
        ready: true,
        serving: true,
        terminating: false,
        workload: pod.map(|pod| Name::new("shop", pod)),
        zone: String::new(),
        hostname: None,
        node: String::new(),
        for_nodes: Vec::new(),
        for_zones: Vec::new(),
    }
}

pub fn slice(service: &str, endpoints: Vec<SliceEndpoint>) -> Slice {
    Slice { service: service.to_owned(), ports: vec![("http".to_owned(), 8080)], endpoints }
}

pub fn name(name: &str) -> Name {
    Name::new("shop", name)
}

pub fn parent_of(service: &str) -> ServiceParent {
    ServiceParent { namespace: "shop".to_owned(), name: service.to_owned(), ..ServiceParent::default() }
}

/// `shop/web` with the pods web-1 and web-2, and `shop/cart` with cart-1.
pub fn shop() -> Model {
    let mut model = Model::default();
    model.services.insert(name("web"), service(1));
    model.services.insert(name("cart"), service(2));
    for (pod_name, last) in [("web-1", 1), ("web-2", 2), ("cart-1", 3)] {
        model.workloads.insert(name(pod_name), pod(last));
    }
    let endpoints = vec![ready(1, Some("web-1")), ready(2, Some("web-2"))];
    model.slices.insert(name("web-x"), slice("web", endpoints));
    model.slices.insert(name("cart-x"), slice("cart", vec![ready(3, Some("cart-1"))]));
    model
}

/// One random edit, from five random bytes.
pub fn edit(model: &mut Model, bytes: [u8; 5]) {
    model.apply(change(bytes));
}

/// One random change, from five random bytes. The universe is small, so that changes meet.
pub fn change([what, which, one, two, three]: [u8; 5]) -> Change {
    let gone = three.is_multiple_of(5);
    let service_name = some_service(which);
    let policy_name = name(&format!("policy-{}", which % 2));
    match what % 9 {
        0 => Change::Service(service_name, (!gone).then(|| random_service(which % 5, one, two))),
        1 | 2 => {
            let namespace = if which % 6 == 5 { "other" } else { "shop" };
            let key = Name::new(namespace, format!("slice-{}", which % 6));
            Change::Slice(key, (!gone).then(|| random_slice(one, two, three)))
        }
        3 | 4 => {
            let number = which % 5;
            let namespace = if which.is_multiple_of(16) { "other" } else { "shop" };
            let key = Name::new(namespace, format!("pod-{number}"));
            Change::Workload(key, (!gone).then(|| random_workload(number, one, two, three)))
        }
        5 => {
            let kind = ["HTTPRoute", "TLSRoute", "TCPRoute", "GRPCRoute"][usize::from(which / 4 % 4)];
            let namespace = ["shop", "shop", "other", "third"][usize::from(which % 4)];
            let key = (kind.to_owned(), Name::new(namespace, format!("route-{}", which % 3)));
            Change::Route(key, (!gone).then(|| random_route(one, two, three)))
        }
        6 if which % 4 == 3 => {
            let zone = format!("zone-{}", one % 3);
            Change::Node(format!("node-{}", two % 3), (!gone).then_some(Node { zone }))
        }
        6 => {
            let posture = Namespace {
                strict: mode(one),
                default_deny: two.is_multiple_of(2),
                mesh_strict: mode(three),
                ..Namespace::default()
            };
            let name = if two % 4 < 2 { "shop" } else { SYSTEM_NAMESPACE };
            Change::Namespace(name.to_owned(), (!gone).then_some(posture))
        }
        7 => {
            let kind = ["HTTPRoute", "TLSRoute"][usize::from(one % 2)];
            let from = vec![(kind.to_owned(), ["shop", "third"][usize::from(two.is_multiple_of(8))].to_owned())];
            let to = vec![if two.is_multiple_of(3) { Granted::Services } else { Granted::One("far".to_owned()) }];
            let key = Name::new("other", format!("grant-{}", which % 2));
            Change::Grant(key, (!gone).then_some(Grant { from, to }))
        }
        _ if two.is_multiple_of(2) => {
            let policy = v1::AuthorizationPolicy { source: format!("f:{three}"), ..Default::default() };
            let made = AuthorizationPolicy { targets: random_targets(one), policy };
            Change::Authorization(policy_name, (!gone).then_some(made))
        }
        _ => {
            let policy = v1::RateLimitPolicy { source: format!("f:{three}"), ..Default::default() };
            let made = RateLimitPolicy { targets: random_targets(one), policy };
            Change::RateLimit(policy_name, (!gone).then_some(made))
        }
    }
}

fn some_service(number: u8) -> Name {
    let (namespace, service) =
        [("shop", "web"), ("shop", "cart"), ("shop", "db"), ("shop", "ext"), ("other", "far")][usize::from(number % 5)];
    Name::new(namespace, service)
}

fn random_targets(one: u8) -> Vec<Target> {
    let service = |name: &str| Target::Service(name.to_owned());
    match one % 4 {
        0 => vec![Target::Namespace],
        1 => vec![service("web")],
        2 => vec![Target::Namespace, service("web")],
        _ => vec![service("cart"), service("db")],
    }
}

fn random_workload(number: u8, one: u8, two: u8, three: u8) -> Workload {
    let mut ips = vec![ip(0, 0, number + one % 2 * 100)];
    match one % 7 {
        // An address that others have too, and at which an endpoint stands that names nobody.
        0 => ips = vec![ip(0, 0, 4)],
        1 => ips.push(ip6(number)),
        _ => {}
    }
    Workload {
        uid: format!("u{}", three % 3),
        ips,
        service_account: ["web", "cart"][usize::from(two % 2)].to_owned(),
        meshed: !two.is_multiple_of(3),
        terminating: three % 4 == 1,
        strict: mode(one),
        node: if two % 4 == 3 { String::new() } else { format!("node-{}", two % 4) },
        strict_ports: (0..two % 3).map(|port| (8080 + u16::from(port), three.is_multiple_of(2))).collect(),
    }
}

/// `fd00::NUMBER`.
pub fn ip6(number: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()))
}

fn random_service(which: u8, one: u8, two: u8) -> Service {
    let mut ports = vec![port("http", 80)];
    if one.is_multiple_of(2) {
        ports.push(port(if one.is_multiple_of(4) { "more" } else { "named" }, 81));
    }
    // Two may claim one address.
    let last = if two % 16 == 15 { 0 } else { which };
    let distribution = [None, None, Some(Distribution::Zone), Some(Distribution::Node)][usize::from(one / 4 % 4)];
    let spread =
        Service { distribution, node_local: one % 16 == 5, sticky: one % 16 == 9, ports, ..Service::default() };
    match two % 5 {
        0 => Service { headless: true, ..spread },
        1 => Service { external_name: Some(format!("{one}.example.com")), ..spread },
        _ => Service { cluster_ips: vec![ip(96, 0, last)], ..spread },
    }
}

fn random_slice(one: u8, two: u8, three: u8) -> Slice {
    let service = ["web", "cart", "db", "far"][usize::from(one % 4)];
    let mut endpoints: Vec<SliceEndpoint> = (0..5u8)
        .filter(|bit| two & (1 << bit) != 0)
        .map(|bit| SliceEndpoint {
            ready: three & (1 << bit) != 0,
            terminating: one & (1 << bit) != 0,
            hostname: (bit == 0).then(|| "first".to_owned()),
            zone: if bit == 1 { format!("zone-{}", three % 3) } else { String::new() },
            node: if bit == 2 { format!("node-{}", three % 3) } else { String::new() },
            for_zones: if bit == 3 { vec![format!("zone-{}", three % 3)] } else { Vec::new() },
            ..ready(bit, (bit != 4).then(|| format!("pod-{bit}")).as_deref())
        })
        .collect();
    if let Some(first) = endpoints.first().cloned() {
        match one / 64 {
            // The same pod at another address, one of the other family, and somebody nameless where a pod stands.
            0 => endpoints.push(SliceEndpoint { ip: ip(0, 0, 50), ..first }),
            1 => endpoints.push(SliceEndpoint { ip: ip6(three % 4), ..first }),
            2 => endpoints.insert(0, SliceEndpoint { ready: true, ..ready(two % 5, None) }),
            _ => endpoints.push(SliceEndpoint { workload: Some(Name::new("other", "pod-0")), ..first }),
        }
    }
    let mut slice = slice(service, endpoints);
    slice.ports.push((if three.is_multiple_of(2) { "more" } else { "named" }.to_owned(), 8081));
    if three % 8 == 7 {
        slice.ports.push(("http".to_owned(), 9090));
    }
    slice
}

fn random_route(one: u8, two: u8, three: u8) -> Route {
    let backend = |number: u8| {
        let Name { namespace, name } = some_service(number);
        v1::RouteBackend {
            service: names::service(&namespace, &name, 80 + u16::from(number % 3)),
            ..Default::default()
        }
    };
    let copy = v1::Mirror { service: backend(one).service, numerator: 1, denominator: 1, ..Default::default() };
    let copy = one.is_multiple_of(2).then_some(v1::Filter { filter: Some(v1::filter::Filter::Mirror(copy)) });
    let filters: Vec<v1::Filter> = copy.into_iter().collect();
    let rule = v1::RouteRule { backends: vec![backend(two), backend(three)], filters, ..Default::default() };
    let foreign = [one, two, three].into_iter().filter(|number| number % 5 == 4);
    let foreign =
        foreign.map(|_| ForeignRef { namespace: "other".to_owned(), name: "far".to_owned(), ..ForeignRef::default() });
    // One of them is of another namespace than the route.
    let parent = |number: u8| match ["web", "cart", "db", "far"][usize::from(number % 4)] {
        "far" => ServiceParent { namespace: "other".to_owned(), ..parent_of("far") },
        own => parent_of(own),
    };
    let mut parents = vec![ServiceParent { port: one.is_multiple_of(2).then_some(80), ..parent(one) }];
    if one.is_multiple_of(3) {
        parents.push(ServiceParent { section: Some("named".to_owned()), ..parent(two) });
    }
    Route { parents, foreign: foreign.collect(), rules: vec![rule], created: u64::from(three % 2), ..Route::default() }
}
