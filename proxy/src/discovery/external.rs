//! Endpoints outside the mesh, by address: what is learnt of them lives as long as they are called.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::address::canonical;
use super::snapshot::Endpoint;

/// Addresses remembered at most.
const MAX: usize = 1024;

struct Known {
    endpoint: Arc<Endpoint>,
    last_used: AtomicU64,
}

/// Plain endpoints that were called.
#[derive(Default)]
pub struct Externals(RwLock<HashMap<SocketAddr, Known>>);

impl Externals {
    /// The endpoint at an address, and whether another one had to be forgotten for it.
    pub fn get(&self, addr: SocketAddr, now: Duration) -> (Arc<Endpoint>, bool) {
        let addr = canonical(addr);
        if let Some(known) = self.0.read().get(&addr) {
            known.last_used.store(now.as_secs(), Ordering::Relaxed);
            return (Arc::clone(&known.endpoint), false);
        }
        let mut all = self.0.write();
        let mut evicted = false;
        if all.len() >= MAX && !all.contains_key(&addr) {
            let oldest = all.iter().min_by_key(|(_, known)| known.last_used.load(Ordering::Relaxed)).map(|(at, _)| *at);
            evicted = oldest.is_some_and(|oldest| all.remove(&oldest).is_some());
        }
        let known = all.entry(addr).or_insert_with(|| Known {
            endpoint: Arc::new(Endpoint::plain(addr, false, now)),
            last_used: AtomicU64::new(now.as_secs()),
        });
        (Arc::clone(&known.endpoint), evicted)
    }

    /// Forgets those that were not called for `idle`.
    pub fn sweep(&self, now: Duration, idle: Duration) {
        let recent =
            |known: &Known| now.as_secs().saturating_sub(known.last_used.load(Ordering::Relaxed)) < idle.as_secs();
        // A look first: most sweeps find nothing, and then nobody waits.
        if self.0.read().values().any(|known| !recent(known)) {
            self.0.write().retain(|_, known| recent(known));
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.read().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(n: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (n / 256) as u8, (n % 256) as u8], 80))
    }

    #[test]
    fn what_is_called_stays_and_the_rest_goes() {
        let all = Externals::default();
        let second = Duration::from_secs(1);
        let (first, _) = all.get(addr(0), second);
        let mapped = SocketAddr::new("::ffff:10.0.0.0".parse().unwrap(), 80);
        assert!(Arc::ptr_eq(&first, &all.get(mapped, second).0), "one address, however it is written");
        for n in 1..MAX {
            assert!(!all.get(addr(n), second * 2).1);
        }
        all.get(addr(0), second * 3);
        assert!(all.get(addr(MAX), second * 3).1, "the bound is told");
        assert_eq!(all.len(), MAX);
        assert!(Arc::ptr_eq(&first, &all.get(addr(0), second * 3).0), "the one used last is kept");
        all.sweep(second * 10, second * 8);
        assert_eq!(all.len(), 2);
    }
}
