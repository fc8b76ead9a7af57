//! Requests to our own application: may this peer, may it now, and who it is.
//!
//! Invariants
//! - No byte of a request reaches the application before it is authorized and within its limits. Both are asked for each request, of
//!   the newest tables.
//! - The application learns its peer from us alone: what a client says of itself is removed.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, RETRY_AFTER};
use parking_lot::Mutex;
use weft_engine::authz::{Question, Verdict, plain_may};
use weft_engine::identity::Identity;
use weft_engine::ratelimit::{Cell, Decision, whole_seconds};
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;

use super::attempt::{Goal, REPLAY_BYTES};
use super::headers::{CLIENT_CERT, append_forwarded_for, strip_identity};
use super::refuse::Reply;
use super::session::Session;
use crate::discovery::snapshot::{Endpoint, Inbound, InboundPort, Limit};
use crate::identity::revoked::Known;
use crate::telemetry::RequestSeries;

const LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT_STATUS: HeaderName = HeaderName::from_static("ratelimit");

/// The other end of a connection to our application.
pub struct Peer {
    /// Whom it has proved to be; `None`: it came in the clear.
    pub identity: Option<Identity>,
    /// What it has proved, and whether that is believed still.
    pub known: Option<Arc<Known>>,
    /// `X-Forwarded-Client-Cert` for the application.
    pub certificate: Option<HeaderValue>,
    /// Its address, for `X-Forwarded-For`.
    pub address: HeaderValue,
    /// The application's port.
    pub application: Arc<Endpoint>,
    /// Where its requests count.
    pub series: Arc<RequestSeries>,
    /// Its cells of the limits that have met it.
    pub cells: Mutex<Vec<(Arc<Limit>, Arc<Cell>)>>,
}

/// The port's rules, as of now.
pub fn port_of(inbound: &Inbound, port: u16) -> &Arc<InboundPort> {
    inbound.ports.get(&port).unwrap_or(&inbound.default)
}

/// Where requests to our application go.
pub fn goal(peer: &Peer) -> Goal<'_> {
    Goal::Endpoint(&peer.application)
}

/// Whether it may, and may now, and there is memory for it; and whether it is not to go elsewhere, with what is certain not to have been processed.
///
/// # Errors
/// The refusal.
pub fn admit(session: &Session, peer: &Peer, request: &RequestView<'_>, now: Duration) -> Result<(), Box<Reply>> {
    if session.turns_away() && can_go_elsewhere(request) {
        return Err(Box::new(Reason::NotProcessed.into()));
    }
    let overloaded = |reason: Reason| Box::new(Reply::from(reason));
    session.shared.memory.admit_request().map_err(overloaded)?;
    let snapshot = session.shared.discovery.snapshot();
    let port = port_of(&snapshot.inbound, session.destination.port());
    authorize(port, peer.identity.as_ref(), Some((request.method, request.path)))
        .map_err(|reason| Box::new(reason.into()))?;
    for limit in &port.limits {
        check_limit(limit, peer, request, now)?;
    }
    Ok(())
}

// Its sidecar has kept so much of it by the time that it hears from us. What is longer is served for as long as the application is there.
fn can_go_elsewhere(request: &RequestView<'_>) -> bool {
    let lengths = request.headers.values(&CONTENT_LENGTH);
    lengths.filter_map(|text| std::str::from_utf8(text).ok()?.parse().ok()).all(|length: usize| length <= REPLAY_BYTES)
}

/// Whether a peer may; `http` is a request's method and path, or `None` for a connection of opaque bytes.
///
/// # Errors
/// The reason to refuse with.
pub fn authorize(
    port: &InboundPort,
    peer: Option<&Identity>,
    http: Option<(&http::Method, &str)>,
) -> Result<(), Reason> {
    plain_may(port.strict, peer)?;
    if port.policies.is_empty() {
        return Ok(());
    }
    match port.policies.decide(&Question { peer, http }) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny { reason, by } => {
            tracing::debug!(%reason, %by, "denied");
            Err(reason)
        }
    }
}

fn check_limit(limit: &Arc<Limit>, peer: &Peer, request: &RequestView<'_>, now: Duration) -> Result<(), Box<Reply>> {
    let limiter = &limit.limiter;
    if !limiter.applies(request) {
        return Ok(());
    }
    let decision = limiter.check(&peer.cell(limit, now), now);
    let Decision::Limit { retry_after } = decision else { return Ok(()) };
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(retry_after)));
    for (name, value) in [(LIMIT_POLICY, limiter.policy_header()), (LIMIT_STATUS, limiter.status_header(&decision))] {
        // A limit's name is checked where it is read, so this does not fail; if it did, the refusal would lack a hint.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    Err(Box::new(Reply { headers, ..Reason::RateLimited.into() }))
}

impl Peer {
    // Looked up once a connection: what is kept is never evicted.
    fn cell(&self, limit: &Arc<Limit>, now: Duration) -> Arc<Cell> {
        let mut cells = self.cells.lock();
        if let Some((_, cell)) = cells.iter().find(|(known, _)| Arc::ptr_eq(known, limit)) {
            return Arc::clone(cell);
        }
        // Limits that were replaced are known by nobody else any more.
        cells.retain(|(known, _)| Arc::strong_count(known) > 1);
        let cell = limit.limiter.cell_at(self.identity.as_ref(), now);
        cells.push((Arc::clone(limit), Arc::clone(&cell)));
        cell
    }
}

/// Tells the application who its peer is.
pub fn introduce(peer: &Peer, headers: &mut HeaderMap) {
    strip_identity(headers);
    if let Some(certificate) = &peer.certificate {
        headers.insert(CLIENT_CERT, certificate.clone());
    }
    append_forwarded_for(headers, &peer.address);
}
