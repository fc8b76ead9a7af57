//! An API server for tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use weft_api::names::{self, ResourceType};
use weft_api::wire::v1;
use weft_control::cluster::Access;
use weft_control::compile::Compiled;
use weft_control::distribute::Hub;
use weft_control::status::Settings;
use weft_control::{Config, Control};

use crate::common::Mesh;

/// What the script tells: the API server's address, its roots, the token of control (with the rights of docs/kubernetes.md), and the
/// administrator's kubeconfig.
pub struct Cluster {
    pub addr: SocketAddr,
    pub roots: PathBuf,
    pub token: PathBuf,
    pub admin: kube::Client,
}

fn told(name: &str) -> Option<String> {
    std::env::var(format!("WEFT_TEST_{name}")).ok()
}

impl Cluster {
    /// `None` where there is none.
    pub async fn open() -> Option<Self> {
        let kubeconfig = told("KUBECONFIG")?;
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        // Another test may have been first.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        let admin = Access { kubeconfig: Some(kubeconfig.into()), ..Access::default() };
        Some(Self {
            addr: told("API")?.parse().unwrap(),
            roots: told("ROOTS")?.into(),
            token: told("TOKEN")?.into(),
            admin: admin.client().await.unwrap(),
        })
    }

    pub async fn ask(&self, method: Method, path: &str, kind: &str, body: Value) -> Result<Value, kube::Error> {
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        self.admin.request(request.body(body.to_string().into_bytes()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) {
        self.ask(Method::POST, path, "application/json", body).await.unwrap();
    }

    /// Of a kind that was defined a moment ago, and is served a moment later.
    pub async fn post_at_last(&self, path: &str, body: Value) {
        let begun = Instant::now();
        while let Err(error) = self.ask(Method::POST, path, "application/json", body.clone()).await {
            assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn patch(&self, path: &str, body: Value) {
        self.ask(Method::PATCH, path, "application/merge-patch+json", body).await.unwrap();
    }

    pub async fn delete(&self, path: &str) {
        self.ask(Method::DELETE, path, "application/json", json!({"gracePeriodSeconds": 0})).await.unwrap();
    }

    /// A namespace with a service account, for pods.
    pub async fn namespace(&self, name: &str) {
        self.post("/api/v1/namespaces", json!({"metadata": {"name": name}})).await;
        for account in ["default", "web", "cart"] {
            let account = json!({"metadata": {"name": account}});
            self.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account).await;
        }
    }

    /// The same, if it is not there.
    pub async fn namespace_once(&self, name: &str) {
        let path = format!("/api/v1/namespaces/{name}");
        if self.ask(Method::GET, &path, "application/json", Value::Null).await.is_err() {
            self.namespace(name).await;
        }
    }

    /// Installs a kind of which anything may be said.
    pub async fn define(&self, group: &str, version: &str, kind: &str, plural: &str) {
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": any, "status": any}}});
        let version =
            json!({"name": version, "served": true, "storage": true, "subresources": {"status": {}}, "schema": schema});
        let names =
            json!({"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")});
        let metadata = json!({"name": format!("{plural}.{group}"), "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}});
        let spec = json!({"group": group, "scope": "Namespaced", "versions": [version], "names": names});
        self.post(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            json!({"metadata": metadata, "spec": spec}),
        )
        .await;
    }

    pub async fn service(&self, namespace: &str, name: &str, spec: Value) {
        let path = format!("/api/v1/namespaces/{namespace}/services");
        self.post(&path, json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    /// A slice of `web`.
    pub async fn slice(&self, namespace: &str, name: &str, family: &str, ports: Value, endpoints: Value) {
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        let metadata = json!({"name": name, "labels": {"kubernetes.io/service-name": "web"}});
        self.post(&path, json!({"metadata": metadata, "addressType": family, "ports": ports, "endpoints": endpoints}))
            .await;
    }

    pub async fn pod(&self, namespace: &str, name: &str, account: &str, ip: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let metadata = json!({"name": name, "annotations": {"weft.dev/injected": "true"}});
        let containers = json!([{"name": "c", "image": "none"}]);
        let spec =
            json!({"serviceAccountName": account, "automountServiceAccountToken": false, "containers": containers});
        self.post(&path, json!({"metadata": metadata, "spec": spec})).await;
        let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
        self.patch(&format!("{path}/{name}/status"), status).await;
    }

    pub async fn get(&self, path: &str) -> Value {
        self.admin.request(Request::get(path).body(Vec::new()).unwrap()).await.unwrap()
    }

    /// A control that watches this cluster, by an address.
    pub async fn control(&self, by: SocketAddr) -> Mesh {
        self.control_with(by, None).await
    }

    /// One that keeps last good versions there.
    pub async fn control_keeping(&self, state: Option<&Path>) -> Mesh {
        let (access, state) = (self.access(self.addr), state.map(Path::to_owned));
        let mesh = Mesh::with(|config| {
            (config.files, config.kubernetes, config.state_dir) = (Vec::new(), Some(access), state);
        });
        let mesh = mesh.await;
        waits("control to have listed every kind", || *mesh.hub.loaded().borrow()).await;
        mesh
    }

    /// One that may never be ready.
    pub async fn begins(&self) -> Mesh {
        let access = self.access(self.addr);
        Mesh::with(|config| (config.files, config.kubernetes) = (Vec::new(), Some(access))).await
    }

    /// The API server, asked as control.
    pub async fn own(&self) -> kube::Client {
        self.access(self.addr).client().await.unwrap()
    }

    pub fn access(&self, by: SocketAddr) -> Access {
        let (roots, token) = (Some(self.roots.clone()), Some(self.token.clone()));
        Access { api: Some(format!("https://{by}")), roots, token, ..Access::default() }
    }

    /// Another replica of a control: where it serves, until that is dropped. It writes no status.
    pub async fn replica(&self, mesh: &Mesh) -> (SocketAddr, AbortOnDropHandle<()>) {
        let mut config = Config::new(Vec::new(), mesh.dir.path().join("ca"));
        (config.listen, config.metrics) = (([127, 0, 0, 1], 0).into(), ([127, 0, 0, 1], 0).into());
        config.kubernetes = Some(self.access(self.addr));
        config.replicas = vec![mesh.listen.to_string()];
        let control = Control::start(config).await.unwrap();
        let (listen, hub) = (control.listen, Arc::clone(&control.hub));
        let runs = tokio::spawn(async move { control.until(std::future::pending()).await.unwrap() });
        let heard = |hub: &Hub| hub.replicas.seen().iter().any(|one| one.heard);
        waits("two replicas to hear each other", || *hub.loaded().borrow() && heard(&hub) && heard(&mesh.hub)).await;
        (listen, AbortOnDropHandle::new(runs))
    }

    /// One that writes status, if it has that.
    pub async fn control_with(&self, by: SocketAddr, status: Option<Settings>) -> Mesh {
        let access = self.access(by);
        let mesh = Mesh::with(|config| {
            config.files = Vec::new();
            config.kubernetes = Some(access);
            config.status = status;
        });
        let mesh = mesh.await;
        waits("control to have listed every kind", || *mesh.hub.loaded().borrow()).await;
        mesh
    }

    /// Runs a script of the rig.
    pub fn rig(script: &str) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/e2e/rig").join(script);
        assert!(Command::new(&path).status().unwrap().success(), "{}", path.display());
    }

    /// Ends a part of the rig at once.
    pub fn kill(part: &str) {
        let file = PathBuf::from(told("RIG").unwrap()).join(format!("{part}.pid"));
        let pid = std::fs::read_to_string(&file).unwrap();
        assert!(Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
        while Command::new("kill").args(["-0", pid.trim()]).output().unwrap().status.success() {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::remove_file(file).unwrap();
    }
}

/// Waits until it holds.
pub async fn waits(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(40), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The endpoints of a service port as proxies are told them: `IP:PORT`, `+` if a sidecar is there, `~` if it leaves.
pub fn endpoints(compiled: &Compiled, namespace: &str, port: u16) -> Vec<String> {
    let head = names::endpoints_of(&names::service(namespace, "web", port));
    let Some(collection) = compiled.collection(&head) else { return vec!["none".to_owned()] };
    let read = |bytes: &[u8]| <v1::Endpoint as prost::Message>::decode(bytes).unwrap();
    let show = |endpoint: v1::Endpoint| {
        let ip = match *endpoint.ip {
            [a, b, c, d] => std::net::IpAddr::from([a, b, c, d]),
            _ => std::net::IpAddr::from(<[u8; 16]>::try_from(&*endpoint.ip).unwrap()),
        };
        let mesh = if endpoint.identity.is_empty() { "" } else { "+" };
        format!("{}{mesh}{}", SocketAddr::new(ip, endpoint.port as u16), if endpoint.draining { "~" } else { "" })
    };
    let mut shown: Vec<String> = collection.members.values().map(|member| show(read(&member.bytes))).collect();
    shown.sort();
    shown
}

/// A resource as proxies are told it.
pub fn resource<M: ResourceType + Default>(compiled: &Compiled, name: &str) -> Option<M> {
    compiled.get(name).map(|found| M::decode(&*found.bytes).unwrap())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Connections end, and none can be made.
    Cut,
}

/// A way to the API server.
pub struct Gate {
    pub addr: SocketAddr,
    way: Arc<watch::Sender<Way>>,
}

impl Gate {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let way = Arc::new(watch::Sender::new(Way::Open));
        let all = Arc::clone(&way);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut way = all.subscribe();
                tokio::spawn(async move {
                    if *way.borrow_and_update() == Way::Cut {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = way.wait_for(|way| *way == Way::Cut) => {}
                    }
                });
            }
        });
        Self { addr, way }
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}
