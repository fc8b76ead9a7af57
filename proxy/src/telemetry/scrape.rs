//! The page that a scraper reads: what telemetry and the other rooms have counted, as Prometheus's text.
//!
//! Families are made and written one by one, so that a page of many series is not in memory twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus::TextEncoder;
use prometheus::proto::MetricType;
use weft_engine::reason::Reason;

use super::counters::Retired;
use super::families::{Labels, Values, family};
use super::latency::BUCKETS;
use super::process::Cost;
use super::series::CLASSES;
use super::{Direction, RequestSeries, SeriesKey, Telemetry};
use crate::Shared;
use crate::identity::{Failure, IdentityStore};
use crate::limits::memory::Memory;

/// A page in the making.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// Adds a family; one without values is left out.
    pub fn add(&mut self, name: &str, help: &str, kind: MetricType, values: Values) -> prometheus::Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        TextEncoder::new().encode_utf8(&[family(name, help, kind, values)], &mut self.0)
    }

    /// Adds a counter without labels.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let mut values = Values::default();
        values.counter(&[], value as f64);
        self.add(name, help, MetricType::COUNTER, values)
    }

    /// Adds a gauge without labels.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) -> prometheus::Result<()> {
        let mut values = Values::default();
        values.gauge(&[], value);
        self.add(name, help, MetricType::GAUGE, values)
    }
}

