//! Whose turn it is. Pure: time is an argument.
//!
//! Invariants
//! - An object stands in `due` once at most, under the time that its entry says, and not while it is [`in hand`](Stage).
//! - The first change of an object is looked at [`GATHER`] later, so that what proxies answer at once is in the first write; further ones
//!   [`EVERY`] after its last write at the earliest, after [`COUNTS`] if only numbers differ, and [`LOOKS`] after others were asked about it. What
//!   failed waits twice as long each time, up to [`MOST_PAUSE`].
//! - What happens to an object that is in hand is looked at afterwards.
//! - All objects together are written [`A_SECOND`] times a second on the average, [`AT_ONCE`] at once. Each that is looked at may be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use weft_api::kinds::Kind;
use weft_api::names;

use super::{Key, Subject};
use crate::distribute::picture::object_of;
use crate::model::{Model, Name, Target};

/// For proxies to answer.
pub const GATHER: Duration = Duration::from_millis(50);
/// Between two writes of one object.
pub const EVERY: Duration = Duration::from_secs(1);
/// The same if only the numbers of proxies differ.
pub const COUNTS: Duration = Duration::from_secs(10);
/// Between two questions to other replicas about one object.
pub const LOOKS: Duration = Duration::from_millis(500);
/// After failures.
pub const MOST_PAUSE: Duration = Duration::from_mins(1);
/// Writes of all objects.
pub const A_SECOND: u32 = 20;
/// So many of them at once.
pub const AT_ONCE: u32 = 100;

/// What is being done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing.
    Rests,
    /// It was taken, to be judged.
    Judged,
    /// It is being written.
    Written,
}

#[derive(Debug)]
struct Entry {
    subject: Subject,
    due: Option<Instant>,
    wrote: Option<Instant>,
    /// When others were asked about it.
    asked: Option<Instant>,
    failures: u32,
    stage: Stage,
    /// It has to be looked at when it is out of hand: something happened to it meanwhile.
    again: bool,
    /// The same, though nothing happened: at that time.
    later: Option<Instant>,
    services: BTreeSet<Name>,
}

/// Why a write was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// The object is another one by now, which the watch tells.
    Changed,
    /// The API server refuses or is away.
    Failed,
}

/// All objects, and those that have to be looked at.
#[derive(Debug, Default)]
pub struct Desk {
    objects: HashMap<Key, Entry>,
    /// Which objects name a service: as parent, or as target.
    by_service: BTreeMap<Name, BTreeSet<Key>>,
    due: BTreeSet<(Instant, Key)>,
    /// How many are being judged.
    judged: u32,
    /// When the next write would be in time, if they came evenly.
    even: Option<Instant>,
}

impl Desk {
    /// An object came, changed or went. `is_leader`: and has to be looked at.
    pub fn saw(&mut self, key: Key, subject: Option<Subject>, model: Option<&Model>, now: Instant, is_leader: bool) {
        let Some(subject) = subject else { return self.forget(&key) };
        let services = services(&key, &subject, model);
        let entry = self.objects.entry(key.clone()).or_insert_with(|| Entry {
            subject: subject.clone(),
            due: None,
            wrote: None,
            asked: None,
            failures: 0,
            stage: Stage::Rests,
            again: false,
            later: None,
            services: BTreeSet::new(),
        });
        if entry.subject.generation != subject.generation {
            // What could not be written was something else.
            entry.failures = 0;
        }
        entry.subject = subject;
        let before = std::mem::replace(&mut entry.services, services.clone());
        for gone in before.difference(&services) {
            unlist(&mut self.by_service, gone, &key);
        }
        for new in services.difference(&before) {
            self.by_service.entry(new.clone()).or_default().insert(key.clone());
        }
        if is_leader {
            self.touch(&key, now);
        }
    }

