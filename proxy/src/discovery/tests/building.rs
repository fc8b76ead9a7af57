//! The builder: what the data path sees, and what stays the very same.

use weft_engine::authz::{Question, Verdict};
use weft_engine::reason::Reason;
use weft_engine::route::Opening;

use super::super::build::Builder;
use super::super::driver::{restore, to_save};
use super::super::snapshot::{Backend, Destination, Service, Snapshot};
use super::*;

fn service(snapshot: &Snapshot) -> Arc<Service> {
    match &snapshot.by_addr.get(&addr(VIP)).expect("the address is known").destination {
        Destination::Service(service) => Arc::clone(service),
        _ => panic!("no service"),
    }
}

fn places(backend: &Backend) -> Vec<String> {
    let mut all: Vec<String> = backend.endpoints.load().members.iter().map(|m| m.addr.to_string()).collect();
    all.sort();
    all
}

fn route(name: &str, backends: &[&str]) -> Resource {
    route_of("HTTPRoute", name, backends)
}

fn route_of(kind: &str, name: &str, backends: &[&str]) -> Resource {
    let backend = |service: &&str| v1::RouteBackend { service: (*service).to_owned(), weight: 1, ..Default::default() };
    let rule = v1::RouteRule { backends: backends.iter().map(backend).collect(), ..Default::default() };
    let message = v1::Route {
        kind: kind.into(),
        namespace: "shop".into(),
        name: name.into(),
        rules: vec![rule],
        ..Default::default()
    };
    resource(&format!("{kind}/shop/{name}"), &message)
}

fn other(last: u8) -> [Resource; 3] {
    let message = v1::Service { namespace: "shop".into(), name: "other".into(), port: 80, ..Default::default() };
    let set = "endpoints/shop/other:80";
    let member = member_of(set, last, Some("other"));
    [resource("service/shop/other:80", &message), head_of(set, std::slice::from_ref(&member)), member]
}

#[test]
fn a_service_is_there_once_it_is_whole() {
    let (mut machine, mut builder) = (asking(), Builder::default());
    machine.hear(response("1", vec![to_service(WEB), web(&[]), head(&[member(1)])]), NOW);
    assert!(builder.snapshot(&machine, NOW).by_addr.is_empty());
    let heard = machine.hear(response("2", vec![member(1)]), NOW);
    assert!(heard.collections.iter().all(|head| !builder.update_set(&machine, head, NOW)), "a snapshot has waited");
    let snapshot = builder.snapshot(&machine, NOW);
    let found = service(&snapshot);
    assert_eq!(places(&found.own), ["10.0.0.1:8080"]);
    assert_eq!((&*found.own.label, &*found.own.sni), ("shop/web", "web.shop.80.weft"));
    assert!(found.table.is_none());
}

#[test]
fn a_changed_member_swaps_one_set_and_keeps_the_rest() {
    let (mut machine, mut builder) = (holding(&[1, 2]), Builder::default());
    let snapshot = builder.snapshot(&machine, NOW);
    let own = Arc::clone(&service(&snapshot).own);
    let before = own.endpoints.load_full();
    let mut draining = v1::Endpoint::decode(member(1).resource.unwrap().value.as_slice()).unwrap();
    draining.draining = true;
    let heard = machine.hear(response("2", vec![resource(&member(1).name, &draining), member(3)]), NOW);
    assert!(!heard.structure);
    assert!(builder.update_set(&machine, WEB_SET, NOW));
    let after = own.endpoints.load_full();
    let find = |set: &super::super::snapshot::EndpointSet, last: u8| {
        set.members.iter().find(|m| m.addr == addr(&format!("10.0.0.{last}:8080"))).cloned().unwrap()
    };
    assert_eq!(after.members.len(), 3);
    assert!(Arc::ptr_eq(&find(&before, 2), &find(&after, 2)), "an unchanged member is the same");
    assert!(find(&after, 1).draining && !find(&before, 1).draining);
    assert!(Arc::ptr_eq(&find(&before, 1).state, &find(&after, 1).state), "its connections survive");
    let again = builder.snapshot(&machine, NOW);
    assert!(Arc::ptr_eq(&service(&snapshot), &service(&again)));
    assert!(Arc::ptr_eq(&snapshot.by_addr[&addr(VIP)], &again.by_addr[&addr(VIP)]));
}

