//! The proxy's own side from its workload's resource and the policies that cover it.
//!
//! Invariants
//! - Never half: while a policy that the workload names is on its way, the rules before it stay in force; before there were any, nothing
//!   is admitted.
//! - A policy that had to be refused closes what it covers.
//! - A limit keeps its counters whatever else changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use weft_api::convert::{self, Binding, Decoded, RateLimitPolicy, closed_policy};
use weft_engine::authz::{Policy, PolicySet};

use super::build::{Fingerprint, protocol};
use super::machine::Machine;
use super::snapshot::{Inbound, InboundPort, Limit};

/// Limits of one policy: its version, and what was made of each.
type Limits = (Arc<str>, Vec<Arc<Limit>>);

/// Makes the inbound side, and remembers what it made.
#[derive(Default)]
pub struct InboundBuilder {
    made: Option<(u128, Arc<Inbound>)>,
    limits: HashMap<Arc<str>, Limits>,
}

impl InboundBuilder {
    /// The rules in force; `None` before control has said any.
    pub fn current(&self) -> Option<&Arc<Inbound>> {
        self.made.as_ref().map(|(_, inbound)| inbound)
    }

    /// Makes the rules anew if something that they come from has changed.
    pub fn update(&mut self, machine: &Machine) {
        let Some(node) = machine.table.nodes.get(machine.workload()) else { return };
        let Decoded::Workload(workload) = &node.decoded else { return };
        let mut print = Fingerprint::default();
        print.add(machine.workload(), &node.version);
        for binding in workload.authorization.iter().chain(&workload.rate_limits) {
            match machine.table.nodes.get(&binding.policy) {
                Some(policy) => print.add(&binding.policy, &policy.version),
                None if machine.refusal(&binding.policy).is_some() => print.add(&binding.policy, "refused"),
                // On its way.
                None => return,
            }
        }
        let print = print.finish();
        if self.made.as_ref().is_none_or(|(before, _)| *before != print) {
            let inbound = Arc::new(self.make(machine, workload));
            self.made = Some((print, inbound));
        }
    }

    fn make(&mut self, machine: &Machine, workload: &convert::Workload) -> Inbound {
        let policies: Vec<(&Binding, Policy)> = workload
            .authorization
            .iter()
            .filter_map(|binding| Some((binding, authorization(machine, binding)?)))
            .collect();
        let before = std::mem::take(&mut self.limits);
        let mut closing = Vec::new();
        for binding in &workload.rate_limits {
            match machine.table.decoded(&binding.policy) {
                Some(Decoded::RateLimitPolicy(policy)) => {
                    closing.extend(policy.closing().map(|policy| (binding, policy)));
                    let version = machine.table.nodes.get(&binding.policy).map(|node| Arc::clone(&node.version));
                    let limits = limits(policy, version.unwrap_or_default(), before.get(&binding.policy));
                    self.limits.insert(Arc::clone(&binding.policy), limits);
                }
                _ => closing.extend(refused(machine, binding).map(|policy| (binding, policy))),
            }
        }
        let all = || policies.iter().chain(&closing);
        let port = |number: Option<u16>, told: Option<&convert::InboundPort>| {
            // A port that nobody names is covered by what covers all ports.
            let covers = |binding: &Binding| number.map_or(binding.ports.is_empty(), |port| binding.covers(port));
            let covering = all().filter(|(binding, _)| covers(binding)).map(|(_, policy)| policy.clone());
            let limited = workload.rate_limits.iter().filter(|binding| covers(binding));
            let limits = limited.filter_map(|binding| self.limits.get(&binding.policy)).flat_map(|(_, limits)| limits);
            Arc::new(InboundPort {
                protocol: told.map(|told| protocol(told.protocol)).unwrap_or_default(),
                strict: workload.strict,
                service: told.and_then(|told| told.services.first().cloned()).unwrap_or_default(),
                policies: PolicySet::new(covering.collect(), workload.default_deny),
                limits: limits.cloned().collect(),
            })
        };
        let bindings = workload.authorization.iter().chain(&workload.rate_limits);
        let named: BTreeSet<u16> = bindings
            .flat_map(|binding| binding.ports.iter().copied())
            .chain(workload.ports.iter().map(|p| p.port))
            .collect();
        let told = |number: u16| workload.ports.iter().find(|port| port.port == number);
        Inbound {
            workload: Arc::clone(&workload.name),
            ports: named.into_iter().map(|number| (number, port(Some(number), told(number)))).collect(),
            default: port(None, None),
        }
    }
}

fn authorization(machine: &Machine, binding: &Binding) -> Option<Policy> {
    match machine.table.decoded(&binding.policy) {
        Some(Decoded::AuthorizationPolicy(policy)) => Some(policy.clone()),
        _ => refused(machine, binding),
    }
}

fn refused(machine: &Machine, binding: &Binding) -> Option<Policy> {
    machine.refusal(&binding.policy).map(|error| closed_policy(&binding.policy, error))
}

/// The limits of a policy: the very same if it has not changed, else new ones with the counters of their namesakes.
fn limits(policy: &RateLimitPolicy, version: Arc<str>, before: Option<&Limits>) -> Limits {
    if let Some((held, limits)) = before
        && *held == version
    {
        return (version, limits.clone());
    }
    let mut left: Vec<&Arc<Limit>> = before.into_iter().flat_map(|(_, limits)| limits).collect();
    let made = policy.limiters.iter().map(|limiter| {
        let old = left.iter().position(|old| old.limiter.name == limiter.name).map(|at| left.remove(at));
        let limiter = limiter.clone();
        Arc::new(Limit {
            name: format!("{}/{}", policy.name, limiter.name).into(),
            limiter: match old {
                Some(old) => limiter.keeping(&old.limiter),
                None => limiter,
            },
        })
    });
    let made = made.collect();
    (version, made)
}
