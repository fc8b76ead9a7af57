//! Which resources have to be made again: those whose inputs differ between two models.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::index::{Index, changed};
use crate::model::{Name, Route, SYSTEM_NAMESPACE, Target};

/// Objects whose resources are to be made again.
#[derive(Default)]
pub(super) struct Dirty<'m> {
    pub(super) services: BTreeSet<Name>,
    pub(super) routes: BTreeSet<&'m (String, Name)>,
    pub(super) authorization: BTreeSet<&'m Name>,
    pub(super) rate_limits: BTreeSet<&'m Name>,
    pub(super) workloads: BTreeSet<&'m Name>,
    /// Some service's or pod's addresses changed.
    pub(super) addresses: bool,
    pub(super) ips: BTreeSet<IpAddr>,
    pub(super) hosts: BTreeSet<Name>,
}

/// Compares object by object; what depends on a changed one is found by the indexes of both models.
pub(super) fn find<'m>(old: &Index<'m>, new: &Index<'m>) -> Dirty<'m> {
    let mut dirty = Dirty::default();
    let services = changed(&old.model.services, &new.model.services);
    let slices = sliced(old, new, &mut dirty.ips);
    let mut workloads = changed(&old.model.workloads, &new.model.workloads);
    let drains = workloads.len();
    workloads.extend(old.draining.symmetric_difference(new.draining));
    dirty.addresses = !services.is_empty() || !dirty.ips.is_empty() || drains > 0;
    dirty.routes = changed(&old.model.routes, &new.model.routes);

    for service in services.iter().copied().chain(&slices) {
        dirty.services.insert(service.clone());
        dirty.workloads.extend(old.behind(service).chain(new.behind(service)));
    }
    for service in services {
        dirty.routes.extend(old.routes_to(service).chain(new.routes_to(service)));
        touch_service(&mut dirty, old, new, service);
    }
    for service in &slices {
        if [old, new].iter().any(|index| index.model.services.get(service).is_some_and(|service| service.headless)) {
            dirty.hosts.insert(service.clone());
        }
    }
    for workload in workloads {
        touch_workload(&mut dirty, old, new, workload);
    }
    // A changed route changes the lists of its parents, which stand in the old and the new version of it.
    for key in changed(&old.model.routes, &new.model.routes) {
        for route in [old, new].iter().filter_map(|index| index.model.routes.get(key)) {
            let parents = route.parents.iter().map(|parent| Name::new(&key.1.namespace, &parent.name));
            dirty.services.extend(parents);
        }
    }
    for grant in changed(&old.model.grants, &new.model.grants) {
        let foreign = |route: &Route| route.foreign.iter().any(|foreign| foreign.namespace == grant.namespace);
        dirty.routes.extend(new.model.routes.iter().filter(|(_, route)| foreign(route)).map(|(key, _)| key));
    }
    for namespace in changed(&old.model.namespaces, &new.model.namespaces) {
        dirty.workloads.extend(new.in_namespace(namespace));
        if namespace == SYSTEM_NAMESPACE {
            dirty.workloads.extend(new.model.workloads.keys());
        }
    }
    policies(&mut dirty, old, new);
    dirty
}

/// Services of the slices that differ, and the addresses of their endpoints that belong to no known pod: only those get a meaning
/// from a slice.
fn sliced(old: &Index<'_>, new: &Index<'_>, ips: &mut BTreeSet<IpAddr>) -> BTreeSet<Name> {
    let mut services = BTreeSet::new();
    for name in changed(&old.model.slices, &new.model.slices) {
        for index in [old, new] {
            let Some(slice) = index.model.slices.get(name) else { continue };
            services.insert(Name::new(&name.namespace, &slice.service));
            let addresses = slice.endpoints.iter().map(|endpoint| endpoint.ip.to_canonical());
            ips.extend(addresses.filter(|ip| index.workload_at(*ip).is_none()));
        }
    }
    services
}

fn touch_service(dirty: &mut Dirty<'_>, old: &Index<'_>, new: &Index<'_>, service: &Name) {
    for found in [old, new].iter().filter_map(|index| index.model.services.get(service)) {
        dirty.ips.extend(found.cluster_ips.iter().map(IpAddr::to_canonical));
    }
    dirty.hosts.insert(service.clone());
}

/// A pod is an endpoint of services, stands behind its own addresses, and has an inbound side.
fn touch_workload<'m>(dirty: &mut Dirty<'m>, old: &Index<'m>, new: &Index<'m>, name: &'m Name) {
    dirty.workloads.insert(name);
    let appears = old.model.workloads.contains_key(name) != new.model.workloads.contains_key(name);
    for index in [old, new] {
        for service in index.services_of(name) {
            dirty.services.insert(service.clone());
            if index.model.services.get(service).is_some_and(|service| service.headless) {
                dirty.hosts.insert(service.clone());
            }
            if appears {
                // Endpoints of an unknown pod are refused, whatever their address.
                let endpoints = index.slices(service).iter().flat_map(|slice| &slice.endpoints);
                let named = endpoints.filter(|endpoint| endpoint.workload.as_ref() == Some(name));
                dirty.ips.extend(named.map(|endpoint| endpoint.ip.to_canonical()));
            }
        }
        let ips = index.model.workloads.get(name).into_iter().flat_map(|workload| &workload.ips);
        for ip in ips.map(IpAddr::to_canonical) {
            dirty.ips.insert(ip);
            // An endpoint without a target belongs to whoever has its address now.
            for other in [old, new].iter().filter_map(|index| index.workload_at(ip)) {
                dirty.workloads.insert(other);
            }
        }
    }
}

fn policies<'m>(dirty: &mut Dirty<'m>, old: &Index<'m>, new: &Index<'m>) {
    dirty.authorization = changed(&old.model.authorization, &new.model.authorization);
    dirty.rate_limits = changed(&old.model.rate_limits, &new.model.rate_limits);
    let mut cover = |index: &Index<'m>, name: &Name, targets: &[Target]| {
        dirty.workloads.extend(index.covered(&name.namespace, targets));
    };
    for index in [old, new] {
        for name in &dirty.authorization {
            if let Some(policy) = index.model.authorization.get(*name) {
                cover(index, name, &policy.targets);
            }
        }
        for name in &dirty.rate_limits {
            if let Some(policy) = index.model.rate_limits.get(*name) {
                cover(index, name, &policy.targets);
            }
        }
    }
}
