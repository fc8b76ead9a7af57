//! A change is taken over: the model and its indexes become what they are now, and what has to be made again is noted.
//!
//! Each change marks what depends on the object by the indexes before it and after it. So of several changes, one after the other, every
//! resource is marked whose inputs were other ones at any moment between, and those that differ in the end are among them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_api::wire::v1::RouteRule;

use super::index::{Index, RouteKey, Who, covers, endpoints_at, service_of};
use crate::model::{
    AuthorizationPolicy, Change, Distribution, Grant, Name, Namespace, Node, RateLimitPolicy, Route, SYSTEM_NAMESPACE,
    Service, ServiceRef, Slice, SliceEndpoint, Target, Workload, parent_name,
};
use crate::multi::Multi;

/// Endpoints of a service that have to be looked at.
#[derive(Debug)]
pub(super) enum Part {
    Some(BTreeSet<Who>),
    All,
}

/// What has to be made again.
#[derive(Debug, Default)]
pub struct Dirty {
    /// With the ports that they had.
    pub(super) services: BTreeMap<Name, BTreeSet<u16>>,
    /// Services with a namespace whose own routes for them may be others. The services are among the former.
    pub(super) consumers: BTreeSet<(Name, String)>,
    pub(super) endpoints: BTreeMap<Name, Part>,
    pub(super) routes: BTreeSet<Arc<RouteKey>>,
    pub(super) authorization: BTreeSet<Name>,
    pub(super) rate_limits: BTreeSet<Name>,
    pub(super) workloads: BTreeSet<Name>,
    pub(super) extent: bool,
    pub(super) ips: BTreeSet<IpAddr>,
    /// Services whose names may mean something else.
    pub(super) hosts: BTreeSet<Name>,
    /// The uids that workloads had at first.
    pub(super) uids: BTreeMap<Name, Option<String>>,
}

impl Dirty {
    fn endpoint(&mut self, service: &Name, who: Who) {
        match self.endpoints.get_mut(service) {
            Some(Part::All) => {}
            Some(Part::Some(some)) => _ = some.insert(who),
            None => _ = self.endpoints.insert(service.clone(), Part::Some([who].into())),
        }
    }

    fn all_endpoints(&mut self, service: &Name) {
        self.endpoints.insert(service.clone(), Part::All);
    }
}

