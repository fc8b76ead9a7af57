//! What the kubelet asks.

use std::time::{Duration, SystemTime};

use http::{Method, Response, StatusCode};

use super::{Admin, Body, drain_wait, only, plain, reads};
use crate::Shared;

/// Who starts with a certificate that ends within this time is not ready before it has the next: it would refuse its first requests.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Who starts from what an earlier process saved is not ready for so long at most, while control has not said whether that still holds: its
/// first calls would be made by tables and a certificate of the past. Without control it begins all the same.
const CONTROL_FIRST: Duration = Duration::from_secs(2);

pub(super) async fn answer(admin: &Admin, method: &Method, path: &str) -> Response<Body> {
    match path {
        "/healthz/ready" | "/healthz/live" | "/drain-wait" if !reads(method) => only("GET"),
        "/healthz/ready" => match not_ready(&admin.shared, admin.shared.clock.now()) {
            None => plain(StatusCode::OK, "ready"),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/healthz/live" => plain(StatusCode::OK, "live"),
        "/drain-wait" => drain_wait::answer(admin).await,
        _ => plain(StatusCode::NOT_FOUND, "/healthz/ready, /healthz/live, /drain-wait"),
    }
}

/// Why the proxy cannot serve its workload, `now` after its start; `None` if it can.
pub(crate) fn not_ready(shared: &Shared, now: Duration) -> Option<String> {
    if shared.drain.begun() {
        return Some(format!("draining, {} in flight", shared.drain.in_flight()));
    }
    let Ok(current) = shared.identity.current_at(SystemTime::now() + LAST_MOMENT) else {
        return Some(format!("no valid certificate for {} yet; see the log for why", shared.config.identity));
    };
    let tables = shared.discovery.status();
    if !tables.has_inbound {
        return Some(format!("control has not told yet what {} admits; see the log for why", shared.config.workload));
    }
    if now < CONTROL_FIRST {
        if tables.from_disk {
            return Some("control has not said yet whether the saved tables still hold".to_owned());
        }
        if !current.believed {
            return Some("the saved certificate is not believed any more; the next one is on its way".to_owned());
        }
    }
    None
}
