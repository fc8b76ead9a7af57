//! The memory budget: the admin thread looks many times a second at what is used, and beyond the budget the proxy sheds load.
//!
//! Invariants
//! - Who is about to keep more looks for itself if nobody has in time: a thread that is short of CPU looks late.
//! - What runs goes on; what comes is refused: a connection with a reset, a request with [`Reason::Overloaded`]. So the newest go first.
//! - To ask costs one load of an atomic. Without a budget nothing is measured and nothing is shed.
//! - The decision is the engine's ([`weft_engine::shed`]); this is only its I/O.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;
use weft_engine::reason::Reason;
use weft_engine::shed::Shedder;

use crate::Shared;
use crate::telemetry::process::private_bytes;

/// Between two looks while less than half of the budget is used, and from there on: a flood may take hundreds of megabytes a second.
const LOOKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(10)];

/// The same for who is about to keep more. A process that was kept from running finds all its sockets full, and may take in a gigabyte a second
/// then; a look costs some 10 us.
const KEEPING: Duration = Duration::from_millis(1);

/// What is known of the memory; one a proxy.
#[derive(Debug, Default)]
pub struct Memory {
    budget: Option<u64>,
    shedder: Option<Mutex<Shedder>>,
    // Nanoseconds of the proxy's clock.
    looked: AtomicU64,
    used: AtomicU64,
    shedding: AtomicBool,
    connections: AtomicU64,
    requests: AtomicU64,
}

impl Memory {
    /// With this budget in bytes; `None`: there is none.
    pub fn new(budget: Option<u64>) -> Self {
        Self { budget, shedder: budget.map(|budget| Mutex::new(Shedder::new(budget))), ..Self::default() }
    }

    /// One that is full, for tests.
    #[cfg(test)]
    pub fn shedding_for_ever() -> Self {
        Self { shedding: true.into(), ..Self::new(Some(1)) }
    }

    /// Whether a new connection may be taken; it is counted if not.
    ///
    /// # Errors
    /// [`Reason::Overloaded`].
    pub fn admit_connection(&self) -> Result<(), Reason> {
        self.admit(&self.connections)
    }

    /// Whether a new request may be taken; it is counted if not.
    ///
    /// # Errors
    /// [`Reason::Overloaded`].
    pub fn admit_request(&self) -> Result<(), Reason> {
        self.admit(&self.requests)
    }

    fn admit(&self, refused: &AtomicU64) -> Result<(), Reason> {
        if !self.shedding() {
            return Ok(());
        }
        refused.fetch_add(1, Ordering::Relaxed);
        Err(Reason::Overloaded)
    }

    /// Whether load is shed now.
    pub fn shedding(&self) -> bool {
        self.shedding.load(Ordering::Relaxed)
    }

    /// As [`Self::shedding`], for who is about to keep more.
    pub fn is_full(&self, shared: &Shared) -> bool {
        let looked = Duration::from_nanos(self.looked.load(Ordering::Relaxed));
        if self.budget.is_some() && shared.clock.now().saturating_sub(looked) >= KEEPING {
            self.look(shared);
        }
        self.shedding()
    }

    // Time between two looks.
    fn every(&self) -> Duration {
        LOOKS[usize::from(self.used() > self.budget.unwrap_or(u64::MAX) / 2)]
    }

    fn look(&self, shared: &Shared) {
        let Some(shedder) = &self.shedder else { return };
        let now = shared.clock.now();
        self.looked.store(now.as_nanos() as u64, Ordering::Relaxed);
        // Where /proc cannot be read nothing can be decided; then nothing is shed. Not under the lock: who waits for the kernel keeps nobody.
        let Some(used) = private_bytes() else { return };
        if self.observe(&mut shedder.lock(), now, used, load(shared)) {
            shared.telemetry.bound_hit("memory_budget");
        }
    }

    /// The budget in bytes.
    pub fn budget(&self) -> Option<u64> {
        self.budget
    }

    /// Bytes that were used at the last look.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Connections and requests that were shed.
    pub fn shed(&self) -> (u64, u64) {
        (self.connections.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }

    // Whether it sheds from now on, and did not before.
    fn observe(&self, shedder: &mut Shedder, now: Duration, used: u64, load: usize) -> bool {
        self.used.store(used, Ordering::Relaxed);
        let before = self.shedding();
        let sheds = shedder.observe(now, used, load);
        self.shedding.store(sheds, Ordering::Relaxed);
        match (before, sheds) {
            (false, true) => tracing::warn!(used, budget = self.budget, "load is shed: the memory budget is used up"),
            (true, false) => tracing::info!(used, budget = self.budget, "load is no longer shed"),
            _ => {}
        }
        sheds && !before
    }
}

/// Looks for as long as it is polled.
pub async fn watch(shared: &Shared) {
    let memory = &shared.memory;
    if memory.budget.is_none() {
        return std::future::pending().await;
    }
    loop {
        memory.look(shared);
        sleep(memory.every()).await;
    }
}

// Connections that are open, and what is in flight on them.
fn load(shared: &Shared) -> usize {
    let open = shared.config.limits.max_connections.saturating_sub(shared.connections.available_permits());
    open + shared.drain.in_flight()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::snapshot::Snapshot;

    #[test]
    fn what_is_shed_is_counted() {
        let memory = Memory::new(Some(1000));
        let mut shedder = Shedder::new(1000);
        memory.observe(&mut shedder, Duration::ZERO, 999, 500);
        assert_eq!((memory.admit_connection(), memory.admit_request()), (Ok(()), Ok(())));
        memory.observe(&mut shedder, Duration::ZERO, 1000, 500);
        assert_eq!(memory.admit_connection(), Err(Reason::Overloaded));
        assert_eq!(
            (memory.admit_request(), memory.admit_request()),
            (Err(Reason::Overloaded), Err(Reason::Overloaded))
        );
        assert_eq!((memory.shed(), memory.used()), ((1, 2), 1000));
        memory.observe(&mut shedder, Duration::ZERO, 100, 500);
        assert_eq!(memory.admit_request(), Ok(()));
    }

    #[test]
    fn who_keeps_more_looks_for_itself() {
        let identity = weft_engine::identity::Identity::new("cluster.local", "shop", "web").unwrap();
        let mut shared = std::sync::Arc::into_inner(crate::testing::shared(identity, Snapshot::default())).unwrap();
        shared.memory = Memory::new(Some(1));
        // Nobody watches.
        while !shared.memory.is_full(&shared) {
            std::thread::yield_now();
        }
        assert!(shared.memory.used() > 100_000);
    }

    #[tokio::test]
    async fn the_process_is_looked_at() {
        let identity = weft_engine::identity::Identity::new("cluster.local", "shop", "web").unwrap();
        let mut shared = std::sync::Arc::into_inner(crate::testing::shared(identity, Snapshot::default())).unwrap();
        shared.memory = Memory::new(Some(1));
        let looked = async {
            while !shared.memory.shedding() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = watch(&shared) => unreachable!(),
            () = looked => {}
        }
        assert!(shared.memory.used() > 100_000);
        assert_eq!(Memory::default().admit_request(), Ok(()));
    }
}
