//! The endpoints of one service port, as a proxy holds them.
//!
//! Nearly always a proxy holds just what is true. So what it holds is kept as the set that it held whole last, which is the compiled set itself
//! and shared by all who hold it, and what differs from that. A subscriber costs the same however large the set.
//!
//! Invariants
//! - Of a name in `apart`, that counts; of others, `base` does: the proxy runs it and was sent nothing else.
//! - What is gone stands in `apart` only where `base` still has it. It is not gone before the proxy has said so, even if it was sent and taken
//!   away before the proxy said a word: it may choose it meanwhile.
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

impl Default for Pending {
    fn default() -> Self {
        Self::Some(BTreeSet::new())
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        matches!(self, Self::Some(names) if names.is_empty())
    }
}

#[derive(Debug)]
pub(super) struct Members {
    base: Option<Arc<Set>>,
    /// None while the proxy runs the base and nothing has to be compared: that costs a pointer.
    open: Option<Box<Open>>,
}

#[derive(Debug)]
struct Open {
    phase: Phase,
    pending: Pending,
    apart: BTreeMap<Arc<str>, Held>,
}

impl Default for Open {
    fn default() -> Self {
        Self { phase: Phase::Steady, pending: Pending::Some(BTreeSet::new()), apart: BTreeMap::new() }
    }
}

impl Members {
    /// What a proxy holds that has been sent nothing, or says that it holds these.
    pub(super) fn new(phase: Phase, held: BTreeMap<Arc<str>, Held>) -> Self {
        Self { base: None, open: Some(Box::new(Open { phase, pending: Pending::All, apart: held })) }
    }

    /// A proxy holds all of a set, and nothing else.
    pub(super) fn whole(set: Option<&Arc<Set>>) -> Self {
        Self { base: set.cloned(), open: None }
    }

    pub(super) fn phase(&self) -> Phase {
        self.open.as_ref().map_or(Phase::Steady, |open| open.phase)
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        if self.phase() != phase {
            self.open().phase = phase;
        }
    }

    /// Whether any have to be compared.
    pub(super) fn waits(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.pending.is_empty())
    }

    /// These have to be compared, or all if there are more than `most`.
    pub(super) fn compare(&mut self, names: &BTreeSet<Arc<str>>, most: usize) {
        let pending = &mut self.open().pending;
        if let Pending::Some(waiting) = pending {
            waiting.extend(names.iter().cloned());
            if waiting.len() > most {
                *pending = Pending::All;
            }
        }
    }

    /// What has to be compared; nothing does then.
    pub(super) fn take_pending(&mut self) -> Pending {
        let taken = self.open.as_mut().map(|open| std::mem::take(&mut open.pending));
        // What was only to be compared leaves nothing behind.
        self.open.take_if(|open| open.phase == Phase::Steady && open.apart.is_empty());
        taken.unwrap_or_default()
    }

    /// Has to be compared still.
    pub(super) fn put_back(&mut self, pending: Pending) {
        self.open().pending = pending;
    }

    fn open(&mut self) -> &mut Open {
        self.open.get_or_insert_default()
    }

    fn apart(&self) -> impl Iterator<Item = (&Arc<str>, &Held)> {
        self.open.iter().flat_map(|open| &open.apart)
    }

    fn found_apart(&self, name: &str) -> Option<&Held> {
        self.open.as_ref()?.apart.get(name)
    }

    pub(super) fn get(&self, name: &str) -> Option<Seen<'_>> {
        match self.found_apart(name) {
            Some(held) => (!held.is_gone()).then(|| held.seen()),
            None => Some(Seen::settled(self.base.as_ref()?.get(name)?)),
        }
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, Seen<'_>)> {
        let base = self.base.iter().flat_map(|base| base.iter()).filter(|(name, _)| self.found_apart(name).is_none());
        let base = base.map(|(name, resource)| (name, Seen::settled(resource)));
        let apart = self.apart().filter(|(_, held)| !held.is_gone());
        base.chain(apart.map(|(name, held)| (name, held.seen())))
    }

    pub(super) fn len(&self) -> usize {
        let more = self.apart().filter(|(name, held)| !held.is_gone() && !self.in_base(name)).count();
        let gone = self.apart().filter(|(_, held)| held.is_gone()).count();
        self.base.as_ref().map_or(0, |base| base.len()) + more - gone
    }

    fn in_base(&self, name: &str) -> bool {
        self.base.as_ref().is_some_and(|base| base.contains_key(name))
    }

    /// `resource`, or the removal of `name`, goes in the response `nonce`.
    pub(super) fn send(&mut self, name: &Arc<str>, resource: Option<Arc<Resource>>, nonce: u64) {
        let held = Held::sending(resource, nonce, self.get(name));
        self.open().apart.insert(Arc::clone(name), held);
    }

    /// What went in the response `nonce` was answered.
    pub(super) fn answered(
        &mut self,
        name: &Arc<str>,
        nonce: u64,
        resource: Option<&Arc<Resource>>,
        refusal: Option<String>,
    ) {
        let in_base = self.in_base(name);
        let Some(open) = &mut self.open else { return };
        let Some(held) = open.apart.get_mut(name) else { return };
        held.answered(nonce, resource, refusal);
        if held.is_gone() && !in_base {
            open.apart.remove(name);
        }
    }

    /// Keeps nothing but what is true, if the proxy runs just that.
    pub(super) fn rest(&mut self, truth: Option<&Arc<Set>>) {
        let Some(open) = &self.open else { return };
        let many = open.apart.len() * SHARE >= truth.map_or(0, |truth| truth.len());
        if many && open.phase == Phase::Steady && open.pending.is_empty() && self.runs(truth) {
            *self = Self::whole(truth);
        }
    }

    /// Whether the proxy runs just this, and was sent nothing else.
    fn runs(&self, truth: Option<&Arc<Set>>) -> bool {
        let runs = |(name, resource): (&Arc<str>, &Arc<Resource>)| match self.found_apart(name) {
            Some(Held::Settled(held)) => held.version == resource.version,
            Some(Held::Open(_) | Held::Gone) => false,
            None => self.base.as_ref().and_then(|base| base.get(name)).is_some_and(|of| of.version == resource.version),
        };
        let told = self.apart().all(|(_, held)| !matches!(held, Held::Open(_)));
        told && self.len() == truth.map_or(0, |truth| truth.len()) && truth.is_none_or(|truth| truth.iter().all(runs))
    }
}
