//! Pure decisions on plain data: which route, which endpoint, may this peer, may this request now, what became of it, and why.
//!
//! Invariants: no I/O, no async, no clock of its own (time is an argument), no randomness of its own (a drawn number is an
//! argument), no protobuf. The proxy decides with this code and `weft explain` answers with this code (contract C10).
//!
//! - [`reason`]: the codes that every refusal carries.
//! - [`identity`]: SPIFFE IDs.
//! - [`detect`]: which protocol the first bytes speak.
//! - [`head`]: HTTP/1 heads, read strictly and as the bytes they are.
//! - [`framing`]: where an HTTP/1 body ends and the next head begins.
//! - [`request`]: what a decision may look at.
//! - [`route`]: route tables and their precedence.
//! - [`authz`]: who may.
//! - [`ratelimit`]: how often.
//! - [`balance`]: which endpoint.
//! - [`flood`]: frames of HTTP/2 that cost and bring nothing.
//! - [`shed`]: when load is shed for want of memory.
//! - [`keepalive`]: how long an idle connection is kept.
//! - [`outcome`]: what became of an attempt, and whether another one is safe.
//! - [`retry`]: what a route asks for beyond that, and its budget.
//! - [`explain`]: the same decisions, told step by step.

pub mod authz;
pub mod balance;
pub mod detect;
pub mod explain;
pub mod flood;
pub mod framing;
pub mod head;
pub mod identity;
pub mod keepalive;
pub mod outcome;
pub mod ratelimit;
pub mod reason;
pub mod request;
pub mod retry;
pub mod route;
pub mod shed;
