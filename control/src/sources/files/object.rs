//! A file's text -> its objects, each right or wrong by itself.

use std::path::Path;
use std::sync::Arc;

use weft_api::kinds::decode::At;
use weft_api::kinds::{
    self, Body, Class, Document, Fault, Grant, Kind, Node, Place, Position, Refused, Route, Target, Value, classify,
};

pub(in crate::sources) use super::core::OWN_PREFIX;

use super::core;
use crate::model::{self, Change, Name, Namespace, Service, Slice, Workload};

/// Kind, namespace and name: what makes an object the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::sources) struct Key {
    pub kind: &'static str,
    pub name: Name,
}

/// The kind of services that have another name in the model than their own.
pub(in crate::sources) const IMPORT: &str = "ServiceImport";

/// The name that an object has in the model.
pub(in crate::sources) fn model_name(kind: &str, name: &Name) -> Name {
    match kind {
        IMPORT => Name::new(name.namespace.as_str(), weft_api::names::imported(&name.name)),
        _ => name.clone(),
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A namespace is in no namespace.
        if self.name.namespace.is_empty() {
            write!(f, "{}/{}", self.kind, self.name.name)
        } else {
            write!(f, "{}/{}", self.kind, self.name)
        }
    }
}

/// What an object says.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::sources) enum Thing {
    Namespace(Namespace),
    Node(model::Node),
    Service(Service),
    Slice(Slice),
    Workload(Workload),
    Route(Route),
    Grant(Grant),
    Authorization(model::AuthorizationPolicy),
    RateLimit(model::RateLimitPolicy),
}

/// An object of a kind as it is now.
pub(in crate::sources) fn change(kind: &'static str, name: Name, thing: Option<Thing>) -> Change {
    let name = model_name(kind, &name);
    match (thing, kind) {
        (Some(Thing::Namespace(thing)), _) => Change::Namespace(name.name, Some(thing)),
        (Some(Thing::Node(thing)), _) => Change::Node(name.name, Some(thing)),
        (Some(Thing::Service(thing)), _) => Change::Service(name, Some(thing)),
        (Some(Thing::Slice(thing)), _) => Change::Slice(name, Some(thing)),
        (Some(Thing::Workload(thing)), _) => Change::Workload(name, Some(thing)),
        (Some(Thing::Route(thing)), _) => Change::Route((kind.to_owned(), name), Some(thing)),
        (Some(Thing::Grant(thing)), _) => Change::Grant(name, Some(thing)),
        (Some(Thing::Authorization(thing)), _) => Change::Authorization(name, Some(thing)),
        (Some(Thing::RateLimit(thing)), _) => Change::RateLimit(name, Some(thing)),
        (None, "Namespace") => Change::Namespace(name.name, None),
        (None, "Node") => Change::Node(name.name, None),
        (None, "Service" | IMPORT) => Change::Service(name, None),
        (None, "EndpointSlice") => Change::Slice(name, None),
        (None, "Pod") => Change::Workload(name, None),
        (None, "ReferenceGrant") => Change::Grant(name, None),
        (None, "AuthorizationPolicy") => Change::Authorization(name, None),
        (None, "RateLimitPolicy") => Change::RateLimit(name, None),
        (None, _) => Change::Route((kind.to_owned(), name), None),
    }
}

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub at: Position,
    pub content: Content,
    /// The document that it stands in, if texts are kept; none of a skipped object.
    pub written: Option<Arc<Written>>,
}

/// A document as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::sources) struct Written {
    pub text: String,
    /// Lines of the file before it.
    pub lines_before: u32,
}

impl Written {
    /// Whether the text says this kind, namespace and name, however broken the rest is.
    pub fn names(&self, key: &Key) -> bool {
        let says = |field, value: &str| values_of(&self.text, field).any(|said| said == value);
        let namespace = key.name.namespace.as_str();
        let nowhere = || namespace == kinds::DEFAULT_NAMESPACE && values_of(&self.text, "namespace").next().is_none();
        says("kind", key.kind)
            && says("name", &key.name.name)
            && (namespace.is_empty() || says("namespace", namespace) || nowhere())
    }
}

#[derive(Clone, Debug)]
pub(in crate::sources) enum Content {
    /// Right.
    Good { key: Key, thing: Arc<Thing>, warnings: Vec<Fault> },
    /// Wrong. Without a key it cannot be told which object (or objects) it was. `instead` stands for it if no good version is known.
    Broken { key: Option<Key>, faults: Vec<Fault>, instead: Vec<(Key, Arc<Thing>)> },
    /// Not for the mesh, by kind.
    Skipped(String),
}

