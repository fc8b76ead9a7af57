//! HTTP/2, by the h2 library itself: one task moves a connection's frames, and each request has one task, from its head to the last byte of
//! its response.
//!
//! - [`connection`]: a client's connection. [`exchange`]: one request and its response; `opening`: its stream to an endpoint; [`heads`]:
//!   whom it is for. [`pipe`]: a body on its way from one stream to
//!   another; [`replay`]: what is kept of it for another attempt; [`mirror`]: a copy.
//!
//! What the library refuses by itself, so that nothing here looks at it: header fields that concern one connection only, names in upper
//! case, `content-length` that disagrees with DATA, pseudo-header fields out of place (RFC 9113 section 8).

pub mod connection;
pub mod exchange;
pub mod heads;
pub mod mirror;
mod opening;
pub mod pipe;
pub mod replay;

/// Largest list of header fields of one message, in bytes; it bounds CONTINUATION frames too.
pub const HEADER_LIST: u32 = 64 << 10;
/// What a peer may send on one stream before it is passed on. It is what a reader that has stopped costs on each hop, together with
/// [`SEND_BUFFER`]; a stream moves at most that much in a round trip.
pub const STREAM_WINDOW: u32 = 20 << 10;
/// Requests at a time on one connection.
pub const MAX_STREAMS: u32 = 200;
/// What a peer may send on one connection before it is passed on: as much as all its streams together, so that those which nobody reads
/// never stop the others.
pub const CONN_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// What waits on one stream to be written, once the peer's windows allow it.
pub const SEND_BUFFER: usize = 16 << 10;
