//! Several replicas of control: decisions need all of them, and none is made for want of an answer.

mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::common::{Mesh, Proxy, ask, slice};
use prost::Message as _;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use weft_api::names::{self, ResourceType};
use weft_api::wire::core::Node;
use weft_api::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_api::wire::replicas as wire;
use weft_api::wire::replicas::replicas_client::ReplicasClient;
use weft_api::wire::v1;
use weft_api::wire::v1::drain_client::DrainClient;
use weft_certs::ca::Ca;
use weft_certs::ca::rotation::Kind;
use weft_certs::svid::Svid;
use weft_control::distribute::Hub;
use weft_control::{Config, Control};

const ADDRESS: &str = v1::Address::TYPE_URL;
const SOON: Duration = Duration::from_secs(10);
/// Of a drain that is acknowledged.
const LONG: Duration = Duration::from_secs(20);

/// Another control on the same files and CA.
struct Replica {
    listen: SocketAddr,
    hub: Arc<Hub>,
    ran: JoinHandle<()>,
}

impl Replica {
    /// It knows the others; they hear of it when it follows them.
    async fn start(mesh: &Mesh, listen: SocketAddr, others: &[SocketAddr]) -> Self {
        let mut config = Config::new(vec![mesh.dir.path().join("files")], mesh.dir.path().join("ca"));
        (config.listen, config.metrics) = (listen, ([127, 0, 0, 1], 0).into());
        config.replicas = others.iter().map(ToString::to_string).collect();
        let control = Control::start(config).await.unwrap();
        let (listen, hub) = (control.listen, Arc::clone(&control.hub));
        let ran = tokio::spawn(async move { control.until(std::future::pending()).await.unwrap() });
        Self { listen, hub, ran }
    }

