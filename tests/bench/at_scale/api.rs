//! The source `kubernetes`: the world in a real API server, written as others write it there.
//!
//! - Each object is a write of its own, over TLS, some [`WRITERS`] at a time. A pod takes two: its status is the kubelet's to write.
//! - Control calls with the rights that docs/kubernetes.md lists, and writes status where users will look for it.
//! - Pods have the uids that the API server gives them; the proxies' certificates must name those.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::super::{Error, say};
use super::objects::{Kind, Object};
use super::rig::Rig;
pub use super::rig::Servers;
use super::world::{HOT, World};
use super::writer::Writer;

/// Writes under way at a time, each on a connection of its own.
const WRITERS: usize = 32;
/// Progress is said so often.
const PATIENCE: Duration = Duration::from_secs(5);
const JSON: &str = "application/json";
const PATCH: &str = "application/merge-patch+json";

/// A world in an API server, which ends when this is dropped.
pub struct Api {
    // Before the rig: connections end first.
    runtime: Runtime,
    writer: Writer,
    uids: PathBuf,
    /// How many writes a second it took.
    rate: f64,
    rig: Rig,
}

impl Api {
    /// Starts an API server and writes all of a world, every mark as given.
    pub fn begin(dir: &Path, world: &World, marks: &[u64]) -> Result<Self, Error> {
        let rig = Rig::start(&dir.join("rig"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|source| Error::File { path: "a thread".into(), source })?;
        let writer = Writer::new(rig.addr, rig.tls()?);
        let mut api = Self { runtime, writer, uids: dir.join("uids"), rate: 0.0, rig };
        let (begun, services) = (Instant::now(), 0..world.services);
        let mut writes = 0;
        writes += api.create("Namespaces", (0..world.namespaces()).map(World::namespace_object))?;
        writes += api.create("Nodes", world.nodes())?;
        writes += api.create("ServiceAccounts", services.clone().map(World::account))?;
        writes += api.create("Services", services.clone().map(World::service_object))?;
        writes += 2 * api.create("Pods", services.clone().flat_map(|service| world.pods(service)))?;
        writes += api.create("EndpointSlices", services.flat_map(|service| world.slices(service, marks)))?;
        writes += api.create("HTTPRoutes", ["beside", "edited"].map(|name| World::route(name, 0)).into_iter())?;
        api.rate = writes as f64 / begun.elapsed().as_secs_f64();
        say(&format!("  {writes} writes in {:.0} s, {:.0} a second", begun.elapsed().as_secs_f64(), api.rate));
        api.list_uids(world)?;
        Ok(api)
    }

    /// Flags by which control reads it.
    pub fn flags(&self) -> Vec<String> {
        let kubeconfig = self.rig.kubeconfig().display().to_string();
        ["--kubernetes", "--kubeconfig", &kubeconfig, "--namespace", "weft-system"].map(str::to_owned).into()
    }

    /// Where the uids of the proxies' pods are, one a line.
    pub fn uids(&self) -> &Path {
        &self.uids
    }

    /// Changes endpoints of these services.
    pub fn slices(&self, world: &World, services: Range<usize>, marks: &[u64]) -> Result<(), Error> {
        self.replace(services.flat_map(|service| world.slices(service, marks)))
    }

    /// Changes endpoints of the hot service. What a write does not change, the API server tells nobody.
    pub fn hot(&self, world: &World, marks: &[u64]) -> Result<(), Error> {
        self.replace(world.slices(HOT, marks))
    }

    /// Edits a route of the hot service.
    pub fn route(&self, name: &str, micros: u64) -> Result<(), Error> {
        let route = World::route(name, micros);
        let path = format!("{}/{name}", collection(&route));
        self.runtime.block_on(self.writer.ask(Method::PATCH, &path, PATCH, &route.body)).map(drop)
    }

    /// The processes behind it, and how fast the world was written.
    pub fn servers(&self) -> Result<Servers, Error> {
        self.rig.servers(self.rate)
    }

    /// Writes what is not there yet. How many that were.
    fn create(&self, what: &str, objects: impl Iterator<Item = Object>) -> Result<usize, Error> {
        let (mut many, mut said) = (0, Instant::now());
        let created = stream::iter(objects).map(|object| self.create_one(object)).buffer_unordered(WRITERS);
        let created = created.try_for_each(|()| {
            many += 1;
            if said.elapsed() > PATIENCE {
                said = Instant::now();
                say(&format!("  {many} {what}"));
            }
            std::future::ready(Ok(()))
        });
        self.runtime.block_on(created)?;
        Ok(many)
    }

    async fn create_one(&self, object: Object) -> Result<(), Error> {
        let all = collection(&object);
        self.writer.ask(Method::POST, &all, JSON, &object.body).await?;
        if object.kind == Kind::Pod {
            let ip = &object.body["status"]["podIP"];
            let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
            self.writer.ask(Method::PATCH, &format!("{all}/{}/status", object.name), PATCH, &status).await?;
        }
        Ok(())
    }

    /// Writes what is there already, as a controller does that owns it.
    fn replace(&self, objects: impl Iterator<Item = Object>) -> Result<(), Error> {
        let replaced = stream::iter(objects).map(|object| async move {
            let path = format!("{}/{}", collection(&object), object.name);
            self.writer.ask(Method::PUT, &path, JSON, &object.body).await.map(drop)
        });
        self.runtime.block_on(replaced.buffer_unordered(WRITERS).try_for_each(|()| std::future::ready(Ok(()))))
    }

    /// Asks for the uids of all pods, and writes down those beside which a proxy stands.
    fn list_uids(&self, world: &World) -> Result<(), Error> {
        let found = Mutex::new(BTreeMap::new());
        let listed = stream::iter(0..world.namespaces()).map(|namespace| {
            let path = format!("/api/v1/namespaces/{}/pods", World::namespace_object(namespace).name);
            let found = &found;
            async move {
                let list = self.writer.ask(Method::GET, &path, JSON, &Value::Null).await?;
                let list: Value = serde_json::from_slice(&list).unwrap_or_default();
                let pods = list["items"].as_array().into_iter().flatten().map(|pod| &pod["metadata"]);
                let known = pods.filter_map(|meta| {
                    Some((World::place_of(meta["name"].as_str()?)?, meta["uid"].as_str()?.to_owned()))
                });
                found.lock().extend(known);
                Ok::<(), Error>(())
            }
        });
        self.runtime.block_on(listed.buffer_unordered(2).try_for_each(|()| std::future::ready(Ok(()))))?;
        let found = found.into_inner();
        let lines = (0..world.proxies).map(|proxy| found.get(&world.place(proxy)).map_or("", String::as_str));
        let text: Vec<&str> = lines.collect();
        std::fs::write(&self.uids, text.join("\n")).map_err(|source| Error::File { path: self.uids.clone(), source })
    }
}

/// The path of all objects of its kind in its namespace.
fn collection(object: &Object) -> String {
    let (version, plural) = (object.kind.version(), object.kind.name().to_lowercase());
    let root = if version.contains('/') { "apis" } else { "api" };
    match &object.namespace {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}s"),
        None => format!("/{root}/{version}/{plural}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_written_where_its_kind_is() {
        let world = World::new(200, 400, 10, 5).unwrap();
        let first = |mut all: Box<dyn Iterator<Item = Object>>| collection(&all.next().unwrap());
        assert_eq!(first(Box::new(world.nodes())), "/api/v1/nodes");
        assert_eq!(first(Box::new(world.pods(150))), "/api/v1/namespaces/n-001/pods");
        assert_eq!(first(Box::new(world.slices(0, &[]))), "/apis/discovery.k8s.io/v1/namespaces/n-000/endpointslices");
        assert_eq!(
            collection(&World::route("edited", 0)),
            "/apis/gateway.networking.k8s.io/v1/namespaces/n-000/httproutes"
        );
    }
}
