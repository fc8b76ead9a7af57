//! A real subscriber never sees fewer endpoints than the source still has, whatever is away and comes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_api::names::ResourceType;
use weft_api::wire::v1;

use super::cluster::{Cluster, Gate, Way, waits};
use crate::common::{Mesh, Proxy};

const MEMBERS: &str = "endpoints/shop/web:80/";

/// What a subscriber of `shop/web` has heard.
#[derive(Default)]
struct Heard {
    members: Mutex<BTreeSet<String>>,
    /// There must never be fewer.
    floor: AtomicUsize,
    below: Mutex<Vec<String>>,
}

impl Heard {
    async fn follow(mut proxy: Proxy) -> Arc<Self> {
        let heard = Arc::new(Self::default());
        proxy.ask(v1::Address::TYPE_URL, &["web.shop:80"]).await;
        let own = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok(Some(response)) = proxy.incoming.message().await {
                proxy.ack(&response).await;
                let mut members = own.members.lock();
                for resource in &response.resources {
                    members.extend(resource.name.strip_prefix(MEMBERS).map(str::to_owned));
                }
                for gone in &response.removed_resources {
                    members.remove(gone.strip_prefix(MEMBERS).unwrap_or_default());
                }
                if members.len() < own.floor.load(Relaxed) {
                    own.below.lock().push(format!("{members:?}"));
                }
            }
            own.below.lock().push("the stream ended".to_owned());
        });
        heard
    }

    /// Waits until it has these, and then holds control to that many.
    async fn has(&self, wanted: &[&str]) {
        let wanted: BTreeSet<String> = wanted.iter().map(|&name| name.to_owned()).collect();
        waits(&format!("{wanted:?}, while there is {:?}", self.members.lock()), || *self.members.lock() == wanted)
            .await;
        self.floor.store(wanted.len(), Relaxed);
        assert!(self.below.lock().is_empty(), "{:?}", self.below.lock());
    }
}

fn member(pod: usize) -> Value {
    json!({"addresses": [format!("10.3.0.{pod}")], "targetRef": {"kind": "Pod", "name": format!("web-{pod}"), "namespace": "shop"}})
}

async fn slice(cluster: &Cluster, name: &str, pods: &[usize]) {
    let members: Vec<Value> = pods.iter().map(|pod| member(*pod)).collect();
    cluster.slice("shop", name, "IPv4", json!([{"name": "http", "port": 8080}]), json!(members)).await;
}

async fn change(cluster: &Cluster, name: &str, pods: &[usize]) {
    let members: Vec<Value> = pods.iter().map(|pod| member(*pod)).collect();
    cluster
        .patch(
            &format!("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/{name}"),
            json!({"endpoints": members}),
        )
        .await;
}

