//! What is forgotten, and what is asked for again because it was lost.
//!
//! Invariants
//! - While something is on its way nothing is forgotten: control may count as held what only that will point to. For
//!   [`Limits::partial`](super::Limits) at most.
//! - What is lost is asked for again: an address whose resources do not come, a set whose members do not.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use weft_api::names::ResourceType;
use weft_api::wire::discovery::DeltaDiscoveryRequest;
use weft_api::wire::v1;

use super::super::table::{Collection, Phase};
use super::{Machine, address_request};

impl Machine {
    /// Forgets what no root points to any more; control does the same.
    pub(super) fn collect(&mut self) {
        let reached = self.table.reach(self.roots());
        // While something is still on its way, what it will point to may lie here already, and control counts it as held.
        self.whole = self.is_whole(&reached);
        if self.whole {
            self.collect_but(&reached);
        }
    }

    fn collect_but(&mut self, reached: &HashSet<Arc<str>>) {
        self.partial_since = None;
        self.table.collect(reached);
        self.claimed.retain(|name| reached.contains(name));
        self.refused.retain(|name, _| reached.contains(name));
    }

    fn roots(&self) -> impl Iterator<Item = &Arc<str>> {
        [&self.extent, &self.workload].into_iter().chain(self.addresses.keys())
    }

    /// Whether of all these names something is held, or is known to be unusable.
    fn is_whole(&self, reached: &HashSet<Arc<str>>) -> bool {
        reached.iter().all(|name| self.table.holds(name) || self.refused.contains_key(name))
    }

    /// Something was missing at the last look: looks again, and says which addresses have to be asked for anew.
    fn look_for_lost(&mut self, now: Duration) -> Vec<Arc<str>> {
        self.collect();
        if self.whole {
            return Vec::new();
        }
        // What is missing for ever must not keep everything else for ever.
        let since = *self.partial_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.limits.partial {
            let reached = self.table.reach(self.roots());
            self.collect_but(&reached);
        }
        self.incomplete(now)
    }

    /// Addresses that still lack something so long after they were asked for: asking again brings all that they point to.
    fn incomplete(&self, now: Duration) -> Vec<Arc<str>> {
        let overdue = self.addresses.iter().filter(|(_, root)| now.saturating_sub(root.asked) >= self.limits.asking);
        let lacking = overdue.filter(|(name, _)| !self.is_whole(&self.table.reach(std::iter::once(*name))));
        lacking.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Asks anew for what has been on its way for too long, addresses and members of sets: something was lost.
    pub fn heal(&mut self, now: Duration) -> Vec<DeltaDiscoveryRequest> {
        if !self.open {
            return Vec::new();
        }
        let mut requests = Vec::new();
        let again = if self.whole { Vec::new() } else { self.look_for_lost(now) };
        if !again.is_empty() {
            for name in &again {
                self.addresses.entry(Arc::clone(name)).and_modify(|root| root.asked = now);
            }
            let names = again.iter().map(Arc::to_string).collect();
            requests.push(DeltaDiscoveryRequest { resource_names_subscribe: names, ..address_request() });
        }
        for (name, set) in &mut self.table.collections {
            if let Phase::Loading { target, since } = set.phase
                && now.saturating_sub(since) >= self.limits.loading
            {
                set.phase = Phase::Loading { target, since: now };
                requests.push(ask_members(name, set, self.limits.request));
            }
        }
        requests
    }
}

/// Says which members are held; control answers with the difference. Members for which there is no room are forgotten, so that what
/// is said is true.
pub(super) fn ask_members(head: &Arc<str>, set: &mut Collection, room: usize) -> DeltaDiscoveryRequest {
    let mut size = 0;
    let mut versions = HashMap::new();
    for (name, member) in &set.members {
        size += name.len() + member.version.len() + 8;
        if size > room {
            break;
        }
        versions.insert(name.to_string(), member.version.to_string());
    }
    if versions.len() < set.members.len() {
        let gone: Vec<Arc<str>> = set.members.keys().filter(|name| !versions.contains_key(&***name)).cloned().collect();
        for name in gone {
            set.set(&name, None);
        }
    }
    DeltaDiscoveryRequest {
        type_url: v1::Endpoint::TYPE_URL.to_owned(),
        resource_names_subscribe: vec![head.to_string()],
        initial_resource_versions: versions,
        ..Default::default()
    }
}
