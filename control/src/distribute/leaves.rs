//! Workloads that have said that they leave, here or at another replica of control.
//!
//! Invariants
//! - That one run of a proxy leaves stays true while its pod is being deleted; that a later run was seen outweighs it for good. So replicas may
//!   tell each other what they know in any order and as often as they like.
//! - A pod that is not being deleted stays after all, a grace period later: its application was only started anew, which runs the same hook.
//! - One that another replica told of, and that the sources do not know here yet, is kept for [`UNKNOWN_LIFE`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use weft_api::wire::replicas as wire;

use crate::auth;
use crate::model::{Model, Name, Workload};

/// A workload that said it leaves, and whose pod is not being deleted after this, has changed its mind. At least: the sources may be late.
const LEAST_LIFE: Duration = Duration::from_secs(30);
const LONGEST_LIFE: Duration = Duration::from_hours(1);
/// The pod's whole grace period, as a multiple of the time that its sidecar gives control (half of it; see the proxy's `drain_wait`).
const GRACE: u32 = 2;
/// How far the sources of two replicas may be apart.
const UNKNOWN_LIFE: Duration = Duration::from_secs(30);

/// One of them.
#[derive(Clone, Debug, PartialEq)]
struct Leaving {
    since: Instant,
    life: Duration,
    ips: Vec<IpAddr>,
    instance: Option<String>,
    /// Its proxy was started anew.
    over: bool,
    /// The sources have known it.
    known: bool,
}

impl Leaving {
    fn holds_of(&self, pod: &Workload, now: Instant) -> bool {
        pod.terminating || now.saturating_duration_since(self.since) < self.life
    }
}

/// All of them, by name.
#[derive(Debug, Default)]
pub(super) struct Leaves(BTreeMap<Name, Leaving>);

impl Leaves {
    /// This run of a workload's proxy says that it leaves, and gives us so long to tell everybody. Returns whether that is new.
    pub(super) fn begin(
        &mut self,
        workload: &Name,
        ips: Vec<IpAddr>,
        instance: Option<String>,
        wait: Duration,
    ) -> bool {
        let said = self.0.get(workload);
        if said.is_some_and(|said| !said.over && said.ips == ips && said.instance == instance) {
            return false;
        }
        let life = (wait * GRACE).clamp(LEAST_LIFE, LONGEST_LIFE);
        let leaving = Leaving { since: Instant::now(), life, ips, instance, over: false, known: true };
        self.0.insert(workload.clone(), leaving);
        true
    }

    /// This run of a workload's proxy is there: an earlier one leaves no more. Returns whether that is new.
    pub(super) fn seen(&mut self, workload: &Name, instance: &str) -> bool {
        let Some(leaving) = self.0.get_mut(workload) else { return false };
        let over = leaving.instance.as_deref().is_some_and(|left| left != instance);
        over && !std::mem::replace(&mut leaving.over, true)
    }

    /// What another replica knows. Returns whether it is new.
    pub(super) fn learn(&mut self, told: &wire::Leave, now: Instant) -> bool {
        let Ok(workload) = auth::workload(&told.workload) else { return false };
        let since = now.checked_sub(Duration::from_millis(told.age_ms)).unwrap_or(now);
        let ips = told.ips.iter().filter_map(|ip| address(ip)).collect();
        let instance = told.instance.clone();
        let life = Duration::from_millis(told.life_ms).clamp(LEAST_LIFE, LONGEST_LIFE);
        let news = Leaving { since, life, ips, instance, over: told.over, known: false };
        match self.0.get_mut(&workload) {
            None => drop(self.0.insert(workload, news)),
            Some(own) if own.ips == news.ips && own.instance == news.instance => {
                let over = own.over || news.over;
                return std::mem::replace(&mut own.over, over) != over;
            }
            Some(own) if own.since < news.since => *own = Leaving { known: own.known, ..news },
            Some(_) => return false,
        }
        true
    }

    /// Whether one of them stays after all.
    pub(super) fn one_stays(&self, model: &Model) -> bool {
        let now = Instant::now();
        let stays = |pod: &Workload, leaving: &Leaving| !leaving.over && !leaving.holds_of(pod, now);
        self.0.iter().any(|(name, leaving)| model.workloads.get(name).is_some_and(|pod| stays(pod, leaving)))
    }

    /// Forgets those whose pods are gone, or stay after all.
    pub(super) fn keep_those_of(&mut self, model: &Model) {
        let now = Instant::now();
        self.0.retain(|name, leaving| match model.workloads.get(name) {
            // A pod of the same name with other addresses is another pod.
            Some(found) => {
                leaving.known = true;
                found.ips == leaving.ips && leaving.holds_of(found, now)
            }
            None => !leaving.known && leaving.since.elapsed() < UNKNOWN_LIFE,
        });
    }

