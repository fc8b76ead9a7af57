//! SPIFFE's Workload API, both ways: an application asks us for an identity of its own ([`serve`]), and we ask another implementation, such
//! as SPIRE's agent, for ours ([`follow`]).
//!
//! The application's certificate names the same identity as the proxy's and has a key of its own: it is asked for by the same machine
//! ([`renew`](super::renew)) into a second store, and proved by the proxy's certificate. The proxy's own key is never given away, because
//! then
//!
//! - whoever reads the application's memory could pose as the proxy in connections that the proxy still holds, and
//! - nobody could tell the two apart by serial number, to withdraw one and keep the other.
//!
//! What both have in common is the identity itself: whoever can open the socket can act in the workload's name, towards control too. So the
//! pod is the border of trust, the socket belongs on a volume of that pod alone, and within it anybody may open it (mode 0666): the containers
//! of a pod have users of their own.
//!
//! Invariants
//! - The socket is served on the admin thread: nothing here waits for traffic, and traffic for nothing here.
//! - Connections and streams are bounded, each with a count in `weft_bound_hit_total`, and so are messages. For a reader that stops one message
//!   waits; it is sent the newest afterwards.
//! - A private key reaches the stream it was asked on, and neither `Debug`, log nor disk.
//! - An expired certificate is never given out, nor taken.

pub mod follow;
mod host;
pub mod serve;
pub mod socket;

/// What every request carries, so that nobody is talked into sending one by accident (SPIFFE_Workload_Endpoint, section 3).
const SECURITY_HEADER: &str = "workload.spiffe.io";
