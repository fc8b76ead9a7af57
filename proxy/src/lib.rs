//! The sidecar. A byte flows one way through five rooms:
//! [`capture`] -> [`detect`] -> [`http`] | [`tcp`] -> engine -> [`upstream`].
//!
//! Beside them: [`limits`], [`discovery`] (what control says), [`identity`] (who we are), [`telemetry`] and [`admin`]. All but the first
//! live on a thread of their own, so that a scrape never delays traffic and a flood never delays a renewal.
//!
//! [`main`] builds it all from [`Args`]; what the rooms share is [`Shared`].

pub mod admin;
pub mod capture;
pub mod clock;
pub mod config;
pub mod control_channel;
pub mod detect;
pub mod discovery;
pub mod dns;
pub mod drain;
pub mod http;
pub mod identity;
pub mod limits;
pub mod resolver;
mod run;
mod scratch;
mod stream;
pub mod tcp;
pub mod telemetry;
#[cfg(test)]
pub(crate) mod testing;
pub mod upstream;
pub mod wait;
pub mod worker;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub use clock::Clock;
pub use config::Args;
pub use run::main;

/// What the rooms of one proxy share.
pub struct Shared {
    /// How it was told to run.
    pub config: config::Config,
    /// What control says.
    pub discovery: discovery::Discovery,
    /// Whom we believe.
    pub trust: Arc<identity::trust::Trust>,
    /// Who we are.
    pub identity: identity::IdentityStore,
    /// Who our application is, with a key of its own; empty without `--workload-api`.
    pub application: identity::IdentityStore,
    /// Metrics and access log.
    pub telemetry: telemetry::Telemetry,
    /// Room for connections, of both directions and all workers together.
    pub connections: Arc<Semaphore>,
    /// Room for each source of inbound connections.
    pub sources: limits::sources::Sources,
    /// The memory budget.
    pub memory: limits::memory::Memory,
    /// Whether it stops, and what is in flight.
    pub drain: drain::Drain,
    /// Time.
    pub clock: Clock,
}
