//! The data path end to end in one process: connections enter where the kernel would have redirected them.

mod app;
mod bodies;
mod certificates;
mod closing;
mod corpus;
mod filters;
mod floods;
mod handshakes;
mod http1;
mod http2;
mod inbound;
mod keepalive;
mod messages;
mod names;
mod opaque;
mod raw;
mod recorder;
mod revoked;
mod sizes;
mod smuggling;
mod stopping;
mod withdrawn;
pub(crate) mod world;
