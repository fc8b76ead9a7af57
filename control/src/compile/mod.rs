//! Model -> resources: pure, deterministic, and in proportion to the change.
//!
//! Invariants
//! - The same model gives the same bytes, hence the same versions, on every machine and after every restart.
//! - Every name has an answer: an [`Address`](v1::Address) that nothing stands behind is `outside` with a reason, a port that a known
//!   service does not have is a service without endpoints (so that the proxy refuses: nothing inside the mesh falls to plaintext).
//! - [`compile`] is [`Compiled::update`] from nothing: there is one code path, and a property test holds the two equal.
//! - A resource whose inputs did not change keeps its very allocation.
//! - The work of a change is in proportion to what depends on the object, never to the mesh: one endpoint among many costs no more than one
//!   among few, unless with it the first of a port becomes ready or the last ceases to be.
//!
//! A change goes three steps, so that nobody who reads waits for more than entries in maps: [`Compiled::take`] brings the model and its
//! indexes up to date and notes what depends on them (`take`), [`Compiled::make`] makes that anew without changing anything, and
//! [`Compiled::apply`] puts it in. Between the first and the last a reader finds resources as they were, and answers about addresses as they
//! will be: each of them true, and all that differs is among the [`Changes`] in the end.

mod address;
mod endpoints;
mod extent;
mod index;
mod make;
mod routes;
mod services;
mod take;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use weft_api::names::{self, Digest, ResourceType};
use weft_api::wire::v1;

use crate::model::{Change, Model, Name, ServiceRef};
pub use address::{CLUSTER_DOMAIN, Topic, topics_of};
use endpoints::Port;
use index::{Index, Who};
pub use make::Patch;
pub use take::Dirty;

/// One encoded resource. Its name is beside it: several names may share one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `type.googleapis.com/weft.v1.TYPE`.
    pub type_url: &'static str,
    /// Hash of the bytes; of an `EndpointHead` the digest of its members.
    pub version: Arc<str>,
    /// The encoded message, the same for every proxy.
    pub bytes: Bytes,
    /// Names of the resources that a proxy needs beside this one ([`names::followed`]). Members of an endpoint set are not listed: see
    /// [`Compiled::collection`].
    pub points_to: Vec<Arc<str>>,
}

impl Resource {
    /// Encodes `message`.
    pub fn new<M: ResourceType>(message: &M, points_to: Vec<Arc<str>>) -> Self {
        let bytes = Bytes::from(message.encode_to_vec());
        Self { type_url: M::TYPE_URL, version: names::version(&bytes).into(), bytes, points_to }
    }

    fn head(count: usize, digest: Digest) -> Self {
        let message = v1::EndpointHead { count: u32::try_from(count).unwrap_or(u32::MAX), digest: digest.to_bytes() };
        Self { version: digest.to_version().into(), ..Self::new(&message, Vec::new()) }
    }
}

/// `Endpoint` resources by name.
pub type Set = BTreeMap<Arc<str>, Arc<Resource>>;

/// The endpoints of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// The `EndpointHead`.
    pub head: Arc<Resource>,
    /// Shared by the streams of all proxies that hold just these.
    pub members: Arc<Set>,
    /// Of the members.
    digest: Digest,
}

impl Collection {
    fn empty() -> Self {
        let digest = Digest::default();
        Self { head: Arc::new(Resource::head(0, digest)), members: Arc::default(), digest }
    }

    /// Costs as many steps as members that differ, each the logarithm of the set; and once a copy of its pointers, where a stream shares it.
    fn edit(&mut self, members: BTreeMap<Arc<str>, Option<Arc<Resource>>>) {
        let set = Arc::make_mut(&mut self.members);
        for (name, made) in members {
            let new = made.as_ref().map(|made| Arc::clone(&made.version));
            let old = match made {
                Some(made) => set.insert(Arc::clone(&name), made),
                None => set.remove(&name),
            };
            for version in old.map(|old| Arc::clone(&old.version)).into_iter().chain(new) {
                self.digest.toggle(&name, &version);
            }
        }
        self.head = Arc::new(Resource::head(self.members.len(), self.digest));
    }
}

