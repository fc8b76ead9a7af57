//! One Lease, several who want it.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::claim::{Claim, Step};
use super::*;
use crate::metrics::Metrics;
use crate::testing::cluster::{self, Shared};

const SECOND: Duration = Duration::from_secs(1);

fn record(holder: &str, version: u64) -> Record {
    Record { holder: holder.to_owned(), lasts: Timing::default().lasts, version: version.to_string() }
}

#[test]
fn what_is_found_says_what_to_do() {
    let start = Instant::now();
    let claim = || Claim::new("a".to_owned(), Timing::default());
    for (name, looks, want) in [
        ("none", vec![(0, None)], Step::Make),
        ("another's, seen for the first time, however old it says it is", vec![(0, Some(record("b", 1)))], Step::Wait),
        ("not renewed", vec![(0, Some(record("b", 1))), (15, Some(record("b", 1)))], Step::Take),
        ("not quite over", vec![(0, Some(record("b", 1))), (14, Some(record("b", 1)))], Step::Wait),
        (
            "renewed meanwhile",
            vec![(0, Some(record("b", 1))), (14, Some(record("b", 2))), (28, Some(record("b", 2)))],
            Step::Wait,
        ),
        ("given back", vec![(0, Some(record("b", 1))), (1, Some(record("", 2)))], Step::Take),
        ("taken by a third", vec![(0, Some(record("b", 1))), (15, Some(record("c", 2)))], Step::Wait),
        ("ours, of a write whose answer was lost", vec![(0, Some(record("a", 1)))], Step::Renew),
        ("removed", vec![(0, Some(record("b", 1))), (1, None)], Step::Make),
    ] {
        let mut claim = claim();
        let steps = looks.into_iter().map(|(at, found)| claim.found(found, start + SECOND * at)).last();
        assert_eq!(steps, Some(want), "{name}");
    }
}

/// Holders write the time that is on their walls, for people. One whose clock is stepped an hour forward and back is neither taken for one that has
/// ceased to renew, nor for one that holds longer than it said.
#[test]
fn the_clock_on_a_holders_wall_neither_frees_a_lease_nor_keeps_it() {
    let start = Instant::now();
    let hours = |hours: i64| Timestamp::now().saturating_add(SignedDuration::from_hours(hours)).unwrap();
    let written = |version: u64, wall: i64| {
        let spec = LeaseSpec {
            holder_identity: Some("b".to_owned()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(hours(wall))),
            acquire_time: Some(MicroTime(hours(0))),
            ..LeaseSpec::default()
        };
        let metadata = ObjectMeta { resource_version: Some(version.to_string()), ..ObjectMeta::default() };
        Record::from(&Lease { metadata, spec: Some(spec) })
    };
    let mut claim = Claim::new("a".to_owned(), Timing::default());
    // Renewed each ten seconds: ahead by an hour, behind by one, as it was.
    for (version, wall) in [(1, 0), (2, 1), (3, -1), (4, 0)] {
        for later in [0, 9] {
            let at = start + SECOND * (10 * u32::try_from(version).unwrap() + later);
            assert_eq!(claim.found(Some(written(version, wall)), at), Step::Wait, "{version} {wall}");
        }
    }
    // It has ceased, an hour from now by its own clock.
    let mut claim = Claim::new("a".to_owned(), Timing::default());
    assert_eq!(claim.found(Some(written(5, 1)), start), Step::Wait);
    assert_eq!(claim.found(Some(written(5, 1)), start + SECOND * 15), Step::Take);
}

#[test]
fn a_holder_holds_from_when_it_sent_until_the_deadline_and_not_when_another_is_found() {
    let (start, timing) = (Instant::now(), Timing::default());
    let mut claim = Claim::new("a".to_owned(), timing);
    assert_eq!((claim.next(start), claim.until()), (Step::Read, None));
    claim.written(record("a", 1), start);
    assert_eq!((claim.next(start + SECOND * 9), claim.until()), (Step::Renew, Some(start + timing.deadline)));
    assert_eq!(claim.next(start + SECOND * 10), Step::Read, "it could not be renewed in time");
    assert_eq!(claim.found(Some(record("b", 2)), start + SECOND * 5), Step::Wait);
    assert_eq!((claim.next(start + SECOND * 5), claim.until()), (Step::Read, None));
    // Each answer in time: a write that is begun by the deadline is over before anybody else may take the Lease.
    assert!(timing.deadline + crate::cluster::QUESTION <= timing.lasts);
}

/// What happens to one of those who want the Lease.
#[derive(Clone, Debug)]
enum Happens {
    /// It takes its turn: reads and writes, each after so many milliseconds on the way there and back. Its writes may be lost, or their answers.
    Turn {
        who: usize,
        there: u64,
        back: u64,
        lost: bool,
        deaf: bool,
    },
    Time(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0..3_usize, 0..5_000_u64, 0..5_000_u64, prop::bool::weighted(0.2), prop::bool::weighted(0.2))
            .prop_map(|(who, there, back, lost, deaf)| Happens::Turn { who, there, back, lost, deaf }),
        1 => (1..20_000_u64).prop_map(Happens::Time),
    ]
}

/// The server's part: writes over the version that was seen.
#[derive(Default)]
struct Server {
    found: Option<Record>,
    writes: u64,
}

