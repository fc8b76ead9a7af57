//! The machine: what it says, and what it holds afterwards.

use prost::Message;
use weft_api::convert::ErrorCode;

use super::super::machine::Change;
use super::super::table::Phase;
use super::*;

fn steady(machine: &Machine, set: &str) -> bool {
    machine.table.collections.get(set).is_some_and(super::super::table::Collection::is_steady)
}

#[test]
fn a_first_stream_asks_for_the_roots_and_claims_nothing() {
    let mut machine = machine();
    machine.subscribe(&VIP.into(), NOW);
    let said = machine.open(NOW);
    let asked: Vec<_> =
        said.iter().map(|r| (names::short_type(&r.type_url), r.resource_names_subscribe.clone())).collect();
    assert_eq!(
        asked,
        [
            ("MeshExtent", vec!["mesh-extent".to_owned()]),
            ("Workload", vec!["workload/shop/cart-1".to_owned()]),
            ("Address", vec![VIP.to_owned()]),
        ]
    );
    assert!(said.iter().all(|request| request.initial_resource_versions.is_empty()));
}

#[test]
fn an_address_is_asked_for_once() {
    let mut machine = machine();
    machine.open(NOW);
    let asked = machine.subscribe(&VIP.into(), NOW).unwrap();
    assert_eq!((asked.type_url.as_str(), asked.resource_names_subscribe), (ADDRESS, vec![VIP.to_owned()]));
    assert!(machine.subscribe(&VIP.into(), NOW).is_none());
    assert_eq!(machine.unanswered(), Some(NOW));
    let heard = machine.hear(response("n1", vec![]), NOW);
    assert_eq!(ack(&heard).response_nonce, "n1");
    assert!(ack(&heard).error_detail.is_none());
    assert_eq!(machine.unanswered(), None);
}

#[test]
fn a_set_is_used_only_when_its_digest_matches() {
    let mut machine = asking();
    let all = [member(1), member(2), member(3)];
    let heard = machine.hear(response("1", vec![to_service(WEB), web(&[]), head(&all), all[0].clone()]), NOW);
    assert!(!steady(&machine, WEB_SET) && heard.collections.is_empty());
    let heard = machine.hear(response("2", vec![all[1].clone()]), NOW);
    assert!(!steady(&machine, WEB_SET) && heard.collections.is_empty());
    let heard = machine.hear(response("3", vec![all[2].clone()]), NOW);
    assert!(steady(&machine, WEB_SET) && heard.collections.contains(WEB_SET));
}

#[test]
fn a_set_that_moves_while_it_comes_ends_with_another_head() {
    let mut machine = asking();
    let all = [member(1), member(2)];
    machine.hear(response("1", vec![to_service(WEB), web(&[]), head(&[member(1), member(9)]), all[0].clone()]), NOW);
    let heard = machine.hear(response("2", vec![all[1].clone(), head(&all)]), NOW);
    assert!(steady(&machine, WEB_SET) && heard.collections.contains(WEB_SET));
    assert_eq!(machine.table.collections[WEB_SET].members.len(), 2);
}

#[test]
fn a_member_comes_and_goes_alone() {
    let mut machine = holding(&[1]);
    let heard = machine.hear(response("2", vec![member(2)]), NOW);
    assert!(!heard.structure && heard.collections.contains(WEB_SET));
    assert_eq!(heard.received, [(4, Change::New)]);
    let gone = DeltaDiscoveryResponse { removed_resources: vec![member(1).name], ..response("3", vec![]) };
    let heard = machine.hear(gone, NOW);
    assert!(!heard.structure && heard.collections.contains(WEB_SET));
    let set = &machine.table.collections[WEB_SET];
    assert_eq!((set.members.len(), set.version()), (1, head(&[member(2)]).version));
}

#[test]
fn what_cannot_be_used_is_refused_by_name_and_the_rest_applied() {
    let mut machine = holding(&[1]);
    let before = machine.table.nodes[WEB].version.clone();
    let mut broken = web(&["HTTPRoute/shop/x"]);
    broken.resource.as_mut().unwrap().value = b"\xff".to_vec();
    broken.version = "bad".into();
    let heard = machine.hear(response("2", vec![broken, member(2)]), NOW);
    let answer = ack(&heard);
    let error = answer.error_detail.as_ref().unwrap();
    let details = v1::NackDetails::decode(error.details[0].value.as_slice()).unwrap();
    assert_eq!(error.details[0].type_url, v1::NackDetails::TYPE_URL);
    assert_eq!(details.errors.len(), 1);
    let told = &details.errors[0];
    assert_eq!(
        (told.name.as_str(), told.version.as_str(), told.code.as_str()),
        (WEB, "bad", ErrorCode::Malformed.code())
    );
    assert_eq!(machine.table.nodes[WEB].version, before, "the version before it stays");
    assert_eq!(machine.table.collections[WEB_SET].members.len(), 2, "the good one is applied");
}

