//! The resources as a proxy would hold them: decoded from the bytes that control would send.

use std::collections::HashMap;
use std::sync::Arc;

use weft_api::convert::{self, Address, Bound, Decoded, Endpoint, ErrorCode, ResourceError, Service};
use weft_control::compile::Compiled;
use weft_engine::authz::PolicySet;
use weft_engine::ratelimit::Limiter;
use weft_engine::route::Tables;

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

    /// Names of the routes that clients of a namespace have of a service instead of its own.
    pub fn consumer(&self, service: &Service, client: &str) -> Result<Vec<Arc<str>>, ResourceError> {
        match service.consumer(client).and_then(|name| self.decode(&name)) {
            Some(Ok(Decoded::Consumer(consumer))) => Ok(consumer.routes),
            Some(Err(error)) => Err(error),
            _ => Ok(Vec::new()),
        }
    }

    /// The routes of these names; the refused resource's error if one cannot be used.
    pub fn tables(&self, names: &[Arc<str>]) -> Result<Tables, ResourceError> {
        let mut routes = Vec::new();
        for name in names {
            match self.decode(name) {
                Some(Ok(Decoded::Route(route))) => routes.push(route),
                Some(Err(error)) => return Err(error),
                _ => {}
            }
        }
        Ok(Tables::new(routes))
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
        let bindings = workload.authorization.iter().chain(&workload.rate_limits);
        let decoded: HashMap<&str, _> =
            bindings.map(|binding| (&*binding.policy, self.policy(&binding.policy))).collect();
        let rules = Bound::join(&workload, |name| decoded.get(name).map(Result::as_ref))?.on(port);
        let (mut limits, mut limit_sources) = (Vec::new(), Vec::new());
        for policy in rules.limits {
            let place = format!("{} at {}", policy.name, policy.source);
            limit_sources.extend(policy.limiters.iter().map(|_| place.clone()));
            limits.extend(policy.limiters.iter().cloned());
        }
        Some(Inbound { strict: rules.strict, policies: rules.policies, limits, limit_sources })
    }

    /// A policy. One that control does not have is told as refused: a proxy that waits for it admits nothing.
    fn policy(&self, name: &str) -> Result<Decoded, ResourceError> {
        let absent =
            || Err(ResourceError::new(ErrorCode::InvalidName, "control names this policy but does not have it"));
        self.decode(name).unwrap_or_else(absent)
    }
}
