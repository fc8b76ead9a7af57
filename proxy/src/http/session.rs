//! One HTTP connection of a client, and one request on it.
//!
//! Invariant: whatever becomes of a request, its [`Exchange`] is dropped exactly once, and that is when it is counted: after the last
//! byte of the response was given away, or when either side went away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;
use weft_engine::identity::Identity;
use weft_engine::outcome::{Class, classify};
use weft_engine::reason::Reason;

use super::inbound::Peer;
use crate::Shared;
use crate::discovery::snapshot::{Backend, Destination, Endpoint};
use crate::drain::InFlight;
use crate::telemetry::counters::Retired;
use crate::telemetry::{AccessRecord, Direction, RequestSeries, SeriesKey, Tls};
use crate::upstream::Speak;

/// A client's connection. What its requests share is made once, here.
pub struct Session {
    /// The proxy.
    pub shared: Arc<Shared>,
    /// HTTP/1 or HTTP/2.
    pub speak: Speak,
    /// The other end.
    pub client: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// `None`: it is our own application, on its way out.
    pub inbound: Option<Box<Peer>>,
    /// From then on it takes no further request: a certificate that it was opened with has ended.
    pub ends: Option<Instant>,
}

impl Session {
    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        if self.inbound.is_some() { Direction::Inbound } else { Direction::Outbound }
    }

    /// Whether it takes no further request.
    pub fn ends_now(&self) -> bool {
        self.shared.drain.begun() || self.is_over() || self.turns_away()
    }

    /// Whether its requests should go to another endpoint. Only those of another sidecar, which sends them there: a client outside of the mesh
    /// would have lost them.
    pub fn turns_away(&self) -> bool {
        self.identity().is_some() && self.shared.drain.turns_away(|| self.shared.clock.now())
    }

    fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| Instant::now() >= ends)
    }

    /// It has ended, or ends with the requests that it has: counted if that is for its certificates.
    pub fn retired(&self) {
        if self.is_over() {
            self.shared.telemetry.retired.add(Direction::Inbound, Retired::Certificate);
        }
    }

    /// Whether the client is not believed any more.
    pub fn is_revoked(&self) -> bool {
        self.inbound.as_ref().and_then(|peer| peer.known.as_ref()).is_some_and(|known| known.is_revoked())
    }

    /// The client's verified identity.
    pub fn identity(&self) -> Option<&Identity> {
        self.inbound.as_ref()?.identity.as_ref()
    }

    /// Whether this client may be told reason codes: our own application, or a meshed peer.
    pub fn may_know(&self) -> bool {
        self.inbound.as_ref().is_none_or(|peer| peer.identity.is_some())
    }
}

/// One request: what is counted and logged of it.
pub struct Exchange {
    /// The client's connection.
    pub session: Arc<Session>,
    /// Since when, by the proxy's clock.
    pub started: Duration,
    /// Where it counts; `None`: nowhere yet.
    pub series: Option<Arc<RequestSeries>>,
    /// What the client got.
    pub status: StatusCode,
    /// Why it was refused or failed.
    pub reason: Option<Reason>,
    /// Another sidecar gave the reason, and has counted it.
    pub refused_there: bool,
    /// gRPC's status, if the response had one in its head.
    pub grpc_status: Option<u32>,
    method: Method,
    path: Arc<str>,
    ticket: Option<Ticket>,
    _in_flight: InFlight,
}

impl Exchange {
    /// A request has come.
    pub fn begin(session: &Arc<Session>, method: Method, path: &str) -> Self {
        session.shared.telemetry.begun(session.direction());
        Self {
            session: Arc::clone(session),
            started: session.shared.clock.now(),
            series: None,
            status: client_gone(),
            reason: None,
            refused_there: false,
            grpc_status: None,
            method,
            path: path.into(),
            ticket: None,
            _in_flight: session.shared.drain.guard(),
        }
    }

    /// It is given to an endpoint of the service `label`; an attempt before is over.
    pub fn assign(&mut self, endpoint: &Arc<Endpoint>, label: &Arc<str>) {
        let now = self.session.shared.clock.now();
        self.settle(now);
        if self.session.inbound.is_none() {
            self.series = Some(Arc::clone(outbound_series(&self.session.shared, endpoint, label)));
        }
        endpoint.state.load.begin();
        self.ticket = Some(Ticket { endpoint: Arc::clone(endpoint), begun: now, head: None });
    }

    /// It is answered here: it counts for the service that was called, unless it was an endpoint's before.
    pub fn unassigned(&mut self, destination: &Destination) {
        if let (None, Destination::Service(service)) = (&self.series, destination) {
            self.series = Some(Arc::clone(unassigned_series(&self.session.shared, &service.own)));
        }
    }

