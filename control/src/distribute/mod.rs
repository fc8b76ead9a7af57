//! Resources -> proxies: one delta stream each, over one store of encoded resources.
//!
//! - [`session`]: a stream's state, pure: what the proxy holds, what it has acknowledged, what is to be sent next.
//! - [`subscribers`]: which stream listens to what.
//! - [`streams`]: those that are open.
//! - [`hub`]: the store, the streams, and how a change gets from one to the others.
//! - [`feed`]: how changes get from the sources to the hub, in batches.
//! - [`ads`]: the gRPC service, a thin shell around a session.
//! - [`drain`]: how a pod leaves; [`leaves`]: those that do.
//! - [`picture`]: who runs what, by object and resource; [`describe`]: what each proxy runs, and where that differs from what is true.
//! - [`events`]: why something was pushed, and what became of it.
//! - [`audit`]: who was refused either.
//!
//! Nothing here looks inside a resource, but to show it to people: other façades can stand on the same store.

pub mod ads;
mod audit;
pub mod describe;
pub mod drain;
pub mod events;
pub mod feed;
pub mod hub;
mod leaves;
pub mod picture;
pub mod session;
mod streams;
pub mod subscribers;

pub use feed::Feed;
pub use hub::{Hub, Stream};
