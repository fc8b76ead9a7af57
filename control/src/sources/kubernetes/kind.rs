//! Which kinds are watched, where the API server has them, and how one of them is read.
//!
//! ServiceAccounts are left out: a pod names its own, and nothing else is asked of them.

use std::sync::Arc;

use serde_json::{Map, Value as Json};
use weft_api::kinds::{Fault, Kind, Node, Place};

use crate::model::Name;
use crate::sources::files::object::{Content, IMPORT, OWN_PREFIX, Thing, Written, core_object, strict_object};
use crate::status::{self, Subject};

/// What of an object's metadata is kept.
const METADATA: [&str; 4] = ["name", "namespace", "uid", "creationTimestamp"];

/// A kind that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    /// As objects say it.
    pub kind: &'static str,
    /// As paths say it.
    pub plural: &'static str,
    /// Versions that are read, the preferred one first: `v1`, `GROUP/VERSION`.
    pub versions: &'static [&'static str],
    /// Of Gateway API and ours: read strictly.
    strict: Option<Kind>,
    /// Written by people: its last good versions are kept for the next start.
    kept: bool,
}

const fn core(kind: &'static str, plural: &'static str, versions: &'static [&'static str]) -> Watched {
    Watched { kind, plural, versions, strict: None, kept: false }
}

const fn strict(kind: Kind) -> Watched {
    Watched { kind: kind.name(), plural: kind.plural(), versions: kind.api_versions(), strict: Some(kind), kept: true }
}

const fn kept(watched: Watched) -> Watched {
    Watched { kept: true, ..watched }
}

/// All of them.
pub(super) static WATCHED: [Watched; 13] = [
    kept(core("Namespace", "namespaces", &["v1"])),
    core("Node", "nodes", &["v1"]),
    kept(core("Service", "services", &["v1"])),
    core("EndpointSlice", "endpointslices", &["discovery.k8s.io/v1"]),
    core("Pod", "pods", &["v1"]),
    kept(core(IMPORT, "serviceimports", &["multicluster.x-k8s.io/v1alpha1"])),
    strict(Kind::HttpRoute),
    strict(Kind::GrpcRoute),
    strict(Kind::TlsRoute),
    strict(Kind::TcpRoute),
    strict(Kind::ReferenceGrant),
    strict(Kind::AuthorizationPolicy),
    strict(Kind::RateLimitPolicy),
];

impl Watched {
    /// Where a version of it is listed, in all namespaces.
    pub fn path(&self, version: &str) -> String {
        format!("{}/{}", Self::discovery(version), self.plural)
    }

    /// Whether it is there only where somebody has installed it.
    pub fn is_installed_by_people(&self) -> bool {
        self.strict.is_some() || self.kind == IMPORT
    }

    /// Where the server says what it has of a version's kinds.
    pub fn discovery(version: &str) -> String {
        let root = if version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{version}")
    }

    /// The kind, if its objects get a status.
    pub fn with_status(&self) -> Option<Kind> {
        self.strict.filter(|kind| status::has_status(*kind))
    }

    /// Reads an object. `None`: it has no name, which no API server sends.
    pub fn read(&self, node: &Node) -> Option<Seen> {
        let name = name(node)?;
        let called = format!("{}/{name}", self.kind);
        let place = Place::Object(&called, node);
        let content = match self.strict {
            Some(kind) => strict_object(kind, node, place),
            None => core_object(self.kind, node),
        };
        let subject = |faults: &[Fault]| Subject::read(self.with_status()?, node, faults, &place).map(Box::new);
        let told = |faults: &[Fault]| faults.iter().map(|fault| place.fault(fault)).collect::<Vec<_>>().join("; ");
        Some(match content {
            Content::Good { thing, warnings, .. } => Seen {
                name,
                said: told(&warnings),
                what: What::Good(Arc::unwrap_or_clone(thing)),
                subject: subject(&[]),
                uid: None,
                written: None,
            },
            Content::Broken { faults, instead, .. } => {
                let instead = instead.into_iter().next().map(|(_, thing)| Arc::unwrap_or_clone(thing));
                let (said, what) = (told(&faults), What::Broken { instead });
                Seen { name, said, what, subject: subject(&faults), uid: uid(node), written: None }
            }
            Content::Skipped(_) => {
                let (said, what) = (String::new(), What::Skipped);
                Seen { name, said, what, subject: subject(&[]), uid: None, written: None }
            }
        })
    }

    /// What is kept of an object for the next start, if anything of its kind is: as much as [`Self::read`] makes the same of.
    pub fn written(&self, node: &Node) -> Option<Arc<Written>> {
        let meta = node.get("metadata").filter(|_| self.kept)?;
        let part = |node: &Node, wanted: &dyn Fn(&str) -> bool| -> Map<String, Json> {
            let wanted = node.entries().iter().filter(|entry| wanted(&entry.key));
            wanted.map(|entry| (entry.key.clone(), entry.node.to_json())).collect()
        };
        let mut metadata = part(meta, &|key| METADATA.contains(&key));
        if let Some(annotations) = meta.get("annotations") {
            metadata.insert("annotations".to_owned(), part(annotations, &|key| key.starts_with(OWN_PREFIX)).into());
        }
        let mut object = part(node, &|key| ["apiVersion", "kind", "spec"].contains(&key));
        object.insert("metadata".to_owned(), metadata.into());
        Some(Arc::new(Written { text: Json::from(object).to_string(), lines_before: 0 }))
    }

    /// Reads what was kept, if it is of the object with this uid (or of any) and if this build still finds it good.
    pub fn recall(&self, written: &Written, uid: Option<&Option<String>>) -> Option<Thing> {
        let node: Node = serde_json::from_str(&written.text).ok()?;
        if uid.is_some_and(|uid| *uid != self::uid(&node)) {
            return None;
        }
        match self.read(&node)?.what {
            What::Good(thing) => Some(thing),
            What::Broken { .. } | What::Skipped => None,
        }
    }
}

/// An object as it was read.
#[derive(Debug)]
pub(super) struct Seen {
    pub name: Name,
    pub what: What,
    /// What is wrong with it, or doubtful; empty: nothing.
    pub said: String,
    /// What its status is made of; none if it gets none.
    pub subject: Option<Box<Subject>>,
    /// Of a broken one, if it has one.
    pub uid: Option<String>,
    /// Of a good one, if that is wanted: what is kept for the next start.
    pub written: Option<Arc<Written>>,
}

/// What an object is to the mesh.
#[derive(Debug)]
pub(super) enum What {
    /// Right.
    Good(Thing),
    /// Wrong; `instead` stands for it if no good version is known.
    Broken { instead: Option<Thing> },
    /// Nothing.
    Skipped,
}

/// An object's name; without a namespace if it is in none.
pub(super) fn name(node: &Node) -> Option<Name> {
    let namespace = text(node, &["metadata", "namespace"]).unwrap_or_default();
    Some(Name::new(namespace, text(node, &["metadata", "name"])?))
}

/// What tells it from another object of its name.
fn uid(node: &Node) -> Option<String> {
    text(node, &["metadata", "uid"]).map(str::to_owned)
}

/// A text below a node.
pub(super) fn text<'n>(node: &'n Node, path: &[&str]) -> Option<&'n str> {
    path.iter().try_fold(node, |node, key| node.get(key))?.text()
}
