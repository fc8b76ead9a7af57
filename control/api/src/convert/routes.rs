//! Routes: matches, filters, backends.

use std::time::Duration;

use http::{Method, StatusCode};
use weft_engine::retry::{MAX_RETRIES, Retry};
use weft_engine::route::{Backend, BadRegex, Hostname, Layer, Match, PathMatch, Route, Rule, ValueMatch, whole_regex};

use super::error::{ErrorCode, ResourceError};
use super::filters::{filters, header_name};
use super::{field, require_features};
use crate::names;
use crate::wire::v1;

/// Kinds of routes.
pub(super) const KINDS: &[&str] = &["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"];
/// Hostnames of one route at most (Gateway API).
pub(crate) const MAX_HOSTNAMES: usize = 16;
/// Regular expressions of one resource at most: each may take a megabyte when compiled.
const MAX_REGEXES: usize = 256;
/// Gateway API's bound on a weight.
const MAX_WEIGHT: u32 = 1_000_000;
/// Longer than any request; keeps sums of times away from their edges.
const MAX_TIMEOUT: Duration = Duration::from_hours(7 * 24);
pub(super) fn route(wire: &v1::Route) -> Result<Route, ResourceError> {
    let name = names::object(&wire.kind, &wire.namespace, &wire.name);
    let name = field::object_name(KINDS, &name)?;
    require_features(&name, &wire.requires)?;
    let layer = match wire.kind.as_str() {
        "TLSRoute" => Layer::Tls,
        "TCPRoute" => Layer::Tcp,
        _ => Layer::Http,
    };
    let hostnames = hostnames(&wire.hostnames, layer).map_err(|error| error.within(&name))?;
    if layer != Layer::Http {
        plain(&wire.rules).map_err(|error| error.within(&name))?;
    }
    let mut regexes = Regexes::default();
    let mut rules = Vec::with_capacity(wire.rules.len());
    for (index, found) in wire.rules.iter().enumerate() {
        let mut made = rule(found, index, &mut regexes).map_err(|error| {
            error.within(&format!(
                "{name} rule {index}{}{}",
                if found.source.is_empty() { "" } else { " at " },
                found.source
            ))
        })?;
        made.route = std::sync::Arc::clone(&name);
        rules.push(made);
    }
    Ok(Route { name, created: wire.created, layer, hostnames, rules })
}

