//! The network namespace of a pod on this node.
//!
//! A pod is known by its uid, which stands in the path of its processes' cgroups, and by its addresses: both must agree. Any process of the
//! pod will do; the sandbox's own lives as long as the pod. Invariants:
//!
//! - The node's own namespace is never given, nor one that could be another pod's: a process is looked at again after its namespace has
//!   been opened, so that one that ended meanwhile, whose number another got, is not taken for it.
//! - Two namespaces that both fit are none.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use weft_capture::netns::NetNs;

use crate::plugin::{identity, open_foreign};

/// Longest list of cgroups that is read of a process, in bytes.
const MAX_CGROUPS: u64 = 16 * 1024;
/// At most so many processes are looked at: more than a node may have pods and threads of a default limit.
const MAX_PROCESSES: usize = 65_536;

/// Why there is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No process of the pod.
    #[error("no process of the pod is seen on this node; the agent must see the node's processes (hostPID)")]
    NoProcess,
    /// Namespaces, but none with the pod's addresses.
    #[error("{0} network namespace(s) of the pod were found, none with its addresses")]
    NoAddress(usize),
    /// More than one with them.
    #[error("{0} network namespaces of the pod have its addresses")]
    Ambiguous(usize),
}

/// Pods by uid, with their addresses.
pub type Pods = BTreeMap<String, Vec<IpAddr>>;

/// The namespaces of these pods, by uid.
pub fn namespaces(proc: &Path, pods: &Pods) -> HashMap<String, Result<NetNs, Error>> {
    let mut seen: HashMap<&str, HashMap<(u64, u64), NetNs>> = HashMap::new();
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    for process in processes.filter(|entry| is_number(&entry.file_name().to_string_lossy())).take(MAX_PROCESSES) {
        let path = process.path();
        let Some(uid) = pod_of(&path, pods) else { continue };
        let Ok(Some(net)) = open_foreign(&path.join("ns/net")) else { continue };
        // The number may be another process's by now.
        if pod_of(&path, pods) == Some(uid)
            && let Some(id) = identity(&net)
        {
            seen.entry(uid).or_default().insert(id, net);
        }
    }
    let found = |(uid, addresses): (&String, &Vec<IpAddr>)| {
        let nets = seen.remove(uid.as_str()).unwrap_or_default();
        (uid.clone(), choose(nets.into_values().collect(), addresses))
    };
    pods.iter().map(found).collect()
}

fn choose(nets: Vec<NetNs>, addresses: &[IpAddr]) -> Result<NetNs, Error> {
    let count = nets.len();
    let mut fit: Vec<NetNs> = nets.into_iter().filter(|net| has(net, addresses)).collect();
    match (count, fit.len()) {
        (0, _) => Err(Error::NoProcess),
        (_, 0) => Err(Error::NoAddress(count)),
        (_, 1) => fit.pop().ok_or(Error::NoProcess),
        (_, more) => Err(Error::Ambiguous(more)),
    }
}

fn has(net: &NetNs, addresses: &[IpAddr]) -> bool {
    let own = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    let tables = net.run(|| (own("fib_trie"), own("if_inet6")));
    let Ok((v4, v6)) = tables else { return false };
    !addresses.is_empty() && addresses.iter().all(|address| lists(&v4, &v6, *address))
}

/// Whether the kernel's table of routes of IPv4, or of addresses of IPv6, names this address as its own.
fn lists(v4: &str, v6: &str, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let leaf = format!("|-- {ip}");
            let lines = || v4.lines().map(str::trim);
            lines().zip(lines().skip(1)).any(|(line, next)| line == leaf && next == "/32 host LOCAL")
        }
        IpAddr::V6(ip) => {
            let hex = format!("{:032x}", u128::from(ip));
            v6.lines().any(|line| line.split_whitespace().next() == Some(hex.as_str()))
        }
    }
}

fn pod_of<'a>(process: &Path, pods: &'a Pods) -> Option<&'a str> {
    let mut cgroups = String::new();
    fs::File::open(process.join("cgroup")).ok()?.take(MAX_CGROUPS).read_to_string(&mut cgroups).ok()?;
    pods.keys().find(|uid| names(&cgroups, uid)).map(String::as_str)
}

/// Whether these cgroups are of the pod: `pod` and its uid, in the way of cgroupfs or of systemd.
fn names(cgroups: &str, uid: &str) -> bool {
    let segments = || cgroups.lines().flat_map(|line| line.split('/'));
    let systemd = uid.replace('-', "_");
    segments().any(|segment| {
        segment.strip_prefix("pod") == Some(uid)
            || segment
                .strip_suffix(".slice")
                .and_then(|name| name.rsplit_once("-pod"))
                .is_some_and(|(_, end)| end == systemd)
    })
}

fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_pods_own_only_where_the_kernel_says_so() {
        let v4 =
            "Local:\n     |-- 10.244.0.0\n        /32 link BROADCAST\n     |-- 10.244.0.7\n        /32 host LOCAL\n";
        let v6 = "fd000000000000000000000000000007 04 40 00 82 eth0\n";
        let has = |address: &str| lists(v4, v6, address.parse().unwrap());
        assert!(has("10.244.0.7") && has("fd00::7"));
        assert!(!has("10.244.0.0") && !has("10.244.0.70") && !has("0.244.0.7") && !has("fd00::70"));
    }

    #[test]
    fn a_pod_is_known_by_its_cgroup_in_every_layout() {
        let uid = "0a1b2c3d-0000-4000-8000-123456789abc";
        for cgroups in [
            "4:memory:/kubepods/besteffort/pod0a1b2c3d-0000-4000-8000-123456789abc/0123\n",
            "0::/../../pod0a1b2c3d-0000-4000-8000-123456789abc/0123\n",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b2c3d_0000_4000_8000_123456789abc.slice/cri-containerd-1.scope\n",
            "0::/kubepods.slice/kubepods-pod0a1b2c3d_0000_4000_8000_123456789abc.slice/crio-1\n",
        ] {
            assert!(names(cgroups, uid), "{cgroups}");
        }
        for cgroups in [
            "0::/user.slice\n",
            "0::/kubepods/pod0a1b2c3d-0000-4000-8000-123456789abcd/x\n",
            "0::/0a1b2c3d-0000-4000-8000-123456789abc\n",
        ] {
            assert!(!names(cgroups, uid), "{cgroups}");
        }
    }
}
