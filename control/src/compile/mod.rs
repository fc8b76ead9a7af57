//! Model -> resources: pure, deterministic, and in proportion to the change.
//!
//! Invariants
//! - The same model gives the same bytes, hence the same versions, on every machine and after every restart.
//! - Every name has an answer: an [`Address`](v1::Address) that nothing stands behind is `outside` with a reason, a port that a known
//!   service does not have is a service without endpoints (so that the proxy refuses: nothing inside the mesh falls to plaintext).
//! - [`compile`] is [`Compiled::update`] from nothing: there is one code path, and a property test holds the two equal.
//! - A resource whose inputs did not change keeps its very allocation.
//!
//! Who recomputes what is decided in [`dirty`]; the rooms beside it make one kind of resource each.

mod address;
mod dirty;
mod endpoints;
mod extent;
mod index;
mod routes;
mod services;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use weft_api::names::{self, Digest, ResourceType};
use weft_api::wire::v1;

use crate::model::{Model, Name, ServiceRef, Slice, SliceEndpoint};
pub use address::{CLUSTER_DOMAIN, Topic, topics_of};

/// One encoded resource. Its name is beside it: several names may share one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// `type.googleapis.com/weft.v1.TYPE`.
    pub type_url: &'static str,
    /// Hash of the bytes; of an `EndpointHead` the digest of its members.
    pub version: Arc<str>,
    /// The encoded message, the same for every proxy.
    pub bytes: Bytes,
    /// Names of the resources that a proxy needs beside this one. Members of an endpoint set are not listed: see
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

/// The endpoints of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// The `EndpointHead`.
    pub head: Arc<Resource>,
    /// `Endpoint` resources by name.
    pub members: BTreeMap<Arc<str>, Arc<Resource>>,
}

impl Collection {
    fn new(members: BTreeMap<Arc<str>, Arc<Resource>>) -> Self {
        let mut digest = Digest::default();
        for (name, member) in &members {
            digest.toggle(name, &member.version);
        }
        Self { head: Arc::new(Resource::head(members.len(), digest)), members }
    }
}

/// All resources of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    // Everything but addresses and endpoints.
    resources: HashMap<Arc<str>, Arc<Resource>>,
    collections: HashMap<Arc<str>, Arc<Collection>>,
    // Address resources that say "this service", by the service's resource name.
    service_addresses: HashMap<Arc<str>, Arc<Resource>>,
    lookup: address::Lookup,
    // What the mesh's own trust domain is or was called, as far as it was told.
    domains: Vec<String>,
    model: Arc<Model>,
    draining: Arc<BTreeSet<Name>>,
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

/// The difference between two [`Compiled`], computed without touching the old one.
#[derive(Debug)]
pub struct Patch {
    resources: Vec<(Arc<str>, Option<Arc<Resource>>)>,
    collections: Vec<(Arc<str>, Option<Arc<Collection>>)>,
    service_addresses: Vec<(Arc<str>, Option<Arc<Resource>>)>,
    lookup: Option<address::Lookup>,
    domains: Option<Vec<String>>,
    model: Arc<Model>,
    draining: Arc<BTreeSet<Name>>,
    /// What it changes.
    pub changes: Changes,
}

impl Patch {
    /// One that changes no resource yet.
    fn of(model: &Arc<Model>, draining: &Arc<BTreeSet<Name>>) -> Self {
        Self {
            resources: Vec::new(),
            collections: Vec::new(),
            service_addresses: Vec::new(),
            lookup: None,
            domains: None,
            model: Arc::clone(model),
            draining: Arc::clone(draining),
            changes: Changes::default(),
        }
    }
}

/// Compiles `model` from nothing.
pub fn compile(model: &Model) -> Compiled {
    let mut compiled = Compiled::default();
    let patch = compiled.update(&Arc::new(model.clone()), &Arc::default());
    compiled.apply(patch);
    compiled
}

