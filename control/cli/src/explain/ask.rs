//! The way of a request, asked of the engine part by part.

use std::sync::Arc;

use http::HeaderMap;
use http::header::HOST;
use weft_api::convert::{Address, Endpoint, Protocol, Service};
use weft_control::compile::Compiled;
use weft_engine::authz::Question;
use weft_engine::explain::{self as engine, Explanation as Told};
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;
use weft_engine::route::{Backend, Filter, RouteTable};

use super::resources::Resources;
use super::{Explanation, Outcome, Verdict};

/// One question, with all that it needs.
struct Asked<'a> {
    resources: Resources<'a>,
    from: &'a Identity,
    request: &'a http::request::Parts,
    headers: HeaderMap,
}

/// See [`super::explain`].
pub fn ask(compiled: &Compiled, from: &Identity, request: &http::request::Parts) -> Explanation {
    let host = request.uri.host().unwrap_or_default();
    let port = request.uri.port_u16().unwrap_or(80);
    let mut headers = request.headers.clone();
    if !headers.contains_key(HOST)
        && let Some(Ok(value)) = request.uri.authority().map(|authority| authority.as_str().parse())
    {
        headers.insert(HOST, value);
    }
    let asked = Asked { resources: Resources::new(compiled, &from.trust_domain), from, request, headers };
    let name = format!("{host}:{port}");
    match asked.resources.address(&name) {
        None => ended(Told::refused("address", Reason::DiscoveryTimeout, format!("{name} cannot be read"), "")),
        Some(Address::Outside { reason }) => {
            let decision = format!("{name} is outside the mesh ({reason}): passes as it is");
            ended(Told::allowed("address", decision, ""))
        }
        Some(Address::Workload(endpoint) | Address::HeadlessMember(endpoint)) => {
            let steps = Told::allowed("address", format!("{name} is the pod {}", workload(&endpoint)), "");
            let outcomes = asked.endpoints("", 1.0, &[endpoint], &asked.headers);
            conclude(steps, outcomes)
        }
        Some(Address::Service(service)) => match asked.resources.service(&service) {
            Some(service) => asked.service(&name, &service),
            None => ended(Told::refused("address", Reason::DiscoveryTimeout, format!("{service} is not known"), "")),
        },
    }
}

impl Asked<'_> {
    fn view<'v>(&'v self, headers: &'v HeaderMap) -> RequestView<'v> {
        let uri = &self.request.uri;
        RequestView { method: &self.request.method, path: uri.path(), query: uri.query(), headers: headers.into() }
    }

    fn service(&self, name: &str, service: &Service) -> Explanation {
        let told = Told::allowed("address", format!("{name} is {}", service.name), "");
        if let Some(host) = &service.external_name {
            return ended(told.then(|| {
                Told::allowed("address", format!("it is another name of {host}: passes to it as it is"), "")
            }));
        }
        if service.protocol == Protocol::Tcp {
            let told = told.then(|| Told::allowed("route", "the port carries opaque bytes: routes do not apply", ""));
            return conclude(told, self.backend(&service.name, 1.0, &self.headers, true));
        }
        let table = match self.resources.table(service) {
            Ok(table) => table,
            Err(error) => {
                return ended(told.then(|| Told::refused("route", Reason::InvalidBackend, error.to_string(), "")));
            }
        };
        let told = told.then(|| engine::route(table.as_ref(), &self.view(&self.headers)));
        if !told.is_allowed() {
            return ended(told);
        }
        let outcomes = match &table {
            Some(table) => self.routed(table),
            None => self.backend(&service.name, 1.0, &self.headers, false),
        };
        conclude(told, outcomes)
    }

    /// Each backend of the rule that takes the request, with its share.
    fn routed(&self, table: &RouteTable) -> Vec<Outcome> {
        let Some((rule, _)) = table.select(&self.view(&self.headers)) else { return Vec::new() };
        let sum: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let mut outcomes = Vec::new();
        for backend in rule.backends.iter().filter(|backend| backend.weight > 0) {
            let share = f64::from(backend.weight) / sum as f64;
            if let Some(why) = &backend.invalid {
                let told = Told::refused("backend", Reason::InvalidBackend, &**why, "");
                outcomes.push(outcome(share, &backend.service, Vec::new(), told));
                continue;
            }
            let headers = self.edited(&rule.filters, backend);
            outcomes.extend(self.backend(&backend.service, share, &headers, false));
        }
        outcomes
    }

    /// The head as it leaves the client's sidecar.
    fn edited(&self, of_rule: &[Filter], backend: &Backend) -> HeaderMap {
        let mut headers = self.headers.clone();
        for filter in of_rule.iter().chain(&backend.filters) {
            if let Filter::RequestHeaders(edit) = filter {
                edit.apply(&mut headers);
            }
        }
        headers
    }

    fn backend(&self, service: &Arc<str>, share: f64, headers: &HeaderMap, opaque: bool) -> Vec<Outcome> {
        let endpoints = self.resources.endpoints(service);
        if endpoints.is_empty() {
            let told = Told::refused("endpoint", Reason::NoEndpoints, format!("{service} has no endpoint"), "");
            return vec![outcome(share, service, Vec::new(), told)];
        }
        if opaque {
            return grouped(service, share, &endpoints, |endpoint| self.endpoint(endpoint, None));
        }
        self.endpoints(service, share, &endpoints, headers)
    }

    fn endpoints(&self, service: &str, share: f64, endpoints: &[Endpoint], headers: &HeaderMap) -> Vec<Outcome> {
        let view = self.view(headers);
        grouped(&service.into(), share, endpoints, |endpoint| self.endpoint(endpoint, Some(&view)))
    }

    /// One endpoint's own side. `view` is none for opaque bytes.
    fn endpoint(&self, endpoint: &Endpoint, view: Option<&RequestView<'_>>) -> Told {
        if endpoint.identity.is_none() {
            return Told::allowed("endpoint", "not of the mesh: spoken to in the clear, nothing is enforced there", "");
        }
        let Some(inbound) = self.resources.inbound(&endpoint.workload, endpoint.addr.port()) else {
            return Told::refused("endpoint", Reason::IdentityMismatch, "its workload is not known", "");
        };
        let http = view.map(|view| (view.method, view.path));
        let question = Question { peer: Some(self.from), http };
        let mut told = engine::transport(inbound.strict, Some(self.from))
            .then(|| engine::inbound(&inbound.policies, &inbound.limits, &question, view));
        // The engine knows limits by name only.
        for step in told.steps.iter_mut().filter(|step| step.room == "rate limit") {
            let named = inbound.limits.iter().zip(&inbound.limit_sources).find(|(limit, _)| *limit.name == *step.by);
            if let Some((_, source)) = named {
                step.by = format!("{} of {source}", step.by);
            }
        }
        told
    }
}

