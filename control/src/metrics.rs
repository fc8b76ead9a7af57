//! Control's own metrics, in one registry; scraped on 15014.
//!
//! Labels have few values that are known beforehand, one label a metric: the crate's vectors keep label values apart only then. (Two have
//! two; tests of `source` and of [`crate::issue::cause`] show that no two of their series are taken for one.)

mod ca;
mod leader;
mod replicas;
mod sample;
mod source;
mod told;
mod webhook;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use weft_api::convert::ErrorCode;
use weft_api::names::short_type;

pub use self::ca::CaMetrics;
pub use self::leader::LeaderMetrics;
pub use self::replicas::ReplicaMetrics;
pub use self::sample::Sample;
pub use self::source::SourceMetrics;
pub use self::told::ToldMetrics;
pub use self::webhook::WebhookMetrics;
use crate::compile::{Changes, Compiled};
use crate::distribute::session::Heard;
use crate::sources::files::Loaded;

/// All metrics.
#[derive(Debug)]
#[allow(missing_docs)] // Each has its help text below.
pub struct Metrics {
    registry: Registry,
    pub streams: IntGauge,
    pub topics: IntGauge,
    resources: IntGaugeVec,
    draining: IntGauge,
    unresolved: IntGauge,
    compile_seconds: Histogram,
    recomputed: IntCounter,
    changed: IntCounter,
    pushes: IntCounterVec,
    pushed_resources: IntCounterVec,
    removed: IntCounter,
    bytes: IntCounterVec,
    acks: IntCounter,
    nacks: IntCounterVec,
    convergence_seconds: Histogram,
    pub told: ToldMetrics,
    bounds: IntCounterVec,
    pub issued: IntCounterVec,
    pub refused: IntCounterVec,
    pub used_tokens: IntGauge,
    pub key_reads: IntCounterVec,
    pub webhook: WebhookMetrics,
    pub federation_reads: IntCounterVec,
    pub federation_read: IntGaugeVec,
    pub federation_broken: IntGauge,
    pub bundle_answers: IntCounter,
    pub token_reviews: IntCounterVec,
    pub revoked: IntGauge,
    pub revocations_broken: IntGauge,
    pub control_not_after: IntGauge,
    pub ca: CaMetrics,
    pub connections: IntGauge,
    pub replicas: ReplicaMetrics,
    pub handshake_failures: IntCounter,
    pub source: SourceMetrics,
    pub leader: LeaderMetrics,
    pub saved_errors: IntCounter,
    skipped: IntGauge,
    reloads: IntCounter,
    source_bounds: AtomicU64,
}

const CONVERGENCE: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// A count as the crate's gauges take it.
fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Registers under `weft_control_NAME`.
struct Make<'r>(&'r Registry);

impl Make<'_> {
    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        let made = IntGauge::new(format!("weft_control_{name}"), help)?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntGaugeVec> {
        let made = IntGaugeVec::new(Opts::new(format!("weft_control_{name}"), help), &[label])?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        let made = IntCounter::new(format!("weft_control_{name}"), help)?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        self.counters_by(name, help, &[label])
    }

    fn counters_by(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        let made = IntCounterVec::new(Opts::new(format!("weft_control_{name}"), help), labels)?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn histogram(&self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        let options = HistogramOpts::new(format!("weft_control_{name}"), help).buckets(CONVERGENCE.to_vec());
        let made = Histogram::with_opts(options)?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }
}

