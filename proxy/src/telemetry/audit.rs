//! The audit log: who was not whom he had to be, spoke otherwise than the mesh does, or in the clear where that is refused; one line each.
//!
//! Invariant: whoever knocks cannot fill the disk. [`LINES`] are written at once and in a second; the rest are counted.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use weft_certs::failure::Failure;
use weft_engine::ratelimit::{Cell, Decision, Rate};
use weft_engine::reason::Reason;

use super::{Direction, Telemetry};

/// How many lines are written.
const LINES: Rate = Rate { requests: 10, per: Duration::from_secs(1), burst: 10 };

/// How many lines were written lately.
#[derive(Debug, Default)]
pub struct Audit(Cell);

impl Audit {
    /// Whether there is room for another line now.
    fn admits(&self, now: Duration) -> bool {
        matches!(LINES.check(&self.0, now), Decision::Admit { .. })
    }
}

impl Telemetry {
    /// A handshake with a peer failed. That one hung up, took too long, did not want us or is no sidecar yet is no attack on us, and is
    /// counted alone.
    pub fn audit(&self, direction: Direction, failure: Failure, peer: &dyn Display, why: &dyn Display) {
        match failure {
            Failure::RefusedByPeer | Failure::Timeout | Failure::Closed => return,
            Failure::Protocol if direction == Direction::Outbound => return,
            _ => {}
        }
        if self.may_audit() {
            let (direction, cause) = (direction.label(), failure.code());
            tracing::warn!(target: "weft::audit", cause, direction, %peer, reason = %why, "handshake refused");
        }
    }

    /// A peer that came in the clear to a port that takes mesh TLS only was refused; `why` says how it came.
    pub fn audit_plaintext(&self, peer: SocketAddr, port: u16, why: &str) {
        if self.may_audit() {
            let (direction, cause) = (Direction::Inbound.label(), Reason::PlaintextRefused.code());
            tracing::warn!(target: "weft::audit", cause, direction, %peer, port, reason = why, "connection refused");
        }
    }

    fn may_audit(&self) -> bool {
        let admitted = self.audit.admits(self.clock.now());
        if !admitted {
            self.bound_hit("audit_lines");
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_and_then_ten_a_second() {
        let audit = Audit::default();
        let admitted = |ms| (0..300).filter(|_| audit.admits(Duration::from_millis(ms))).count();
        let rounds = [(0, 10), (99, 0), (100, 1), (1_100, 10), (1_101, 0), (90_000, 10)];
        assert_eq!(rounds.map(|(ms, _)| (ms, admitted(ms))), rounds);
    }
}
