//! A limit with its counters by key, and what it tells clients.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Cell, Decision, Rate};
use crate::authz::Readings;
use crate::identity::Identity;
use crate::request::RequestView;
use crate::route::Match;

/// Keys of one limiter, unless told otherwise.
pub const DEFAULT_MAX_KEYS: usize = 10_000;
/// A full table is swept at most this often: a sweep looks at every key.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Everybody's.
    Service,
    /// Each client identity's; plain clients are counted together.
    ClientIdentity,
}

/// A limit of a policy. A clone shares the counters.
#[derive(Clone, Debug)]
pub struct Limiter {
    /// The limit's name, as clients see it.
    pub name: Arc<str>,
    /// How often.
    pub rate: Rate,
    /// Counted for whom.
    pub key: Key,
    /// Any of these; none means every request.
    pub matches: Vec<Match>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Counters {
    max_keys: usize,
    // All of `Key::Service`, and plain clients of `Key::ClientIdentity`.
    common: Arc<Cell>,
    // Identities that found the table full.
    overflow: Arc<Cell>,
    keyed: Mutex<Keyed>,
    bound_hits: AtomicU64,
    // The latest time that anybody told, in nanoseconds.
    latest: AtomicU64,
}

#[derive(Debug, Default)]
struct Keyed {
    cells: HashMap<Identity, Arc<Cell>>,
    swept: Option<Duration>,
}

impl Limiter {
    /// A limit with fresh counters.
    pub fn new(name: impl Into<Arc<str>>, rate: Rate, key: Key, matches: Vec<Match>) -> Self {
        Self::with_max_keys(name, rate, key, matches, DEFAULT_MAX_KEYS)
    }

    /// As [`Self::new`], with a bound on the number of keys.
    pub fn with_max_keys(
        name: impl Into<Arc<str>>,
        rate: Rate,
        key: Key,
        matches: Vec<Match>,
        max_keys: usize,
    ) -> Self {
        let counters = Counters {
            max_keys,
            common: Arc::default(),
            overflow: Arc::default(),
            keyed: Mutex::default(),
            bound_hits: AtomicU64::new(0),
            latest: AtomicU64::new(0),
        };
        Self { name: name.into(), rate, key, matches, counters: Arc::new(counters) }
    }

    /// This limit with the counters of its predecessor, so that an edit of a policy resets nobody's allowance.
    #[must_use]
    pub fn keeping(mut self, old: &Self) -> Self {
        if self.key == old.key {
            self.counters = Arc::clone(&old.counters);
        }
        self
    }

    /// Whether it counts a request. The path is read in every way that an application may read it: no spelling escapes a limit.
    pub fn applies(&self, request: &RequestView<'_>) -> bool {
        if self.matches.is_empty() {
            return true;
        }
        let readings = Readings::of(request.path);
        self.matches.iter().any(|wanted| wanted.matches_any(request, &readings))
    }

    /// The cell of a client. Look it up once a connection and keep it: a kept cell is never evicted.
    pub fn cell(&self, peer: Option<&Identity>) -> Arc<Cell> {
        self.cell_at(peer, Duration::from_nanos(self.counters.latest.load(Ordering::Relaxed)))
    }

    /// As [`Self::cell`], with the time, by which a full table knows the cells that it can forget.
    pub fn cell_at(&self, peer: Option<&Identity>, now: Duration) -> Arc<Cell> {
        self.tell(now);
        match peer {
            Some(peer) if self.key == Key::ClientIdentity => self.counters.keyed(peer, now),
            _ => Arc::clone(&self.counters.common),
        }
    }

    /// Counts one request: [`Rate::check`].
    pub fn check(&self, cell: &Cell, now: Duration) -> Decision {
        self.tell(now);
        self.rate.check(cell, now)
    }

    /// How often a client found the table of keys full and was counted with others.
    pub fn bound_hits(&self) -> u64 {
        self.counters.bound_hits.load(Ordering::Relaxed)
    }

    /// Keys held.
    pub fn keys(&self) -> usize {
        self.counters.keyed.lock().cells.len()
    }

    /// Value of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers): `"name";q=100;w=60`. The window is left out if it is
    /// no whole number of seconds.
    pub fn policy_header(&self) -> String {
        let Rate { requests, per, .. } = self.rate;
        if per.subsec_nanos() == 0 {
            format!("\"{}\";q={requests};w={}", self.name, per.as_secs())
        } else {
            format!("\"{}\";q={requests}", self.name)
        }
    }

    /// Value of `RateLimit`: `"name";r=50;t=30`, seconds rounded up.
    pub fn status_header(&self, decision: &Decision) -> String {
        let (remaining, time) = match *decision {
            Decision::Admit { remaining, reset } => (remaining, reset),
            Decision::Limit { retry_after } => (0, retry_after),
        };
        format!("\"{}\";r={remaining};t={}", self.name, whole_seconds(time))
    }

    fn tell(&self, now: Duration) {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        // A plain load first: most calls find it newer or equal within the same request, and then write nothing.
        if self.counters.latest.load(Ordering::Relaxed) < now {
            self.counters.latest.fetch_max(now, Ordering::Relaxed);
        }
    }
}

/// Seconds rounded up, at least 1: the value of `Retry-After`.
pub fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

impl Counters {
    fn keyed(&self, peer: &Identity, now: Duration) -> Arc<Cell> {
        let mut keyed = self.keyed.lock();
        if let Some(cell) = keyed.cells.get(peer) {
            return Arc::clone(cell);
        }
        if keyed.cells.len() >= self.max_keys {
            keyed.sweep(now);
        }
        if keyed.cells.len() >= self.max_keys {
            self.bound_hits.fetch_add(1, Ordering::Relaxed);
            return Arc::clone(&self.overflow);
        }
        let cell = Arc::new(Cell::default());
        keyed.cells.insert(peer.clone(), Arc::clone(&cell));
        cell
    }
}

impl Keyed {
    /// Forgets the cells that a fresh one would equal and that no connection holds.
    fn sweep(&mut self, now: Duration) {
        if self.swept.is_some_and(|last| now.saturating_sub(last) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.cells.retain(|_, cell| Arc::strong_count(cell) > 1 || !cell.is_whole(now));
    }
}