impl Metrics {
    /// Registers all of them; fails only if two have one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let make = Make(&registry);
        let build = make.gauges("build_info", "1, labelled with the version of control.", "version")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            streams: make.gauge("connected_proxies", "Open discovery streams.")?,
            topics: make.gauge("subscribed_topics", "Names, addresses and services that some proxy listens to.")?,
            resources: make.gauges("resources", "Compiled resources by type; addresses are made on demand.", "type")?,
            draining: make.gauge("draining_workloads", "Workloads that have said that they leave.")?,
            unresolved: make.gauge("unresolved_endpoints", "Endpoints left out because their pod is not known.")?,
            compile_seconds: make.histogram("compile_duration_seconds", "Time to compile a change.")?,
            recomputed: make
                .counter("recomputed_total", "Resources that a change made again, whether or not they came out as they were.")?,
            changed: make.counter("resources_changed_total", "Resources that a change made new, different or gone.")?,
            pushes: make.counters("pushes_total", "Responses sent, by the type they answer for.", "type")?,
            pushed_resources: make.counters(
                "pushed_resources_total",
                "Resources sent, by the type of the response.",
                "type",
            )?,
            removed: make.counter("pushed_removals_total", "Removals sent.")?,
            bytes: make.counters(
                "pushed_bytes_total",
                "Bytes of responses sent, before TLS, by the type they answer for.",
                "type",
            )?,
            acks: make.counter("acks_total", "Responses acknowledged, in whole or in part.")?,
            nacks: make.counters(
                "nacks_total",
                "Resources refused by a proxy, by code; `response` is a whole one.",
                "code",
            )?,
            convergence_seconds: make.histogram(
                "convergence_duration_seconds",
                "Time from a change in the tables until one proxy has acknowledged it.",
            )?,
            told: ToldMetrics::new(&make)?,
            bounds: make.counters("bound_hits_total", "How often a bound refused something, by bound.", "bound")?,
            issued: make.counters(
                "certificates_issued_total",
                "Certificates issued to workloads, by proof.",
                "method",
            )?,
            refused: make.counters_by(
                "certificates_refused_total",
                "Certificate requests refused, by cause and proof.",
                &["cause", "method"],
            )?,
            used_tokens: make.gauge("used_tokens", "Used join tokens that are remembered.")?,
            webhook: WebhookMetrics::new(&make)?,
            key_reads: make.counters(
                "identity_key_reads_total",
                "Readings of the public keys of token issuers, by what became of them.",
                "outcome",
            )?,
            federation_reads: make.counters(
                "federation_reads_total",
                "Readings of the bundle endpoints of other trust domains, by what became of them.",
                "outcome",
            )?,
            federation_read: make.gauges(
                "federation_read_timestamp_seconds",
                "When the roots of a trust domain were last read from its endpoint, in seconds since 1970; 0: not since the start.",
                "trust_domain",
            )?,
            federation_broken: make.gauge(
                "federation_broken",
                "1 while the list of --federation cannot be used; what it said before goes on.",
            )?,
            bundle_answers: make.counter("bundle_answers_total", "How often our roots were given to other meshes.")?,
            token_reviews: make.counters(
                "token_reviews_total",
                "Questions to the API server about tokens, by what became of them.",
                "outcome",
            )?,
            revoked: make.gauge("revoked_entries", "Identities and certificates that are revoked now.")?,
            revocations_broken: make.gauge(
                "revocations_broken",
                "1 while the file of --revoked cannot be used; who was revoked before is revoked still.",
            )?,
            ca: CaMetrics::new(&make)?,
            control_not_after: make.gauge(
                "certificate_expiry_timestamp_seconds",
                "When control's own certificate ends, in seconds since 1970.",
            )?,
            replicas: ReplicaMetrics::new(&make)?,
            connections: make.gauge("connections", "Open connections to the discovery port.")?,
            handshake_failures: make
                .counter("handshake_failures_total", "TLS handshakes that failed or took too long.")?,
            source: SourceMetrics::new(&make)?,
            leader: LeaderMetrics::new(&make)?,
            saved_errors: make.counter(
                "saved_errors_total",
                "Reads and writes of the last good versions in the state directory that failed.",
            )?,
            skipped: make.gauge("source_skipped_objects", "Objects of kinds that control does not read.")?,
            reloads: make.counter("source_loads_total", "How often the source gave a new state.")?,
            source_bounds: AtomicU64::new(0),
            registry,
        })
    }

    /// A change was compiled.
    pub fn compiled(&self, took: Duration, compiled: &Compiled, changes: &Changes, draining: usize) {
        self.compile_seconds.observe(took.as_secs_f64());
        self.recomputed.inc_by(changes.recomputed as u64);
        self.changed.inc_by(changes.len() as u64);
        self.draining.set(whole(draining));
        self.unresolved.set(whole(compiled.unresolved_count()));
        for (type_url, count) in compiled.counts() {
            self.resources.with_label_values(&[short_type(type_url)]).set(whole(*count));
        }
    }

    /// The source gave a new state.
    pub fn loaded(&self, loaded: &Loaded) {
        self.reloads.inc();
        self.skipped.set(whole(usize::try_from(loaded.skipped.values().sum::<u64>()).unwrap_or(usize::MAX)));
        self.bound("source", loaded.bounds_hit.saturating_sub(self.source_bounds.swap(loaded.bounds_hit, Relaxed)));
    }

    /// A response was sent.
    pub fn pushed(&self, response_type: &str, resources: usize, removed: usize, bytes: usize) {
        self.pushes.with_label_values(&[response_type]).inc();
        self.pushed_resources.with_label_values(&[response_type]).inc_by(resources as u64);
        self.removed.inc_by(removed as u64);
        self.bytes.with_label_values(&[response_type]).inc_by(bytes as u64);
    }

    /// A request came.
    pub fn heard(&self, heard: &Heard) {
        if heard.acked {
            self.acks.inc();
        }
        for nack in &heard.nacks {
            self.nacks.with_label_values(&[Self::code(&nack.code)]).inc();
        }
        if let Some(took) = heard.converged {
            self.convergence_seconds.observe(took.as_secs_f64());
        }
    }

    /// Codes that this build does not know are counted as `other`: a proxy must not be able to make series.
    fn code(code: &str) -> &str {
        let known = code == "response" || ErrorCode::ALL.iter().any(|known| known.code() == code);
        if known { code } else { "other" }
    }

    /// A bound was hit so many times.
    pub fn bound(&self, bound: &'static str, times: u64) {
        if times > 0 {
            self.bounds.with_label_values(&[bound]).inc_by(times);
        }
    }

    /// Gauges and counters whose names begin so, as they are now.
    pub fn samples(&self, begins: &str) -> Vec<Sample> {
        sample::of(&self.registry, begins)
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
