//! What control has told, by name: the raw bytes with their versions, and what they say.
//!
//! Invariants
//! - Every resource in it has been decoded without error; a refused one leaves the version before it in place.
//! - An endpoint set is [`Phase::Steady`] only after its members matched the digest of a head; from then on its version is the digest of
//!   what is held, kept up member by member.
//! - What no root points to is not held ([`Table::collect`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use weft_api::convert::{Address, Decoded, Endpoint, EndpointHead};
use weft_api::names::{self, Digest, ResourceType};
use weft_api::wire::v1;

/// Every type of resource.
pub const TYPES: [&str; 12] = [
    v1::Address::TYPE_URL,
    v1::Service::TYPE_URL,
    v1::Route::TYPE_URL,
    v1::EndpointHead::TYPE_URL,
    v1::Endpoint::TYPE_URL,
    v1::Workload::TYPE_URL,
    v1::AuthorizationPolicy::TYPE_URL,
    v1::RateLimitPolicy::TYPE_URL,
    v1::MeshExtent::TYPE_URL,
    v1::Trust::TYPE_URL,
    v1::Revoked::TYPE_URL,
    v1::Consumer::TYPE_URL,
];

/// A type's place in [`TYPES`]; `None` if it is none of ours.
pub fn type_index(type_url: &str) -> Option<usize> {
    TYPES.iter().position(|known| *known == type_url)
}

/// One resource that is neither an endpoint nor the head of a set.
#[derive(Debug)]
pub struct Node {
    /// Its type.
    pub type_url: &'static str,
    /// As control gave it.
    pub version: Arc<str>,
    /// As control sent it.
    pub bytes: Bytes,
    /// What it says.
    pub decoded: Decoded,
}

/// One member of an endpoint set.
#[derive(Debug)]
pub struct Member {
    /// As control gave it.
    pub version: Arc<str>,
    /// As control sent it.
    pub bytes: Bytes,
    /// What it says.
    pub endpoint: Endpoint,
}

/// How far an endpoint set is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Members are on their way; the set may be used once it is what the head describes.
    Loading {
        /// What it will be.
        target: EndpointHead,
        /// When something of it came, or was asked for, last.
        since: Duration,
    },
    /// Complete; changes of members come one by one.
    Steady,
}

/// The endpoints of one service port.
#[derive(Debug)]
pub struct Collection {
    /// By resource name.
    pub members: BTreeMap<Arc<str>, Member>,
    /// How far it is known.
    pub phase: Phase,
    digest: Digest,
}

impl Collection {
    fn loading(target: EndpointHead, since: Duration) -> Self {
        Self { members: BTreeMap::new(), phase: Phase::Loading { target, since }, digest: Digest::default() }
    }

    /// Whether it may be used.
    pub fn is_steady(&self) -> bool {
        self.phase == Phase::Steady
    }

    /// The version of its head: the digest of the members held.
    pub fn version(&self) -> String {
        self.digest.to_version()
    }

    /// A head that describes what is held.
    pub fn head(&self) -> v1::EndpointHead {
        v1::EndpointHead {
            count: u32::try_from(self.members.len()).unwrap_or(u32::MAX),
            digest: self.digest.to_bytes(),
        }
    }

    /// Puts in a member, or takes it out; true if that changed anything.
    pub fn set(&mut self, name: &Arc<str>, member: Option<Member>) -> bool {
        let before = match member {
            Some(member) => {
                let held = self.members.get(name).is_some_and(|held| held.version == member.version);
                if held {
                    return false;
                }
                self.digest.toggle(name, &member.version);
                self.members.insert(Arc::clone(name), member)
            }
            None => match self.members.remove(name) {
                Some(before) => Some(before),
                None => return false,
            },
        };
        if let Some(before) = before {
            self.digest.toggle(name, &before.version);
        }
        true
    }

    /// Forgets its members; they will come again.
    pub fn clear(&mut self) {
        self.members.clear();
        self.digest = Digest::default();
    }

    /// Becomes steady if the members held are what the head describes; true if it just has.
    pub fn settle(&mut self) -> bool {
        match self.phase {
            Phase::Loading { target, .. } if target.describes(self.members.len(), self.digest) => {
                self.phase = Phase::Steady;
                true
            }
            _ => false,
        }
    }
}

