//! What is counted and logged.
//!
//! - [`series`]: requests and connections, by a store of our own that compares whole label tuples.
//! - [`access`]: the access log; [`audit`]: who was not whom he had to be.
//! - [`counters`]: what is counted by labels known beforehand; [`handshakes`]: TLS among it. [`latency`]: how long things took.
//!   [`process`]: what the process costs.
//! - [`scrape`]: how all of it, with what the other rooms count, becomes Prometheus's text; [`families`] has the words for it.
//!
//! Invariants
//! - Recording is atomics only; handles are resolved beforehand.
//! - Two series never share a counter unless all their labels are equal: the crate's vectors hash the concatenation of label values
//!   and are not used where a label names a workload.
//! - Series are bounded; beyond the bound requests are counted in one series labelled `_overflow`.

pub mod access;
pub mod audit;
pub mod counters;
pub mod families;
pub mod handshakes;
pub mod latency;
pub mod process;
pub mod scrape;
pub mod series;
mod tables;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use weft_engine::reason::Reason;

pub use self::access::AccessRecord;
use self::access::{AccessLog, Sink};
use self::audit::Audit;
use self::counters::{Bounds, Refusals, Retirements};
use self::handshakes::Handshakes;
use self::series::Store;
pub use self::series::{OTHER, RequestSeries, SeriesKey};
use crate::Clock;
use crate::http::mirror::Mirrors;

/// Which way a request goes, seen from the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To our application.
    Inbound,
    /// From our application.
    Outbound,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How a connection between workloads is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tls {
    /// Mutual TLS between sidecars.
    Mtls,
    /// A plain connection to a port that permits it.
    Plain,
    /// To a destination outside the mesh.
    Unmeshed,
    /// No connection: this proxy has answered by itself.
    None,
}

impl Tls {
    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Plain => "plain",
            Self::Unmeshed => "unmeshed",
            Self::None => "none",
        }
    }
}

/// Bounds and outlets of telemetry.
#[derive(Debug)]
pub struct Settings {
    /// Our own identity, for the access log.
    pub source: Arc<str>,
    /// Series of requests at most.
    pub max_series: usize,
    /// A series that has not moved for so long, and that nobody holds, is forgotten.
    pub idle_series: Duration,
    /// Share of good requests that the access log keeps.
    pub sample: f64,
    /// Where the access log goes.
    pub sink: Sink,
}

impl Settings {
    /// Defaults; no access log.
    pub fn quiet() -> Self {
        Self {
            source: "".into(),
            max_series: 10_000,
            idle_series: Duration::from_mins(15),
            sample: 0.0,
            sink: Sink::None,
        }
    }
}

/// Counts and logs; one a proxy.
pub struct Telemetry {
    clock: Clock,
    series: Store,
    refusals: Refusals,
    bounds: Bounds,
    log: AccessLog,
    audit: Audit,
    // By direction. Signed, since a beginning and its end may be seen in either order.
    in_flight: [AtomicI64; 2],
    unmeshed: AtomicU64,
    /// TLS handshakes of the mesh.
    pub(crate) handshakes: Handshakes,
    /// Idle HTTP/1 connections that the server ended before we did.
    pub(crate) idle_closed: Arc<AtomicU64>,
    /// Attempts that a route's `retry` has asked for.
    pub(crate) retries: AtomicU64,
    /// Copies of requests.
    pub(crate) mirrors: Mirrors,
    /// The application's DNS, where it is captured.
    pub(crate) dns: Arc<crate::dns::Counters>,
    /// Connections of the mesh that were ended although nothing was wrong with them.
    pub(crate) retired: Arc<Retirements>,
    /// Milliseconds of the clock, plus one, at which a plain client was seen last; 0 is never.
    plain_seen: AtomicU64,
}

impl Telemetry {
    /// Starts the access log's writer, if there is a log.
    ///
    /// # Errors
    /// The log's file or its thread could not be made.
    pub fn new(settings: Settings, clock: Clock) -> std::io::Result<Self> {
        let log = AccessLog::new(Arc::clone(&settings.source), settings.sample, settings.sink.clone())?;
        Ok(Self::with_log(settings, log, clock))
    }

    /// Counts, and logs nothing: for tests.
    pub fn quiet(clock: Clock) -> Self {
        Self::with_log(Settings::quiet(), AccessLog::none(), clock)
    }

    fn with_log(settings: Settings, log: AccessLog, clock: Clock) -> Self {
        Self {
            series: Store::new(settings.max_series, settings.idle_series),
            refusals: Refusals::default(),
            bounds: Bounds::default(),
            log,
            audit: Audit::default(),
            in_flight: Default::default(),
            unmeshed: AtomicU64::new(0),
            handshakes: Handshakes::default(),
            idle_closed: Arc::default(),
            retries: AtomicU64::new(0),
            mirrors: Mirrors::default(),
            dns: Arc::default(),
            retired: Arc::default(),
            plain_seen: AtomicU64::new(0),
            clock,
        }
    }

    /// The counters of requests and connections of this kind. Resolve once and keep: a series that is held is never forgotten.
    pub fn request_series(&self, key: &SeriesKey) -> Arc<RequestSeries> {
        let now = self.clock.now();
        if key.direction == Direction::Inbound && key.tls == Tls::Plain {
            self.plain_seen.store(millis(now) + 1, Ordering::Relaxed);
        }
        let (series, overflowed) = self.series.get(key, now);
        if overflowed {
            self.bound_hit("series");
        }
        series
    }

    /// Counts a refusal: by this proxy, or of a connection that never became a request.
    pub fn refused(&self, direction: Direction, reason: Reason) {
        self.refusals.add(direction, reason);
    }

    /// How many of our own application's clients were refused for that.
    #[cfg(test)]
    pub(crate) fn refusals(&self, reason: Reason) -> u64 {
        self.refusals.get(Direction::Inbound, reason)
    }

    /// Counts that a bound was hit.
    pub fn bound_hit(&self, bound: &'static str) {
        self.bounds.add(bound);
    }

    /// How often a bound was hit.
    #[cfg(test)]
    pub(crate) fn bound_hits(&self, bound: &str) -> u64 {
        self.bounds.all().into_iter().filter(|(name, _)| *name == bound).map(|(_, hits)| hits).sum()
    }

    /// Logs a request or connection: failures always, others by sample.
    pub fn access(&self, record: AccessRecord<'_>) {
        self.log.write(&record);
    }

    /// A request has begun; [`Self::ended`] is called for each.
    pub fn begun(&self, direction: Direction) {
        self.in_flight[direction as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub fn ended(&self, direction: Direction) {
        self.in_flight[direction as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests that have not ended.
    pub fn requests_in_flight(&self, direction: Direction) -> i64 {
        self.in_flight[direction as usize].load(Ordering::Relaxed).max(0)
    }

    /// Counts a connection of our application to a destination outside the mesh.
    pub fn unmeshed(&self) {
        self.unmeshed.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets series that nobody uses any more. To be called every minute or so.
    pub fn sweep(&self) {
        self.series.sweep(self.clock.now());
    }

    /// Waits until what was logged is written, at most `wait`.
    pub fn flush(&self, wait: Duration) {
        self.log.flush(wait);
    }

    /// How long ago a plain connection came in; `None` if none has.
    pub fn since_plain(&self) -> Option<Duration> {
        let seen = self.plain_seen.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.clock.now().saturating_sub(Duration::from_millis(seen)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX - 1)
}
