//! What is dirty is made anew, beside what is in force, and then put in its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_api::names;
use weft_api::wire::v1;

use super::endpoints::Port;
use super::take::{Dirty, Part};
use super::{Changes, Collection, Compiled, Resource, address, routes, services, workloads};
use crate::model::Name;

/// Endpoints of a set by name; `None`: the set is gone.
type Members = Option<BTreeMap<Arc<str>, Option<Arc<Resource>>>>;

/// What makes one [`Compiled`] of another.
#[derive(Debug, Default)]
pub struct Patch {
    resources: Vec<(Arc<str>, Option<Arc<Resource>>)>,
    collections: Vec<(Arc<str>, Members)>,
    service_addresses: Vec<(Arc<str>, Option<Arc<Resource>>)>,
    domains: Option<Vec<String>>,
    changes: Changes,
}

/// So many resources are made in a few milliseconds at most.
const FEW: usize = 500;

impl Compiled {
    /// Whether what is dirty is made so soon that readers may wait for it.
    pub fn is_small(&self, dirty: &Dirty) -> bool {
        let endpoints = dirty.endpoints.iter().map(|(service, part)| match part {
            Part::Some(some) => some.len(),
            Part::All => self.index.endpoints(service).take(FEW).count(),
        });
        let others = [
            dirty.services.len(),
            dirty.consumers.len(),
            dirty.routes.len(),
            dirty.authorization.len(),
            dirty.rate_limits.len(),
        ];
        others.into_iter().chain([dirty.workloads.len()]).chain(endpoints).sum::<usize>() < FEW
    }

    /// Makes anew what is dirty.
    pub fn make(&self, dirty: &Dirty) -> Patch {
        let (index, model) = (&self.index, &self.index.model);
        let uid = |name: &Name| Some(model.workloads.get(name)?.uid.clone());
        let another = |(name, before): &(&Name, &Option<String>)| {
            before.as_ref().zip(uid(name)).is_some_and(|(before, now)| *before != now)
        };
        let replaced = dirty.uids.iter().filter(another).map(|(name, _)| name.clone()).collect();
        let (ips, services) = (dirty.ips.clone(), dirty.hosts.clone());
        let mut patch =
            Patch { changes: Changes { ips, services, replaced, ..Changes::default() }, ..Patch::default() };
        for (name, before) in &dirty.services {
            self.make_service(name, before, &mut patch);
        }
        for (name, client) in &dirty.consumers {
            self.make_consumer(name, client, dirty.services.get(name), &mut patch);
        }
        for (name, part) in &dirty.endpoints {
            for port in services::ports(index, name).into_keys() {
                self.make_endpoints(name, port, part, &mut patch);
            }
        }
        for key in &dirty.routes {
            let made = model.routes.get(&**key).map(|route| routes::resource(model, key, route));
            self.put(names::object(&key.0, &key.1.namespace, &key.1.name), made, &mut patch);
        }
        for name in &dirty.authorization {
            let made = model.authorization.get(name);
            let made = made.map(|policy| workloads::authorization(name, policy, &self.domains));
            self.put(names::object("AuthorizationPolicy", &name.namespace, &name.name), made, &mut patch);
        }
        for name in &dirty.rate_limits {
            let made = model.rate_limits.get(name).map(|policy| workloads::rate_limit(name, policy));
            self.put(names::object("RateLimitPolicy", &name.namespace, &name.name), made, &mut patch);
        }
        for name in &dirty.workloads {
            let made = model.workloads.get(name).map(|workload| workloads::resource(index, name, workload));
            self.put(names::workload(&name.namespace, &name.name), made, &mut patch);
        }
        if dirty.extent {
            self.put(names::MESH_EXTENT.to_owned(), Some(index.extent.resource()), &mut patch);
        }
        patch
    }

    /// What has to change so that these are believed, and the mesh's own under each of its names. They come from no model: the CA has them,
    /// and who federates.
    pub fn update_trust(&self, trust: &v1::Trust) -> Patch {
        let mut patch = Patch::default();
        self.put(names::TRUST.to_owned(), Some(Resource::new(trust, Vec::new())), &mut patch);
        let own = (!trust.own.is_empty()).then_some(&trust.own).into_iter();
        let domains: Vec<_> = own.chain(&trust.aliases).chain(&trust.former).cloned().collect();
        for (name, policy) in &self.model().authorization {
            let made = workloads::authorization(name, policy, &domains);
            self.put(names::object("AuthorizationPolicy", &name.namespace, &name.name), Some(made), &mut patch);
        }
        patch.domains = Some(domains);
        patch
    }

    /// What has to change so that these are not believed any more.
    pub fn update_revoked(&self, revoked: &v1::Revoked) -> Patch {
        let mut patch = Patch::default();
        self.put(names::REVOKED.to_owned(), Some(Resource::new(revoked, Vec::new())), &mut patch);
        patch
    }

    pub(super) fn put(&self, name: String, made: Option<Resource>, patch: &mut Patch) {
        patch.changes.recomputed += usize::from(made.is_some());
        let (name, old) = match self.resources.get_key_value(name.as_str()) {
            Some((name, old)) => (Arc::clone(name), Some(old)),
            None => (name.into(), None),
        };
        if old.map(AsRef::as_ref) != made.as_ref() {
            patch.changes.names.insert(Arc::clone(&name));
            patch.resources.push((name, made.map(Arc::new)));
        }
    }

