//! Counters of requests and connections, one set for each tuple of labels.
//!
//! Invariants
//! - A series is found by comparing its whole label tuple.
//! - A series that somebody holds is never dropped, so no count is lost.
//! - There are at most `max` series beside the few that take the overflow.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::RwLock;
use weft_engine::reason::Reason;

use super::latency::{BUCKETS, Latency};
use super::{Direction, Tls, millis};

/// Classes of status codes: `1xx` to `5xx`.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// The labels of requests beyond the bound.
pub const OVERFLOW: &str = "_overflow";
/// The label `sni` of an application's own TLS that no hostname of a route names. No host name begins like this.
pub const OTHER: &str = "_other";
/// The store looks for idle series at most this often.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// The labels of a series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    /// Which way.
    pub direction: Direction,
    /// Who asks.
    pub source: Arc<str>,
    /// The service that is asked: `NAMESPACE/NAME`, or empty.
    pub destination: Arc<str>,
    /// The pod that answers: `NAMESPACE/POD`, or empty.
    pub destination_workload: Arc<str>,
    /// How the connection is protected.
    pub tls: Tls,
    /// Of an application's own TLS on its way out: the hostname of the route that took it, as it is written there, or [`OTHER`]. What clients
    /// ask for is never a label: they could make as many as they like.
    pub sni: Option<Arc<str>>,
}

/// Counters of one series. All of it is atomic words.
#[derive(Debug, Default)]
pub struct RequestSeries {
    classes: [AtomicU64; CLASSES.len()],
    latency: Latency,
    tcp_opened: AtomicU64,
    tcp_closed: AtomicU64,
    tcp_sent: AtomicU64,
    tcp_received: AtomicU64,
    // What `moves` was when the store looked last, and when it had changed last.
    seen_moves: AtomicU64,
    moved_at: AtomicU64,
}

impl RequestSeries {
    /// A request has ended. `took` runs from its head to the last byte of its response. Reasons are counted by
    /// [`super::Telemetry::refused`], so that they do not multiply the series.
    pub fn record(&self, status: StatusCode, _reason: Option<Reason>, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.latency.record(took);
    }

    /// A connection of opaque bytes stands.
    pub fn tcp_opened(&self) {
        self.tcp_opened.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended; bytes from the client (`sent`) and to it (`received`).
    pub fn tcp_closed(&self, sent: u64, received: u64) {
        self.tcp_sent.fetch_add(sent, Ordering::Relaxed);
        self.tcp_received.fetch_add(received, Ordering::Relaxed);
        self.tcp_closed.fetch_add(1, Ordering::Release);
    }

    /// Requests by class, in the order of [`CLASSES`].
    pub fn requests(&self) -> [u64; CLASSES.len()] {
        std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed))
    }

    /// The latency histogram: how many in each bucket (not cumulative), and the sum in seconds.
    pub fn latency(&self) -> ([u64; BUCKETS.len() + 1], f64) {
        self.latency.get()
    }

    /// Connections opened and closed, bytes sent and received.
    pub fn tcp(&self) -> [u64; 4] {
        // Closed before opened: a scrape must not see more ends than beginnings.
        let closed = self.tcp_closed.load(Ordering::Acquire);
        let opened = self.tcp_opened.load(Ordering::Relaxed);
        [opened, closed, self.tcp_sent.load(Ordering::Relaxed), self.tcp_received.load(Ordering::Relaxed)]
    }

    /// Grows with everything that is counted.
    fn moves(&self) -> u64 {
        let [opened, closed, ..] = self.tcp();
        self.latency.count() + opened + closed
    }

    /// Whether nothing has been counted for `idle`, by the looks of the store.
    fn is_idle(&self, now: Duration, idle: Duration) -> bool {
        let moves = self.moves();
        if self.seen_moves.swap(moves, Ordering::Relaxed) != moves {
            self.moved_at.store(millis(now), Ordering::Relaxed);
            return false;
        }
        now.saturating_sub(Duration::from_millis(self.moved_at.load(Ordering::Relaxed))) > idle
    }
}

/// All series.
#[derive(Debug)]
pub struct Store {
    max: usize,
    idle: Duration,
    all: RwLock<HashMap<SeriesKey, Arc<RequestSeries>>>,
    overflow: RwLock<HashMap<SeriesKey, Arc<RequestSeries>>>,
    swept_at: AtomicU64,
}

impl Store {
    /// Empty.
    pub fn new(max: usize, idle: Duration) -> Self {
        Self { max, idle, all: RwLock::default(), overflow: RwLock::default(), swept_at: AtomicU64::new(0) }
    }

    /// The series of these labels, and whether it is the one that takes the overflow.
    pub fn get(&self, key: &SeriesKey, now: Duration) -> (Arc<RequestSeries>, bool) {
        if let Some(series) = self.all.read().get(key) {
            return (Arc::clone(series), false);
        }
        let mut all = self.all.write();
        if let Some(series) = all.get(key) {
            return (Arc::clone(series), false);
        }
        if all.len() >= self.max {
            self.sweep_locked(&mut all, now);
        }
        if all.len() >= self.max {
            drop(all);
            return (self.overflow_of(key), true);
        }
        let series = Arc::new(RequestSeries::default());
        series.moved_at.store(millis(now), Ordering::Relaxed);
        all.insert(key.clone(), Arc::clone(&series));
        (series, false)
    }

