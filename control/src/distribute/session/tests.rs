//! A proxy in memory (the mirror) at the other end of a session: after whatever happened, it holds what is true and nothing else.

mod mirror;
mod standing;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use weft_api::names::ResourceType;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_api::wire::v1;

use super::*;
use crate::compile::{Changes, Compiled, compile};
use crate::model::{Model, Route, SliceEndpoint};
use crate::testing::{edit, ip, name, parent_of, ready, shop, slice};
use mirror::{Mirror, subscribe};

const ADDRESS: &str = v1::Address::TYPE_URL;
const ENDPOINT: &str = v1::Endpoint::TYPE_URL;
const WEB: &str = "endpoints/shop/web:80";

/// Control's end.
struct Server {
    compiled: Compiled,
    session: Session,
    now: Duration,
}

impl Server {
    fn new(model: &Model, limits: Limits) -> Self {
        Self { compiled: compile(model), session: Session::new(name("web-1"), limits), now: Duration::ZERO }
    }

    fn hear(&mut self, request: DeltaDiscoveryRequest) -> Heard {
        self.session.hear(request, &self.compiled, self.now).unwrap()
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.session.next(&self.compiled, self.now)
    }

    fn publish(&mut self, model: &Model) {
        let differences = self.compiled.model().changes_to(model);
        let changes = self.compiled.update(differences, BTreeSet::new());
        self.session.touch(&listened(&self.session, &changes), self.now);
    }

    /// All that it says, acknowledged at once.
    fn drain(&mut self) -> Vec<DeltaDiscoveryResponse> {
        let mut said = Vec::new();
        while let Some(response) = self.next() {
            self.hear(ack(&response));
            said.push(response);
        }
        said
    }
}

/// What the subscriber index would pass on.
fn listened(session: &Session, changes: &Changes) -> Touched {
    let mut touched = Touched::all(changes);
    let topics = session.topics();
    touched.topics.retain(|topic| topics.contains(topic));
    touched.members.retain(|(head, _)| topics.contains(&Topic::Name(Arc::clone(head))));
    touched
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn web(model: &mut Model, endpoints: Vec<SliceEndpoint>) {
    model.slices.insert(name("web-x"), slice("web", endpoints));
}

#[test]
fn an_address_brings_all_it_points_to_in_one_response() {
    let mut server = Server::new(&shop(), Limits::default());
    server.hear(subscribe(ADDRESS, &["10.96.0.1:80"]));
    let said = server.drain();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].type_url, ADDRESS);
    let expected =
        ["10.96.0.1:80", "service/shop/web:80", WEB, "endpoints/shop/web:80/web-1", "endpoints/shop/web:80/web-2"];
    assert_eq!(names(&said[0]), expected);
}

#[test]
fn a_proxy_of_an_earlier_build_is_told_the_type_of_each_resource() {
    let types = |server: &mut Server| -> Vec<String> {
        server.hear(subscribe(ADDRESS, &["10.96.0.1:80"]));
        let said = server.drain();
        said[0].resources.iter().map(|resource| resource.resource.as_ref().unwrap().type_url.clone()).collect()
    };
    let mut today = Server::new(&shop(), Limits::default());
    assert_eq!(types(&mut today)[..2], [String::new(), v1::Service::TYPE_URL.to_owned()]);
    let mut earlier = Server::new(&shop(), Limits::default());
    earlier.session = earlier.session.spelt_out();
    assert_eq!(types(&mut earlier)[..2], [ADDRESS, v1::Service::TYPE_URL]);
}

#[test]
fn an_endpoint_goes_alone_and_only_to_those_who_hold_its_set() {
    let mut model = shop();
    let mut holds = Server::new(&model, Limits::default());
    holds.hear(subscribe(ADDRESS, &["web.shop:80"]));
    holds.drain();
    let mut other = Server::new(&model, Limits::default());
    other.hear(subscribe(ADDRESS, &["cart.shop:80"]));
    other.drain();
    let zone = SliceEndpoint { zone: "b".into(), ..ready(2, Some("web-2")) };
    web(&mut model, vec![ready(1, Some("web-1")), zone]);
    holds.publish(&model);
    other.publish(&model);
    let said = holds.drain();
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].type_url.as_str(), names(&said[0])), (ENDPOINT, vec!["endpoints/shop/web:80/web-2"]));
    assert!(other.drain().is_empty());

    web(&mut model, vec![ready(1, Some("web-1"))]);
    holds.publish(&model);
    let said = holds.drain();
    assert_eq!(said[0].removed_resources, ["endpoints/shop/web:80/web-2"]);
    assert!(said[0].resources.is_empty());
}

