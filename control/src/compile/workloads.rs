//! A workload's own side: the ports that services give it, and the policies that cover them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use weft_api::names;
use weft_api::wire::v1;

use super::Resource;
use super::index::{Index, covers, service_of};
use crate::model::{AuthorizationPolicy, Name, RateLimitPolicy, SYSTEM_NAMESPACE, Target, Workload};
use crate::multi::Multi;

const SCHEME: &str = "spiffe://";

/// Whom to believe and whom not: every workload points to both.
static BELIEF: LazyLock<[Arc<str>; 2]> = LazyLock::new(|| [names::TRUST.into(), names::REVOKED.into()]);

/// Target ports of one workload: protocol, the services behind which they stand.
#[derive(Default)]
struct Ports {
    by_port: BTreeMap<u16, (v1::Protocol, BTreeSet<Name>)>,
}

/// The `Workload` resource. It points to the policies that cover it, and to whom it may believe and whom not.
pub(super) fn resource(index: &Index, name: &Name, workload: &Workload) -> Resource {
    let namespace = index.model.namespaces.get(&name.namespace);
    let ports = ports(index, name, workload);
    let authorization = covering(&index.authorization_on, name, &ports).into_iter().filter_map(|policy| {
        binding("AuthorizationPolicy", policy, &index.model.authorization.get(policy)?.targets, &ports)
    });
    let authorization: Vec<_> = authorization.collect();
    let rate_limits = covering(&index.rate_limits_on, name, &ports)
        .into_iter()
        .filter_map(|policy| binding("RateLimitPolicy", policy, &index.model.rate_limits.get(policy)?.targets, &ports));
    let rate_limits: Vec<_> = rate_limits.collect();
    let policies = authorization.iter().chain(&rate_limits).map(|binding| binding.policy.as_str().into());
    let points_to: Vec<Arc<str>> = policies.chain(BELIEF.iter().cloned()).collect();
    let mesh = index.model.namespaces.get(SYSTEM_NAMESPACE).and_then(|system| system.mesh_strict);
    let strict = workload.strict.or(namespace.and_then(|said| said.strict)).or(mesh).unwrap_or_default();
    let mode = if strict { v1::MtlsMode::Strict } else { v1::MtlsMode::Permissive };
    let other_mode =
        workload.strict_ports.iter().filter(|(_, told)| **told != strict).map(|(port, _)| u32::from(*port));
    let other_mode_ports: Vec<u32> = other_mode.collect();
    // Who does not know of it would have one mode on all ports.
    let requires = if other_mode_ports.is_empty() { Vec::new() } else { vec!["mtls-by-port".to_owned()] };
    let message = v1::Workload {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        service_account: workload.service_account.clone(),
        mode: mode.into(),
        default_deny: namespace.is_some_and(|said| said.default_deny),
        ports: ports.messages(),
        authorization,
        rate_limits,
        other_mode_ports,
        node: workload.node.clone(),
        zone: index.zone_of(workload).to_owned(),
        requires,
    };
    Resource::new(&message, points_to)
}

/// Ports of every service that has an endpoint which is this pod, by reference or by address: a policy on a service must not be
/// escaped by a slice that names no pod.
fn ports(index: &Index, name: &Name, workload: &Workload) -> Ports {
    let mut ports = Ports::default();
    for slice_name in index.slices_with(name, workload) {
        let Some(slice) = index.model.slices.get(slice_name) else { continue };
        let service_name = service_of(slice_name, slice);
        let Some(service) = index.model.services.get(&service_name) else { continue };
        for (port_name, target) in &slice.ports {
            let Some(port) = service.ports.iter().find(|port| port.name == *port_name) else { continue };
            ports.add(*target, port.protocol, &service_name);
        }
    }
    ports
}

