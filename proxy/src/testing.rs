//! Proxies for tests of single rooms: no control, no disk, no kernel.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use tokio::sync::Semaphore;
use weft_certs::ca::Ca;
use weft_certs::tls::Roots;
use weft_engine::identity::Identity;

use crate::config::Args;
use crate::discovery::Discovery;
use crate::discovery::snapshot::Snapshot;
use crate::drain::Drain;
use crate::identity::IdentityStore;
use crate::identity::trust::Trust;
use crate::identity::workload_api::serve::bundle;
use crate::limits::memory::Memory;
use crate::limits::sources::Sources;
use crate::telemetry::Telemetry;
use crate::{Clock, Shared};

/// A proxy that runs as `identity` and knows this snapshot; addresses that are not in it are outside the mesh.
pub fn shared(identity: Identity, snapshot: Snapshot) -> Arc<Shared> {
    let args = Args {
        workload: Some("shop/pod".into()),
        identity: Some(identity.to_string()),
        control: Some(vec!["127.0.0.1:1".into()]),
        control_ca: Some("root.pem".into()),
        ..Args::default()
    };
    let clock = Clock::start();
    let config = args.resolve().unwrap();
    Arc::new(Shared {
        trust: Arc::new(trust(&identity.trust_domain)),
        config,
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

/// Whom such a proxy believes before control has said: a CA that has signed nothing.
fn trust(domain: &Arc<str>) -> Trust {
    static ROOTS: LazyLock<Roots> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        Ca::open(dir.path(), "cluster.local").unwrap().roots().clone()
    });
    Trust::new(Arc::clone(domain), ROOTS.clone(), Bytes::new())
}

/// Believes this CA.
pub fn trusting(ca: &Ca) -> Arc<Trust> {
    Arc::new(Trust::new(ca.trust_domain().into(), ca.roots().clone(), bundle(ca.root_pem())))
}

/// Gives it another snapshot.
pub fn replace(shared: &Arc<Shared>, snapshot: Snapshot) {
    shared.discovery.replace(snapshot);
}
