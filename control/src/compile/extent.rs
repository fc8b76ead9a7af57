//! The ranges that hold all addresses of services and pods.
//!
//! Fixed prefixes and not the smallest cover: a pod that comes or goes inside a known /24 changes nothing, so every proxy keeps
//! what it has. When there are too many they widen together.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::wire::v1;

use super::Resource;
use crate::model::Model;

/// More prefixes of one family than this widen all of that family.
const MAX_PREFIXES: usize = 64;
const V4_LENGTHS: [u8; 4] = [24, 16, 8, 0];
const V6_LENGTHS: [u8; 5] = [112, 64, 48, 32, 0];

/// The one `MeshExtent`.
pub(super) fn resource(model: &Model) -> Resource {
    let services = model.services.values().flat_map(|service| &service.cluster_ips);
    let pods = model.workloads.values().flat_map(|workload| &workload.ips);
    let all: BTreeSet<IpAddr> = services.chain(pods).map(IpAddr::to_canonical).collect();
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = all.into_iter().partition(IpAddr::is_ipv4);
    let nets = cover(&v4, &V4_LENGTHS).into_iter().chain(cover(&v6, &V6_LENGTHS));
    Resource::new(&v1::MeshExtent { cidrs: nets.map(|net| net.to_string()).collect() }, Vec::new())
}

fn cover(addresses: &[IpAddr], lengths: &[u8]) -> BTreeSet<IpNet> {
    let mut nets = BTreeSet::new();
    for length in lengths {
        let net = |ip: &IpAddr| IpNet::new(*ip, *length).ok().map(|net| net.trunc());
        nets = addresses.iter().filter_map(net).collect();
        if nets.len() <= MAX_PREFIXES {
            break;
        }
    }
    nets
}
