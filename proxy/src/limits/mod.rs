//! What bounds the proxy as a whole, beside the bounds that each room keeps for itself.
//!
//! - [`sources`]: connections of one source address. [`memory`], [`cgroup`]: the memory budget, at which load is shed.
//! - [`guarded`]: frames of HTTP/2 clients that cost and bring nothing.
//!
//! Invariant: every bound has a default, and a metric for having been hit. `docs/architecture.md` lists them all.

pub mod cgroup;
pub mod guarded;
pub mod memory;
pub mod sources;