#[test]
fn a_route_edit_sends_the_route_and_what_is_new() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    server.drain();
    let backend = v1::RouteBackend { service: "service/shop/cart:80".into(), weight: 1, ..Default::default() };
    let rule = v1::RouteRule { backends: vec![backend], ..Default::default() };
    let parents = vec![parent_of("web")];
    let key = ("HTTPRoute".to_owned(), name("canary"));
    model.routes.insert(key.clone(), Route { parents, rules: vec![rule], ..Route::default() });
    server.publish(&model);
    let said = server.drain();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].type_url, v1::Service::TYPE_URL);
    let expected = [
        "service/shop/web:80",
        "HTTPRoute/shop/canary",
        "service/shop/cart:80",
        "endpoints/shop/cart:80",
        "endpoints/shop/cart:80/cart-1",
    ];
    assert_eq!(names(&said[0]), expected);

    model.routes.get_mut(&key).unwrap().rules[0].backends[0].weight = 5;
    server.publish(&model);
    let said = server.drain();
    assert_eq!((said.len(), said[0].type_url.as_str()), (1, v1::Route::TYPE_URL));
    assert_eq!(names(&said[0]), ["HTTPRoute/shop/canary"]);

    // Without the route nobody points to cart any more: it is forgotten on both sides without a word.
    model.routes.remove(&key);
    server.publish(&model);
    let said = server.drain();
    assert_eq!(names(&said[0]), ["service/shop/web:80"]);
    assert!(!server.session.nodes.contains_key("service/shop/cart:80"));
}

#[test]
fn an_unknown_name_is_answered_and_turns_into_a_service_when_that_comes() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(ADDRESS, &["new.shop:80", "10.96.0.9:80"]));
    let said = server.drain();
    assert_eq!(names(&said[0]), ["new.shop:80", "10.96.0.9:80"]);
    let mut service = crate::testing::service(9);
    service.cluster_ips = vec![ip(96, 0, 9)];
    model.services.insert(name("new"), service);
    server.publish(&model);
    let said = server.drain();
    assert_eq!(said[0].type_url, ADDRESS);
    let mut all: Vec<&str> = said.iter().flat_map(names).collect();
    all.sort_unstable();
    assert_eq!(all, ["10.96.0.9:80", "endpoints/shop/new:80", "new.shop:80", "service/shop/new:80"]);
}

#[test]
fn the_first_request_of_a_type_is_answered_even_if_there_is_nothing_to_say() {
    let model = shop();
    let mut mirror = Mirror::new();
    let mut server = Server::new(&model, Limits::default());
    mirror.subscribe("web.shop:80");
    mirror.reconnect(&mut server);
    mirror.exchange(&mut server);
    let mut again = Server::new(&model, Limits::default());
    for request in mirror.hello() {
        again.hear(request);
    }
    let said = again.drain();
    assert!(said.iter().all(|response| response.resources.is_empty() && response.removed_resources.is_empty()));
    let types: Vec<&str> = said.iter().map(|response| response.type_url.as_str()).collect();
    assert_eq!(types, [v1::MeshExtent::TYPE_URL, v1::Workload::TYPE_URL, ADDRESS]);
}

#[test]
fn after_a_reconnect_the_head_goes_alone_and_the_difference_when_asked_for() {
    let mut model = shop();
    let mut mirror = Mirror::new();
    let mut server = Server::new(&model, Limits::default());
    mirror.subscribe("web.shop:80");
    mirror.reconnect(&mut server);
    mirror.exchange(&mut server);
    let one = SliceEndpoint { zone: "b".into(), ..ready(1, Some("web-1")) };
    web(&mut model, vec![one, ready(3, Some("cart-1"))]);

    let mut again = Server::new(&model, Limits::default());
    let hello = mirror.hello();
    for request in hello {
        again.hear(request);
    }
    let said = again.drain();
    let all: Vec<&str> = said.iter().flat_map(names).collect();
    assert_eq!(all, [WEB], "only the head");
    // A change while the proxy has not said yet what it holds is part of the difference, not sent before.
    let two = SliceEndpoint { zone: "c".into(), ..ready(1, Some("web-1")) };
    web(&mut model, vec![two, ready(3, Some("cart-1"))]);
    again.publish(&model);
    assert!(again.drain().is_empty());

    let mut request = subscribe(ENDPOINT, &[WEB]);
    request.initial_resource_versions = mirror.members(WEB);
    again.hear(request);
    let said = again.drain();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].removed_resources, ["endpoints/shop/web:80/web-2"]);
    assert_eq!(names(&said[0]), ["endpoints/shop/web:80/cart-1", "endpoints/shop/web:80/web-1", WEB]);
}

