//! The status on an object counts the proxies of all replicas. The API server is a map here; tests/watching has a real one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use http::{Method, Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use weft_api::kinds::Kind as ObjectKind;
use weft_control::model::{Change, Name};
use weft_control::status::{self, PROGRAMMED, Settings, Subject};

use super::*;

const OBJECT: &str = "HTTPRoute/shop/web";
const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web";
/// A refusal has to be on the object within this.
const SEEN: Duration = Duration::from_secs(2);

type Api = Arc<Mutex<BTreeMap<String, Value>>>;

/// An API server that takes whatever comes.
fn client(api: &Api) -> kube::Client {
    let api = Arc::clone(api);
    let service = tower::service_fn(move |request: Request<Body>| {
        let api = Arc::clone(&api);
        async move {
            let (head, body) = request.into_parts();
            let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
            let answer = answer(&mut api.lock(), &head.method, head.uri.path(), body);
            let status = if answer["kind"] == "Status" { 404 } else { 200 };
            let answer = Body::from(answer.to_string().into_bytes());
            Ok::<_, Infallible>(Response::builder().status(status).body(answer).unwrap())
        }
    });
    kube::Client::new(service, "default")
}

fn answer(objects: &mut BTreeMap<String, Value>, method: &Method, path: &str, body: Value) -> Value {
    let version =
        objects.values().filter_map(|object| object["metadata"]["resourceVersion"].as_str()?.parse::<u64>().ok());
    let version = (version.max().unwrap_or_default() + 1).to_string();
    let (path, mut object) = match (method, path.strip_suffix("/status")) {
        (&Method::GET, _) => {
            let none = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404});
            return objects.get(path).cloned().unwrap_or(none);
        }
        (_, Some(path)) => (path.to_owned(), json!({"metadata": {}, "status": body["status"]})),
        (&Method::POST, None) => (format!("{path}/{}", body["metadata"]["name"].as_str().unwrap()), body),
        (_, None) => (path.to_owned(), body),
    };
    object["metadata"]["resourceVersion"] = version.into();
    objects.insert(path, object.clone());
    object
}

/// `STATUS REASON: MESSAGE` of who runs the route.
fn said(api: &Api) -> String {
    let objects = api.lock();
    let conditions = objects.get(PATH).map_or(&Value::Null, |object| &object["status"]["parents"][0]["conditions"]);
    let found = conditions.as_array().into_iter().flatten().find(|found| found["type"] == PROGRAMMED);
    let text = |field: &str| found.map_or("", |found| found[field].as_str().unwrap()).to_owned();
    format!("{} {}: {}", text("status"), text("reason"), text("message"))
}

/// Waits until it is this, and returns for how long.
async fn says(api: &Api, wanted: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let said = said(api);
        if said == wanted {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "{said}, not {wanted}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn route(weight: usize) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: web}}]\n  \
         rules: [{{backendRefs: [{{name: web, port: 80, weight: {weight}}}, {{name: cart, port: 80, weight: 1}}]}}]\n"
    )
}

async fn has_route(hubs: &[&Arc<Hub>]) {
    let has = |hub: &&Arc<Hub>| hub.compiled(|compiled| compiled.get(OBJECT).is_some());
    until("the route to be compiled", || hubs.iter().all(has)).await;
}

/// This replica writes, until that is dropped, and has the route as the API server does.
fn writes(api: &Api, hub: &Arc<Hub>, stop: &CancellationToken) -> AbortOnDropHandle<()> {
    hub.status.open();
    let settings = Settings { namespace: "weft-system".to_owned() };
    let task = status::start(&client(api), &settings, Arc::clone(hub), stop);
    let subject = Subject {
        api_version: "gateway.networking.k8s.io/v1".to_owned(),
        version: "1".to_owned(),
        generation: 1,
        parents: vec![json!({"group": "", "kind": "Service", "name": "web"})],
        told: Vec::new(),
        refusal: None,
    };
    hub.status.saw(vec![((ObjectKind::HttpRoute, Name::new("shop", "web")), Some(subject))]);
    task
}

