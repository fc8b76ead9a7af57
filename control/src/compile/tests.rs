//! What a model becomes, case by case; and that a change compiles to what the whole would.

mod consumers;
mod differential;
mod growth;

use prost::Message;
use weft_api::wire::v1::address::Target as Means;

use super::*;
use crate::model::{
    AuthorizationPolicy, Distribution, ForeignRef, Grant, Granted, Namespace, Node, RateLimitPolicy, Route, Service,
    ServiceParent, SliceEndpoint, Target, Workload,
};
use crate::testing::{ip, name, parent_of, pod, port, ready, service, shop, slice};

const WEB: &str = "endpoints/shop/web:80";

/// Makes `model` of what is compiled.
fn update(compiled: &mut Compiled, model: &Model) -> Changes {
    let differences = compiled.model().changes_to(model);
    compiled.update(differences, BTreeSet::new())
}

fn means(compiled: &Compiled, address: &str) -> Means {
    v1::Address::decode(&*compiled.address(address).bytes).unwrap().target.unwrap()
}

fn endpoints(model: &Model) -> Vec<(String, v1::Endpoint)> {
    let compiled = compile(model);
    let set = compiled.collection(WEB).unwrap();
    let decode = |(name, member): (&Arc<str>, &Arc<Resource>)| {
        (name.rsplit('/').next().unwrap().to_owned(), v1::Endpoint::decode(&*member.bytes).unwrap())
    };
    set.members.iter().map(decode).collect()
}

fn ids(model: &Model) -> Vec<(String, bool)> {
    endpoints(model).into_iter().map(|(id, endpoint)| (id, endpoint.draining)).collect()
}

fn to(id: &str, draining: bool) -> (String, bool) {
    (id.to_owned(), draining)
}

fn web_slice(model: &mut Model, endpoints: Vec<SliceEndpoint>) {
    model.slices.insert(name("web-x"), slice("web", endpoints));
}

#[test]
fn a_ready_endpoint_is_in_with_its_pods_identity() {
    let found = endpoints(&shop());
    assert_eq!(found.len(), 2);
    let (id, endpoint) = &found[0];
    assert_eq!(id, "web-1");
    assert_eq!(endpoint.ip, vec![10, 0, 0, 1]);
    assert_eq!(endpoint.port, 8080);
    assert_eq!(endpoint.identity, "/ns/shop/sa/web");
    assert_eq!(endpoint.alpn, ["weft1-h1", "weft1-h2", "weft1-tcp"]);
    assert_eq!(endpoint.workload, "shop/web-1");
}

#[test]
fn a_pod_without_sidecar_and_an_endpoint_without_pod_are_plain() {
    let mut model = shop();
    model.workloads.get_mut(&name("web-1")).unwrap().meshed = false;
    web_slice(&mut model, vec![ready(1, Some("web-1")), ready(9, None)]);
    for (_, endpoint) in endpoints(&model) {
        assert_eq!((endpoint.identity.as_str(), endpoint.alpn.len()), ("", 0));
    }
}

#[test]
fn who_is_in_follows_the_conditions() {
    let not_ready = |last, pod| SliceEndpoint { ready: false, serving: false, ..ready(last, Some(pod)) };
    let leaving = |last, pod| SliceEndpoint { ready: false, terminating: true, ..ready(last, Some(pod)) };
    let gone = |last, pod| SliceEndpoint { serving: false, ..leaving(last, pod) };
    let cases = [
        (vec![ready(1, Some("web-1")), not_ready(2, "web-2")], vec![to("web-1", false)]),
        (vec![ready(1, Some("web-1")), leaving(2, "web-2")], vec![to("web-1", false)]),
        (vec![leaving(1, "web-1"), leaving(2, "web-2")], vec![to("web-1", true), to("web-2", true)]),
        (vec![leaving(1, "web-1"), gone(2, "web-2")], vec![to("web-1", true)]),
        (vec![not_ready(1, "web-1")], vec![]),
    ];
    for (endpoints, expected) in cases {
        let mut model = shop();
        web_slice(&mut model, endpoints.clone());
        assert_eq!(ids(&model), expected, "{endpoints:?}");
    }
}

