//! A question to its answer: from the cache, or by asking once, however many wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::cache::{Answer, Cache, Found, Key};
use super::{Counters, Zone, count, upstream};

/// Questions to name servers at once.
pub const MAX_FLIGHTS: usize = 512;
/// How long somebody waits for whom there is a stale answer (RFC 8767 names 1.8 s; a resolver in the pod need not wait so long).
const STALE_AFTER: Duration = Duration::from_secs(1);
/// After no name server has answered, stale answers are given at once for so long.
const RECHECK: Duration = Duration::from_secs(5);

type Outcome = watch::Receiver<Option<Arc<Answer>>>;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The cache, within its time.
    Cache,
    /// A name server.
    Asked,
    /// The cache, beyond its time.
    Stale,
}

/// The cache and what is being asked.
pub struct Resolver {
    /// Whom to ask, and what an unqualified name may mean.
    pub zone: Zone,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Says that a bound was hit.
    pub bound_hit: Arc<dyn Fn(&'static str) + Send + Sync>,
    mark: Option<u32>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    flights: HashMap<Key, Outcome>,
    /// Until then nobody is waited for.
    away: Option<Instant>,
}

impl Resolver {
    /// Knows nothing yet.
    pub fn new(
        zone: Zone,
        mark: Option<u32>,
        counters: Arc<Counters>,
        bound_hit: Arc<dyn Fn(&'static str) + Send + Sync>,
    ) -> Self {
        Self { zone, counters, bound_hit, mark, state: Mutex::default() }
    }

    /// The answer, and where it came from; a failure if nobody can be asked.
    pub async fn resolve(self: &Arc<Self>, key: &Key) -> (Arc<Answer>, From) {
        let (stale, mut outcome, away) = {
            let mut state = self.state.lock();
            let stale = match state.cache.get(key, Instant::now().into_std()) {
                Found::Fresh(answer) => return (Arc::new(answer), From::Cache),
                Found::Stale(answer) => Some(Arc::new(answer)),
                Found::Nothing => None,
            };
            let away = state.away.is_some_and(|until| Instant::now() < until);
            match self.join(&mut state, key) {
                Some(outcome) => (stale, outcome, away),
                None => {
                    return stale.map_or((Arc::new(Answer::failure()), From::Asked), |answer| (answer, From::Stale));
                }
            }
        };
        let patience = if away { Duration::ZERO } else { STALE_AFTER };
        let arrived = match &stale {
            Some(_) => timeout(patience, outcome.wait_for(Option::is_some)).await.ok(),
            None => Some(outcome.wait_for(Option::is_some).await),
        };
        let answer = arrived.and_then(Result::ok).and_then(|answer| answer.clone());
        match (answer, stale) {
            (Some(answer), stale) if known(&answer) || stale.is_none() => (answer, From::Asked),
            (_, Some(stale)) => (stale, From::Stale),
            (_, None) => (Arc::new(Answer::failure()), From::Asked),
        }
    }

    /// The question that is in flight, or a new one; `None`: there are too many.
    fn join(self: &Arc<Self>, state: &mut State, key: &Key) -> Option<Outcome> {
        if let Some(outcome) = state.flights.get(key) {
            return Some(outcome.clone());
        }
        if state.flights.len() >= MAX_FLIGHTS {
            (self.bound_hit)("dns_flights");
            return None;
        }
        let (said, outcome) = watch::channel(None);
        state.flights.insert(key.clone(), outcome.clone());
        let (this, key) = (Arc::clone(self), key.clone());
        // It goes on when nobody waits any more: its answer is kept for the next.
        tokio::spawn(async move {
            let answer = upstream::ask(&this.zone.servers, this.mark, &key, &this.counters).await;
            let nobody = answer.is_none();
            let answer = Arc::new(answer.unwrap_or_else(Answer::failure));
            let mut state = this.state.lock();
            state.flights.remove(&key);
            let now = Instant::now();
            state.away = nobody.then_some(now + RECHECK);
            state.cache.put(key, Arc::clone(&answer), now.into_std());
            this.counters.entries.store(state.cache.len() as u64, Ordering::Relaxed);
            drop(state);
            let _ = said.send(Some(answer));
        });
        Some(outcome)
    }

    /// Counts where an answer came from.
    pub fn counted(&self, answer: &Answer, from: From) {
        count(match from {
            _ if !known(answer) => &self.counters.failed,
            From::Cache => &self.counters.cached,
            From::Asked => &self.counters.asked,
            From::Stale => &self.counters.stale,
        });
    }
}

fn known(answer: &Answer) -> bool {
    matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain)
}