/// A proxy that acknowledges everything, but the route while it refuses that; it may hesitate.
struct Sidecar {
    refuses: Arc<AtomicBool>,
    hesitates: Arc<AtomicBool>,
    refused: Arc<Mutex<Option<Instant>>>,
    _runs: AbortOnDropHandle<()>,
}

async fn sidecar(mesh: &Mesh, at: SocketAddr, pod: &str, account: &str) -> Sidecar {
    let mut proxy = holder(mesh, at, pod, account).await;
    let (refuses, refused) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Option<Instant>>>::default());
    let (whether, when) = (Arc::clone(&refuses), Arc::clone(&refused));
    let hesitates = Arc::<AtomicBool>::default();
    let waits = Arc::clone(&hesitates);
    let runs = tokio::spawn(async move {
        while let Ok(Some(response)) = proxy.incoming.message().await {
            until("it to answer", || !waits.load(Relaxed)).await;
            if whether.load(Relaxed) && response.resources.iter().any(|found| found.name == OBJECT) {
                proxy.refuse(&response, OBJECT).await;
                *when.lock() = Some(Instant::now());
            } else {
                proxy.ack(&response).await;
            }
        }
    });
    Sidecar { refuses, hesitates, refused, _runs: AbortOnDropHandle::new(runs) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_at_another_replica_is_on_the_object_within_two_seconds() {
    let mesh = Mesh::start().await;
    mesh.edit("route.yaml", &route(1));
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    has_route(&[&mesh.hub, &other.hub]).await;
    let _here = sidecar(&mesh, mesh.listen, "web-1", "web").await;
    let there =
        [sidecar(&mesh, other.listen, "web-2", "web").await, sidecar(&mesh, other.listen, "cart-1", "cart").await];
    let (api, stop) = (Api::default(), CancellationToken::new());
    let first = writes(&api, &mesh.hub, &stop);
    let all = "True Programmed: applied by 3 of 3 proxies";
    says(&api, all).await;

    for (weight, refuses) in [(2, true), (3, false), (4, true)] {
        there[1].refuses.store(refuses, Relaxed);
        there[1].hesitates.store(refuses, Relaxed);
        *there[1].refused.lock() = None;
        mesh.edit("route.yaml", &route(weight));
        if refuses {
            // When it answers at last, nothing else happens.
            says(&api, "Unknown Pending: applied by 2 of 3 proxies, 1 lags behind").await;
            there[1].hesitates.store(false, Relaxed);
            until("the refusal", || there[1].refused.lock().is_some()).await;
            says(&api, "False Refused: applied by 2 of 3 proxies, 1 refused: bad: no").await;
            let nacked = there[1].refused.lock().unwrap();
            assert!(nacked.elapsed() < SEEN, "{:?}", nacked.elapsed());
            println!("ok  on the object {:?} after the refusal", nacked.elapsed());
        } else {
            says(&api, all).await;
        }
    }
    // The other one writes from now on, and counts the same.
    stop.cancel();
    first.await.unwrap();
    let stop = CancellationToken::new();
    api.lock().remove(PATH);
    let _second = writes(&api, &other.hub, &stop);
    says(&api, "False Refused: applied by 2 of 3 proxies, 1 refused: bad: no").await;
    there[1].refuses.store(false, Relaxed);
    mesh.edit("route.yaml", &route(5));
    says(&api, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_not_heard_or_has_another_version_is_named_on_the_object() {
    let mesh = Mesh::start().await;
    mesh.edit("route.yaml", &route(1));
    has_route(&[&mesh.hub]).await;
    let _here = [sidecar(&mesh, mesh.listen, "web-1", "web").await, sidecar(&mesh, mesh.listen, "web-2", "web").await];
    let moves = sidecar(&mesh, mesh.listen, "cart-1", "cart").await;
    let (api, stop) = (Api::default(), CancellationToken::new());
    let _writer = writes(&api, &mesh.hub, &stop);
    let all = "True Programmed: applied by 3 of 3 proxies";
    says(&api, all).await;
    // It comes when the other writes already.
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub, &other.hub], 1).await;
    has_route(&[&other.hub]).await;
    drop(moves);
    let _there = sidecar(&mesh, other.listen, "cart-1", "cart").await;

    // What it has compiled is not what we have: its proxies run something else.
    let key = ("HTTPRoute".to_owned(), Name::new("shop", "web"));
    let route_now = mesh.hub.compiled(|compiled| compiled.model().routes[&key].clone());
    let mut another = route_now.clone();
    another.rules[0].source = "elsewhere.yaml:1".to_owned();
    other.hub.publish([Change::Route(key.clone(), Some(another))]);
    let name = mesh.hub.replicas.seen()[0].name.clone();
    let apart = format!("with another version of it than the one that writes this: control {name}");
    says(&api, &format!("Unknown Pending: applied by 2 of 3 proxies, 1 lags behind; {apart}")).await;
    other.hub.publish([Change::Route(key, Some(route_now))]);
    says(&api, all).await;

    // One that says that it is there, and serves where nobody does, may have any proxy.
    let control = mesh.ca.issue_control(&[], Duration::from_mins(10), SystemTime::now()).unwrap();
    let channel = mesh.channel(Some(&control[0])).await;
    let (out, asks) = tokio::sync::mpsc::channel(4);
    out.send(wire::Ask { id: "x".into(), name: "lost".into(), port: 1, ..Default::default() }).await.unwrap();
    let mut told = ReplicasClient::new(channel).follow(ReceiverStream::new(asks)).await.unwrap().into_inner();
    assert!(told.message().await.unwrap().unwrap().whole);
    mesh.edit("route.yaml", &route(3));
    let silent = "not counted, as they have not said how their proxies are: control lost";
    says(&api, &format!("Unknown Pending: applied by 3 of 3 proxies; {silent}")).await;
    drop((out, told));
    says(&api, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hangs_delays_no_refusal_at_another_one() {
    let mesh = Mesh::start().await;
    mesh.edit("route.yaml", &route(1));
    // It has one thread of its own, which can be kept busy.
    let apart = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let others = [mesh.listen];
    let starts = Replica::start(&mesh, any(), &others);
    let third = tokio::task::block_in_place(|| apart.handle().block_on(starts));
    let other = Replica::start(&mesh, any(), &[mesh.listen]).await;
    heard(&[&mesh.hub], 2).await;
    has_route(&[&mesh.hub, &other.hub, &third.hub]).await;
    let _here = [sidecar(&mesh, mesh.listen, "web-1", "web").await, sidecar(&mesh, mesh.listen, "web-2", "web").await];
    let there = sidecar(&mesh, other.listen, "cart-1", "cart").await;
    let (api, stop) = (Api::default(), CancellationToken::new());
    let _writer = writes(&api, &mesh.hub, &stop);
    says(&api, "True Programmed: applied by 3 of 3 proxies").await;
    let name = mesh.hub.replicas.seen()[0].name.clone();
    let silent = format!("not counted, as they have not said how their proxies are: control {name}");
    // Nobody knows yet that it hangs.
    let hangs = Arc::new(AtomicBool::new(true));
    let (until_then, (began, begun)) = (Arc::clone(&hangs), tokio::sync::oneshot::channel());
    apart.spawn(async move {
        began.send(()).unwrap();
        while until_then.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    begun.await.unwrap();
    there.refuses.store(true, Relaxed);
    mesh.edit("route.yaml", &route(2));
    until("the refusal", || there.refused.lock().is_some()).await;
    says(&api, &format!("False Refused: applied by 2 of 3 proxies, 1 refused: bad: no; {silent}")).await;
    let nacked = there.refused.lock().unwrap();
    assert!(nacked.elapsed() < SEEN, "{:?}", nacked.elapsed());
    println!("ok  while a third replica hangs: on the object {:?} after the refusal", nacked.elapsed());
    // By now it is known that it hangs.
    there.refuses.store(false, Relaxed);
    mesh.edit("route.yaml", &route(3));
    says(&api, &format!("Unknown Pending: applied by 3 of 3 proxies; {silent}")).await;
    hangs.store(false, Relaxed);
    apart.shutdown_background();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_asks_is_told_what_stirs_and_more_than_can_be_named_is_all() {
    let mesh = Mesh::start().await;
    mesh.edit("route.yaml", &route(1));
    let control = mesh.ca.issue_control(&[], Duration::from_mins(10), SystemTime::now()).unwrap();
    let mut follower = ReplicasClient::new(mesh.channel(Some(&control[0])).await);
    let (out, asks) = tokio::sync::mpsc::channel(4);
    out.send(wire::Ask { id: "x".into(), name: "x".into(), port: 1, ..Default::default() }).await.unwrap();
    let mut told = follower.follow(ReceiverStream::new(asks)).await.unwrap().into_inner();
    let mut proxy = holder(&mesh, mesh.listen, "cart-1", "cart").await;
    let about = Some(wire::ask::About::Objects(true));
    out.send(wire::Ask { question: 7, about, ..Default::default() }).await.unwrap();
    // Nothing was told before; then, to begin with, all.
    let begun = loop {
        let told = told.message().await.unwrap().unwrap();
        assert!(told.stirred.is_empty(), "{told:?}");
        if told.all_stirred {
            break told;
        }
    };
    assert!(begun.stirred.is_empty());
    mesh.edit("route.yaml", &route(2));
    // Whichever edit comes to it, and in how many responses.
    tokio::spawn(async move {
        while let Ok(response) = proxy.hear().await {
            proxy.refuse(&response, OBJECT).await;
        }
    });
    let mut names = Vec::new();
    while !names.iter().any(|name| name == OBJECT) {
        let told = told.message().await.unwrap().unwrap();
        assert!(!told.all_stirred);
        names.extend(told.stirred);
    }
    assert!(names.iter().all(|name| name.starts_with("HTTPRoute/") || name.starts_with("service/")), "{names:?}");
    let many: Vec<Arc<str>> = (0..2000).map(|number| format!("HTTPRoute/shop/r-{number}").into()).collect();
    mesh.hub.status.changed(many.iter());
    while !told.message().await.unwrap().unwrap().all_stirred {}
    assert!(mesh.get("/metrics").await.contains("weft_control_bound_hits_total{bound=\"stirred\"} 1\n"));
    // It is asked no more.
    out.send(wire::Ask { question: 7, ..Default::default() }).await.unwrap();
    let ear = mesh.hub.status.listen();
    until("nobody else to listen", || mesh.hub.status.listeners() == 1).await;
    drop(ear);
    // How objects are is told to control alone, so many at a time.
    let asked = ["nonsense", OBJECT, "Secret/shop/web"].map(str::to_owned);
    let refused = async {
        // What stirred first was the edit; the refusal of it is on its way.
        loop {
            let names = asked.to_vec();
            let page = follower.objects(wire::ObjectsRequest { names }).await.unwrap().into_inner();
            let pictures: Value = serde_json::from_slice(&page.body).unwrap();
            assert_eq!(pictures.as_array().unwrap().len(), 1, "{pictures}");
            if pictures[0]["picture"]["refused"]["bad: no"][0] == "shop/cart-1" {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("the refusal is told");
    let names = vec![OBJECT.to_owned(); 257];
    let refused = follower.objects(wire::ObjectsRequest { names }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let svid = mesh.svid("web", Duration::from_mins(1));
    let mut workload = ReplicasClient::new(mesh.channel(Some(&svid)).await);
    let refused = workload.objects(wire::ObjectsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}
