//! What the kubelet asks.

use std::time::{Duration, SystemTime};

use http::{Method, Response, StatusCode};

use super::{Admin, Body, drain_wait, only, plain, reads};
use crate::Shared;

/// Who starts with a certificate that ends within this time is not ready before it has the next: it would refuse its first requests.
const LAST_MOMENT: Duration = Duration::from_secs(1);

pub(super) async fn answer(admin: &Admin, method: &Method, path: &str) -> Response<Body> {
    match path {
        "/healthz/ready" | "/healthz/live" | "/drain-wait" if !reads(method) => only("GET"),
        "/healthz/ready" => match not_ready(&admin.shared) {
            None => plain(StatusCode::OK, "ready"),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/healthz/live" => plain(StatusCode::OK, "live"),
        "/drain-wait" => drain_wait::answer(admin).await,
        _ => plain(StatusCode::NOT_FOUND, "/healthz/ready, /healthz/live, /drain-wait"),
    }
}

/// Why the proxy cannot serve its workload now; `None` if it can.
fn not_ready(shared: &Shared) -> Option<String> {
    if shared.drain.begun() {
        return Some(format!("draining, {} in flight", shared.drain.in_flight()));
    }
    if shared.identity.current_at(SystemTime::now() + LAST_MOMENT).is_err() {
        return Some(format!("no valid certificate for {} yet; see the log for why", shared.config.identity));
    }
    if !shared.discovery.status().has_inbound {
        return Some(format!("control has not told yet what {} admits; see the log for why", shared.config.workload));
    }
    None
}