#[test]
fn a_resource_under_a_name_that_is_not_its_own_is_refused() {
    let mut machine = asking();
    let mut stranger = web(&[]);
    stranger.name = "service/shop/other:80".into();
    let mut odd = to_service(WEB);
    odd.name = "no-address".into();
    let mut endpoint = member(1);
    endpoint.name = WEB_SET.into();
    let mut unknown = member(2);
    unknown.resource.as_mut().unwrap().type_url = "type.googleapis.com/weft.v2.Endpoint".into();
    let heard = machine.hear(response("1", vec![stranger, odd, endpoint, unknown]), NOW);
    let codes: Vec<&str> = heard.refused.iter().map(|error| error.code.as_str()).collect();
    let name = ErrorCode::InvalidName.code();
    assert_eq!(codes, [name, name, name, ErrorCode::UnknownType.code()]);
}

#[test]
fn too_many_refusals_refuse_the_whole_response() {
    let mut machine =
        Machine::new("workload/shop/cart-1".into(), "cluster.local".into(), Limits { details: 1, ..Limits::default() });
    machine.open(NOW);
    let broken = |name: &str| Resource { name: name.into(), ..to_service("nonsense") };
    let heard = machine.hear(response("1", vec![broken("a:1"), broken("b:1")]), NOW);
    assert!(ack(&heard).error_detail.as_ref().unwrap().details.is_empty());
}

#[test]
fn what_nothing_points_to_is_forgotten() {
    let mut machine = holding(&[1, 2]);
    assert!(machine.table.nodes.contains_key(WEB));
    // The address now means something else.
    let other = resource(VIP, &v1::Address { target: Some(v1::address::Target::Outside(v1::Outside::default())) });
    let heard = machine.hear(response("2", vec![other]), NOW);
    assert!(heard.structure);
    assert!(!machine.table.nodes.contains_key(WEB) && machine.table.collections.is_empty());
    // What comes for a set that is forgotten is nobody's.
    let heard = machine.hear(response("3", vec![member(3)]), NOW);
    assert!(heard.received.is_empty() && heard.refused.is_empty() && heard.collections.is_empty());
    let said = machine.unsubscribe(&[VIP.into(), "10.0.0.9:1".into()]).unwrap();
    assert_eq!(said.resource_names_unsubscribe, [VIP]);
    assert!(!machine.table.holds(VIP));
    assert!(machine.unsubscribe(&[VIP.into()]).is_none());
}

#[test]
fn nothing_is_forgotten_while_something_is_on_its_way_but_not_for_ever() {
    let mut machine = holding(&[1]);
    machine.subscribe(&"10.96.0.2:80".into(), NOW);
    machine.unsubscribe(&[VIP.into()]);
    assert!(machine.table.holds(WEB), "the address that is on its way may point to it");
    let asked = machine.heal(NOW + Duration::from_secs(1));
    assert_eq!(asked[0].resource_names_subscribe, ["10.96.0.2:80"]);
    machine.heal(NOW + Duration::from_mins(1));
    assert!(machine.table.holds(WEB));
    machine.heal(NOW + Duration::from_secs(61));
    assert!(!machine.table.holds(WEB));
}

#[test]
fn an_address_that_lacks_something_is_asked_for_again() {
    let mut machine = holding(&[1]);
    machine.hear(response("2", vec![web(&["HTTPRoute/shop/lost"])]), NOW);
    assert!(machine.heal(NOW).is_empty());
    let later = NOW + Duration::from_secs(1);
    let said = machine.heal(later);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].resource_names_subscribe, [VIP]);
    assert!(machine.heal(later).is_empty(), "not at once again");
    machine.hear(response("3", vec![to_service(WEB), web(&[]), head(&[member(1)]), member(1)]), later);
    assert!(machine.heal(later + Duration::from_secs(9)).is_empty());
}

#[test]
fn after_a_reconnect_versions_are_named_and_heads_by_digest() {
    let mut machine = holding(&[1, 2]);
    machine.closed();
    assert!(machine.subscribe(&"10.96.0.2:80".into(), NOW).is_none(), "no stream: nothing is said");
    let said = machine.open(NOW);
    let address = said.iter().find(|request| request.type_url == ADDRESS).unwrap();
    let mut subscribed = address.resource_names_subscribe.clone();
    subscribed.sort();
    assert_eq!(subscribed, [VIP, "10.96.0.2:80"]);
    let claimed = &address.initial_resource_versions;
    assert_eq!(claimed.len(), 3, "no endpoint is named: {claimed:?}");
    assert_eq!(claimed[VIP], to_service(WEB).version);
    assert_eq!(claimed[WEB], web(&[]).version);
    assert_eq!(claimed[WEB_SET], head(&[member(1), member(2)]).version);
}

