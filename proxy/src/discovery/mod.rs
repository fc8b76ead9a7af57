//! What control says: asked for on first use, held as one immutable [`Snapshot`], saved for the time when control is away.
//!
//! - [`snapshot`]: what the data path reads, one atomic load.
//! - [`machine`]: our end of the delta stream, pure; over [`table`], what is held.
//! - [`build`] and [`inbound`]: from the tables to a snapshot, sharing what did not change.
//! - [`driver`]: the task that owns machine and builder; [`stream`]: the connection; [`store`]: the disk.
//! - [`names`]: host names; [`external`]: endpoints outside the mesh; [`describe`]: all of it for a person.
//!
//! Invariants
//! - The data path takes no lock and waits for nobody, but for an address that it calls for the first time: then for [`HOLD`] at most.
//! - An address inside the mesh's ranges is never taken for one outside for want of an answer.
//! - Addresses are bounded ([`machine::Limits`]), and forgotten [`IDLE`] after their last use.
//! - Control's absence changes nothing that is in force.

pub mod address;
mod build;
pub mod counters;
mod describe;
mod driver;
mod external;
mod inbound;
pub mod machine;
pub mod named;
mod names;
pub mod snapshot;
mod store;
mod stream;
pub mod table;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::timeout;
use weft_api::names as resource_names;
use weft_engine::reason::Reason;

use self::address::{Host, canonical};
use self::build::Builder;
use self::counters::{Counters, bump};
use self::driver::{Core, Want};
use self::external::Externals;
use self::machine::{Limits, Machine};
use self::names::Names;
use self::snapshot::{Destination, Endpoint, Entry, Snapshot};
use crate::Clock;
use crate::config::Config;
use crate::resolver::resolver;

pub use self::driver::run;

/// A request waits so long for control's answer about an address, then it fails with a reason.
pub const HOLD: Duration = Duration::from_secs(1);
/// An address that nobody has called for so long is forgotten.
pub const IDLE: Duration = Duration::from_mins(5);
/// Plain endpoints of saved tables that are older are used only after control has confirmed them.
const OLD: Duration = Duration::from_mins(10);
/// Questions that wait for the driver.
const WANTS: usize = 1024;

/// Discovery could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No resolver.
    #[error("names cannot be resolved: {0}; give --dns ADDR, or mend /etc/resolv.conf")]
    Resolver(#[from] hickory_resolver::net::NetError),
}

/// How things stand with control.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// A stream is open and control has answered on it.
    pub connected: bool,
    /// Time since what is in force was last known to be true; zero while connected.
    pub state_age: Duration,
    /// Control has said what our own side enforces, now or before a restart.
    pub has_inbound: bool,
    /// The tables in force were read from disk and control has not confirmed them yet.
    pub from_disk: bool,
}

/// What control says, and the way to ask.
pub struct Discovery {
    snapshot: ArcSwap<Snapshot>,
    /// Changes with every snapshot.
    published: watch::Sender<u64>,
    /// Changes with what our own side enforces, which is seldom: long-lived connections listen to it.
    enforced: watch::Sender<()>,
    wants: mpsc::Sender<Want>,
    names: Names,
    externals: Externals,
    counters: Counters,
    clock: Clock,
    instance: String,
    /// Ends the stream that is open.
    kick: Notify,
    connected: AtomicBool,
    has_inbound: AtomicBool,
    from_disk: AtomicBool,
    /// Age of the saved tables at the start, in milliseconds.
    age_at_start: u64,
    /// The clock's milliseconds when control was heard last.
    heard_at: AtomicU64,
    core: Mutex<Option<Core>>,
}

impl Discovery {
    /// Reads the saved tables, if there are any; blocks for as long as that takes.
    ///
    /// # Errors
    /// [`Error`]: there is no resolver for names. Tables that cannot be used are no error: they are logged and counted.
    pub fn new(config: &Config, clock: Clock) -> Result<Self, Error> {
        let workload = resource_names::workload(&config.workload.namespace, &config.workload.name);
        let trust_domain = Arc::clone(&config.identity.trust_domain);
        let mut machine = Machine::new(workload.as_str().into(), trust_domain, Limits::default());
        let counters = Counters::default();
        let loaded = config.state_dir.as_deref().map_or(Ok(None), |dir| store::load(dir, &workload, SystemTime::now()));
        let mut age = Duration::ZERO;
        match loaded {
            Ok(Some((saved, saved_for))) => {
                age = saved_for;
                tracing::info!(resources = saved.entries.len(), age = ?age, "starting from saved tables");
                driver::restore(&mut machine, saved, age < OLD);
            }
            Ok(None) => {}
            Err(error) => {
                bump(&counters.load_failures);
                tracing::warn!(%error, "saved tables are not used");
            }
        }
        let names = Names::new(resolver(&config.dns, config.exclude)?);
        Ok(Self::with(machine, names, counters, clock, age))
    }