/// The whole page of a proxy.
///
/// # Errors
/// Only if a family is malformed, which is a mistake of ours.
pub fn text(shared: &Shared) -> prometheus::Result<String> {
    let mut page = Page::default();
    let mut build = Values::default();
    build.gauge(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.add("weft_proxy_build_info", "1, labelled with the version of the proxy.", MetricType::GAUGE, build)?;
    shared.telemetry.write(&mut page)?;
    identity(&mut page, &shared.identity)?;
    let revoked = shared.trust.revoked.len() as f64;
    page.gauge("weft_revoked_entries", "Identities and certificates that are not believed any more.", revoked)?;
    if shared.config.workload_api.is_some() {
        application(&mut page, &shared.application)?;
    }
    if shared.config.dns_listen.is_some() {
        shared.telemetry.dns.write(&mut page)?;
    }
    super::tables::write(&mut page, shared)?;
    let in_flight = shared.drain.in_flight() as f64;
    page.gauge("weft_work_in_flight", "Requests, and connections of opaque bytes, that are in flight.", in_flight)?;
    let draining = f64::from(u8::from(shared.drain.begun()));
    page.gauge("weft_proxy_draining", "1 once the proxy has begun to stop.", draining)?;
    memory(&mut page, &shared.memory)?;
    process(&mut page, Cost::now())?;
    Ok(page.0)
}

impl Telemetry {
    /// Adds what is counted here.
    ///
    /// # Errors
    /// Only if a family is malformed, which is a mistake of ours.
    pub fn write(&self, page: &mut Page) -> prometheus::Result<()> {
        let mut all = self.series.all();
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        requests(page, &all)?;
        connections(page, &all)?;
        let mut in_flight = Values::default();
        let mut refused = Values::default();
        let mut retired = Values::default();
        for direction in Direction::ALL {
            let label = ("direction", direction.label());
            in_flight.gauge(&[label], self.requests_in_flight(direction) as f64);
            for reason in Reason::ALL {
                let count = self.refusals.get(direction, *reason);
                refused.counter(&[label, ("reason", reason.code())], count as f64);
            }
        }
        for direction in Direction::ALL {
            for why in Retired::ALL {
                let labels = [("direction", direction.label()), ("reason", why.label())];
                retired.counter(&labels, self.retired.get(direction, why) as f64);
            }
        }
        let help = "Connections between sidecars that were replaced or ended for their age, their certificates, or a revocation.";
        page.add("weft_connections_retired_total", help, MetricType::COUNTER, retired)?;
        page.add("weft_requests_in_flight", "HTTP requests that have not ended.", MetricType::GAUGE, in_flight)?;
        let help =
            "Requests and connections that were refused or failed, by the reason code that the client was given.";
        page.add("weft_refused_total", help, MetricType::COUNTER, refused)?;
        let mut bounds = Values::default();
        for (bound, count) in self.bounds.all() {
            bounds.counter(&[("bound", bound)], count as f64);
        }
        page.add("weft_bound_hit_total", "Times that a bound of the proxy was hit.", MetricType::COUNTER, bounds)?;
        let unmeshed = self.unmeshed.load(Ordering::Relaxed);
        self.handshakes.write(page)?;
        page.counter("weft_unmeshed_connections_total", "Connections to destinations outside the mesh.", unmeshed)?;
        let mut mirrors = Values::default();
        let copies = &self.mirrors;
        for (outcome, count) in
            [("answered", &copies.answered), ("failed", &copies.failed), ("dropped", &copies.dropped)]
        {
            mirrors.counter(&[("outcome", outcome)], count.load(Ordering::Relaxed) as f64);
        }
        let help = "Copies of requests for a route's mirrors, by what became of them.";
        page.add("weft_mirrored_requests_total", help, MetricType::COUNTER, mirrors)?;
        let help = "Attempts beyond the first that a route's `retry` has asked for.";
        page.counter("weft_retries_total", help, self.retries.load(Ordering::Relaxed))?;
        let help = "Idle HTTP/1 connections that the server ended before the proxy did.";
        page.counter("weft_upstream_idle_closed_total", help, self.idle_closed.load(Ordering::Relaxed))?;
        page.gauge("weft_series", "Series of requests and connections that are held.", self.series.len() as f64)?;
        page.counter("weft_access_log_lines_total", "Lines handed to the access log's writer.", self.log.written())?;
        let help = "Lines that the access log's writer could not keep up with.";
        page.counter("weft_access_log_dropped_total", help, self.log.dropped())
    }
}

type Series = [(SeriesKey, Arc<RequestSeries>)];

fn labels(key: &SeriesKey) -> [(&str, &str); 5] {
    [
        ("direction", key.direction.label()),
        ("source", &key.source),
        ("destination", &key.destination),
        ("destination_workload", &key.destination_workload),
        ("tls", key.tls.label()),
    ]
}

fn requests(page: &mut Page, all: &Series) -> prometheus::Result<()> {
    let mut counts = Values::default();
    let mut latency = Values::default();
    for (key, series) in all {
        let labels = labels(key);
        for (class, count) in CLASSES.iter().zip(series.requests()).filter(|(_, count)| *count > 0) {
            let with_class: Vec<_> = labels.iter().copied().chain([("class", *class)]).collect();
            counts.counter(&with_class, count as f64);
        }
        let (buckets, sum) = series.latency();
        if buckets.iter().any(|count| *count > 0) {
            latency.histogram(&labels, &BUCKETS, &buckets, sum);
        }
    }
    page.add("weft_requests_total", "HTTP requests that have ended, by class of status.", MetricType::COUNTER, counts)?;
    let help = "Time from a request's head to the last byte of its response.";
    page.add("weft_request_duration_seconds", help, MetricType::HISTOGRAM, latency)
}

fn connections(page: &mut Page, all: &Series) -> prometheus::Result<()> {
    let [mut opened, mut open, mut sent, mut received] = <[Values; 4]>::default();
    for (key, series) in all {
        let all: Vec<_> = labels(key).into_iter().chain(key.sni.as_deref().map(|sni| ("sni", sni))).collect();
        let labels: Labels<'_> = &all;
        let [opens, closes, bytes_sent, bytes_received] = series.tcp();
        if opens == 0 {
            continue;
        }
        opened.counter(labels, opens as f64);
        open.gauge(labels, opens.saturating_sub(closes) as f64);
        sent.counter(labels, bytes_sent as f64);
        received.counter(labels, bytes_received as f64);
    }
    let help = "Connections of opaque bytes that were opened.";
    page.add("weft_tcp_connections_opened_total", help, MetricType::COUNTER, opened)?;
    page.add("weft_tcp_open_connections", "Connections of opaque bytes that are open.", MetricType::GAUGE, open)?;
    let help = "Bytes from the client, of connections that have ended.";
    page.add("weft_tcp_sent_bytes_total", help, MetricType::COUNTER, sent)?;
    let help = "Bytes to the client, of connections that have ended.";
    page.add("weft_tcp_received_bytes_total", help, MetricType::COUNTER, received)
}

fn identity(page: &mut Page, store: &IdentityStore) -> prometheus::Result<()> {
    let counters = &store.counters;
    let [mut begin, mut end] = <[Values; 2]>::default();
    for (certificate, life) in store.lives() {
        let label = [("certificate", certificate)];
        begin.gauge(&label, since_1970(life.not_before));
        end.gauge(&label, since_1970(life.not_after));
    }
    let help = "When the certificates in use begin, in seconds since 1970: our leaf, and the issuer and root that it leads to.";
    page.add("weft_certificate_start_timestamp_seconds", help, MetricType::GAUGE, begin)?;
    let help =
        "When the certificates in use end, in seconds since 1970: our leaf, and the issuer and root that it leads to.";
    page.add("weft_certificate_expiry_timestamp_seconds", help, MetricType::GAUGE, end)?;
    let help = "Attempts to have a certificate, by what became of them.";
    page.add("weft_certificate_renewals_total", help, MetricType::COUNTER, renewals(store))?;
    let help = "Certificates in use that could not be written to the state directory.";
    page.counter("weft_certificate_not_saved_total", help, counters.not_saved())
}

/// Of the certificate that the application is given.
fn application(page: &mut Page, store: &IdentityStore) -> prometheus::Result<()> {
    if let Some((_, leaf)) = store.lives().next() {
        let help = "When the application's own certificate ends, in seconds since 1970.";
        page.gauge("weft_application_certificate_expiry_timestamp_seconds", help, since_1970(leaf.not_after))?;
    }
    let help = "Attempts to have a certificate for the application, by what became of them.";
    page.add("weft_application_certificate_renewals_total", help, MetricType::COUNTER, renewals(store))
}

fn renewals(store: &IdentityStore) -> Values {
    let mut values = Values::default();
    values.counter(&[("result", "issued")], store.counters.issued() as f64);
    for failure in Failure::ALL {
        values.counter(&[("result", failure.code())], store.counters.failed(*failure) as f64);
    }
    values
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs() as f64)
}