impl Index {
    /// Takes a change over.
    pub(super) fn take(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::Namespace(name, new) => self.take_namespace(name, new, dirty),
            Change::Node(name, new) => self.take_node(name, new, dirty),
            Change::Service(name, new) => self.take_service(name, new, dirty),
            Change::Slice(name, new) => self.take_slice(name, new, dirty),
            Change::Workload(name, new) => self.take_workload(name, new, dirty),
            Change::Route(key, new) => self.take_route(key, new, dirty),
            Change::Grant(name, new) => self.take_grant(name, new, dirty),
            Change::Authorization(name, new) => self.take_authorization(name, new, dirty),
            Change::RateLimit(name, new) => self.take_rate_limit(name, new, dirty),
        }
    }

    /// Who leaves now, whatever the model says.
    pub(super) fn leaving(&mut self, now: BTreeSet<Name>, dirty: &mut Dirty) {
        let differ: Vec<Name> = now.symmetric_difference(&self.draining).cloned().collect();
        self.draining = now;
        for name in differ {
            self.mark_endpoints_of(&name, dirty);
            let ips = self.model.workloads.get(&name).into_iter().flat_map(|found| &found.ips);
            dirty.ips.extend(ips.map(IpAddr::to_canonical));
        }
    }

    fn take_namespace(&mut self, name: String, new: Option<Namespace>, dirty: &mut Dirty) {
        let old = self.model.namespaces.get(&name);
        if old == new.as_ref() {
            return;
        }
        dirty.workloads.extend(self.in_namespace(&name).cloned());
        let mesh = |found: Option<&Namespace>| found.and_then(|found| found.mesh_strict);
        if name == SYSTEM_NAMESPACE && mesh(old) != mesh(new.as_ref()) {
            dirty.workloads.extend(self.model.workloads.keys().cloned());
        }
        self.model.apply(Change::Namespace(name, new));
    }

    /// Pods are in the zone of their node.
    fn take_node(&mut self, name: String, new: Option<Node>, dirty: &mut Dirty) {
        if self.model.nodes.get(&name) == new.as_ref() {
            return;
        }
        dirty.workloads.extend(self.pods_on.get(&name).iter().map(|pod| (**pod).clone()));
        self.model.apply(Change::Node(name, new));
    }

    fn take_service(&mut self, name: Name, new: Option<Service>, dirty: &mut Dirty) {
        let old = self.model.services.get(&name);
        if old == new.as_ref() {
            return;
        }
        // What its endpoints are made of.
        fn ports(found: Option<&Service>) -> Option<(&[crate::model::ServicePort], bool, Option<Distribution>)> {
            found.map(|found| (found.ports.as_slice(), found.external_name.is_some(), found.distribution))
        }
        let before = old.into_iter().flat_map(|found| &found.ports).map(|port| port.port);
        dirty.services.entry(name.clone()).or_default().extend(before);
        dirty.hosts.insert(name.clone());
        if ports(old) != ports(new.as_ref()) {
            dirty.all_endpoints(&name);
            dirty.routes.extend(self.routes_to.get(&name).iter().cloned());
            dirty.consumers.extend(self.clients_of(&name).map(|client| (name.clone(), client)));
            for endpoint in self.endpoints(&name) {
                dirty.workloads.extend(self.behind(endpoint));
                if self.is_unresolved(endpoint) {
                    dirty.ips.insert(endpoint.ip);
                }
            }
        }
        let old = old.map(|found| found.cluster_ips.clone()).unwrap_or_default();
        for ip in old.iter().map(IpAddr::to_canonical) {
            self.services_at.cut(&ip, &name);
            dirty.extent |= self.extent.cut(ip);
            dirty.ips.insert(ip);
        }
        for ip in new.iter().flat_map(|found| &found.cluster_ips).map(IpAddr::to_canonical) {
            self.services_at.put(ip, name.clone());
            dirty.extent |= self.extent.put(ip);
            dirty.ips.insert(ip);
        }
        self.model.apply(Change::Service(name, new));
    }

    fn take_slice(&mut self, name: Name, mut new: Option<Slice>, dirty: &mut Dirty) {
        if let Some(new) = &mut new {
            new.endpoints.iter_mut().for_each(|endpoint| endpoint.ip = endpoint.ip.to_canonical());
            new.endpoints.sort_by_key(|endpoint| endpoint.ip);
        }
        let old = self.model.slices.get(&name);
        if old == new.as_ref() {
            return;
        }
        let differ = differences(old, new.as_ref());
        let services: BTreeSet<Name> = old.iter().copied().chain(&new).map(|slice| service_of(&name, slice)).collect();
        let ready = |index: &Self| -> Vec<bool> {
            let ports = services.iter().filter_map(|name| Some((name, &index.model.services.get(name)?.ports)));
            ports.flat_map(|(name, ports)| ports.iter().map(|port| index.any_ready(name, &port.name))).collect()
        };
        let before = ready(self);
        for service in &services {
            self.mark_spots(service, &differ, dirty);
        }
        self.relink_slice(&name, new, &differ);
        for service in &services {
            self.mark_spots(service, &differ, dirty);
        }
        if before != ready(self) {
            for service in &services {
                dirty.all_endpoints(service);
            }
        }
    }

    /// What stands at these addresses of a service's endpoints.
    fn mark_spots(&self, service: &Name, spots: &[Spot], dirty: &mut Dirty) {
        for spot in spots {
            for (_, endpoint) in self.at(service, spot.ip) {
                dirty.endpoint(service, Who::of(endpoint));
                if spot.others {
                    dirty.workloads.extend(self.behind(endpoint));
                }
            }
            // Only an address that belongs to no known pod gets a meaning from a slice.
            if self.workload_at(spot.ip).is_none() {
                dirty.ips.insert(spot.ip);
            }
        }
        if self.is_headless(service) {
            dirty.hosts.insert(service.clone());
        }
    }

    fn relink_slice(&mut self, name: &Name, new: Option<Slice>, differ: &[Spot]) {
        let old = self.model.slices.remove(name);
        let service = |slice: &Option<Slice>| slice.as_ref().map(|slice| service_of(name, slice));
        let (was, is) = (service(&old), service(&new));
        let known = was.as_ref().and_then(|service| self.slices_of.get(service).iter().find(|known| ***known == *name));
        let own = known.cloned().unwrap_or_else(|| Arc::new(name.clone()));
        if was != is {
            if let Some(service) = &was {
                self.slices_of.cut(service, &own);
            }
            if let Some(service) = is {
                self.slices_of.put(service, Arc::clone(&own));
            }
        }
        for Spot { ip, .. } in differ {
            let gone = old.as_ref().map(|slice| endpoints_at(slice, *ip)).unwrap_or_default();
            if !gone.is_empty() {
                self.slices_at.cut(ip, &own);
            }
            for pod in gone.iter().filter_map(|endpoint| endpoint.workload.as_ref()) {
                self.naming.cut(pod, &(*ip, Arc::clone(&own)));
                self.unresolved -= usize::from(!self.model.workloads.contains_key(pod));
            }
            let come = new.as_ref().map(|slice| endpoints_at(slice, *ip)).unwrap_or_default();
            if !come.is_empty() {
                self.slices_at.put(*ip, Arc::clone(&own));
            }
            for pod in come.iter().filter_map(|endpoint| endpoint.workload.as_ref()) {
                self.naming.put(pod.clone(), (*ip, Arc::clone(&own)));
                self.unresolved += usize::from(!self.model.workloads.contains_key(pod));
            }
        }
        if let Some(new) = new {
            self.model.slices.insert(name.clone(), new);
        }
    }

    /// A pod is an endpoint of services, stands behind its own addresses, and has an inbound side.
    fn take_workload(&mut self, name: Name, new: Option<Workload>, dirty: &mut Dirty) {
        let old = self.model.workloads.get(&name);
        if old == new.as_ref() {
            return;
        }
        dirty.workloads.insert(name.clone());
        dirty.uids.entry(name.clone()).or_insert_with(|| old.map(|found| found.uid.clone()));
        let ips = |found: Option<&Workload>| -> BTreeSet<IpAddr> {
            found.into_iter().flat_map(|found| &found.ips).map(IpAddr::to_canonical).collect()
        };
        let (was, is) = (ips(old), ips(new.as_ref()));
        self.mark_owners(was.union(&is), dirty);
        self.mark_endpoints_of(&name, dirty);
        let named = self.naming.get(&name);
        if old.is_some() != new.is_some() {
            // Endpoints of an unknown pod are refused, whatever their address.
            dirty.ips.extend(named.iter().map(|(ip, _)| *ip));
            self.unresolved = if new.is_some() { self.unresolved - named.len() } else { self.unresolved + named.len() };
        }
        let known = was.iter().flat_map(|ip| self.pods_at.get(ip)).find(|known| ***known == name);
        let own = known.cloned().unwrap_or_else(|| Arc::new(name.clone()));
        let node = |found: Option<&Workload>| found.map(|found| found.node.clone()).filter(|node| !node.is_empty());
        let (left, on) = (node(old), node(new.as_ref()));
        let own = match left.iter().flat_map(|node| self.pods_on.get(node)).find(|known| ***known == name) {
            Some(known) => Arc::clone(known),
            None => own,
        };
        if left != on {
            if let Some(node) = &left {
                self.pods_on.cut(node, &own);
            }
            if let Some(node) = on {
                self.pods_on.put(node, Arc::clone(&own));
            }
        }
        for ip in was.difference(&is) {
            self.pods_at.cut(ip, &own);
            dirty.extent |= self.extent.cut(*ip);
        }
        for ip in is.difference(&was) {
            self.pods_at.put(*ip, Arc::clone(&own));
            dirty.extent |= self.extent.put(*ip);
        }
        self.model.apply(Change::Workload(name, new));
        self.mark_owners(was.union(&is), dirty);
    }

    /// An endpoint without a target belongs to whoever has its address.
    fn mark_owners<'i>(&self, ips: impl Iterator<Item = &'i IpAddr>, dirty: &mut Dirty) {
        for ip in ips {
            dirty.ips.insert(*ip);
            dirty.workloads.extend(self.workload_at(*ip).map(|(owner, _)| owner.clone()));
        }
    }

    fn mark_endpoints_of(&self, workload: &Name, dirty: &mut Dirty) {
        for service in self.services_naming(workload) {
            dirty.endpoint(&service, Who::Pod(workload.clone()));
            if self.is_headless(&service) {
                dirty.hosts.insert(service);
            }
        }
    }

    fn take_route(&mut self, key: RouteKey, new: Option<Route>, dirty: &mut Dirty) {
        let old = self.model.routes.get(&key);
        if old == new.as_ref() {
            return;
        }
        let own = Arc::new(key);
        let parents = |route: Option<&Route>| -> BTreeSet<(Name, Option<u16>, Option<String>)> {
            let parents = route.into_iter().flat_map(|route| &route.parents);
            parents.map(|parent| (parent_name(parent), parent.port, parent.section.clone())).collect()
        };
        if old.is_some() != new.is_some() || parents(old) != parents(new.as_ref()) {
            for service in [old, new.as_ref()].into_iter().flat_map(on) {
                if service.namespace != own.1.namespace {
                    dirty.consumers.insert((service.clone(), own.1.namespace.clone()));
                }
                dirty.services.entry(service).or_default();
            }
        }
        let (was, is) = (References::of(old), References::of(new.as_ref()));
        relink(&mut self.routes_on, was.on, is.on, &own);
        relink(&mut self.routes_to, was.to, is.to, &own);
        relink(&mut self.routes_into, was.into, is.into, &own);
        self.model.apply(Change::Route((*own).clone(), new));
        dirty.routes.insert(own);
    }

    /// It may let routes of these kinds and namespaces in, or have let them.
    fn take_grant(&mut self, name: Name, new: Option<Grant>, dirty: &mut Dirty) {
        let old = self.model.grants.get(&name);
        if old == new.as_ref() {
            return;
        }
        let concerned = |(kind, route): &RouteKey| {
            let mut from = [old, new.as_ref()].into_iter().flatten().flat_map(|grant| &grant.from);
            from.any(|(kinds, namespace)| kinds == kind && *namespace == route.namespace)
        };
        let routes = self.routes_into.get(&name.namespace).iter();
        dirty.routes.extend(routes.filter(|key| concerned(key)).cloned());
        self.model.apply(Change::Grant(name, new));
    }

    fn take_authorization(&mut self, name: Name, new: Option<AuthorizationPolicy>, dirty: &mut Dirty) {
        let old = self.model.authorization.get(&name);
        if old == new.as_ref() {
            return;
        }
        let targets = (old.map(|policy| policy.targets.clone()), new.as_ref().map(|policy| policy.targets.clone()));
        self.mark_covered(&name, &targets, dirty);
        retarget(&mut self.authorization_on, &name, targets);
        dirty.authorization.insert(name.clone());
        self.model.apply(Change::Authorization(name, new));
    }

    fn take_rate_limit(&mut self, name: Name, new: Option<RateLimitPolicy>, dirty: &mut Dirty) {
        let old = self.model.rate_limits.get(&name);
        if old == new.as_ref() {
            return;
        }
        let targets = (old.map(|policy| policy.targets.clone()), new.as_ref().map(|policy| policy.targets.clone()));
        self.mark_covered(&name, &targets, dirty);
        retarget(&mut self.rate_limits_on, &name, targets);
        dirty.rate_limits.insert(name.clone());
        self.model.apply(Change::RateLimit(name, new));
    }

    /// A workload says which policies cover it, and not what they say.
    fn mark_covered(&self, policy: &Name, (old, new): &Targets, dirty: &mut Dirty) {
        if old != new {
            for targets in [old, new].into_iter().flatten() {
                dirty.workloads.extend(self.covered(&policy.namespace, targets));
            }
        }
    }
}