    /// As if the process had been killed.
    async fn kill(self) {
        self.ran.abort();
        let _ = self.ran.await;
        drop(self.hub);
    }
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Each hears so many others.
async fn heard(hubs: &[&Hub], replicas: usize) {
    let hears = |hub: &&Hub| hub.replicas.seen().iter().filter(|one| one.heard).count() == replicas;
    until("the others to be heard", || hubs.iter().all(hears)).await;
}

/// A stream of this run of a proxy.
async fn instance(channel: Channel, pod: &str, instance: &str) -> impl Sized {
    let (out, requests) = tokio::sync::mpsc::channel(4);
    let mut first = ask(v1::MeshExtent::TYPE_URL, &[names::MESH_EXTENT], &[]);
    let kind = Some(prost_types::value::Kind::StringValue(instance.to_owned()));
    let fields = [("instance".to_owned(), prost_types::Value { kind })].into_iter().collect();
    let metadata = Some(prost_types::Struct { fields });
    first.node = Some(Node { id: format!("shop/{pod}"), metadata, ..Default::default() });
    out.send(first).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut stream = client.delta_aggregated_resources(ReceiverStream::new(requests)).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    (out, stream)
}

/// A proxy that has acknowledged the roots.
async fn believer(mesh: &Mesh, at: SocketAddr, pod: &str, account: &str) -> Proxy {
    let svid = mesh.svid(account, Duration::from_mins(10));
    let mut proxy = Proxy::open(mesh.channel_to(at, Some(&svid)).await, pod, &[]).await.unwrap();
    proxy.next().await;
    proxy.ask(v1::Workload::TYPE_URL, &[&names::workload("shop", pod)]).await;
    proxy.next().await;
    proxy
}

/// A proxy at a replica that holds the endpoints of `shop/web`, of which it is told once.
async fn holder(mesh: &Mesh, at: SocketAddr, pod: &str, account: &str) -> Proxy {
    let svid = mesh.svid(account, Duration::from_mins(10));
    let mut proxy = Proxy::open(mesh.channel_to(at, Some(&svid)).await, pod, &[]).await.unwrap();
    proxy.next().await;
    proxy.ask(ADDRESS, &["web.shop:80"]).await;
    proxy.next().await;
    proxy
}

/// `shop/web-2` leaves, as one of the replicas is told; which it is takes a connection first.
async fn drain(mesh: &Mesh, at: SocketAddr, deadline: Duration) -> JoinHandle<v1::DrainReply> {
    let svid = mesh.svid("web", Duration::from_mins(10));
    let deadline_ms = u64::try_from(deadline.as_millis()).unwrap();
    let request = v1::DrainRequest { workload: "shop/web-2".into(), deadline_ms, instance: Some("first".into()) };
    let mut client = DrainClient::new(mesh.channel_to(at, Some(&svid)).await);
    tokio::spawn(async move { client.begin(request).await.unwrap().into_inner() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_the_proxies_of_all_replicas() {
    let mesh = Mesh::start().await;
    // The first was told of no other: it follows who follows it.
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    let mut web = holder(&mesh, mesh.listen, "web-1", "web").await;
    let mut cart = holder(&mesh, other.listen, "cart-1", "cart").await;

    let waiting = drain(&mesh, mesh.listen, LONG).await;
    for proxy in [&mut web, &mut cart] {
        let told = proxy.hear().await.unwrap();
        assert_eq!(told.resources[0].name, "endpoints/shop/web:80/web-2", "it is marked at both");
        assert!(!waiting.is_finished());
        proxy.ack(&told).await;
    }
    let reply = waiting.await.unwrap();
    assert_eq!((reply.acknowledged, reply.lagging), (2, vec![]));
    // Whoever asks, and when nobody has anything more to say.
    let reply = drain(&mesh, other.listen, LONG).await.await.unwrap();
    assert_eq!((reply.acknowledged, reply.lagging), (2, vec![]));

    // One that comes later knows who leaves before it answers anybody.
    let late = Replica::start(&mesh, any(), &[mesh.listen, other.listen]).await;
    let svid = mesh.svid("cart", Duration::from_mins(10));
    let mut moved = Proxy::open(mesh.channel_to(late.listen, Some(&svid)).await, "cart-1", &[]).await.unwrap();
    moved.next().await;
    moved.ask(ADDRESS, &["web.shop:80"]).await;
    let told = moved.hear().await.unwrap();
    let leaving = told.resources.iter().find(|resource| resource.name.ends_with("/web-2")).unwrap();
    let leaving = v1::Endpoint::decode(leaving.resource.as_ref().unwrap().value.as_slice()).unwrap();
    assert!(leaving.draining);
    // And all that its proxy was started anew.
    let svid = mesh.svid("web", Duration::from_mins(10));
    let _anew = instance(mesh.channel_to(late.listen, Some(&svid)).await, "web-2", "second").await;
    let told = web.hear().await.unwrap();
    let back = v1::Endpoint::decode(told.resources[0].resource.as_ref().unwrap().value.as_slice()).unwrap();
    assert!(!back.draining, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_moves_or_whose_replica_dies_is_waited_for_all_the_way() {
    let mesh = Mesh::start().await;
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    let web = holder(&mesh, mesh.listen, "web-1", "web").await;
    drop(web);
    let mut cart = holder(&mesh, other.listen, "cart-1", "cart").await;
    let waiting = drain(&mesh, mesh.listen, LONG).await;
    let told = cart.hear().await.unwrap();
    assert_eq!(told.resources[0].name, "endpoints/shop/web:80/web-2");
    // Its replica dies before it has answered; what it holds is not known until it has come back somewhere and said so.
    other.kill().await;
    until("the loss to be known", || mesh.hub.replicas.seen().iter().all(|one| !one.heard)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    let svid = mesh.svid("web", Duration::from_mins(10));
    let mut web = Proxy::open(mesh.channel_to(mesh.listen, Some(&svid)).await, "web-1", &[]).await.unwrap();
    web.next().await;
    let svid = mesh.svid("cart", Duration::from_mins(10));
    let mut cart = Proxy::open(mesh.channel_to(mesh.listen, Some(&svid)).await, "cart-1", &[]).await.unwrap();
    cart.ask(ADDRESS, &["web.shop:80"]).await;
    cart.next().await;
    let told = cart.hear().await.unwrap();
    assert!(!waiting.is_finished());
    cart.ack(&told).await;
    let reply = waiting.await.unwrap();
    assert_eq!((reply.acknowledged, reply.lagging), (1, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_there_and_is_not_heard_is_named_by_a_drain() {
    let mesh = Mesh::start().await;
    // It says that it serves where nobody does: it may have any proxy.
    let control = mesh.ca.issue_control(&[], Duration::from_mins(10), SystemTime::now()).unwrap();
    let channel = mesh.channel(Some(&control[0])).await;
    let (out, asks) = tokio::sync::mpsc::channel(4);
    out.send(wire::Ask { id: "x".into(), name: "lost".into(), port: 1, ..Default::default() }).await.unwrap();
    let mut told = ReplicasClient::new(channel).follow(ReceiverStream::new(asks)).await.unwrap().into_inner();
    assert!(told.message().await.unwrap().unwrap().whole);
    let reply = drain(&mesh, mesh.listen, Duration::from_millis(300)).await.await.unwrap();
    assert!(reply.lagging.contains(&"control lost".to_owned()), "{reply:?}");
    drop((out, told));
    let mesh_hub = Arc::clone(&mesh.hub);
    until("its end to be known", || mesh_hub.replicas.seen().is_empty()).await;
    let reply = drain(&mesh, mesh.listen, Duration::from_millis(300)).await.await.unwrap();
    assert!(!reply.lagging.contains(&"control lost".to_owned()), "{reply:?}");
}

/// Why a stream ended; what comes before that is acknowledged.
async fn end(proxy: &mut Proxy) -> Status {
    loop {
        match proxy.incoming.message().await {
            Ok(Some(response)) => proxy.ack(&response).await,
            Ok(None) => return Status::ok(""),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_sends_its_proxies_to_another_first() {
    let mut mesh = Mesh::start().await;
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    until("the other to serve", || mesh.hub.replicas.serving().len() == 1).await;
    let mut web = holder(&mesh, mesh.listen, "web-1", "web").await;
    let mut cart = holder(&mesh, mesh.listen, "cart-1", "cart").await;
    let (svid, listen) = (mesh.svid("web", Duration::from_mins(10)), mesh.listen);
    let channel = mesh.channel_to(listen, Some(&svid)).await;
    let hub = Arc::clone(&mesh.hub);
    let coming = tokio::spawn(async move {
        until("it to stop", || hub.replicas.is_stopping()).await;
        Proxy::open(channel, "web-2", &[]).await.err()
    });
    let ends = async { tokio::join!(end(&mut web), end(&mut cart)) };
    let ((), (one, two)) = tokio::join!(mesh.stop(), ends);
    for status in [one, two, coming.await.unwrap().unwrap()] {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(status.metadata().contains_key(names::MOVE), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_more_than_a_share_is_asked_to_move_once() {
    let mesh = Mesh::start().await;
    let pods_named: Vec<String> = (0..6).map(|number| format!("many-{number}")).collect();
    let pods: String = pods_named.iter().zip(50..).map(|(name, last)| crate::common::pod(name, "web", last)).collect();
    mesh.edit("many.yaml", &pods);
    until("them to be known", || mesh.hub.live().len() == 9).await;
    let mut ends = tokio::task::JoinSet::new();
    for (at, name) in pods_named.iter().enumerate() {
        let mut proxy = holder(&mesh, mesh.listen, name, "web").await;
        ends.spawn(async move { (at, end(&mut proxy).await) });
    }
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    // Six here and none there: more than a share and one. They know no other and come back; each is asked once.
    let mut moved = std::collections::BTreeSet::new();
    while moved.len() < 2 {
        let (at, status) = ends.join_next().await.unwrap().unwrap();
        assert!(status.metadata().contains_key(names::MOVE), "{status:?}");
        assert!(moved.insert(at), "{at} was asked twice");
        let mut proxy = holder(&mesh, mesh.listen, &pods_named[at], "web").await;
        ends.spawn(async move { (at, end(&mut proxy).await) });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_replica_is_asked_shows_the_proxies_of_all() {
    let mesh = Mesh::start().await;
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    let _web = [holder(&mesh, mesh.listen, "web-1", "web").await, holder(&mesh, mesh.listen, "web-2", "web").await];
    let mut cart = holder(&mesh, other.listen, "cart-1", "cart").await;
    let proxies = |hub: &Hub| hub.replicas.serving().iter().map(|other| other.proxies).collect::<Vec<_>>();
    until("its proxy to be known", || proxies(&mesh.hub) == [1]).await;
    let proxies = mesh.json("/debug/proxies").await;
    let how = |at: usize| (proxies[at]["workload"].as_str().unwrap(), proxies[at]["connected"].as_bool().unwrap());
    assert_eq!([0, 1, 2].map(how), [("shop/cart-1", true), ("shop/web-1", true), ("shop/web-2", true)], "{proxies}");
    assert_eq!(proxies.as_array().unwrap().len(), 3);
    let status = mesh.json("/debug/status").await;
    assert_eq!(
        (&status["proxies"]["connected"], &status["replicas"][0]["proxies"]),
        (&3.into(), &1.into()),
        "{status}"
    );

    // What a proxy of the other one refuses is on the object.
    mesh.edit("web.yaml", &slice("web", &[("web-1", 1), ("web-2", 2), ("cart-1", 3)]));
    let told = cart.hear().await.unwrap();
    cart.refuse(&told, "endpoints/shop/web:80/cart-1").await;
    let begun = Instant::now();
    loop {
        let object = mesh.json("/debug/objects?kind=EndpointSlice&name=shop/web").await;
        if object["picture"]["refused"]["bad: no"][0] == "shop/cart-1" {
            assert_eq!(mesh.json("/debug/objects").await[0]["name"], "shop/web");
            break;
        }
        assert!(begun.elapsed() < SOON, "{object}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tables = mesh.json("/debug/tables?workload=shop/cart-1").await;
    assert!(tables.as_array().unwrap().iter().any(|held| held["name"] == "service/shop/web:80"), "{tables}");
    let shown = mesh.json("/debug/certificates?workload=shop/cart-1").await;
    assert_eq!(shown["workload"], "shop/cart-1");
    let certificates = mesh.json("/debug/certificates").await;
    let connected = certificates["proxies"].as_array().unwrap().iter().filter(|one| one["connected"] == true).count();
    assert_eq!(connected, 3, "{certificates}");
}

#[tokio::test]
async fn nobody_but_control_may_follow() {
    let mesh = Mesh::start().await;
    let code = async |svid: Option<&Svid>| {
        let (_out, asks) = tokio::sync::mpsc::channel::<wire::Ask>(1);
        let mut client = ReplicasClient::new(mesh.channel(svid).await);
        let looked = client.look(wire::LookRequest { page: "/debug/proxies".into() }).await.unwrap_err().code();
        let followed = client.follow(ReceiverStream::new(asks)).await.unwrap_err().code();
        assert_eq!(looked, followed);
        followed
    };
    assert_eq!(code(None).await, Code::Unauthenticated);
    assert_eq!(code(Some(&mesh.svid("web", Duration::from_mins(1)))).await, Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_the_proxies_of_all_replicas() {
    let mesh = Mesh::start().await;
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    let mut obedient = Vec::new();
    for (at, pod, account) in [(mesh.listen, "web-1", "web"), (other.listen, "web-2", "web")] {
        let mut proxy = believer(&mesh, at, pod, account).await;
        obedient.push(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok(Some(response)) = proxy.incoming.message().await {
                proxy.ack(&response).await;
            }
        })));
    }
    let mut cart = believer(&mesh, other.listen, "cart-1", "cart").await;
    Ca::load(&mesh.dir.path().join("ca")).unwrap().begin(Kind::Root, SystemTime::now()).unwrap();
    let told = loop {
        let told = cart.hear().await.unwrap();
        if told.resources.iter().any(|resource| resource.name == names::TRUST) {
            break told;
        }
        cart.ack(&told).await;
    };
    // It has not acknowledged: both wait for it, and for nobody else.
    let waits = async || {
        let said = mesh.json("/debug/certificates").await;
        let waiting = said["rotation"]["waiting"].as_array().cloned().unwrap_or_default();
        (said["rotation"]["phase"].clone(), waiting)
    };
    let begun = Instant::now();
    loop {
        let (phase, waiting) = waits().await;
        if waiting.len() == 1 && waiting[0]["workload"] == "shop/cart-1" {
            assert_eq!(phase, "publishing");
            break;
        }
        assert!(begun.elapsed() < SOON, "{waiting:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cart.ack(&told).await;
    let begun = Instant::now();
    while waits().await.0 == "publishing" {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