impl Default for Compiled {
    /// The resources of an empty model.
    fn default() -> Self {
        let extent = (names::MESH_EXTENT.into(), Arc::new(extent::resource(&Model::default())));
        let trust = (names::TRUST.into(), Arc::new(Resource::new(&v1::Trust::default(), Vec::new())));
        let revoked = (names::REVOKED.into(), Arc::new(Resource::new(&v1::Revoked::default(), Vec::new())));
        Self {
            resources: HashMap::from([extent, trust, revoked]),
            collections: HashMap::new(),
            service_addresses: HashMap::new(),
            lookup: address::Lookup::default(),
            domains: Vec::new(),
            model: Arc::default(),
            draining: Arc::default(),
        }
    }
}

impl Compiled {
    /// What has to change so that `self` describes `model`, with the endpoints of the workloads in `draining` marked as leaving.
    pub fn update(&self, model: &Arc<Model>, draining: &Arc<BTreeSet<Name>>) -> Patch {
        let old = index::Index::new(&self.model, &self.draining);
        let new = index::Index::new(model, draining);
        let dirty = dirty::find(&old, &new);
        let uid = |index: &index::Index<'_>, name: &Name| Some(index.model.workloads.get(name)?.uid.clone());
        let uids = |name: &Name| uid(&old, name).zip(uid(&new, name));
        let replaced = dirty.workloads.iter().filter(|name| uids(name).is_some_and(|(before, now)| before != now));
        let replaced = replaced.map(|name| (*name).clone()).collect();
        let mut patch = Patch {
            lookup: dirty.addresses.then(|| address::Lookup::new(model)),
            changes: Changes { ips: dirty.ips, services: dirty.hosts, replaced, ..Changes::default() },
            ..Patch::of(model, draining)
        };
        for name in &dirty.services {
            self.update_service(&old, &new, name, &mut patch);
        }
        for key in &dirty.routes {
            let made = new.model.routes.get(*key).map(|route| routes::resource(model, key, route));
            self.put(names::object(&key.0, &key.1.namespace, &key.1.name), made, &mut patch);
        }
        for name in &dirty.authorization {
            let made =
                new.model.authorization.get(*name).map(|policy| workloads::authorization(name, policy, &self.domains));
            self.put(names::object("AuthorizationPolicy", &name.namespace, &name.name), made, &mut patch);
        }
        for name in &dirty.rate_limits {
            let made = new.model.rate_limits.get(*name).map(|policy| workloads::rate_limit(name, policy));
            self.put(names::object("RateLimitPolicy", &name.namespace, &name.name), made, &mut patch);
        }
        for name in &dirty.workloads {
            let made = new.model.workloads.get(*name).map(|workload| workloads::resource(&new, name, workload));
            self.put(names::workload(&name.namespace, &name.name), made, &mut patch);
        }
        if dirty.addresses {
            self.put(names::MESH_EXTENT.to_owned(), Some(extent::resource(model)), &mut patch);
        }
        patch
    }

    /// What has to change so that these are believed, and the mesh's own under each of its names. They come from no model: the CA has them,
    /// and who federates.
    pub fn update_trust(&self, trust: &v1::Trust) -> Patch {
        let mut patch = Patch::of(&self.model, &self.draining);
        self.put(names::TRUST.to_owned(), Some(Resource::new(trust, Vec::new())), &mut patch);
        let own = (!trust.own.is_empty()).then_some(&trust.own).into_iter();
        let domains: Vec<_> = own.chain(&trust.aliases).chain(&trust.former).cloned().collect();
        for (name, policy) in &self.model.authorization {
            let made = workloads::authorization(name, policy, &domains);
            self.put(names::object("AuthorizationPolicy", &name.namespace, &name.name), Some(made), &mut patch);
        }
        patch.domains = Some(domains);
        patch
    }

