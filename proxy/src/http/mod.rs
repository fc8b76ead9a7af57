//! HTTP on its way through: a session (a client's connection), its requests, their routes, retries and bodies.
//!
//! - [`serve`]: a connection. [`session`]: what its requests share, and what is counted of each.
//! - [`outbound`]: our own application's requests. [`inbound`]: requests to it. [`attempt`]: endpoints, connections, retries.
//!   [`mirror`]: copies of requests.
//! - [`h1`]: HTTP/1, our own. [`upgrade`]: connections that leave it.
//! - [`h2`]: HTTP/2, by the library of that name. [`headers`], [`refuse`]: what a proxy does to its heads.
//!
//! HTTP/1 stays HTTP/1 and HTTP/2 stays HTTP/2 over every hop: nothing is translated, so nothing is lost in translation.

pub mod attempt;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod inbound;
pub mod mirror;
pub mod outbound;
pub mod refuse;
pub mod serve;
pub mod session;
pub mod upgrade;
