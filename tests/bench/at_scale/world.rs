//! The mesh that is simulated: which services, endpoints and proxies there are, and who uses what.
//!
//! Everything follows from four numbers, so that the conductor and its clients agree without a word. Names, addresses and marks have the
//! same length in a mesh of any size: the bytes of two sizes can be compared.

use std::net::Ipv4Addr;
use std::ops::Range;

use rustix::time::{ClockId, clock_gettime};

use super::super::Error;

/// The trust domain.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The service that many call. It has files of its own, so that a change of it rewrites one small file.
pub const HOT: usize = 0;
/// The rule that an edit of a route changes stands in this header.
pub const MARK_HEADER: &str = "x-weft-bench";
/// Services whose slices stand in one file.
const IN_FILE: usize = 10;
/// Where pods' addresses begin, and services'.
const PODS: u32 = 0x0A01_0000;
const SERVICES: u32 = 0xAC14_0000;
/// The range that an API server is told to give services' addresses from. It takes the first for itself, which is none of ours.
pub const SERVICE_RANGE: &str = "172.16.0.0/13";

/// Its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// Services.
    pub services: usize,
    /// Endpoints of each.
    pub members: usize,
    /// Proxies, each of another pod.
    pub proxies: usize,
    /// Services that each proxy calls.
    pub calls: usize,
    /// Every so many proxies one calls the hot service.
    pub hot_every: usize,
}

/// The same, as one process tells it to another
#[derive(clap::Args, Debug, Clone)]
pub struct Size {
    /// Services of the mesh
    #[arg(long)]
    services: usize,
    /// Endpoints of the mesh
    #[arg(long)]
    endpoints: usize,
    /// Proxies of the mesh
    #[arg(long)]
    proxies: usize,
    /// Services that each calls
    #[arg(long)]
    per_proxy: usize,
    /// Every so many proxies one calls the hot service
    #[arg(long)]
    hot_every: usize,
}

impl Size {
    /// The mesh of this size, if there can be one.
    pub fn world(&self) -> Result<World, Error> {
        let world = World::new(self.services, self.endpoints, self.proxies, self.per_proxy)?;
        Ok(World { hot_every: self.hot_every, ..world })
    }
}

/// When something was written, in microseconds of the kernel's monotonic clock, as it travels: an endpoint's zone, a header of a route. All
/// processes of a machine share that clock, so whoever sees a mark knows its age.
pub fn mark(micros: u64) -> String {
    format!("t{micros:012}")
}

/// That clock.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// The reverse; `None` if it is no mark, or that of the beginning.
pub fn read_mark(text: &str) -> Option<u64> {
    text.strip_prefix('t')?.parse().ok().filter(|micros| *micros > 0)
}

impl World {
    /// A mesh of this size, if there can be one.
    pub fn new(services: usize, endpoints: usize, proxies: usize, calls: usize) -> Result<Self, Error> {
        let say = |what: &str| Err(Error::Usage(what.to_owned()));
        if !(2..=100_000).contains(&services) {
            return say("--services: from 2 to 100,000");
        }
        if endpoints == 0 || !endpoints.is_multiple_of(services) || endpoints / services > 1_000 {
            return say("--endpoints: a multiple of --services, up to 1,000 for each");
        }
        if proxies == 0 || proxies > endpoints {
            return say("--proxies: at least one, and not more than --endpoints: each is the sidecar of a pod");
        }
        if calls == 0 || calls >= services {
            return say("--per-proxy: at least one, and fewer than --services");
        }
        Ok(Self { services, members: endpoints / services, proxies, calls, hot_every: 10 })
    }

