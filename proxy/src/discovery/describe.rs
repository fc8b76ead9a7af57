//! Everything for a person: `GET /snapshot` on the admin port.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use weft_engine::route::Rule;

use super::Discovery;
use super::driver::Held;
use super::snapshot::{Backend, Destination, Endpoint, Entry, InboundPort, Protocol, Service};
use crate::upstream::Pool;

/// The snapshot in force, with the tables behind it.
pub fn all(discovery: &Discovery, held: Vec<Held>) -> Value {
    let snapshot = discovery.snapshot();
    let now = discovery.clock.now();
    let status = discovery.status();
    let by_addr = snapshot.by_addr.iter().map(|(addr, found)| (addr.to_string(), entry(found, now)));
    let by_host = snapshot.by_host.iter().map(|(host, found)| (host.to_string(), entry(found, now)));
    let destinations: serde_json::Map<String, Value> = by_addr.chain(by_host).collect();
    let refused: serde_json::Map<String, Value> =
        snapshot.refused.iter().map(|(name, reason)| (name.to_string(), json!(reason.code()))).collect();
    let inbound = &snapshot.inbound;
    let ports: serde_json::Map<String, Value> =
        inbound.ports.iter().map(|(number, told)| (number.to_string(), port(told))).collect();
    json!({
        "control": {
            "connected": status.connected,
            "state_age_s": status.state_age.as_secs_f64(),
            "from_disk": status.from_disk,
            "instance": discovery.instance(),
        },
        "extent": snapshot.extent_known.then(|| snapshot.extent.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "destinations": destinations,
        "refused": refused,
        "inbound": { "workload": inbound.workload, "ports": ports, "default": port(&inbound.default) },
        "hosts": discovery.names.len(),
        "external_endpoints": discovery.externals.len(),
        "resources": held,
    })
}

fn entry(entry: &Entry, now: Duration) -> Value {
    let means = match &entry.destination {
        Destination::Service(found) => json!({ "service": service(found, now) }),
        Destination::Endpoint(found) => json!({ "endpoint": endpoint(found, now) }),
        Destination::Outside => json!("outside"),
    };
    let idle = now.as_secs().saturating_sub(entry.last_used.load(Ordering::Relaxed));
    json!({ "means": means, "idle_s": idle })
}

fn service(service: &Service, now: Duration) -> Value {
    let rules = service.table.iter().flat_map(|table| table.rules()).map(rule);
    let of_connections = service.connections.iter().flat_map(|table| table.rules()).map(rule);
    let backends: serde_json::Map<String, Value> =
        service.backends.values().map(|found| (found.name.to_string(), backend(found, now))).collect();
    json!({
        "name": service.name,
        "protocol": protocol(service.protocol),
        "rules": rules.collect::<Vec<_>>(),
        "connection_rules": of_connections.collect::<Vec<_>>(),
        "own": backend(&service.own, now),
        "backends": backends,
    })
}

fn rule(rule: &Rule) -> Value {
    let backends =
        rule.backends.iter().map(|to| json!({ "service": to.service, "weight": to.weight, "invalid": to.invalid }));
    json!({ "route": rule.route, "rule": rule.name, "source": rule.source, "backends": backends.collect::<Vec<_>>() })
}

fn backend(backend: &Backend, now: Duration) -> Value {
    let set = backend.endpoints.load();
    json!({
        "external": backend.external.as_ref().map(|(host, port)| format!("{host}:{port}")),
        "endpoints": set.members.iter().map(|member| endpoint(member, now)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint, now: Duration) -> Value {
    let load = &endpoint.state.load;
    json!({
        "name": endpoint.name,
        "address": endpoint.addr.to_string(),
        "identity": endpoint.identity.as_ref().map(ToString::to_string),
        "workload": endpoint.workload,
        "weight": endpoint.weight,
        "draining": endpoint.draining,
        "usable": load.usable(now),
        "in_flight": load.in_flight(),
        "score_s": load.score(now),
        "idle_connections": endpoint.state.pools.all().map(Pool::idle).sum::<usize>(),
        "shared_connections": endpoint.state.pools.all().map(Pool::shared_connections).sum::<usize>(),
    })
}

fn port(port: &InboundPort) -> Value {
    let policies: Vec<&str> = port.policies.policies().iter().map(|policy| &*policy.name).collect();
    let limits: Vec<&str> = port.limits.iter().map(|limit| &*limit.name).collect();
    json!({
        "service": port.service,
        "protocol": protocol(port.protocol),
        "strict": port.strict,
        "policies": policies,
        "limits": limits,
    })
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Detect => "detect",
        Protocol::Http1 => "http1",
        Protocol::Http2 => "http2",
        Protocol::Tcp => "tcp",
    }
}
