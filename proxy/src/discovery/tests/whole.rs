//! Discovery with control itself at the other end, over mutual TLS and gRPC, and with the disk.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_control::trust::Federated;
use weft_control::{Config as ControlConfig, Control};
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use super::super::machine::Change;
use super::super::snapshot::{Destination, Service};
use super::super::{Discovery, run};
use super::*;
use crate::config::Args;
use crate::control_channel::Target;
use crate::drain::Drain;
use crate::identity::{Current, IdentityStore};
use crate::resolver::resolver;
use crate::telemetry::Telemetry;
use crate::{Clock, Shared};

/// A service of two pods, and the pod whose sidecar we are.
fn manifests(ready: &[u8], policy_line: &str) -> String {
    let mut text = String::from(
        "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, annotations: {weft.dev/injected: 'true'}}
spec: {serviceAccountName: cart}
status: {podIP: 10.0.0.9}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRefs: [{kind: Namespace, name: shop}]
  action: Deny
  rules: [{to: [{paths: ['POLICY_LINE']}]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
",
    )
    .replace("POLICY_LINE", policy_line);
    for last in 1..=2 {
        let is_ready = ready.contains(&last);
        let _ = writeln!(
            text,
            "- {{addresses: [10.0.0.{last}], conditions: {{ready: {is_ready}}}, targetRef: {{kind: Pod, name: web-{last}, namespace: shop}}}}"
        );
    }
    for last in 1..=2 {
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: Pod
metadata: {{name: web-{last}, namespace: shop, annotations: {{weft.dev/injected: 'true'}}}}
spec: {{serviceAccountName: web}}
status: {{podIP: 10.0.0.{last}}}
"
        );
    }
    text
}

struct World {
    dir: tempfile::TempDir,
    listen: SocketAddr,
    /// Its own: with it dies everything that control has spawned.
    control: Option<Runtime>,
}

impl World {
    async fn new() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap()).await
    }

    /// One that is federated with `partner.example`.
    async fn federated() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let partner = Ca::open(&dir.path().join("partner"), "partner.example").unwrap();
        std::fs::write(dir.path().join("partner.pem"), partner.root_pem()).unwrap();
        Self::in_dir(dir).await
    }

    async fn in_dir(dir: tempfile::TempDir) -> Self {
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let mut world = Self { dir, listen: addr("127.0.0.1:0"), control: None };
        world.write(&manifests(&[1], "/a"));
        world.start().await;
        world
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, text: &str) {
        let file = self.path().join("files/shop.yaml");
        std::fs::write(file.with_extension("new"), text).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
    }

    async fn start(&mut self) {
        let partner = Federated { domain: "partner.example".into(), file: self.path().join("partner.pem") };
        let config = ControlConfig {
            federated: if partner.file.exists() { vec![partner] } else { Vec::new() },
            listen: self.listen,
            metrics: addr("127.0.0.1:0"),
            ..ControlConfig::new(vec![self.path().join("files")], self.path().join("ca"))
        };
        let runtime = Runtime::new().unwrap();
        let control = runtime.spawn(Control::start(config)).await.unwrap().unwrap();
        self.listen = control.listen;
        runtime.spawn(control.until(std::future::pending()));
        self.control = Some(runtime);
    }

    /// Kills control: the connection is cut, nothing is said. Its port is free afterwards.
    async fn kill(&mut self) {
        self.control.take().unwrap().shutdown_background();
        while tokio::net::TcpListener::bind(self.listen).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    fn proxy(&self) -> Proxy {
        let identity = Identity::new("cluster.local", "shop", "cart").unwrap();
        let args = Args {
            workload: Some("shop/cart-1".into()),
            identity: Some(identity.to_string()),
            control: Some(vec![self.listen.to_string()]),
            control_ca: Some(self.path().join("ca/root.pem")),
            state_dir: Some(self.path().join("state")),
            dns: vec![addr("127.0.0.1:1")],
            ..Args::default()
        };
        let (config, clock) = (args.resolve().unwrap(), Clock::start());
        let ca = Ca::open(&self.path().join("ca"), "cluster.local").unwrap();
        let shared = Arc::new(Shared {
            trust: crate::testing::trusting(&ca),
            discovery: Discovery::new(&config, clock.clone()).unwrap(),
            identity: IdentityStore::default(),
            application: IdentityStore::default(),
            telemetry: Telemetry::quiet(clock.clone()),
            connections: Arc::new(tokio::sync::Semaphore::new(1)),
            sources: crate::limits::sources::Sources::new(1),
            memory: crate::limits::memory::Memory::default(),
            drain: Drain::default(),
            clock,
            config,
        });
        let target = Target::new(&shared.config.control, None, resolver(&shared.config.dns, None).unwrap()).unwrap();
        let task = tokio::spawn(run(Arc::clone(&shared), target));
        Proxy { shared, task, identity }
    }

    /// Gives it a new certificate.
    fn certify(&self, proxy: &Proxy) {
        let ca = Ca::open(&self.path().join("ca"), "cluster.local").unwrap();
        let key = KeyPair::generate().unwrap();
        let csr = key.csr(&proxy.identity).unwrap();
        let chain = ca.issue(&csr, &proxy.identity, Duration::from_hours(1), SystemTime::now()).unwrap();
        let svid = Svid::new(key, &chain).unwrap();
        proxy.shared.identity.install(Arc::new(Current::new(Arc::new(svid), ca.roots()).unwrap()));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.control.take() {
            runtime.shutdown_background();
        }
    }
}

