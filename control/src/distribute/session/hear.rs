//! What a proxy says: subscriptions, what it holds, ACKs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use weft_api::names::{self, ResourceType};
use weft_api::wire::{discovery, v1};

use super::{Entry, Heard, Held, Members, Phase, Session, Work};
use crate::compile::{Compiled, Resource};

/// A proxy broke the protocol in a way that ends its stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Another workload's own resources.
    #[error("{asked} was asked for by the proxy of {own}; a workload's own resources go to that workload only")]
    NotYours {
        /// Name of the resource.
        asked: String,
        /// `NAMESPACE/POD` of the stream.
        own: String,
    },
    /// A nonce that was never given.
    #[error("response_nonce `{0}` was never given on this stream; acknowledge with the nonce of the response")]
    Nonce(String),
}

/// Types that are subscribed to by name.
const ROOTS: [&str; 3] = [v1::MeshExtent::TYPE_URL, v1::Workload::TYPE_URL, v1::Address::TYPE_URL];

impl Session {
    /// Takes one request. What it asks for is in the queue afterwards.
    pub fn hear(
        &mut self,
        request: discovery::DeltaDiscoveryRequest,
        compiled: &Compiled,
        now: Duration,
    ) -> Result<Heard, Violation> {
        let mut heard = Heard::default();
        if !request.response_nonce.is_empty() {
            self.acknowledge(&request.response_nonce, request.error_detail.as_ref(), compiled, now, &mut heard)?;
        }
        if request.type_url == v1::Endpoint::TYPE_URL {
            self.hear_members(&request, compiled);
            return Ok(heard);
        }
        let Some(group) = ROOTS.into_iter().find(|root| *root == request.type_url) else { return Ok(heard) };
        // Versions that do not fit into one request come before it, in requests that ask for nothing.
        let claims = !request.initial_resource_versions.is_empty();
        self.more_claims = request.resource_names_subscribe.is_empty() && (claims || self.more_claims);
        self.claim(request.initial_resource_versions);
        for name in &request.resource_names_unsubscribe {
            if let Some(name) = self.roots.take(name.as_str()) {
                self.sweep = true;
                if !self.nodes.contains_key(&name) {
                    self.unlisten(&name);
                }
            }
        }
        if self.sweep {
            self.sweep();
        }
        for name in &request.resource_names_subscribe {
            self.subscribe(group, name)?;
        }
        let first = !request.resource_names_subscribe.is_empty() && self.asked.insert(group);
        if first {
            self.queue.push_back(Entry { group, work: Work::Answer });
        }
        Ok(heard)
    }

    /// What the proxy says that it holds, until what it asks for has been answered.
    fn claim(&mut self, versions: HashMap<String, String>) {
        if self.claims.is_empty() {
            self.claims = versions;
        } else {
            self.claims.extend(versions);
        }
        if self.claims.len() > self.limits.claims {
            // Not believed is as good as not said: it gets all anew.
            self.refused_by_bounds += 1;
            self.claims = HashMap::new();
        }
    }

    fn subscribe(&mut self, group: &'static str, name: &str) -> Result<(), Violation> {
        let right_type = match group {
            v1::MeshExtent::TYPE_URL => name == names::MESH_EXTENT,
            v1::Address::TYPE_URL => names::is_address(name),
            _ => {
                let own = names::workload(&self.workload.namespace, &self.workload.name);
                if name != own {
                    return Err(Violation::NotYours { asked: name.to_owned(), own: self.workload.to_string() });
                }
                true
            }
        };
        if !right_type || name.len() > self.limits.name {
            self.refused_by_bounds += 1;
            return Ok(());
        }
        if self.roots.contains(name) {
            // It has lost something: forget what it was told of this root.
            let name: Arc<str> = name.into();
            for known in self.reach(std::iter::once(&name)) {
                self.forget(&known);
            }
        } else if self.roots.len() >= self.limits.roots {
            self.refused_by_bounds += 1;
            return Ok(());
        }
        let name: Arc<str> = name.into();
        self.roots.insert(Arc::clone(&name));
        if self.queued.insert(Arc::clone(&name)) {
            self.queue.push_back(Entry { group, work: Work::Resource(name) });
        }
        Ok(())
    }

    /// The proxy says which members it holds of sets whose digest differed: it gets the difference, then the head if that moved on.
    fn hear_members(&mut self, request: &discovery::DeltaDiscoveryRequest, compiled: &Compiled) {
        for head in &request.resource_names_subscribe {
            let Some((head, _)) = self.nodes.get_key_value(head.as_str()) else { continue };
            let head = Arc::clone(head);
            let truth = compiled.collection(&head);
            let mut held = BTreeMap::new();
            for (name, version) in &request.initial_resource_versions {
                if names::collection_of(name) != Some(&head) {
                    continue;
                }
                let known = truth.and_then(|set| set.members.get_key_value(name.as_str()));
                let (name, resource) = match known {
                    Some((name, member)) if *member.version == **version => (Arc::clone(name), Arc::clone(member)),
                    Some((name, _)) => (Arc::clone(name), told(version)),
                    None => (name.as_str().into(), told(version)),
                };
                held.insert(name, Held::Settled(resource));
            }
            self.collections.insert(Arc::clone(&head), Members::new(Phase::Loading, held));
            self.queued.insert(Arc::clone(&head));
            self.queue.push_back(Entry { group: v1::Endpoint::TYPE_URL, work: Work::Members(head) });
            self.queue.push_back(Entry { group: v1::Endpoint::TYPE_URL, work: Work::Answer });
        }
    }
}

/// An endpoint of which only the version is known.
fn told(version: &str) -> Arc<Resource> {
    let (type_url, bytes) = (v1::Endpoint::TYPE_URL, bytes::Bytes::new());
    Arc::new(Resource { type_url, version: version.into(), bytes, points_to: Vec::new() })
}
