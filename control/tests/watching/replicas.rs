//! Which replicas live, by their Leases: decisions wait for those that do. They know nothing of each other but what the API server says.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use weft_api::wire::v1;
use weft_api::wire::v1::drain_client::DrainClient;
use weft_control::distribute::Hub;
use weft_control::replicas::presence::Presence;
use weft_control::{Config, Control};

use super::cluster::{Cluster, waits};
use crate::common::Mesh;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases";
/// A Lease runs out so long after its holder was heard last.
const LASTS: Duration = Duration::from_secs(15);
/// It is renewed, and others look at it, so often.
const EVERY: Duration = Duration::from_millis(2400);
/// What a loaded machine may take on top.
const SLACK: Duration = Duration::from_secs(4);
/// Of a drain: nobody answers it here, but who is silent is known at once.
const DEADLINE: Duration = Duration::from_millis(300);

/// Where a control may listen.
fn free(ip: &str) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

fn presence(name: &str, serves: SocketAddr) -> Presence {
    Presence { namespace: "weft-system".to_owned(), name: name.to_owned(), serves }
}

/// A control beside the first, with its CA: a process of its own, so that it can be killed.
struct Replica {
    at: SocketAddr,
    metrics: SocketAddr,
    process: Child,
}

impl Replica {
    fn start(mesh: &Mesh, name: &str, ip: &str) -> Self {
        let (at, metrics) = (free(ip), free("127.0.0.1"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["watching::replicas::one_control_for_the_others", "--exact", "--nocapture"]);
        command.env(NAME, name).env(AT, at.to_string()).env(METRICS, metrics.to_string());
        let process = command.env(CA, mesh.dir.path().join("ca")).stdout(Stdio::null()).spawn().unwrap();
        Self { at, metrics, process }
    }

    /// As the orchestrator does it. It has ended when this returns.
    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }

    /// Returns when that was.
    fn kill(mut self) -> Instant {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        Instant::now()
    }

