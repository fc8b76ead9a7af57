//! What is to be said about an object, in the words of Gateway API. Pure.

use weft_api::kinds::{ForeignRef, Kind, Route};
use weft_api::names;

use super::subject::{InForce, Refusal};
use super::{Key, PROGRAMMED, Subject};
use crate::model::{Model, Name, ServiceRef, Target, parent_name};
use crate::replicas::whole::Whole;

/// Of one message. A proxy's words are in it too.
const LONGEST: usize = 1024;
/// References that lead nowhere, or replicas, that are named in one message.
const NAMED: usize = 5;

/// One condition, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its type.
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// If there is one already, that one stays: nothing better is known yet.
    pub keep: bool,
}

impl Condition {
    fn new(kind: &'static str, status: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST {
            message.truncate(message.floor_char_boundary(LONGEST));
            message.push_str(" ...");
        }
        Self { kind, status, reason, message, keep: false }
    }
}

/// The conditions of an object: of a route for each of [`Subject::parents`], of a policy one set. `None`: nothing can be said, since something
/// else counts under this name (a file has the object too).
///
/// `whole`: who runs it, of the proxies of all replicas; `None` while the proxies that were connected before are not back yet.
pub fn judge(key: &Key, subject: &Subject, model: &Model, whole: Option<&Whole>) -> Option<Vec<Vec<Condition>>> {
    let programmed = programmed(key.0, subject.refusal.as_ref(), whole);
    if key.0.is_policy() {
        return Some(vec![vec![policy_accepted(key, subject, model)?, programmed]]);
    }
    if let Some(refusal) = &subject.refusal {
        let mut conditions = vec![Condition::new("Accepted", "False", "UnsupportedValue", refused(key.0, refusal))];
        if refusal.backend_kind {
            conditions.push(Condition::new("ResolvedRefs", "False", "InvalidKind", refusal.why.as_str()));
        }
        conditions.push(programmed);
        return Some(vec![conditions; subject.parents.len()]);
    }
    if subject.parents.is_empty() {
        return Some(Vec::new());
    }
    let (kind, name) = (key.0.name().to_owned(), &key.1);
    let key = (kind, name.clone());
    let route = model.routes.get(&key).filter(|route| route.parents.len() == subject.parents.len())?;
    let resolved = resolved(&key, route, model);
    let of_parent = |index| vec![attached(&key, route, index, model), resolved.clone(), programmed.clone()];
    Some((0..route.parents.len()).map(of_parent).collect())
}

fn refused(kind: Kind, refusal: &Refusal) -> String {
    let stands = match refusal.in_force {
        InForce::LastGood => "the last good version stays in force",
        InForce::Nothing if kind.is_policy() => "what it covers is denied until it is mended",
        InForce::Nothing => "nothing of it is in force",
    };
    format!("{}; {stands}", refusal.why)
}

fn attached(key: &(String, Name), route: &Route, index: usize, model: &Model) -> Condition {
    let Some(parent) = route.parents.get(index) else {
        return Condition::new("Accepted", "False", "NoMatchingParent", "there is no such parent");
    };
    let service = parent_name(parent);
    let why = match model.parent_port(parent) {
        _ if !model.services.contains_key(&service) => Some(format!("{} does not exist", called(&service))),
        port => port.err(),
    };
    let conflict = model.overruled(key, parent).filter(|conflict| conflict.whole);
    match (why, conflict) {
        (Some(why), _) => Condition::new("Accepted", "False", "NoMatchingParent", why),
        (None, Some(conflict)) => Condition::new("Accepted", "False", "Conflicted", conflict.to_string()),
        (None, None) => Condition::new("Accepted", "True", "Accepted", format!("attached to {}", called(&service))),
    }
}

/// As people wrote it.
fn called(service: &Name) -> String {
    match service.name.rsplit_once('.').filter(|_| names::is_imported(&service.name)) {
        Some((name, _)) => format!("ServiceImport {}/{name}", service.namespace),
        None => format!("Service {service}"),
    }
}

