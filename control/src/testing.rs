//! Models for tests: a small shop, and random edits of a small universe.

pub mod cluster;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use weft_api::names;
use weft_api::wire::v1;

use crate::model::{
    AuthorizationPolicy, Model, Name, Namespace, RateLimitPolicy, Route, SYSTEM_NAMESPACE, Service, ServiceParent,
    ServicePort, Slice, SliceEndpoint, Target, Workload,
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
    }
}

pub fn slice(service: &str, endpoints: Vec<SliceEndpoint>) -> Slice {
    Slice { service: service.to_owned(), ports: vec![("http".to_owned(), 8080)], endpoints }
}

pub fn name(name: &str) -> Name {
    Name::new("shop", name)
}

pub fn parent_of(service: &str) -> ServiceParent {
    ServiceParent { name: service.to_owned(), ..ServiceParent::default() }
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

/// One random edit, from five random bytes. The universe is small, so that edits meet.
pub fn edit(model: &mut Model, [what, which, one, two, three]: [u8; 5]) {
    let service_name = name(["web", "cart", "db", "ext"][usize::from(which % 4)]);
    let pod_number = which % 5;
    let pod_name = name(&format!("pod-{pod_number}"));
    let route_kind = ["HTTPRoute", "TLSRoute", "TCPRoute"][usize::from(which % 3)];
    let route_key = (route_kind.to_owned(), name(&format!("route-{}", which % 3)));
    let policy_name = name(&format!("policy-{}", which % 2));
    let gone = three % 5 == 0;
    match what % 7 {
        0 => put(&mut model.services, service_name, random_service(which % 4, one, two), gone),
        1 | 2 => {
            let key = name(&format!("slice-{}", which % 6));
            put(&mut model.slices, key, random_slice(one, two, three), gone);
        }
        3 => {
            let found = Workload {
                ips: vec![ip(0, 0, pod_number + one % 2 * 100)],
                service_account: ["web", "cart"][usize::from(two % 2)].to_owned(),
                meshed: two % 3 != 0,
                terminating: three % 4 == 1,
                strict: mode(one),
                strict_ports: (0..two % 3).map(|port| (8080 + u16::from(port), three % 2 == 0)).collect(),
                ..Workload::default()
            };
            put(&mut model.workloads, pod_name, found, gone);
        }
        4 => put(&mut model.routes, route_key, random_route(one, two, three), gone),
        5 => {
            let posture = Namespace { strict: mode(one), default_deny: two % 2 == 0, mesh_strict: mode(three) };
            let name = if two % 4 < 2 { "shop" } else { SYSTEM_NAMESPACE };
            put(&mut model.namespaces, name.to_owned(), posture, gone);
        }
        _ => {
            let targets = match one % 3 {
                0 => vec![Target::Namespace],
                1 => vec![Target::Service("web".to_owned())],
                _ => vec![Target::Service("cart".to_owned()), Target::Service("db".to_owned())],
            };
            if two % 2 == 0 {
                let policy = v1::AuthorizationPolicy { source: format!("f:{three}"), ..Default::default() };
                put(&mut model.authorization, policy_name, AuthorizationPolicy { targets, policy }, gone);
            } else {
                let policy = v1::RateLimitPolicy { source: format!("f:{three}"), ..Default::default() };
                put(&mut model.rate_limits, policy_name, RateLimitPolicy { targets, policy }, gone);
            }
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V, gone: bool) {
    if gone {
        map.remove(&key);
    } else {
        map.insert(key, value);
    }
}

fn random_service(which: u8, one: u8, two: u8) -> Service {
    let mut ports = vec![port("http", 80)];
    if one.is_multiple_of(2) {
        ports.push(port("more", 81));
    }
    match two % 5 {
        0 => Service { headless: true, ports, ..Service::default() },
        1 => Service { external_name: Some(format!("{one}.example.com")), ports, ..Service::default() },
        _ => Service { cluster_ips: vec![ip(96, 0, which)], ports, ..Service::default() },
    }
}

fn random_slice(one: u8, two: u8, three: u8) -> Slice {
    let service = ["web", "cart", "db"][usize::from(one % 3)];
    let endpoints = (0..5u8).filter(|bit| two & (1 << bit) != 0).map(|bit| SliceEndpoint {
        ready: three & (1 << bit) != 0,
        terminating: one & (1 << bit) != 0,
        hostname: (bit == 0).then(|| "first".to_owned()),
        ..ready(bit, (bit != 4).then(|| format!("pod-{bit}")).as_deref())
    });
    let mut slice = slice(service, endpoints.collect());
    slice.ports.push(("more".to_owned(), 8081));
    slice
}

fn random_route(one: u8, two: u8, three: u8) -> Route {
    let backend = |number: u8| {
        let service = ["web", "cart", "db", "ext"][usize::from(number % 4)];
        v1::RouteBackend { service: names::service("shop", service, 80 + u16::from(number % 3)), ..Default::default() }
    };
    let rule = v1::RouteRule { backends: vec![backend(two), backend(three)], ..Default::default() };
    let parent = ["web", "cart", "db"][usize::from(one % 3)];
    let parents = vec![ServiceParent { port: one.is_multiple_of(2).then_some(80), ..parent_of(parent) }];
    Route { parents, rules: vec![rule], ..Route::default() }
}
