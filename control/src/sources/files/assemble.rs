//! Objects of one moment -> the model: references between objects are looked up here, and doubtful ones are told.

use std::collections::BTreeMap;

use weft_api::kinds::{Fault, Grant, Position, Route as WrittenRoute};
use weft_api::names;
use weft_api::wire::v1::Protocol;

use super::object::{Key, Thing};
use super::problem::Problem;
use super::store::{Origin, Present};
use super::{Loaded, State};
use crate::model::{Model, Name, Parent, Route, Service, ServicePort, Target};

pub(super) fn assemble(present: &Present, trust_domain: &str) -> Loaded {
    let mut assembly = Assembly { present, model: Model::default(), warnings: Vec::new(), trust_domain };
    let mut objects = BTreeMap::new();
    // Routes need the services, so they come last.
    for (key, origin) in present.objects.iter().chain(&present.instead) {
        assembly.plain(key, origin);
    }
    for (key, origin) in &present.objects {
        *objects.entry(key.kind.to_owned()).or_default() += 1;
        if let Thing::Route(route) = origin.thing.as_ref() {
            let route = assembly.route(key, origin, route);
            assembly.model.routes.insert((key.kind.to_owned(), key.name.clone()), route);
        }
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
    present: &'a Present,
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
        let (model, name) = (&mut self.model, key.name.clone());
        match origin.thing.as_ref() {
            Thing::Namespace(namespace) => _ = model.namespaces.insert(name.name, *namespace),
            Thing::Service(service) => _ = model.services.insert(name, service.clone()),
            Thing::Slice(slice) => _ = model.slices.insert(name, slice.clone()),
            Thing::Workload(workload) => _ = model.workloads.insert(name, workload.clone()),
            Thing::Authorization(policy) => _ = model.authorization.insert(name, policy.clone()),
            Thing::RateLimit(policy) => _ = model.rate_limits.insert(name, policy.clone()),
            Thing::Route(_) | Thing::Grant(_) => {}
        }
    }

    fn route(&mut self, key: &Key, origin: &Origin, written: &WrittenRoute) -> Route {
        let mut route = Route {
            created: written.created,
            hostnames: written.hostnames.clone(),
            rules: written.rules.clone(),
            ..Route::default()
        };
        for parent in &written.parents {
            let service = Name::new(key.name.namespace.as_str(), parent.name.as_str());
            let known = self.model.services.get(&service);
            let mut port = parent.port;
            if let Some(section) = &parent.section {
                let named = known.and_then(|known| known.ports.iter().find(|port| port.name == *section));
                match named {
                    Some(named) if port.is_none_or(|port| port == named.port) => port = Some(named.port),
                    _ => {
                        let message = format!(
                            "Service {service} has no such port named `{section}`: the route is not attached to it"
                        );
                        self.warn(origin, key, parent.at, message);
                        continue;
                    }
                }
            }
            if let Some(doubt) = parent_doubt(key.kind, &service, known, port) {
                self.warn(origin, key, parent.at, doubt);
            }
            route.parents.push(Parent { service, port });
        }
        for foreign in &written.foreign {
            let target = Name::new(foreign.namespace.as_str(), foreign.name.as_str());
            if self.granted(key, &target) {
                continue;
            }
            let message = format!("no ReferenceGrant in {} lets {key} use Service {target}", target.namespace);
            let backend = route.rules.get_mut(foreign.rule).and_then(|rule| rule.backends.get_mut(foreign.backend));
            if let Some(backend) = backend {
                backend.invalid.clone_from(&message);
            }
            self.warn(origin, key, foreign.at, format!("{message}: its share is refused (`invalid_backend`)"));
        }
        route
    }

    fn granted(&self, route: &Key, target: &Name) -> bool {
        let grants = self.present.objects.iter().filter(|(key, _)| key.name.namespace == target.namespace);
        grants
            .filter_map(|(_, origin)| match origin.thing.as_ref() {
                Thing::Grant(grant) => Some(grant),
                _ => None,
            })
            .any(|grant: &Grant| {
                let from = grant
                    .from
                    .iter()
                    .any(|(kind, namespace)| *kind == route.kind && *namespace == route.name.namespace);
                from && grant.to.iter().any(|name| name.as_ref().is_none_or(|name| *name == target.name))
            })
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
            Thing::Route(route) => {
                for rule in &route.rules {
                    for backend in &rule.backends {
                        if let Some(message) = self.backend_fault(&backend.service) {
                            let at = Position { line: line_of(&rule.source).unwrap_or(origin.at.line), column: 1 };
                            self.warn(origin, key, at, message);
                        }
                    }
                }
            }
            Thing::Namespace(_) | Thing::Service(_) | Thing::Workload(_) | Thing::Grant(_) => {}
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

    fn backend_fault(&self, resource: &str) -> Option<String> {
        let found = self.model.services.iter().find(|(name, _)| is_service(resource, name));
        let Some((name, service)) = found else {
            let shown = resource.strip_prefix("service/").unwrap_or(resource);
            return Some(format!("backend Service {shown} does not exist"));
        };
        let known = service.ports.iter().any(|port| names::service(&name.namespace, &name.name, port.port) == resource);
        (!known).then(|| format!("backend Service {name} has no such port: {resource}"))
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

fn is_service(resource: &str, name: &Name) -> bool {
    let rest = resource.strip_prefix("service/").and_then(|rest| rest.strip_prefix(name.namespace.as_str()));
    let rest = rest.and_then(|rest| rest.strip_prefix('/')).and_then(|rest| rest.strip_prefix(name.name.as_str()));
    rest.is_some_and(|rest| rest.starts_with(':'))
}

fn line_of(source: &str) -> Option<u32> {
    source.rsplit_once(':')?.1.parse().ok()
}
