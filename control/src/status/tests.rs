//! What is said of whom, and when.

use std::time::Duration;

use serde_json::{Value as Json, json};
use weft_api::kinds::{self, Body, Node, Place};

use super::desk::MOST_PAUSE;
use super::judge::{Condition, judge};
use super::merge::{self, News, Said};
use super::subject::InForce;
use super::*;
use crate::distribute::picture::{ObjectPicture, Picture};
use crate::model::{AuthorizationPolicy, Model, Service, Target};
use crate::replicas::whole::Whole;
use crate::testing::{port, service};

mod turns;
mod writer;

/// Reads an object as the source does, and puts it into the model if it is right.
fn read(kind: Kind, object: &Json, model: &mut Model) -> (Key, Subject) {
    let node: Node = serde_json::from_str(&object.to_string()).unwrap();
    let place = Place::Object("it", &node);
    let name = Name::new("shop", object["metadata"]["name"].as_str().unwrap());
    let faults = match kinds::read(kind, &node, place) {
        Ok(found) => {
            match found.body {
                Body::Route(route) => drop(model.routes.insert((kind.name().to_owned(), name.clone()), route)),
                Body::Authorization(targets, policy) => {
                    let target = |target| match target {
                        kinds::Target::Service(name) => Target::Service(name),
                        kinds::Target::Namespace => Target::Namespace,
                    };
                    let policy = AuthorizationPolicy { targets: targets.into_iter().map(target).collect(), policy };
                    model.authorization.insert(name.clone(), policy);
                }
                Body::Grant(_) | Body::RateLimit(..) => {}
            }
            Vec::new()
        }
        Err(refused) => refused.faults,
    };
    ((kind, name), Subject::read(kind, &node, &faults, &place).expect("it concerns us"))
}

fn route(parents: Json, rules: Json) -> Json {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": "shop", "generation": 3, "resourceVersion": "70"},
        "spec": {"parentRefs": parents, "rules": rules},
    })
}

fn to(backends: Json) -> Json {
    json!([{ "backendRefs": backends }])
}

fn web() -> Json {
    json!([{"group": "", "kind": "Service", "name": "web"}])
}

fn policy(target: &str, action: &str) -> Json {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "pay", "namespace": "shop", "generation": 1, "resourceVersion": "71"},
        "spec": {"action": action, "targetRefs": [{"kind": "Service", "name": target}], "rules": [{}]},
    })
}

fn model() -> Model {
    let mut model = Model::default();
    let named = |names: &[&str]| Service { ports: names.iter().map(|name| port(name, 80)).collect(), ..service(1) };
    model.services.insert(Name::new("shop", "web"), named(&["http"]));
    model.services.insert(Name::new("shop", "v2"), named(&["http"]));
    model.services.insert(Name::new("shop", weft_api::names::imported("web")), named(&["http"]));
    model.services.insert(Name::new("other", "v3"), named(&["http"]));
    model
}

fn picture(applied: usize, lagging: usize, refused: usize) -> Picture {
    let pods = |count| (0..count).map(|number| format!("shop/web-{number}")).collect::<Vec<_>>();
    let refusals = (refused > 0).then(|| ("bad_port: no".to_owned(), pods(refused)));
    Picture {
        applied: pods(applied),
        lagging: pods(lagging),
        refused: refusals.into_iter().collect(),
        away: Vec::new(),
    }
}

/// All replicas have said so.
fn whole(picture: Picture) -> Whole {
    let object = ObjectPicture {
        kind: "HTTPRoute".to_owned(),
        name: "shop/web".to_owned(),
        resources: Vec::new(),
        versions: [].into(),
        sentence: picture.sentence(),
        picture,
    };
    Whole { object, silent: Vec::new(), apart: Vec::new() }
}

fn shown(judged: &[Condition]) -> Vec<String> {
    judged.iter().map(|found| format!("{}={} {}: {}", found.kind, found.status, found.reason, found.message)).collect()
}

const ATTACHED: &str = "Accepted=True Accepted: attached to Service shop/web";
const RESOLVED: &str = "ResolvedRefs=True ResolvedRefs: every backend is there and may be used";
const ALL: &str = "weft.dev/Programmed=True Programmed: applied by 40 of 40 proxies";