#[test]
fn an_endpoint_keeps_its_state_under_a_new_name_and_loses_it_with_its_identity() {
    let (mut machine, mut builder) = (holding(&[1]), Builder::default());
    let snapshot = builder.snapshot(&machine, NOW);
    let own = Arc::clone(&service(&snapshot).own);
    let state = || Arc::clone(&own.endpoints.load().members[0].state);
    let first = state();
    let mut renamed = member(1);
    renamed.name = format!("{WEB_SET}/another-slice");
    let heard =
        DeltaDiscoveryResponse { removed_resources: vec![member(1).name], ..response("2", vec![renamed.clone()]) };
    machine.hear(heard, NOW);
    builder.update_set(&machine, WEB_SET, NOW);
    assert!(Arc::ptr_eq(&first, &state()));
    let mut taken = member_of(WEB_SET, 1, Some("another"));
    taken.name = renamed.name;
    machine.hear(response("3", vec![taken]), NOW);
    builder.update_set(&machine, WEB_SET, NOW);
    assert!(!Arc::ptr_eq(&first, &state()), "another identity is another endpoint");
}

#[test]
fn routes_of_connections_have_a_table_of_their_own() {
    let (mut machine, mut builder) = (holding(&[1]), Builder::default());
    let other_name = "service/shop/other:80";
    let routed = web(&["TLSRoute/shop/t", "TCPRoute/shop/c"]);
    let routes = [route_of("TLSRoute", "t", &[other_name]), route_of("TCPRoute", "c", &[WEB])];
    machine.hear(response("2", [routed].into_iter().chain(routes).chain(other(7)).collect()), NOW);
    let found = service(&builder.snapshot(&machine, NOW));
    assert!(found.reads_tls());
    let by = |opening| {
        let taken = found.connections.as_ref().unwrap().select(opening).unwrap().unwrap();
        Arc::clone(found.backend(&taken.backend(0).unwrap().service).unwrap())
    };
    assert_eq!(places(&by(Opening::Tls { sni: Some("a.example") })), ["10.0.0.7:8080"]);
    assert!(Arc::ptr_eq(&by(Opening::Opaque), &found.own));
    // Requests go by the TCPRoute, for want of one of their own.
    assert_eq!(found.table.as_ref().unwrap().rules().len(), 1);
}

#[test]
fn a_new_route_takes_effect_when_its_backends_are_there() {
    let (mut machine, mut builder) = (holding(&[1]), Builder::default());
    let before = service(&builder.snapshot(&machine, NOW));
    let [other_service, other_head, other_member] = other(7);
    let routed = web(&["HTTPRoute/shop/r"]);
    machine.hear(response("2", vec![routed, route("r", &[WEB, "service/shop/other:80"]), other_service]), NOW);
    let between = service(&builder.snapshot(&machine, NOW));
    assert!(Arc::ptr_eq(&before, &between), "half of a change is none");
    machine.hear(response("3", vec![other_head, other_member]), NOW);
    assert!(!builder.update_set(&machine, "endpoints/shop/other:80", NOW));
    let after = service(&builder.snapshot(&machine, NOW));
    assert!(after.table.is_some());
    assert_eq!(after.backends.len(), 2);
    assert!(Arc::ptr_eq(&before.own, &after.own) && Arc::ptr_eq(&before.own, &after.backends[WEB]));
    assert_eq!(places(&after.backends["service/shop/other:80"]), ["10.0.0.7:8080"]);
    // An edit of the route alone keeps every backend.
    machine.hear(response("4", vec![route("r", &["service/shop/other:80"])]), NOW);
    let edited = service(&builder.snapshot(&machine, NOW));
    let kept = (&after.backends["service/shop/other:80"], &edited.backends["service/shop/other:80"]);
    assert!(!Arc::ptr_eq(&after, &edited) && Arc::ptr_eq(kept.0, kept.1));
}

#[test]
fn what_had_to_be_refused_is_told_at_once() {
    let (mut machine, mut builder) = (asking(), Builder::default());
    let mut odd = v1::Service { namespace: "shop".into(), name: "web".into(), port: 80, ..Default::default() };
    odd.requires = vec!["telepathy".into()];
    machine.hear(response("1", vec![to_service(WEB), resource(WEB, &odd)]), NOW);
    let snapshot = builder.snapshot(&machine, NOW);
    assert_eq!(snapshot.refused.get(VIP), Some(&Reason::PolicyUnsupported));
    // Mended, it is there.
    machine.hear(response("2", vec![web(&[]), head(&[])]), NOW);
    let snapshot = builder.snapshot(&machine, NOW);
    assert!(snapshot.refused.is_empty() && places(&service(&snapshot).own).is_empty());
}

