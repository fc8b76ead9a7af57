//! A change costs what depends on it, whatever the size of the mesh.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::time::Instant;

use super::*;

const A_NAMESPACE: usize = 100;
const A_SERVICE: usize = 3;

fn address(block: u8, number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32::from(block) << 24 | u32::try_from(number).unwrap()))
}

fn pod_of(service: &Name, number: usize) -> Name {
    Name::new(service.namespace.as_str(), format!("{}-{number}", service.name))
}

fn endpoint(pod: Name, ip: IpAddr) -> SliceEndpoint {
    SliceEndpoint { ip, workload: Some(pod), ..ready(0, None) }
}

/// A service with pods, from the address of the first on, in slices of a hundred.
fn add(model: &mut Model, service: &Name, number: usize, first: usize, pods: usize) {
    let ports = vec![port("http", 80), port("more", 81)];
    model
        .services
        .insert(service.clone(), Service { cluster_ips: vec![address(11, number)], ports, ..Service::default() });
    for (chunk, pods) in (0..pods).collect::<Vec<_>>().chunks(100).enumerate() {
        let endpoints = pods.iter().map(|pod| {
            let ip = address(10, first + pod);
            model.workloads.insert(pod_of(service, *pod), Workload { ips: vec![ip], ..pod_in_mesh() });
            endpoint(pod_of(service, *pod), ip)
        });
        let made = slice(&service.name, endpoints.collect());
        model.slices.insert(Name::new(service.namespace.as_str(), format!("{}-{chunk}", service.name)), made);
    }
}

fn pod_in_mesh() -> Workload {
    Workload { service_account: "app".to_owned(), meshed: true, ..Workload::default() }
}

fn mesh(services: usize) -> Model {
    let mut model = Model::default();
    for number in 0..services {
        let service = Name::new(format!("ns-{}", number / A_NAMESPACE), format!("s-{}", number % A_NAMESPACE));
        add(&mut model, &service, number, number * A_SERVICE, A_SERVICE);
        let here = |other: usize| names::service(&service.namespace, &format!("s-{}", other % A_NAMESPACE), 80);
        let backends = [here(number), here(number + 1)];
        let backends = backends.map(|service| v1::RouteBackend { service, weight: 1, ..Default::default() });
        let rule = v1::RouteRule { backends: backends.to_vec(), ..Default::default() };
        let parents = vec![parent_of(&service.name)];
        let key = ("HTTPRoute".to_owned(), service.clone());
        model.routes.insert(key, Route { parents, rules: vec![rule], ..Route::default() });
        let targets = vec![Target::Service(service.name.clone())];
        model.authorization.insert(service.clone(), AuthorizationPolicy { targets, ..Default::default() });
    }
    model
}

/// What is made again, how much of it differs, and its bytes.
fn cost(compiled: &mut Compiled, change: Change) -> (usize, usize, usize) {
    let started = Instant::now();
    let changes = compiled.update([change], BTreeSet::new());
    let took = started.elapsed();
    let all = changes.names.iter().chain(changes.members.values().flatten());
    let bytes = all.filter_map(|name| compiled.get(name)).map(|resource| resource.bytes.len()).sum();
    let _ = writeln!(std::io::stderr(), "{} resources made again in {took:?}", changes.recomputed);
    (changes.recomputed, changes.len(), bytes)
}

fn costs(services: usize) -> Vec<(usize, usize, usize)> {
    let started = Instant::now();
    let mut compiled = compile(&mesh(services));
    let _ = writeln!(std::io::stderr(), "{services} services in {:?}", started.elapsed());
    let here = |name: &str| Name::new("ns-0", name);
    let model = compiled.model().clone();
    let mut one_more = model.slices[&here("s-1-0")].clone();
    one_more.endpoints.push(endpoint(here("s-2-0"), address(10, 6)));
    let mut route = model.routes[&("HTTPRoute".to_owned(), here("s-1"))].clone();
    route.rules[0].backends[0].weight = 9;
    let mut policy = model.authorization[&here("s-1")].clone();
    policy.policy.source = "edited".to_owned();
    let narrower = AuthorizationPolicy { targets: vec![Target::Service("s-2".to_owned())], ..policy.clone() };
    let mut new_port = model.services[&here("s-1")].clone();
    new_port.ports[1].port = 82;
    let leaves = Workload { terminating: true, ..model.workloads[&here("s-1-1")].clone() };
    let all = [
        Change::Slice(here("s-1-0"), Some(one_more)),
        Change::Workload(here("s-1-1"), Some(leaves)),
        Change::Workload(here("s-1-2"), None),
        Change::Route(("HTTPRoute".to_owned(), here("s-1")), Some(route)),
        Change::Authorization(here("s-1"), Some(policy)),
        Change::Authorization(here("s-1"), Some(narrower)),
        Change::Service(here("s-1"), Some(new_port)),
        Change::Namespace("ns-0".to_owned(), Some(Namespace { strict: Some(true), ..Namespace::default() })),
    ];
    all.into_iter().map(|change| cost(&mut compiled, change)).collect()
}

#[test]
fn the_same_change_costs_the_same_among_ten_times_as_many_services() {
    let (small, large) = (costs(1000), costs(10_000));
    assert_eq!(small, large);
    // The endpoint, and its pod's own side.
    assert_eq!(small[0].0, 2, "{small:?}");
    assert_eq!((small[3].0, small[4].0), (1, 1), "{small:?}");
}

#[test]
fn an_endpoint_costs_the_same_among_a_hundred_times_as_many() {
    let service = Name::new("ns-0", "s");
    let cost_among = |pods: usize| {
        let mut model = mesh(1);
        add(&mut model, &service, 500, 1000, pods);
        let mut compiled = compile(&model);
        let key = Name::new("ns-0", "s-0");
        let slice = compiled.model().slices[&key].clone();
        let (mut without, mut unready) = (slice.clone(), slice.clone());
        without.endpoints.remove(5);
        unready.endpoints[7].ready = false;
        let gone = Change::Workload(pod_of(&service, 9), None);
        [Change::Slice(key.clone(), Some(without)), Change::Slice(key.clone(), Some(unready)), gone]
            .map(|change| cost(&mut compiled, change))
    };
    let few = cost_among(100);
    assert_eq!(few, cost_among(10_000));
    assert_eq!(few.map(|(made, changed, _)| (made, changed)), [(1, 2), (2, 3), (0, 2)]);
}
