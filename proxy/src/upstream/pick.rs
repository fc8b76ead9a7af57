//! Which endpoint of a backend: the engine's choice over what is known of each.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_engine::balance::{Candidate, Load, choose};
use weft_engine::reason::Reason;

use crate::Shared;
use crate::discovery::snapshot::{Backend, Destination, Endpoint};

/// An endpoint that was chosen.
#[derive(Clone)]
pub struct Picked {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// By what name it is called.
    pub sni: Option<Arc<str>>,
    /// An attempt at it failed for its pooled connection only.
    pub stale: bool,
}

impl Picked {
    /// A pod called by its own address.
    pub fn only(endpoint: &Arc<Endpoint>) -> Self {
        Self { endpoint: Arc::clone(endpoint), sni: None, stale: false }
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
        choose(&set.members, now, fastrand::u64(..), &[])
    } else {
        let tried: Vec<usize> = (0..set.members.len()).filter(|&i| was_tried(&set.members[i])).collect();
        choose(&set.members, now, fastrand::u64(..), &tried)
    };
    let member = chosen.and_then(|at| set.members.get(at));
    Ok(member.map(|endpoint| Picked {
        endpoint: Arc::clone(endpoint),
        sni: Some(Arc::clone(&backend.sni)),
        stale: false,
    }))
}

/// A name outside of control's knowledge: its addresses in turn. One that is an address of the mesh is that workload, with mTLS.
async fn pick_external(shared: &Shared, host: &str, port: u16, tried: &[Picked]) -> Result<Option<Picked>, Reason> {
    let addresses = shared.discovery.lookup(host).await?;
    if addresses.is_empty() {
        return Err(Reason::NameUnresolved);
    }
    let start = fastrand::usize(..addresses.len());
    for ip in addresses[start..].iter().chain(&addresses[..start]) {
        if let Some(picked) = pick_address(shared, *ip, port, tried).await? {
            return Ok(Some(picked));
        }
    }
    Ok(None)
}

async fn pick_address(shared: &Shared, ip: IpAddr, port: u16, tried: &[Picked]) -> Result<Option<Picked>, Reason> {
    let addr = SocketAddr::new(ip, port);
    let endpoint = match shared.discovery.resolve(addr).await? {
        // The name of a Service of the mesh. Its own endpoints: an ExternalName names a place, not that Service's routes.
        Destination::Service(service) => return pick_member(&service.own, tried, shared.clock.now()),
        Destination::Endpoint(endpoint) => endpoint,
        Destination::Outside => shared.discovery.external_endpoint(addr),
    };
    let fresh = !tried.iter().any(|done| Arc::ptr_eq(&done.endpoint.state, &endpoint.state));
    Ok(fresh.then(|| Picked::only(&endpoint)))
}
