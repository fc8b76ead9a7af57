//! The same decisions, told step by step: what `weft explain` prints.
//!
//! Nothing is decided here. Each function calls the code that the proxy calls and writes down what it said (contract C10). A whole
//! explanation is made by joining the parts in the order in which a request meets them:
//!
//! ```text
//! explain::route(table, &request)            the client's sidecar
//!     .then(|| explain::transport(strict, peer))   the server's sidecar, the connection
//!     .then(|| explain::inbound(&policies, limits, &question, &request))
//! ```

use std::fmt::Write as _;

use http::StatusCode;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, LOCATION};
use serde::{Deserialize, Serialize};

use crate::authz::{PolicySet, Question, Verdict, plain_may};
use crate::identity::Identity;
use crate::ratelimit::{Key, Limiter};
use crate::reason::Reason;
use crate::request::RequestView;
use crate::retry::Retry;
use crate::route::{Answer, Backend, Called, ConnectionTable, Filters, Opening, RouteTable, Rule};

/// Whether a request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It does.
    Allowed,
    /// It is answered by a proxy.
    Refused,
}

/// What would become of a request, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether it goes on.
    pub verdict: Outcome,
    /// The code that the proxy would answer with.
    pub reason: Option<Reason>,
    /// The HTTP status that the proxy would answer with; none of a connection that is no HTTP: it is reset. Without a reason a filter of the
    /// route answers.
    pub status: Option<u16>,
    /// In the order in which the request meets them.
    pub steps: Vec<Step>,
}

/// One decision on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The part of the proxy: `route`, `transport`, `authorization`, `rate limit`, ...
    pub room: String,
    /// What was decided, one sentence.
    pub decision: String,
    /// What decided: an object's name and FILE:LINE. Empty: the default.
    pub by: String,
}

impl Explanation {
    /// Nothing against it so far.
    pub fn allowed(room: &str, decision: impl Into<String>, by: impl Into<String>) -> Self {
        let step = Step { room: room.to_owned(), decision: decision.into(), by: by.into() };
        Self { verdict: Outcome::Allowed, reason: None, status: None, steps: vec![step] }
    }

    /// Ends here.
    pub fn refused(room: &str, reason: Reason, decision: impl Into<String>, by: impl Into<String>) -> Self {
        Self {
            verdict: Outcome::Refused,
            reason: Some(reason),
            status: Some(reason.http_status().as_u16()),
            ..Self::allowed(room, decision, by)
        }
    }

    /// Ends here, as the route wants it.
    pub fn answered(answer: &Answer, by: impl Into<String>) -> Self {
        let status = answer.status.as_u16();
        let decision = match answer.headers.get(LOCATION).and_then(|to| to.to_str().ok()) {
            Some(to) => format!("answered here: {status}, go to {to}"),
            None if answer.status != StatusCode::NO_CONTENT => format!("answered here: {status}"),
            None if answer.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) => {
                format!("answered here: {status}, a preflight from an origin that is allowed")
            }
            None => format!("answered here: {status}, a preflight from an origin that is not allowed"),
        };
        Self { status: Some(status), ..Self::allowed("route", decision, by) }
    }

    /// The same of a connection that is no HTTP: a refusal has no status.
    #[must_use]
    pub fn of_connection(self) -> Self {
        Self { status: None, ..self }
    }

    /// Whether the request goes on.
    pub fn is_allowed(&self) -> bool {
        self.verdict == Outcome::Allowed
    }

    /// Whether the request ends here, refused or answered.
    pub fn is_over(&self) -> bool {
        !self.is_allowed() || self.status.is_some()
    }

    /// Goes on with the next part, unless the request has ended here.
    #[must_use]
    pub fn then(mut self, next: impl FnOnce() -> Self) -> Self {
        if !self.is_over() {
            let next = next();
            self.steps.extend(next.steps);
            (self.verdict, self.reason, self.status) = (next.verdict, next.reason, next.status);
        }
        self
    }

    /// For a person: one line a step, then the verdict.
    pub fn to_text(&self) -> String {
        let width = self.steps.iter().map(|step| step.room.len()).max().unwrap_or(0);
        let mut text = String::new();
        for step in &self.steps {
            let _ = write!(text, "{:width$}  {}", step.room, step.decision);
            if !step.by.is_empty() {
                let _ = write!(text, "  [{}]", step.by);
            }
            text.push('\n');
        }
        match (self.reason, self.status) {
            (Some(reason), Some(status)) => {
                let _ = writeln!(text, "refused: {reason} (HTTP {status})");
            }
            (Some(reason), None) => {
                let _ = writeln!(text, "refused: {reason} (reset)");
            }
            (None, Some(status)) => {
                let _ = writeln!(text, "answered: HTTP {status}");
            }
            (None, None) => text.push_str("allowed\n"),
        }
        text
    }
}