#[test]
fn a_set_that_changes_while_it_is_sent_ends_with_its_new_head() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits { message: 340, ..Limits::default() });
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    let mut said = vec![server.next().unwrap()];
    while !names(said.last().unwrap()).contains(&"endpoints/shop/web:80/web-1") {
        said.push(server.next().unwrap());
    }
    let one = SliceEndpoint { zone: "b".into(), ..ready(1, Some("web-1")) };
    web(&mut model, vec![one, ready(2, Some("web-2"))]);
    server.publish(&model);
    said.extend(server.drain());
    let heads = said.iter().flat_map(|response| &response.resources).filter(|resource| resource.name == WEB);
    let versions: Vec<&str> = heads.map(|head| head.version.as_str()).collect();
    assert_eq!(versions.len(), 2);
    assert_eq!(versions[1], &*server.compiled.get(WEB).unwrap().version);
    assert!(said.iter().all(|response| prost::Message::encoded_len(response) < 700));
}

#[test]
fn a_slow_proxy_gets_the_last_version_only() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits { window: 1, pending_members: 2, ..Limits::default() });
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    let first = server.next().unwrap();
    for zone in 0..50 {
        let one = SliceEndpoint { zone: zone.to_string(), ..ready(1, Some("web-1")) };
        web(&mut model, vec![one, ready(2, Some("web-2"))]);
        server.publish(&model);
        assert!(!server.session.has_work());
    }
    assert_eq!(server.session.queue.len(), 1);
    server.hear(ack(&first));
    let said = server.drain();
    assert_eq!(said.len(), 1);
    assert_eq!(names(&said[0]), ["endpoints/shop/web:80/web-1"]);
}

#[test]
fn a_set_that_a_proxy_runs_is_held_by_one_pointer_again_after_each_change() {
    let (mut model, mut server) = (shop(), Server::new(&shop(), Limits::default()));
    let shared = |server: &Server| Arc::strong_count(&server.compiled.collection(WEB).unwrap().members) - 1;
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    server.drain();
    assert_eq!((shared(&server), server.session.behind()), (1, 0));
    let all = server.session.len();
    for endpoints in [vec![ready(1, Some("web-1"))], vec![], vec![ready(2, Some("web-2"))]] {
        web(&mut model, endpoints);
        server.publish(&model);
        let said = server.next().unwrap();
        assert_eq!(shared(&server), 0, "what it runs is the old one");
        assert_eq!(server.session.behind(), said.resources.len() + said.removed_resources.len());
        server.hear(ack(&said));
        let members = server.compiled.collection(WEB).map_or(0, |set| set.members.len());
        assert_eq!((server.session.behind(), server.session.len()), (0, all - 2 + members));
        assert_eq!(shared(&server), 1);
    }
}

#[test]
fn an_endpoint_that_came_and_went_before_the_proxy_said_a_word_is_not_held() {
    let (mut model, mut server) = (shop(), Server::new(&shop(), Limits::default()));
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    server.drain();
    let all = server.session.len();
    web(&mut model, vec![ready(1, Some("web-1")), ready(2, Some("web-2")), ready(3, Some("cart-1"))]);
    server.publish(&model);
    let came = server.next().unwrap();
    assert_eq!(names(&came), ["endpoints/shop/web:80/cart-1"]);
    server.publish(&shop());
    let went = server.next().unwrap();
    assert_eq!(went.removed_resources.len(), 1);
    for said in [came, went] {
        assert_ne!(server.session.behind(), 0);
        assert!(!server.session.settled(&server.compiled, "endpoints/shop/web:80/cart-1"), "it may choose it");
        server.hear(ack(&said));
    }
    assert!(server.session.settled(&server.compiled, "endpoints/shop/web:80/cart-1"));
    assert_eq!((server.session.len(), server.session.behind()), (all, 0));
}

#[test]
fn what_changed_back_before_it_was_sent_is_not_sent() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits { window: 1, ..Limits::default() });
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    let first = server.next().unwrap();
    web(&mut model, vec![ready(1, Some("web-1"))]);
    server.publish(&model);
    server.publish(&shop());
    server.hear(ack(&first));
    assert!(server.drain().is_empty());
}

