//! The contract between control and proxy: the wire schema, the policy kinds that people write, and the one conversion between them
//! and the engine.
//!
//! - [`wire`]: generated messages and services.
//! - [`names`]: names, type URLs and versions of resources.

pub mod names;
pub mod wire;
