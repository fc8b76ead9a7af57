//! Endpoint slices -> the endpoints of one service port.
//!
//! Who is in: every endpoint that is ready. If none is, those that still serve while they terminate, marked draining (the rule of
//! kube-proxy: EndpointSlice `conditions.serving`). An endpoint whose pod is known to leave is in, marked draining.
//!
//! Endpoints are made by [`Who`] they are, so that one is made again without the others: what is at its addresses counts, and whether
//! any of the port is ready.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use weft_api::names;
use weft_api::wire::v1;

use super::Resource;
use super::index::{Index, Who};
use crate::model::{Distribution, Name, SliceEndpoint, Workload};

/// Mesh protocols that every sidecar of this build takes, on every port.
const ALPN: [&str; 3] = ["weft1-h1", "weft1-h2", "weft1-tcp"];

/// An endpoint's message from its address and its pod.
pub(super) fn message(ip: IpAddr, port: u16, workload: Option<(&Name, &Workload)>, draining: bool) -> v1::Endpoint {
    let (mut identity, mut alpn) = (String::new(), Vec::new());
    if let Some((name, found)) = workload.filter(|(_, found)| found.meshed) {
        identity = names::identity(&name.namespace, &found.service_account);
        alpn = ALPN.map(str::to_owned).to_vec();
    }
    v1::Endpoint {
        ip: octets(ip),
        port: port.into(),
        identity,
        alpn,
        workload: workload.map(|(name, _)| name.to_string()).unwrap_or_default(),
        draining: draining || workload.is_some_and(|(_, found)| found.terminating),
        ..v1::Endpoint::default()
    }
}

fn octets(ip: IpAddr) -> Bytes {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

/// A port of a service.
pub(super) struct Port<'p> {
    pub(super) service: &'p Name,
    /// Its name.
    pub(super) name: &'p str,
    /// The name of its `EndpointHead`.
    pub(super) head: &'p str,
    /// Whether any of its endpoints is ready.
    pub(super) any_ready: bool,
    /// Of the service.
    pub(super) distribution: Option<Distribution>,
}

impl Port<'_> {
    /// The resources of one endpoint, by name: one for each of its addresses and target ports.
    pub(super) fn make(&self, index: &Index, who: &Who) -> BTreeMap<String, Resource> {
        let mut made = BTreeMap::new();
        let workload = match who {
            Who::At(_) => None,
            Who::Pod(pod) => match index.model.workloads.get_key_value(pod) {
                // Whether it takes mesh TLS cannot be said.
                None => return made,
                found => found,
            },
        };
        let left = workload.is_some_and(|(name, _)| index.draining.contains(name));
        let own = self.name_of(who);
        for ((ip, target), endpoint) in self.candidates(index, who) {
            let fallback = !self.any_ready && endpoint.terminating && endpoint.serving;
            if !endpoint.ready && !fallback {
                continue;
            }
            let mut message = message(ip, target, workload, endpoint.terminating || left);
            message.zone.clone_from(&endpoint.zone);
            self.place(&mut message, endpoint, workload.map(|(_, found)| found));
            let by_pod = matches!(who, Who::Pod(_));
            let mut name = if by_pod && ip.is_ipv6() { format!("{own}@6") } else { own.clone() };
            if made.contains_key(&name) {
                // The same pod twice, by another address or target port.
                name = format!("{name}@{ip}:{target}");
            }
            made.insert(name, Resource::new(&message, Vec::new()));
        }
        made
    }

    /// Where it is, and for whom: what the slice says, else what the service wants.
    fn place(&self, message: &mut v1::Endpoint, endpoint: &SliceEndpoint, workload: Option<&Workload>) {
        let node = Some(&endpoint.node).filter(|node| !node.is_empty()).or(workload.map(|found| &found.node));
        message.node = node.cloned().unwrap_or_default();
        let hinted = !endpoint.for_nodes.is_empty() || !endpoint.for_zones.is_empty();
        if hinted || self.distribution.is_none() {
            message.for_nodes.clone_from(&endpoint.for_nodes);
            message.for_zones.clone_from(&endpoint.for_zones);
            return;
        }
        let known = |name: &String| Some(name.clone()).filter(|name| !name.is_empty());
        message.for_zones = known(&endpoint.zone).into_iter().collect();
        if self.distribution == Some(Distribution::Node) {
            message.for_nodes = known(&message.node).into_iter().collect();
        }
    }

    /// One entry an address and port: of duplicates the one that is ready and stays counts, and it may be somebody else's.
    fn candidates<'i>(&self, index: &'i Index, who: &Who) -> BTreeMap<(IpAddr, u16), &'i SliceEndpoint> {
        let rank = |endpoint: &SliceEndpoint| (!endpoint.ready, endpoint.terminating, endpoint.workload.is_none());
        let mut found: BTreeMap<(IpAddr, u16), &SliceEndpoint> = BTreeMap::new();
        let ips: BTreeSet<IpAddr> = match who {
            Who::At(ip) => [*ip].into(),
            Who::Pod(pod) => index.naming.get(pod).iter().map(|(ip, _)| *ip).collect(),
        };
        for ip in ips {
            for (slice, endpoint) in index.at(self.service, ip) {
                for (_, target) in slice.ports.iter().filter(|(name, _)| name == self.name) {
                    let best = found.entry((ip, *target)).or_insert(endpoint);
                    if rank(endpoint) < rank(best) {
                        *best = endpoint;
                    }
                }
            }
        }
        found.retain(|_, endpoint| match who {
            Who::At(_) => endpoint.workload.is_none(),
            Who::Pod(pod) => endpoint.workload.as_ref() == Some(pod),
        });
        found
    }

    /// The name that an endpoint has if it has one address.
    pub(super) fn name_of(&self, who: &Who) -> String {
        names::endpoint(self.head, &id(&self.service.namespace, who))
    }

    /// Names that the endpoints of this one may have.
    pub(super) fn names<'s, V>(
        &self,
        members: &'s BTreeMap<Arc<str>, V>,
        who: &Who,
    ) -> impl Iterator<Item = &'s Arc<str>> + use<'s, V> {
        let own = self.name_of(who);
        let others = format!("{own}@");
        let first = members.get_key_value(own.as_str()).map(|(name, _)| name);
        let rest = members.range::<str, _>((Bound::Included(others.as_str()), Bound::Unbounded)).map(|(name, _)| name);
        first.into_iter().chain(rest.take_while(move |name| name.starts_with(&others)))
    }

    /// Everybody who has an endpoint.
    pub(super) fn everybody(&self, index: &Index) -> BTreeSet<Who> {
        index.endpoints(self.service).map(Who::of).collect()
    }
}

/// The pod's name, so that a pod that gets another address stays the same endpoint; without one its address. A pod of another namespace than
/// the service, or one that is called like an address, says its namespace.
pub(super) fn id(namespace: &str, who: &Who) -> String {
    match who {
        Who::Pod(pod) if pod.namespace == namespace && pod.name.parse::<IpAddr>().is_err() => pod.name.clone(),
        Who::Pod(pod) => pod.to_string(),
        Who::At(ip) => ip.to_string(),
    }
}
