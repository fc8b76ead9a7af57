//! What of the watched objects is in force. Pure: time is an argument.
//!
//! Invariants
//! - Nothing is removed before the server has said so: by the object's end, or by a whole list without it (mark and sweep).
//! - A broken object keeps its last good version, be it from before a restart ([`super::kept`]). A policy that was never good closes its targets.
//! - A kind that may not be read and is needed keeps the store from being complete; of one that can be spared what was kept is in force.
//! - A kind that the server does not know any more keeps its objects: an API server that is just starting, or was restored, says so too.
//! - Of an object only its name, and whether it was good, stay here (and its text, where texts are kept); what it says goes on to the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64;

use super::kept::Texts;
use super::kind::{Seen, WATCHED, Watched, What};
use super::rights::Need;
use super::watch::Event;
use crate::model::{Change, Name};
use crate::sources::State;
use crate::sources::files::object::{Thing, change};
use crate::status::subject::InForce;
use crate::status::{Subject, Subjects};

/// What is to be told.
#[derive(Debug, Default)]
pub struct Told {
    /// What changes in the model.
    pub changes: Vec<Change>,
    /// Objects that get a status, as they are now.
    pub subjects: Subjects,
}

impl Told {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.subjects.is_empty()
    }
}

/// All kinds.
#[derive(Debug)]
pub(super) struct Store {
    kinds: Vec<OfKind>,
    started: Instant,
}

#[derive(Debug)]
struct OfKind {
    watched: &'static Watched,
    /// What was good before the start, and is now; nothing where that is not kept.
    texts: Option<Texts>,
    objects: BTreeMap<Name, Held>,
    /// Of the list that was begun last.
    round: u32,
    /// Whether a list was whole once, or nothing more of it can be had: the kind is not installed, or may not be read and can be spared.
    listed: bool,
    missing: Option<Missing>,
    /// When the server said something last.
    heard: Option<Instant>,
    /// Why it cannot be followed now.
    failing: Option<String>,
}

/// Why there is nothing of a kind to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    /// It is not installed.
    Absent,
    /// The server does not let us read it.
    Forbidden,
}

#[derive(Debug, Default)]
struct Held {
    /// The list that it was seen in last.
    round: u32,
    /// Whether what is in force is a good version of it.
    good: bool,
    /// Whether it is broken as it is now.
    broken: bool,
    /// What was said of it, as a number that tells it from something else.
    said: u64,
}

impl Store {
    pub fn new(now: Instant) -> Self {
        let kind = |watched| OfKind {
            watched,
            texts: None,
            objects: BTreeMap::new(),
            round: 0,
            listed: false,
            missing: None,
            heard: None,
            failing: None,
        };
        Self { kinds: WATCHED.iter().map(kind).collect(), started: now }
    }

    /// Starts with what a process before this one has saved, and keeps it up to date.
    pub fn keeping(mut self, texts: &Texts) -> Self {
        for kind in &mut self.kinds {
            kind.texts = Some(texts.clone());
        }
        self
    }

    /// Takes what a watch tells of the kind of that number.
    pub fn take(&mut self, number: usize, event: Event, now: Instant, told: &mut Told) {
        if let Some(kind) = self.kinds.get_mut(number) {
            kind.take(event, now, told);
        }
    }

    /// Whether each kind was listed once, so that what is not here is not there.
    pub fn complete(&self) -> bool {
        self.kinds.iter().all(|kind| kind.listed)
    }

    /// Kinds that were not, and why.
    pub fn missing(&self) -> impl Iterator<Item = String> {
        self.kinds.iter().filter(|kind| !kind.listed).map(|kind| match &kind.failing {
            Some(why) => format!("{} ({why})", kind.watched.kind),
            None => kind.watched.kind.to_owned(),
        })
    }

    pub fn state(&self) -> State {
        let failing = || self.kinds.iter().filter(|kind| kind.failing.is_some());
        let Some(since) = failing().map(|kind| kind.heard.unwrap_or(self.started)).min() else { return State::Synced };
        let lost = self.kinds.iter().all(|kind| kind.failing.is_some() || kind.missing.is_some());
        if lost { State::Lost { since } } else { State::Stale { since } }
    }

    /// How many objects are broken now.
    pub fn broken(&self) -> usize {
        let of = |kind: &OfKind| kind.objects.values().filter(|held| held.broken).count();
        self.kinds.iter().map(of).sum()
    }
}

impl OfKind {
    fn take(&mut self, event: Event, now: Instant, told: &mut Told) {
        match event {
            Event::Absent => return self.absent(),
            Event::Forbidden(why) => return self.forbidden(&why, told),
            Event::Failed(why) => return self.failed(why),
            Event::Begins => self.round = self.round.wrapping_add(1),
            Event::Found(seen) => self.found(*seen, told),
            Event::Gone(name) => {
                self.objects.remove(&name);
                self.gone(name, told);
            }
            Event::Whole => {
                self.sweep(told);
                tracing::info!(kind = self.watched.kind, objects = self.objects.len(), "listed");
                self.listed = true;
            }
            Event::Alive => {}
        }
        if self.failing.take().is_some() && self.listed {
            tracing::info!(kind = self.watched.kind, "followed again");
        }
        (self.heard, self.missing) = (Some(now), None);
    }

