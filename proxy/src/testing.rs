//! Proxies for tests of single rooms: no control, no disk, no kernel.

use std::sync::Arc;

use tokio::sync::Semaphore;
use weft_engine::identity::Identity;

use crate::config::Args;
use crate::discovery::Discovery;
use crate::discovery::snapshot::Snapshot;
use crate::drain::Drain;
use crate::identity::IdentityStore;
use crate::limits::memory::Memory;
use crate::limits::sources::Sources;
use crate::telemetry::Telemetry;
use crate::{Clock, Shared};

/// A proxy that runs as `identity` and knows this snapshot; addresses that are not in it are outside the mesh.
pub fn shared(identity: Identity, snapshot: Snapshot) -> Arc<Shared> {
    let args = Args {
        workload: Some("shop/pod".into()),
        identity: Some(identity.to_string()),
        control: Some("127.0.0.1:1".into()),
        control_ca: Some("root.pem".into()),
        ..Args::default()
    };
    let clock = Clock::start();
    Arc::new(Shared {
        config: args.resolve().unwrap(),
        discovery: Discovery::fixed(snapshot, clock.clone()),
        identity: IdentityStore::default(),
        application: IdentityStore::default(),
        telemetry: Telemetry::quiet(clock.clone()),
        connections: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        sources: Sources::new(usize::MAX),
        memory: Memory::default(),
        drain: Drain::default(),
        clock,
    })
}

/// Gives it another snapshot.
pub fn replace(shared: &Arc<Shared>, snapshot: Snapshot) {
    shared.discovery.replace(snapshot);
}