#[test]
fn an_endpoint_whose_pod_leaves_is_draining() {
    let mut model = shop();
    model.workloads.get_mut(&name("web-1")).unwrap().terminating = true;
    assert_eq!(ids(&model), [to("web-1", true), to("web-2", false)]);
}

#[test]
fn one_that_stands_in_two_slices_is_one() {
    let mut model = shop();
    let stale = SliceEndpoint { ready: false, serving: false, ..ready(1, Some("web-1")) };
    model.slices.insert(name("web-a"), slice("web", vec![stale]));
    model.slices.insert(name("web-z"), slice("web", vec![ready(2, None)]));
    assert_eq!(ids(&model), [to("web-1", false), to("web-2", false)]);
}

#[test]
fn an_unknown_pod_is_left_out_and_nothing_goes_to_it_in_the_clear() {
    let mut model = shop();
    model.workloads.remove(&name("web-1"));
    assert_eq!(ids(&model), [to("web-2", false)]);
    let compiled = compile(&model);
    assert!(compiled.unresolved().next().unwrap().contains("EndpointSlice shop/web-x: endpoint 10.0.0.1"));
    let Means::Service(closed) = means(&compiled, "10.0.0.1:8080") else { panic!() };
    assert_eq!(closed, "service/shop/web:65535");
    assert_eq!(compiled.get("endpoints/shop/web:65535").unwrap().version, compiled_empty_head());
}

fn compiled_empty_head() -> Arc<str> {
    Digest::default().to_version().into()
}

#[test]
fn every_address_has_a_meaning() {
    let mut model = shop();
    model.services.insert(name("ext"), Service { external_name: Some("example.com".into()), ..Service::default() });
    model
        .services
        .insert(name("db"), Service { headless: true, ports: vec![port("http", 5432)], ..Service::default() });
    let first = SliceEndpoint { hostname: Some("db-0".into()), ..ready(3, Some("cart-1")) };
    model.slices.insert(name("db-x"), slice("db", vec![first]));
    let compiled = compile(&model);
    let service = |address| match means(&compiled, address) {
        Means::Service(name) => name,
        other => panic!("{address}: {other:?}"),
    };
    for address in [
        "10.96.0.1:80",
        "[::ffff:10.96.0.1]:80",
        "web.shop:80",
        "WEB.Shop.svc:80",
        "web.shop.svc.cluster.local:80",
        "web.shop.svc.cluster.local.:80",
    ] {
        assert_eq!(service(address), "service/shop/web:80", "{address}");
    }
    assert_eq!(service("ext.shop:443"), "service/shop/ext:443");
    let external = compiled.get("service/shop/ext:443").unwrap();
    assert_eq!(v1::Service::decode(&*external.bytes).unwrap().external_name, "example.com");
    assert_eq!(external.points_to.len(), 0);
    // A name with a pod's address means the Service only if it does not lead to its members.
    let is_headless = |name| v1::Service::decode(&*compiled.get(name).unwrap().bytes).unwrap().headless;
    assert!(is_headless("service/shop/db:5432") && !is_headless("service/shop/web:80"));

    let Means::Workload(pod) = means(&compiled, "10.0.0.2:9999") else { panic!() };
    assert_eq!((pod.port, pod.workload.as_str()), (9999, "shop/web-2"));
    for address in ["db-0.db.shop:5432", "db-0.db.shop.svc:5432", "db-0.db.shop.svc.cluster.local:5432"] {
        let Means::HeadlessMember(member) = means(&compiled, address) else { panic!("{address}") };
        assert_eq!((member.port, member.workload.as_str()), (5432, "shop/cart-1"));
    }
    for address in ["10.1.2.3:80", "example.com:80", "nobody.shop:80", "web.shop.pod.cluster.local:80", "x", "web:80"] {
        assert!(matches!(means(&compiled, address), Means::Outside(_)), "{address}");
    }
}

