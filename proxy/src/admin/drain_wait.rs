//! `/drain-wait`, which a preStop hook calls before the application is told to stop: it tells control that this pod leaves, and returns
//! when nobody chooses it any more.
//!
//! ```text
//! tell control --> every proxy has acknowledged -----> no new plain connection for 3 s, if there were plain clients --> the last requests end --> 200
//!      \-- not in its time, or control is away --> turn away --> the same --> the same, or deadline --------------------------------------> 503
//! ```
//!
//! Where not everybody is known to know that the pod leaves, requests go on arriving while its application is stopped. So their sidecars are told with
//! each of them that it was not processed, and send it elsewhere ([`crate::drain::Drain::turn_away`]). Clients outside of the mesh are served on, and
//! opaque connections too: nobody would send those elsewhere.
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
/// Of the time that there is, control has so much: what is left is for the requests in hand if it has not told everybody.
const FOR_CONTROL: f64 = 0.75;
/// The pod's whole grace period, as a part of the deadline, which the injector makes two thirds of it. Whoever is there after that was not deleted:
/// its application was started again.
const GRACE: f64 = 1.5;
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
    let shared = &admin.shared;
    let (begun, whole) = (Instant::now(), shared.config.drain_deadline);
    let deadline = begun + whole;
    let told = match tell_control(shared, &admin.control, begun + whole.mul_f64(FOR_CONTROL)).await {
        Ok(reply) if reply.lagging.is_empty() => Ok(format!("{} proxies have acknowledged", reply.acknowledged)),
        Ok(reply) => Err(format!("not acknowledged in time by: {}", reply.lagging.join(", "))),
        Err(why) => Err(why),
    };
    if let Err(why) = &told {
        shared.drain.turn_away(shared.clock.now() + (begun + whole.mul_f64(GRACE)).duration_since(Instant::now()));
        tracing::warn!("this workload leaves, and not everybody knows: requests of the mesh are turned away; {why}");
    }
    let quiet = timeout_at(deadline, plain_clients_gone(shared)).await.is_ok();
    let patience = if told.is_ok() { deadline.min(Instant::now() + LAST_REQUESTS) } else { deadline };
    let ended = quiet && timeout_at(patience, last_requests(shared)).await.is_ok();
    match told {
        Ok(told) if quiet => plain(StatusCode::OK, told),
        Ok(told) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{told}; plain connections still come")),
        Err(why) => {
            let hand = if ended { "no request is in hand" } else { "requests are still in hand" };
            plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}; sidecars that call are turned away, {hand}"))
        }
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