    /// What the mesh's own trust domain is or was called, as far as it was told.
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// What has to change so that these are not believed any more.
    pub fn update_revoked(&self, revoked: &v1::Revoked) -> Patch {
        let mut patch = Patch::of(&self.model, &self.draining);
        self.put(names::REVOKED.to_owned(), Some(Resource::new(revoked, Vec::new())), &mut patch);
        patch
    }

    fn put(&self, name: String, made: Option<Resource>, patch: &mut Patch) {
        let (name, old) = match self.resources.get_key_value(name.as_str()) {
            Some((name, old)) => (Arc::clone(name), Some(old)),
            None => (name.into(), None),
        };
        if old.map(AsRef::as_ref) != made.as_ref() {
            patch.changes.names.insert(Arc::clone(&name));
            patch.resources.push((name, made.map(Arc::new)));
        }
    }

    fn update_service(&self, old: &index::Index<'_>, new: &index::Index<'_>, name: &Name, patch: &mut Patch) {
        let mut made = services::build(new, name);
        let gone = old.model.services.get(name).into_iter().flat_map(|service| &service.ports);
        for port in gone {
            made.entry(port.port).or_default();
        }
        for (port, port_made) in made {
            let service = names::service(&name.namespace, &name.name, port);
            let head = names::endpoints_of(&service);
            let key: Arc<str> = service.as_str().into();
            if self.service_addresses.contains_key(&key) != port_made.service.is_some() {
                let address = port_made.service.is_some().then(|| Arc::new(address::to_service(&key)));
                patch.service_addresses.push((key, address));
            }
            self.put(service, port_made.service, patch);
            self.put_collection(head, port_made.members, patch);
        }
    }

    fn put_collection(&self, name: String, made: Option<BTreeMap<Arc<str>, Resource>>, patch: &mut Patch) {
        let (name, old) = match self.collections.get_key_value(name.as_str()) {
            Some((name, old)) => (Arc::clone(name), Some(old)),
            None => (name.into(), None),
        };
        let empty = BTreeMap::new();
        let before = old.map_or(&empty, |old| &old.members);
        let mut changed = BTreeSet::new();
        let after = made.map(|made| {
            let mut after = BTreeMap::new();
            for (member, resource) in made {
                let kept = before.get_key_value(&member).filter(|(_, old)| ***old == resource);
                if let Some((member, old)) = kept {
                    after.insert(Arc::clone(member), Arc::clone(old));
                } else {
                    changed.insert(Arc::clone(&member));
                    after.insert(member, Arc::new(resource));
                }
            }
            after
        });
        let kept = |member: &Arc<str>| after.as_ref().is_some_and(|after| after.contains_key(member));
        changed.extend(before.keys().filter(|member| !kept(member)).cloned());
        if changed.is_empty() && old.is_some() == after.is_some() {
            return;
        }
        if !changed.is_empty() {
            patch.changes.members.insert(Arc::clone(&name), changed);
        }
        patch.collections.push((name, after.map(|after| Arc::new(Collection::new(after)))));
    }

    /// Makes the change.
    pub fn apply(&mut self, patch: Patch) {
        fn set<V>(map: &mut HashMap<Arc<str>, V>, changes: Vec<(Arc<str>, Option<V>)>) {
            for (name, value) in changes {
                match value {
                    Some(value) => map.insert(name, value),
                    None => map.remove(&name),
                };
            }
        }
        set(&mut self.resources, patch.resources);
        set(&mut self.collections, patch.collections);
        set(&mut self.service_addresses, patch.service_addresses);
        if let Some(lookup) = patch.lookup {
            self.lookup = lookup;
        }
        if let Some(domains) = patch.domains {
            self.domains = domains;
        }
        self.model = patch.model;
        self.draining = patch.draining;
    }

