//! What a source tells: single objects that came, changed or went.

use std::collections::BTreeMap;

use super::{
    AuthorizationPolicy, Grant, Model, Name, Namespace, Node, RateLimitPolicy, Route, Service, Slice, Workload,
};

/// An object as it is now; `None` if it is gone.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A namespace.
    Namespace(String, Option<Namespace>),
    /// A node.
    Node(String, Option<Node>),
    /// A service.
    Service(Name, Option<Service>),
    /// An endpoint slice.
    Slice(Name, Option<Slice>),
    /// A pod.
    Workload(Name, Option<Workload>),
    /// A route, by kind and name.
    Route((String, Name), Option<Route>),
    /// A ReferenceGrant.
    Grant(Name, Option<Grant>),
    /// An authorization policy.
    Authorization(Name, Option<AuthorizationPolicy>),
    /// A rate limit policy.
    RateLimit(Name, Option<RateLimitPolicy>),
}

impl Model {
    /// Takes an object over. Returns whether anything is different now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Namespace(key, value) => put(&mut self.namespaces, key, value),
            Change::Node(key, value) => put(&mut self.nodes, key, value),
            Change::Service(key, value) => put(&mut self.services, key, value),
            Change::Slice(key, value) => put(&mut self.slices, key, value),
            Change::Workload(key, value) => put(&mut self.workloads, key, value),
            Change::Route(key, value) => put(&mut self.routes, key, value),
            Change::Grant(key, value) => put(&mut self.grants, key, value),
            Change::Authorization(key, value) => put(&mut self.authorization, key, value),
            Change::RateLimit(key, value) => put(&mut self.rate_limits, key, value),
        }
    }

    /// The same object as this one has it.
    pub fn held(&self, change: &Change) -> Change {
        match change {
            Change::Namespace(key, _) => Change::Namespace(key.clone(), self.namespaces.get(key).cloned()),
            Change::Node(key, _) => Change::Node(key.clone(), self.nodes.get(key).cloned()),
            Change::Service(key, _) => Change::Service(key.clone(), self.services.get(key).cloned()),
            Change::Slice(key, _) => Change::Slice(key.clone(), self.slices.get(key).cloned()),
            Change::Workload(key, _) => Change::Workload(key.clone(), self.workloads.get(key).cloned()),
            Change::Route(key, _) => Change::Route(key.clone(), self.routes.get(key).cloned()),
            Change::Grant(key, _) => Change::Grant(key.clone(), self.grants.get(key).cloned()),
            Change::Authorization(key, _) => Change::Authorization(key.clone(), self.authorization.get(key).cloned()),
            Change::RateLimit(key, _) => Change::RateLimit(key.clone(), self.rate_limits.get(key).cloned()),
        }
    }

    /// What makes `next` of this one. For sources that know only all of it: it looks at every object.
    pub fn changes_to(&self, next: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        differ(&self.namespaces, &next.namespaces, Change::Namespace, &mut changes);
        differ(&self.nodes, &next.nodes, Change::Node, &mut changes);
        differ(&self.services, &next.services, Change::Service, &mut changes);
        differ(&self.slices, &next.slices, Change::Slice, &mut changes);
        differ(&self.workloads, &next.workloads, Change::Workload, &mut changes);
        differ(&self.routes, &next.routes, Change::Route, &mut changes);
        differ(&self.grants, &next.grants, Change::Grant, &mut changes);
        differ(&self.authorization, &next.authorization, Change::Authorization, &mut changes);
        differ(&self.rate_limits, &next.rate_limits, Change::RateLimit, &mut changes);
        changes
    }
}

fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}

fn differ<K: Ord + Clone, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    made: fn(K, Option<V>) -> Change,
    changes: &mut Vec<Change>,
) {
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    changes.extend(gone.map(|key| made(key.clone(), None)));
    let differs = new.iter().filter(|(key, value)| old.get(*key) != Some(*value));
    changes.extend(differs.map(|(key, value)| made(key.clone(), Some(value.clone()))));
}