fn workload(policies: &[(&str, &[u32])]) -> Resource {
    let binding =
        |(policy, ports): &(&str, &[u32])| v1::PolicyBinding { policy: (*policy).into(), ports: ports.to_vec() };
    let message = v1::Workload {
        namespace: "shop".into(),
        name: "cart-1".into(),
        service_account: "cart".into(),
        ports: vec![v1::InboundPort { port: 8080, protocol: 1, services: vec!["shop/cart".into()] }],
        authorization: policies.iter().filter(|(name, _)| name.starts_with('A')).map(binding).collect(),
        rate_limits: policies.iter().filter(|(name, _)| name.starts_with('R')).map(binding).collect(),
        ..v1::Workload::default()
    };
    resource("workload/shop/cart-1", &message)
}

fn limits(requests: u64, second: bool) -> Resource {
    let limit =
        |name: &str, requests| v1::RateLimit { name: name.into(), requests, per_ms: 1000, ..Default::default() };
    let mut limits = vec![limit("all", requests)];
    limits.extend(second.then(|| limit("more", 7)));
    let message = v1::RateLimitPolicy { namespace: "shop".into(), name: "l".into(), limits, ..Default::default() };
    resource("RateLimitPolicy/shop/l", &message)
}

fn reason(snapshot: &Snapshot, port: u16) -> Option<Reason> {
    let port = snapshot.inbound.ports.get(&port).unwrap_or(&snapshot.inbound.default);
    match port.policies.decide(&Question { peer: None, http: None }) {
        Verdict::Allow { .. } => None,
        Verdict::Deny { reason, .. } => Some(reason),
    }
}

#[test]
fn nothing_is_admitted_before_control_has_spoken_in_full() {
    let (mut machine, mut builder) = (machine(), Builder::default());
    machine.open(NOW);
    assert!(builder.snapshot(&machine, NOW).inbound.default.strict);
    let policy = "AuthorizationPolicy/shop/p";
    machine.hear(response("1", vec![workload(&[(policy, &[8080])])]), NOW);
    let snapshot = builder.snapshot(&machine, NOW);
    assert!(snapshot.inbound.default.strict && builder.inbound.current().is_none(), "its policy is on its way");
    let allow = v1::AuthorizationPolicy { namespace: "shop".into(), name: "p".into(), ..Default::default() };
    machine.hear(response("2", vec![resource(policy, &allow)]), NOW);
    let snapshot = builder.snapshot(&machine, NOW);
    assert!(builder.inbound.current().is_some());
    assert_eq!(&*snapshot.inbound.ports[&8080].service, "shop/cart");
    assert_eq!(reason(&snapshot, 8080), Some(Reason::NotAllowed), "an Allow policy without rules allows nothing");
    assert_eq!(reason(&snapshot, 9), None, "a port that it does not cover");
}

#[test]
fn a_refused_policy_closes_what_it_covers_and_keeps_the_version_before_it() {
    let (mut machine, mut builder) = (machine(), Builder::default());
    machine.open(NOW);
    let policy = "AuthorizationPolicy/shop/p";
    let broken = v1::AuthorizationPolicy {
        namespace: "shop".into(),
        name: "p".into(),
        rules: vec![v1::AuthorizationRule { from: vec![v1::AuthorizationFrom::default()], ..Default::default() }],
        ..Default::default()
    };
    let heard = machine.hear(response("1", vec![workload(&[(policy, &[8080])]), resource(policy, &broken)]), NOW);
    assert_eq!(heard.refused.len(), 1);
    let snapshot = builder.snapshot(&machine, NOW);
    assert!(matches!(reason(&snapshot, 8080), Some(Reason::PolicyInvalid | Reason::PolicyUnsupported)));
    assert_eq!(reason(&snapshot, 9), None);
    let deny = v1::AuthorizationPolicy {
        namespace: "shop".into(),
        name: "p".into(),
        action: v1::authorization_policy::Action::Deny.into(),
        ..Default::default()
    };
    machine.hear(response("2", vec![resource(policy, &deny)]), NOW);
    assert_eq!(reason(&builder.snapshot(&machine, NOW), 8080), None, "a Deny policy without rules denies nothing");
    machine.hear(response("3", vec![resource(policy, &broken)]), NOW);
    assert_eq!(reason(&builder.snapshot(&machine, NOW), 8080), None, "the last good version stays");
}

