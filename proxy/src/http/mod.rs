//! HTTP on its way through: a session (a client's connection), its requests, their routes, retries and bodies.
//!
//! - [`serve`]: a connection. [`session`]: what its requests share, and what is counted of each.
//! - [`outbound`]: our own application's requests. [`inbound`]: requests to it. [`attempt`]: endpoints, connections, retries.
//! - [`h1`]: HTTP/1, our own. [`upgrade`]: connections that leave it.
//! - HTTP/2, by hyper: [`h2`]: a request on its way; [`body`]: what is kept of it for another attempt; [`respond`], [`relay`]: its response;
//!   [`headers`], [`refuse`]: what a proxy does to heads.
//!
//! HTTP/1 stays HTTP/1 and HTTP/2 stays HTTP/2 over every hop: nothing is translated, so nothing is lost in translation.

pub mod attempt;
pub mod body;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod inbound;
pub mod outbound;
pub mod refuse;
pub mod relay;
pub mod respond;
pub mod serve;
pub mod session;
pub mod upgrade;

/// Largest list of header fields of one HTTP/2 message, in bytes; it bounds CONTINUATION frames too.
pub const H2_HEADER_LIST: u32 = 64 << 10;
/// What a peer may send on one stream before it is read.
pub const H2_STREAM_WINDOW: u32 = 1 << 20;
/// What a peer may send on one connection before it is read: larger than a stream's, so that one slow stream does not stop the others.
pub const H2_CONN_WINDOW: u32 = 4 << 20;
