//! What only loopback is told: tables, configuration, and the order to drain.

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{Admin, Body, json as json_page, only, plain, reads};
use crate::config::Config;

pub(super) async fn answer(admin: &Admin, method: &Method, path: &str) -> Response<Body> {
    match path {
        "/snapshot" | "/config" if !reads(method) => only("GET"),
        "/snapshot" => json_page(&admin.shared.discovery.tables_json().await),
        "/config" => json_page(&describe(&admin.shared.config)),
        "/drain" if *method != Method::POST => only("POST"),
        "/drain" => {
            tracing::info!("told to drain by the administration port");
            admin.shared.drain.begin();
            plain(StatusCode::ACCEPTED, "draining")
        }
        _ => plain(StatusCode::NOT_FOUND, "GET /snapshot, GET /config, POST /drain"),
    }
}

/// The configuration in force, by the names of the flags. Holds no secret: of the token only where it is.
fn describe(config: &Config) -> Value {
    json!({
        "workload": config.workload.to_string(),
        "identity": config.identity.to_string(),
        "control": config.control,
        "control-ca": config.control_ca,
        "token": format!("{:?}", config.token),
        "state-dir": config.state_dir,
        "workload-api": config.workload_api,
        "svid-from": config.svid_from,
        "outbound": config.outbound,
        "inbound": config.inbound,
        "metrics": config.metrics,
        "health": config.health,
        "admin": config.admin,
        "exclude-mark": config.exclude,
        "dns": config.dns,
        "workers": config.workers,
        "drain-deadline": config.drain_deadline.as_secs(),
        "hook-key": config.hook_key.as_ref().map(|key| format!("{key:?}")),
        "max-connections": config.limits.max_connections,
        "max-connections-per-source": config.limits.max_connections_per_source,
        "memory-budget": config.limits.memory_budget,
        "head-bytes": config.limits.head_bytes,
        "access-log-sample": config.access_log_sample,
        "access-log": config.access_log,
    })
}
