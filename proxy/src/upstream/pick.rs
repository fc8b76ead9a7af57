//! Which endpoint of a backend: the engine's choice over what is known of each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use weft_engine::balance::{Candidate, Hints, Load, Placed, choose};
use weft_engine::reason::Reason;

use super::Target;
use super::connect::dial;
use super::eyeballs::{order, race};
use crate::Shared;
use crate::discovery::snapshot::{Backend, Destination, Endpoint};

/// Addresses of one name that are looked at for one connection.
const ADDRESSES: usize = 16;

/// An endpoint that was chosen.
#[derive(Clone)]
pub struct Picked {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// By what name it is called.
    pub sni: Option<Arc<str>>,
    /// An attempt at it failed for its pooled connection only.
    pub stale: bool,
    /// The connection by which it was found to answer, until it is used.
    pub dialled: Option<Arc<Mutex<Option<TcpStream>>>>,
}

impl Picked {
    /// A pod called by its own address.
    pub fn only(endpoint: &Arc<Endpoint>) -> Self {
        Self { endpoint: Arc::clone(endpoint), sni: None, stale: false, dialled: None }
    }

    /// Where it is.
    pub fn target<'a>(&'a self, shared: &'a Arc<Shared>) -> Target<'a> {
        Target { shared, endpoint: &self.endpoint, sni: self.sni.as_deref(), dialled: self.dialled.as_deref() }
    }
}

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.state.load
    }

    fn weight(&self) -> u32 {
        self.weight
    }

    fn draining(&self) -> bool {
        self.draining
    }
}

impl Placed for Endpoint {
    fn name(&self) -> &str {
        &self.name
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }
}

/// An endpoint of `backend` that was not tried yet. `None`: all were.
///
/// # Errors
/// [`Reason::NoEndpoints`]; for an ExternalName also what its name's resolution says.
pub async fn pick(shared: &Shared, backend: &Backend, tried: &[Picked]) -> Result<Option<Picked>, Reason> {
    if let Some((host, port)) = &backend.external {
        return Box::pin(pick_external(shared, host, *port, tried)).await;
    }
    pick_member(backend, tried, shared.clock.now())
}

fn pick_member(backend: &Backend, tried: &[Picked], now: Duration) -> Result<Option<Picked>, Reason> {
    let set = backend.endpoints.load();
    if set.members.is_empty() {
        return Err(Reason::NoEndpoints);
    }
    // The set may have changed since an earlier attempt, and an endpoint may have been described anew: its state is what it is known by.
    let was_tried = |member: &Arc<Endpoint>| tried.iter().any(|done| Arc::ptr_eq(&done.endpoint.state, &member.state));
    let chosen = if tried.is_empty() {
        choose(&set.members, set.order, now, fastrand::u64(..), &[])
    } else {
        let tried: Vec<usize> = (0..set.members.len()).filter(|&i| was_tried(&set.members[i])).collect();
        choose(&set.members, set.order, now, fastrand::u64(..), &tried)
    };
    let member = chosen.and_then(|at| set.members.get(at));
    Ok(member.map(|endpoint| Picked {
        endpoint: Arc::clone(endpoint),
        sni: Some(Arc::clone(&backend.sni)),
        stale: false,
        dialled: None,
    }))
}

/// A name outside of control's knowledge. Of its addresses the first that answers, if one has to be connected to ([`super::eyeballs`]); those that
/// did not are remembered and come last. One that is an address of the mesh is that workload, with mTLS.
async fn pick_external(shared: &Shared, host: &str, port: u16, tried: &[Picked]) -> Result<Option<Picked>, Reason> {
    let addresses = shared.discovery.lookup(host).await?;
    let mut candidates: Vec<Arc<Endpoint>> = Vec::new();
    let mut unknown = addresses.is_empty().then_some(Reason::NameUnresolved);
    for ip in order(&addresses, fastrand::usize(..)).into_iter().take(ADDRESSES) {
        let addr = SocketAddr::new(ip, port);
        let endpoint = match shared.discovery.resolve(addr).await {
            // The name of a Service of the mesh. Its own endpoints: an ExternalName names a place, not that Service's routes.
            Ok(Destination::Service(service)) => return pick_member(&service.own, tried, shared.clock.now()),
            Ok(Destination::Endpoint(endpoint)) => endpoint,
            Ok(Destination::Outside) => shared.discovery.external_endpoint(addr),
            Err(reason) => {
                unknown = Some(reason);
                continue;
            }
        };
        if !tried.iter().any(|done| Arc::ptr_eq(&done.endpoint.state, &endpoint.state)) {
            candidates.push(endpoint);
        }
    }
    let now = shared.clock.now();
    candidates.sort_by_key(|endpoint| (!endpoint.state.load.is_well(), !endpoint.state.load.usable(now)));
    let Some(first) = candidates.first() else {
        return if tried.is_empty() { Err(unknown.unwrap_or(Reason::NoEndpoints)) } else { Ok(None) };
    };
    if first.state.load.is_well() {
        for endpoint in &candidates {
            find_out(shared, endpoint);
        }
    }
    let pools = first.state.pools.mine();
    if first.identity.is_some() || candidates.len() == 1 || pools.idle() > 0 || pools.shared_connections() > 0 {
        return Ok(Some(Picked::only(first)));
    }
    candidates.retain(|endpoint| endpoint.identity.is_none());
    first_to_answer(shared, &candidates).await.map(Some)
}

async fn first_to_answer(shared: &Shared, candidates: &[Arc<Endpoint>]) -> Result<Picked, Reason> {
    let attempts = candidates.iter().map(|endpoint| dial(endpoint.addr, shared.config.exclude, false)).collect();
    let race = race(attempts).await;
    let now = shared.clock.now();
    for lost in race.lost.into_iter().filter_map(|lost| candidates.get(lost)) {
        lost.state.load.failed(now);
        tracing::debug!(endpoint = &*lost.name, "an address that does not answer");
    }
    let (endpoint, stream) =
        race.won.and_then(|(at, stream)| Some((candidates.get(at)?, stream))).ok_or(Reason::ConnectFailed)?;
    endpoint.state.load.connected();
    Ok(Picked { dialled: Some(Arc::new(Mutex::new(Some(stream)))), ..Picked::only(endpoint) })
}

/// Finds out whether an address answers again whose back-off is over. No request waits for it: there are others that do.
fn find_out(shared: &Shared, endpoint: &Arc<Endpoint>) {
    let (load, now) = (&endpoint.state.load, shared.clock.now());
    if load.is_well() || endpoint.identity.is_some() || !load.claim(now) {
        return;
    }
    let (endpoint, mark, clock) = (Arc::clone(endpoint), shared.config.exclude, shared.clock.clone());
    tokio::spawn(async move {
        match dial(endpoint.addr, mark, false).await {
            Ok(_) => endpoint.state.load.connected(),
            Err(_) => endpoint.state.load.failed(clock.now()),
        }
    });
}