    /// So much of the attempt went into a new connection, once for many requests: counted, it would make an endpoint that has just
    /// come look slow for as long as its estimate takes to decay.
    pub fn connected_in(&mut self, connecting: Duration) {
        if let Some(ticket) = &mut self.ticket {
            ticket.begun += connecting;
        }
    }

    /// The endpoint's response has begun, or the attempt has failed.
    pub fn answered(&mut self, ok: bool) {
        let now = self.session.shared.clock.now();
        if let Some(ticket) = &mut self.ticket {
            ticket.head = Some((now.saturating_sub(ticket.begun), ok));
        }
    }

    /// As [`Self::answered`], with the endpoint's response.
    pub fn answered_with(&mut self, status: StatusCode, grpc_status: Option<u32>) {
        self.status = status;
        self.grpc_status = grpc_status;
        self.answered(classify(status, grpc_status) != Class::Failure);
    }

    /// The endpoint it was given to last.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.ticket.as_ref().map(|ticket| &ticket.endpoint)
    }

    /// When the endpoint's response began, by the proxy's clock.
    pub fn head_came(&self) -> Option<Duration> {
        let ticket = self.ticket.as_ref()?;
        Some(ticket.begun + ticket.head?.0)
    }

    /// Method and path of the request, to ask about again later.
    pub fn request(&self) -> (Method, Arc<str>) {
        (self.method.clone(), Arc::clone(&self.path))
    }

    fn settle(&mut self, now: Duration) {
        let Some(ticket) = self.ticket.take() else { return };
        let load = &ticket.endpoint.state.load;
        match ticket.head {
            Some((rtt, ok)) => load.end(now, rtt, ok),
            None => load.abandoned(now, now.saturating_sub(ticket.begun)),
        }
    }
}

/// Where requests and connections to an endpoint count; resolved at the first.
pub fn outbound_series<'a>(shared: &Shared, endpoint: &'a Endpoint, label: &Arc<str>) -> &'a Arc<RequestSeries> {
    endpoint.state.series.get_or_init(|| shared.telemetry.request_series(&outbound_key(shared, endpoint, label)))
}

/// Where requests to a service count that go to no endpoint.
fn unassigned_series<'a>(shared: &Shared, service: &'a Backend) -> &'a Arc<RequestSeries> {
    service.unassigned.get_or_init(|| {
        let nobody = Arc::from("");
        shared.telemetry.request_series(&key_to(shared, &service.label, &nobody, Tls::None))
    })
}

/// The labels of what goes to an endpoint.
pub fn outbound_key(shared: &Shared, endpoint: &Endpoint, label: &Arc<str>) -> SeriesKey {
    let tls = if endpoint.identity.is_some() { Tls::Mtls } else { Tls::Unmeshed };
    key_to(shared, label, &endpoint.workload, tls)
}

fn key_to(shared: &Shared, label: &Arc<str>, workload: &Arc<str>, tls: Tls) -> SeriesKey {
    SeriesKey {
        direction: Direction::Outbound,
        source: Arc::from(shared.config.workload.to_string()),
        destination: Arc::clone(label),
        destination_workload: Arc::clone(workload),
        tls,
        sni: None,
    }
}

/// What is counted for a client that went away before there was a response (nginx's code for it).
fn client_gone() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT)
}

// An attempt: the endpoint's load counts it from `assign` until the response has ended.
struct Ticket {
    endpoint: Arc<Endpoint>,
    begun: Duration,
    head: Option<(Duration, bool)>,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.session.shared);
        let now = shared.clock.now();
        let took = now.saturating_sub(self.started);
        let direction = self.session.direction();
        if self.reason.is_none() && self.session.is_revoked() {
            self.reason = Some(Reason::IdentityRevoked);
        }
        if let Some(series) = &self.series {
            series.record(self.status, self.reason, took);
        }
        shared.telemetry.ended(direction);
        if let Some(reason) = self.reason.filter(|_| !self.refused_there) {
            shared.telemetry.refused(direction, reason);
        }
        shared.telemetry.access(AccessRecord {
            direction,
            peer: self.session.identity(),
            client: self.session.client,
            destination: self.session.destination,
            endpoint: self.endpoint().map(|endpoint| &*endpoint.name),
            method: Some(&self.method),
            path: Some(&self.path),
            status: Some(self.status),
            reason: self.reason,
            took,
            bytes: None,
            sni: None,
        });
        self.settle(now);
    }
}