    fn overflow_of(&self, key: &SeriesKey) -> Arc<RequestSeries> {
        let other: Arc<str> = OVERFLOW.into();
        let key = SeriesKey {
            direction: key.direction,
            source: Arc::clone(&other),
            destination: Arc::clone(&other),
            destination_workload: other,
            tls: key.tls,
            sni: None,
        };
        Arc::clone(self.overflow.write().entry(key).or_default())
    }

    /// Forgets series that have been idle and that nobody holds.
    pub fn sweep(&self, now: Duration) {
        self.sweep_locked(&mut self.all.write(), now);
    }

    fn sweep_locked(&self, all: &mut HashMap<SeriesKey, Arc<RequestSeries>>, now: Duration) {
        let last = Duration::from_millis(self.swept_at.load(Ordering::Relaxed));
        if now.saturating_sub(last) < SWEEP_EVERY {
            return;
        }
        self.swept_at.store(millis(now), Ordering::Relaxed);
        // Who gets a series does so under this lock: a count of one stays one.
        all.retain(|_, series| !series.is_idle(now, self.idle) || Arc::strong_count(series) > 1);
    }

    /// All series with their labels, in no order.
    pub fn all(&self) -> Vec<(SeriesKey, Arc<RequestSeries>)> {
        let mut all: Vec<_> = self.all.read().iter().map(|(key, series)| (key.clone(), Arc::clone(series))).collect();
        all.extend(self.overflow.read().iter().map(|(key, series)| (key.clone(), Arc::clone(series))));
        all
    }

    /// How many there are, the overflow's left out.
    pub fn len(&self) -> usize {
        self.all.read().len()
    }

    /// None yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &str, destination: &str) -> SeriesKey {
        SeriesKey {
            direction: Direction::Inbound,
            source: source.into(),
            destination: destination.into(),
            destination_workload: "shop/web-0".into(),
            tls: Tls::Mtls,
            sni: None,
        }
    }

    const IDLE: Duration = Duration::from_mins(15);

    #[test]
    fn values_that_run_together_are_two_series() {
        // The crate's vectors hash the values one after the other and take these two for one (reference/deps.md section 7).
        let store = Store::new(10, IDLE);
        let (one, _) = store.get(&key("team-a", "b"), Duration::ZERO);
        let (other, _) = store.get(&key("team-", "ab"), Duration::ZERO);
        one.record(StatusCode::OK, None, Duration::from_millis(3));
        assert_eq!(one.requests(), [0, 1, 0, 0, 0]);
        assert_eq!(other.requests(), [0; 5]);
        assert_eq!(store.len(), 2);
        let (again, _) = store.get(&key("team-a", "b"), Duration::ZERO);
        assert!(Arc::ptr_eq(&one, &again));
    }

    #[test]
    fn odd_statuses_stay_within_the_classes() {
        let series = RequestSeries::default();
        for status in [100, 204, 301, 499, 599, 600, 999] {
            series.record(StatusCode::from_u16(status).unwrap(), None, Duration::ZERO);
        }
        assert_eq!(series.requests(), [1, 1, 1, 1, 3]);
    }

    #[test]
    fn beyond_the_bound_all_share_one_series() {
        let store = Store::new(2, IDLE);
        for name in ["a", "b"] {
            assert!(!store.get(&key(name, "x"), Duration::ZERO).1);
        }
        let (c, overflowed) = store.get(&key("c", "x"), Duration::ZERO);
        assert!(overflowed);
        let (d, _) = store.get(&key("d", "y"), Duration::ZERO);
        assert!(Arc::ptr_eq(&c, &d));
        assert_eq!(store.len(), 2);
        assert!(store.all().iter().any(|(key, _)| &*key.source == OVERFLOW && &*key.destination == OVERFLOW));
        // A known one still finds its own.
        assert!(!store.get(&key("a", "x"), Duration::ZERO).1);
    }

    #[test]
    fn idle_series_are_forgotten_unless_somebody_holds_them() {
        let store = Store::new(10, IDLE);
        let (held, _) = store.get(&key("held", "x"), Duration::ZERO);
        for name in ["idle", "busy"] {
            store.get(&key(name, "x"), Duration::ZERO).0.record(StatusCode::OK, None, Duration::ZERO);
        }
        store.sweep(Duration::from_mins(2));
        let late = Duration::from_mins(2) + IDLE;
        store.get(&key("busy", "x"), late).0.tcp_opened();
        store.sweep(late + Duration::from_mins(1));
        let mut names: Vec<_> = store.all().iter().map(|(key, _)| key.source.to_string()).collect();
        names.sort_unstable();
        assert_eq!(names, ["busy", "held"]);
        drop(held);
    }

    #[test]
    fn a_full_store_makes_room_by_what_is_idle() {
        let store = Store::new(1, IDLE);
        store.get(&key("old", "x"), Duration::ZERO);
        store.sweep(Duration::from_mins(1));
        let (_, overflowed) = store.get(&key("new", "x"), Duration::from_mins(2) + IDLE);
        assert!(!overflowed);
        assert_eq!(store.len(), 1);
    }
}
