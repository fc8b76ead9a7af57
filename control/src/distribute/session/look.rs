//! What others may know of a session: what the proxy holds and runs, what it refuses, what it has not answered.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use weft_api::names::{self, ResourceType};
use weft_api::wire::v1;

use super::{Members, Phase, Seen, Session};
use crate::compile::{Compiled, Resource, Topic};

/// How a proxy stands to a resource that it holds. Of several the greatest counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It runs it as it is now.
    Runs,
    /// It does not yet.
    Lags,
    /// It refused it as it was sent last, and says why.
    Refuses(Arc<str>),
}

impl Standing {
    fn of(held: Seen<'_>, truth: Option<&Resource>) -> Self {
        let truth = truth.map(|truth| &truth.version);
        match held.refused {
            _ if !held.waits && held.acked_version() == truth => Self::Runs,
            Some(why) => Self::Refuses(Arc::clone(why)),
            None => Self::Lags,
        }
    }
}

/// Which version of a resource a proxy has.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// The resource.
    pub name: Arc<str>,
    /// Sent last; none if its removal was.
    pub sent: Option<Arc<str>>,
    /// In force at the proxy.
    pub acknowledged: Option<Arc<str>>,
    /// Why what was sent last is not in force.
    pub refused: Option<Arc<str>>,
}

impl Session {
    /// How the proxy stands to a resource; `None` if it has nothing to do with it.
    pub fn standing(&self, compiled: &Compiled, name: &str) -> Option<Standing> {
        if let Some(head) = names::collection_of(name) {
            let members = self.collections.get(head)?;
            let truth = compiled.get(name);
            return match members.get(name) {
                _ if members.phase() != Phase::Steady => Some(Standing::Lags),
                Some(held) => Some(Standing::of(held, truth.as_deref())),
                None => truth.map(|_| Standing::Lags),
            };
        }
        if let Some(members) = self.collections.get(name) {
            return Some(standing_of_set(members, name, compiled));
        }
        match self.nodes.get(name) {
            Some(node) => Some(Standing::of(node.seen(), compiled.get(name).as_deref())),
            // Asked for and not answered yet.
            None => (self.roots.contains(name) && compiled.get(name).is_some()).then_some(Standing::Lags),
        }
    }

    /// Whether the proxy is known to run what is true of this resource, or has nothing to do with it.
    pub fn settled(&self, compiled: &Compiled, name: &str) -> bool {
        self.standing(compiled, name).is_none_or(|standing| standing == Standing::Runs)
    }

    /// Whether the proxy holds this resource and has acknowledged it as it is now.
    pub fn acknowledged(&self, compiled: &Compiled, name: &str) -> bool {
        let held = self.nodes.get(name).and_then(|held| held.seen().acked_version());
        held.is_some_and(|held| compiled.get(name).is_some_and(|truth| *held == truth.version))
    }

    /// Names of subscribed addresses that mean this IP.
    pub fn addresses_of(&self, ip: IpAddr) -> Vec<Arc<str>> {
        self.listening.to(&Topic::Ip(ip)).cloned().collect()
    }

    /// Whether the proxy has the set that an endpoint of this name belongs to.
    pub fn holds_collection_of(&self, endpoint: &str) -> bool {
        names::collection_of(endpoint).is_some_and(|head| self.collections.contains_key(head))
    }

    /// Whether the proxy holds this resource, which is no endpoint.
    pub fn holds(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// Whether it has said which addresses it holds, if any: a proxy says so before it answers anything.
    pub fn has_asked(&self) -> bool {
        self.asked.contains(v1::Address::TYPE_URL) || self.nonce > self.outstanding.len() as u64
    }

    /// The proxy's namespace.
    pub fn client(&self) -> &str {
        &self.workload.namespace
    }

    /// How many resources the proxy holds, endpoints included.
    pub fn len(&self) -> usize {
        self.nodes.len() + self.collections.values().map(Members::len).sum::<usize>()
    }

    /// It holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many names it has subscribed to.
    pub fn subscriptions(&self) -> usize {
        self.roots.len()
    }

    /// The names that it has subscribed to.
    pub fn roots(&self) -> impl Iterator<Item = &Arc<str>> {
        self.roots.iter()
    }

    /// Responses not yet acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.outstanding.len()
    }

    /// Names that wait to be looked at, most of which have to be sent.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// For how long the oldest response has waited for its acknowledgement.
    pub fn waits(&self, now: Duration) -> Option<Duration> {
        self.outstanding.first_key_value().map(|(_, sent)| now.saturating_sub(sent.at))
    }

    /// How long ago the oldest change was made that is in the response made last; `None` of one that was asked for.
    pub fn waited(&self, now: Duration) -> Option<Duration> {
        let (_, sent) = self.outstanding.last_key_value()?;
        sent.changed.map(|changed| now.saturating_sub(changed))
    }

    /// When the oldest change was made that the proxy has not answered; `None` if it has answered all.
    pub fn unanswered(&self) -> Option<Duration> {
        // What was to be sent may be wanted no more.
        let queued = self.changed.filter(|_| !self.queue.is_empty());
        self.outstanding.values().filter_map(|sent| sent.changed).chain(queued).min()
    }

    /// Every resource that the proxy holds.
    pub(in crate::distribute) fn all_held(&self) -> impl Iterator<Item = (&Arc<str>, Seen<'_>)> {
        let nodes = self.nodes.iter().map(|(name, held)| (name, held.seen()));
        nodes.chain(self.collections.values().flat_map(Members::iter))
    }

    /// How many resources it does not run as they were sent last, those that it refuses included.
    pub fn behind(&self) -> usize {
        self.all_held().filter(|(_, held)| held.waits || held.refused.is_some()).count()
    }

    /// What it refuses, and why.
    pub fn refusals(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.all_held().filter_map(|(name, held)| Some((name, held.refused?)))
    }

    /// Name, version sent, version acknowledged and refusal of each resource, in the order of their names.
    pub fn versions(&self) -> Vec<Version> {
        let version = |(name, held): (&Arc<str>, Seen<'_>)| Version {
            name: Arc::clone(name),
            sent: held.sent_version().cloned(),
            acknowledged: held.acked_version().cloned(),
            refused: held.refused.cloned(),
        };
        let mut all: Vec<Version> = self.all_held().map(version).collect();
        all.sort_by(|one, two| one.name.cmp(&two.name));
        all
    }
}

/// A set is as its members are. Its head is sent at first only, and says nothing of what came later.
fn standing_of_set(members: &Members, head: &str, compiled: &Compiled) -> Standing {
    let truth = compiled.collection(head);
    let of = |(name, held): (&Arc<str>, Seen<'_>)| {
        Standing::of(held, truth.and_then(|set| set.members.get(name)).map(AsRef::as_ref))
    };
    let worst = members.iter().map(of).max().unwrap_or(Standing::Runs);
    if members.waits() || members.phase() != Phase::Steady { worst.max(Standing::Lags) } else { worst }
}
