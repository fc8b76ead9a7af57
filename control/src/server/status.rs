//! How control and its mesh are, in one object: `/debug/status`, which `weft status` prints. What has to be mended is said in sentences, and
//! nothing else makes it not ok.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::distribute::Hub;
use crate::distribute::describe::Described;
use crate::distribute::picture::ObjectPicture;
use crate::metrics::Sample;
use crate::replicas::{Seen, whole};
use crate::sources::kubernetes;

/// A proxy that has not answered for longer than this lags.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of what is wrong in the same way, so many are named.
const NAMED: usize = 10;

/// How things are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Nothing has to be mended.
    pub ok: bool,
    /// Control's version.
    pub version: String,
    /// It serves: it has read its sources, and has a certificate.
    pub ready: bool,
    /// When its own certificate ends, in seconds since 1970; 0: it has none yet.
    pub certificate_not_after: i64,
    /// What its sources say of themselves.
    pub sources: Sources,
    /// The other replicas of control.
    #[serde(default)]
    pub replicas: Vec<Seen>,
    /// How many proxies are how.
    pub proxies: Proxies,
    /// Objects of which some proxy refuses something.
    pub objects: Vec<ObjectPicture>,
    /// What has to be mended, a sentence each.
    pub mend: Vec<String>,
}

/// What the sources say of themselves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sources {
    /// By name where there are several: `synced`, `stale` or `lost`.
    pub states: BTreeMap<String, String>,
    /// Age of the oldest part, in seconds.
    pub age_seconds: f64,
    /// Problems in the objects.
    pub problems: f64,
    /// Objects of kinds that are not read.
    pub skipped: f64,
    /// Kinds that the API server does not let control read, and has not since control began.
    #[serde(default)]
    pub forbidden: Vec<String>,
}

/// How many proxies are how.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Proxies {
    /// There ought to be so many, by the sources.
    pub expected: usize,
    /// They have a stream.
    pub connected: usize,
    /// They run all that they were sent.
    pub in_sync: usize,
    /// They ought to have a stream and have none.
    pub absent: Vec<String>,
    /// They have not answered for a while; seconds.
    pub lagging: BTreeMap<String, f64>,
    /// They refuse something.
    pub refusing: Vec<String>,
}

impl Status {
    /// Looks at everything.
    pub async fn new(hub: &Hub, now: SystemTime) -> Self {
        let proxies = whole::proxies(hub, hub.describe(None), "/debug/proxies").await;
        let mut status = Self {
            ok: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: *hub.loaded().borrow() && hub.metrics.control_not_after.get() != 0,
            certificate_not_after: hub.metrics.control_not_after.get(),
            sources: Sources::of(&hub.metrics.samples("source_")),
            replicas: hub.replicas.seen(),
            proxies: Proxies::of(&proxies),
            objects: whole::refused_objects(hub, hub.refused_objects()).await,
            mend: Vec::new(),
        };
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        status.mend = status.to_mend(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        status.ok = status.mend.is_empty();
        status
    }

    /// `now`: seconds since 1970.
    fn to_mend(&self, now: i64) -> Vec<String> {
        let mut mend = Vec::new();
        if !self.ready {
            mend.push("control does not serve yet: its log says what it waits for".to_owned());
        } else if self.certificate_not_after <= now {
            mend.push(
                "control's own certificate has ended, no proxy can connect: its log says why it has no other"
                    .to_owned(),
            );
        }
        mend.extend(self.sources.forbidden());
        for (source, state) in self.sources.states.iter().filter(|(_, state)| *state != "synced") {
            let source = if source.is_empty() { "the source" } else { source };
            mend.push(format!(
                "{source} is {state}, for {:.0} s: what was known stays in force, changes are not seen; control's log says why",
                self.sources.age_seconds
            ));
        }
        if self.sources.problems > 0.0 {
            mend.push(format!(
                "{} problems in the objects, whose last good versions stay in force: control's log names them, `weft policy check` says where",
                self.sources.problems
            ));
        }
        for silent in self.replicas.iter().filter(|replica| !replica.heard) {
            let name = &silent.name;
            mend.push(format!(
                "the control {name} is not heard: does it run, and does it reach this one's port 15012?"
            ));
        }
        let Proxies { absent, lagging, .. } = &self.proxies;
        mend.extend(named(absent, |pod| {
            format!(
                "{pod} ought to be connected and is not: does its sidecar run, and does it reach control's port 15012?"
            )
        }));
        let late: Vec<_> = lagging.iter().collect();
        mend.extend(named(&late, |(pod, seconds)| {
            format!("{pod} has not answered for {seconds:.0} s: has it CPU? `weft diff {pod}` shows what it lacks")
        }));
        mend.extend(named(&self.objects, |object| format!("{} {}: {}", object.kind, object.name, object.sentence)));
        mend
    }
}

/// A sentence for each, as far as they are named.
fn named<T>(all: &[T], sentence: impl Fn(&T) -> String) -> Vec<String> {
    let mut sentences: Vec<String> = all.iter().take(NAMED).map(sentence).collect();
    if let Some(more) = all.len().checked_sub(NAMED).filter(|more| *more > 0) {
        sentences.push(format!("and {more} more like that"));
    }
    sentences
}

impl Sources {
    /// What may not be read, and what that costs.
    fn forbidden(&self) -> impl Iterator<Item = String> {
        self.forbidden.iter().filter_map(|kind| kubernetes::forbidden(kind))
    }