/// The client's side: which rule takes the request, and which backends share it or what answers it. `None`: the service has no routes.
pub fn route(table: Option<&RouteTable>, request: &RequestView<'_>, called: &Called<'_>) -> Explanation {
    let Some(table) = table else {
        return Explanation::allowed("route", "no route is attached: goes to the service's own endpoints", "");
    };
    let Some((rule, _)) = table.select(request) else {
        let decision = format!("no rule of {} matches", routes_of(table));
        return Explanation::refused("route", Reason::NoRoute, decision, "");
    };
    match (Filters { rule: &rule.filters, backend: &[] }).answer(request, called) {
        Ok(None) => backends(rule, "answered 500"),
        Ok(Some(answer)) => Explanation::answered(&answer, place(rule)),
        Err(reason) => Explanation::refused("route", reason, "of its path or host no field can be made", place(rule)),
    }
}

/// Which rule, and where it stands.
pub fn place(rule: &Rule) -> String {
    format!("{} rule {} at {}", rule.route, rule.name, rule.source)
}

/// The same of a connection that is no HTTP. `None`: the service has no TLSRoute and no TCPRoute.
pub fn connection(table: Option<&ConnectionTable>, opening: Opening<'_>) -> Explanation {
    let own = |why: &str| Explanation::allowed("route", format!("{why}: goes to the service's own endpoints"), "");
    let Some(table) = table else { return own("no TLSRoute and no TCPRoute is attached") };
    match table.select(opening) {
        Ok(None) => own("no route is about it"),
        Ok(Some(taken)) => backends(taken.rule, "refused").of_connection(),
        Err(reason) => {
            let asked = match opening {
                Opening::Tls { sni: Some(sni) } => format!("`{sni}`"),
                Opening::Tls { sni: None } | Opening::Opaque => "no name".to_owned(),
            };
            let decision = format!("TLSRoutes are attached and none is for TLS that asks for {asked}");
            Explanation::refused("route", reason, decision, "").of_connection()
        }
    }
}

fn backends(rule: &Rule, refused: &str) -> Explanation {
    let by = place(rule);
    let sum: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    if sum == 0 {
        return Explanation::refused("route", Reason::InvalidBackend, "the rule has no backend with a weight", by);
    }
    let shares: Vec<String> = rule.backends.iter().filter(|b| b.weight > 0).map(|b| share(b, sum, refused)).collect();
    if rule.backends.iter().all(|b| b.weight == 0 || b.invalid.is_some()) {
        return Explanation::refused("route", Reason::InvalidBackend, shares.join(", "), by);
    }
    let again = rule.retry.as_ref().map(retries).unwrap_or_default() + &copies(rule);
    Explanation::allowed("route", format!("goes to {}{again}", shares.join(", ")), by)
}

fn copies(rule: &Rule) -> String {
    let mut text = String::new();
    for mirror in (Filters { rule: &rule.filters, backend: &[] }).mirrors() {
        let share = f64::from(mirror.numerator) * 100.0 / f64::from(mirror.denominator.max(1));
        let _ = match &mirror.invalid {
            None => write!(text, "; {share:.0}% copied to {}", mirror.service),
            Some(why) => write!(text, "; not copied to {}: {why}", mirror.service),
        };
    }
    text
}

fn retries(retry: &Retry) -> String {
    let mut codes: Vec<&str> = retry.codes.iter().map(StatusCode::as_str).collect();
    codes.push("a failed connection");
    format!("; up to {} retries within the budget after {}", retry.attempts, codes.join(", "))
}

fn routes_of(table: &RouteTable) -> String {
    let mut names: Vec<&str> = table.rules().iter().map(|rule| &*rule.route).collect();
    names.dedup();
    if names.is_empty() { "the service's routes".to_owned() } else { names.join(", ") }
}