#[test]
fn a_port_that_the_service_lacks_is_refused_and_not_outside() {
    let compiled = compile(&shop());
    let Means::Service(closed) = means(&compiled, "10.96.0.1:81") else { panic!() };
    assert_eq!(closed, "service/shop/web:81");
    let closure = compiled.closure("10.96.0.1:81", "shop");
    let names: Vec<&str> = closure.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["10.96.0.1:81", "service/shop/web:81", "endpoints/shop/web:81"]);
}

fn route(backends: &[&str]) -> Route {
    let backends = backends.iter().map(|one| v1::RouteBackend { service: (*one).into(), ..Default::default() });
    let rule = v1::RouteRule { backends: backends.collect(), ..Default::default() };
    let parents = vec![parent_of("web")];
    Route { parents, rules: vec![rule], ..Route::default() }
}

#[test]
fn an_address_brings_its_routes_and_their_backends() {
    let mut model = shop();
    let backends = ["service/shop/cart:80", "service/shop/web:80", "service/shop/none:80", "service/shop/cart:9"];
    model.routes.insert(("HTTPRoute".into(), name("split")), route(&backends));
    let compiled = compile(&model);
    let names: Vec<String> = compiled.closure("web.shop:80", "shop").iter().map(|(name, _)| name.to_string()).collect();
    let expected = [
        "web.shop:80",
        "service/shop/web:80",
        "HTTPRoute/shop/split",
        "service/shop/cart:80",
        "endpoints/shop/cart:80",
        "endpoints/shop/cart:80/cart-1",
        "endpoints/shop/web:80",
        "endpoints/shop/web:80/web-1",
        "endpoints/shop/web:80/web-2",
    ];
    assert_eq!(names, expected);
    let made = v1::Route::decode(&*compiled.get("HTTPRoute/shop/split").unwrap().bytes).unwrap();
    let invalid: Vec<&str> = made.rules[0].backends.iter().map(|backend| backend.invalid.as_str()).collect();
    assert_eq!(invalid, ["", "", "service shop/none does not exist", "service shop/cart has no port 9"]);
}

#[test]
fn a_parent_port_attaches_to_that_port_only() {
    let mut model = shop();
    model.services.get_mut(&name("web")).unwrap().ports.push(port("more", 81));
    let mut only = route(&[]);
    only.parents[0].port = Some(81);
    model.routes.insert(("HTTPRoute".into(), name("only")), only);
    let compiled = compile(&model);
    let routes = |name: &str| v1::Service::decode(&*compiled.get(name).unwrap().bytes).unwrap().routes;
    assert!(routes("service/shop/web:80").is_empty());
    assert_eq!(routes("service/shop/web:81"), ["HTTPRoute/shop/only"]);
}

#[test]
fn a_parent_given_by_a_ports_name_is_found_when_the_port_gets_that_name() {
    let mut model = shop();
    let parents = vec![ServiceParent { section: Some("late".into()), ..parent_of("web") }];
    model.routes.insert(("HTTPRoute".into(), name("late")), Route { parents, ..route(&[]) });
    let mut compiled = compile(&model);
    let routes =
        |compiled: &Compiled| v1::Service::decode(&*compiled.get("service/shop/web:80").unwrap().bytes).unwrap().routes;
    assert!(routes(&compiled).is_empty());
    model.services.get_mut(&name("web")).unwrap().ports[0].name = "late".into();
    update(&mut compiled, &model);
    assert_eq!(routes(&compiled), ["HTTPRoute/shop/late"]);
}