    fn with(machine: Machine, names: Names, counters: Counters, clock: Clock, age: Duration) -> Self {
        let mut builder = Builder::default();
        let snapshot = builder.snapshot(&machine, clock.now());
        counters.set_held(machine.table.counts());
        let has_inbound = builder.inbound.current().is_some();
        let from_disk = !machine.table.nodes.is_empty();
        let (wants, asked) = mpsc::channel(WANTS);
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            published: watch::Sender::new(0),
            enforced: watch::Sender::new(()),
            wants,
            names,
            externals: Externals::default(),
            counters,
            clock,
            instance: format!("{:016x}", fastrand::u64(..)),
            kick: Notify::new(),
            connected: AtomicBool::new(false),
            has_inbound: AtomicBool::new(has_inbound),
            from_disk: AtomicBool::new(from_disk),
            age_at_start: millis(age),
            heard_at: AtomicU64::new(0),
            core: Mutex::new(Some(Core { machine, builder, asked })),
        }
    }

    /// What is in force now. Load it once a request.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// What an address means. An address that was called before is answered at once; a new one when control has answered.
    ///
    /// # Errors
    /// [`Reason::DiscoveryTimeout`] after [`HOLD`]; another reason if control's answer had to be refused.
    pub async fn resolve(&self, addr: SocketAddr) -> Result<Destination, Reason> {
        let addr = canonical(addr);
        match self.look(addr) {
            Some(found) => found,
            None => Box::pin(self.hold(addr.to_string(), || self.look(addr))).await,
        }
    }

    /// What a host and port mean.
    ///
    /// # Errors
    /// As [`Self::resolve`]; [`Reason::NameUnresolved`] for what is no host.
    pub async fn resolve_host(&self, host: &str, port: u16) -> Result<Destination, Reason> {
        match address::host(host, port) {
            Host::Addr(addr) => self.resolve(addr).await,
            Host::Name(name) => match self.look_host(&name) {
                Some(found) => found,
                None => Box::pin(self.hold(name.clone(), || self.look_host(&name))).await,
            },
            Host::Invalid => Err(Reason::NameUnresolved),
        }
    }

    /// Addresses of a host by DNS.
    ///
    /// # Errors
    /// [`Reason::NameUnresolved`]: there are none, or no name server said any in time.
    pub async fn lookup(&self, host: &str) -> Result<Arc<[IpAddr]>, Reason> {
        self.names.lookup(host, self.clock.now(), &self.counters).await
    }

    /// The plain endpoint at an address outside the mesh.
    pub fn external_endpoint(&self, addr: SocketAddr) -> Arc<Endpoint> {
        let (endpoint, evicted) = self.externals.get(addr, self.clock.now());
        if evicted {
            bump(&self.counters.evicted_external);
        }
        endpoint
    }

    /// How things stand with control.
    pub fn status(&self) -> Status {
        let connected = self.connected.load(Ordering::Relaxed);
        let since = millis(self.clock.now()).saturating_sub(self.heard_at.load(Ordering::Relaxed));
        let from_disk = self.from_disk.load(Ordering::Relaxed);
        let before = if from_disk { self.age_at_start } else { 0 };
        Status {
            connected,
            state_age: if connected { Duration::ZERO } else { Duration::from_millis(since + before) },
            has_inbound: self.has_inbound.load(Ordering::Relaxed),
            from_disk,
        }
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A number of this run of the proxy, by which control tells a restart from a reconnect.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Changes with every snapshot, and when control is found or lost.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Changes with what our own side enforces.
    pub fn inbound_changes(&self) -> watch::Receiver<()> {
        self.enforced.subscribe()
    }

    /// Writes the tables to disk, if something in them is not there yet. Waits for that, but not for ever.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        let asked = async {
            if self.wants.send(Want::Flush(done)).await.is_ok() {
                // The driver may have ended: then there is nobody who could write.
                let _ = written.await;
            }
        };
        if timeout(Duration::from_secs(2), asked).await.is_err() {
            tracing::warn!("the tables could not be written in time");
        }
    }

    /// Everything that is held, with its version, and what the data path makes of it.
    pub async fn tables_json(&self) -> serde_json::Value {
        let (tell, told) = oneshot::channel();
        let asked = async {
            self.wants.send(Want::Describe(tell)).await.ok()?;
            told.await.ok()
        };
        let held = timeout(Duration::from_secs(2), asked).await.ok().flatten();
        describe::all(self, held.unwrap_or_default())
    }

    /// Returns when the stream that is open has to end.
    async fn kicked(&self) {
        self.kick.notified().await;
    }

    fn touch(&self, entry: &Entry) -> Destination {
        let now = self.clock.now().as_secs();
        // A look first: a store by every worker for every request would pass the line from core to core.
        if entry.last_used.load(Ordering::Relaxed) != now {
            entry.last_used.store(now, Ordering::Relaxed);
        }
        entry.destination.clone()
    }

    fn look(&self, addr: SocketAddr) -> Option<Result<Destination, Reason>> {
        let snapshot = self.snapshot.load();
        if let Some(entry) = snapshot.by_addr.get(&addr) {
            return Some(Ok(self.touch(entry)));
        }
        if snapshot.extent_known && !snapshot.extent.iter().any(|range| range.contains(&addr.ip())) {
            return Some(Ok(Destination::Outside));
        }
        if snapshot.refused.is_empty() {
            return None;
        }
        snapshot.refused.get(&*addr.to_string()).map(|reason| Err(*reason))
    }

    fn look_host(&self, name: &str) -> Option<Result<Destination, Reason>> {
        let snapshot = self.snapshot.load();
        match snapshot.by_host.get(name) {
            Some(entry) => Some(Ok(self.touch(entry))),
            None => snapshot.refused.get(name).map(|reason| Err(*reason)),
        }
    }

    /// Asks control and waits until `look` finds something.
    async fn hold(
        &self,
        name: String,
        look: impl Fn() -> Option<Result<Destination, Reason>>,
    ) -> Result<Destination, Reason> {
        let mut published = self.published.subscribe();
        let answered = async {
            self.wants.send(Want::Address(name.into())).await.ok()?;
            loop {
                if let Some(found) = look() {
                    return Some(found);
                }
                published.changed().await.ok()?;
            }
        };
        match timeout(HOLD, answered).await {
            Ok(Some(found)) => {
                bump(&self.counters.held_answered);
                found
            }
            Ok(None) | Err(_) => {
                bump(&self.counters.held_timeout);
                Err(Reason::DiscoveryTimeout)
            }
        }
    }

    fn publish(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let before = self.snapshot.swap(Arc::clone(&snapshot));
        self.announce();
        if !Arc::ptr_eq(&before.inbound, &snapshot.inbound) {
            self.enforced.send_replace(());
        }
    }

    fn announce(&self) {
        self.published.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn heard(&self) {
        self.heard_at.store(millis(self.clock.now()), Ordering::Relaxed);
    }

    fn set_connected(&self, connected: bool) {
        if self.connected.swap(connected, Ordering::Relaxed) != connected {
            self.heard_at.store(millis(self.clock.now()), Ordering::Relaxed);
            self.announce();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
impl Discovery {
    /// Says this and asks nobody: what the snapshot does not know is outside.
    pub fn fixed(mut snapshot: Snapshot, clock: Clock) -> Self {
        snapshot.extent_known = true;
        let this = Self::bare(clock);
        this.has_inbound.store(!snapshot.inbound.workload.is_empty(), Ordering::Relaxed);
        this.snapshot.store(Arc::new(snapshot));
        this
    }

    /// Knows nothing, and nobody answers it.
    fn bare(clock: Clock) -> Self {
        let machine = Machine::new("workload/test/test".into(), "cluster.local".into(), Limits::default());
        let nowhere = "127.0.0.1:1".parse().unwrap();
        let names = Names::new(resolver(&[nowhere], None).unwrap());
        Self::with(machine, names, Counters::default(), clock, Duration::ZERO)
    }

    /// Says something else from now on.
    pub fn replace(&self, mut snapshot: Snapshot) {
        snapshot.extent_known = true;
        self.publish(snapshot);
    }
}