fn memory(page: &mut Page, memory: &Memory) -> prometheus::Result<()> {
    if let Some(budget) = memory.budget() {
        page.gauge("weft_memory_budget_bytes", "Memory beyond which the proxy sheds load.", budget as f64)?;
        let help = "Memory that counts against the budget, at the last look.";
        page.gauge("weft_memory_used_bytes", help, memory.used() as f64)?;
    }
    let shedding = f64::from(u8::from(memory.shedding()));
    page.gauge("weft_memory_shedding", "1 while the proxy sheds load for want of memory.", shedding)?;
    let mut shed = Values::default();
    let (connections, requests) = memory.shed();
    for (what, count) in [("connection", connections), ("request", requests)] {
        shed.counter(&[("what", what)], count as f64);
    }
    let help = "Connections and requests that were refused for want of memory.";
    page.add("weft_memory_shed_total", help, MetricType::COUNTER, shed)
}

fn process(page: &mut Page, cost: Cost) -> prometheus::Result<()> {
    if let Some(bytes) = cost.resident_bytes {
        page.gauge("weft_proxy_process_resident_memory_bytes", "Resident memory of the proxy.", bytes)?;
    }
    if let Some(seconds) = cost.cpu_seconds {
        let mut values = Values::default();
        values.counter(&[], seconds);
        let help = "User and system CPU time spent by the proxy.";
        page.add("weft_proxy_process_cpu_seconds_total", help, MetricType::COUNTER, values)?;
    }
    if let Some(fds) = cost.open_fds {
        page.gauge("weft_proxy_process_open_fds", "Open file descriptors of the proxy.", fds)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use http::StatusCode;
    use weft_engine::identity::Identity;

    use super::*;
    use crate::discovery::snapshot::Snapshot;
    use crate::telemetry::Tls;

    fn busy() -> Arc<Shared> {
        let shared =
            crate::testing::shared(Identity::new("cluster.local", "shop", "web").unwrap(), Snapshot::default());
        let key = |source: &str, destination: &str, tls| SeriesKey {
            direction: Direction::Inbound,
            source: source.into(),
            destination: destination.into(),
            destination_workload: "shop/web-0".into(),
            tls,
            sni: None,
        };
        let series = shared.telemetry.request_series(&key("team-a", "b", Tls::Mtls));
        series.record(StatusCode::OK, None, Duration::from_millis(2));
        series.record(StatusCode::NOT_FOUND, None, Duration::from_mins(2));
        let odd = shared.telemetry.request_series(&key("team-", "ab", Tls::Mtls));
        odd.record(StatusCode::OK, None, Duration::ZERO);
        let bytes = shared.telemetry.request_series(&key("with \"quotes\"\nand lines", "", Tls::Plain));
        bytes.tcp_opened();
        bytes.tcp_opened();
        bytes.tcp_closed(3, 4);
        shared.telemetry.refused(Direction::Outbound, Reason::NoRoute);
        shared.telemetry.bound_hit("connections");
        shared.telemetry.begun(Direction::Inbound);
        shared
    }

    #[test]
    fn the_page_says_what_was_counted() {
        let text = text(&busy()).unwrap();
        let ours = |source, destination| {
            format!(
                "direction=\"inbound\",source=\"{source}\",destination=\"{destination}\",\
                 destination_workload=\"shop/web-0\",tls=\"mtls\""
            )
        };
        let (one, other) = (ours("team-a", "b"), ours("team-", "ab"));
        for line in [
            &*format!("weft_requests_total{{{one},class=\"2xx\"}} 1"),
            &*format!("weft_requests_total{{{one},class=\"4xx\"}} 1"),
            &*format!("weft_requests_total{{{other},class=\"2xx\"}} 1"),
            &*format!("weft_request_duration_seconds_bucket{{{one},le=\"0.0025\"}} 1"),
            &*format!("weft_request_duration_seconds_bucket{{{one},le=\"+Inf\"}} 2"),
            &*format!("weft_request_duration_seconds_sum{{{one}}} 120.002"),
            "weft_refused_total{direction=\"outbound\",reason=\"no_route\"} 1",
            "weft_bound_hit_total{bound=\"connections\"} 1",
            "weft_requests_in_flight{direction=\"inbound\"} 1",
            "weft_control_connected 0",
            "weft_proxy_draining 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        let value = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().rsplit(' ').next().unwrap();
        assert_eq!(value("weft_tcp_connections_opened_total{"), "2");
        assert_eq!(value("weft_tcp_open_connections{"), "1");
        assert_eq!((value("weft_tcp_sent_bytes_total{"), value("weft_tcp_received_bytes_total{")), ("3", "4"));
    }

    #[test]
    fn every_metric_is_documented() {
        let documented = include_str!("../../../docs/metrics.md");
        let text = text(&busy()).unwrap();
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        for name in &names {
            assert!(name.starts_with("weft_tcp_") || documented.contains(&format!("`{name}`")), "{name}");
        }
        assert!(names.len() > 30, "{names:?}");
    }

    #[test]
    fn promtool_has_nothing_to_say() {
        let command = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut promtool = match command {
            Ok(promtool) => promtool,
            // The namespaced tests, where a missing tool is a failure in CI, ask it again.
            Err(error) => return println!("skipped, promtool: {error}"),
        };
        promtool.stdin.take().unwrap().write_all(text(&busy()).unwrap().as_bytes()).unwrap();
        let said = promtool.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.status.success() && words.trim().is_empty(), "{words}");
    }
}
