//! The endpoints of one service port, as a proxy holds them.
//!
//! Nearly always a proxy holds just what is true. So what it holds is kept as the set that it held whole last, which is the compiled set itself
//! and shared by all who hold it, and what differs from that. A subscriber costs the same however large the set.
//!
//! Invariants
//! - Of a name in `apart`, that counts; of others, `base` does: the proxy runs it and was sent nothing else.
//! - What is gone stands in `apart` only where `base` still has it, or until the proxy has answered: it may have been sent and taken away before
//!   it said a word.
//! - At most one in [`SHARE`] differs for longer than until the next answer; the set is compared with what is true when there are more, so that
//!   comparing costs each change a constant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::held::{Held, Seen};
use crate::compile::{Resource, Set};

const SHARE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Loading,
    Steady,
    Awaiting,
}

/// Members to compare.
#[derive(Debug)]
pub(super) enum Pending {
    Some(BTreeSet<Arc<str>>),
    All,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }
}

#[derive(Debug)]
pub(super) struct Members {
    pub(super) phase: Phase,
    pub(super) pending: Pending,
    base: Option<Arc<Set>>,
    apart: BTreeMap<Arc<str>, Held>,
}

impl Members {
    /// What a proxy holds that has been sent nothing, or says that it holds these.
    pub(super) fn new(phase: Phase, held: BTreeMap<Arc<str>, Held>) -> Self {
        Self { phase, pending: Pending::All, base: None, apart: held }
    }

    /// A proxy holds all of a set, and nothing else.
    pub(super) fn whole(set: Option<&Arc<Set>>) -> Self {
        let pending = Pending::Some(BTreeSet::new());
        Self { phase: Phase::Steady, pending, base: set.cloned(), apart: BTreeMap::new() }
    }

    pub(super) fn get(&self, name: &str) -> Option<Seen<'_>> {
        match self.apart.get(name) {
            Some(held) => (!held.is_gone()).then(|| held.seen()),
            None => Some(Seen::settled(self.base.as_ref()?.get(name)?)),
        }
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, Seen<'_>)> {
        let base = self.base.iter().flat_map(|base| base.iter()).filter(|(name, _)| !self.apart.contains_key(*name));
        let base = base.map(|(name, resource)| (name, Seen::settled(resource)));
        let apart = self.apart.iter().filter(|(_, held)| !held.is_gone());
        base.chain(apart.map(|(name, held)| (name, held.seen())))
    }

    pub(super) fn len(&self) -> usize {
        let more = self.apart.iter().filter(|(name, held)| !held.is_gone() && !self.in_base(name)).count();
        let gone = self.apart.iter().filter(|(name, held)| held.is_gone() && self.in_base(name)).count();
        self.base.as_ref().map_or(0, |base| base.len()) + more - gone
    }

    fn in_base(&self, name: &str) -> bool {
        self.base.as_ref().is_some_and(|base| base.contains_key(name))
    }

    /// `resource`, or the removal of `name`, goes in the response `nonce`.
    pub(super) fn send(&mut self, name: &Arc<str>, resource: Option<Arc<Resource>>, nonce: u64) {
        let held = Held::sending(resource, nonce, self.get(name));
        self.apart.insert(Arc::clone(name), held);
    }

    /// What went in the response `nonce` was answered.
    pub(super) fn answered(
        &mut self,
        name: &Arc<str>,
        nonce: u64,
        resource: Option<&Arc<Resource>>,
        refusal: Option<String>,
    ) {
        let Some(held) = self.apart.get_mut(name) else { return };
        held.answered(nonce, resource, refusal);
        if held.is_gone() && !self.in_base(name) {
            self.apart.remove(name);
        }
    }

    /// Keeps nothing but what is true, if the proxy runs just that.
    pub(super) fn rest(&mut self, truth: Option<&Arc<Set>>) {
        let many = self.apart.len() * SHARE >= truth.map_or(0, |truth| truth.len());
        if many && !self.apart.is_empty() && self.phase == Phase::Steady && self.pending.is_empty() && self.runs(truth)
        {
            *self = Self::whole(truth);
        }
    }

    /// Whether the proxy runs just this, and was sent nothing else.
    fn runs(&self, truth: Option<&Arc<Set>>) -> bool {
        let runs = |(name, resource): (&Arc<str>, &Arc<Resource>)| match self.apart.get(name) {
            Some(Held::Settled(held)) => held.version == resource.version,
            Some(Held::Open(_)) => false,
            None => self.base.as_ref().and_then(|base| base.get(name)).is_some_and(|of| of.version == resource.version),
        };
        let told = self.apart.iter().all(|(name, held)| !held.is_gone() || self.in_base(name));
        told && self.len() == truth.map_or(0, |truth| truth.len()) && truth.is_none_or(|truth| truth.iter().all(runs))
    }
}