/// Of a policy, before and now.
type Targets = (Option<Vec<Target>>, Option<Vec<Target>>);

fn retarget(index: &mut Multi<Name, Name>, policy: &Name, (old, new): Targets) {
    let keys = |targets: Option<Vec<Target>>| -> BTreeSet<Name> {
        targets.iter().flatten().map(|target| covers(&policy.namespace, target)).collect()
    };
    relink(index, keys(old), keys(new), policy);
}

fn relink<K: Ord + Eq + std::hash::Hash, V: Ord + Clone>(
    index: &mut Multi<K, V>,
    was: BTreeSet<K>,
    is: BTreeSet<K>,
    value: &V,
) {
    for key in was.difference(&is) {
        index.cut(key, value);
    }
    for key in is {
        if !was.contains(&key) {
            index.put(key, value.clone());
        }
    }
}

/// The services that a route is attached to.
fn on(route: Option<&Route>) -> BTreeSet<Name> {
    route.into_iter().flat_map(|route| &route.parents).map(parent_name).collect()
}

/// What a route stands on.
struct References {
    on: BTreeSet<Name>,
    to: BTreeSet<Name>,
    into: BTreeSet<String>,
}

impl References {
    fn of(route: Option<&Route>) -> Self {
        let services = route.into_iter().flat_map(|route| &route.rules).flat_map(RouteRule::services);
        let to = services.filter_map(ServiceRef::parse).map(|service| service.name);
        let into = route.into_iter().flat_map(|route| &route.foreign).map(|foreign| foreign.namespace.clone());
        Self { on: on(route), to: to.collect(), into: into.collect() }
    }
}