#[test]
fn limits_keep_their_counters() {
    let (mut machine, mut builder) = (machine(), Builder::default());
    machine.open(NOW);
    let policy = "RateLimitPolicy/shop/l";
    machine.hear(response("1", vec![workload(&[(policy, &[])]), limits(5, false)]), NOW);
    let first = Arc::clone(&builder.snapshot(&machine, NOW).inbound.default.limits[0]);
    assert_eq!(&*first.name, "RateLimitPolicy/shop/l/all");
    let cell = first.limiter.cell(None);
    // Something else changes: the very same limit.
    let policies = [(policy, &[][..]), ("AuthorizationPolicy/shop/q", &[1][..])];
    let allow = v1::AuthorizationPolicy { namespace: "shop".into(), name: "q".into(), ..Default::default() };
    machine.hear(response("2", vec![workload(&policies), resource("AuthorizationPolicy/shop/q", &allow)]), NOW);
    let snapshot = builder.snapshot(&machine, NOW);
    assert!(Arc::ptr_eq(&first, &snapshot.inbound.default.limits[0]));
    assert!(Arc::ptr_eq(&first, &snapshot.inbound.ports[&8080].limits[0]), "one count for all ports");
    // The policy changes: its namesake's counters.
    machine.hear(response("3", vec![limits(9, true)]), NOW);
    let edited = Arc::clone(&builder.snapshot(&machine, NOW).inbound);
    assert_eq!(edited.default.limits.len(), 2);
    assert!(Arc::ptr_eq(&cell, &edited.default.limits[0].limiter.cell(None)));
}

#[test]
fn saved_tables_give_the_same_again_and_old_plain_endpoints_wait() {
    let (mut machine, mut builder) = (holding(&[1]), Builder::default());
    let plain = member_of(WEB_SET, 2, None);
    let extent = resource("mesh-extent", &v1::MeshExtent { cidrs: vec!["10.0.0.0/8".into()] });
    machine.hear(response("2", vec![plain, extent, workload(&[]), limits(1, true)]), NOW);
    builder.snapshot(&machine, NOW);
    let saved = to_save(&machine);
    assert!(saved.entries.iter().all(|entry| !entry.name.starts_with("RateLimit")), "nothing points to it");
    for (confirmed, expected) in [(true, &["10.0.0.1:8080", "10.0.0.2:8080"][..]), (false, &["10.0.0.1:8080"])] {
        let (mut again, mut builder) = (super::machine(), Builder::default());
        restore(&mut again, saved.clone(), confirmed);
        let snapshot = builder.snapshot(&again, Duration::ZERO);
        assert!(snapshot.extent_known && builder.inbound.current().is_some());
        assert_eq!(places(&service(&snapshot).own), expected);
        // Control is back and has nothing to add: what waited may be used.
        again.open(NOW);
        let heard = again.hear(response("1", vec![]), NOW);
        assert!(heard.received.is_empty());
        let own = Arc::clone(&service(&snapshot).own);
        for head in &heard.collections {
            builder.update_set(&again, head, NOW);
        }
        assert_eq!(places(&own), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    }
}

use prost::Message;

/// `10.0.0.LAST` on a node of that number, for clients of that zone.
fn placed(last: u8) -> Resource {
    let mut told = v1::Endpoint::decode(member(last).resource.unwrap().value.as_slice()).unwrap();
    (told.node, told.for_zones) = (format!("n{last}"), vec![format!("z{last}")]);
    resource(&member(last).name, &told)
}

fn at(node: &str, zone: &str) -> Resource {
    let mut own = v1::Workload::decode(roots()[0].resource.as_ref().unwrap().value.as_slice()).unwrap();
    (own.node, own.zone) = (node.to_owned(), zone.to_owned());
    resource("workload/shop/cart-1", &own)
}

#[test]
fn which_endpoints_are_used_depends_on_where_both_are() {
    let (mut machine, mut builder) = (asking(), Builder::default());
    let members = [placed(1), placed(2)];
    let all = [roots(), vec![to_service(WEB), web(&[]), head(&members)], members.to_vec()].concat();
    machine.hear(response("1", all), NOW);
    let own = Arc::clone(&service(&builder.snapshot(&machine, NOW)).own);
    let order = |backend: &Backend| {
        let set = backend.endpoints.load();
        (set.members[0].addr.to_string(), set.order.near)
    };
    assert_eq!(order(&own), ("10.0.0.1:8080".to_owned(), 0), "nothing is known of us");
    machine.hear(response("2", vec![at("n2", "z2")]), NOW);
    builder.snapshot(&machine, NOW);
    assert_eq!(order(&own), ("10.0.0.2:8080".to_owned(), 1));
    // A further one, for nobody in particular.
    machine.hear(response("3", vec![member(3)]), NOW);
    assert!(builder.update_set(&machine, WEB_SET, NOW));
    assert_eq!(order(&own).1, 0);
    let mut local = v1::Service::decode(web(&[]).resource.unwrap().value.as_slice()).unwrap();
    local.node_local = true;
    machine.hear(response("4", vec![resource(WEB, &local)]), NOW);
    let own = Arc::clone(&service(&builder.snapshot(&machine, NOW)).own);
    assert_eq!(places(&own), ["10.0.0.2:8080"]);
}
