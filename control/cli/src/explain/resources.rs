//! The resources as a proxy would hold them: decoded from the bytes that control would send.

use std::sync::Arc;

use weft_api::convert::{self, Address, Decoded, Endpoint, ResourceError, Service, Workload, closed_policy};
use weft_control::compile::Compiled;
use weft_engine::authz::{Policy, PolicySet};
use weft_engine::ratelimit::Limiter;
use weft_engine::route::RouteTable;

/// Reads resources for proxies of one trust domain.
pub struct Resources<'c> {
    compiled: &'c Compiled,
    trust_domain: &'c str,
}

/// What the inbound side of a workload enforces on one port.
pub struct Inbound {
    /// Mesh TLS only.
    pub strict: bool,
    /// Who may.
    pub policies: PolicySet,
    /// How often.
    pub limits: Vec<Limiter>,
    /// Where each of the limits stands: policy and FILE:LINE.
    pub limit_sources: Vec<String>,
}

impl<'c> Resources<'c> {
    /// Over these resources.
    pub fn new(compiled: &'c Compiled, trust_domain: &'c str) -> Self {
        Self { compiled, trust_domain }
    }

    fn decode(&self, name: &str) -> Option<Result<Decoded, ResourceError>> {
        let resource = self.compiled.get(name)?;
        Some(convert::decode(resource.type_url, &resource.bytes, self.trust_domain))
    }

    /// What an address means.
    pub fn address(&self, name: &str) -> Option<Address> {
        let resource = self.compiled.address(name);
        match convert::decode(resource.type_url, &resource.bytes, self.trust_domain) {
            Ok(Decoded::Address(address)) => Some(address),
            _ => None,
        }
    }

    /// One port of a service.
    pub fn service(&self, name: &str) -> Option<Service> {
        match self.decode(name) {
            Some(Ok(Decoded::Service(service))) => Some(service),
            _ => None,
        }
    }

    /// The routes of a service; `None` if none is attached, the refused resource's error if one cannot be used.
    pub fn table(&self, service: &Service) -> Result<Option<RouteTable>, ResourceError> {
        let mut routes = Vec::new();
        for name in &service.routes {
            match self.decode(name) {
                Some(Ok(Decoded::Route(route))) => routes.push(route),
                Some(Err(error)) => return Err(error),
                _ => {}
            }
        }
        Ok((!service.routes.is_empty()).then(|| RouteTable::new(routes)))
    }

    /// The endpoints of a service port.
    pub fn endpoints(&self, service: &str) -> Vec<Endpoint> {
        let Some(set) = self.compiled.collection(&weft_api::names::endpoints_of(service)) else { return Vec::new() };
        let decoded = |resource: &Arc<weft_control::compile::Resource>| match convert::decode(
            resource.type_url,
            &resource.bytes,
            self.trust_domain,
        ) {
            Ok(Decoded::Endpoint(endpoint)) => Some(endpoint),
            _ => None,
        };
        set.members.values().filter_map(decoded).collect()
    }

    /// What a workload (`NAMESPACE/POD`) enforces on a port; `None` if there is no such workload.
    pub fn inbound(&self, workload: &str, port: u16) -> Option<Inbound> {
        let (namespace, pod) = workload.split_once('/')?;
        let Some(Ok(Decoded::Workload(workload))) = self.decode(&weft_api::names::workload(namespace, pod)) else {
            return None;
        };
        let mut policies = self.policies(&workload, port);
        let (mut limits, mut limit_sources) = (Vec::new(), Vec::new());
        for binding in workload.rate_limits.iter().filter(|binding| binding.covers(port)) {
            match self.decode(&binding.policy) {
                Some(Ok(Decoded::RateLimitPolicy(policy))) => {
                    policies.extend(policy.closing());
                    let place = format!("{} at {}", policy.name, policy.source);
                    limit_sources.extend(policy.limiters.iter().map(|_| place.clone()));
                    limits.extend(policy.limiters);
                }
                Some(Err(error)) => policies.push(closed_policy(&binding.policy, &error)),
                _ => {}
            }
        }
        let policies = PolicySet::new(policies, workload.default_deny);
        Some(Inbound { strict: workload.strict, policies, limits, limit_sources })
    }

    fn policies(&self, workload: &Workload, port: u16) -> Vec<Policy> {
        let covering = workload.authorization.iter().filter(|binding| binding.covers(port));
        let policy = |name: &str| match self.decode(name)? {
            Ok(Decoded::AuthorizationPolicy(policy)) => Some(policy),
            Ok(_) => None,
            Err(error) => Some(closed_policy(name, &error)),
        };
        covering.filter_map(|binding| policy(&binding.policy)).collect()
    }
}