struct Proxy {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    identity: Identity,
}

impl Proxy {
    fn discovery(&self) -> &Discovery {
        &self.shared.discovery
    }

    async fn until(&self, what: &str, condition: impl Fn(&Discovery) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !condition(self.discovery()) {
            assert!(Instant::now() < end, "no {what}: {:#}", self.discovery().tables_json().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn web(&self) -> Arc<Service> {
        match self.discovery().resolve(addr(VIP)).await {
            Ok(Destination::Service(service)) => service,
            Ok(_) => panic!("{VIP} is no service"),
            Err(reason) => panic!("{VIP}: {reason}"),
        }
    }

    fn received(&self) -> Vec<(&'static str, Change, u64)> {
        let all = self.discovery().counters().received();
        all.into_iter().filter(|(_, _, count)| *count > 0).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn members(service: &Service) -> usize {
    service.own.endpoints.load().members.len()
}

fn denies(discovery: &Discovery, path: &str) -> bool {
    let question = weft_engine::authz::Question { peer: None, http: Some((&http::Method::GET, path)) };
    let inbound = Arc::clone(&discovery.snapshot().inbound);
    matches!(inbound.default.policies.decide(&question), weft_engine::authz::Verdict::Deny { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_follows_control_through_edits_its_death_and_its_return() {
    let mut world = World::new().await;
    let proxy = world.proxy();
    assert!(proxy.discovery().resolve(addr(VIP)).await.is_err(), "no certificate, no answer");
    world.certify(&proxy);
    proxy.until("rules for our own side", |discovery| discovery.status().has_inbound).await;
    let web = proxy.web().await;
    assert_eq!(members(&web), 1);
    assert!(denies(proxy.discovery(), "/a") && !denies(proxy.discovery(), "/b"));
    assert!(matches!(proxy.discovery().resolve(addr("192.0.2.1:1")).await, Ok(Destination::Outside)));
    assert!(matches!(proxy.discovery().resolve_host("web.shop", 80).await, Ok(Destination::Service(_))));

    // One endpoint more: one resource, in the set that is in use.
    let before = proxy.received();
    world.write(&manifests(&[1, 2], "/a"));
    proxy.until("second endpoint", |_| members(&web) == 2).await;
    let new: Vec<_> = proxy.received().into_iter().filter(|count| !before.contains(count)).collect();
    assert_eq!(new, [("Endpoint", Change::New, 2)]);
    assert!(Arc::ptr_eq(&web, &proxy.web().await));

    // A new certificate: a new stream, and nothing again.
    let before = proxy.received();
    let streams = proxy.discovery().counters().streams.load(Ordering::Relaxed);
    world.certify(&proxy);
    proxy.until("new stream", |d| d.counters().streams.load(Ordering::Relaxed) > streams && d.status().connected).await;
    assert!(matches!(proxy.discovery().resolve(addr("10.0.0.1:8080")).await, Ok(Destination::Endpoint(_))));
    let new: Vec<_> = proxy.received().into_iter().filter(|count| !before.contains(count)).collect();
    assert_eq!(new, [("Address", Change::New, 3)], "only what was asked for just now");

    // Control dies: what is known stays, what is not fails after a second.
    world.kill().await;
    proxy.until("end of the stream", |discovery| !discovery.status().connected).await;
    assert!(Arc::ptr_eq(&web, &proxy.web().await));
    let begun = Instant::now();
    let unknown = proxy.discovery().resolve(addr("10.96.0.77:80")).await;
    assert!(matches!(unknown, Err(Reason::DiscoveryTimeout)) && begun.elapsed() < Duration::from_secs(5));
    assert!(matches!(proxy.discovery().resolve(addr("192.0.2.1:1")).await, Ok(Destination::Outside)));
    proxy.discovery().flush().await;
    drop(proxy);

    // A proxy that starts meanwhile starts from the disk, its own side included.
    let proxy = world.proxy();
    let status = proxy.discovery().status();
    assert!(status.from_disk && status.has_inbound && !status.connected);
    let web = proxy.web().await;
    assert_eq!(members(&web), 2);
    assert!(denies(proxy.discovery(), "/a"));

    // It gives control a moment to say what is new, and is ready without it then.
    world.certify(&proxy);
    let not_ready = |after| crate::admin::health::not_ready(&proxy.shared, after).unwrap_or_default();
    assert!(not_ready(Duration::ZERO).contains("saved tables"), "{}", not_ready(Duration::ZERO));
    assert_eq!(not_ready(Duration::from_secs(2)), "");

    // Control comes back, one object was edited: that one comes, and what was asked for in vain.
    world.write(&manifests(&[1, 2], "/b"));
    world.start().await;
    proxy.until("new rule", |discovery| denies(discovery, "/b")).await;
    proxy.until("an answer to all that was asked", |discovery| !discovery.status().from_disk).await;
    assert_eq!(not_ready(Duration::ZERO), "");
    assert!(!denies(proxy.discovery(), "/a"));
    assert!(matches!(proxy.discovery().resolve(addr("10.96.0.77:80")).await, Ok(Destination::Outside)));
    assert_eq!(proxy.received(), [("Address", Change::New, 1), ("AuthorizationPolicy", Change::Changed, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_that_control_has_told_are_believed_and_after_a_restart_without_it() {
    let mut world = World::federated().await;
    let believes = |proxy: &Proxy| format!("{:?}", proxy.shared.trust.now().peers).contains("partner.example");
    let proxy = world.proxy();
    assert!(!believes(&proxy));
    world.certify(&proxy);
    proxy.until("root of the partner", |_| believes(&proxy)).await;
    proxy.discovery().flush().await;
    world.kill().await;
    drop(proxy);
    let again = world.proxy();
    again.until("root of the partner", |_| believes(&again)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_called_no_more_makes_room() {
    let world = World::new().await;
    let proxy = world.proxy();
    world.certify(&proxy);
    proxy.web().await;
    let limit = Limits::default().addresses;
    // Outside the pods' and services' ranges nobody asks, so these are names.
    let ask = |n: usize| {
        let shared = Arc::clone(&proxy.shared);
        tokio::spawn(async move { shared.discovery.resolve_host(&format!("h{n}.example"), 80).await.is_ok() })
    };
    let mut answered = 0;
    for batch in 0..(limit + 100) / 100 {
        let asked: Vec<_> = (batch * 100..batch * 100 + 100).map(ask).collect();
        for one in asked {
            answered += usize::from(one.await.unwrap());
        }
    }
    let counters = proxy.discovery().counters();
    assert!(counters.evicted_addresses.load(Ordering::Relaxed) > 0);
    proxy
        .until("bound", |discovery| {
            let snapshot = discovery.snapshot();
            snapshot.by_addr.len() + snapshot.by_host.len() <= limit
        })
        .await;
    assert!(answered > limit / 2, "{answered} of {} were answered in their time", limit + 100);
}

#[tokio::test(start_paused = true)]
async fn tables_that_could_not_be_written_are_not_confirmed_but_written_anew() {
    let world = World::new().await;
    let proxy = world.proxy();
    let counters = proxy.discovery().counters();
    let [saves, failures] = [&counters.saves, &counters.save_failures].map(|count| || count.load(Ordering::Relaxed));
    // Without a certificate nothing is answered; what was asked is saved all the same.
    let ask = async |host: &str| assert!(proxy.discovery().resolve_host(host, 80).await.is_err());
    ask("one.shop").await;
    proxy.until("saved tables", |_| saves() == 1).await;
    // What an earlier write left cannot be removed: it is a directory.
    let obstacle = world.path().join("state/.tables.0123456789abcdef.new");
    std::fs::create_dir(&obstacle).unwrap();
    ask("two.shop").await;
    proxy.until("failure", |_| failures() == 1).await;
    std::fs::remove_dir(&obstacle).unwrap();
    let end = Instant::now() + Duration::from_mins(2);
    while saves() == 1 {
        assert!(Instant::now() < end, "the outdated tables pass for new ones");
        proxy.discovery().set_connected(true);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