    /// The ports of a service, and those that it had.
    fn make_service(&self, name: &Name, before: &BTreeSet<u16>, patch: &mut Patch) {
        let ports = services::ports(&self.index, name);
        let known = self.index.model.services.get(name);
        for number in before.iter().chain(ports.keys()).collect::<BTreeSet<_>>() {
            let own = names::service(&name.namespace, &name.name, *number);
            let made = known.zip(ports.get(number)).map(|(service, port)| {
                services::resource(name, service, port, services::Routes::of(&self.index, name, *number))
            });
            let key: Arc<str> = own.as_str().into();
            if self.service_addresses.contains_key(&key) != made.is_some() {
                let address = made.is_some().then(|| Arc::new(address::to_service(&key)));
                patch.service_addresses.push((key, address));
            }
            if made.is_none() || known.is_some_and(|service| service.external_name.is_some()) {
                self.drop_endpoints(&names::endpoints_of(&own), patch);
            }
            self.put(own, made, patch);
        }
    }

    /// What clients of one namespace have of the ports of a service instead of its routes, and of those that it had.
    fn make_consumer(&self, name: &Name, client: &str, before: Option<&BTreeSet<u16>>, patch: &mut Patch) {
        let ports = services::ports(&self.index, name);
        for number in before.into_iter().flatten().chain(ports.keys()).collect::<BTreeSet<_>>() {
            let own = names::service(&name.namespace, &name.name, *number);
            let Some(own) = names::consumer(client, &own) else { continue };
            let known = ports.contains_key(number);
            let made = known.then(|| services::consumer(&self.index, client, name, *number)).flatten();
            self.put(own, made, patch);
        }
    }

    fn drop_endpoints(&self, head: &str, patch: &mut Patch) {
        let Some((head, old)) = self.collections.get_key_value(head) else { return };
        if !old.members.is_empty() {
            patch.changes.members.insert(Arc::clone(head), old.members.keys().cloned().collect());
        }
        patch.collections.push((Arc::clone(head), None));
    }

    /// Endpoints of a port of a service: all, or only some.
    fn make_endpoints(&self, name: &Name, number: u16, part: &Part, patch: &mut Patch) {
        let Some(service) = self.index.model.services.get(name) else { return };
        if service.external_name.is_some() {
            return;
        }
        let Some(port) = services::ports(&self.index, name).get(&number).copied() else { return };
        let head = names::endpoints_of(&names::service(&name.namespace, &name.name, number));
        let any_ready = self.index.any_ready(name, &port.name);
        let distribution = service.distribution;
        let port = Port { service: name, name: &port.name, head: &head, any_ready, distribution };
        let (head, old) = match self.collections.get_key_value(head.as_str()) {
            Some((head, old)) => (Arc::clone(head), Some(old)),
            None => (Arc::from(head.as_str()), None),
        };
        let none = BTreeMap::new();
        let before = old.map_or(&none, |old| &old.members);
        let mut edits: BTreeMap<Arc<str>, Option<Arc<Resource>>> = BTreeMap::new();
        let everybody;
        let some = match part {
            Part::Some(some) => some,
            Part::All => {
                edits.extend(before.keys().map(|name| (Arc::clone(name), None)));
                everybody = port.everybody(&self.index);
                &everybody
            }
        };
        for who in some {
            edits.extend(port.names(before, who).map(|name| (Arc::clone(name), None)));
            for (name, made) in port.make(&self.index, who) {
                patch.changes.recomputed += 1;
                match before.get_key_value(name.as_str()) {
                    Some((name, old)) if **old == made => _ = edits.remove(name),
                    Some((name, _)) => _ = edits.insert(Arc::clone(name), Some(Arc::new(made))),
                    None => _ = edits.insert(name.into(), Some(Arc::new(made))),
                }
            }
        }
        if !edits.is_empty() {
            patch.changes.members.insert(Arc::clone(&head), edits.keys().cloned().collect());
        }
        if !edits.is_empty() || old.is_none() {
            patch.collections.push((head, Some(edits)));
        }
    }

    /// Puts in what was made.
    pub fn apply(&mut self, patch: Patch) -> Changes {
        let counts = &mut self.counts;
        let mut count = |old: Option<&Resource>, new: Option<&Resource>| {
            if let Some(old) = old {
                *counts.entry(old.type_url).or_default() -= 1;
            }
            if let Some(new) = new {
                *counts.entry(new.type_url).or_default() += 1;
            }
        };
        for (name, made) in patch.resources {
            count(self.resources.get(&name).map(AsRef::as_ref), made.as_deref());
            set(&mut self.resources, name, made);
        }
        for (head, members) in patch.collections {
            let Some(members) = members else {
                let gone = self.collections.remove(&head);
                let gone = gone.iter().flat_map(|gone| gone.members.values().chain([&gone.head]));
                gone.for_each(|old| count(Some(old), None));
                continue;
            };
            let set = self.collections.entry(head).or_insert_with(|| {
                let new = Collection::empty();
                count(None, Some(&new.head));
                new
            });
            for (name, made) in &members {
                count(set.members.get(name).map(AsRef::as_ref), made.as_deref());
            }
            set.edit(members);
        }
        self.counts.retain(|_, count| *count > 0);
        for (name, made) in patch.service_addresses {
            set(&mut self.service_addresses, name, made);
        }
        if let Some(domains) = patch.domains {
            self.domains = domains;
        }
        patch.changes
    }
}

fn set<V>(map: &mut HashMap<Arc<str>, V>, name: Arc<str>, value: Option<V>) {
    match value {
        Some(value) => _ = map.insert(name, value),
        None => _ = map.remove(&name),
    }
}