#[test]
fn a_mirror_is_a_reference_as_a_backend_is() {
    let mut model = shop();
    let key = |name: &str| ("HTTPRoute".to_owned(), crate::testing::name(name));
    let copy = |service: &str| {
        let mirror = v1::Mirror { service: service.into(), numerator: 1, denominator: 1, ..v1::Mirror::default() };
        v1::Filter { filter: Some(v1::filter::Filter::Mirror(mirror)) }
    };
    let mut made = route(&["service/shop/web:80"]);
    made.rules[0].filters = vec![copy("service/shop/late:80")];
    made.rules[0].backends[0].filters = vec![copy("service/other/far:80")];
    made.foreign = vec![ForeignRef { namespace: "other".into(), name: "far".into(), ..ForeignRef::default() }];
    model.services.insert(Name::new("other", "far"), service(9));
    model.routes.insert(key("copied"), made);
    let mut compiled = compile(&model);
    let told = |compiled: &Compiled| {
        let resource = compiled.get("HTTPRoute/shop/copied").unwrap();
        let made = v1::Route::decode(&*resource.bytes).unwrap();
        let why = made.rules[0].all_filters().map(|filter| match filter {
            v1::filter::Filter::Mirror(mirror) => mirror.invalid.clone(),
            _ => String::new(),
        });
        assert!(made.requires.iter().any(|feature| feature == "request-mirror"), "{made:?}");
        (why.collect::<Vec<_>>(), resource.points_to.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (why, to) = told(&compiled);
    assert_eq!(to, ["service/shop/web:80"]);
    assert_eq!(why[0], "service shop/late does not exist");
    assert!(why[1].starts_with("no ReferenceGrant in other"), "{why:?}");
    let grant = Grant { from: vec![("HTTPRoute".to_owned(), "shop".to_owned())], to: vec![Granted::Services] };
    model.grants.insert(Name::new("other", "g"), grant);
    model.services.insert(name("late"), service(8));
    update(&mut compiled, &model);
    let (why, to) = told(&compiled);
    assert_eq!((why, to.len()), (vec![String::new(), String::new()], 3), "{to:?}");
}

#[test]
fn a_grant_that_comes_or_goes_changes_the_routes_that_stand_on_it() {
    let mut model = shop();
    model.services.insert(Name::new("other", "far"), service(9));
    let foreign = vec![ForeignRef { namespace: "other".into(), name: "far".into(), ..ForeignRef::default() }];
    let key = |name: &str| ("HTTPRoute".to_owned(), crate::testing::name(name));
    model.routes.insert(key("far"), Route { foreign, ..route(&["service/other/far:80"]) });
    model.routes.insert(key("near"), route(&["service/shop/cart:80"]));
    let mut compiled = compile(&model);
    let far = |compiled: &Compiled| {
        let made = v1::Route::decode(&*compiled.get("HTTPRoute/shop/far").unwrap().bytes).unwrap();
        made.rules[0].backends[0].invalid.clone()
    };
    let refused = "no ReferenceGrant in other lets HTTPRoute/shop/far use Service other/far";
    assert_eq!(far(&compiled), refused);
    let from = |kind: &str| vec![(kind.to_owned(), "shop".to_owned())];
    for (grant, expected) in [
        (Some(Grant { from: from("TLSRoute"), to: vec![Granted::Services] }), refused),
        (Some(Grant { from: from("HTTPRoute"), to: vec![Granted::One("near".into())] }), refused),
        (Some(Grant { from: from("HTTPRoute"), to: vec![Granted::One("far".into())] }), ""),
        (None, refused),
        (Some(Grant { from: from("HTTPRoute"), to: vec![Granted::Services] }), ""),
    ] {
        match grant {
            Some(grant) => _ = model.grants.insert(Name::new("other", "g"), grant),
            None => model.grants.clear(),
        }
        let before = far(&compiled);
        let changes = update(&mut compiled, &model);
        let changed: Vec<&str> = changes.names.iter().map(|name| &**name).collect();
        assert_eq!(changed, if before == expected { vec![] } else { vec!["HTTPRoute/shop/far"] });
        assert_eq!(far(&compiled), expected);
    }
}

#[test]
fn an_edit_of_a_tls_route_is_one_resource() {
    let key = |kind: &str, route: &str| (kind.to_owned(), name(route));
    let mut model = shop();
    let tls = Route { hostnames: vec!["a.example".to_owned()], ..route(&["service/shop/cart:80"]) };
    model.routes.insert(key("TLSRoute", "names"), tls);
    model.routes.insert(key("TLSRoute", "other"), route(&["service/shop/web:80"]));
    model.routes.insert(key("TCPRoute", "rest"), route(&["service/shop/web:80"]));
    let mut compiled = compile(&model);
    let web = v1::Service::decode(&*compiled.get("service/shop/web:80").unwrap().bytes).unwrap();
    assert_eq!(web.routes, ["TCPRoute/shop/rest", "TLSRoute/shop/names", "TLSRoute/shop/other"]);
    assert_eq!(web.requires, ["tcp-route", "tls-route"]);
    let made = |compiled: &Compiled, name: &str| v1::Route::decode(&*compiled.get(name).unwrap().bytes).unwrap();
    assert_eq!(made(&compiled, "TLSRoute/shop/names").requires, ["tls-route"]);
    assert_eq!(made(&compiled, "TCPRoute/shop/rest").requires, ["tcp-route"]);

    model.routes.get_mut(&key("TLSRoute", "names")).unwrap().hostnames.push("*.b.example".to_owned());
    let changes = update(&mut compiled, &model);
    let changed: Vec<&str> = changes.names.iter().map(|name| &**name).collect();
    assert_eq!((changed, changes.len(), changes.recomputed), (vec!["TLSRoute/shop/names"], 1, 1));
    assert_eq!(made(&compiled, "TLSRoute/shop/names").hostnames, ["a.example", "*.b.example"]);
    // What needs nothing new says nothing new.
    model.routes.clear();
    let web = v1::Service::decode(&*compile(&model).get("service/shop/web:80").unwrap().bytes).unwrap();
    assert!(web.requires.is_empty());
}

fn workload(compiled: &Compiled, pod: &str) -> v1::Workload {
    v1::Workload::decode(&*compiled.get(&format!("workload/shop/{pod}")).unwrap().bytes).unwrap()
}

#[test]
fn a_port_counts_for_more_than_its_workload_and_that_than_namespace_and_mesh() {
    let said = |strict, mesh_strict| Namespace { strict, mesh_strict, ..Namespace::default() };
    let (yes, no) = (Some(true), Some(false));
    for (mesh, namespace, pod, ports, strict, others) in [
        (None, None, None, &[][..], false, &[][..]),
        (yes, None, None, &[(1, true)], true, &[]),
        (yes, no, None, &[(1, true)], false, &[1]),
        (no, yes, None, &[(1, false), (2, true)], true, &[1]),
        (no, yes, no, &[(1, false)], false, &[]),
        (no, no, yes, &[], true, &[]),
    ] {
        let mut model = shop();
        model.namespaces.insert("weft-system".into(), said(None, mesh));
        model.namespaces.insert("shop".into(), said(namespace, None));
        let web = model.workloads.get_mut(&name("web-1")).unwrap();
        (web.strict, web.strict_ports) = (pod, ports.iter().copied().collect());
        let found = workload(&compile(&model), "web-1");
        assert_eq!((found.mode() == v1::MtlsMode::Strict, &*found.other_mode_ports), (strict, others));
        assert_eq!(found.requires.len(), usize::from(!others.is_empty()));
    }
}

#[test]
fn policies_cover_the_ports_behind_their_targets() {
    let mut model = shop();
    model
        .namespaces
        .insert("shop".into(), Namespace { strict: Some(true), default_deny: true, ..Namespace::default() });
    let on_web = vec![Target::Service("web".into())];
    model.authorization.insert(name("on-web"), AuthorizationPolicy { targets: on_web, ..Default::default() });
    let everywhere = vec![Target::Namespace, Target::Service("web".into())];
    model.rate_limits.insert(name("all"), RateLimitPolicy { targets: everywhere, ..Default::default() });
    let other = Name::new("other", "foreign");
    model.authorization.insert(other, AuthorizationPolicy { targets: vec![Target::Namespace], ..Default::default() });
    let compiled = compile(&model);
    let web = workload(&compiled, "web-1");
    assert_eq!((web.mode(), web.default_deny), (v1::MtlsMode::Strict, true));
    assert_eq!(web.ports.len(), 1);
    assert_eq!((web.ports[0].port, web.ports[0].services.as_slice()), (8080, ["shop/web".to_owned()].as_slice()));
    assert_eq!(web.ports[0].protocol(), v1::Protocol::Http1);
    assert_eq!(web.authorization.len(), 1);
    assert_eq!(web.authorization[0].policy, "AuthorizationPolicy/shop/on-web");
    assert_eq!(web.authorization[0].ports, [8080]);
    assert!(web.rate_limits[0].ports.is_empty());
    let cart = workload(&compiled, "cart-1");
    assert_eq!((cart.authorization.len(), cart.rate_limits.len()), (0, 1));
    let names: Vec<String> =
        compiled.closure("workload/shop/web-1", "shop").iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(
        names,
        ["workload/shop/web-1", "AuthorizationPolicy/shop/on-web", "RateLimitPolicy/shop/all", "trust", "revoked"]
    );
}

#[test]
fn a_policy_is_not_escaped_by_a_slice_that_names_no_pod() {
    let mut model = shop();
    web_slice(&mut model, vec![ready(1, None)]);
    let targets = vec![Target::Service("web".into())];
    model.authorization.insert(name("on-web"), AuthorizationPolicy { targets, ..Default::default() });
    assert_eq!(workload(&compile(&model), "web-1").authorization.len(), 1);
}

#[test]
fn two_services_that_disagree_on_a_protocol_let_the_bytes_decide() {
    let mut model = shop();
    let mut grpc = service(3);
    grpc.ports[0].protocol = v1::Protocol::Http2;
    model.services.insert(name("web-grpc"), grpc);
    model.slices.insert(name("web-grpc-x"), slice("web-grpc", vec![ready(1, Some("web-1"))]));
    let web = workload(&compile(&model), "web-1");
    assert_eq!(web.ports[0].protocol(), v1::Protocol::Detect);
    assert_eq!(web.ports[0].services, ["shop/web", "shop/web-grpc"]);
}

#[test]
fn the_extent_is_few_prefixes() {
    let extent =
        |model: &Model| v1::MeshExtent::decode(&*compile(model).get("mesh-extent").unwrap().bytes).unwrap().cidrs;
    let mut model = shop();
    assert_eq!(extent(&model), ["10.0.0.0/24", "10.96.0.0/24"]);
    for number in 0..=200u8 {
        model.workloads.insert(name(&format!("p{number}")), Workload { ips: vec![ip(1, number, 1)], ..pod(0) });
    }
    assert_eq!(extent(&model), ["10.0.0.0/16", "10.1.0.0/16", "10.96.0.0/16"]);
    let v6 = Workload { ips: vec!["fd00::1:2".parse().unwrap()], ..pod(0) };
    model.workloads.insert(name("six"), v6);
    assert!(extent(&model).contains(&"fd00::1:0/112".to_owned()));
    assert!(extent(&Model::default()).is_empty());
}

#[test]
fn an_endpoint_is_small_on_the_wire() {
    let mut model = shop();
    let pod_name = Name::new("shop", "catalog-7d9f8b6c5d-x2x4z");
    let mut found = pod(7);
    found.service_account = "catalog-service-account".to_owned();
    model.workloads.insert(pod_name.clone(), found);
    let endpoint = SliceEndpoint { workload: Some(pod_name), zone: "eu-central-1a".into(), ..ready(7, None) };
    web_slice(&mut model, vec![endpoint]);
    let compiled = compile(&model);
    let (name, member) = compiled.collection(WEB).unwrap().members.first_key_value().unwrap();
    let any = prost_types::Any { type_url: member.type_url.into(), value: member.bytes.to_vec() };
    let resource = weft_api::wire::discovery::Resource {
        version: member.version.to_string(),
        resource: Some(any),
        name: name.to_string(),
    };
    assert!(resource.encoded_len() < 300, "{}", resource.encoded_len());
}

#[test]
fn one_endpoint_changes_one_resource() {
    let before = shop();
    let mut compiled = compile(&before);
    let mut after = before.clone();
    web_slice(&mut after, vec![ready(1, Some("web-1")), ready(2, Some("web-2")), ready(3, Some("cart-1"))]);
    let changes = update(&mut compiled, &after);
    let members = &changes.members;
    assert_eq!(members.len(), 1);
    assert_eq!(members[WEB].iter().map(|name| &**name).collect::<Vec<_>>(), ["endpoints/shop/web:80/cart-1"]);
    // The pod backs another service now: that is its own side, and nobody else's.
    assert_eq!(changes.names.iter().map(|name| &**name).collect::<Vec<_>>(), ["workload/shop/cart-1"]);
    assert_eq!(compiled.collection(WEB).unwrap().members.len(), 3);
}

#[test]
fn a_workload_that_leaves_drains_before_the_model_says_so() {
    let mut compiled = compile(&shop());
    let changes = compiled.update([], [name("web-1")].into());
    assert_eq!((changes.members[WEB].len(), changes.recomputed), (1, 1));
    assert!(changes.names.is_empty());
    let Means::Workload(pod) = means(&compiled, "10.0.0.1:80") else { panic!() };
    assert!(pod.draining);
    let names: Vec<String> = compiled.endpoints_of(&name("web-1")).iter().map(ToString::to_string).collect();
    assert_eq!(names, ["endpoints/shop/web:80/web-1"]);
}

#[test]
fn another_name_of_the_trust_domain_changes_no_more_than_the_policies_that_say_it() {
    let mut model = shop();
    let policy = |identities: &[&str]| {
        let identities = identities.iter().map(ToString::to_string).collect();
        let from = vec![v1::AuthorizationFrom { identities, namespaces: Vec::new() }];
        let rules = vec![v1::AuthorizationRule { from, ..v1::AuthorizationRule::default() }];
        let policy = v1::AuthorizationPolicy { rules, ..v1::AuthorizationPolicy::default() };
        AuthorizationPolicy { targets: vec![Target::Namespace], policy }
    };
    let written = [
        "spiffe://new.example/ns/shop/sa/web",
        "spiffe://new.example/*",
        "spiffe://new*",
        "spiffe://other/ns/a/sa/b",
        "shop/web",
    ];
    model.authorization.insert(name("whole"), policy(&written));
    model.authorization.insert(name("short"), policy(&["shop/web", "*"]));
    let mut compiled = compile(&model);
    let sent = |compiled: &Compiled| {
        let resource = compiled.get("AuthorizationPolicy/shop/whole").unwrap();
        let policy = v1::AuthorizationPolicy::decode(resource.bytes.clone()).unwrap();
        policy.rules[0].from[0].identities.clone()
    };
    assert_eq!(sent(&compiled), written);
    let trust = |own: &str, aliases: &[&str]| v1::Trust {
        own: own.to_owned(),
        aliases: aliases.iter().map(ToString::to_string).collect(),
        ..v1::Trust::default()
    };
    for (told, changes) in [
        (trust("old.example", &[]), &["trust"][..]),
        (trust("old.example", &["new.example"]), &["AuthorizationPolicy/shop/whole", "trust"]),
        (trust("new.example", &["old.example"]), &["trust"]),
    ] {
        let patch = compiled.update_trust(&told);
        let changed = compiled.apply(patch);
        let mut names: Vec<_> = changed.names.iter().map(|name| &**name).collect();
        names.sort_unstable();
        assert_eq!(names, changes);
        assert!(changed.members.is_empty() && changed.ips.is_empty());
    }
    let means = ["/ns/shop/sa/web", "/*", "spiffe://new*", "/*", "spiffe://other/ns/a/sa/b", "shop/web"];
    assert_eq!(sent(&compiled), means);
    // Whatever changes later is compiled in the same way.
    update(&mut compiled, &Model { authorization: BTreeMap::new(), ..model.clone() });
    update(&mut compiled, &model);
    assert_eq!(sent(&compiled), means);
}

/// `node for_nodes|for_zones` of each endpoint of `shop/web`.
fn placed(model: &Model) -> Vec<String> {
    let text = |(_, one): (String, v1::Endpoint)| {
        format!("{} {}|{}", one.node, one.for_nodes.join(" "), one.for_zones.join(" "))
    };
    endpoints(model).into_iter().map(text).collect()
}

#[test]
fn endpoints_are_for_whom_the_slice_says_else_the_service_wants() {
    let mut model = shop();
    let at = |zone: &str, node: &str, one: SliceEndpoint| SliceEndpoint { zone: zone.into(), node: node.into(), ..one };
    let one = at("a", "n1", ready(1, Some("web-1")));
    let two = at("b", "", ready(2, Some("web-2")));
    model.workloads.get_mut(&name("web-2")).unwrap().node = "n2".to_owned();
    web_slice(&mut model, vec![one.clone(), two.clone()]);
    assert_eq!(placed(&model), ["n1 |", "n2 |"], "nobody has said anything");
    let wants = |model: &mut Model, wanted| model.services.get_mut(&name("web")).unwrap().distribution = wanted;
    wants(&mut model, Some(Distribution::Zone));
    assert_eq!(placed(&model), ["n1 |a", "n2 |b"]);
    wants(&mut model, Some(Distribution::Node));
    assert_eq!(placed(&model), ["n1 n1|a", "n2 n2|b"]);
    // The controller has balanced them: its word counts.
    web_slice(&mut model, vec![SliceEndpoint { for_zones: vec!["b".to_owned()], ..one }, two]);
    assert_eq!(placed(&model), ["n1 |b", "n2 n2|b"]);
}

#[test]
fn a_service_says_which_endpoints_are_used_and_requires_that_it_is_understood() {
    let mut model = shop();
    let web = model.services.get_mut(&name("web")).unwrap();
    (web.node_local, web.sticky) = (true, true);
    let found = compile(&model).get("service/shop/web:80").unwrap();
    let found = v1::Service::decode(&*found.bytes).unwrap();
    assert!(found.node_local && found.sticky);
    assert_eq!(found.requires, ["node-local", "session-affinity"]);
}

#[test]
fn a_workload_is_in_the_zone_of_its_node_whenever_that_is_told() {
    let mut model = shop();
    model.workloads.get_mut(&name("web-1")).unwrap().node = "n1".to_owned();
    let mut compiled = compile(&model);
    let place = |compiled: &Compiled| {
        let found = compiled.get("workload/shop/web-1").unwrap();
        let found = v1::Workload::decode(&*found.bytes).unwrap();
        (found.node, found.zone)
    };
    assert_eq!(place(&compiled), ("n1".to_owned(), String::new()));
    model.nodes.insert("n1".to_owned(), Node { zone: "a".to_owned() });
    let changes = update(&mut compiled, &model);
    assert_eq!(place(&compiled), ("n1".to_owned(), "a".to_owned()));
    assert_eq!(changes.names, HashSet::from(["workload/shop/web-1".into()]));
}