fn nack(response: &DeltaDiscoveryResponse, refused: &[&str]) -> DeltaDiscoveryRequest {
    let error = |name: &&str| v1::ResourceError {
        name: (*name).to_owned(),
        code: "invalid_port".to_owned(),
        message: "no".to_owned(),
        ..Default::default()
    };
    let details = v1::NackDetails { errors: refused.iter().map(error).collect() };
    let any = prost_types::Any {
        type_url: v1::NackDetails::TYPE_URL.to_owned(),
        value: prost::Message::encode_to_vec(&details),
    };
    let details = if refused.is_empty() { Vec::new() } else { vec![any] };
    let status = weft_api::wire::rpc::Status { code: 3, message: "refused".to_owned(), details };
    DeltaDiscoveryRequest { error_detail: Some(status), ..ack(response) }
}

#[test]
fn a_nack_is_kept_by_resource_and_not_answered_with_the_same_again() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    let said = server.next().unwrap();
    let heard = server.hear(nack(&said, &["service/shop/web:80"]));
    assert!(heard.acked);
    assert_eq!(heard.nacks.len(), 1);
    assert!(server.drain().is_empty());
    let versions = server.session.versions();
    let of = |name: &str| versions.iter().find(|version| &*version.name == name).unwrap();
    assert_eq!(of("service/shop/web:80").acknowledged, None);
    assert_eq!(of("service/shop/web:80").refused.as_deref(), Some("invalid_port: no"));
    assert_eq!(of(WEB).acknowledged, of(WEB).sent);

    web(&mut model, vec![ready(1, Some("web-1"))]);
    server.publish(&model);
    let said = server.next().unwrap();
    let heard = server.hear(nack(&said, &[]));
    assert!(!heard.acked);
    assert_eq!(heard.nacks[0].code, "response");
    assert!(!server.session.settled(&server.compiled, "endpoints/shop/web:80/web-2"));
}

#[test]
fn settled_means_acknowledged_as_it_is_now() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    let member = "endpoints/shop/web:80/web-2";
    assert!(server.session.settled(&server.compiled, member), "nothing held");
    server.hear(subscribe(ADDRESS, &["web.shop:80", "10.0.0.2:80"]));
    assert!(!server.session.settled(&server.compiled, "10.0.0.2:80"), "asked for, not answered");
    let said = server.next().unwrap();
    assert!(!server.session.settled(&server.compiled, member), "sent, not acknowledged");
    server.hear(ack(&said));
    assert!(server.session.settled(&server.compiled, member));
    web(&mut model, vec![ready(1, Some("web-1"))]);
    server.publish(&model);
    assert!(!server.session.settled(&server.compiled, member), "removal pending");
    let said = server.next().unwrap();
    assert!(!server.session.settled(&server.compiled, member), "removal sent");
    server.hear(ack(&said));
    assert!(server.session.settled(&server.compiled, member));
    assert_eq!(server.session.addresses_of(ip(0, 0, 2)), ["10.0.0.2:80".into()]);
}

#[test]
fn who_subscribes_again_has_lost_something_and_gets_it_all() {
    let mut server = Server::new(&shop(), Limits::default());
    server.hear(subscribe(ADDRESS, &["web.shop:80", "10.96.0.1:80"]));
    server.drain();
    server.hear(subscribe(ADDRESS, &["web.shop:80"]));
    let said = server.drain();
    assert_eq!(said[0].resources.len(), 5);
    let mut request = subscribe(ADDRESS, &["web.shop:80"]);
    request.initial_resource_versions =
        said[0].resources.iter().skip(2).map(|one| (one.name.clone(), one.version.clone())).collect();
    server.hear(request);
    let said = server.drain();
    assert_eq!(names(&said[0]), ["web.shop:80", "service/shop/web:80"]);
}

#[test]
fn the_protocol_is_kept_or_the_stream_ends() {
    let mut server = Server::new(&shop(), Limits { roots: 2, ..Limits::default() });
    let foreign = subscribe(v1::Workload::TYPE_URL, &["workload/shop/web-2"]);
    let error = server.session.hear(foreign, &server.compiled, Duration::ZERO).unwrap_err();
    assert!(matches!(error, Violation::NotYours { .. }));
    let stale = DeltaDiscoveryRequest { response_nonce: "7".to_owned(), ..Default::default() };
    assert!(matches!(server.session.hear(stale, &server.compiled, Duration::ZERO), Err(Violation::Nonce(_))));
    let long = "a".repeat(600);
    server.hear(subscribe(ADDRESS, &["a.b:1", "a.b:2", "a.b:3", "service/shop/web:80", &long]));
    assert_eq!(server.session.subscriptions(), 2);
    assert_eq!(server.session.take_refused(), 3);
}

