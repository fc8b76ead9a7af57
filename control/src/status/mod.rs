//! Status on the objects that people write: whether control took them, whether what they name is there, and which proxies run them.
//!
//! A Gateway API route gets `status.parents[]` for each parent that is a Service, our own policies get `status.conditions`.
//!
//! Invariants
//! - Only the holder of the Lease `weft-control-leader` writes, each time over the very version that was judged ([`write`]): who lost the Lease, or
//!   judged by something older, is refused by the API server.
//! - What other controllers wrote is written back as it was.
//! - Nothing is written that is there already; `lastTransitionTime` changes with `status` only.
//! - An object is judged only after the model has taken it over, so that no generation is said to be observed that is not ([`inbox`]).
//! - The proxies of all replicas of control count ([`others`]): where one of them cannot say how its proxies are, that is said, and nothing is claimed.
//! - Work is in proportion to what changed: an object is looked at when it, what it names, or an answer of a proxy about it changed; at most once a
//!   second, and all objects together as often as [`desk`] allows. Queues are by object.
//!
//! [`subject`]: what the API server says of an object; [`judge`]: what is to be said about it, pure; [`merge`]: that into what is there, pure;
//! [`desk`]: whose turn it is, pure; [`others`]: what other replicas say; [`write`]: the one who does it.

pub mod desk;
pub mod inbox;
pub mod judge;
pub mod merge;
mod others;
pub mod subject;
mod write;

use std::sync::Arc;

use kube::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use weft_api::kinds::Kind;

pub use inbox::Inbox;
pub use subject::Subject;

use crate::distribute::Hub;
use crate::leases::{self, Timing};
use crate::model::Name;

/// Who we are, in the status of routes that others have parents in too.
pub const CONTROLLER: &str = "weft.dev/control";
/// The Lease of who writes.
pub const LEASE: &str = "weft-control-leader";
/// Which proxies run the object.
pub const PROGRAMMED: &str = "weft.dev/Programmed";

/// An object that gets a status.
pub type Key = (Kind, Name);

/// Some of them, as they are now; `None`: gone.
pub type Subjects = Vec<(Key, Option<Subject>)>;

/// Whether objects of a kind get one.
pub fn has_status(kind: Kind) -> bool {
    kind != Kind::ReferenceGrant
}

/// Where the Lease is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Control's own namespace.
    pub namespace: String,
}

/// Writes status until `stop`. The task ends when the Lease was given back. If the writer dies, the Lease is given back too, for another replica.
pub fn start(client: &Client, settings: &Settings, hub: Arc<Hub>, stop: &CancellationToken) -> AbortOnDropHandle<()> {
    let lease = leases::Settings {
        what: "leader",
        namespace: settings.namespace.clone(),
        name: LEASE.to_owned(),
        holder: leases::identity(),
        annotations: [].into(),
        labels: [].into(),
        timing: Timing::default(),
    };
    let ends = stop.child_token();
    let (held, lease) = leases::hold(client, lease, Arc::clone(&hub.metrics), ends.clone());
    let lease = AbortOnDropHandle::new(lease);
    let writing = AbortOnDropHandle::new(tokio::spawn(write::run(client.clone(), hub, held, ends.clone())));
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = writing.await {
            tracing::error!(%error, "nobody writes status here any more; restart control");
        }
        ends.cancel();
        // It has nothing to say: what went wrong was logged.
        let _ = lease.await;
    }))
}

#[cfg(test)]
mod tests;
