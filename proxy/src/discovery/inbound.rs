//! The proxy's own side from its workload's resource and the policies that cover it.
//!
//! Invariants
//! - Never half: while a policy that the workload names is on its way, the rules before it stay in force; before there were any, nothing
//!   is admitted.
//! - Which policy holds on which port, and what one that had to be refused closes, is [`Bound`]'s to say.
//! - A limit keeps its counters whatever else changes.

use std::collections::HashMap;
use std::sync::Arc;

use weft_api::convert::{self, Bound, Decoded, Held, PortRules, RateLimitPolicy};

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
        // If a policy is on its way, what was made before stays.
        let Some(bound) = Bound::join(workload, |name| held(machine, name)) else { return };
        let mut print = Fingerprint::default();
        print.add(machine.workload(), &node.version);
        for binding in workload.authorization.iter().chain(&workload.rate_limits) {
            print.add(&binding.policy, version(machine, &binding.policy).map_or("refused", |held| held));
        }
        let print = print.finish();
        if self.made.as_ref().is_none_or(|(before, _)| *before != print) {
            let inbound = Arc::new(self.make(machine, workload, &bound));
            self.made = Some((print, inbound));
        }
    }

    fn make(&mut self, machine: &Machine, workload: &convert::Workload, bound: &Bound<'_>) -> Inbound {
        let before = std::mem::take(&mut self.limits);
        for policy in bound.limits() {
            let version = version(machine, &policy.name).cloned().unwrap_or_default();
            self.limits.insert(Arc::clone(&policy.name), limits(policy, version, before.get(&policy.name)));
        }
        let port = |rules: PortRules<'_>, told: Option<&convert::InboundPort>| {
            let limits = rules.limits.iter().filter_map(|policy| self.limits.get(&policy.name));
            Arc::new(InboundPort {
                protocol: told.map(|told| protocol(told.protocol)).unwrap_or_default(),
                strict: rules.strict,
                service: told.and_then(|told| told.services.first().cloned()).unwrap_or_default(),
                policies: rules.policies,
                limits: limits.flat_map(|(_, limits)| limits).cloned().collect(),
            })
        };
        let told = |number: u16| workload.ports.iter().find(|port| port.port == number);
        Inbound {
            workload: Arc::clone(&workload.name),
            ports: bound.ports().into_iter().map(|number| (number, port(bound.on(number), told(number)))).collect(),
            default: port(bound.elsewhere(), None),
        }
    }
}

fn held<'m>(machine: &'m Machine, name: &str) -> Option<Held<'m>> {
    machine.table.decoded(name).map(Ok).or_else(|| machine.refusal(name).map(Err))
}

/// The version held; `None` of one that was refused.
fn version<'m>(machine: &'m Machine, name: &str) -> Option<&'m Arc<str>> {
    machine.table.nodes.get(name).map(|node| &node.version)
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
