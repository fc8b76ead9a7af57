//! `/drain-wait`, which a preStop hook calls before the application is told to stop: it tells control that this pod leaves, and returns
//! when nobody chooses it any more.
//!
//! ```text
//! tell control --> every proxy has acknowledged --> no new plain connection for 3 s, if there were plain clients --> the last requests end --> 200
//!      \------- deadline, or control is away ------------------------------------------------------------------------------------------> 503
//! ```
//!
//! Nothing of the proxy itself stops here: it serves until SIGTERM.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use rustls::ClientConfig;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};
use weft_api::wire::v1::drain_client::DrainClient;
use weft_api::wire::v1::{DrainReply, DrainRequest};

use super::{Admin, Body, plain};
use crate::Shared;
use crate::control_channel::{Target, channel};
use crate::telemetry::Direction;
use crate::upstream::connect::dial;

/// Plain clients learn of a leaving endpoint by DNS or the cluster's service proxy, which nobody acknowledges: silence for so long
/// stands for it.
const QUIET: Duration = Duration::from_secs(3);
/// Requests that are in flight when nobody chooses the pod any more get so long to end before its application does. What lasts longer, like a
/// stream, is the application's to end.
const LAST_REQUESTS: Duration = Duration::from_secs(3);
/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(5);
/// Between two looks whether the application is there.
const STILL_THERE: Duration = Duration::from_millis(200);
/// Ports of it that are looked at.
const MAX_PORTS: usize = 16;
/// Taken off the wait that control is granted, so that its answer arrives before ours is due.
const ANSWER_TIME: Duration = Duration::from_millis(500);
/// Before another replica of control is asked.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn answer(admin: &Admin) -> Response<Body> {
    let deadline = Instant::now() + admin.shared.config.drain_deadline;
    let told = tell_control(&admin.shared, &admin.control, deadline).await;
    let quiet = timeout_at(deadline, plain_clients_gone(&admin.shared)).await.is_ok();
    let told = match told {
        Ok(reply) if reply.lagging.is_empty() => format!("{} proxies have acknowledged", reply.acknowledged),
        Ok(reply) => {
            let lagging = reply.lagging.join(", ");
            return plain(StatusCode::SERVICE_UNAVAILABLE, format!("not acknowledged in time by: {lagging}"));
        }
        Err(why) => return plain(StatusCode::SERVICE_UNAVAILABLE, why),
    };
    if quiet {
        let _ = timeout_at(deadline.min(Instant::now() + LAST_REQUESTS), last_requests(&admin.shared)).await;
        plain(StatusCode::OK, told)
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, format!("{told}; plain connections still come"))
    }
}

/// With `gone=PORT,PORT` returns when our application takes no connections at these ports any more: a sidecar that is told to stop together with
/// its application waits so for it. The pod's grace period bounds this, which the kubelet measures.
pub(super) async fn application_gone(admin: &Admin, here: IpAddr, query: Option<&str>) {
    let ports = query.and_then(|query| query.strip_prefix("gone=")).unwrap_or_default();
    let ports = ports.split(',').filter_map(|port| port.parse().ok()).take(MAX_PORTS);
    for addr in ports.map(|port: u16| SocketAddr::new(here, port)) {
        while dial(addr, admin.shared.config.exclude, true).await.is_ok() {
            sleep(STILL_THERE).await;
        }
    }
}

/// Tells control that our workload leaves, and waits for what it hears.
///
/// # Errors
/// A sentence that says why it could not be told in time.
pub(crate) async fn tell_control(shared: &Shared, control: &Target, deadline: Instant) -> Result<DrainReply, String> {
    let own = shared.identity.current().map_err(|reason| format!("control cannot be told: {reason}"))?;
    let mut pause = FIRST_PAUSE;
    loop {
        let wait = deadline.saturating_duration_since(Instant::now());
        let asked = ask_control(shared, control, own.control.clone(), wait);
        let why = match timeout_at(deadline, asked).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(status)) if may_be_elsewhere(status.code()) => status,
            Ok(Err(status)) => return Err(format!("control could not be told: {}", status.message())),
            Err(_) => return Err("control did not answer in time".to_owned()),
        };
        // A replica that dies or stops takes nothing back: the next one is asked the same.
        if timeout_at(deadline, sleep(pause)).await.is_err() {
            return Err(format!("control could not be told: {}", why.message()));
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether another replica of control may answer what this one has not.
fn may_be_elsewhere(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded)
}

async fn ask_control(
    shared: &Shared,
    control: &Target,
    tls: Arc<ClientConfig>,
    wait: Duration,
) -> Result<DrainReply, Status> {
    let request = DrainRequest {
        workload: shared.config.workload.to_string(),
        deadline_ms: u64::try_from(wait.saturating_sub(ANSWER_TIME).as_millis()).unwrap_or(u64::MAX),
        instance: Some(shared.discovery.instance().to_owned()),
    };
    let (channel, reached) = channel(control, tls);
    let answer = DrainClient::new(channel).begin(request).await;
    answer.map(tonic::Response::into_inner).inspect_err(|_| {
        reached.shun();
    })
}

/// Returns once no plain connection has come in for [`QUIET`]; at once if none ever has.
pub(super) async fn plain_clients_gone(shared: &Shared) {
    while let Some(left) = shared.telemetry.since_plain().and_then(|since| QUIET.checked_sub(since)) {
        if left.is_zero() {
            return;
        }
        sleep(left).await;
    }
}

/// Returns once our application has no request in hand.
pub(super) async fn last_requests(shared: &Shared) {
    while shared.telemetry.requests_in_flight(Direction::Inbound) > 0 {
        sleep(LOOK).await;
    }
}