    fn forget(&mut self, key: &Key) {
        let Some(entry) = self.objects.remove(key) else { return };
        if let Some(due) = entry.due {
            self.due.remove(&(due, key.clone()));
        }
        self.judged -= u32::from(entry.stage == Stage::Judged);
        for service in &entry.services {
            unlist(&mut self.by_service, service, key);
        }
    }

    /// What a resource is made of, or hangs on it, has to be looked at.
    pub fn changed(&mut self, resource: &str, now: Instant) {
        // A list of routes for a service, of another namespace.
        let service = names::is_consumer(resource).then(|| resource.splitn(3, '/').last().unwrap_or_default());
        let service = service.map(|service| format!("service/{service}"));
        let resource = service.as_deref().unwrap_or(resource);
        let Some((kind, name)) = object_of(resource) else { return };
        let Some((namespace, name)) = name.split_once('/') else { return };
        let name = Name::new(namespace, name);
        if kind == "Service" {
            self.attached(&name, now);
        } else if let Some(kind) = Kind::ALL.into_iter().find(|known| known.name() == kind) {
            self.touch(&(kind, name), now);
        }
    }

    /// What is attached to a service has to be looked at.
    fn attached(&mut self, service: &Name, now: Instant) {
        for key in self.by_service.get(service).cloned().unwrap_or_default() {
            self.touch(&key, now);
        }
    }

    /// An object has to be looked at.
    pub fn touch(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.objects.get_mut(key) else { return };
        if entry.stage != Stage::Rests {
            entry.again = true;
            return;
        }
        let written = entry.wrote.map(|wrote| wrote + pause(entry.failures));
        let asked = entry.asked.map(|asked| asked + LOOKS);
        let earliest = written.into_iter().chain(asked).fold(now + GATHER, Instant::max);
        self.put(key, earliest);
    }

    /// All have.
    pub fn touch_all(&mut self, now: Instant) {
        for key in self.objects.keys().cloned().collect::<Vec<_>>() {
            self.touch(&key, now);
        }
    }

    /// Nobody is looked at, nor judged: another replica does it.
    pub fn rest(&mut self) {
        self.due = BTreeSet::new();
        self.judged = 0;
        for entry in self.objects.values_mut() {
            (entry.due, entry.later) = (None, None);
            if entry.stage == Stage::Judged {
                (entry.stage, entry.again) = (Stage::Rests, false);
            }
        }
    }

    /// At that time at the latest.
    fn put(&mut self, key: &Key, at: Instant) {
        let Some(entry) = self.objects.get_mut(key) else { return };
        if entry.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(due) = entry.due.replace(at) {
            self.due.remove(&(due, key.clone()));
        }
        self.due.insert((at, key.clone()));
    }

    /// When somebody is to be looked at next.
    pub fn next(&self) -> Option<Instant> {
        let (first, _) = self.due.first().filter(|_| self.judged < AT_ONCE)?;
        Some(self.free().map_or(*first, |free| free.max(*first)))
    }

    /// How many have to be.
    pub fn len(&self) -> usize {
        self.due.len()
    }

    /// None has.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// From when on there may be another write, if all that are judged are written.
    fn free(&self) -> Option<Instant> {
        let apart = Duration::from_secs(1) / A_SECOND;
        self.even.and_then(|even| (even + apart * self.judged).checked_sub(apart * (AT_ONCE - 1)))
    }

