//! Control: watches what the orchestrator says, compiles it into resources, and tells each proxy what it uses.
//!
//! A change flows one way through four rooms:
//! [`sources`] -> [`model`] -> [`compile`] -> [`distribute`].

pub mod compile;
pub mod distribute;
pub mod model;
pub mod sources;
