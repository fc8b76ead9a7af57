//! The writer before an API server in memory.

use super::*;
use crate::distribute::session::Limits;
use crate::metrics::Metrics;
use crate::model::Change;
use crate::testing::cluster::{self, Shared};

const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web";

struct Replica {
    hub: Arc<Hub>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Replica {
    fn new(cluster: &Shared) -> Self {
        let hub = Arc::new(Hub::new(Limits::default(), Arc::new(Metrics::new().unwrap())));
        hub.publish(Model::default().changes_to(&model()));
        hub.status.open();
        let stop = CancellationToken::new();
        let settings = Settings { namespace: "weft-system".to_owned() };
        let task = start(&cluster::client(cluster), &settings, Arc::clone(&hub), &stop);
        Self { hub, stop, task }
    }

    /// The watch tells the route as the API server has it.
    fn watch(&self, cluster: &Shared) {
        let object = cluster.lock().get(PATH).cloned().unwrap();
        let mut model = Model::default();
        let (key, subject) = read(Kind::HttpRoute, &object, &mut model);
        let routes = model.routes.into_iter().map(|(key, route)| Change::Route(key, Some(route)));
        self.hub.publish(routes);
        self.hub.status.saw(vec![(key, Some(subject))]);
    }

    fn count(&self, outcome: &str) -> u64 {
        self.hub.metrics.leader.status_writes.with_label_values(&[outcome]).get()
    }
}

fn parents(cluster: &Shared) -> Vec<Json> {
    cluster.lock().get(PATH).unwrap()["status"]["parents"].as_array().cloned().unwrap_or_default()
}

fn with_route() -> Shared {
    let cluster = Shared::default();
    let mut object = route(web(), to(json!([{"name": "v2", "port": 80}])));
    object["status"] =
        json!({"parents": [{"controllerName": "example.com/gateway", "parentRef": {"name": "g"}, "conditions": []}]});
    cluster.lock().put(PATH, object);
    cluster
}

async fn soon() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_two_writes_until_it_is_gone_and_then_the_other() {
    let cluster = with_route();
    let first = Replica::new(&cluster);
    soon().await;
    let second = Replica::new(&cluster);
    for replica in [&first, &second] {
        replica.watch(&cluster);
    }
    soon().await;
    let written = parents(&cluster);
    let conditions = written[1]["conditions"].as_array().unwrap();
    assert_eq!((written.len(), written[0]["controllerName"].as_str()), (2, Some("example.com/gateway")));
    assert_eq!(conditions.iter().map(|found| found["status"].as_str().unwrap()).collect::<Vec<_>>(), ["True"; 3]);
    assert_eq!((first.count("ok"), second.count("ok")), (1, 0));
    // What it has written comes back by the watch, and is no news.
    for replica in [&first, &second] {
        replica.watch(&cluster);
    }
    soon().await;
    assert_eq!((first.count("ok"), second.count("ok")), (1, 0));
    // Gone without a word; a service goes from the model of the other.
    first.task.abort();
    second.hub.publish([Change::Service(Name::new("shop", "v2"), None)]);
    tokio::time::sleep(Duration::from_secs(18)).await;
    let found = &parents(&cluster)[1]["conditions"][1];
    assert_eq!((found["status"].as_str(), found["reason"].as_str()), (Some("False"), Some("BackendNotFound")));
    assert_eq!((first.count("ok"), second.count("ok")), (1, 1));
    // Who stops leaves the Lease free.
    second.stop.cancel();
    second.task.await.unwrap();
    let lease = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-control-leader";
    assert_eq!(cluster.lock().get(lease).unwrap()["spec"]["holderIdentity"], "");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_not_the_last_is_never_written_over() {
    let cluster = with_route();
    let replica = Replica::new(&cluster);
    soon().await;
    replica.watch(&cluster);
    // Somebody changes the object before the write, which the watch has not told yet.
    let mut object = cluster.lock().get(PATH).cloned().unwrap();
    object["spec"]["rules"] = to(json!([{"name": "v9", "port": 80}]));
    object["metadata"]["generation"] = 4.into();
    cluster.lock().put(PATH, object);
    soon().await;
    assert_eq!(parents(&cluster).len(), 1);
    assert!(replica.count("conflict") >= 1 && replica.count("ok") == 0);
    replica.watch(&cluster);
    soon().await;
    let found = &parents(&cluster)[1]["conditions"][1];
    assert_eq!((found["reason"].as_str(), found["observedGeneration"].as_i64()), (Some("BackendNotFound"), Some(4)));
    // Somebody else takes our entry away: it comes back.
    let mut object = cluster.lock().get(PATH).cloned().unwrap();
    object["status"]["parents"].as_array_mut().unwrap().pop();
    cluster.lock().put(PATH, object);
    replica.watch(&cluster);
    soon().await;
    assert_eq!(parents(&cluster).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_refuses_is_asked_less_and_less() {
    let cluster = with_route();
    let replica = Replica::new(&cluster);
    soon().await;
    replica.watch(&cluster);
    cluster.lock().refuses_status = true;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert!((5..10).contains(&replica.count("failed")), "{}", replica.count("failed"));
    cluster.lock().refuses_status = false;
    tokio::time::sleep(MOST_PAUSE).await;
    assert_eq!((replica.count("ok"), parents(&cluster).len()), (1, 2));
}