    /// The model that this was made from.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
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
        if name.starts_with("endpoints/") {
            return Some(Arc::new(Resource::head(0, Digest::default())));
        }
        if let Some(service) = ServiceRef::parse(name) {
            return Some(Arc::new(services::on_demand(&self.model, &service)));
        }
        names::is_address(name).then(|| self.address(name))
    }

    /// The endpoints of a service port, by the name of their `EndpointHead`.
    pub fn collection(&self, head: &str) -> Option<&Arc<Collection>> {
        self.collections.get(head)
    }

    /// All resources but addresses, with the endpoints, by name.
    pub fn resources(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Resource>)> {
        let sets = self.collections.iter();
        self.resources.iter().chain(sets.flat_map(|(name, set)| std::iter::once((name, &set.head)).chain(&set.members)))
    }

    /// Everything that a proxy gets which subscribes to `root`: itself first, then what it points to, endpoints included.
    pub fn closure(&self, root: &str) -> Vec<(Arc<str>, Arc<Resource>)> {
        let mut found: Vec<(Arc<str>, Arc<Resource>)> = Vec::new();
        let mut seen: HashSet<Arc<str>> = HashSet::from([root.into()]);
        let mut todo: Vec<Arc<str>> = vec![root.into()];
        while let Some(name) = todo.pop() {
            let Some(resource) = self.get(&name) else { continue };
            todo.extend(resource.points_to.iter().rev().filter(|next| seen.insert(Arc::clone(next))).cloned());
            let members = self.collections.get(&name).map(|set| &set.members);
            found.push((name, resource));
            found.extend(members.into_iter().flatten().map(|(name, member)| (Arc::clone(name), Arc::clone(member))));
        }
        found
    }

    /// How many resources there are, by type: addresses are made on demand and not counted.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (_, resource) in self.resources() {
            *counts.entry(resource.type_url).or_default() += 1;
        }
        counts
    }

    /// Whether a workload is gone, terminates, or has said that it leaves.
    pub fn is_leaving(&self, workload: &Name) -> bool {
        let stays = self.model.workloads.get(workload).is_some_and(|found| !found.terminating);
        !stays || self.draining.contains(workload)
    }

    /// Names that the endpoints of a workload have, or would have if they were in, in the sets of all its services.
    pub fn endpoints_of(&self, workload: &Name) -> Vec<Arc<str>> {
        let from = Name::new(&workload.namespace, "");
        let slices = self.model.slices.range(from..).take_while(|(name, _)| name.namespace == workload.namespace);
        let ours =
            slices.filter(|(_, slice)| slice.endpoints.iter().any(|one| one.workload.as_ref() == Some(workload)));
        let services: BTreeSet<&str> = ours.map(|(_, slice)| slice.service.as_str()).collect();
        let mut found = Vec::new();
        for service in services {
            let ports = self.model.services.get(&Name::new(&workload.namespace, service)).map(|service| &service.ports);
            for port in ports.into_iter().flatten() {
                let head = names::endpoints_of(&names::service(&workload.namespace, service, port.port));
                let own: Arc<str> = names::endpoint(&head, &workload.name).into();
                let others = format!("{own}@");
                let members = self.collections.get(head.as_str()).map(|set| &set.members);
                found.extend(
                    members
                        .into_iter()
                        .flat_map(|members| members.keys())
                        .filter(|name| name.starts_with(&others))
                        .cloned(),
                );
                found.push(own);
            }
        }
        found
    }

    /// Endpoints that were left out because their pod is unknown: whether they speak mesh TLS cannot be said, and nothing inside the
    /// mesh is sent in the clear for want of an answer. One sentence each.
    pub fn unresolved(&self) -> impl Iterator<Item = String> {
        let sentence = |(slice_name, _, endpoint): (&Name, &Slice, &SliceEndpoint)| {
            let pod = endpoint.workload.clone().unwrap_or_default();
            format!(
                "EndpointSlice {slice_name}: endpoint {} is left out, its targetRef names pod {pod}, which is not known; give the \
                 Pod's manifest, or take the targetRef away if it stands outside the mesh",
                endpoint.ip
            )
        };
        endpoints::unresolved(&self.model).map(sentence)
    }
}

#[cfg(test)]
mod tests;
