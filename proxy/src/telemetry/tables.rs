//! What the proxy holds of the mesh, and how it stands with control.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::MetricType;

use super::families::Values;
use super::scrape::Page;
use crate::Shared;
use crate::discovery::counters::Counters;
use crate::discovery::snapshot::{Backend, Destination, Snapshot};

/// States of an endpoint, in the order in which [`count`] has them.
const STATES: [&str; 3] = ["ready", "draining", "failing"];

/// Adds both.
pub(super) fn write(page: &mut Page, shared: &Shared) -> prometheus::Result<()> {
    endpoints(page, shared)?;
    control(page, shared)?;
    resources(page, shared.discovery.counters())?;
    events(page, shared.discovery.counters())
}

fn control(page: &mut Page, shared: &Shared) -> prometheus::Result<()> {
    let status = shared.discovery.status();
    let connected = f64::from(u8::from(status.connected));
    page.gauge("weft_control_connected", "1 while the stream to control stands.", connected)?;
    let help = "How old what is known of the mesh is: since control spoke last, or the saved tables were written.";
    page.gauge("weft_discovery_state_age_seconds", help, status.state_age.as_secs_f64())
}

fn resources(page: &mut Page, counters: &Counters) -> prometheus::Result<()> {
    let mut held = Values::default();
    for (kind, count) in counters.held() {
        held.gauge(&[("type", kind)], count as f64);
        if kind == "Address" {
            page.gauge("weft_discovery_addresses", "Addresses that the application has called.", count as f64)?;
        }
    }
    page.add("weft_discovery_resources", "Resources that are held, by type.", MetricType::GAUGE, held)?;
    let mut received = Values::default();
    for (kind, change, count) in counters.received() {
        received.counter(&[("type", kind), ("change", change.label())], count as f64);
    }
    let help = "Resources that control has sent, by type and by what they changed.";
    page.add("weft_discovery_resources_received_total", help, MetricType::COUNTER, received)
}

fn events(page: &mut Page, counters: &Counters) -> prometheus::Result<()> {
    let all = |label: &str, counts: &[(&str, &AtomicU64)]| {
        let mut values = Values::default();
        for (value, count) in counts {
            values.counter(&[(label, value)], count.load(Ordering::Relaxed) as f64);
        }
        values
    };
    let mut add = |name: &str, help: &str, values| page.add(name, help, MetricType::COUNTER, values);
    let streams = [("opened", &counters.streams), ("failed", &counters.failures)];
    add("weft_discovery_streams_total", "Streams to control, by what became of them.", all("event", &streams))?;
    let answers = [("ack", &counters.acks), ("nack", &counters.nacks)];
    add("weft_discovery_responses_total", "Responses of control, by how they were answered.", all("answer", &answers))?;
    let waits = [("answered", &counters.held_answered), ("timeout", &counters.held_timeout)];
    let help = "Requests and connections that waited for control's answer.";
    add("weft_discovery_waits_total", help, all("result", &waits))?;
    let forgotten = [
        ("address_idle", &counters.idle_addresses),
        ("address_bound", &counters.evicted_addresses),
        ("external_bound", &counters.evicted_external),
        ("host_bound", &counters.evicted_hosts),
    ];
    add("weft_discovery_forgotten_total", "Things that were forgotten, and why.", all("what", &forgotten))?;
    let lookups =
        [("asked", &counters.lookups), ("failed", &counters.lookup_failures), ("stale", &counters.lookups_stale)];
    let help = "Look-ups of host names that went to a name server; of these those that failed, and answers given past their time.";
    add("weft_lookups_total", help, all("event", &lookups))?;
    let files = [
        ("saved", &counters.saves),
        ("save_failed", &counters.save_failures),
        ("load_failed", &counters.load_failures),
    ];
    add(
        "weft_discovery_state_files_total",
        "Times that the tables on disk were written or refused.",
        all("event", &files),
    )
}

/// Adds the endpoints of every destination that is held, by state.
fn endpoints(page: &mut Page, shared: &Shared) -> prometheus::Result<()> {
    let mut values = Values::default();
    for (destination, counts) in count(&shared.discovery.snapshot(), shared.clock.now()) {
        for (state, count) in STATES.iter().zip(counts) {
            values.gauge(&[("destination", &destination), ("state", state)], f64::from(count));
        }
    }
    let help = "Endpoints of the destinations that were called; failing ones are left alone for a while.";
    page.add("weft_endpoints", help, MetricType::GAUGE, values)
}

/// Endpoints by destination and state. A destination's ports count together.
fn count(snapshot: &Snapshot, now: Duration) -> BTreeMap<Arc<str>, [u32; STATES.len()]> {
    let mut counts: BTreeMap<Arc<str>, [u32; STATES.len()]> = BTreeMap::new();
    let mut seen = HashSet::new();
    for backend in backends(snapshot).filter(|backend| seen.insert(Arc::as_ptr(backend))) {
        let of_destination = counts.entry(Arc::clone(&backend.label)).or_default();
        for member in &backend.endpoints.load().members {
            let state = match member.draining {
                true => 1,
                false if member.state.load.usable(now) => 0,
                false => 2,
            };
            of_destination[state] += 1;
        }
    }
    counts
}

fn backends(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Backend>> {
    let entries = snapshot.by_addr.values().chain(snapshot.by_host.values());
    let services = entries.filter_map(|entry| match &entry.destination {
        Destination::Service(service) => Some(service),
        Destination::Endpoint(_) | Destination::Outside => None,
    });
    services.flat_map(|service| std::iter::once(&service.own).chain(service.backends.values()))
}
