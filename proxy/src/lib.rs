//! The sidecar. A byte flows one way through five rooms:
//! [`capture`] -> [`detect`] -> [`http`] | [`tcp`] -> engine -> [`upstream`].
//!
//! Beside them: [`discovery`] (what control says), [`identity`] (who we are), [`telemetry`] and [`admin`]. Those live on a thread of
//! their own, so that a scrape never delays traffic and a flood never delays a renewal.

pub mod control_channel;
pub mod identity;
pub mod resolver;
