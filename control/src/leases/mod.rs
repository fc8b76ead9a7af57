//! Leases (`coordination.k8s.io`) that this control holds: the one of the leader, who writes for all replicas, and whatever else says that a
//! replica is there. The semantics are those of client-go's leader election.
//!
//! Invariants
//! - At no moment do two hold one Lease: the holder counts from when its last renewal was sent, and gives up after [`Timing::deadline`]; others
//!   count from when they saw that renewal, and wait for [`Timing::lasts`], which is longer.
//! - Nobody's clock is compared with another's: a Lease that is not written any more runs out by the clock of who looks at it. The times in it
//!   are for people.
//! - Every write is over exactly the version that was seen. Of two that take a Lease, one is refused.
//! - A holder that cannot renew, or whose task has died, ceases to hold it by itself: [`Held::now`] looks at the clock.
//!
//! [`claim`] says what is to be done (pure, time is an argument), [`hold`] does it.

pub mod claim;
pub mod hold;

use std::time::Duration;

pub use claim::{Record, Sighting};
pub use hold::{Held, Settings, hold};

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A Lease that was not renewed for so long is free.
    pub lasts: Duration,
    /// Who could not renew it for so long holds it no more: shorter than `lasts` by as much as a write may take that the holder has begun.
    pub deadline: Duration,
    /// How often the holder renews it, and others look at it; up to a fifth later.
    pub every: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lasts: Duration::from_secs(15), deadline: Duration::from_secs(10), every: Duration::from_secs(2) }
    }
}

/// A number of a run of control. Nobody else has it; without the kernel's randomness, nobody else of this machine.
pub fn run_id() -> String {
    weft_certs::files::random_hex(16).unwrap_or_else(|_| std::process::id().to_string())
}

/// A name for this run of control: that of its machine or pod, and something that no other run has.
pub fn identity() -> String {
    let host = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    format!("{}_{}", host.as_deref().unwrap_or("control"), run_id())
}

#[cfg(test)]
mod tests;
