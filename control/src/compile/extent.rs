//! The ranges that hold all addresses of services and pods.
//!
//! Fixed prefixes and not the smallest cover: a pod that comes or goes inside a known /24 changes nothing, so every proxy keeps
//! what it has. When there are too many they widen together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use weft_api::wire::v1;

use super::Resource;

/// More prefixes of one family than this widen all of that family.
const MAX_PREFIXES: usize = 64;
/// The first of each is what is counted.
const V4_LENGTHS: [u8; 4] = [24, 16, 8, 0];
const V6_LENGTHS: [u8; 5] = [112, 64, 48, 32, 0];

/// How many addresses each of the narrowest prefixes holds. Invariant: none holds none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent(BTreeMap<IpNet, usize>);

impl Extent {
    /// One more address. True if the ranges may be others now.
    pub(super) fn put(&mut self, ip: IpAddr) -> bool {
        let Some(net) = narrowest(ip) else { return false };
        let count = self.0.entry(net).or_default();
        *count += 1;
        *count == 1
    }

    /// One address less.
    pub(super) fn cut(&mut self, ip: IpAddr) -> bool {
        let Some(net) = narrowest(ip) else { return false };
        let Some(count) = self.0.get_mut(&net) else { return false };
        *count -= 1;
        if *count == 0 {
            self.0.remove(&net);
            return true;
        }
        false
    }

    /// The one `MeshExtent`.
    pub(super) fn resource(&self) -> Resource {
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = self.0.keys().partition(|net| net.addr().is_ipv4());
        let nets = cover(&v4, &V4_LENGTHS).into_iter().chain(cover(&v6, &V6_LENGTHS));
        Resource::new(&v1::MeshExtent { cidrs: nets.map(|net| net.to_string()).collect() }, Vec::new())
    }
}

fn narrowest(ip: IpAddr) -> Option<IpNet> {
    let ip = ip.to_canonical();
    let length = if ip.is_ipv4() { V4_LENGTHS[0] } else { V6_LENGTHS[0] };
    IpNet::new(ip, length).ok().map(|net| net.trunc())
}

fn cover(narrow: &[IpNet], lengths: &[u8]) -> BTreeSet<IpNet> {
    let mut nets = BTreeSet::new();
    for length in lengths {
        let wider = |net: &IpNet| IpNet::new(net.addr(), *length).ok().map(|net| net.trunc());
        nets = narrow.iter().filter_map(wider).collect();
        if nets.len() <= MAX_PREFIXES {
            break;
        }
    }
    nets
}