/// Whether the backends and mirrors are there and may be used.
fn resolved(key: &(String, Name), route: &Route, model: &Model) -> Condition {
    let mut wrong: Vec<(&'static str, String)> = Vec::new();
    let rules = route.rules.iter().enumerate();
    let references = rules.flat_map(|(rule, found)| found.services().map(move |service| (rule, service)));
    for (rule, service) in references {
        let meant = |foreign: &&ForeignRef| {
            foreign.rule == rule
                && ServiceRef::parse(service)
                    .is_some_and(|to| to.name.namespace == foreign.namespace && to.name.name == foreign.name)
        };
        let foreign = route.foreign.iter().find(meant);
        let refused = foreign
            .and_then(|foreign| model.ungranted(key, &route.parents, foreign))
            .map(|why| ("RefNotPermitted", why));
        let found = refused.or_else(|| model.unusable(service).map(|why| ("BackendNotFound", why)));
        if let Some(found) = found.filter(|found| !wrong.contains(found)) {
            wrong.push(found);
        }
    }
    let Some((reason, _)) = wrong.first() else {
        return Condition::new("ResolvedRefs", "True", "ResolvedRefs", "every backend is there and may be used");
    };
    let mut why: Vec<String> = wrong.iter().take(NAMED).map(|(_, why)| why.clone()).collect();
    if wrong.len() > NAMED {
        why.push(format!("and {} more", wrong.len() - NAMED));
    }
    Condition::new("ResolvedRefs", "False", reason, why.join("; "))
}

fn policy_accepted((kind, name): &Key, subject: &Subject, model: &Model) -> Option<Condition> {
    if let Some(refusal) = &subject.refusal {
        return Some(Condition::new("Accepted", "False", "Invalid", refused(*kind, refusal)));
    }
    let targets = match kind {
        Kind::AuthorizationPolicy => &model.authorization.get(name)?.targets,
        _ => &model.rate_limits.get(name)?.targets,
    };
    let missing: Vec<String> = targets
        .iter()
        .filter_map(|target| match target {
            Target::Service(service) => Some(Name::new(name.namespace.as_str(), service.as_str())),
            Target::Namespace => None,
        })
        .filter(|service| !model.services.contains_key(service))
        .map(|service| format!("Service {service} does not exist"))
        .collect();
    Some(match (missing.is_empty(), missing.len() == targets.len()) {
        (true, _) => Condition::new("Accepted", "True", "Accepted", "its targets are there"),
        (false, true) => Condition::new("Accepted", "False", "TargetNotFound", missing.join("; ")),
        (false, false) => {
            let message = format!("{}; its other targets are covered", missing.join("; "));
            Condition::new("Accepted", "False", "TargetNotFound", message)
        }
    })
}

/// Some replicas, by what they call themselves.
fn controls(replicas: &[String]) -> String {
    let mut named: Vec<String> = replicas.iter().take(NAMED).map(|name| format!("control {name}")).collect();
    if replicas.len() > NAMED {
        named.push(format!("and {} more", replicas.len() - NAMED));
    }
    named.join(", ")
}

/// Who runs it, or what is in force instead of it.
fn programmed(kind: Kind, refusal: Option<&Refusal>, whole: Option<&Whole>) -> Condition {
    let Some(whole) = whole else {
        let message = "the proxies that were connected are not back yet";
        return Condition { keep: true, ..Condition::new(PROGRAMMED, "Unknown", "Pending", message) };
    };
    let picture = &whole.object.picture;
    let mut sentence = picture.sentence();
    for (replicas, what) in [
        (&whole.silent, "not counted, as they have not said how their proxies are"),
        (&whole.apart, "with another version of it than the one that writes this"),
    ] {
        if !replicas.is_empty() {
            sentence = format!("{sentence}; {what}: {}", controls(replicas));
        }
    }
    match refusal.map(|refusal| refusal.in_force) {
        Some(InForce::LastGood) => {
            return Condition::new(PROGRAMMED, "False", "Invalid", format!("the last good version: {sentence}"));
        }
        Some(InForce::Nothing) if kind.is_policy() => {
            return Condition::new(PROGRAMMED, "False", "Invalid", format!("that its targets are denied: {sentence}"));
        }
        Some(InForce::Nothing) => {
            return Condition::new(PROGRAMMED, "False", "Invalid", "nothing of it is in force");
        }
        None => {}
    }
    let (status, reason) = match (picture.refusing(), picture.lagging.len()) {
        // Of some it is not known.
        (0, 0) if !whole.silent.is_empty() || !whole.apart.is_empty() => ("Unknown", "Pending"),
        (0, 0) => ("True", "Programmed"),
        (0, _) => ("Unknown", "Pending"),
        _ => ("False", "Refused"),
    };
    Condition::new(PROGRAMMED, status, reason, sentence)
}