    /// As another process is told of it ([`Size`]).
    pub fn flags(&self) -> impl Iterator<Item = String> {
        let numbers = [
            ("--services", self.services),
            ("--endpoints", self.endpoints()),
            ("--proxies", self.proxies),
            ("--per-proxy", self.calls),
            ("--hot-every", self.hot_every),
        ];
        numbers.into_iter().flat_map(|(flag, number)| [flag.to_owned(), number.to_string()])
    }

    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.services * self.members
    }

    /// Service and member that a proxy stands beside: as many services as possible have one, so that identities differ.
    pub fn place(&self, proxy: usize) -> (usize, usize) {
        (proxy % self.services, proxy / self.services)
    }

    /// The services that a proxy calls.
    pub fn calls(&self, proxy: usize) -> impl Iterator<Item = usize> {
        let hot = proxy.is_multiple_of(self.hot_every).then_some(HOT);
        let rest = self.calls - usize::from(hot.is_some());
        let (first, others) = (proxy * self.calls, self.services - 1);
        hot.into_iter().chain((0..rest).map(move |one| 1 + (first + one) % others))
    }

    /// How many of these proxies call the hot service.
    pub fn subscribers(&self, of: Range<usize>) -> usize {
        of.filter(|proxy| proxy.is_multiple_of(self.hot_every)).count()
    }

    /// A service's name, and that of its pods' account.
    pub fn service(service: usize) -> String {
        format!("s-{service:05}")
    }

    /// A pod's name.
    pub fn pod(service: usize, member: usize) -> String {
        format!("s-{service:05}-{member:03}")
    }

    /// A pod's uid, which its certificate names too.
    pub fn uid(service: usize, member: usize) -> String {
        format!("00000000-0000-4000-8000-{service:06}{member:06}")
    }

    /// What an application calls: the service's address and port.
    pub fn address(service: usize) -> String {
        format!("{}:80", Self::cluster_ip(service))
    }

    /// A service's address.
    pub fn cluster_ip(service: usize) -> Ipv4Addr {
        Ipv4Addr::from(SERVICES + 1 + service as u32)
    }

    /// The address of the pod of an endpoint.
    pub fn pod_ip(endpoint: usize) -> Ipv4Addr {
        Ipv4Addr::from(PODS + endpoint as u32)
    }

    /// Service and member of an endpoint, by the name of its resource.
    pub fn place_of(endpoint: &str) -> Option<(usize, usize)> {
        let mut parts = endpoint.rsplit('/').next()?.split('-').skip(1);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// The services whose slices stand together in a file: what one write of the churn changes.
    pub fn files(&self) -> usize {
        self.services.div_ceil(IN_FILE)
    }

    /// The services of such a file.
    pub fn in_file(&self, file: usize) -> Range<usize> {
        let first = file * IN_FILE;
        // The hot one stands alone.
        first.max(HOT + 1)..(first + IN_FILE).min(self.services)
    }

    /// A service's endpoints among all.
    pub fn of(&self, service: usize) -> Range<usize> {
        service * self.members..(service + 1) * self.members
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_proxy_calls_as_many_services_as_it_should_and_one_in_ten_the_hot_one() {
        let world = World::new(30, 300, 200, 20).unwrap();
        for proxy in 0..world.proxies {
            let calls: BTreeSet<usize> = world.calls(proxy).collect();
            assert_eq!(calls.len(), 20, "{proxy}");
            assert!(calls.iter().all(|service| *service < 30));
            assert_eq!(calls.contains(&HOT), proxy % 10 == 0);
        }
        assert_eq!(world.subscribers(0..200), 20);
        assert_eq!(world.subscribers(95..111), 2);
    }

    #[test]
    fn pods_differ_and_stand_beside_different_services_first() {
        let world = World::new(30, 300, 200, 20).unwrap();
        let places: BTreeSet<_> = (0..200).map(|proxy| world.place(proxy)).collect();
        assert_eq!(places.len(), 200);
        assert!(places.iter().all(|(service, member)| *service < 30 && *member < 10));
    }

    #[test]
    fn an_endpoint_is_known_by_the_name_of_its_resource() {
        let name = format!("endpoints/{}/{}:80/{}", World::namespace(123), World::service(123), World::pod(123, 7));
        assert_eq!(World::place_of(&name), Some((123, 7)));
        assert_eq!(World::place_of("mesh-extent"), None);
    }

    #[test]
    fn every_service_is_in_one_file_but_the_hot_one() {
        let world = World::new(25, 50, 10, 5).unwrap();
        let all: Vec<usize> = (0..world.files()).flat_map(|file| world.in_file(file)).collect();
        assert_eq!(all, (1..25).collect::<Vec<_>>());
    }

    #[test]
    fn marks_are_read_back_and_have_one_length() {
        assert_eq!(read_mark(&mark(75_000_000_000)), Some(75_000_000_000));
        assert_eq!(read_mark(&mark(0)), None);
        assert_eq!(mark(0).len(), mark(75_000_000_000).len());
        assert_eq!(read_mark("europe-west1-b"), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (services, endpoints, proxies, calls) in
            [(1, 10, 1, 1), (10, 15, 1, 1), (10, 0, 1, 1), (10, 10, 11, 1), (10, 10, 0, 1), (10, 10, 1, 10)]
        {
            assert!(World::new(services, endpoints, proxies, calls).is_err());
        }
    }
}
