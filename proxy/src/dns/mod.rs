//! The application's name server in the pod, where its DNS is captured (`--dns-listen`).
//!
//! ```text
//! application --UDP, TCP--> server --> walk (search list) --> cache --> flights (one question at a time) --> upstream --UDP, TCP--> pod's name servers
//! ```
//!
//! - [`server`]: two transports, one answer. [`walk`]: what the resolver of the application would ask one after another, asked at once.
//! - [`cache`]: answers by their TTL, and for a bounded time beyond it while nobody answers. [`upstream`]: the pod's name servers.
//!
//! Invariants
//! - All of it runs on a thread of its own: names never wait for traffic, nor traffic for names.
//! - It listens on loopback only: nobody but the pod can use it.
//! - Everything is bounded: questions in flight, connections, names kept, bytes of an answer, time for each. What is beyond is refused at once.
//! - No loop: one question to the name servers is in flight for a name and type, and whoever asks the same meanwhile waits for it, even if it
//!   was that question itself that came back; its time is bounded.

pub mod cache;
mod flight;
pub mod server;
#[cfg(test)]
mod tests;
pub mod upstream;
pub mod walk;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_resolver::proto::rr::Name;
use prometheus::proto::MetricType;

use crate::config::Config;
use crate::telemetry::families::Values;
use crate::telemetry::scrape::Page;

/// At most so many name servers are asked, as every resolver does.
const MAX_SERVERS: usize = 3;
/// At most so many domains of the search list are walked; Kubernetes allows no more.
const MAX_SEARCH: usize = 32;

/// How many questions came to which end.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the cache, within its time.
    pub cached: AtomicU64,
    /// By asking a name server.
    pub asked: AtomicU64,
    /// From the cache beyond its time, since no name server answered.
    pub stale: AtomicU64,
    /// Not at all.
    pub failed: AtomicU64,
    /// What this does not do: transfers, updates, other classes.
    pub refused: AtomicU64,
    /// Answers of the walk of a search list, which saved the application its own.
    pub walked: AtomicU64,
    /// Questions to name servers, by UDP and TCP.
    pub upstream: [AtomicU64; 2],
    /// Of these, those without a usable answer.
    pub upstream_failed: AtomicU64,
    /// Names and types that are kept.
    pub entries: AtomicU64,
}

/// Counts one.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// Adds them to the page.
    ///
    /// # Errors
    /// Only if a family is malformed, which is a mistake of ours.
    pub fn write(&self, page: &mut Page) -> prometheus::Result<()> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let mut questions = Values::default();
        let results =
            [("cached", &self.cached), ("asked", &self.asked), ("stale", &self.stale), ("failed", &self.failed)];
        for (result, counter) in results.into_iter().chain([("refused", &self.refused)]) {
            questions.counter(&[("result", result)], get(counter));
        }
        let help = "DNS questions of the application, by where their answer came from; stale: beyond its time, while no name server answers.";
        page.add("weft_dns_questions_total", help, MetricType::COUNTER, questions)?;
        let help = "DNS questions whose walk through the search list was answered at once.";
        page.counter("weft_dns_walked_total", help, self.walked.load(Ordering::Relaxed))?;
        let mut upstream = Values::default();
        for (transport, counter) in ["udp", "tcp"].into_iter().zip(&self.upstream) {
            upstream.counter(&[("transport", transport)], get(counter));
        }
        page.add("weft_dns_upstream_total", "DNS questions to the pod's name servers.", MetricType::COUNTER, upstream)?;
        let help = "DNS questions to the pod's name servers that had no usable answer.";
        page.counter("weft_dns_upstream_failed_total", help, self.upstream_failed.load(Ordering::Relaxed))?;
        page.gauge("weft_dns_entries", "Names and types whose answers are kept.", get(&self.entries))
    }
}

/// Whom to ask, and what an unqualified name may mean.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The pod's name servers.
    pub servers: Vec<SocketAddr>,
    /// Its search list.
    pub search: Vec<Name>,
}

impl Zone {
    /// That of `/etc/resolv.conf`, or of these servers with its search list.
    ///
    /// # Errors
    /// With one sentence: no name server, or one in this very pod, whose own questions would come back to us.
    pub fn of_the_pod(config: &Config) -> Result<Self, String> {
        let system = hickory_resolver::system_conf::read_system_conf();
        let (search, found) = match &system {
            Ok((system, _)) => {
                (system.search().to_vec(), system.name_servers().iter().map(|server| server.ip).collect())
            }
            Err(_) => (Vec::new(), Vec::new()),
        };
        let servers = if config.dns.is_empty() { system_servers(&found)? } else { config.dns.clone() };
        Ok(Self::new(servers, search))
    }

    /// Bounded.
    pub fn new(mut servers: Vec<SocketAddr>, mut search: Vec<Name>) -> Self {
        servers.truncate(MAX_SERVERS);
        search.truncate(MAX_SEARCH);
        for name in &mut search {
            name.set_fqdn(true);
        }
        Self { servers, search }
    }
}

fn system_servers(found: &[IpAddr]) -> Result<Vec<SocketAddr>, String> {
    if let Some(local) = found.iter().find(|ip| ip.is_loopback()) {
        return Err(format!(
            "/etc/resolv.conf names {local}, in this pod: its own questions would be captured too; leave --dns-listen out, or give --dns"
        ));
    }
    if found.is_empty() {
        return Err("/etc/resolv.conf names no name server; give --dns".to_owned());
    }
    Ok(found.iter().map(|ip| SocketAddr::new(*ip, 53)).collect())
}

/// The sockets of both loopback addresses, at the port of this address; that of IPv6 only where the kernel has it.
///
/// # Errors
/// If the port is taken.
pub fn listen(addr: SocketAddr) -> io::Result<Vec<server::Sockets>> {
    let v4 = server::Sockets::open((Ipv4Addr::LOCALHOST, addr.port()).into())?;
    // The port may have been 0: the same for both.
    let port = v4.local_addr()?.port();
    let v6 = server::Sockets::open((Ipv6Addr::LOCALHOST, port).into());
    Ok(std::iter::once(v4).chain(v6.ok()).collect())
}

/// Answers on these sockets, on a thread of its own, until the process ends.
///
/// # Errors
/// If the thread or its runtime cannot be made.
pub fn start(
    zone: Zone,
    mark: Option<u32>,
    sockets: Vec<server::Sockets>,
    shared: Arc<crate::Shared>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counters = Arc::clone(&shared.telemetry.dns);
    let bound_hit = Arc::new(move |bound: &'static str| shared.telemetry.bound_hit(bound));
    let resolver = flight::Resolver::new(zone, mark, counters, bound_hit);
    let thread = move || runtime.block_on(server::serve(Arc::new(resolver), sockets));
    std::thread::Builder::new().name("dns".into()).spawn(thread).map(drop)
}