/// The way ends before it parts.
fn ended(told: Told) -> Explanation {
    let outcome = Outcome {
        share: 1.0,
        backend: "".into(),
        endpoints: Vec::new(),
        reason: told.reason,
        status: told.status,
        steps: Vec::new(),
    };
    conclude(told, vec![outcome])
}

/// Endpoints that decide alike are one outcome. Each endpoint is as likely as its weight says.
fn grouped(service: &Arc<str>, share: f64, endpoints: &[Endpoint], decide: impl Fn(&Endpoint) -> Told) -> Vec<Outcome> {
    let sum: f64 = endpoints.iter().map(|endpoint| f64::from(endpoint.weight)).sum();
    let mut outcomes: Vec<Outcome> = Vec::new();
    for endpoint in endpoints {
        let part = share * f64::from(endpoint.weight) / sum;
        let told = decide(endpoint);
        match outcomes.iter_mut().find(|outcome| outcome.reason == told.reason && outcome.steps == told.steps) {
            Some(alike) => {
                alike.share += part;
                alike.endpoints.push(workload(endpoint));
            }
            None => outcomes.push(outcome(part, service, vec![workload(endpoint)], told)),
        }
    }
    outcomes
}

fn workload(endpoint: &Endpoint) -> Arc<str> {
    if endpoint.workload.is_empty() { endpoint.addr.to_string().into() } else { Arc::clone(&endpoint.workload) }
}

fn outcome(share: f64, backend: &Arc<str>, endpoints: Vec<Arc<str>>, told: Told) -> Outcome {
    Outcome {
        share,
        backend: Arc::clone(backend),
        endpoints,
        reason: told.reason,
        status: told.status,
        steps: told.steps,
    }
}

/// One verdict from all that can become of it.
fn conclude(told: Told, outcomes: Vec<Outcome>) -> Explanation {
    let alike = outcomes.windows(2).all(|pair| pair[0].reason == pair[1].reason);
    let first = outcomes.first();
    let (verdict, reason, status) = match first {
        Some(first) if alike => {
            let verdict = if first.reason.is_some() { Verdict::Refused } else { Verdict::Allowed };
            (verdict, first.reason, first.status)
        }
        _ => (Verdict::Depends, None, None),
    };
    Explanation { verdict, reason, status, steps: told.steps, outcomes }
}
