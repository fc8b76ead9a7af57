//! Who was refused a stream of configuration, or to take a workload out of service, for what he is or asks for: a line of the audit log each.
//!
//! Invariant: whoever knocks cannot fill the disk. [`LINES`] are written at once and in a second; the rest are counted.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::{Code, Status};
use weft_engine::ratelimit::{Cell, Decision, Rate};

use super::Hub;

/// How many lines are written.
const LINES: Rate = Rate { requests: 50, per: Duration::from_secs(1), burst: 50 };

/// How many lines were written lately.
#[derive(Debug, Default)]
pub(super) struct Audit(Cell);

impl Hub {
    /// `what` ended with that. That a peer went away, or its certificate ran out, is no refusal.
    pub(crate) fn audit(&self, what: &str, identity: &str, addr: SocketAddr, status: &Status) {
        let cause = match status.code() {
            Code::PermissionDenied => "not_yours",
            Code::InvalidArgument => "protocol",
            Code::Unauthenticated if identity.is_empty() => "unauthenticated",
            _ => return tracing::debug!(identity, %addr, %status, "a {what} ends"),
        };
        let Decision::Admit { .. } = LINES.check(&self.audit.0, self.now()) else {
            return self.metrics.bound("audit_lines", 1);
        };
        let reason = status.message();
        tracing::warn!(target: "weft::audit", cause, identity, %addr, reason, "{what} refused");
    }
}
