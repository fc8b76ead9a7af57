//! What is in force, after what the watches tell.

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

#[test]
fn a_kind_that_may_not_be_read_keeps_it_from_being_complete_only_where_it_is_needed() {
    for forbidden in &WATCHED {
        let mut scene = Scene::new();
        for watched in &WATCHED {
            let event = if watched.kind == forbidden.kind { Event::Forbidden("no".to_owned()) } else { Event::Whole };
            scene.tell(watched.kind, event);
        }
        let spared = forbidden.need() == Need::Spared;
        assert_eq!(scene.store.complete(), spared, "{}", forbidden.kind);
        assert_eq!(scene.store.missing().any(|missing| missing.contains("control may not list and watch")), !spared);
        // What can be spared, and was never known, is not old.
        assert_eq!(scene.store.state() == State::Synced, spared, "{}", forbidden.kind);
        scene.tell(forbidden.kind, Event::Begins);
        // It may be read now, and nothing that was complete is less so.
        assert_eq!(scene.store.complete(), spared);
        scene.tell(forbidden.kind, Event::Whole);
        assert!(scene.store.complete() && scene.store.state() == State::Synced);
    }
}

#[test]
fn a_policy_kind_that_is_installed_later_and_may_not_be_read_is_said() {
    let mut scene = Scene::new();
    scene.tell("AuthorizationPolicy", Event::Absent);
    assert_eq!(scene.store.state(), State::Synced);
    scene.tell("AuthorizationPolicy", Event::Forbidden("no".to_owned()));
    assert!(matches!(scene.store.state(), State::Stale { .. }));
}
