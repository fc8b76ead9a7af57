//! The model, and who is behind what in it.
//!
//! Invariants
//! - Every index is a function of the model alone: however it came to be, the same model has the same indexes. [`Index::take`] in `take`
//!   keeps them so, in proportion to the change.
//! - A slice's endpoints stand in the order of their addresses, which are canonical.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::extent::Extent;
use crate::model::{Model, Name, Slice, SliceEndpoint, Target, Workload};
use crate::multi::Multi;

/// Kind and name of a route.
pub(super) type RouteKey = (String, Name);

/// What an endpoint is known by: its pod, or its address if it names none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Pod(Name),
    At(IpAddr),
}

impl Who {
    pub(super) fn of(endpoint: &SliceEndpoint) -> Self {
        endpoint.workload.clone().map_or(Who::At(endpoint.ip), Who::Pod)
    }
}

/// The model and its indexes. Lookups by name of things that are not there give nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Index {
    pub(super) model: Model,
    /// Workloads that have said that they leave, before the model says so.
    pub(super) draining: BTreeSet<Name>,
    /// Slices of a service.
    pub(super) slices_of: Multi<Name, Arc<Name>>,
    /// Slices with an endpoint at an address.
    pub(super) slices_at: Multi<IpAddr, Arc<Name>>,
    /// Addresses of a pod's endpoints, and the slices in which they stand.
    pub(super) naming: Multi<Name, (IpAddr, Arc<Name>)>,
    pub(super) pods_at: Multi<IpAddr, Arc<Name>>,
    /// Pods on a node.
    pub(super) pods_on: Multi<String, Arc<Name>>,
    pub(super) services_at: Multi<IpAddr, Name>,
    /// Routes whose parent is this service.
    pub(super) routes_on: Multi<Name, Arc<RouteKey>>,
    /// Routes that send to this service.
    pub(super) routes_to: Multi<Name, Arc<RouteKey>>,
    /// Routes that send to a namespace that is not their own.
    pub(super) routes_into: Multi<String, Arc<RouteKey>>,
    /// Policies by what they cover: a service, or, without a name, a namespace.
    pub(super) authorization_on: Multi<Name, Name>,
    pub(super) rate_limits_on: Multi<Name, Name>,
    pub(super) extent: Extent,
    /// Endpoints whose pod is not known.
    pub(super) unresolved: usize,
}

/// The key of a target in the indexes of policies.
pub(super) fn covers(namespace: &str, target: &Target) -> Name {
    match target {
        Target::Service(service) => Name::new(namespace, service.as_str()),
        Target::Namespace => Name::new(namespace, ""),
    }
}

/// The service that a slice belongs to.
pub(super) fn service_of(name: &Name, slice: &Slice) -> Name {
    Name::new(name.namespace.as_str(), slice.service.as_str())
}

/// A slice's endpoints at an address.
pub(super) fn endpoints_at(slice: &Slice, ip: IpAddr) -> &[SliceEndpoint] {
    let from = slice.endpoints.partition_point(|endpoint| endpoint.ip < ip);
    let rest = &slice.endpoints[from..];
    &rest[..rest.partition_point(|endpoint| endpoint.ip == ip)]
}

impl Index {
    fn slice(&self, name: &Name) -> Option<&Slice> {
        self.model.slices.get(name)
    }

    /// Slices of a service, in the order of their names.
    pub(super) fn slices(&self, service: &Name) -> impl Iterator<Item = &Slice> {
        self.slices_of.get(service).iter().filter_map(|name| self.slice(name))
    }

    /// Endpoints of a service, in the order of slices.
    pub(super) fn endpoints(&self, service: &Name) -> impl Iterator<Item = &SliceEndpoint> {
        self.slices(service).flat_map(|slice| &slice.endpoints)
    }

    /// Endpoints of a service at an address, with their slices.
    pub(super) fn at(&self, service: &Name, ip: IpAddr) -> impl Iterator<Item = (&Slice, &SliceEndpoint)> {
        let ours = move |name: &&Arc<Name>| name.namespace == service.namespace;
        let slices = self.slices_at.get(&ip).iter().filter(ours).filter_map(|name| self.slice(name));
        let slices = slices.filter(move |slice| slice.service == service.name);
        slices.flat_map(move |slice| endpoints_at(slice, ip).iter().map(move |endpoint| (slice, endpoint)))
    }