#[test]
fn a_route_is_told_of_in_the_words_of_gateway_api() {
    let v2 = || to(json!([{"name": "v2", "port": 80}]));
    let section = json!([{"group": "", "kind": "Service", "name": "web", "sectionName": "grpc"}]);
    let nobody = json!([{"group": "", "kind": "Service", "name": "nobody"}]);
    let import = json!([{"group": "multicluster.x-k8s.io", "kind": "ServiceImport", "name": "web"}]);
    for (name, object, seen, want) in [
        (
            "an import as parent",
            route(import, v2()),
            picture(40, 0, 0),
            vec!["Accepted=True Accepted: attached to ServiceImport shop/web", RESOLVED, ALL],
        ),
        ("all is well", route(web(), v2()), picture(40, 0, 0), vec![ATTACHED, RESOLVED, ALL]),
        (
            "some refuse it",
            route(web(), v2()),
            picture(37, 0, 3),
            vec![
                ATTACHED,
                RESOLVED,
                "weft.dev/Programmed=False Refused: applied by 37 of 40 proxies, 3 refused: bad_port: no",
            ],
        ),
        (
            "some are not there yet",
            route(web(), v2()),
            picture(39, 1, 0),
            vec![ATTACHED, RESOLVED, "weft.dev/Programmed=Unknown Pending: applied by 39 of 40 proxies, 1 lags behind"],
        ),
        (
            "no parent",
            route(nobody, v2()),
            picture(0, 0, 0),
            vec![
                "Accepted=False NoMatchingParent: Service shop/nobody does not exist",
                RESOLVED,
                "weft.dev/Programmed=True Programmed: no proxy uses it",
            ],
        ),
        (
            "no such port of the parent",
            route(section, v2()),
            picture(0, 0, 0),
            vec![
                "Accepted=False NoMatchingParent: Service shop/web has no such port named `grpc`: the route is not attached to it",
                RESOLVED,
                "weft.dev/Programmed=True Programmed: no proxy uses it",
            ],
        ),
        (
            "no backend",
            route(web(), to(json!([{"name": "v2", "port": 81}, {"name": "v9", "port": 80}]))),
            picture(40, 0, 0),
            vec![
                ATTACHED,
                "ResolvedRefs=False BackendNotFound: service shop/v2 has no port 81; service shop/v9 does not exist",
                ALL,
            ],
        ),
        (
            "no grant",
            route(web(), to(json!([{"name": "v3", "namespace": "other", "port": 80}]))),
            picture(40, 0, 0),
            vec![
                ATTACHED,
                "ResolvedRefs=False RefNotPermitted: no ReferenceGrant in other lets HTTPRoute/shop/web use Service other/v3",
                ALL,
            ],
        ),
    ] {
        let mut model = model();
        let (key, subject) = read(Kind::HttpRoute, &object, &mut model);
        let judged = judge(&key, &subject, &model, Some(&whole(seen))).unwrap();
        assert_eq!(shown(&judged[0]), want, "{name}");
    }
}

#[test]
fn what_other_replicas_know_is_not_claimed() {
    let mut model = model();
    let (key, subject) = read(Kind::HttpRoute, &route(web(), to(json!([]))), &mut model);
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let silent = "; not counted, as they have not said how their proxies are: control b";
    let apart = "; with another version of it than the one that writes this: control c";
    for (seen, of_silent, of_apart, want) in [
        (picture(3, 0, 0), &["b"][..], &[][..], format!("Unknown Pending: applied by 3 of 3 proxies{silent}")),
        (picture(3, 0, 0), &[], &["c"], format!("Unknown Pending: applied by 3 of 3 proxies{apart}")),
        (picture(0, 0, 0), &["b"], &["c"], format!("Unknown Pending: no proxy uses it{silent}{apart}")),
        (
            picture(0, 0, 1),
            &["b"],
            &[],
            format!("False Refused: applied by 0 of 1 proxy, 1 refused: bad_port: no{silent}"),
        ),
        (
            picture(1, 0, 0),
            &["b", "b", "b", "b", "b", "b", "b"],
            &[],
            format!(
                "Unknown Pending: applied by 1 of 1 proxy{silent}, control b, control b, control b, control b, and 2 more"
            ),
        ),
    ] {
        let whole = Whole { silent: named(of_silent), apart: named(of_apart), ..whole(seen) };
        let judged = judge(&key, &subject, &model, Some(&whole)).unwrap();
        assert_eq!(shown(&judged[0])[2], format!("weft.dev/Programmed={want}"));
    }
}