    fn found(&mut self, seen: Seen, told: &mut Told) {
        let before = self.keep(&seen);
        let (kind, name) = (self.watched.kind, seen.name);
        if let What::Skipped = seen.what {
            // Not for the mesh, or not any more.
            if self.objects.remove(&name).is_some() {
                told.changes.push(change(kind, name.clone(), None));
            }
            // It may have a status from when it was.
            return self.subject(name, seen.subject.map(|subject| *subject), told);
        }
        let held = self.objects.entry(name.clone()).or_default();
        held.round = self.round;
        let is_good = matches!(seen.what, What::Good(_));
        held.broken = !is_good;
        held.good |= before.is_some();
        let said = xxh3_64(seen.said.as_bytes());
        if std::mem::replace(&mut held.said, said) != said && !seen.said.is_empty() {
            let stays = if held.good && !is_good { " (the last good version stays)" } else { "" };
            tracing::warn!("{}{stays}", seen.said);
        }
        let in_force = match seen.what {
            What::Good(thing) => Some(thing),
            What::Broken { .. } if before.is_some() => before,
            What::Broken { instead } if !held.good => instead,
            What::Broken { .. } | What::Skipped => None,
        };
        held.good |= is_good;
        let stands = if held.good { InForce::LastGood } else { InForce::Nothing };
        if in_force.is_some() {
            told.changes.push(change(kind, name.clone(), in_force));
        }
        let subject = seen.subject.map(|mut subject| {
            if let Some(refusal) = &mut subject.refusal {
                refusal.in_force = stands;
            }
            *subject
        });
        self.subject(name, subject, told);
    }

    /// Keeps what is good of an object for the next start. Returns what was kept before this one, if it is needed now: the object is broken,
    /// and was not good since.
    fn keep(&self, seen: &Seen) -> Option<Thing> {
        let (texts, kind) = (self.texts.as_ref()?, self.watched.kind);
        match (&seen.what, &seen.written) {
            (What::Good(_), Some(written)) => texts.put(kind, seen.name.clone(), Arc::clone(written)),
            (What::Broken { .. }, _) if self.objects.get(&seen.name).is_some_and(|held| held.good) => {}
            (What::Broken { .. }, _) => {
                let before = texts.get(kind, &seen.name);
                let before = before.and_then(|written| self.watched.recall(&written, Some(&seen.uid)));
                if before.is_some() {
                    return before;
                }
                texts.remove(kind, &seen.name);
            }
            (What::Good(_) | What::Skipped, _) => texts.remove(kind, &seen.name),
        }
        None
    }

    fn gone(&self, name: Name, told: &mut Told) {
        if let Some(texts) = &self.texts {
            texts.remove(self.watched.kind, &name);
        }
        told.changes.push(change(self.watched.kind, name.clone(), None));
        self.subject(name, None, told);
    }

    fn subject(&self, name: Name, subject: Option<Subject>, told: &mut Told) {
        if let Some(kind) = self.watched.with_status() {
            told.subjects.push(((kind, name), subject));
        }
    }

    /// What the list that has just ended did not have is gone.
    fn sweep(&mut self, told: &mut Told) {
        let round = self.round;
        let gone: Vec<Name> =
            self.objects.extract_if(.., |_, held| held.round != round).map(|(name, _)| name).collect();
        for name in gone {
            self.gone(name, told);
        }
        if let Some(texts) = &self.texts {
            texts.retain(self.watched.kind, |name| self.objects.contains_key(name));
        }
    }

    fn absent(&mut self) {
        let kind = self.watched.kind;
        if !self.objects.is_empty() {
            let known = self.objects.len();
            return self
                .failed(format!("the API server does not know the kind any more; its {known} objects stay in force"));
        }
        if self.missing.replace(Missing::Absent) != Some(Missing::Absent) {
            tracing::info!(kind, "is not installed: it is looked for again");
        }
        (self.listed, self.failing) = (true, None);
    }

    /// It may not be read, and was not since the start ([`super::rights`]).
    fn forbidden(&mut self, why: &str, told: &mut Told) {
        let sentence = self.watched.forbidden();
        if self.missing.replace(Missing::Forbidden) != Some(Missing::Forbidden) {
            tracing::warn!("{sentence}; it is tried again (the API server says: {why})");
        }
        if self.watched.need() == Need::Spared {
            if !std::mem::replace(&mut self.listed, true) {
                self.restore(told);
            }
            // Without objects nothing of it can be old.
            self.failing = (!self.objects.is_empty()).then_some(sentence);
        } else {
            self.failing = Some(sentence);
        }
    }

    /// Puts in force what was kept from before the start. A list that is whole says what of it is still there.
    fn restore(&mut self, told: &mut Told) {
        let (kind, round) = (self.watched.kind, self.round);
        for (name, written) in self.texts.iter().flat_map(|texts| texts.of(kind)) {
            let Some(thing) = self.watched.recall(&written, None) else { continue };
            self.objects.insert(name.clone(), Held { round, good: true, ..Held::default() });
            told.changes.push(change(kind, name, Some(thing)));
        }
    }

    fn failed(&mut self, why: String) {
        if self.failing.as_ref() != Some(&why) {
            tracing::warn!(kind = self.watched.kind, "cannot be followed, what is known of it stays: {why}");
        }
        self.failing = Some(why);
    }
}

#[cfg(test)]
mod tests;