#[test]
fn a_set_that_differs_after_a_reconnect_is_asked_for_by_members() {
    let mut machine = holding(&[1, 2]);
    machine.closed();
    machine.open(NOW);
    let heard = machine.hear(response("1", vec![head(&[member(2), member(3)])]), NOW);
    let asked = heard.replies.iter().find(|reply| reply.type_url == v1::Endpoint::TYPE_URL).unwrap();
    assert_eq!(asked.resource_names_subscribe, [WEB_SET]);
    assert_eq!(asked.initial_resource_versions.len(), 2);
    assert_eq!(asked.initial_resource_versions[&member(1).name], member(1).version);
    ack(&heard);
    assert!(heard.collections.is_empty() && !steady(&machine, WEB_SET));
    let difference =
        DeltaDiscoveryResponse { removed_resources: vec![member(1).name], ..response("2", vec![member(3)]) };
    let heard = machine.hear(difference, NOW);
    assert!(steady(&machine, WEB_SET) && heard.collections.contains(WEB_SET));
    // The same head again, unasked: control has forgotten what we hold and begins from nothing.
    machine.hear(response("3", vec![head(&[member(4)])]), NOW);
    assert!(machine.table.collections[WEB_SET].members.is_empty());
    machine.hear(response("4", vec![member(4)]), NOW);
    assert!(steady(&machine, WEB_SET));
}

#[test]
fn a_set_that_was_on_its_way_begins_anew() {
    let mut machine = asking();
    machine.hear(response("1", vec![to_service(WEB), web(&[]), head(&[member(1), member(2)]), member(1)]), NOW);
    machine.closed();
    let said = machine.open(NOW);
    assert!(said.iter().all(|request| !request.initial_resource_versions.contains_key(WEB_SET)));
    machine.hear(response("1", vec![head(&[member(2)])]), NOW);
    assert!(!steady(&machine, WEB_SET), "the half that was there is gone");
    machine.hear(response("2", vec![member(2)]), NOW);
    assert!(steady(&machine, WEB_SET));
}

#[test]
fn a_set_that_does_not_come_is_asked_for_again() {
    let mut machine = asking();
    machine.hear(response("1", vec![to_service(WEB), web(&[]), head(&[member(1), member(2)]), member(1)]), NOW);
    assert!(machine.heal(NOW + Duration::from_secs(2)).is_empty());
    let later = NOW + Duration::from_secs(3);
    machine.hear(response("2", roots()), NOW);
    let said = machine.heal(later);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].resource_names_subscribe, [WEB_SET]);
    assert_eq!(said[0].initial_resource_versions.len(), 1);
    assert!(machine.heal(later).is_empty(), "not at once again");
    assert!(matches!(machine.table.collections[WEB_SET].phase, Phase::Loading { .. }));
}

#[test]
fn large_requests_are_split_and_the_names_come_last() {
    let mut machine = holding(&[1]);
    for n in 0..200 {
        machine.subscribe(&format!("10.1.0.{n}:80").into(), NOW);
    }
    machine.closed();
    let small = Limits { request: 150, ..Limits::default() };
    let mut other = Machine::new("workload/shop/cart-1".into(), "cluster.local".into(), small);
    std::mem::swap(&mut other.table, &mut machine.table);
    for name in machine.addresses().keys() {
        other.subscribe(name, NOW);
    }
    let said: Vec<_> = other.open(NOW).into_iter().filter(|request| request.type_url == ADDRESS).collect();
    assert!(said.len() > 1);
    let (last, first) = said.split_last().unwrap();
    assert_eq!(last.resource_names_subscribe.len(), 201);
    assert!(first.iter().all(|request| request.resource_names_subscribe.is_empty()));
    assert_eq!(said.iter().map(|request| request.initial_resource_versions.len()).sum::<usize>(), 3);
}

#[test]
fn members_that_cannot_be_named_are_forgotten() {
    let small = Limits { request: 200, ..Limits::default() };
    let mut machine = Machine::new("workload/shop/cart-1".into(), "cluster.local".into(), small);
    machine.open(NOW);
    machine.subscribe(&VIP.into(), NOW);
    let all: Vec<Resource> = (1..20).map(member).collect();
    let mut resources = vec![to_service(WEB), web(&[]), head(&all)];
    resources.extend(all);
    machine.hear(response("1", resources), NOW);
    machine.closed();
    machine.open(NOW);
    let heard = machine.hear(response("1", vec![head(&[member(1)])]), NOW);
    let asked = heard.replies.iter().find(|reply| reply.type_url == v1::Endpoint::TYPE_URL).unwrap();
    let held = &machine.table.collections[WEB_SET].members;
    assert!(held.len() < 19 && held.len() == asked.initial_resource_versions.len());
}

#[test]
fn addresses_are_bounded() {
    let mut machine =
        Machine::new("workload/a/b".into(), "cluster.local".into(), Limits { addresses: 1, ..Limits::default() });
    machine.open(NOW);
    assert!(machine.subscribe(&VIP.into(), NOW).is_some());
    assert!(machine.is_full());
    assert!(machine.subscribe(&"10.0.0.1:1".into(), NOW).is_none());
    machine.unsubscribe(&[VIP.into()]);
    assert!(machine.subscribe(&"10.0.0.1:1".into(), NOW).is_some());
}