#[test]
fn a_route_that_counts_for_nothing_is_in_conflict() {
    let conflicts = |of_http: Json, of_grpc: Json| {
        let mut model = model();
        let (key, subject) =
            read(Kind::HttpRoute, &route(of_http, to(json!([{"name": "v2", "port": 80}]))), &mut model);
        let grpc = route(of_grpc, to(json!([{"name": "v2", "port": 80}])));
        read(Kind::GrpcRoute, &grpc, &mut model);
        let judged = judge(&key, &subject, &model, Some(&whole(picture(0, 0, 0)))).unwrap();
        shown(&judged[0]).remove(0)
    };
    let on = |port: u16| json!([{"group": "", "kind": "Service", "name": "web", "port": port}]);
    let why = "Accepted=False Conflicted: GRPCRoute/shop/web is attached to the same port: this route counts for nothing, the two kinds are not merged";
    for (of_http, of_grpc, want) in [
        (web(), web(), why),
        (on(80), web(), why),
        (on(80), on(80), why),
        (web(), on(80), ATTACHED),
        (on(81), on(80), ATTACHED),
    ] {
        assert_eq!(conflicts(of_http.clone(), of_grpc.clone()), want, "{of_http} {of_grpc}");
    }
}

#[test]
fn what_is_refused_names_the_field_and_what_is_in_force_instead() {
    let misspelt = || route(web(), json!([{"backendRef": []}]));
    let bucket = || route(web(), to(json!([{"group": "s3.example", "kind": "Bucket", "name": "b"}])));
    for (kind, object, in_force, begins) in [
        (
            Kind::HttpRoute,
            misspelt(),
            InForce::Nothing,
            "Accepted=False UnsupportedValue: spec.rules[0].backendRef: unknown field",
        ),
        (
            Kind::HttpRoute,
            misspelt(),
            InForce::LastGood,
            "Accepted=False UnsupportedValue: spec.rules[0].backendRef: unknown field",
        ),
        (
            Kind::HttpRoute,
            bucket(),
            InForce::Nothing,
            "Accepted=False UnsupportedValue: spec.rules[0].backendRefs[0]: backend of kind `Bucket`",
        ),
        (
            Kind::AuthorizationPolicy,
            policy("web", "Alow"),
            InForce::Nothing,
            "Accepted=False Invalid: spec.action: unknown value `Alow`; did you mean `Allow`?",
        ),
    ] {
        let mut model = model();
        let (key, mut subject) = read(kind, &object, &mut model);
        subject.refusal.as_mut().unwrap().in_force = in_force;
        let judged = judge(&key, &subject, &model, Some(&whole(picture(40, 0, 0)))).unwrap();
        let said = shown(&judged[0]);
        let (ends, programmed) = match (in_force, kind.is_policy()) {
            (InForce::LastGood, _) => {
                ("; the last good version stays in force", "the last good version: applied by 40 of 40 proxies")
            }
            (_, true) => (
                "; what it covers is denied until it is mended",
                "that its targets are denied: applied by 40 of 40 proxies",
            ),
            _ => ("; nothing of it is in force", "nothing of it is in force"),
        };
        assert!(said[0].starts_with(begins) && said[0].ends_with(ends), "{said:?}");
        assert_eq!(*said.last().unwrap(), format!("weft.dev/Programmed=False Invalid: {programmed}"));
        assert_eq!(
            said.iter().any(|said| said.starts_with("ResolvedRefs=False InvalidKind: ")),
            begins.contains("Bucket")
        );
    }
}

#[test]
fn a_policy_is_told_whether_its_targets_are_there() {
    for (target, want) in [
        ("web", "Accepted=True Accepted: its targets are there"),
        ("nobody", "Accepted=False TargetNotFound: Service shop/nobody does not exist"),
    ] {
        let mut model = model();
        let (key, subject) = read(Kind::AuthorizationPolicy, &policy(target, "Allow"), &mut model);
        let judged = judge(&key, &subject, &model, Some(&whole(picture(40, 0, 0)))).unwrap();
        assert_eq!(shown(&judged[0]), [want, ALL]);
    }
}

