//! A proxy's end of the protocol, as plainly as it can be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};
use prost::Message;
use weft_api::names::{self, Digest, ResourceType};
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_api::wire::v1;

use super::{Server, ack};
use crate::compile::Compiled;

const WORKLOAD: &str = "workload/shop/web-1";

pub fn subscribe(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

struct Has {
    type_url: String,
    version: String,
    bytes: Vec<u8>,
}

/// What the proxy holds.
#[derive(Default)]
pub struct Mirror {
    addresses: BTreeSet<String>,
    has: BTreeMap<String, Has>,
    /// Heads whose digest its members do not match yet.
    loading: BTreeSet<String>,
    /// Something may rightly come twice.
    pub lenient: bool,
    /// How often something was missing in the end.
    pub heals: usize,
}

impl Mirror {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn subscribe(&mut self, address: &str) -> bool {
        self.addresses.insert(address.to_owned())
    }

    pub fn unsubscribe(&mut self, address: &str) -> bool {
        let was = self.addresses.remove(address);
        self.collect();
        was
    }

    /// Members that it holds of a set.
    pub fn members(&self, head: &str) -> HashMap<String, String> {
        let ours = self.has.iter().filter(|(name, _)| names::collection_of(name) == Some(head));
        ours.map(|(name, has)| (name.clone(), has.version.clone())).collect()
    }

    fn digest(&self, head: &str) -> String {
        let mut digest = Digest::default();
        for (name, version) in self.members(head) {
            digest.toggle(&name, &version);
        }
        digest.to_version()
    }

    /// The first requests of a new stream.
    pub fn hello(&self) -> Vec<DeltaDiscoveryRequest> {
        let mut extent = subscribe(v1::MeshExtent::TYPE_URL, &[names::MESH_EXTENT]);
        let mut workload = subscribe(v1::Workload::TYPE_URL, &[WORKLOAD]);
        let addresses: Vec<&str> = self.addresses.iter().map(String::as_str).collect();
        let mut address = subscribe(v1::Address::TYPE_URL, &addresses);
        for (name, has) in &self.has {
            let kind = names::short_type(&has.type_url);
            let version = match kind {
                "Endpoint" => continue,
                "EndpointHead" => self.digest(name),
                _ => has.version.clone(),
            };
            let request = match kind {
                "MeshExtent" => &mut extent,
                "Workload" | "AuthorizationPolicy" | "RateLimitPolicy" | "Trust" | "Revoked" => &mut workload,
                _ => &mut address,
            };
            request.initial_resource_versions.insert(name.clone(), version);
        }
        // As if they did not fit into one request.
        let mut versions = subscribe(v1::Address::TYPE_URL, &[]);
        versions.initial_resource_versions = std::mem::take(&mut address.initial_resource_versions);
        vec![extent, workload, versions, address]
    }

    pub fn reconnect(&mut self, server: &mut Server) {
        self.lenient = false;
        self.loading.clear();
        for request in self.hello() {
            server.hear(request);
        }
    }

    /// Takes some responses.
    pub fn deliver(&mut self, server: &mut Server, count: usize) {
        for _ in 0..count {
            let Some(response) = server.next() else { return };
            for request in self.take(&response) {
                server.hear(request);
            }
        }
    }

    /// Until both have nothing to say, and nothing is missing.
    pub fn exchange(&mut self, server: &mut Server) {
        for _ in 0..10_000 {
            let Some(response) = server.next() else {
                let missing = self.missing();
                if missing.is_empty() {
                    self.lenient = false;
                    return;
                }
                self.heals += 1;
                self.lenient = true;
                let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
                server.hear(subscribe(v1::Address::TYPE_URL, &missing));
                continue;
            };
            for request in self.take(&response) {
                server.hear(request);
            }
        }
        panic!("they never come to an end");
    }

    /// Addresses of which something is not there.
    fn missing(&self) -> Vec<String> {
        let incomplete = |address: &&String| !self.reachable_from(vec![(*address).clone()]).1;
        self.addresses.iter().filter(incomplete).cloned().collect()
    }

    fn take(&mut self, response: &DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
        let mut heads = BTreeSet::new();
        let (reachable, _) = self.reachable();
        for resource in &response.resources {
            let any = resource.resource.as_ref().unwrap();
            let type_url = Some(&any.type_url).filter(|said| !said.is_empty()).unwrap_or(&response.type_url);
            let kind = names::short_type(type_url);
            if kind == "EndpointHead" {
                heads.insert(resource.name.clone());
            } else {
                assert_eq!(names::version(&any.value), resource.version);
                let counts = reachable.contains(names::collection_of(&resource.name).unwrap_or(&resource.name));
                let had = self.has.get(&resource.name).filter(|_| counts).map(|has| has.version.as_str());
                let had = had.filter(|_| !self.lenient);
                assert_ne!(had, Some(resource.version.as_str()), "{} was sent again", resource.name);
            }
            let has = Has { type_url: type_url.clone(), version: resource.version.clone(), bytes: any.value.clone() };
            self.has.insert(resource.name.clone(), has);
        }
        for removed in &response.removed_resources {
            let reachable = reachable.contains(names::collection_of(removed).unwrap_or(removed));
            assert!(self.has.remove(removed).is_some() || !reachable, "{removed} was removed without being there");
        }
        let mut requests = vec![ack(response)];
        for head in heads {
            let fresh = self.members(&head).is_empty() || self.loading.contains(&head);
            if self.digest(&head) == self.has[&head].version {
                self.loading.remove(&head);
            } else if !fresh && response.type_url != v1::Endpoint::TYPE_URL {
                // An older set that differs from the head: say what is in it.
                let mut request = subscribe(v1::Endpoint::TYPE_URL, &[&head]);
                request.initial_resource_versions = self.members(&head);
                requests.push(request);
                self.loading.insert(head);
            } else {
                self.loading.insert(head);
            }
        }
        self.collect();
        // Members of a set may come in later responses than its head.
        let complete = |head: &String| self.has.get(head).is_none_or(|has| has.version == self.digest(head));
        let complete: Vec<String> = self.loading.iter().filter(|head| complete(head)).cloned().collect();
        for head in complete {
            self.loading.remove(&head);
        }
        requests
    }

    fn points_to(name: &str, has: &Has) -> Vec<String> {
        match names::short_type(&has.type_url) {
            "Address" => match v1::Address::decode(&*has.bytes).unwrap().target {
                Some(v1::address::Target::Service(service)) => vec![service],
                _ => Vec::new(),
            },
            "Service" => {
                let service = v1::Service::decode(&*has.bytes).unwrap();
                let own = service.external_name.is_empty().then(|| names::endpoints_of(name));
                let consumer = service.consumed.then(|| names::consumer("shop", name)).flatten();
                service.routes.into_iter().chain(own).chain(consumer).collect()
            }
            "Consumer" => v1::Consumer::decode(&*has.bytes).unwrap().routes,
            "Route" => {
                let rules = v1::Route::decode(&*has.bytes).unwrap().rules;
                let mirrored = |filter: &v1::filter::Filter| match filter {
                    v1::filter::Filter::Mirror(to) => Some(to.service.clone()).filter(|_| to.invalid.is_empty()),
                    _ => None,
                };
                let backends = rules.iter().flat_map(|rule| &rule.backends).filter(|to| to.invalid.is_empty());
                let mirrors = rules.iter().flat_map(v1::RouteRule::all_filters).filter_map(mirrored);
                backends.map(|backend| backend.service.clone()).chain(mirrors).collect()
            }
            "Workload" => {
                let workload = v1::Workload::decode(&*has.bytes).unwrap();
                let bindings = workload.authorization.into_iter().chain(workload.rate_limits);
                let beside = [names::TRUST, names::REVOKED].map(str::to_owned);
                bindings.map(|binding| binding.policy).chain(beside).collect()
            }
            _ => Vec::new(),
        }
    }

    /// What the roots lead to, and whether all of it is there.
    fn reachable(&self) -> (BTreeSet<String>, bool) {
        let roots = self.addresses.iter().cloned();
        self.reachable_from(roots.chain([names::MESH_EXTENT.to_owned(), WORKLOAD.to_owned()]).collect())
    }

    fn reachable_from(&self, mut todo: Vec<String>) -> (BTreeSet<String>, bool) {
        let (mut reached, mut complete) = (BTreeSet::new(), true);
        while let Some(name) = todo.pop() {
            if let Some(has) = self.has.get(&name) {
                todo.extend(Self::points_to(&name, has).into_iter().filter(|next| !reached.contains(next)));
            } else if name != WORKLOAD {
                complete = false;
            }
            reached.insert(name);
        }
        (reached, complete)
    }

    /// Drops what no root points to, once all that they point to is there: until then an answer is under way that may rest on what
    /// it was told that we hold.
    fn collect(&mut self) {
        let (reached, complete) = self.reachable();
        if !complete {
            return;
        }
        self.has.retain(|name, _| reached.contains(names::collection_of(name).unwrap_or(name)));
    }

    /// It holds what is true.
    pub fn check(&self, truth: &Compiled) -> Result<(), TestCaseError> {
        let mut expected: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let roots = self.addresses.iter().map(String::as_str).chain([names::MESH_EXTENT, WORKLOAD]);
        for root in roots {
            for (name, resource) in truth.closure(root, "shop") {
                expected.insert(name.to_string(), resource.bytes.to_vec());
            }
        }
        let mine = |name: &String| truth.get(WORKLOAD).is_some() || !name.contains("Policy/") && *name != WORKLOAD;
        let held: BTreeSet<&String> = self.has.keys().filter(|name| mine(name)).collect();
        prop_assert_eq!(held, expected.keys().collect::<BTreeSet<_>>());
        for (name, bytes) in &expected {
            let has = &self.has[name];
            if names::short_type(&has.type_url) == "EndpointHead" {
                prop_assert_eq!(&*self.digest(name), &*truth.get(name).unwrap().version, "{}", name);
            } else {
                prop_assert_eq!(&has.bytes, bytes, "{}", name);
            }
        }
        prop_assert!(self.loading.is_empty(), "never complete: {:?}", self.loading);
        Ok(())
    }
}