#[test]
fn a_workload_that_is_gone_keeps_its_rules() {
    let mut model = shop();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(v1::Workload::TYPE_URL, &["workload/shop/web-1"]));
    assert_eq!(server.drain().len(), 1);
    model.workloads.remove(&name("web-1"));
    server.publish(&model);
    assert!(server.drain().is_empty());
}

#[test]
fn a_workload_that_comes_later_is_told_of() {
    let mut model = shop();
    let web_1 = model.workloads.remove(&name("web-1")).unwrap();
    let mut server = Server::new(&model, Limits::default());
    server.hear(subscribe(v1::Workload::TYPE_URL, &["workload/shop/web-1"]));
    assert!(server.drain().iter().all(|response| response.resources.is_empty()));
    model.workloads.insert(name("web-1"), web_1);
    server.publish(&model);
    assert_eq!(names(&server.drain()[0]), ["workload/shop/web-1", "trust", "revoked"]);
}

#[derive(Clone, Debug)]
enum Step {
    Edit([u8; 5]),
    Subscribe(u8),
    Unsubscribe(u8),
    Deliver(u8),
    Reconnect,
    Lose(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<[u8; 5]>().prop_map(Step::Edit),
        3 => any::<u8>().prop_map(Step::Subscribe),
        1 => any::<u8>().prop_map(Step::Unsubscribe),
        4 => any::<u8>().prop_map(Step::Deliver),
        1 => Just(Step::Reconnect),
        1 => any::<u8>().prop_map(Step::Lose),
    ]
}

const ASKED: [&str; 14] = [
    "10.96.0.0:80",
    "10.96.0.1:80",
    "10.96.0.1:81",
    "10.96.0.2:99",
    "10.0.0.0:80",
    "10.0.0.1:8080",
    "web.shop:80",
    "cart.shop.svc:81",
    "db.shop:80",
    "ext.shop:80",
    "ext.shop:443",
    "first.db.shop:80",
    "example.com:80",
    "10.0.0.3:1",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Edits, subscriptions, lost connections and slow proxies in any order: in the end the proxy holds what is true, nothing else, and
    /// was never sent what it had.
    #[test]
    fn the_proxy_comes_to_hold_what_is_true(
        steps in prop::collection::vec(step(), 1..80),
        message in prop_oneof![Just(300usize), Just(900), Just(1 << 20)],
        window in 1..4usize,
        pending_members in 0..3usize,
    ) {
        let limits = Limits { window, message, pending_members, ..Limits::default() };
        let mut model = shop();
        let mut server = Server::new(&model, limits);
        let mut mirror = Mirror::new();
        mirror.reconnect(&mut server);
        for step in steps {
            match step {
                Step::Edit(bytes) => {
                    // What the proxy has said that it holds counts until something changes.
                    mirror.lenient |= !server.session.claims.is_empty();
                    edit(&mut model, bytes);
                    server.publish(&model);
                }
                Step::Subscribe(which) => {
                    // What is under way is taken first: subscribing while it is may cost a resource twice, by the protocol.
                    mirror.exchange(&mut server);
                    let asked = ASKED[usize::from(which) % ASKED.len()];
                    if mirror.subscribe(asked) {
                        server.hear(subscribe(ADDRESS, &[asked]));
                    }
                }
                Step::Unsubscribe(which) => {
                    mirror.exchange(&mut server);
                    let asked = ASKED[usize::from(which) % ASKED.len()];
                    if mirror.unsubscribe(asked) {
                        let mut request = subscribe(ADDRESS, &[]);
                        request.resource_names_unsubscribe = vec![asked.to_owned()];
                        server.hear(request);
                    }
                }
                Step::Deliver(count) => mirror.deliver(&mut server, usize::from(count % 3)),
                Step::Reconnect => {
                    server.session = Session::new(name("web-1"), limits);
                    mirror.reconnect(&mut server);
                }
                Step::Lose(count) => {
                    // Responses are lost with the connection.
                    for _ in 0..count % 3 {
                        server.next();
                    }
                    server.session = Session::new(name("web-1"), limits);
                    mirror.reconnect(&mut server);
                }
            }
        }
        mirror.exchange(&mut server);
        mirror.check(&server.compiled)?;
        prop_assert!(mirror.heals == 0 || message < 1 << 20, "healed {} times", mirror.heals);
        prop_assert_eq!(server.session.unacknowledged(), 0);
        prop_assert!(server.session.queue.is_empty());
        for version in server.session.versions() {
            prop_assert_eq!(&version.sent, &version.acknowledged, "{}", version.name);
        }
    }
}
