//! The audit log: handshakes in which somebody was not whom he had to be, or spoke otherwise than the mesh does; one line each.
//!
//! Invariant: whoever knocks cannot fill the disk. At most [`LINES`] are written in a second; the rest are counted.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_certs::failure::Failure;

use super::{Direction, Telemetry};

/// Lines in a second.
const LINES: u64 = 10;
/// Bits of their count, below the second that they are of.
const BITS: u32 = 8;

/// How many lines were written lately.
#[derive(Debug, Default)]
pub struct Audit(AtomicU64);

impl Audit {
    /// Whether there is room for another line in this second.
    fn admits(&self, now: Duration) -> bool {
        let second = now.as_secs() << BITS;
        let admitted = |before: u64| {
            let lines = if before >> BITS == now.as_secs() { before - second } else { 0 };
            (lines < LINES).then_some(second + lines + 1)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admitted).is_ok()
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
        if !self.audit.admits(self.clock.now()) {
            return self.bound_hit("audit_lines");
        }
        let (direction, cause) = (direction.label(), failure.code());
        tracing::warn!(target: "weft::audit", cause, direction, %peer, reason = %why, "handshake refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_a_second() {
        let audit = Audit::default();
        let admitted = |ms| (0..300).filter(|_| audit.admits(Duration::from_millis(ms))).count();
        let rounds = [(0, 10), (999, 0), (1000, 10), (1001, 0), (90_000, 10)];
        assert_eq!(rounds.map(|(ms, _)| (ms, admitted(ms))), rounds);
    }
}