    /// How many others it hears.
    async fn hears(&self) -> usize {
        let Ok(mut tcp) = TcpStream::connect(self.metrics).await else { return 0 };
        tcp.write_all(b"GET /debug/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        text.matches("\"heard\":true").count()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const NAME: &str = "WEFT_TEST_REPLICA";
const AT: &str = "WEFT_TEST_REPLICA_AT";
const METRICS: &str = "WEFT_TEST_REPLICA_METRICS";
const CA: &str = "WEFT_TEST_REPLICA_CA";

/// The process of a [`Replica`]; nothing where no test has started it.
#[tokio::test(flavor = "multi_thread")]
async fn one_control_for_the_others() {
    let Ok(name) = std::env::var(NAME) else { return };
    let cluster = Cluster::open().await.unwrap();
    let said = |what: &str| std::env::var(what).unwrap();
    let at: SocketAddr = said(AT).parse().unwrap();
    let mut config = Config::new(Vec::new(), said(CA).into());
    (config.listen, config.metrics) = (at, said(METRICS).parse().unwrap());
    config.kubernetes = Some(cluster.access(cluster.addr));
    (config.presence, config.called) = (Some(presence(&name, at)), name);
    let mut told = signal(SignalKind::terminate()).unwrap();
    Control::start(config).await.unwrap().until(async { _ = told.recv().await }).await.unwrap();
}

fn hears(hub: &Hub) -> usize {
    hub.replicas.seen().iter().filter(|one| one.heard).count()
}

/// The controls that a decision waits for: whether a pod that leaves may go.
async fn waited_for(mesh: &Mesh) -> Vec<String> {
    let svid = mesh.svid("web", Duration::from_mins(10));
    let deadline_ms = u64::try_from(DEADLINE.as_millis()).unwrap();
    let request = v1::DrainRequest { workload: "shop/leaves".into(), deadline_ms, instance: Some("first".into()) };
    let mut client = DrainClient::new(mesh.channel_to(mesh.listen, Some(&svid)).await);
    let reply = client.begin(request).await.unwrap().into_inner();
    reply.lagging.into_iter().filter(|name| name.starts_with("control ")).collect()
}

/// For how long decisions wait for a control since then, and name nobody else.
async fn named(mesh: &Mesh, names: &[String; 2], begun: Instant, most: Duration) -> Duration {
    loop {
        let waited = waited_for(mesh).await;
        if waited.is_empty() {
            return begun.elapsed();
        }
        assert!(waited.len() == 1 && names.contains(&waited[0]), "{waited:?}, not one of {names:?}");
        assert!(begun.elapsed() < most, "{waited:?} is still waited for");
    }
}

async fn waits_for_lease(cluster: &Cluster, name: &str) {
    let (path, begun) = (format!("{LEASES}/weft-replica-{name}"), Instant::now());
    while cluster.ask(Method::GET, &path, "application/json", Value::Null).await.is_err() {
        assert!(begun.elapsed() < LASTS, "{name} has no Lease");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_wait_for_who_lives_by_its_lease() {
    let Some(cluster) = Cluster::open().await else { return };
    cluster.namespace_once("shop").await;
    cluster.pod("shop", "leaves", "web", "10.3.2.1").await;
    let at = free("127.0.0.1");
    let mesh = Mesh::with(|config| {
        (config.files, config.kubernetes) = (Vec::new(), Some(cluster.access(cluster.addr)));
        (config.listen, config.called, config.presence) = (at, "a".to_owned(), Some(presence("a", at)));
    });
    let mesh = mesh.await;
    let two = Replica::start(&mesh, "b", "127.0.0.2");
    let three = Replica::start(&mesh, "c", "127.0.0.3");
    waits("two others to be heard", || hears(&mesh.hub) == 2).await;
    let begun = Instant::now();
    while two.hears().await != 2 || three.hears().await != 2 {
        assert!(begun.elapsed() < LASTS, "they do not hear each other");
        sleep(Duration::from_millis(50)).await;
    }
    waits("the pod to be known", || *mesh.hub.loaded().borrow()).await;
    let lease = async |name: &str| cluster.get(&format!("{LEASES}/weft-replica-{name}")).await;
    for (name, at) in [("a", at), ("b", two.at), ("c", three.at)] {
        let found = lease(name).await;
        assert_eq!(found["metadata"]["annotations"]["weft.dev/serves"], at.to_string(), "{found}");
        assert_eq!(found["spec"]["leaseDurationSeconds"], 15, "{found}");
    }
    assert_eq!(waited_for(&mesh).await, [""; 0]);
    println!("ok  three controls find each other by their Leases");

    let names = |name: &str, at: SocketAddr| [format!("control {name}"), format!("control {at}")];
    let whom = names("c", three.at);
    three.stop();
    let stopped = Instant::now();
    let given = lease("c").await["spec"]["holderIdentity"].clone();
    assert!(given.is_null() || given == "", "it was not given back: {given}");
    let took = named(&mesh, &whom, stopped, EVERY + SLACK).await;
    println!(
        "ok  one that is told to stop gives its Lease back, and is waited for no more {:.1} s later",
        took.as_secs_f64()
    );

    let whom = names("b", two.at);
    let killed = two.kill();
    let took = named(&mesh, &whom, killed, LASTS + EVERY + SLACK).await;
    assert!(took + EVERY > LASTS, "its Lease had not run out: {took:?}");
    assert!(!lease("b").await["spec"]["holderIdentity"].as_str().unwrap().is_empty());
    println!(
        "ok  one that is killed is named by decisions for {:.1} s, until its Lease has run out",
        took.as_secs_f64()
    );

    // While the API server is away for longer than a Lease lasts, nobody that lived is taken for dead: one that is killed then is waited for.
    let four = Replica::start(&mesh, "d", "127.0.0.4");
    let five = Replica::start(&mesh, "e", "127.0.0.5");
    waits("both to be heard", || hears(&mesh.hub) == 2).await;
    waits_for_lease(&cluster, "e").await;
    // Whoever looks every so often has seen that one too by then; nothing says so.
    sleep(EVERY).await;
    assert_eq!(waited_for(&mesh).await, [""; 0]);
    let (whom, fifth) = (names("e", five.at), five.at);
    Cluster::kill("apiserver");
    let away = five.kill();
    while away.elapsed() < LASTS + EVERY + SLACK {
        let waited = waited_for(&mesh).await;
        assert!(waited.len() == 1 && whom.contains(&waited[0]), "{waited:?} after {:?}", away.elapsed());
        assert!(mesh.hub.replicas.seen().iter().any(|one| one.heard && one.name == "d"), "the fourth lives");
    }
    println!(
        "ok  with the API server away for {} s, who lived lives on, and who died is waited for",
        away.elapsed().as_secs()
    );
    Cluster::rig("up");
    let took = named(&mesh, &whom, Instant::now(), LASTS + EVERY * 4 + SLACK * 2).await;
    assert!(mesh.hub.replicas.seen().iter().any(|one| one.heard && one.name == "d"));
    assert!(mesh.hub.replicas.seen().iter().all(|one| one.address != fifth), "{:?}", mesh.hub.replicas.seen());
    println!("ok  and with it back, until {:.1} s later", took.as_secs_f64());
    four.stop();
}