/// All resources of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    // Everything but addresses and endpoints.
    resources: HashMap<Arc<str>, Arc<Resource>>,
    collections: HashMap<Arc<str>, Collection>,
    // Address resources that say "this service", by the service's resource name.
    service_addresses: HashMap<Arc<str>, Arc<Resource>>,
    /// How many there are, heads and endpoints included, by type.
    counts: BTreeMap<&'static str, usize>,
    // What the mesh's own trust domain is or was called, as far as it was told.
    domains: Vec<String>,
    index: Index,
}

/// What an update changed, by the topics that streams subscribe to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Resources that are new, different or gone; neither addresses nor endpoints.
    pub names: HashSet<Arc<str>>,
    /// Endpoints that are new, different or gone, by the name of their set.
    pub members: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Addresses with these IPs may have changed.
    pub ips: BTreeSet<IpAddr>,
    /// Addresses by host that lead to these services may have changed.
    pub services: BTreeSet<Name>,
    /// Workloads whose name another pod has now: to everybody else it may be the same.
    pub replaced: BTreeSet<Name>,
    /// How many resources and endpoints were made again, whether or not they came out as they were.
    pub recomputed: usize,
}

impl Changes {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.members.is_empty() && self.ips.is_empty() && self.services.is_empty()
    }

    /// How many resources and endpoints changed.
    pub fn len(&self) -> usize {
        self.names.len() + self.members.values().map(BTreeSet::len).sum::<usize>()
    }
}

/// Compiles `model` from nothing.
pub fn compile(model: &Model) -> Compiled {
    let mut compiled = Compiled::default();
    compiled.update(Model::default().changes_to(model), BTreeSet::new());
    compiled
}

impl Default for Compiled {
    /// The resources of an empty model.
    fn default() -> Self {
        let mut compiled = Self {
            resources: HashMap::new(),
            collections: HashMap::new(),
            service_addresses: HashMap::new(),
            counts: BTreeMap::new(),
            domains: Vec::new(),
            index: Index::default(),
        };
        let mut patch = Patch::default();
        compiled.put(names::MESH_EXTENT.to_owned(), Some(compiled.index.extent.resource()), &mut patch);
        compiled.put(names::TRUST.to_owned(), Some(Resource::new(&v1::Trust::default(), Vec::new())), &mut patch);
        compiled.put(names::REVOKED.to_owned(), Some(Resource::new(&v1::Revoked::default(), Vec::new())), &mut patch);
        compiled.apply(patch);
        compiled
    }
}

impl Compiled {
    /// The three steps at once. `leaving`: workloads that have said that they leave, all of them.
    pub fn update(&mut self, changes: impl IntoIterator<Item = Change>, leaving: BTreeSet<Name>) -> Changes {
        let mut dirty = Dirty::default();
        for change in changes {
            self.take(change, &mut dirty);
        }
        self.leaving(leaving, &mut dirty);
        let patch = self.make(&dirty);
        self.apply(patch)
    }

    /// Takes a change over into the model, and notes in `dirty` what is to be made again.
    pub fn take(&mut self, change: Change, dirty: &mut Dirty) {
        self.index.take(change, dirty);
    }

    /// Takes over which workloads have said that they leave, all of them.
    pub fn leaving(&mut self, now: BTreeSet<Name>, dirty: &mut Dirty) {
        self.index.leaving(now, dirty);
    }

    /// What the mesh's own trust domain is or was called, as far as it was told.
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// The model that this was made from.
    pub fn model(&self) -> &Model {
        &self.index.model
    }

    /// A resource by its name, whatever its type. `None` only if nothing of that name can be asked for.
    pub fn get(&self, name: &str) -> Option<Arc<Resource>> {
        if let Some(found) = self.resources.get(name) {
            return Some(Arc::clone(found));
        }
        if let Some(found) = self.collections.get(name) {
            return Some(Arc::clone(&found.head));
        }
        if let Some(set) = names::collection_of(name) {
            return self.collections.get(set)?.members.get(name).cloned();
        }
        if names::is_consumer(name) {
            return Some(Arc::clone(&services::NO_CONSUMER));
        }
        if name.starts_with("endpoints/") {
            return Some(Arc::new(Resource::head(0, Digest::default())));
        }
        if let Some(service) = ServiceRef::parse(name) {
            return Some(Arc::new(services::on_demand(self.model(), &service)));
        }
        names::is_address(name).then(|| self.address(name))
    }

