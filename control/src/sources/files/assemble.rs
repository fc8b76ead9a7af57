//! Objects of one moment -> the model: references between objects are looked up here, and doubtful ones are told.

use std::collections::BTreeMap;

use weft_api::kinds::{Fault, Position};
use weft_api::wire::v1::Protocol;

use super::object::{Key, Thing, model_name};
use super::problem::Problem;
use super::store::{Origin, Present};
use super::{Loaded, State};
use crate::model::{Model, Name, Route, Service, ServicePort, Target, parent_name};

pub(super) fn assemble(present: &Present, trust_domain: &str) -> Loaded {
    let mut assembly = Assembly { model: Model::default(), warnings: Vec::new(), trust_domain };
    let mut objects = BTreeMap::new();
    for (key, origin) in present.objects.iter().chain(&present.instead) {
        assembly.plain(key, origin);
    }
    for (key, origin) in &present.objects {
        *objects.entry(key.kind.to_owned()).or_default() += 1;
        for fault in &origin.warnings {
            let place = if fault.at == Position::default() { origin.at } else { fault.at };
            assembly.warn(origin, key, place, fault.message.clone());
        }
    }
    for (key, origin) in &present.objects {
        assembly.references(key, origin);
    }
    let mut problems = present.problems.clone();
    problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    let mut warnings = assembly.warnings;
    warnings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    Loaded {
        number: 0,
        news: true,
        model: assembly.model,
        problems,
        warnings,
        skipped: present.skipped.clone(),
        objects,
        state: State::Synced,
        complete: false,
        files: 0,
        bounds_hit: 0,
    }
}

struct Assembly<'a> {
    model: Model,
    warnings: Vec<Problem>,
    trust_domain: &'a str,
}

