//! Host names to addresses: answers are kept for their TTL and no longer, and asked for once however many wait.
//!
//! Invariants
//! - A hit is two atomic loads: no lock, no allocation.
//! - An answer is used past its TTL only while no name server answers at all, and for [`STALE`] at most. "No such name" is an answer.
//! - Names are bounded; the one used longest ago makes room.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::time::{Instant, timeout};
use weft_engine::reason::Reason;

use super::counters::{Counters, bump};
use crate::resolver::MarkedResolver;

/// Names remembered at most.
const MAX: usize = 1024;
/// A request waits so long for an answer.
const WAIT: Duration = Duration::from_secs(2);
/// A failure is not tried again before this.
const NEGATIVE: Duration = Duration::from_secs(1);
/// How long an answer may be used while no name server answers.
const STALE: Duration = Duration::from_mins(5);

/// One answer.
struct Answer {
    /// Empty: there is none.
    addresses: Arc<[IpAddr]>,
    valid_until: Instant,
    /// When a name server gave the addresses.
    fresh_until: Instant,
}

#[derive(Default)]
struct Known {
    answer: ArcSwapOption<Answer>,
    /// Held by the one who asks.
    asking: tokio::sync::Mutex<()>,
    last_used: AtomicU64,
}

impl Known {
    fn valid(&self) -> Option<Result<Arc<[IpAddr]>, Reason>> {
        let answer = self.answer.load();
        let answer = answer.as_ref().filter(|answer| Instant::now() < answer.valid_until)?;
        Some(if answer.addresses.is_empty() { Err(Reason::NameUnresolved) } else { Ok(Arc::clone(&answer.addresses)) })
    }
}

/// Host names and their addresses.
pub struct Names {
    resolver: MarkedResolver,
    known: ArcSwap<HashMap<Arc<str>, Arc<Known>>>,
}

impl Names {
    /// Asks by `resolver`.
    pub fn new(resolver: MarkedResolver) -> Self {
        Self { resolver, known: ArcSwap::default() }
    }

    /// Addresses of a host. `now` is the proxy's clock.
    pub async fn lookup(&self, host: &str, now: Duration, counters: &Counters) -> Result<Arc<[IpAddr]>, Reason> {
        let known = match self.known.load().get(host) {
            Some(known) => Arc::clone(known),
            None => self.remember(host, counters),
        };
        if known.last_used.load(Ordering::Relaxed) != now.as_secs() {
            known.last_used.store(now.as_secs(), Ordering::Relaxed);
        }
        match known.valid() {
            Some(answer) => answer,
            None => Box::pin(self.refresh(&known, host, counters)).await,
        }
    }

    async fn refresh(&self, known: &Known, host: &str, counters: &Counters) -> Result<Arc<[IpAddr]>, Reason> {
        let Ok(_asking) = timeout(WAIT, known.asking.lock()).await else { return Err(Reason::NameUnresolved) };
        // Another may have asked while we waited.
        if let Some(answer) = known.valid() {
            return answer;
        }
        bump(&counters.lookups);
        let now = Instant::now();
        let asked = timeout(WAIT, self.resolver.lookup_ip(absolute(host))).await;
        let answer = match asked {
            Ok(Ok(found)) => {
                let addresses: Arc<[IpAddr]> = found.iter().collect();
                let left = found.valid_until().saturating_duration_since(now.into_std());
                Answer { addresses, valid_until: now + left, fresh_until: now + left }
            }
            Ok(Err(error)) if error.is_nx_domain() || error.is_no_records_found() => {
                bump(&counters.lookup_failures);
                Answer { addresses: Arc::default(), valid_until: now + NEGATIVE, fresh_until: now }
            }
            failed => {
                bump(&counters.lookup_failures);
                tracing::debug!(host, error = ?failed.err().map_or("no answer in time".to_owned(), |e| e.to_string()), "look-up failed");
                stale(known, now, counters)
            }
        };
        let addresses = Arc::clone(&answer.addresses);
        known.answer.store(Some(Arc::new(answer)));
        if addresses.is_empty() { Err(Reason::NameUnresolved) } else { Ok(addresses) }
    }

    fn remember(&self, host: &str, counters: &Counters) -> Arc<Known> {
        let host: Arc<str> = host.into();
        let made = Arc::new(Known::default());
        let mut evicted = false;
        let before = self.known.rcu(|all| {
            evicted = false;
            let mut all = HashMap::clone(all);
            if all.contains_key(&host) {
                return all;
            }
            if all.len() >= MAX {
                let used = |known: &Known| known.last_used.load(Ordering::Relaxed);
                let oldest = all.iter().min_by_key(|(_, known)| used(known)).map(|(name, _)| Arc::clone(name));
                evicted = oldest.is_some_and(|oldest| all.remove(&oldest).is_some());
            }
            all.insert(Arc::clone(&host), Arc::clone(&made));
            all
        });
        if evicted {
            bump(&counters.evicted_hosts);
        }
        before.get(&host).map_or(made, Arc::clone)
    }

    /// Forgets names that were not asked for within `idle`.
    pub fn sweep(&self, now: Duration, idle: Duration) {
        let recent =
            |known: &Known| now.as_secs().saturating_sub(known.last_used.load(Ordering::Relaxed)) < idle.as_secs();
        if self.known.load().values().any(|known| !recent(known)) {
            self.known.rcu(|all| {
                all.iter()
                    .filter(|(_, known)| recent(known))
                    .map(|(name, known)| (Arc::clone(name), Arc::clone(known)))
                    .collect::<HashMap<_, _>>()
            });
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.known.load().len()
    }
}

/// What to say while no name server answers: what one said before, unless that is too long ago.
fn stale(known: &Known, now: Instant, counters: &Counters) -> Answer {
    let before = known.answer.load_full().filter(|old| !old.addresses.is_empty() && now < old.fresh_until + STALE);
    let Some(before) = before else {
        return Answer { addresses: Arc::default(), valid_until: now + NEGATIVE, fresh_until: now };
    };
    bump(&counters.lookups_stale);
    Answer { addresses: Arc::clone(&before.addresses), valid_until: now + NEGATIVE, fresh_until: before.fresh_until }
}

/// The name as an absolute one: search domains are the application's business, and an ExternalName is whole.
fn absolute(host: &str) -> String {
    if host.ends_with('.') { host.to_owned() } else { format!("{host}.") }
}