/// All that is held.
#[derive(Debug, Default)]
pub struct Table {
    /// Everything but endpoints, by name.
    pub nodes: HashMap<Arc<str>, Node>,
    /// Endpoint sets by the name of their head.
    pub collections: HashMap<Arc<str>, Collection>,
    /// Our own namespace: whose routes for others' services we need.
    pub namespace: Arc<str>,
}

impl Table {
    /// A resource of that name as it was decoded.
    pub fn decoded(&self, name: &str) -> Option<&Decoded> {
        self.nodes.get(name).map(|node| &node.decoded)
    }

    /// A head has come. `known` says that control knows which members we hold, so that it will send the difference; else it begins
    /// from nothing.
    pub fn head(&mut self, name: &Arc<str>, target: EndpointHead, known: bool, now: Duration) -> &mut Collection {
        let phase = Phase::Loading { target, since: now };
        let collection = match self.collections.entry(Arc::clone(name)) {
            std::collections::hash_map::Entry::Occupied(held) => {
                let held = held.into_mut();
                // While it is loading, a further head only says where the set has gone meanwhile.
                if held.is_steady() && !known {
                    held.clear();
                }
                held.phase = phase;
                held
            }
            std::collections::hash_map::Entry::Vacant(free) => free.insert(Collection::loading(target, now)),
        };
        collection.settle();
        collection
    }

    /// Whether something of this name is held.
    pub fn holds(&self, name: &str) -> bool {
        self.nodes.contains_key(name) || self.collections.contains_key(name)
    }

    /// Names that are reached from `roots`, held or not.
    pub fn reach<'r>(&self, roots: impl Iterator<Item = &'r Arc<str>>) -> HashSet<Arc<str>> {
        let mut reached = HashSet::new();
        let mut todo: Vec<Arc<str>> = roots.cloned().collect();
        while let Some(name) = todo.pop() {
            if reached.contains(&name) {
                continue;
            }
            if let Some(decoded) = self.decoded(&name) {
                points_to(decoded, &self.namespace, &mut |next| todo.push(next));
            }
            reached.insert(name);
        }
        reached
    }

    /// Forgets what is not reached.
    pub fn collect(&mut self, reached: &HashSet<Arc<str>>) {
        self.nodes.retain(|name, _| reached.contains(name));
        self.collections.retain(|name, _| reached.contains(name));
    }

    /// How many of each type are held, by the place in [`TYPES`].
    pub fn counts(&self) -> [u64; TYPES.len()] {
        let mut counts = [0; TYPES.len()];
        let mut add = |type_url: &str, many: usize| {
            if let Some(count) = type_index(type_url).and_then(|at| counts.get_mut(at)) {
                *count += many as u64;
            }
        };
        self.nodes.values().for_each(|node| add(node.type_url, 1));
        add(v1::EndpointHead::TYPE_URL, self.collections.len());
        add(v1::Endpoint::TYPE_URL, self.collections.values().map(|set| set.members.len()).sum());
        counts
    }
}

/// Calls `next` with the name of everything that a resource needs beside it at a client of this namespace.
fn points_to(decoded: &Decoded, client: &str, next: &mut impl FnMut(Arc<str>)) {
    match decoded {
        Decoded::Address(Address::Service(name)) => next(Arc::clone(name)),
        Decoded::Service(service) => {
            service.routes.iter().cloned().for_each(&mut *next);
            if let Some(consumer) = service.consumer(client) {
                next(consumer.into());
            }
            if service.external_name.is_none() {
                next(names::endpoints_of(&service.name).into());
            }
        }
        Decoded::Consumer(consumer) => consumer.routes.iter().cloned().for_each(next),
        Decoded::Route(route) => {
            route
                .rules
                .iter()
                .flat_map(weft_engine::route::Rule::services)
                .for_each(|service| next(Arc::clone(service)));
        }
        Decoded::Workload(workload) => {
            let bindings = workload.authorization.iter().chain(&workload.rate_limits);
            bindings.for_each(|binding| next(Arc::clone(&binding.policy)));
            next(names::TRUST.into());
            next(names::REVOKED.into());
        }
        Decoded::Address(_)
        | Decoded::EndpointHead(_)
        | Decoded::Endpoint(_)
        | Decoded::AuthorizationPolicy(_)
        | Decoded::RateLimitPolicy(_)
        | Decoded::MeshExtent(_)
        | Decoded::Trust(_)
        | Decoded::Revoked(_) => {}
    }
}