impl Assembly<'_> {
    fn warn(&mut self, origin: &Origin, key: &Key, at: Position, message: impl Into<String>) {
        let fault = Fault::new(at, message);
        self.warnings.push(Problem::of_fault(&origin.file, Some(key.to_string()), &fault));
    }

    fn plain(&mut self, key: &Key, origin: &Origin) {
        let (model, name) = (&mut self.model, model_name(key.kind, &key.name));
        match origin.thing.as_ref() {
            Thing::Namespace(namespace) => _ = model.namespaces.insert(name.name, namespace.clone()),
            Thing::Node(node) => _ = model.nodes.insert(name.name, node.clone()),
            Thing::Service(service) => _ = model.services.insert(name, service.clone()),
            Thing::Slice(slice) => _ = model.slices.insert(name, slice.clone()),
            Thing::Workload(workload) => _ = model.workloads.insert(name, workload.clone()),
            Thing::Authorization(policy) => _ = model.authorization.insert(name, policy.clone()),
            Thing::RateLimit(policy) => _ = model.rate_limits.insert(name, policy.clone()),
            Thing::Route(route) => _ = model.routes.insert((key.kind.to_owned(), name), route.clone()),
            Thing::Grant(grant) => _ = model.grants.insert(name, grant.clone()),
        }
    }

    /// Tells what of a route leads nowhere.
    fn route(&mut self, key: &Key, origin: &Origin, route: &Route) {
        for parent in &route.parents {
            let doubt = match self.model.parent_port(parent) {
                Err(why) => Some(why),
                Ok(port) => {
                    let service = parent_name(parent);
                    parent_doubt(key.kind, &service, self.model.services.get(&service), port)
                }
            };
            if let Some(doubt) = doubt {
                self.warn(origin, key, parent.at, doubt);
            }
        }
        let own = (key.kind.to_owned(), key.name.clone());
        for parent in &route.parents {
            if let Some(conflict) = self.model.overruled(&own, parent) {
                self.warn(origin, key, parent.at, conflict.to_string());
            }
        }
        for foreign in &route.foreign {
            if let Some(why) = self.model.ungranted(&own, &route.parents, foreign) {
                self.warn(
                    origin,
                    key,
                    foreign.at,
                    format!("{why}: its share is refused (`invalid_backend`), nothing is mirrored there"),
                );
            }
        }
        for rule in &route.rules {
            for service in rule.services() {
                if let Some(why) = self.model.unusable(service) {
                    let at = Position { line: line_of(&rule.source).unwrap_or(origin.at.line), column: 1 };
                    self.warn(origin, key, at, format!("backend {why}"));
                }
            }
        }
    }

    /// Tells references that lead nowhere. They are no problems: what they name may come.
    fn references(&mut self, key: &Key, origin: &Origin) {
        match origin.thing.as_ref() {
            Thing::Authorization(policy) => {
                self.targets(key, origin, &policy.targets);
                self.trust_domains(key, origin);
            }
            Thing::RateLimit(policy) => self.targets(key, origin, &policy.targets),
            Thing::Slice(slice) => {
                let service = Name::new(key.name.namespace.as_str(), slice.service.as_str());
                if !self.model.services.contains_key(&service) {
                    self.warn(origin, key, origin.at, format!("Service {service} does not exist"));
                }
                let absent = slice.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref());
                let absent = absent.filter(|pod| !self.model.workloads.contains_key(pod));
                let absent: Vec<String> = absent.map(ToString::to_string).collect();
                if let Some(first) = absent.first() {
                    let message =
                        format!("Pod {first} does not exist ({} such): mTLS to it is not assumed", absent.len());
                    self.warn(origin, key, origin.at, message);
                }
            }
            Thing::Route(route) => self.route(key, origin, route),
            Thing::Namespace(_) | Thing::Node(_) | Thing::Service(_) | Thing::Workload(_) | Thing::Grant(_) => {}
        }
    }

    fn targets(&mut self, key: &Key, origin: &Origin, targets: &[Target]) {
        for target in targets {
            let Target::Service(name) = target else { continue };
            let service = Name::new(key.name.namespace.as_str(), name.as_str());
            if !self.model.services.contains_key(&service) {
                self.warn(origin, key, origin.at, format!("target Service {service} does not exist"));
            }
        }
    }

    /// SPIFFE IDs of other trust domains prove nothing by themselves.
    fn trust_domains(&mut self, key: &Key, origin: &Origin) {
        let Thing::Authorization(policy) = origin.thing.as_ref() else { return };
        let own = format!("spiffe://{}/", self.trust_domain);
        for rule in &policy.policy.rules {
            for identity in rule.from.iter().flat_map(|from| &from.identities) {
                if identity.starts_with("spiffe://") && !identity.starts_with(&own) {
                    let at = Position { line: line_of(&rule.source).unwrap_or(origin.at.line), column: 1 };
                    let message = format!(
                        "`{identity}` is not of the trust domain `{}`: it matches nobody, unless the mesh is federated with that one, \
                                 or is called so too",
                        self.trust_domain
                    );
                    self.warn(origin, key, at, message);
                }
            }
        }
    }
}

/// Why a route of this kind may do nothing for a parent, or for this port of it.
fn parent_doubt(kind: &str, service: &Name, known: Option<&Service>, port: Option<u16>) -> Option<String> {
    let Some(known) = known else { return Some(format!("parent Service {service} does not exist")) };
    if known.headless || known.external_name.is_some() {
        return Some(format!("parent Service {service} has no ClusterIP: a route has no effect on it (GEP-1294)"));
    }
    let mut ports = known.ports.iter().filter(|known| port.is_none_or(|port| port == known.port)).peekable();
    if let (None, Some(port)) = (ports.peek(), port) {
        return Some(format!("parent Service {service} has no port {port}"));
    }
    let speaks_http = |port: &&ServicePort| matches!(port.protocol, Protocol::Http1 | Protocol::Http2);
    let http = ports.find(speaks_http).filter(|_| kind == "TLSRoute")?;
    Some(format!(
        "port {} of parent Service {service} speaks HTTP by appProtocol or name: no TLS gets there",
        http.port
    ))
}

fn line_of(source: &str) -> Option<u32> {
    source.rsplit_once(':')?.1.parse().ok()
}
