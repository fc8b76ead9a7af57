//! Which endpoint: power of two choices over peak-EWMA load (Mitzenmacher 2001; Finagle's `PeakEwma`), weights honoured.
//!
//! The cost of an endpoint is its round-trip estimate times the requests that it holds for each unit of weight, plus one. The estimate jumps up to
//! a slower answer at once and comes down with time (10 s), so that a slow endpoint is left quickly and tried again later.
//!
//! Invariants: a choice allocates nothing, locks nothing and looks at a bounded number of members, whatever the size of the set (unless all that
//! it drew are unfit); a draining endpoint, or one that refuses connections, is chosen only if nothing better is left; of an endpoint whose back-off has
//! ended one request finds out whether it is back, not all.
//!
//! Which of a service's endpoints a client uses at all, and which first, is [`arrange`]d when the set changes, not for each request.

mod choose;
mod load;
mod near;

pub use choose::{Candidate, Order, choose};
pub use load::Load;
pub use near::{Hints, Place, Placed, Spread, arrange};

#[cfg(test)]
mod tests;