/// `kind: List` in a list in a list: deeper than anybody writes.
const MAX_LISTS: u8 = 4;

/// Reads all objects of a file. `file` is how people know it; `keep` keeps the texts.
pub(super) fn read_file(file: &str, text: &str, keep: bool) -> Vec<Item> {
    // JSON forbids raw tabs in strings, so they are white space; YAML does not like them as such.
    let untabbed = is_json(file).then(|| text.replace('\t', " "));
    let text = untabbed.as_deref().unwrap_or(text);
    let mut items = Vec::new();
    for document in kinds::documents(text) {
        read_document(file, document, keep, &mut items);
    }
    items
}

/// Reads all objects of a document of a file.
pub(super) fn read_document(file: &str, document: Document<'_>, keep: bool, items: &mut Vec<Item>) {
    let before = items.len();
    match kinds::parse(document) {
        Ok(node) => read_object(file, &node, None, 0, items),
        Err(fault) => items.push(unparsed(file, document, fault)),
    }
    if !keep {
        return;
    }
    // One text for all of its objects, and none if there is none of ours in it.
    let mut ours = items.iter_mut().skip(before).filter(|item| !matches!(item.content, Content::Skipped(_))).peekable();
    if ours.peek().is_some() {
        let written = Arc::new(Written { text: document.text.to_owned(), lines_before: document.lines_before });
        ours.for_each(|item| item.written = Some(Arc::clone(&written)));
    }
}

