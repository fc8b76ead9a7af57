//! What a workload enforces on each of its ports: its bindings joined with the policies that they name. The proxy decides by it, and
//! `weft explain` tells by it.
//!
//! Invariants
//! - Never half: while a policy that the workload names is not there at all, there are no rules.
//! - Never open by accident: a policy that was refused, that cannot be enforced, or that is another resource than the binding means,
//!   denies everything on the ports that it covers.

use std::borrow::Cow;
use std::collections::BTreeSet;

use weft_engine::authz::{Policy, PolicySet};

use super::policy::{RateLimitPolicy, closed_policy};
use super::{Binding, Decoded, ErrorCode, ResourceError, Workload};

/// A resource as its reader holds it: decoded, or why it was refused.
pub type Held<'p> = Result<&'p Decoded, &'p ResourceError>;

/// A workload with its policies.
#[derive(Debug)]
pub struct Bound<'p> {
    workload: &'p Workload,
    /// Who may; after them what closes in the place of limits.
    policies: Vec<(&'p Binding, Cow<'p, Policy>)>,
    limits: Vec<(&'p Binding, &'p RateLimitPolicy)>,
}

/// What the inbound side of a workload enforces on one port.
#[derive(Debug)]
pub struct PortRules<'p> {
    /// Mesh TLS only.
    pub strict: bool,
    /// Who may.
    pub policies: PolicySet,
    /// How often, in the order of the bindings.
    pub limits: Vec<&'p RateLimitPolicy>,
}

impl<'p> Bound<'p> {
    /// Joins; `held` knows resources by name. `None` while a policy is not there, neither decoded nor refused.
    pub fn join(workload: &'p Workload, held: impl Fn(&str) -> Option<Held<'p>>) -> Option<Self> {
        let mut policies = Vec::with_capacity(workload.authorization.len());
        for binding in &workload.authorization {
            policies.push(match held(&binding.policy)? {
                Ok(Decoded::AuthorizationPolicy(policy)) => (binding, Cow::Borrowed(policy)),
                other => (binding, Cow::Owned(closed(binding, other))),
            });
        }
        let mut limits = Vec::with_capacity(workload.rate_limits.len());
        for binding in &workload.rate_limits {
            match held(&binding.policy)? {
                Ok(Decoded::RateLimitPolicy(policy)) => {
                    policies.extend(policy.closing().map(|policy| (binding, Cow::Owned(policy))));
                    limits.push((binding, policy));
                }
                other => policies.push((binding, Cow::Owned(closed(binding, other)))),
            }
        }
        Some(Self { workload, policies, limits })
    }

    /// Ports of which something is said. What holds on all others is [`Self::elsewhere`].
    pub fn ports(&self) -> BTreeSet<u16> {
        let bindings = self.workload.authorization.iter().chain(&self.workload.rate_limits);
        let covered = bindings.flat_map(|binding| binding.ports.iter().copied());
        let told = self.workload.ports.iter().map(|told| told.port);
        covered.chain(told).chain(self.workload.other_mode.iter().copied()).collect()
    }

    /// The rules of a port.
    pub fn on(&self, port: u16) -> PortRules<'p> {
        self.rules(self.workload.strict != self.workload.other_mode.contains(&port), |binding| binding.covers(port))
    }

    /// The rules of every port of which nothing is said: what covers all ports.
    pub fn elsewhere(&self) -> PortRules<'p> {
        self.rules(self.workload.strict, |binding| binding.ports.is_empty())
    }

    /// Every rate-limit policy that could be decoded, whatever it covers.
    pub fn limits(&self) -> impl Iterator<Item = &'p RateLimitPolicy> {
        self.limits.iter().map(|(_, policy)| *policy)
    }

    fn rules(&self, strict: bool, covers: impl Fn(&Binding) -> bool) -> PortRules<'p> {
        let policies = self.policies.iter().filter(|(binding, _)| covers(binding));
        let policies = policies.map(|(_, policy)| policy.clone().into_owned()).collect();
        PortRules {
            strict,
            policies: PolicySet::new(policies, self.workload.default_deny),
            limits: self.limits.iter().filter(|(binding, _)| covers(binding)).map(|(_, policy)| *policy).collect(),
        }
    }
}

fn closed(binding: &Binding, held: Held<'_>) -> Policy {
    match held {
        Err(error) => closed_policy(&binding.policy, error),
        Ok(_) => {
            let message = "the resource of this name is of another kind";
            closed_policy(&binding.policy, &ResourceError::new(ErrorCode::InvalidName, message))
        }
    }
}

#[cfg(test)]
mod tests;