fn share(backend: &Backend, sum: u64, refused: &str) -> String {
    let percent = f64::from(backend.weight) * 100.0 / sum as f64;
    match &backend.invalid {
        None => format!("{} {percent:.0}%", backend.service),
        Some(why) => format!("{} {percent:.0}% ({refused}: {why})", backend.service),
    }
}

/// The server's side, the connection: what a strict port takes.
pub fn transport(strict: bool, peer: Option<&Identity>) -> Explanation {
    let mode = if strict { "strict" } else { "permissive" };
    match (plain_may(strict, peer), peer) {
        (Err(reason), _) => Explanation::refused("transport", reason, "the port takes mesh TLS only", ""),
        (Ok(()), Some(peer)) => Explanation::allowed("transport", format!("mesh TLS from {peer} ({mode})"), ""),
        (Ok(()), None) => Explanation::allowed("transport", format!("plain ({mode})"), ""),
    }
}

/// The server's side, one request: authorization, then the limits that count it.
///
/// A limit depends on what came before, so it is named and never refuses here.
pub fn inbound<'a, 'r: 'a>(
    policies: &PolicySet,
    limits: impl IntoIterator<Item = &'a Limiter>,
    question: &Question<'_>,
    request: impl Into<Option<&'a RequestView<'r>>>,
) -> Explanation {
    let mut told = match policies.decide(question) {
        Verdict::Deny { reason, by } => {
            let decision = match reason {
                Reason::DeniedByPolicy => "a Deny policy matches",
                Reason::NotAllowed => "nothing allows it",
                _ => "a policy cannot be enforced: its targets are closed",
            };
            return Explanation::refused("authorization", reason, decision, &*by);
        }
        Verdict::Allow { by } if by.is_empty() => {
            Explanation::allowed("authorization", "allowed by default: no policy of the target decides", "")
        }
        Verdict::Allow { by } => Explanation::allowed("authorization", "allowed", &*by),
    };
    let Some(request) = request.into() else { return told };
    for limit in limits.into_iter().filter(|limit| limit.applies(request)) {
        told.steps.push(Step {
            room: "rate limit".to_owned(),
            decision: limit_text(limit),
            by: limit.name.as_ref().to_owned(),
        });
    }
    told
}

