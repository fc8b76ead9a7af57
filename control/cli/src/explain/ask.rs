//! The way of a request or a connection, asked of the engine part by part.

use std::net::Ipv4Addr;
use std::sync::Arc;

use http::header::HOST;
use http::{HeaderMap, HeaderValue};
use weft_api::convert::{Address, Endpoint, Protocol, ResourceError, Service};
use weft_control::compile::Compiled;
use weft_engine::authz::Question;
use weft_engine::explain::{self as engine, Explanation as Told};
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;
use weft_engine::request::RequestView;
use weft_engine::route::{Called, ConnectionTable, Filters, Opening, RouteTable, Rule};

use super::resources::Resources;
use super::{Connection, Explanation, Outcome, Verdict};

/// One question, with all that it needs.
struct Asked<'a> {
    resources: Resources<'a>,
    from: &'a Identity,
    what: What<'a>,
}

/// What is sent.
enum What<'a> {
    Request(&'a http::request::Parts, Head),
    Connection(Opening<'a>),
}

/// What filters change of a request.
#[derive(Clone)]
struct Head {
    path: String,
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
    let resources = Resources::new(compiled, &from.trust_domain);
    let head = Head { path: request.uri.path().to_owned(), headers };
    Asked { resources, from, what: What::Request(request, head) }.at(&format!("{host}:{port}"))
}

/// See [`super::explain_connection`].
pub fn ask_connection(compiled: &Compiled, from: &Identity, asked: &Connection) -> Explanation {
    let opening = if asked.tls { Opening::Tls { sni: asked.sni.as_deref() } } else { Opening::Opaque };
    let resources = Resources::new(compiled, &from.trust_domain);
    let name = format!("{}:{}", asked.host, asked.port);
    let mut told = Asked { resources, from, what: What::Connection(opening) }.at(&name);
    // It is reset, whatever the reason.
    told.status = None;
    told.outcomes.iter_mut().for_each(|outcome| outcome.status = None);
    told
}

impl Asked<'_> {
    fn at(&self, name: &str) -> Explanation {
        match self.resources.address(name) {
            None => ended(Told::refused("address", Reason::DiscoveryTimeout, format!("{name} cannot be read"), "")),
            Some(Address::Outside { reason }) => {
                let decision = format!("{name} is outside the mesh ({reason}): passes as it is");
                ended(Told::allowed("address", decision, ""))
            }
            Some(Address::Workload(endpoint) | Address::HeadlessMember(endpoint)) => {
                let steps = Told::allowed("address", format!("{name} is the pod {}", workload(&endpoint)), "");
                let head = match &self.what {
                    What::Request(_, head) => Some(head),
                    What::Connection(_) => None,
                };
                conclude(steps, self.endpoints("", 1.0, &[endpoint], head))
            }
            Some(Address::Service(service)) => match self.resources.service(&service) {
                Some(service) => self.service(name, &service),
                None => {
                    ended(Told::refused("address", Reason::DiscoveryTimeout, format!("{service} is not known"), ""))
                }
            },
        }
    }

    /// The request with that head.
    fn view<'v>(&'v self, head: &'v Head) -> Option<RequestView<'v>> {
        let What::Request(request, _) = &self.what else { return None };
        let query = request.uri.query();
        Some(RequestView { method: &request.method, path: &head.path, query, headers: (&head.headers).into() })
    }

    fn service(&self, name: &str, service: &Service) -> Explanation {
        let told = Told::allowed("address", format!("{name} is {}", service.name), "");
        if let Some(host) = &service.external_name {
            return ended(told.then(|| {
                Told::allowed("address", format!("it is another name of {host}: passes to it as it is"), "")
            }));
        }
        let refused = |told: Told, error: ResourceError| {
            ended(told.then(|| Told::refused("route", Reason::InvalidBackend, error.to_string(), "")))
        };
        let client = &self.from.namespace;
        let consumer = match self.resources.consumer(service, client) {
            Ok(consumer) => consumer,
            Err(error) => return refused(told, error),
        };
        let (told, routes) = if consumer.is_empty() {
            (told, &service.routes)
        } else {
            let decision =
                format!("the namespace {client} has routes of its own for it: they hold instead of the service's");
            (told.then(|| Told::allowed("address", decision, "")), &consumer)
        };
        let tables = match self.resources.tables(routes) {
            Ok(tables) => tables,
            Err(error) => return refused(told, error),
        };
        match (&self.what, service.protocol) {
            (What::Request(..), Protocol::Tcp) => {
                self.connection(told, service, tables.connections.as_ref(), Opening::Opaque)
            }
            (What::Request(_, head), _) => self.request(told, service, tables.requests.as_ref(), head),
            (What::Connection(_), Protocol::Http1 | Protocol::Http2) => {
                let decision = "the port is declared to speak HTTP: what cannot be read as that is refused";
                ended(told.then(|| Told::refused("route", Reason::MalformedRequest, decision, "")))
            }
            (What::Connection(opening), _) => self.connection(told, service, tables.connections.as_ref(), *opening),
        }
    }

    fn request(&self, told: Told, service: &Service, table: Option<&RouteTable>, head: &Head) -> Explanation {
        let Some(view) = self.view(head) else { return ended(told) };
        // Only the port of the address counts: the name is known.
        let authority = head.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
        let called = Called { authority, address: (Ipv4Addr::UNSPECIFIED, service.port).into() };
        let told = told.then(|| engine::route(table, &view, &called));
        if told.is_over() {
            return ended(told);
        }
        let outcomes = match table {
            Some(table) => {
                table.select(&view).map(|(rule, _)| self.routed(rule, Some((head, &called)))).unwrap_or_default()
            }
            None => self.backend(&service.name, 1.0, Some(head)),
        };
        conclude(told, outcomes)
    }

    fn connection(
        &self,
        told: Told,
        service: &Service,
        table: Option<&ConnectionTable>,
        opening: Opening<'_>,
    ) -> Explanation {
        let told = told.then(|| engine::connection(table, opening));
        if !told.is_allowed() {
            return ended(told);
        }
        let outcomes = match table.map(|table| table.select(opening)) {
            Some(Ok(Some(taken))) => self.routed(taken.rule, None),
            _ => self.backend(&service.name, 1.0, None),
        };
        conclude(told, outcomes)
    }

    /// Each backend of a rule, with its share. `head` is none of a connection that is no HTTP.
    fn routed(&self, rule: &Rule, head: Option<(&Head, &Called<'_>)>) -> Vec<Outcome> {
        let sum: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let mut outcomes = Vec::new();
        for backend in rule.backends.iter().filter(|backend| backend.weight > 0) {
            let share = f64::from(backend.weight) / sum as f64;
            if let Some(why) = &backend.invalid {
                let told = Told::refused("backend", Reason::InvalidBackend, &**why, "");
                outcomes.push(outcome(share, &backend.service, Vec::new(), told));
                continue;
            }
            let Some((head, called)) = head else {
                outcomes.extend(self.backend(&backend.service, share, None));
                continue;
            };
            let filters = Filters { rule: &rule.filters, backend: &backend.filters };
            let answer = self.view(head).and_then(|view| filters.answer(&view, called).transpose());
            match answer {
                None => outcomes.extend(self.backend(&backend.service, share, Some(&filtered(head, &filters)))),
                Some(answer) => {
                    let told = match answer {
                        Ok(answer) => Told::answered(&answer, engine::place(rule)),
                        Err(reason) => Told::refused("route", reason, "no answer can be made", engine::place(rule)),
                    };
                    outcomes.push(outcome(share, &backend.service, Vec::new(), told));
                }
            }
        }
        outcomes
    }

    fn backend(&self, service: &Arc<str>, share: f64, head: Option<&Head>) -> Vec<Outcome> {
        let endpoints = self.resources.endpoints(service);
        if endpoints.is_empty() {
            let told = Told::refused("endpoint", Reason::NoEndpoints, format!("{service} has no endpoint"), "");
            return vec![outcome(share, service, Vec::new(), told)];
        }
        self.endpoints(service, share, &endpoints, head)
    }

    fn endpoints(&self, service: &str, share: f64, endpoints: &[Endpoint], head: Option<&Head>) -> Vec<Outcome> {
        let view = head.and_then(|head| self.view(head));
        grouped(&service.into(), share, endpoints, |endpoint| self.endpoint(endpoint, view.as_ref()))
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

/// The head as it leaves the client's sidecar.
fn filtered(head: &Head, filters: &Filters<'_>) -> Head {
    let mut made = head.clone();
    for edit in filters.request_edits() {
        edit.apply(&mut made.headers);
    }
    let rewritten = filters.rewritten(&head.path);
    if let Some(host) = rewritten.host {
        made.headers.insert(HOST, host.clone());
    }
    made.path = rewritten.path.unwrap_or(made.path);
    made
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
    let end = |outcome: &Outcome| (outcome.reason, outcome.status);
    let alike = outcomes.windows(2).all(|pair| end(&pair[0]) == end(&pair[1]));
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