impl Server {
    fn write(&mut self, over: Option<&Record>, holder: &str) -> Option<Record> {
        if self.found.as_ref() != over {
            return None;
        }
        self.writes += 1;
        self.found = Some(record(holder, self.writes));
        self.found.clone()
    }
}

proptest! {
    #[test]
    fn no_two_hold_it_at_one_time(all in prop::collection::vec(happens(), 1..120)) {
        let names = ["a", "b", "c"];
        let mut now = Instant::now();
        let mut claims = names.map(|name| Claim::new(name.to_owned(), Timing::default()));
        let mut knows: [Option<Record>; 3] = [None, None, None];
        let mut server = Server::default();
        for one in all {
            match one {
                Happens::Time(ms) => now += Duration::from_millis(ms),
                Happens::Turn { who, there, back, lost, deaf } => {
                    let claim = &mut claims[who];
                    let mut step = claim.next(now);
                    if step == Step::Read {
                        knows[who] = server.found.clone();
                        now += Duration::from_millis(back);
                        step = claim.found(knows[who].clone(), now);
                    }
                    if step != Step::Wait && !lost {
                        let sent = now;
                        now += Duration::from_millis(there);
                        let over = if step == Step::Make { None } else { knows[who].as_ref() };
                        let written = server.write(over, names[who]);
                        now += Duration::from_millis(back);
                        if let Some(written) = written.filter(|_| !deaf) {
                            knows[who] = Some(written.clone());
                            claim.written(written, sent);
                        } else if !deaf {
                            knows[who] = server.found.clone();
                            claim.found(server.found.clone(), now);
                        }
                    }
                }
            }
            let holders = claims.iter().filter(|claim| claim.next(now) == Step::Renew).count();
            prop_assert!(holders <= 1, "{holders} hold it");
        }
    }
}

struct Replica {
    held: Held,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    metrics: Arc<Metrics>,
}

fn replica(cluster: &Shared, holder: &str) -> Replica {
    let (metrics, stop) = (Arc::new(Metrics::new().unwrap()), CancellationToken::new());
    let settings = Settings {
        what: "leader",
        namespace: "weft-system".to_owned(),
        name: "weft-leader".to_owned(),
        holder: holder.to_owned(),
        annotations: [("weft.dev/address".to_owned(), holder.to_owned())].into(),
        labels: [].into(),
        timing: Timing::default(),
    };
    let (held, task) = hold(&cluster::client(cluster), settings, Arc::clone(&metrics), stop.clone());
    Replica { held, stop, task, metrics }
}

impl Replica {
    /// How long until it holds the Lease, or holds it no more.
    async fn takes(&mut self, to: bool) -> Duration {
        let begun = Instant::now();
        tokio::time::timeout(SECOND * 60, self.held.other_than(!to)).await.expect("a minute was not enough");
        begun.elapsed()
    }
}

fn lease(cluster: &Shared) -> serde_json::Value {
    let path = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-leader";
    cluster.lock().get(path).cloned().expect("there is a Lease")
}

#[tokio::test(start_paused = true)]
async fn one_holds_it_and_the_other_takes_it_when_the_first_is_killed_or_stops() {
    let cluster = Shared::default();
    let mut first = replica(&cluster, "first");
    first.takes(true).await;
    let mut second = replica(&cluster, "second");
    tokio::time::sleep(SECOND * 60).await;
    assert!(first.held.now() && !second.held.now());
    first.task.abort();
    // Whoever looks into what a dead task has left finds that it holds nothing.
    assert!(first.takes(false).await <= SECOND * 10);
    let took = second.takes(true).await;
    // Fifteen seconds after it saw the last renewal, to the moment.
    assert!(took <= Duration::from_millis(7_500), "{took:?}");
    let found = lease(&cluster);
    assert_eq!(
        (found["spec"]["holderIdentity"].as_str(), found["spec"]["leaseTransitions"].as_i64()),
        (Some("second"), Some(1))
    );
    assert_eq!(found["metadata"]["annotations"]["weft.dev/address"], "second");
    assert_eq!(found["metadata"]["labels"]["app.kubernetes.io/managed-by"], "weft");
    // Who stops gives it back.
    let mut third = replica(&cluster, "third");
    tokio::time::sleep(SECOND * 20).await;
    second.stop.cancel();
    second.task.await.unwrap();
    assert!(!second.held.now() && third.takes(true).await <= SECOND * 3);
    let text = String::from_utf8(third.metrics.text().unwrap()).unwrap();
    assert!(text.contains("weft_control_lease_held{lease=\"leader\"} 1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_it_holds_it_no_more_and_a_lost_answer_is_not_a_lost_lease() {
    let cluster = Shared::default();
    let mut first = replica(&cluster, "first");
    first.takes(true).await;
    cluster.lock().lost = Some(0);
    tokio::time::sleep(SECOND * 9).await;
    assert!(first.held.now(), "one lost answer");
    cluster.lock().away = true;
    assert!(first.takes(false).await <= SECOND * 10);
    assert!(first.metrics.leader.errors.with_label_values(&["leader"]).get() >= 4);
    cluster.lock().away = false;
    assert!(first.takes(true).await <= SECOND * 3);
    // Somebody takes it by hand.
    let mut others = lease(&cluster);
    others["spec"]["holderIdentity"] = "somebody".into();
    cluster.lock().put("/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-leader", others);
    assert!(first.takes(false).await <= SECOND * 3);
    assert!(first.takes(true).await >= SECOND * 14);
}
