//! What of the watched objects is in force. Pure: time is an argument.
//!
//! Invariants
//! - Nothing is removed before the server has said so: by the object's end, or by a whole list without it (mark and sweep).
//! - A broken object keeps its last good version. A policy that was never good closes its targets.
//! - A kind that the server does not know any more keeps its objects: an API server that is just starting, or was restored, says so too.
//! - Of an object only its name, and whether it was good, stay here; what it says goes on to the model.

use std::collections::BTreeMap;
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64;

use super::kind::{Seen, WATCHED, Watched, What};
use super::watch::Event;
use crate::model::{Change, Name};
use crate::sources::State;
use crate::sources::files::object::change;
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
    objects: BTreeMap<Name, Held>,
    /// Of the list that was begun last.
    round: u32,
    /// Whether a list was whole once, or the kind is not installed.
    listed: bool,
    absent: bool,
    /// When the server said something last.
    heard: Option<Instant>,
    /// Why it cannot be followed now.
    failing: Option<String>,
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
            objects: BTreeMap::new(),
            round: 0,
            listed: false,
            absent: false,
            heard: None,
            failing: None,
        };
        Self { kinds: WATCHED.iter().map(kind).collect(), started: now }
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
        let lost = self.kinds.iter().all(|kind| kind.failing.is_some() || kind.absent);
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
        (self.heard, self.absent) = (Some(now), false);
    }

    fn found(&mut self, seen: Seen, told: &mut Told) {
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
        let said = xxh3_64(seen.said.as_bytes());
        if std::mem::replace(&mut held.said, said) != said && !seen.said.is_empty() {
            let stays = if held.good && !is_good { " (the last good version stays)" } else { "" };
            tracing::warn!("{}{stays}", seen.said);
        }
        let in_force = match seen.what {
            What::Good(thing) => Some(thing),
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

    fn gone(&self, name: Name, told: &mut Told) {
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
    }

    fn absent(&mut self) {
        let kind = self.watched.kind;
        if !self.objects.is_empty() {
            let known = self.objects.len();
            return self
                .failed(format!("the API server does not know the kind any more; its {known} objects stay in force"));
        }
        if !self.absent {
            tracing::info!(kind, "is not installed: it is looked for again");
        }
        (self.absent, self.listed, self.failing) = (true, true, None);
    }

    fn failed(&mut self, why: String) {
        if self.failing.as_ref() != Some(&why) {
            tracing::warn!(kind = self.watched.kind, "cannot be followed, what is known of it stays: {why}");
        }
        self.failing = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use weft_api::kinds::Node;

    use super::*;
    use crate::model::Model;

    struct Scene {
        store: Store,
        model: Model,
        now: Instant,
    }

    fn number(kind: &str) -> usize {
        WATCHED.iter().position(|watched| watched.kind == kind).unwrap()
    }

    impl Scene {
        fn new() -> Self {
            let now = Instant::now();
            Self { store: Store::new(now), model: Model::default(), now }
        }

        fn tell(&mut self, kind: &str, event: Event) {
            let mut told = Told::default();
            self.store.take(number(kind), event, self.now, &mut told);
            for change in told.changes {
                self.model.apply(change);
            }
        }

        fn found(&mut self, kind: &str, json: &str) {
            let node: Node = serde_json::from_str(json).unwrap();
            self.tell(kind, Event::Found(Box::new(WATCHED[number(kind)].read(&node).unwrap())));
        }

        fn service(&mut self, name: &str) {
            let spec = r#"{"clusterIP":"10.96.0.1","ports":[{"port":80}]}"#;
            let json = format!(r#"{{"metadata":{{"name":"{name}","namespace":"shop"}},"spec":{spec}}}"#);
            self.found("Service", &json);
        }

        fn policy(&mut self, action: &str) {
            self.found(
                "AuthorizationPolicy",
                &format!(
                    r#"{{"apiVersion":"weft.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{{"name":"pay","namespace":"shop"}},
                        "spec":{{"action":"{action}","targetRefs":[{{"kind":"Service","name":"pay"}}],"rules":[{{}}]}}}}"#
                ),
            );
        }

        fn services(&self) -> Vec<&str> {
            self.model.services.keys().map(|name| name.name.as_str()).collect()
        }

        fn invalid(&self) -> Option<&str> {
            self.model.authorization.values().next().map(|found| found.policy.invalid.as_str())
        }
    }

    #[test]
    fn only_a_list_that_was_heard_to_its_end_removes_anything() {
        let mut scene = Scene::new();
        scene.tell("Service", Event::Begins);
        scene.service("a");
        scene.service("b");
        scene.tell("Service", Event::Whole);
        // Broken off: what was in it is no ground to remove the rest, now or at the end of the next one.
        scene.tell("Service", Event::Begins);
        scene.service("a");
        scene.service("c");
        scene.tell("Service", Event::Failed("cut".to_owned()));
        assert_eq!(scene.services(), ["a", "b", "c"]);
        scene.tell("Service", Event::Begins);
        scene.service("b");
        assert_eq!(scene.services(), ["a", "b", "c"]);
        scene.tell("Service", Event::Whole);
        assert_eq!(scene.services(), ["b"]);
        scene.tell("Service", Event::Gone(Name::new("shop", "b")));
        assert_eq!(scene.services(), [""; 0]);
    }

    #[test]
    fn a_policy_that_was_never_good_closes_its_targets_and_one_that_was_stays() {
        let mut scene = Scene::new();
        scene.policy("Alow");
        assert!(
            scene.invalid().unwrap().contains("AuthorizationPolicy/shop/pay:spec.action: unknown"),
            "{:?}",
            scene.invalid()
        );
        assert_eq!(scene.store.broken(), 1);
        scene.policy("Allow");
        assert_eq!((scene.invalid(), scene.store.broken()), (Some(""), 0));
        scene.policy("Alow");
        assert_eq!((scene.invalid(), scene.store.broken()), (Some(""), 1));
        scene.tell("AuthorizationPolicy", Event::Gone(Name::new("shop", "pay")));
        assert_eq!((scene.invalid(), scene.store.broken()), (None, 0));
    }

    #[test]
    fn what_is_not_for_the_mesh_any_more_is_gone() {
        let mut scene = Scene::new();
        let slice = |labels: &str| {
            format!(
                r#"{{"metadata":{{"name":"a-1","namespace":"shop","labels":{labels}}},"addressType":"IPv4","endpoints":[]}}"#
            )
        };
        scene.found("EndpointSlice", &slice(r#"{"kubernetes.io/service-name":"a"}"#));
        assert_eq!(scene.model.slices.len(), 1);
        scene.found("EndpointSlice", &slice("{}"));
        assert_eq!(scene.model.slices.len(), 0);
    }

    #[test]
    fn it_is_complete_when_each_kind_was_listed_or_is_not_installed() {
        let mut scene = Scene::new();
        for watched in &WATCHED {
            assert!(!scene.store.complete());
            assert!(scene.store.missing().any(|missing| missing == watched.kind));
            match watched.kind {
                "TCPRoute" => scene.tell(watched.kind, Event::Absent),
                _ => scene.tell(watched.kind, Event::Whole),
            }
        }
        assert!(scene.store.complete());
        assert_eq!(scene.store.state(), State::Synced);
    }

    #[test]
    fn a_kind_that_vanishes_keeps_its_objects() {
        let mut scene = Scene::new();
        scene.policy("Allow");
        scene.tell("AuthorizationPolicy", Event::Absent);
        assert_eq!(scene.invalid(), Some(""));
        assert!(matches!(scene.store.state(), State::Stale { .. }));
        scene.tell("AuthorizationPolicy", Event::Begins);
        scene.tell("AuthorizationPolicy", Event::Whole);
        assert_eq!((scene.invalid(), scene.store.state()), (None, State::Synced));
    }

    #[test]
    fn its_age_is_that_of_the_kind_that_was_heard_last_the_longest_ago() {
        use std::time::Duration;
        let mut scene = Scene::new();
        let start = scene.now;
        for watched in &WATCHED {
            scene.tell(watched.kind, Event::Whole);
        }
        scene.now += Duration::from_secs(1);
        scene.tell("Pod", Event::Alive);
        scene.now += Duration::from_secs(1);
        scene.tell("Pod", Event::Failed("cut".to_owned()));
        assert_eq!(scene.store.state(), State::Stale { since: start + Duration::from_secs(1) });
        for watched in &WATCHED {
            scene.tell(watched.kind, Event::Failed("cut".to_owned()));
        }
        assert_eq!(scene.store.state(), State::Lost { since: start });
        scene.tell("Pod", Event::Alive);
        assert_eq!(scene.store.state(), State::Stale { since: start });
    }
}