#[test]
fn nothing_is_said_of_an_object_that_a_file_has_instead() {
    let mut model = model();
    let (key, subject) = read(Kind::HttpRoute, &route(web(), to(json!([]))), &mut model);
    model.routes.clear();
    assert_eq!(judge(&key, &subject, &model, None), None);
    let (_, subject) = read(Kind::AuthorizationPolicy, &policy("web", "Allow"), &mut Model::default());
    assert_eq!(judge(&(Kind::AuthorizationPolicy, key.1), &subject, &model, None), None);
}

const SAID: Said<'_> = Said { at: "2026-01-02T03:04:05Z", generation: 3, namespace: "shop" };

fn condition(kind: &'static str, status: &'static str, message: &str) -> Condition {
    Condition { kind, status, reason: "Because", message: message.to_owned(), keep: false }
}

fn written(kind: &str, status: &str, message: &str, since: &str) -> Json {
    json!({"type": kind, "status": status, "reason": "Because", "message": message, "observedGeneration": 3, "lastTransitionTime": since})
}

#[test]
fn others_keep_their_places_and_ours_are_found_by_their_parents() {
    let theirs = |name: &str| json!({"controllerName": "example.com/gateway", "parentRef": {"name": name}, "conditions": [{"type": "Accepted"}]});
    let ours = |name: &str, message: &str, since: &str| {
        let parent = json!({"group": "", "kind": "Service", "name": name});
        json!({"controllerName": CONTROLLER, "parentRef": parent, "conditions": [written("Accepted", "True", message, since)]})
    };
    let before = [theirs("one"), ours("gone", "yes", "then"), ours("web", "yes", "then"), theirs("two")];
    let refs = [
        json!({"group": "", "kind": "Service", "name": "new"}),
        json!({"group": "", "kind": "Service", "name": "web", "namespace": "shop"}),
    ];
    let judged = vec![vec![condition("Accepted", "True", "yes")]; 2];
    let (after, news) = merge::parents(&before, &refs, &judged, SAID);
    let mut web = ours("web", "yes", "then");
    web["parentRef"] = refs[1].clone();
    assert_eq!(after, [theirs("one"), web, theirs("two"), ours("new", "yes", SAID.at)]);
    assert_eq!(news, News::All);
    // Said again it is no news, and a route that is not ours any more keeps nothing of ours.
    assert_eq!(merge::parents(&after, &refs, &judged, SAID), (after.clone(), News::Nothing));
    assert_eq!(merge::parents(&after, &[], &[], SAID), (vec![theirs("one"), theirs("two")], News::All));
}

#[test]
fn times_change_with_the_status_only_and_numbers_are_less_urgent() {
    let before = [
        written("Accepted", "True", "yes", "then"),
        written("example.com/Cost", "True", "low", "then"),
        written(PROGRAMMED, "Unknown", "applied by 1 of 2 proxies", "then"),
    ];
    let judge = |status, message| [condition("Accepted", "True", "yes"), condition(PROGRAMMED, status, message)];
    let after = |judged: &[Condition]| {
        let (after, news) = merge::conditions(&before, judged, SAID);
        assert!(after.contains(&before[1]), "others' types stay: {after:?}");
        (after[2].clone(), news)
    };
    assert_eq!(after(&judge("Unknown", "applied by 1 of 2 proxies")), (before[2].clone(), News::Nothing));
    let counted = written(PROGRAMMED, "Unknown", "applied by 1 of 3 proxies", "then");
    assert_eq!(after(&judge("Unknown", "applied by 1 of 3 proxies")), (counted, News::Counts));
    let done = written(PROGRAMMED, "True", "applied by 2 of 2 proxies", SAID.at);
    assert_eq!(after(&judge("True", "applied by 2 of 2 proxies")), (done, News::All));
    // What is not known stays as it is; where there is nothing, that is said.
    let mut unknown = judge("Unknown", "not back yet");
    unknown[1].keep = true;
    assert_eq!(after(&unknown), (before[2].clone(), News::Nothing));
    let (first, news) = merge::conditions(&[], &unknown, SAID);
    assert_eq!((first[1]["message"].as_str(), news), (Some("not back yet"), News::All));
    // Another generation was looked at.
    let (_, news) =
        merge::conditions(&before, &judge("Unknown", "applied by 1 of 2 proxies"), Said { generation: 4, ..SAID });
    assert_eq!(news, News::All);
}