fn is_json(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

fn read_object(file: &str, node: &Node, kind_of_list: Option<(&str, &str)>, depth: u8, items: &mut Vec<Item>) {
    let push = |items: &mut Vec<Item>, content| items.push(Item { at: node.at, content, written: None });
    let (api_version, kind) = match (text_of(node, "apiVersion"), text_of(node, "kind"), kind_of_list) {
        (Some(api_version), Some(kind), _) => (api_version, kind),
        // Elements of a typed list need not repeat what they are.
        (None, None, Some((api_version, kind))) => {
            let at = node.at;
            (At { value: api_version.to_owned(), at }, At { value: kind.to_owned(), at })
        }
        (api_version, kind, _) => return push(items, headless(node, api_version.is_some(), kind.is_some())),
    };
    if let Some(list) = node.get("items").filter(|_| kind.ends_with("List"))
        && let Value::List(elements) = &list.value
    {
        if depth >= MAX_LISTS {
            let fault = Fault::new(node.at, "lists in lists in lists");
            return push(items, Content::Broken { key: None, faults: vec![fault], instead: Vec::new() });
        }
        let element = kind.trim_end_matches("List");
        let typed = (!element.is_empty()).then_some((api_version.as_str(), element));
        for element in elements {
            read_object(file, element, typed, depth + 1, items);
        }
        return;
    }
    let core = core::KINDS.into_iter().find(|known| *known == (api_version.as_str(), kind.as_str()));
    let content = match (core, classify(&api_version, &kind)) {
        (Some((_, kind)), _) => core_object(kind, node),
        (None, Ok(Class::Ours(kind))) => strict_object(kind, node, Place::File(file)),
        (None, Ok(Class::Other)) => match misspelt_core(&api_version, &kind) {
            Some(fault) => Content::Broken { key: None, faults: vec![fault], instead: Vec::new() },
            None => Content::Skipped(kind.value),
        },
        (None, Err(fault)) => unknown(&kind, node, file, fault),
    };
    push(items, content);
}

fn text_of(node: &Node, key: &str) -> Option<At<String>> {
    let node = node.get(key)?;
    Some(At { value: node.text()?.to_owned(), at: node.at })
}

/// A document without `apiVersion` or `kind`: another program's, unless it has one of them or nearly so.
fn headless(node: &Node, has_version: bool, has_kind: bool) -> Content {
    let missing = if has_version { "kind" } else { "apiVersion" };
    let near = node
        .entries()
        .iter()
        .find(|entry| kinds::fault::nearest(&entry.key, ["apiVersion", "kind"]).is_some_and(|name| name != entry.key));
    if !has_version && !has_kind && near.is_none() {
        return Content::Skipped("(not a Kubernetes object)".to_owned());
    }
    let fault = match near {
        Some(entry) => {
            Fault::new(entry.at, format!("unknown field `{}`, and `{missing}` is missing", entry.key)).suggest(missing)
        }
        None => Fault::new(node.at, format!("field `{missing}` is missing")),
    };
    Content::Broken { key: None, faults: vec![fault], instead: Vec::new() }
}

/// Kinds of the core groups that are nearly one that is read, or a version of it that is not.
fn misspelt_core(api_version: &At<String>, kind: &At<String>) -> Option<Fault> {
    let group = |version: &str| version.split_once('/').map_or("", |(group, _)| group).to_owned();
    let (version, known) = core::KINDS
        .into_iter()
        .find(|(version, known)| *known == kind.as_str() && group(version) == group(api_version))?;
    let message = format!("{known} of version `{}` is not read", api_version.value);
    Some(Fault::new(api_version.at, message).suggest(version))
}

/// Reads an object of a core kind.
pub(in crate::sources) fn core_object(kind: &'static str, node: &Node) -> Content {
    let metadata = node.get("metadata");
    let text = |key| metadata.and_then(|metadata| text_of(metadata, key));
    let Some(name) = text("name") else {
        let fault = Fault::new(node.at, format!("{kind} has no name"));
        return Content::Broken { key: None, faults: vec![fault], instead: Vec::new() };
    };
    let namespace = match kind {
        _ if core::NAMELESS.contains(&kind) => String::new(),
        _ => text("namespace").map_or_else(|| kinds::DEFAULT_NAMESPACE.to_owned(), |namespace| namespace.value),
    };
    let named =
        [&name.value, &namespace].into_iter().filter(|text| !text.is_empty() || !core::NAMELESS.contains(&kind));
    if let Some(text) = named.into_iter().find(|text| !kinds::is_dns_name(text)) {
        let fault = Fault::new(node.at, format!("`{text}` is no name: lower-case letters, digits, `-` and `.`"));
        return Content::Broken { key: None, faults: vec![fault], instead: Vec::new() };
    }
    let (thing, instead) = match kind {
        "Namespace" => match core::namespace(node) {
            Ok(namespace) => (Ok(Thing::Namespace(namespace)), None),
            Err((fault, assumed)) => (Err(fault), Some(Thing::Namespace(assumed))),
        },
        "Node" => (core::of_node(node).map(Thing::Node), None),
        "Service" => (core::service(node).map(Thing::Service), None),
        IMPORT => (core::service_import(node).map(Thing::Service), None),
        "EndpointSlice" => match core::slice(node, &namespace) {
            Ok(None) => return Content::Skipped(format!("{kind} of no Service")),
            Ok(Some(slice)) => (Ok(Thing::Slice(slice)), None),
            Err(fault) => (Err(fault), None),
        },
        _ => (core::workload(node).map(Thing::Workload), None),
    };
    let key = Key { kind, name: Name::new(namespace, name.value) };
    match thing {
        Ok(thing) => Content::Good { key, thing: Arc::new(thing), warnings: Vec::new() },
        Err(fault) => {
            let instead = instead.map(|thing| (key.clone(), Arc::new(thing))).into_iter().collect();
            Content::Broken { key: Some(key), faults: vec![fault], instead }
        }
    }
}

/// Reads an object of a strict kind.
pub(in crate::sources) fn strict_object(kind: Kind, node: &Node, place: Place<'_>) -> Content {
    match kinds::read(kind, node, place) {
        Ok(object) => {
            let thing = match object.body {
                Body::Route(route) if route.parents.is_empty() => {
                    return Content::Skipped(format!("{} of gateways", kind.name()));
                }
                Body::Route(route) => Thing::Route(route),
                Body::Grant(grant) => Thing::Grant(grant),
                Body::Authorization(targets, policy) => {
                    Thing::Authorization(model::AuthorizationPolicy { targets: model_targets(targets), policy })
                }
                Body::RateLimit(targets, policy) => {
                    Thing::RateLimit(model::RateLimitPolicy { targets: model_targets(targets), policy })
                }
            };
            let key = Key { kind: kind.name(), name: Name::new(object.namespace, object.name) };
            Content::Good { key, thing: Arc::new(thing), warnings: object.warnings }
        }
        Err(refused) => broken(*refused, place),
    }
}

fn model_targets(targets: Vec<Target>) -> Vec<model::Target> {
    let target = |target| match target {
        Target::Service(name) => model::Target::Service(name),
        Target::Namespace => model::Target::Namespace,
    };
    targets.into_iter().map(target).collect()
}

/// A broken policy closes its targets; its whole namespace, if its targets cannot be read. A broken route is as if it were not there: it
/// says where requests go, not who may send them.
fn broken(refused: Refused, place: Place<'_>) -> Content {
    let why = refused.faults.first().map_or_else(|| "broken".to_owned(), |fault| place.fault(fault));
    let targets = refused.targets.map_or_else(|| vec![model::Target::Namespace], model_targets);
    let at = Position { line: refused.at.line, ..Position::default() };
    let (key, thing) = match refused.name.filter(|name| kinds::is_dns_name(name)) {
        Some(name) => {
            let key = Key { kind: refused.kind.name(), name: Name::new(refused.namespace, name) };
            (Some(key.clone()), closed(refused.kind, key, targets, &why, place, at))
        }
        // A policy without a name gets one from its place, so that it can stand in the tables.
        None => {
            let name = Name::new(refused.namespace, format!("line-{}", at.line));
            (None, closed(refused.kind, Key { kind: refused.kind.name(), name }, targets, &why, place, at))
        }
    };
    Content::Broken { key, faults: refused.faults, instead: thing.into_iter().collect() }
}

fn closed(
    kind: Kind,
    key: Key,
    targets: Vec<model::Target>,
    why: &str,
    place: Place<'_>,
    at: Position,
) -> Option<(Key, Arc<Thing>)> {
    let (namespace, name) = (key.name.namespace.as_str(), key.name.name.as_str());
    let source = place.part(at);
    let thing = match kind {
        Kind::AuthorizationPolicy => {
            let policy = kinds::closed_authorization(namespace, name, why, &source);
            Thing::Authorization(model::AuthorizationPolicy { targets, policy })
        }
        Kind::RateLimitPolicy => {
            let policy = kinds::closed_rate_limit(namespace, name, why, &source);
            Thing::RateLimit(model::RateLimitPolicy { targets, policy })
        }
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::ReferenceGrant => return None,
    };
    Some((key, Arc::new(thing)))
}

/// An unknown kind or version of our groups. If it looks like a policy, it closes as one: it was meant to be enforced.
fn unknown(kind: &At<String>, node: &Node, file: &str, fault: Fault) -> Content {
    let metadata = node.get("metadata");
    let text = |key| metadata.and_then(|metadata| text_of(metadata, key)).map(|text| text.value);
    let Some(kind) = kinds::policy_kind_like(kind) else {
        return Content::Broken { key: None, faults: vec![fault], instead: Vec::new() };
    };
    let namespace = text("namespace").unwrap_or_else(|| kinds::DEFAULT_NAMESPACE.to_owned());
    let targets = kinds::targets_of(node, &namespace);
    broken(
        Refused { kind, namespace, name: text("name"), at: node.at, faults: vec![fault], targets },
        Place::File(file),
    )
}

/// Namespaces that one document without syntax can close.
const MAX_CLOSED: usize = 1000;

/// A document that is not YAML. If a line of it says that it holds a policy, the namespaces that it names close: which of
/// their parts it would have covered cannot be known.
fn unparsed(file: &str, document: Document<'_>, fault: Fault) -> Item {
    let ours = |version: &str| {
        let group = version.split('/').next().unwrap_or_default();
        kinds::fault::nearest(group, [kinds::WEFT_GROUP]).is_some()
    };
    // Others have kinds of these names too; a document that does not say whose it is counts as ours.
    let mut versions = values_of(document.text, "apiVersion").peekable();
    let ours = versions.peek().is_none() || versions.any(ours);
    let kind = values_of(document.text, "kind").find_map(kinds::policy_kind_like).filter(|_| ours);
    let mut instead = Vec::new();
    if let Some(kind) = kind {
        let named = values_of(document.text, "namespace").filter(|namespace| kinds::is_dns_name(namespace));
        let mut namespaces: Vec<&str> = named.take(MAX_CLOSED).collect();
        if namespaces.is_empty() {
            namespaces.push(kinds::DEFAULT_NAMESPACE);
        }
        let why = format!("{file}:{fault}");
        for namespace in namespaces {
            let key = Key { kind: kind.name(), name: Name::new(namespace, format!("line-{}", fault.at.line)) };
            if !instead.iter().any(|(other, _)| *other == key) {
                let all = vec![model::Target::Namespace];
                instead.extend(closed(kind, key, all, &why, Place::File(file), fault.at));
            }
        }
    }
    Item { at: fault.at, content: Content::Broken { key: None, faults: vec![fault], instead }, written: None }
}

/// What stands behind each `KEY:`, in block, flow or JSON style, however broken the rest is.
fn values_of<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(key).filter_map(move |(at, _)| {
        let starts = text[..at].chars().next_back().is_none_or(|c| c.is_whitespace() || "{,-\"'".contains(c));
        let rest =
            text[at + key.len()..].trim_start_matches(['"', '\'']).trim_start_matches([' ', '\t']).strip_prefix(':')?;
        let value = rest.split([',', '}', '#', '\n']).next()?.trim().trim_matches(['"', '\'']);
        (starts && !value.is_empty() && value.len() <= 253).then_some(value)
    })
}