    /// The endpoints of a service port, by the name of their `EndpointHead`.
    pub fn collection(&self, head: &str) -> Option<&Collection> {
        self.collections.get(head)
    }

    /// All resources but addresses, with the endpoints, by name.
    pub fn resources(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Resource>)> {
        let sets = self.collections.iter();
        self.resources
            .iter()
            .chain(sets.flat_map(|(name, set)| std::iter::once((name, &set.head)).chain(&*set.members)))
    }

    /// Everything that a proxy of the namespace `client` gets which subscribes to `root`: itself first, then what it points to, endpoints
    /// included.
    pub fn closure(&self, root: &str, client: &str) -> Vec<(Arc<str>, Arc<Resource>)> {
        let mut found: Vec<(Arc<str>, Arc<Resource>)> = Vec::new();
        let mut seen: HashSet<Arc<str>> = HashSet::from([root.into()]);
        let mut todo: Vec<Arc<str>> = vec![root.into()];
        while let Some(name) = todo.pop() {
            let Some(resource) = self.get(&name) else { continue };
            let next = resource.points_to.iter().rev().filter_map(|next| names::followed(next, client));
            todo.extend(next.filter(|next| seen.insert(Arc::clone(next))));
            let members = self.collections.get(&name).map(|set| &*set.members);
            found.push((name, resource));
            found.extend(members.into_iter().flatten().map(|(name, member)| (Arc::clone(name), Arc::clone(member))));
        }
        found
    }

    /// How many resources there are, by type: addresses are made on demand and not counted.
    pub fn counts(&self) -> &BTreeMap<&'static str, usize> {
        &self.counts
    }

    /// Whether a workload is gone, terminates, or has said that it leaves.
    pub fn is_leaving(&self, workload: &Name) -> bool {
        let stays = self.model().workloads.get(workload).is_some_and(|found| !found.terminating);
        !stays || self.index.draining.contains(workload)
    }

    /// The zone of a workload's node; empty if it is not known.
    pub fn zone_of(&self, workload: &Name) -> &str {
        self.model().workloads.get(workload).map_or("", |found| self.index.zone_of(found))
    }

    /// The zone of the workload with this address; empty if it is not known.
    pub fn zone_at(&self, ip: IpAddr) -> &str {
        self.index.workload_at(ip).map_or("", |(_, found)| self.index.zone_of(found))
    }

    /// Names that the endpoints of a workload have, or would have if they were in, in the sets of all its services.
    pub fn endpoints_of(&self, workload: &Name) -> Vec<Arc<str>> {
        let who = Who::Pod(workload.clone());
        let mut found = Vec::new();
        for service in self.index.services_naming(workload) {
            for number in services::ports(&self.index, &service).into_keys() {
                let head = names::endpoints_of(&names::service(&service.namespace, &service.name, number));
                let port = Port { service: &service, name: "", head: &head, any_ready: false, distribution: None };
                let own: Arc<str> = port.name_of(&who).into();
                let members = self.collections.get(head.as_str()).map(|set| &set.members);
                let others = members.into_iter().flat_map(|members| port.names(members, &who));
                found.extend(others.filter(|name| **name != own).cloned());
                found.push(own);
            }
        }
        found
    }

    /// How many endpoints are left out because their pod is not known.
    pub fn unresolved_count(&self) -> usize {
        self.index.unresolved
    }

    /// Endpoints that were left out because their pod is unknown: whether they speak mesh TLS cannot be said, and nothing inside the
    /// mesh is sent in the clear for want of an answer. One sentence each. Looks at all endpoints.
    pub fn unresolved(&self) -> impl Iterator<Item = String> {
        let slices = self.model().slices.iter();
        let all = slices.flat_map(|(name, slice)| slice.endpoints.iter().map(move |endpoint| (name, endpoint)));
        all.filter(|(_, endpoint)| self.index.is_unresolved(endpoint)).map(|(slice, endpoint)| {
            let pod = endpoint.workload.clone().unwrap_or_default();
            format!(
                "EndpointSlice {slice}: endpoint {} is left out, its targetRef names pod {pod}, which is not known; give the \
                 Pod's manifest, or take the targetRef away if it stands outside the mesh",
                endpoint.ip
            )
        })
    }
}

#[cfg(test)]
mod tests;