/// Policies whose targets are the workload's namespace, or a service of it behind which it stands.
fn covering<'i>(on: &'i Multi<Name, Name>, workload: &Name, ports: &Ports) -> BTreeSet<&'i Name> {
    let services: BTreeSet<&Name> = ports.by_port.values().flat_map(|(_, services)| services).collect();
    let services = services.into_iter().filter(|service| service.namespace == workload.namespace);
    let namespace = on.get(&covers(&workload.namespace, &Target::Namespace));
    namespace.iter().chain(services.flat_map(|service| on.get(service))).collect()
}

impl Ports {
    fn add(&mut self, port: u16, protocol: v1::Protocol, service: &Name) {
        let entry = self.by_port.entry(port).or_insert((protocol, BTreeSet::new()));
        if entry.0 != protocol {
            // Two services disagree: let the bytes decide.
            entry.0 = v1::Protocol::Detect;
        }
        entry.1.insert(service.clone());
    }

    fn of(&self, service: &Name) -> impl Iterator<Item = u16> {
        self.by_port.iter().filter(move |(_, (_, services))| services.contains(service)).map(|(port, _)| *port)
    }

    fn messages(&self) -> Vec<v1::InboundPort> {
        let message = |(port, (protocol, services)): (&u16, &(v1::Protocol, BTreeSet<Name>))| v1::InboundPort {
            port: (*port).into(),
            protocol: (*protocol).into(),
            services: services.iter().map(Name::to_string).collect(),
        };
        self.by_port.iter().map(message).collect()
    }
}

/// Which of the workload's ports a policy covers; `None` if none. No port in the message means all, so that never stands for none.
fn binding(kind: &str, policy: &Name, targets: &[Target], ports: &Ports) -> Option<v1::PolicyBinding> {
    let name = names::object(kind, &policy.namespace, &policy.name);
    if targets.contains(&Target::Namespace) {
        return Some(v1::PolicyBinding { policy: name, ports: Vec::new() });
    }
    let mut covered: BTreeSet<u32> = BTreeSet::new();
    for target in targets {
        if let Target::Service(service) = target {
            covered.extend(ports.of(&Name::new(&policy.namespace, service)).map(u32::from));
        }
    }
    (!covered.is_empty()).then(|| v1::PolicyBinding { policy: name, ports: covered.into_iter().collect() })
}

/// An authorization policy's resource; its name is the object's, whatever the rules say. `domains`: what the mesh's own trust domain is or was
/// called.
pub(super) fn authorization(name: &Name, policy: &AuthorizationPolicy, domains: &[String]) -> Resource {
    let mut message = policy.policy.clone();
    for from in message.rules.iter_mut().flat_map(|rule| &mut rule.from) {
        from.identities = from.identities.iter().flat_map(|text| of_any_name(text, domains)).collect();
    }
    message.namespace.clone_from(&name.namespace);
    message.name.clone_from(&name.name);
    require(&mut message.requires, "authorization");
    Resource::new(&message, Vec::new())
}

/// Who is of the mesh is meant under each of its names, whichever a policy says: his identity is sent without one. A prefix that ends within
/// a name may mean others too.
fn of_any_name(text: &str, domains: &[String]) -> Vec<String> {
    if let Some(path) = names::path_in(text, domains) {
        return vec![path.to_owned()];
    }
    let begins = |stem: &str| {
        stem.len() > SCHEME.len() && domains.iter().any(|name| format!("{SCHEME}{name}/").starts_with(stem))
    };
    let within = text.strip_suffix('*').is_some_and(begins);
    std::iter::once(text.to_owned()).chain(within.then(|| "/*".to_owned())).collect()
}

/// A rate limit policy's resource.
pub(super) fn rate_limit(name: &Name, policy: &RateLimitPolicy) -> Resource {
    let mut message = policy.policy.clone();
    message.namespace.clone_from(&name.namespace);
    message.name.clone_from(&name.name);
    require(&mut message.requires, "local-rate-limit");
    Resource::new(&message, Vec::new())
}

/// A proxy that lacks the feature closes what the policy covers, instead of passing it by.
fn require(requires: &mut Vec<String>, feature: &str) {
    if !requires.iter().any(|known| known == feature) {
        requires.push(feature.to_owned());
    }
}
