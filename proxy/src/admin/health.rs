//! What the kubelet asks.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};
use weft_api::probe::is_hook;

use super::{Admin, Body, application, drain_wait, hook_key, only, plain, reads};
use crate::Shared;

/// Who starts with a certificate that ends within this time is not ready before it has the next: it would refuse its first requests.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Who starts from what an earlier process saved is not ready for so long at most, while control has not said whether that still holds: its
/// first calls would be made by tables and a certificate of the past. Without control it begins all the same.
const CONTROL_FIRST: Duration = Duration::from_secs(2);

const PAGES: &str = "/healthz/ready[?wait=SECONDS], /healthz/live, /drain-wait, /app/CONTAINER/PROBE";
const STRANGER: &str = "hooks are called by the kubelet, with the key from the injector, or over loopback";
/// Longest wait for readiness that may be asked for.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// Between two looks while somebody waits.
const LOOK: Duration = Duration::from_millis(5);

pub(super) async fn answer(admin: &Admin, here: IpAddr, request: &Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        "/healthz/ready" | "/healthz/live" | "/drain-wait" if !reads(request.method()) => only("GET"),
        "/healthz/ready" => match readiness(admin, wait(request.uri().query())).await {
            None => plain(StatusCode::OK, "ready"),
            Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/healthz/live" => plain(StatusCode::OK, "live"),
        path if calls_hook(path) && !hook_key::may(admin.shared.config.hook_key.as_ref(), here, request.headers()) => {
            tracing::debug!("somebody without the key called a hook");
            plain(StatusCode::FORBIDDEN, STRANGER)
        }
        "/drain-wait" => {
            let drained = drain_wait::answer(admin).await;
            drain_wait::application_gone(admin, here, request.uri().query()).await;
            drained
        }
        path if reads(request.method()) => {
            let agent = request.headers().get(header::USER_AGENT);
            let asked = application::answer(admin, here, agent, path).await;
            asked.unwrap_or_else(|| plain(StatusCode::NOT_FOUND, PAGES))
        }
        _ => plain(StatusCode::NOT_FOUND, PAGES),
    }
}

fn calls_hook(path: &str) -> bool {
    path == "/drain-wait" || is_hook(path)
}

// `wait=SECONDS`.
fn wait(query: Option<&str>) -> Duration {
    let seconds = query.and_then(|query| query.strip_prefix("wait=")?.parse().ok());
    seconds.map_or(Duration::ZERO, Duration::from_secs).min(MAX_WAIT)
}

// Whoever starts something as soon as we are ready, as the kubelet does, need not ask again and again.
async fn readiness(admin: &Admin, wait: Duration) -> Option<String> {
    let end = Instant::now() + wait;
    loop {
        let why = not_ready(&admin.shared, admin.shared.clock.now())?;
        if Instant::now() >= end || admin.shared.drain.begun() {
            return Some(why);
        }
        sleep(LOOK).await;
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