fn limit_text(limit: &Limiter) -> String {
    let whom = match limit.key {
        Key::Service => "all clients together",
        Key::ClientIdentity => "each client identity",
    };
    format!(
        "counted: {} in {:?}, {} at once, for {whom}; each endpoint's sidecar counts for itself",
        limit.rate.requests,
        limit.rate.per,
        limit.rate.burst.max(1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Action, From, Pattern, Policy, Rule};
    use crate::ratelimit::Rate;
    use crate::route;
    use http::{HeaderMap, Method};
    use std::time::Duration;

    fn policies() -> PolicySet {
        let rule = Rule {
            source: "p.yaml:9".into(),
            from: vec![From { namespaces: vec![Pattern::parse("shop")], ..From::default() }],
            to: Vec::new(),
        };
        let policy = Policy {
            name: "AuthorizationPolicy/shop/web".into(),
            source: "p.yaml:1".into(),
            action: Action::Allow,
            rules: vec![rule],
            broken: None,
        };
        PolicySet::new(vec![policy], false)
    }

    fn ask(identity: &str) -> Explanation {
        let peer: Identity = identity.parse().unwrap();
        let headers = HeaderMap::new();
        let request = RequestView { method: &Method::GET, path: "/", query: None, headers: (&headers).into() };
        let question = Question { peer: Some(&peer), http: Some((&Method::GET, "/")) };
        let rate = Rate { requests: 5, per: Duration::from_secs(1), burst: 5 };
        let limit = Limiter::new("per-client", rate, Key::ClientIdentity, Vec::new());
        transport(true, Some(&peer)).then(|| inbound(&policies(), [&limit], &question, &request))
    }

    #[test]
    fn a_verdict_names_what_decided() {
        let told = ask("spiffe://cluster.local/ns/shop/sa/web");
        assert!(told.is_allowed());
        assert_eq!(told.steps.len(), 3);
        assert_eq!(told.steps[1].by, "AuthorizationPolicy/shop/web at p.yaml:9");
        assert!(told.to_text().contains("5 in 1s"), "{}", told.to_text());

        let told = ask("spiffe://cluster.local/ns/other/sa/web");
        assert_eq!((told.reason, told.status), (Some(Reason::NotAllowed), Some(403)));
        let json = serde_json::to_value(&told).unwrap();
        assert_eq!(json["verdict"], "refused");
        assert_eq!(json["reason"], "not_allowed");
        assert_eq!(serde_json::from_value::<Explanation>(json).unwrap(), told);
    }

    #[test]
    fn a_refusal_ends_the_way() {
        let told = transport(true, None).then(|| unreachable!("the connection was refused"));
        assert_eq!(told.reason, Some(Reason::PlaintextRefused));
        assert!(told.to_text().ends_with("refused: plaintext_refused (HTTP 403)\n"));
    }

    #[test]
    fn routes_tell_shares() {
        let headers = HeaderMap::new();
        let request = RequestView { method: &Method::GET, path: "/", query: None, headers: (&headers).into() };
        let called = Called { authority: b"shop", address: ([10, 0, 0, 1], 80).into() };
        let told = |table: Option<&RouteTable>| route(table, &request, &called);
        assert!(told(None).is_allowed());
        let backend = |weight, invalid: Option<&str>| Backend {
            service: "service/shop/web:80".into(),
            weight,
            filters: Vec::new(),
            invalid: invalid.map(Into::into),
        };
        let table = |backends| {
            let rule = route::Rule { route: "HTTPRoute/shop/r".into(), backends, ..route::Rule::default() };
            RouteTable::new(vec![route::Route { rules: vec![rule], ..route::Route::default() }])
        };
        let seen = told(Some(&table(vec![backend(90, None), backend(10, Some("no such service"))])));
        assert!(seen.is_allowed());
        assert!(seen.steps[0].decision.contains("90%") && seen.steps[0].decision.contains("no such service"));
        assert_eq!(told(Some(&table(vec![]))).reason, Some(Reason::InvalidBackend));
        assert_eq!(told(Some(&table(vec![backend(1, Some("x"))]))).reason, Some(Reason::InvalidBackend));
        assert_eq!(told(Some(&RouteTable::new(vec![]))).reason, Some(Reason::NoRoute));
        let redirect =
            route::Redirect { scheme: None, host: None, port: Some(81), path: None, status: StatusCode::SEE_OTHER };
        let rule = route::Rule { filters: vec![route::Filter::Redirect(redirect)], ..route::Rule::default() };
        let table = RouteTable::new(vec![route::Route { rules: vec![rule], ..route::Route::default() }]);
        let seen = told(Some(&table)).then(|| unreachable!("it was answered"));
        assert_eq!((seen.is_allowed(), seen.reason, seen.status), (true, None, Some(303)));
        assert!(
            seen.to_text().contains("303, go to http://shop:81/") && seen.to_text().ends_with("answered: HTTP 303\n")
        );
    }

    #[test]
    fn connections_tell_names_and_have_no_status() {
        let backend = |invalid: Option<&str>| Backend {
            service: "service/shop/web:80".into(),
            weight: 1,
            invalid: invalid.map(Into::into),
            ..Backend::default()
        };
        let table = |backends| {
            let rule = route::Rule { route: "TLSRoute/shop/r".into(), backends, ..route::Rule::default() };
            let hostnames = vec![route::Hostname::parse("a.example").unwrap()];
            let layer = route::Layer::Tls;
            let route = route::Route { layer, hostnames, rules: vec![rule], ..route::Route::default() };
            route::Tables::new(vec![route]).connections
        };
        let asked = Opening::Tls { sni: Some("a.example") };
        let told = connection(table(vec![backend(None), backend(Some("gone"))]).as_ref(), asked);
        assert!(told.is_allowed() && told.steps[0].by.starts_with("TLSRoute/shop/r rule"), "{told:?}");
        assert!(told.steps[0].decision.contains("50% (refused: gone)"), "{told:?}");
        let told = connection(table(vec![]).as_ref(), asked);
        assert_eq!((told.reason, told.status), (Some(Reason::InvalidBackend), None));
        let told = connection(table(vec![]).as_ref(), Opening::Tls { sni: Some("b.example") });
        assert_eq!((told.reason, told.status), (Some(Reason::NoRoute), None));
        assert!(told.to_text().contains("`b.example`") && told.to_text().ends_with("refused: no_route (reset)\n"));
        assert!(connection(table(vec![]).as_ref(), Opening::Opaque).is_allowed());
        assert!(connection(None, asked).is_allowed());
    }
}