    /// Why nobody is answered yet, as far as it is known here.
    pub fn waits(hub: &Hub) -> String {
        let forbidden: Vec<String> = Self::of(&hub.metrics.samples("source_")).forbidden().collect();
        if forbidden.is_empty() {
            return "the sources have not been read yet\n".to_owned();
        }
        format!("the sources have not been read yet: {}\n", forbidden.join("; "))
    }

    fn of(samples: &[Sample]) -> Self {
        let sum = |name: &str| samples.iter().filter(|found| found.name == name).map(|found| found.value).sum();
        let oldest = samples.iter().filter(|found| found.name == "source_age_seconds").map(|found| found.value);
        let states = samples.iter().filter(|found| found.name == "source_state" && found.value > 0.0);
        let forbidden = samples.iter().filter(|found| found.name == "source_forbidden" && found.value > 0.0);
        let label = |found: &Sample, label: &str| found.labels.get(label).cloned().unwrap_or_default();
        Self {
            states: states.map(|found| (label(found, "source"), label(found, "state"))).collect(),
            age_seconds: oldest.fold(0.0, f64::max),
            problems: sum("source_problems"),
            skipped: sum("source_skipped_objects"),
            forbidden: forbidden.map(|found| label(found, "kind")).collect(),
        }
    }
}

impl Proxies {
    fn of(all: &[Described]) -> Self {
        let (connected, absent): (Vec<_>, Vec<_>) = all.iter().partition(|one| one.connected);
        let late = |one: &&&Described| one.waits_seconds > PATIENCE.as_secs_f64();
        Self {
            expected: all.len(),
            connected: connected.len(),
            in_sync: connected.iter().filter(|one| one.lagging() == 0 && one.refused == 0).count(),
            absent: absent.iter().map(|one| one.workload.clone()).collect(),
            lagging: connected.iter().filter(late).map(|one| (one.workload.clone(), one.waits_seconds)).collect(),
            refusing: connected.iter().filter(|one| one.refused > 0).map(|one| one.workload.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(workload: &str, waits_seconds: f64, refused: usize) -> Described {
        let workload = workload.to_owned();
        Described { workload, connected: true, waits_seconds, refused, behind: refused, ..Described::default() }
    }

    fn status(all: &[Described]) -> Status {
        Status {
            ok: false,
            version: String::new(),
            ready: true,
            certificate_not_after: 100,
            sources: Sources { states: [(String::new(), "synced".to_owned())].into(), ..Sources::default() },
            replicas: Vec::new(),
            proxies: Proxies::of(all),
            objects: Vec::new(),
            mend: Vec::new(),
        }
    }

    #[test]
    fn nothing_is_to_be_mended_where_all_is_well() {
        let all = [connected("shop/web-1", 0.2, 0), connected("shop/web-2", 0.0, 0)];
        let status = status(&all);
        assert_eq!((status.proxies.expected, status.proxies.in_sync), (2, 2));
        assert!(status.to_mend(50).is_empty());
        assert!(status.to_mend(100)[0].contains("certificate has ended"));
    }

    #[test]
    fn a_kind_that_may_not_be_read_is_to_be_mended() {
        let mut status = status(&[]);
        status.sources.forbidden = vec!["TCPRoute".to_owned()];
        let mend = status.to_mend(50);
        assert!(mend.len() == 1 && mend[0].contains("tcproutes.gateway.networking.k8s.io"), "{mend:?}");
    }

    #[test]
    fn who_is_away_late_or_refuses_is_named_up_to_a_bound() {
        let mut all = vec![connected("shop/late", 11.0, 0), connected("shop/no", 0.0, 2)];
        all.extend((0..12).map(|number| Described { workload: format!("shop/{number}"), ..Described::default() }));
        let mut status = status(&all);
        assert_eq!(status.proxies.refusing, ["shop/no"]);
        status.sources.states = [("kubernetes".to_owned(), "lost".to_owned())].into();
        status.sources.age_seconds = 7.0;
        let mend = status.to_mend(50);
        assert!(mend[0].starts_with("kubernetes is lost, for 7 s"), "{mend:?}");
        assert!(mend[1].starts_with("shop/0 ought to be connected"), "{mend:?}");
        assert_eq!(mend[11], "and 2 more like that");
        assert!(mend[12].starts_with("shop/late has not answered for 11 s"), "{mend:?}");
    }
}
