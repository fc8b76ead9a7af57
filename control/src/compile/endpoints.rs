//! Endpoint slices -> the endpoints of one service port.
//!
//! Who is in: every endpoint that is ready. If none is, those that still serve while they terminate, marked draining (the rule of
//! kube-proxy: EndpointSlice `conditions.serving`). An endpoint whose pod is known to leave is in, marked draining.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use weft_api::names;
use weft_api::wire::v1;

use super::Resource;
use super::index::Index;
use crate::model::{Model, Name, ServicePort, Slice, SliceEndpoint, Workload};

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

/// The endpoints of one port of a service, by name.
pub(super) fn members(
    index: &Index<'_>,
    service: &Name,
    port: &ServicePort,
    head: &str,
) -> BTreeMap<Arc<str>, Resource> {
    let candidates = candidates(index, service, port);
    let any_ready = candidates.values().any(|endpoint| endpoint.ready);
    let mut members = BTreeMap::new();
    for ((ip, target), endpoint) in candidates {
        let fallback = !any_ready && endpoint.terminating && endpoint.serving;
        if !endpoint.ready && !fallback {
            continue;
        }
        let Ok(workload) = pod(index.model, endpoint) else { continue };
        let draining = endpoint.terminating || workload.is_some_and(|(name, _)| index.draining.contains(name));
        let mut message = message(ip, target, workload, draining);
        message.zone.clone_from(&endpoint.zone);
        let mut name = names::endpoint(head, &id(endpoint, ip));
        if members.contains_key(name.as_str()) {
            // The same pod twice, by another address or target port.
            name = format!("{name}@{ip}:{target}");
        }
        members.insert(name.into(), Resource::new(&message, Vec::new()));
    }
    members
}

/// One entry an address and port: of duplicates the one that is ready and stays counts.
fn candidates<'m>(index: &Index<'m>, service: &Name, port: &ServicePort) -> BTreeMap<(IpAddr, u16), &'m SliceEndpoint> {
    let rank = |endpoint: &SliceEndpoint| (!endpoint.ready, endpoint.terminating, endpoint.workload.is_none());
    let mut found: BTreeMap<(IpAddr, u16), &SliceEndpoint> = BTreeMap::new();
    for slice in index.slices(service) {
        for (_, target) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
            for endpoint in &slice.endpoints {
                match found.entry((endpoint.ip.to_canonical(), *target)) {
                    Entry::Vacant(entry) => {
                        entry.insert(endpoint);
                    }
                    Entry::Occupied(mut entry) if rank(endpoint) < rank(entry.get()) => {
                        entry.insert(endpoint);
                    }
                    Entry::Occupied(_) => {}
                }
            }
        }
    }
    found
}

/// The pod's name, so that a pod that gets another address stays the same endpoint; without one its address.
fn id(endpoint: &SliceEndpoint, ip: IpAddr) -> String {
    match &endpoint.workload {
        Some(workload) if ip.is_ipv4() => workload.name.clone(),
        Some(workload) => format!("{}@6", workload.name),
        None => ip.to_string(),
    }
}

/// The pod that an endpoint says it is; `Err` if the model does not know it.
fn pod<'m>(model: &'m Model, endpoint: &'m SliceEndpoint) -> Result<Option<(&'m Name, &'m Workload)>, &'m Name> {
    match &endpoint.workload {
        None => Ok(None),
        Some(name) => model.workloads.get_key_value(name).map(Some).ok_or(name),
    }
}

/// Endpoints that are left out since the pod that they name is not known, with the slice they stand in.
pub(super) fn unresolved(model: &Model) -> impl Iterator<Item = (&Name, &Slice, &SliceEndpoint)> {
    let all = model.slices.iter().flat_map(|(name, slice)| slice.endpoints.iter().map(move |one| (name, slice, one)));
    all.filter(|(_, _, endpoint)| pod(model, endpoint).is_err())
}