/// An address at which two versions of a slice differ.
struct Spot {
    ip: IpAddr,
    /// Other workloads may stand there, or on other ports.
    others: bool,
}

fn differences(old: Option<&Slice>, new: Option<&Slice>) -> Vec<Spot> {
    let whole = match (old, new) {
        (Some(old), Some(new)) => old.service != new.service || old.ports != new.ports,
        _ => true,
    };
    fn by_ip(slice: Option<&Slice>) -> impl Iterator<Item = &[SliceEndpoint]> {
        slice.into_iter().flat_map(|slice| slice.endpoints.chunk_by(|a, b| a.ip == b.ip))
    }
    fn who(endpoints: &[SliceEndpoint]) -> impl Iterator<Item = Option<&Name>> {
        endpoints.iter().map(|endpoint| endpoint.workload.as_ref())
    }
    let (mut old, mut new) = (by_ip(old).peekable(), by_ip(new).peekable());
    let mut found = Vec::new();
    loop {
        let ip = [old.peek(), new.peek()].into_iter().flatten().map(|chunk| chunk[0].ip).min();
        let Some(ip) = ip else { return found };
        let was = old.next_if(|chunk| chunk[0].ip == ip).unwrap_or_default();
        let is = new.next_if(|chunk| chunk[0].ip == ip).unwrap_or_default();
        if whole || was != is {
            found.push(Spot { ip, others: whole || !who(was).eq(who(is)) });
        }
    }
}
