//! HTTP/1 without a library in between: a head is checked once, by the engine, and goes on as the bytes that it came in; bodies pass as
//! they are framed. What a library would make of a message, and the application differently, is no question here: what passes
//! is what was checked.
//!
//! - [`serve`]: a client's connection, request after request. [`exchange`]: one of them. `sending`: its way to an endpoint; `drain`: a response
//!   that nobody gets; `mirror`: a copy.
//! - [`wire`]: a stream and what was read ahead. [`pump`]: a message under way. [`heads`], [`refusal`]: what is written.
//!
//! `Expect: 100-continue` and interim responses (1xx) pass from end to end.

mod drain;
pub mod exchange;
pub mod heads;
mod mirror;
pub mod pump;
pub mod refusal;
mod sending;
pub mod serve;
pub mod wire;

#[cfg(test)]
mod tests;
