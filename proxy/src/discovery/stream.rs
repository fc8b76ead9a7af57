//! The delta stream to control: opened, kept, opened again.
//!
//! ```text
//! wait for a certificate --> open --> pass on what comes --> ended --> wait (jittered, 0 .. 10 s) ------+
//!        ^                    |                               |                                         |
//!        +--------------------+------ a new certificate: at once -------------------------------------<-+
//! ```
//!
//! The replica of control whose stream ended is tried after the others the next time, so the first wait is short. One that has more proxies than
//! its share, or stops, asks some to move: that is an end like others, but nothing is amiss.
//!
//! A stream that is silent because the other end is gone is found by HTTP/2 keep-alive ([`crate::control_channel`]); one whose other
//! end lives but does not answer, by the [driver](super::driver), which kicks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use weft_api::names;
use weft_api::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::counters::bump;
use crate::Shared;
use crate::control_channel::{Target, channel};

/// Larger responses are refused; the protocol's bound is 1 MiB.
const MAX_RESPONSE: usize = 2 << 20;
/// Requests that wait to be sent.
const OUT: usize = 64;
/// Responses that wait to be applied.
pub const IN: usize = 4;
/// Connecting and the stream's beginning.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// What the stream tells the driver.
pub enum Event {
    /// It is open; requests go here.
    Opened(mpsc::Sender<DeltaDiscoveryRequest>),
    /// A response came.
    Heard(Box<DeltaDiscoveryResponse>),
    /// It has ended.
    Closed,
}

/// Why a stream ended.
enum Ended {
    /// It worked, or it ended for a reason of our own: begin again at once.
    Renew,
    /// It failed after it had worked.
    Broke(String),
    /// It did not come to anything.
    Failed(String),
    /// Control has sent us to another replica: to one of those that it names, if any.
    Moved(String),
    /// The driver is gone.
    Stop,
}

/// Keeps a stream open for as long as the driver listens.
pub async fn keep(shared: &Shared, target: &Target, events: mpsc::Sender<Event>) {
    let mut changes = shared.identity.changes();
    let mut backoff = FIRST_BACKOFF;
    loop {
        changes.borrow_and_update();
        let Ok(current) = shared.identity.current() else {
            // Nothing to wait for but a certificate.
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let (channel, reached) = channel(target, Arc::clone(&current.control));
        let ended = tokio::select! {
            ended = one(shared, channel, &events) => ended,
            changed = changes.changed() => if changed.is_ok() { Ended::Renew } else { Ended::Stop },
            () = shared.discovery.kicked() => Ended::Broke("control does not answer".to_owned()),
        };
        if events.send(Event::Closed).await.is_err() {
            return;
        }
        match ended {
            Ended::Stop => return,
            Ended::Renew => continue,
            Ended::Moved(to) => {
                let from = reached.moved(&to);
                backoff = FIRST_BACKOFF;
                tracing::info!(?from, to, "control has sent us to another replica");
                sleep(FIRST_BACKOFF.mul_f64(fastrand::f64())).await;
                continue;
            }
            Ended::Broke(error) => {
                backoff = FIRST_BACKOFF;
                tracing::warn!(error, retry_in = ?backoff, "the stream to control broke; the last tables stay in force");
            }
            Ended::Failed(error) => tracing::warn!(error, retry_in = ?backoff, "no stream to control"),
        }
        bump(&shared.discovery.counters().failures);
        reached.shun();
        // Any part of it, so that proxies that lost control together do not come back together.
        let wait = backoff.mul_f64(fastrand::f64());
        backoff = (backoff * 2).min(MAX_BACKOFF);
        tokio::select! {
            () = sleep(wait) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// One stream, from its opening to its end.
async fn one(shared: &Shared, channel: tonic::transport::Channel, events: &mpsc::Sender<Event>) -> Ended {
    let (requests, outgoing) = mpsc::channel(OUT);
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    // The first request has to be there when the stream opens: a server may answer with its headers only then.
    if events.send(Event::Opened(requests)).await.is_err() {
        return Ended::Stop;
    }
    let opening = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
    let mut incoming = match timeout(OPEN_TIMEOUT, opening).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return moved(&status).unwrap_or_else(|| Ended::Failed(tell(&status))),
        Err(_) => return Ended::Failed(format!("control did not answer within {} s", OPEN_TIMEOUT.as_secs())),
    };
    bump(&shared.discovery.counters().streams);
    let mut worked = false;
    loop {
        match incoming.message().await {
            Ok(Some(response)) => {
                worked = true;
                if events.send(Event::Heard(Box::new(response))).await.is_err() {
                    return Ended::Stop;
                }
            }
            Ok(None) => return ended(worked, "control ended it".to_owned()),
            Err(status) => return moved(&status).unwrap_or_else(|| ended(worked, tell(&status))),
        }
    }
}

/// Whether control has sent us away, and where.
fn moved(status: &tonic::Status) -> Option<Ended> {
    let to = status.metadata().get(names::MOVE)?;
    Some(Ended::Moved(to.to_str().unwrap_or_default().to_owned()))
}

fn ended(worked: bool, error: String) -> Ended {
    if worked { Ended::Broke(error) } else { Ended::Failed(error) }
}

/// A status with its causes: "transport error" alone says nothing.
fn tell(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(source) = cause {
        let error = source.to_string();
        if !text.contains(&error) {
            text = format!("{text}: {error}");
        }
        cause = source.source();
    }
    text
}
