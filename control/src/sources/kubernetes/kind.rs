//! Which kinds are watched, where the API server has them, and how one of them is read.
//!
//! ServiceAccounts are left out: a pod names its own, and nothing else is asked of them.

use std::sync::Arc;

use weft_api::kinds::{Fault, Kind, Node, Place};

use crate::model::Name;
use crate::sources::files::object::{Content, IMPORT, Thing, core_object, strict_object};
use crate::status::{self, Subject};

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
}

const fn core(kind: &'static str, plural: &'static str, versions: &'static [&'static str]) -> Watched {
    Watched { kind, plural, versions, strict: None }
}

const fn strict(kind: Kind) -> Watched {
    Watched { kind: kind.name(), plural: kind.plural(), versions: kind.api_versions(), strict: Some(kind) }
}

/// All of them.
pub(super) static WATCHED: [Watched; 13] = [
    core("Namespace", "namespaces", &["v1"]),
    core("Node", "nodes", &["v1"]),
    core("Service", "services", &["v1"]),
    core("EndpointSlice", "endpointslices", &["discovery.k8s.io/v1"]),
    core("Pod", "pods", &["v1"]),
    core(IMPORT, "serviceimports", &["multicluster.x-k8s.io/v1alpha1"]),
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
        let root = if version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{version}/{}", self.plural)
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
            },
            Content::Broken { faults, instead, .. } => {
                let instead = instead.into_iter().next().map(|(_, thing)| Arc::unwrap_or_clone(thing));
                Seen { name, said: told(&faults), what: What::Broken { instead }, subject: subject(&faults) }
            }
            Content::Skipped(_) => Seen { name, said: String::new(), what: What::Skipped, subject: subject(&[]) },
        })
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

/// A text below a node.
pub(super) fn text<'n>(node: &'n Node, path: &[&str]) -> Option<&'n str> {
    path.iter().try_fold(node, |node, key| node.get(key))?.text()
}