/// Waits until the metrics say it.
async fn says(mesh: &Mesh, wanted: &str) {
    let begun = Instant::now();
    loop {
        let text = mesh.get("/metrics").await;
        if text.contains(wanted) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "{wanted}, in vain:\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often slices were listed.
async fn lists(mesh: &Mesh) -> u32 {
    let text = mesh.get("/metrics").await;
    let line =
        text.lines().find_map(|line| line.strip_prefix("weft_control_source_lists_total{kind=\"EndpointSlice\"} "));
    line.unwrap().parse().unwrap()
}

const SYNCED: &str = "weft_control_source_state{state=\"synced\"} 1";
const LOST: &str = "weft_control_source_state{state=\"lost\"} 1";

#[tokio::test(flavor = "multi_thread")]
async fn no_subscriber_sees_fewer_endpoints_than_the_source_has() {
    let Some(cluster) = Cluster::open().await else { return };
    cluster.namespace("shop").await;
    cluster.service("shop", "web", json!({"ports": [{"name": "http", "port": 80}]})).await;
    cluster.pod("shop", "cart-1", "cart", "10.3.1.1").await;
    for pod in 1..=6 {
        cluster.pod("shop", &format!("web-{pod}"), "web", &format!("10.3.0.{pod}")).await;
    }
    slice(&cluster, "web-a", &[1, 2]).await;
    slice(&cluster, "web-b", &[3]).await;
    let gate = Gate::to(cluster.addr).await;
    let mesh = cluster.control(gate.addr).await;
    let mut proxy = mesh.proxy("cart-1", "cart").await.unwrap();
    assert_eq!(proxy.next().await, ["mesh-extent"]);
    let heard = Heard::follow(proxy).await;
    heard.has(&["web-1", "web-2", "web-3"]).await;
    says(&mesh, SYNCED).await;

    // The way is cut: it is said, and the watch goes on where it was.
    let listed = lists(&mesh).await;
    gate.set(Way::Cut);
    says(&mesh, LOST).await;
    change(&cluster, "web-b", &[3, 4]).await;
    gate.set(Way::Open);
    heard.has(&["web-1", "web-2", "web-3", "web-4"]).await;
    says(&mesh, SYNCED).await;
    assert_eq!(lists(&mesh).await, listed, "nothing was listed again");
    println!("ok  a watch that is cut goes on where it was");

    // What happened meanwhile is not known any more (410): what is gone is swept, by a list that is whole.
    gate.set(Way::Cut);
    says(&mesh, LOST).await;
    heard.floor.store(2, Relaxed);
    cluster.delete("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-b").await;
    slice(&cluster, "web-c", &[5]).await;
    // Neither etcd nor the API server can tell it any more.
    Cluster::rig("compact");
    Cluster::kill("apiserver");
    Cluster::rig("up");
    gate.set(Way::Open);
    heard.has(&["web-1", "web-2", "web-5"]).await;
    says(&mesh, SYNCED).await;
    assert!(lists(&mesh).await > listed, "it was listed again");
    println!("ok  a watch that has expired is listed again, and nothing is missing meanwhile");

    // Compacted under a watch that is open.
    Cluster::rig("compact");
    change(&cluster, "web-a", &[1, 2, 3]).await;
    heard.has(&["web-1", "web-2", "web-3", "web-5"]).await;
    heard.floor.store(3, Relaxed);
    change(&cluster, "web-a", &[1, 2]).await;
    heard.has(&["web-1", "web-2", "web-5"]).await;
    says(&mesh, SYNCED).await;
    println!("ok  etcd compacted under an open watch");

    // The API server is killed while control looks on.
    Cluster::kill("apiserver");
    says(&mesh, LOST).await;
    Cluster::rig("up");
    change(&cluster, "web-c", &[5, 6]).await;
    heard.has(&["web-1", "web-2", "web-5", "web-6"]).await;
    says(&mesh, SYNCED).await;
    println!("ok  the API server killed and started");

    // And etcd: the API server stays, with errors.
    Cluster::kill("etcd");
    tokio::time::sleep(Duration::from_secs(3)).await;
    Cluster::rig("up");
    heard.floor.store(3, Relaxed);
    changed_at_last(&cluster).await;
    heard.has(&["web-1", "web-2", "web-6"]).await;
    says(&mesh, SYNCED).await;
    println!("ok  etcd killed and started");

    // In the end it is what a control knows that has just begun.
    let fresh = cluster.control(cluster.addr).await;
    let model = |mesh: &Mesh| mesh.hub.compiled(|compiled| compiled.model().clone());
    waits("both controls to know the same", || model(&mesh) == model(&fresh)).await;
    assert!(heard.below.lock().is_empty(), "{:?}", heard.below.lock());
}

/// An API server whose etcd was away refuses for a moment more.
async fn changed_at_last(cluster: &Cluster) {
    let path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-c";
    let body = json!({"endpoints": [member(6)]}).to_string();
    let begun = Instant::now();
    loop {
        let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
        let request = request.body(body.clone().into_bytes()).unwrap();
        match cluster.admin.request::<Value>(request).await {
            Ok(_) => return,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(40), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
