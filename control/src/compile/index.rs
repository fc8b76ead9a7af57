//! Who is behind what: borrowed indexes over one model, made for one compilation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::model::{Model, Name, ServiceRef, Slice, Target, Workload};

type RouteKey = (String, Name);

/// Indexes over a model. Lookups by name of things that are not there give nothing.
pub(super) struct Index<'m> {
    pub(super) model: &'m Model,
    /// Workloads that have said that they leave, before the model says so.
    pub(super) draining: &'m BTreeSet<Name>,
    slices: HashMap<Name, Vec<&'m Slice>>,
    workload_by_ip: HashMap<IpAddr, &'m Name>,
    services_of: HashMap<&'m Name, BTreeSet<Name>>,
    routes_on: HashMap<Name, BTreeSet<&'m RouteKey>>,
    routes_to: HashMap<Name, BTreeSet<&'m RouteKey>>,
}

impl<'m> Index<'m> {
    pub(super) fn new(model: &'m Model, draining: &'m BTreeSet<Name>) -> Self {
        let mut index = Self {
            model,
            draining,
            slices: HashMap::new(),
            workload_by_ip: workloads_by_ip(model),
            services_of: HashMap::new(),
            routes_on: HashMap::new(),
            routes_to: HashMap::new(),
        };
        for (name, slice) in &model.slices {
            let service = Name::new(&name.namespace, &slice.service);
            index.slices.entry(service).or_default().push(slice);
            for endpoint in &slice.endpoints {
                let behind = endpoint.workload.as_ref().or_else(|| index.workload_at(endpoint.ip));
                if let Some(workload) = behind {
                    let service = Name::new(&name.namespace, &slice.service);
                    index.services_of.entry(workload).or_default().insert(service);
                }
            }
        }
        for (key, route) in &model.routes {
            for parent in &route.parents {
                let service = Name::new(&key.1.namespace, &parent.name);
                index.routes_on.entry(service).or_default().insert(key);
            }
            for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
                if let Some(service) = ServiceRef::parse(&backend.service) {
                    index.routes_to.entry(service.name).or_default().insert(key);
                }
            }
        }
        index
    }

    /// Slices of a service, in the order of their names.
    pub(super) fn slices(&self, service: &Name) -> &[&'m Slice] {
        self.slices.get(service).map_or(&[], Vec::as_slice)
    }

    /// The workload that owns an address.
    pub(super) fn workload_at(&self, ip: IpAddr) -> Option<&'m Name> {
        self.workload_by_ip.get(&ip.to_canonical()).copied()
    }

    /// Services that have an endpoint which is this workload.
    pub(super) fn services_of(&self, workload: &Name) -> impl Iterator<Item = &Name> {
        self.services_of.get(workload).into_iter().flatten()
    }

    /// Routes whose parent is this service.
    pub(super) fn routes_on(&self, service: &Name) -> impl Iterator<Item = &'m RouteKey> {
        self.routes_on.get(service).into_iter().flatten().copied()
    }

    /// Routes that send to this service.
    pub(super) fn routes_to(&self, service: &Name) -> impl Iterator<Item = &'m RouteKey> {
        self.routes_to.get(service).into_iter().flatten().copied()
    }

    /// Workloads that are endpoints of a service, ready or not.
    pub(super) fn behind(&self, service: &Name) -> impl Iterator<Item = &'m Name> {
        let endpoints = self.slices(service).iter().flat_map(|slice| &slice.endpoints);
        endpoints.filter_map(|endpoint| endpoint.workload.as_ref().or_else(|| self.workload_at(endpoint.ip)))
    }

    /// Workloads that a policy's targets cover.
    pub(super) fn covered(&self, namespace: &str, targets: &[Target]) -> BTreeSet<&'m Name> {
        let mut found = BTreeSet::new();
        for target in targets {
            match target {
                Target::Service(service) => found.extend(self.behind(&Name::new(namespace, service))),
                Target::Namespace => found.extend(self.in_namespace(namespace)),
            }
        }
        found
    }

    /// Workloads of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &'m Name> {
        let (model, from, namespace) = (self.model, Name::new(namespace, ""), namespace.to_owned());
        let rest = model.workloads.range(from..).map(|(name, _)| name);
        rest.take_while(move |name| name.namespace == namespace)
    }
}

/// Which workload an address belongs to. Pods of the host's network and pods that have ended share addresses: one that stays wins
/// over one that leaves, a meshed one over a plain one, then the smaller name.
fn workloads_by_ip(model: &Model) -> HashMap<IpAddr, &Name> {
    let mut found: HashMap<IpAddr, (&Name, &Workload)> = HashMap::new();
    let rank = |workload: &Workload| (workload.terminating, !workload.meshed);
    for (name, workload) in &model.workloads {
        for ip in &workload.ips {
            let entry = found.entry(ip.to_canonical()).or_insert((name, workload));
            if rank(workload) < rank(entry.1) {
                *entry = (name, workload);
            }
        }
    }
    found.into_iter().map(|(ip, (name, _))| (ip, name)).collect()
}

/// The same, owned, for answers about addresses.
pub(super) fn owned_workloads_by_ip(model: &Model) -> HashMap<IpAddr, Name> {
    workloads_by_ip(model).into_iter().map(|(ip, name)| (ip, name.clone())).collect()
}

/// Keys whose values differ between two maps, gone and new ones included.
pub(super) fn changed<'m, K: Ord, V: PartialEq>(old: &'m BTreeMap<K, V>, new: &'m BTreeMap<K, V>) -> BTreeSet<&'m K> {
    if std::ptr::eq(old, new) {
        return BTreeSet::new();
    }
    let gone = old.keys().filter(|key| !new.contains_key(key));
    let differs = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, _)| key);
    differs.chain(gone).collect()
}