/// Names that TLS clients ask for; a route of another kind has none.
fn hostnames(wire: &[String], layer: Layer) -> Result<Vec<Hostname>, ResourceError> {
    if layer != Layer::Tls && !wire.is_empty() {
        let message = "only a TLSRoute has hostnames: upgrade the proxy";
        return Err(ResourceError::new(ErrorCode::UnknownValue, message));
    }
    if wire.len() > MAX_HOSTNAMES {
        let message = format!("{} hostnames, at most {MAX_HOSTNAMES} are allowed", wire.len());
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    let hostname = |text: &String| {
        Hostname::parse(text).map_err(|error| {
            ResourceError::new(ErrorCode::InvalidAddress, format!("hostname `{}`: {error}", field::cut(text)))
        })
    };
    wire.iter().map(hostname).collect()
}

/// A route that does not look into requests says nothing of them, and has one rule: a second one could take nothing.
fn plain(rules: &[v1::RouteRule]) -> Result<(), ResourceError> {
    if rules.len() > 1 {
        return Err(ResourceError::new(
            ErrorCode::OutOfRange,
            format!("{} rules, one can take connections", rules.len()),
        ));
    }
    let about_requests = |rule: &v1::RouteRule| {
        !(rule.matches.is_empty() && rule.filters.is_empty())
            || rule.backends.iter().any(|backend| !backend.filters.is_empty())
            || rule.request_timeout_ms != 0
            || rule.backend_request_timeout_ms != 0
            || rule.retry.is_some()
    };
    if rules.iter().any(about_requests) {
        let message =
            "matches, filters, timeouts and retries are of requests, which this kind of route does not look into";
        return Err(ResourceError::new(ErrorCode::UnknownValue, message));
    }
    Ok(())
}

fn rule(wire: &v1::RouteRule, index: usize, regexes: &mut Regexes) -> Result<Rule, ResourceError> {
    Ok(Rule {
        route: "".into(),
        name: if wire.name.is_empty() { index.to_string().into() } else { wire.name.as_str().into() },
        source: wire.source.as_str().into(),
        matches: matches(&wire.matches, regexes)?,
        filters: filters(&wire.filters)?,
        backends: wire.backends.iter().map(backend).collect::<Result<_, _>>()?,
        request_timeout: timeout(wire.request_timeout_ms)?,
        backend_request_timeout: timeout(wire.backend_request_timeout_ms)?,
        retry: wire.retry.as_ref().map(retry).transpose()?,
    })
}

fn timeout(millis: u64) -> Result<Option<Duration>, ResourceError> {
    let time = Duration::from_millis(millis);
    if time > MAX_TIMEOUT {
        return Err(ResourceError::new(ErrorCode::OutOfRange, format!("a timeout of {time:?} is longer than a week")));
    }
    Ok((!time.is_zero()).then_some(time))
}

fn retry(wire: &v1::Retry) -> Result<Retry, ResourceError> {
    let out_of_range = |what: String| Err(ResourceError::new(ErrorCode::OutOfRange, what));
    if !(1..=MAX_RETRIES).contains(&wire.attempts) {
        return out_of_range(format!("{} retries, where 1 to {MAX_RETRIES} may be asked for", wire.attempts));
    }
    if let Some(code) = wire.codes.iter().find(|code| !(400..600).contains(*code)) {
        return out_of_range(format!("status {code} is never retried, 400 to 599 may be"));
    }
    let code = |code: &u32| StatusCode::from_u16(u16::try_from(*code).ok()?).ok();
    let codes = wire.codes.iter().filter_map(code).collect();
    let backoff = timeout(wire.backoff_ms)?.unwrap_or_default();
    Ok(Retry { attempts: wire.attempts, codes, backoff })
}

/// Counts regular expressions, so that one resource cannot take the proxy's memory.
#[derive(Default)]
pub(super) struct Regexes(usize);

impl Regexes {
    fn compile(&mut self, pattern: &str) -> Result<regex::Regex, ResourceError> {
        self.0 += 1;
        if self.0 > MAX_REGEXES {
            let message = format!("more than {MAX_REGEXES} regular expressions: split the object");
            return Err(ResourceError::new(ErrorCode::OutOfRange, message));
        }
        whole_regex(pattern).map_err(|error: BadRegex| ResourceError::new(ErrorCode::InvalidRegex, error.to_string()))
    }
}

pub(super) fn matches(wire: &[v1::RouteMatch], regexes: &mut Regexes) -> Result<Vec<Match>, ResourceError> {
    wire.iter().map(|wire| one_match(wire, regexes)).collect()
}

fn one_match(wire: &v1::RouteMatch, regexes: &mut Regexes) -> Result<Match, ResourceError> {
    use v1::route_match::Path;
    let path = match &wire.path {
        None => None,
        Some(Path::PathExact(path)) => Some(PathMatch::Exact(absolute(path)?)),
        Some(Path::PathPrefix(path)) => Some(PathMatch::Prefix(absolute(path)?)),
        Some(Path::PathRegex(pattern)) => Some(PathMatch::Regex(regexes.compile(pattern)?)),
    };
    let mut found = Match { path, method: method(&wire.method)?, ..Match::default() };
    for header in &wire.headers {
        let name = header_name(&header.name)?;
        // Gateway API: of entries with equivalent names only the first counts.
        if !found.headers.iter().any(|(known, _)| *known == name) {
            found.headers.push((name, value(header, regexes)?));
        }
    }
    for parameter in &wire.query {
        if parameter.name.is_empty() {
            return Err(field::missing("the name of a query parameter"));
        }
        if !found.query.iter().any(|(known, _)| *known == parameter.name) {
            found.query.push((parameter.name.clone(), value(parameter, regexes)?));
        }
    }
    Ok(found)
}

pub(super) fn absolute(path: &str) -> Result<String, ResourceError> {
    if path.starts_with('/') && path.len() <= 4096 && !path.bytes().any(|b| b <= 0x20 || b == 0x7f) {
        return Ok(path.to_owned());
    }
    let message = format!("`{}` is no path: it starts with `/` and has no spaces", field::cut(path));
    Err(ResourceError::new(ErrorCode::InvalidPath, message))
}

fn method(text: &str) -> Result<Option<Method>, ResourceError> {
    if text.is_empty() {
        return Ok(None);
    }
    Method::from_bytes(text.as_bytes())
        .map(Some)
        .map_err(|_| ResourceError::new(ErrorCode::InvalidMethod, format!("`{}` is no method", field::cut(text))))
}

fn value(wire: &v1::ValueMatch, regexes: &mut Regexes) -> Result<ValueMatch, ResourceError> {
    use v1::value_match::Value;
    match &wire.value {
        Some(Value::Exact(text)) => Ok(ValueMatch::Exact(text.clone())),
        Some(Value::Regex(pattern)) => Ok(ValueMatch::Regex(regexes.compile(pattern)?)),
        None => Err(field::missing("what the value of a match must be")),
    }
}

fn backend(wire: &v1::RouteBackend) -> Result<Backend, ResourceError> {
    if wire.weight > MAX_WEIGHT {
        let message = format!("weight {} is above {MAX_WEIGHT}", wire.weight);
        return Err(ResourceError::new(ErrorCode::OutOfRange, message));
    }
    let invalid = (!wire.invalid.is_empty()).then(|| wire.invalid.as_str().into());
    let service = if invalid.is_some() { wire.service.as_str().into() } else { field::service_name(&wire.service)? };
    Ok(Backend { service, weight: wire.weight, filters: filters(&wire.filters)?, invalid })
}