    /// The workloads that leave now.
    pub(super) fn names(&self) -> BTreeSet<Name> {
        self.0.iter().filter(|(_, leaving)| !leaving.over).map(|(name, _)| name.clone()).collect()
    }

    /// For other replicas: all, or one.
    pub(super) fn told(&self, only: Option<&Name>) -> Vec<wire::Leave> {
        let wanted = self.0.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
        let leave = |(name, leaving): (&Name, &Leaving)| wire::Leave {
            workload: name.to_string(),
            instance: leaving.instance.clone(),
            ips: leaving.ips.iter().map(|ip| bytes(*ip)).collect(),
            age_ms: u64::try_from(leaving.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            over: leaving.over,
            life_ms: u64::try_from(leaving.life.as_millis()).unwrap_or(u64::MAX),
        };
        wanted.map(leave).collect()
    }
}

fn bytes(ip: IpAddr) -> bytes::Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four: Option<[u8; 4]> = bytes.try_into().ok();
    let six: Option<[u8; 16]> = bytes.try_into().ok();
    four.map(IpAddr::from).or_else(|| six.map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ip, name, pod};

    const WAIT: Duration = Duration::from_secs(20);

    fn leaves(instance: Option<&str>) -> Leaves {
        let mut leaves = Leaves::default();
        assert!(leaves.begin(&name("web-1"), vec![ip(0, 0, 1)], instance.map(str::to_owned), WAIT));
        leaves
    }

    #[test]
    fn a_later_run_outweighs_an_earlier_one_whoever_tells_of_it_first() {
        let (mut one, mut other) = (leaves(Some("a")), leaves(Some("a")));
        assert!(!one.seen(&name("web-1"), "a") && one.seen(&name("web-1"), "b") && !one.seen(&name("web-1"), "b"));
        assert!(one.names().is_empty());
        // What the other still says of it is of the past, and the other learns that.
        assert!(!one.learn(&other.told(None)[0], Instant::now()));
        assert!(one.names().is_empty());
        assert!(other.learn(&one.told(None)[0], Instant::now()) && !other.learn(&one.told(None)[0], Instant::now()));
        assert!(other.names().is_empty());
        // The later run may leave too.
        assert!(one.begin(&name("web-1"), vec![ip(0, 0, 1)], Some("b".to_owned()), WAIT));
        assert!(other.learn(&one.told(Some(&name("web-1")))[0], Instant::now() + Duration::from_secs(1)));
        assert_eq!((one.names().len(), other.names().len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn whose_application_was_only_started_anew_stays_after_a_grace_period() {
        let mut model = Model::default();
        model.workloads.insert(name("web-1"), pod(1));
        let mut here = leaves(Some("a"));
        let mut there = Leaves::default();
        there.learn(&here.told(None)[0], Instant::now());
        tokio::time::advance(WAIT + Duration::from_millis(19_999)).await;
        for leaves in [&mut here, &mut there] {
            leaves.keep_those_of(&model);
            assert!(!leaves.one_stays(&model) && leaves.names().len() == 1, "{leaves:?}");
        }
        tokio::time::advance(Duration::from_millis(1)).await;
        // One that is being deleted leaves for as long as that takes.
        let mut deleted = Model::default();
        deleted.workloads.insert(name("web-1"), Workload { terminating: true, ..pod(1) });
        for leaves in [&mut here, &mut there] {
            leaves.keep_those_of(&deleted);
            assert!(!leaves.one_stays(&deleted) && leaves.names().len() == 1);
            assert!(leaves.one_stays(&model));
            leaves.keep_those_of(&model);
            assert!(leaves.names().is_empty() && !leaves.one_stays(&model));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_is_forgotten_and_what_is_not_known_yet_is_kept_for_a_while() {
        let mut model = Model::default();
        model.workloads.insert(name("web-1"), pod(1));
        let mut told = leaves(None);
        told.keep_those_of(&model);
        assert_eq!(told.names().len(), 1);
        let mut learned = Leaves::default();
        assert!(learned.learn(&told.told(None)[0], Instant::now()));
        learned.keep_those_of(&Model::default());
        assert_eq!(learned.names().len(), 1, "its source may be late");
        learned.keep_those_of(&model);
        model.workloads.get_mut(&name("web-1")).unwrap().ips = vec![ip(0, 0, 9)];
        for leaves in [&mut told, &mut learned] {
            leaves.keep_those_of(&model);
            assert!(leaves.0.is_empty(), "another pod of the same name");
        }
        let mut never = Leaves::default();
        never.learn(&leaves(None).told(None)[0], Instant::now());
        tokio::time::advance(UNKNOWN_LIFE).await;
        never.keep_those_of(&Model::default());
        assert!(never.0.is_empty());
    }
}
