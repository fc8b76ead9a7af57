//! What is to be said, put into what is there already. Pure.

use serde_json::{Value as Json, json};
use weft_api::kinds::GATEWAY_GROUP;

use super::judge::Condition;
use super::subject::is_ours;
use super::{CONTROLLER, PROGRAMMED};

/// How much of it is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Nothing.
    Nothing,
    /// How many proxies run it, but not whether they do.
    Counts,
    /// More.
    All,
}

/// When and of what something is said.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// RFC 3339, in seconds.
    pub at: &'a str,
    /// `metadata.generation` that was judged.
    pub generation: i64,
    /// The object's namespace.
    pub namespace: &'a str,
}

/// `status.parents`: ours where they were, new ones behind the others; those of parents that are not named any more go.
pub fn parents(told: &[Json], refs: &[Json], judged: &[Vec<Condition>], said: Said<'_>) -> (Vec<Json>, News) {
    let (mut all, mut news) = (Vec::new(), News::Nothing);
    let mut wanted: Vec<_> = refs.iter().zip(judged).collect();
    for entry in told {
        if !is_ours(entry) {
            all.push(entry.clone());
            continue;
        }
        let place = wanted.iter().position(|(parent, _)| same_parent(parent, &entry["parentRef"], said.namespace));
        let Some((parent, judged)) = place.map(|place| wanted.remove(place)) else {
            news = News::All;
            continue;
        };
        let conditions = entry["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let (conditions, more) = one_set(conditions, judged, false, said);
        all.push(entry_of(parent, conditions));
        news = news.max(more);
    }
    for (parent, judged) in wanted {
        all.push(entry_of(parent, one_set(&[], judged, false, said).0));
        news = News::All;
    }
    (all, news)
}

/// `status.conditions`. Those of types that are not ours stay.
pub fn conditions(told: &[Json], judged: &[Condition], said: Said<'_>) -> (Vec<Json>, News) {
    one_set(told, judged, true, said)
}

fn entry_of(parent: &Json, conditions: Vec<Json>) -> Json {
    json!({"controllerName": CONTROLLER, "parentRef": parent, "conditions": conditions})
}

fn one_set(told: &[Json], judged: &[Condition], others_stay: bool, said: Said<'_>) -> (Vec<Json>, News) {
    let is_judged = |found: &Json| judged.iter().any(|condition| found["type"] == condition.kind);
    let others = told.iter().filter(|found| others_stay && !is_judged(found)).cloned();
    let mut news = if others_stay || told.iter().all(is_judged) { News::Nothing } else { News::All };
    let one = |condition: &Condition| {
        let before = told.iter().find(|found| found["type"] == condition.kind);
        if let Some(before) = before.filter(|_| condition.keep) {
            return before.clone();
        }
        let since = before.filter(|before| before["status"] == condition.status);
        let since = since.and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(said.at);
        let now = json!({
            "type": condition.kind,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": said.generation,
            "lastTransitionTime": since,
        });
        news = news.max(before.map_or(News::All, |before| differs(before, &now)));
        now
    };
    let ours: Vec<Json> = judged.iter().map(one).collect();
    (others.chain(ours).collect(), news)
}

fn differs(before: &Json, now: &Json) -> News {
    let same = |field: &str| before[field] == now[field];
    match ["status", "reason", "observedGeneration"].into_iter().all(same) {
        true if same("message") => News::Nothing,
        true if now["type"] == PROGRAMMED => News::Counts,
        _ => News::All,
    }
}

/// Whether two references name one parent: what is left out has the API's default.
fn same_parent(one: &Json, other: &Json, namespace: &str) -> bool {
    let text = |parent: &Json, field: &str, default: &str| parent[field].as_str().unwrap_or(default).to_owned();
    let of = |parent: &Json| {
        (
            text(parent, "group", GATEWAY_GROUP),
            text(parent, "kind", "Gateway"),
            text(parent, "namespace", namespace),
            text(parent, "name", ""),
            text(parent, "sectionName", ""),
            parent["port"].as_i64(),
        )
    };
    of(one) == of(other)
}