    /// The workload that owns an address. Pods of the host's network and pods that have ended share addresses: one that stays wins over
    /// one that leaves, a meshed one over a plain one, then the smaller name.
    pub(super) fn workload_at(&self, ip: IpAddr) -> Option<(&Name, &Workload)> {
        let pods = self.pods_at.get(&ip.to_canonical()).iter();
        let known = pods.filter_map(|name| self.model.workloads.get_key_value(&**name));
        known.min_by_key(|(_, workload)| (workload.terminating, !workload.meshed))
    }

    /// The zone of a workload's node; empty if it is not known.
    pub(super) fn zone_of(&self, workload: &Workload) -> &str {
        self.model.nodes.get(&workload.node).map_or("", |node| &node.zone)
    }

    /// The workload that an endpoint is.
    pub(super) fn behind(&self, endpoint: &SliceEndpoint) -> Option<Name> {
        endpoint.workload.clone().or_else(|| self.workload_at(endpoint.ip).map(|(name, _)| name.clone()))
    }

    /// Services that have an endpoint which names this workload.
    pub(super) fn services_naming(&self, workload: &Name) -> BTreeSet<Name> {
        let slices = self.naming.get(workload).iter().map(|(_, name)| name);
        slices.filter_map(|name| Some(service_of(name, self.slice(name)?))).collect()
    }

    /// Slices in which a workload stands, by reference or by address, with their services.
    pub(super) fn slices_with(&self, name: &Name, workload: &Workload) -> BTreeSet<&Name> {
        let mut found: BTreeSet<&Name> = self.naming.get(name).iter().map(|(_, slice)| &**slice).collect();
        for ip in workload.ips.iter().map(IpAddr::to_canonical) {
            if self.workload_at(ip).is_none_or(|(owner, _)| owner != name) {
                continue;
            }
            let nameless = |slice: &&Arc<Name>| {
                let endpoints = self.slice(slice).map(|slice| endpoints_at(slice, ip)).unwrap_or_default();
                endpoints.iter().any(|endpoint| endpoint.workload.is_none())
            };
            found.extend(self.slices_at.get(&ip).iter().filter(nameless).map(|slice| &**slice));
        }
        found
    }

    /// Workloads that a policy's targets cover.
    pub(super) fn covered(&self, namespace: &str, targets: &[Target]) -> BTreeSet<Name> {
        let mut found = BTreeSet::new();
        for target in targets {
            match target {
                Target::Service(service) => {
                    let service = Name::new(namespace, service.as_str());
                    found.extend(self.endpoints(&service).filter_map(|endpoint| self.behind(endpoint)));
                }
                Target::Namespace => found.extend(self.in_namespace(namespace).cloned()),
            }
        }
        found
    }

    /// Workloads of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Name> {
        let (from, namespace) = (Name::new(namespace, ""), namespace.to_owned());
        let rest = self.model.workloads.range(from..).map(|(name, _)| name);
        rest.take_while(move |name| name.namespace == namespace)
    }

    /// Namespaces that have routes of their own for a service of another.
    pub(super) fn clients_of(&self, service: &Name) -> impl Iterator<Item = String> {
        let routes = self.routes_on.get(service).iter().map(|route| &route.1.namespace);
        routes.filter(|client| **client != service.namespace).collect::<BTreeSet<_>>().into_iter().cloned()
    }

    pub(super) fn is_headless(&self, service: &Name) -> bool {
        self.model.services.get(service).is_some_and(|service| service.headless)
    }

    /// Whether an endpoint names a pod that is not known.
    pub(super) fn is_unresolved(&self, endpoint: &SliceEndpoint) -> bool {
        endpoint.workload.as_ref().is_some_and(|pod| !self.model.workloads.contains_key(pod))
    }

    /// Whether a port of a service, by its name, has an endpoint that is ready. Ends at the first.
    pub(super) fn any_ready(&self, service: &Name, port: &str) -> bool {
        let slices = self.slices(service).filter(|slice| slice.ports.iter().any(|(name, _)| name == port));
        slices.flat_map(|slice| &slice.endpoints).any(|endpoint| endpoint.ready)
    }
}
