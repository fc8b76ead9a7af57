//! An object as the API server has it, as far as its status is concerned.

use serde_json::Value as Json;
use weft_api::kinds::{Fault, GATEWAY_GROUP, Kind, MULTICLUSTER_GROUP, Node, Place, Value};

use super::CONTROLLER;

/// Faults that are told of one object.
const FAULTS: usize = 5;

/// What is in force of an object that is wrong as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InForce {
    /// Its last good version.
    LastGood,
    /// None was ever good: a policy closes its targets, a route is as if it were not written.
    #[default]
    Nothing,
}

/// Why control does not take an object as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Field and reason of each fault, in one text.
    pub why: String,
    /// A backend is of a kind that nothing is sent to: the words of Gateway API have a condition of its own for that.
    pub backend_kind: bool,
    /// What is in force instead.
    pub in_force: InForce,
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its `resourceVersion`.
    pub version: String,
    /// Its `generation`.
    pub generation: i64,
    /// Of a route: the parents that are Services or ServiceImports, as they are written.
    pub parents: Vec<Json>,
    /// Of a route `status.parents`, of a policy `status.conditions`.
    pub told: Vec<Json>,
    /// Why it is not taken; `None`: it is.
    pub refusal: Option<Refusal>,
}

impl Subject {
    /// Of a node that an API server sent, and what is wrong with it. `None`: it is none of our business, and was not before.
    pub fn read(kind: Kind, node: &Node, faults: &[Fault], place: &Place<'_>) -> Option<Self> {
        let meta = |key| node.get("metadata").and_then(|metadata| metadata.get(key));
        let refs = node.get("spec").and_then(|spec| spec.get("parentRefs"));
        let refs = refs.into_iter().flat_map(Node::elements).filter(|parent| !kind.is_policy() && is_service(parent));
        let parents: Vec<Json> = refs.map(Node::to_json).collect();
        let told = told(kind, &node.get("status").map_or(Json::Null, Node::to_json));
        let subject = Self {
            api_version: text(node.get("apiVersion")).unwrap_or_else(|| kind.api_versions()[0].to_owned()),
            version: text(meta("resourceVersion")).unwrap_or_default(),
            generation: match meta("generation").map(|found| &found.value) {
                Some(Value::Int(number)) => i64::try_from(*number).unwrap_or_default(),
                _ => 0,
            },
            parents,
            told,
            refusal: refusal(faults, place),
        };
        let concerns = kind.is_policy() || !subject.parents.is_empty() || subject.told.iter().any(is_ours);
        concerns.then_some(subject)
    }

    /// The same object after a write: what the API server answered.
    pub fn rewritten(&mut self, kind: Kind, answer: &Json) {
        if let Some(version) = answer["metadata"]["resourceVersion"].as_str() {
            version.clone_into(&mut self.version);
        }
        self.told = told(kind, &answer["status"]);
    }
}

/// Whether an entry of `status.parents` is ours.
pub fn is_ours(entry: &Json) -> bool {
    entry["controllerName"] == CONTROLLER
}

/// The part of a status that is about us and others.
fn told(kind: Kind, status: &Json) -> Vec<Json> {
    let part = if kind.is_policy() { "conditions" } else { "parents" };
    status[part].as_array().cloned().unwrap_or_default()
}

/// Gateway API's own group has no Service: certainly meant is the core group, which is told.
fn is_service(parent: &Node) -> bool {
    let group = text(parent.get("group")).unwrap_or_else(|| GATEWAY_GROUP.to_owned());
    let kind = text(parent.get("kind")).unwrap_or_default();
    matches!((&*group, &*kind), ("" | "core" | GATEWAY_GROUP, "Service") | (MULTICLUSTER_GROUP, "ServiceImport"))
}

fn refusal(faults: &[Fault], place: &Place<'_>) -> Option<Refusal> {
    let (first, more) = (faults.first()?, faults.len().saturating_sub(FAULTS));
    let mut why: Vec<String> = faults.iter().take(FAULTS).map(|fault| sentence(fault, place)).collect();
    if more > 0 {
        why.push(format!("and {more} more faults"));
    }
    let backend_kind = first.message.starts_with("backend of kind ");
    Some(Refusal { why: why.join("; "), backend_kind, in_force: InForce::default() })
}

/// The field and what is wrong with it; the object is known to who reads its status.
fn sentence(fault: &Fault, place: &Place<'_>) -> String {
    let bare = Fault { at: weft_api::kinds::Position::default(), ..fault.clone() };
    match place.field(fault.at) {
        Some(field) => format!("{field}: {bare}"),
        None => bare.to_string(),
    }
}

fn text(node: Option<&Node>) -> Option<String> {
    node.and_then(Node::text).map(str::to_owned)
}
