//! Transparent capture: the network rules that bring a pod's TCP traffic to its sidecar, written over netlink.
//!
//! No `nft` or `iptables` program and no C library: [`nfnetlink`] encodes the few messages that are needed, [`rules`] says which
//! rules there are, and [`netns`] enters the network namespace in which they shall hold. [`validate`] proves
//! from within a pod that they hold. Invariants:
//!
//! - Only the table `inet weft` is ever touched. It is replaced whole, in one transaction: either the new rules hold or the old ones do.
//! - The calling thread's network namespace is meant, no other.
//! - The sidecar's own traffic is never brought to its outbound side (no loops), see [`rules`].

pub mod netns;
pub mod nfnetlink;
pub mod rules;
pub mod settings;
pub mod validate;

pub use rules::{Capture, Exclude, OWN_APP_PRIORITY, install, installed, remove};
pub use settings::Settings;
