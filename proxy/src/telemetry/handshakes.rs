//! TLS handshakes of the mesh: how those that succeeded were made, how long they took, and why others failed.
//!
//! Invariant: the labels' values are known beforehand, so that counting is an index and an addition; what a peer says never becomes one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::MetricType;
use rustls::crypto::SupportedKxGroup;
use rustls::{CommonState, HandshakeKind, NamedGroup, ProtocolVersion};
use weft_certs::failure::Failure;

use super::Direction;
use super::families::Values;
use super::latency::{BUCKETS, Latency};
use super::scrape::Page;

/// Versions by their labels. The mesh speaks the first alone.
const VERSIONS: [(ProtocolVersion, &str); 2] =
    [(ProtocolVersion::TLSv1_3, "TLSv1.3"), (ProtocolVersion::TLSv1_2, "TLSv1.2")];
/// Groups by their labels, which are IANA's names.
const GROUPS: [(NamedGroup, &str); 3] = [
    (NamedGroup::X25519MLKEM768, "X25519MLKEM768"),
    (NamedGroup::X25519, "x25519"),
    (NamedGroup::secp256r1, "secp256r1"),
];
/// What is none of those.
const OTHER: &str = "other";
/// Whether a session was resumed, by label.
const RESUMED: [&str; 2] = ["false", "true"];

/// By version and group, the last of each being another one, and by whether it was resumed.
type Counts = [[[AtomicU64; RESUMED.len()]; GROUPS.len() + 1]; VERSIONS.len() + 1];

/// What is counted of one direction.
#[derive(Debug, Default)]
struct Side {
    finished: Counts,
    took: Latency,
    failed: [AtomicU64; Failure::ALL.len()],
}

/// Counts handshakes.
#[derive(Debug, Default)]
pub struct Handshakes([Side; 2]);

impl Handshakes {
    /// A handshake ended well, in a session that the caller goes on with.
    pub fn finished(&self, direction: Direction, session: &CommonState, took: Duration) {
        let version = session.protocol_version();
        let group = session.negotiated_key_exchange_group().map(SupportedKxGroup::name);
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let side = &self.0[direction as usize];
        side.finished[place(&VERSIONS, version)][place(&GROUPS, group)][usize::from(resumed)]
            .fetch_add(1, Ordering::Relaxed);
        side.took.record(took);
    }

    /// A handshake failed, or the session was given up because of what it proved.
    pub fn failed(&self, direction: Direction, failure: Failure) {
        self.0[direction as usize].failed[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// So many failed for that reason.
    pub fn failures(&self, direction: Direction, failure: Failure) -> u64 {
        self.0[direction as usize].failed[failure as usize].load(Ordering::Relaxed)
    }

    /// So many ended well.
    pub fn successes(&self, direction: Direction) -> u64 {
        self.0[direction as usize].took.count()
    }

    /// Adds all of it to a page. Ways that no handshake went are left out, but for the one that all should go.
    ///
    /// # Errors
    /// Only if a family is malformed, which is a mistake of ours.
    pub fn write(&self, page: &mut Page) -> prometheus::Result<()> {
        let [mut finished, mut failed, mut took] = <[Values; 3]>::default();
        for (direction, side) in Direction::ALL.iter().zip(&self.0) {
            let label = ("direction", direction.label());
            for (way, count) in ways(&side.finished) {
                let [version, group, resumed] = way;
                let labels = [label, ("version", version), ("group", group), ("resumed", resumed)];
                finished.counter(&labels, count as f64);
            }
            for failure in Failure::ALL {
                let count = side.failed[*failure as usize].load(Ordering::Relaxed);
                failed.counter(&[label, ("reason", failure.code())], count as f64);
            }
            let (buckets, sum) = side.took.get();
            took.histogram(&[label], &BUCKETS, &buckets, sum);
        }
        let help = "TLS handshakes between sidecars that ended well.";
        page.add("weft_tls_handshakes_total", help, MetricType::COUNTER, finished)?;
        let help = "TLS handshakes between sidecars that failed, by reason.";
        page.add("weft_tls_handshake_failures_total", help, MetricType::COUNTER, failed)?;
        let help = "Time from the first word of a TLS handshake to its end, of those that ended well.";
        page.add("weft_tls_handshake_duration_seconds", help, MetricType::HISTOGRAM, took)
    }
}

fn place<T: PartialEq>(known: &[(T, &str)], found: Option<T>) -> usize {
    known.iter().position(|(value, _)| found.as_ref() == Some(value)).unwrap_or(known.len())
}

/// The labels and the count of each way that a handshake went.
fn ways(counts: &Counts) -> impl Iterator<Item = ([&'static str; 3], u64)> {
    let versions = VERSIONS.iter().map(|(_, label)| *label).chain([OTHER]).zip(counts);
    let groups = versions.flat_map(|(version, counts)| {
        let groups = GROUPS.iter().map(|(_, label)| *label).chain([OTHER]).zip(counts);
        groups.map(move |(group, counts)| (version, group, counts))
    });
    let all = groups.flat_map(|(version, group, counts)| {
        RESUMED
            .iter()
            .zip(counts)
            .map(move |(resumed, count)| ([version, group, *resumed], count.load(Ordering::Relaxed)))
    });
    let expected = [VERSIONS[0].1, GROUPS[0].1, RESUMED[0]];
    all.filter(move |(way, count)| *count > 0 || *way == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_is_counted_for_itself_and_by_direction() {
        let handshakes = Handshakes::default();
        for failure in Failure::ALL {
            handshakes.failed(Direction::Inbound, *failure);
            assert_eq!(handshakes.failures(Direction::Inbound, *failure), 1);
            assert_eq!(handshakes.failures(Direction::Outbound, *failure), 0);
        }
    }

    #[test]
    fn what_is_not_known_beforehand_is_other() {
        assert_eq!(place(&GROUPS, Some(NamedGroup::X25519)), 1);
        assert_eq!(place(&GROUPS, Some(NamedGroup::secp521r1)), GROUPS.len());
        assert_eq!(place(&VERSIONS, None), VERSIONS.len());
        let counts = Counts::default();
        counts[VERSIONS.len()][GROUPS.len()][1].store(3, Ordering::Relaxed);
        let all: Vec<_> = ways(&counts).collect();
        assert_eq!(all, [(["TLSv1.3", "X25519MLKEM768", "false"], 0), ([OTHER, OTHER, "true"], 3)]);
    }
}