    /// Who is to be judged now. It is in hand until [`Desk::leave`], or until it was written.
    pub fn take(&mut self, now: Instant) -> Option<Key> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        let entry = self.objects.get_mut(&key)?;
        (entry.due, entry.stage) = (None, Stage::Judged);
        self.judged += 1;
        Some(key)
    }

    /// One that is being judged, as it is now.
    pub fn judged(&self, key: &Key) -> Option<&Subject> {
        self.objects.get(key).filter(|entry| entry.stage == Stage::Judged).map(|entry| &entry.subject)
    }

    /// Other replicas are asked about it.
    pub fn asks(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.objects.get_mut(key) {
            entry.asked = Some(now);
        }
    }

    /// It has to be looked at again by then, whatever happens.
    pub fn later(&mut self, key: &Key, at: Instant) {
        if let Some(entry) = self.objects.get_mut(key) {
            entry.later = Some(entry.later.map_or(at, |before| before.min(at)));
        }
    }

    /// There is nothing to write of one that was judged.
    pub fn leave(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.objects.get_mut(key).filter(|entry| entry.stage == Stage::Judged) else { return };
        entry.stage = Stage::Rests;
        self.judged -= 1;
        self.out_of_hand(key, now);
    }

    fn out_of_hand(&mut self, key: &Key, now: Instant) {
        let Some(entry) = self.objects.get_mut(key) else { return };
        let (again, later) = (std::mem::take(&mut entry.again), entry.later.take());
        if again {
            self.touch(key, now);
        }
        if let Some(later) = later {
            self.put(key, later);
        }
    }

    /// Only numbers differ of one that is judged: whether they may be written now. If not, that is remembered.
    pub fn may_count(&mut self, key: &Key, now: Instant) -> bool {
        let wrote = self.objects.get(key).and_then(|entry| entry.wrote);
        let Some(at) = wrote.map(|wrote| wrote + COUNTS).filter(|at| *at > now) else { return true };
        self.later(key, at);
        false
    }

    /// It is being written.
    pub fn writes(&mut self, key: &Key, now: Instant) {
        self.even = Some(self.even.map_or(now, |even| even.max(now)) + Duration::from_secs(1) / A_SECOND);
        if let Some(entry) = self.objects.get_mut(key) {
            self.judged -= u32::from(entry.stage == Stage::Judged);
            (entry.stage, entry.wrote) = (Stage::Written, Some(now));
        }
    }

    /// It was, and is now as `answer` has it; or it was not, because it is something else by now, or because it failed.
    pub fn wrote(&mut self, key: &Key, answer: Result<&serde_json::Value, Missed>, now: Instant) {
        // One that went and came meanwhile may be judged already.
        let Some(entry) = self.objects.get_mut(key).filter(|entry| entry.stage == Stage::Written) else { return };
        entry.stage = Stage::Rests;
        match answer {
            Ok(answer) => {
                entry.failures = 0;
                entry.subject.rewritten(key.0, answer);
            }
            Err(Missed::Changed) => {}
            Err(Missed::Failed) => entry.failures = entry.failures.saturating_add(1),
        }
        entry.again |= answer.is_err();
        self.out_of_hand(key, now);
    }
}

/// Between two writes of one object, after so many failures.
fn pause(failures: u32) -> Duration {
    EVERY.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(MOST_PAUSE)
}

fn unlist(by_service: &mut BTreeMap<Name, BTreeSet<Key>>, service: &Name, key: &Key) {
    if let Some(keys) = by_service.get_mut(service) {
        keys.remove(key);
        if keys.is_empty() {
            by_service.remove(service);
        }
    }
}

/// The services that an object is attached to, whether they exist or not.
fn services((kind, name): &Key, subject: &Subject, model: Option<&Model>) -> BTreeSet<Name> {
    let policy = match kind {
        Kind::AuthorizationPolicy => model.and_then(|model| model.authorization.get(name)).map(|found| &found.targets),
        Kind::RateLimitPolicy => model.and_then(|model| model.rate_limits.get(name)).map(|found| &found.targets),
        _ => None,
    };
    let targets = policy.into_iter().flatten().filter_map(|target| match target {
        Target::Service(service) => Some(Name::new(name.namespace.as_str(), service.as_str())),
        Target::Namespace => None,
    });
    let parents = subject.parents.iter().filter_map(|parent| {
        let namespace = parent["namespace"].as_str().unwrap_or(&name.namespace);
        let service = parent["name"].as_str()?;
        let imported = parent["kind"] == "ServiceImport";
        Some(Name::new(namespace, if imported { names::imported(service) } else { service.to_owned() }))
    });
    targets.chain(parents).collect()
}
