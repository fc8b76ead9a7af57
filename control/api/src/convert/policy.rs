//! Authorization and rate limits.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use weft_engine::authz::{Action, From, Pattern, Policy, Rule, To};
use weft_engine::ratelimit::{Key, Limiter, Rate};
use weft_engine::reason::Reason;

use super::error::{ErrorCode, ResourceError};
use super::{field, missing_features, routes};
use crate::names;
use crate::wire::v1;

/// Above this a number is no limit; keeps the limiter's arithmetic away from its edges.
const MAX_REQUESTS: u64 = 1_000_000_000;
/// Longest window: a year.
const MAX_WINDOW: Duration = Duration::from_hours(366 * 24);

/// How often: the limits of one policy object.
#[derive(Clone, Debug)]
pub struct RateLimitPolicy {
    /// `RateLimitPolicy/NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// FILE:LINE.
    pub source: Arc<str>,
    /// With fresh counters; see [`Limiter::keeping`].
    pub limiters: Vec<Limiter>,
    /// Why it cannot be enforced, with the code to refuse with. Then its targets are closed: see [`Self::closing`].
    pub broken: Option<(Reason, Arc<str>)>,
}

impl RateLimitPolicy {
    /// If it is broken: the authorization policy that closes its targets. Put it into their policy sets.
    pub fn closing(&self) -> Option<Policy> {
        let (reason, why) = self.broken.as_ref()?;
        Some(closed(&self.name, &self.source, *reason, why))
    }
}

/// A policy that closes what it targets: what a proxy puts in the place of a policy resource that it had to refuse and of which
/// it holds no earlier version.
pub fn closed_policy(name: &str, error: &ResourceError) -> Policy {
    let reason = match error.code {
        ErrorCode::UnsupportedFeature | ErrorCode::UnknownValue | ErrorCode::UnknownType | ErrorCode::MissingField => {
            Reason::PolicyUnsupported
        }
        _ => Reason::PolicyInvalid,
    };
    closed(&name.into(), &"".into(), reason, &error.message.as_str().into())
}

fn closed(name: &Arc<str>, source: &Arc<str>, reason: Reason, why: &Arc<str>) -> Policy {
    Policy {
        name: Arc::clone(name),
        source: Arc::clone(source),
        action: Action::Deny,
        rules: Vec::new(),
        broken: Some((reason, Arc::clone(why))),
    }
}

/// Why a policy that is well encoded cannot be enforced.
fn broken(invalid: &str, requires: &[String]) -> Option<(Reason, Arc<str>)> {
    if !invalid.is_empty() {
        return Some((Reason::PolicyInvalid, invalid.into()));
    }
    let missing = missing_features(requires)?;
    let why = format!("it requires {missing}, which this proxy does not enforce: upgrade it");
    Some((Reason::PolicyUnsupported, why.into()))
}

pub(super) fn authorization(wire: &v1::AuthorizationPolicy, trust_domain: &str) -> Result<Policy, ResourceError> {
    let name = names::object("AuthorizationPolicy", &wire.namespace, &wire.name);
    let name = field::object_name(&["AuthorizationPolicy"], &name)?;
    let source: Arc<str> = wire.source.as_str().into();
    if let Some((reason, why)) = broken(&wire.invalid, &wire.requires) {
        // Its rules are not read: they may hold what this build does not understand.
        return Ok(closed(&name, &source, reason, &why));
    }
    use v1::authorization_policy::Action as Wire;
    let action = match Wire::try_from(wire.action).map_err(|_| field::unknown("action", wire.action))? {
        Wire::Allow => Action::Allow,
        Wire::Deny => Action::Deny,
    };
    let rules = wire
        .rules
        .iter()
        .map(|found| rule(found, trust_domain).map_err(|error| error.within(&format!("{name} at {}", found.source))));
    Ok(Policy { rules: rules.collect::<Result<_, _>>()?, name, source, action, broken: None })
}

fn rule(wire: &v1::AuthorizationRule, trust_domain: &str) -> Result<Rule, ResourceError> {
    Ok(Rule {
        source: wire.source.as_str().into(),
        from: wire.from.iter().map(|from| self::from(from, trust_domain)).collect::<Result<_, _>>()?,
        to: wire.to.iter().map(to).collect::<Result<_, _>>()?,
    })
}

/// An entry without any condition is refused: it is what is left of one whose conditions this build does not know.
fn from(wire: &v1::AuthorizationFrom, trust_domain: &str) -> Result<From, ResourceError> {
    if wire.identities.is_empty() && wire.namespaces.is_empty() {
        return Err(field::missing("who an entry of `from` means"));
    }
    let identities = wire.identities.iter().map(|text| identity_pattern(text, trust_domain));
    let namespaces = wire.namespaces.iter().map(|text| namespace_pattern(text));
    Ok(From {
        identities: identities.collect::<Result<_, _>>()?,
        namespaces: namespaces.collect::<Result<_, _>>()?,
        trust_domain: Some(trust_domain.into()),
    })
}

fn to(wire: &v1::AuthorizationTo) -> Result<To, ResourceError> {
    if wire.methods.is_empty() && wire.paths.is_empty() {
        return Err(field::missing("what an entry of `to` means"));
    }
    let method = |text: &String| match Method::from_bytes(text.as_bytes()) {
        Ok(_) if text != "*" => Ok(text.as_str().into()),
        _ => Err(ResourceError::new(ErrorCode::InvalidMethod, format!("`{}` is no method", field::cut(text)))),
    };
    Ok(To {
        methods: wire.methods.iter().map(method).collect::<Result<_, _>>()?,
        paths: wire.paths.iter().map(|text| path_pattern(text)).collect::<Result<_, _>>()?,
    })
}

/// What stands before a `*` at the end, and whether there is one.
fn stem(text: &str) -> (&str, bool) {
    text.strip_suffix('*').map_or((text, false), |stem| (stem, true))
}

/// `*`, `NAMESPACE/SERVICE-ACCOUNT`, `NAMESPACE/*`, or `spiffe://...`; `*` at the end is a prefix of the whole SPIFFE ID. One that begins with
/// its path (`/ns/...`) is of the mesh itself.
fn identity_pattern(text: &str, trust_domain: &str) -> Result<Pattern, ResourceError> {
    let refuse = || {
        let message = format!(
            "`{}` names no identity: write NAMESPACE/SERVICE-ACCOUNT, NAMESPACE/* or a whole SPIFFE ID",
            field::cut(text)
        );
        ResourceError::new(ErrorCode::InvalidIdentity, message)
    };
    let (stem, open) = stem(text);
    let is_id = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_' | b'/');
    let own = stem.starts_with('/').then(|| format!("spiffe://{trust_domain}{stem}"));
    let whole = own.as_deref().unwrap_or(stem);
    if let Some(id) = whole.strip_prefix("spiffe://") {
        let ok = if open { id.bytes().all(is_id) } else { field::identity(whole, trust_domain).is_ok() };
        let star = if open { "*" } else { "" };
        return if ok { Ok(Pattern::parse(&format!("{whole}{star}"))) } else { Err(refuse()) };
    }
    if stem.is_empty() && open {
        return Ok(Pattern::parse("spiffe://*"));
    }
    let (namespace, account) = stem.split_once('/').ok_or_else(refuse)?;
    let ok = field::name("namespace", namespace).is_ok()
        && (field::name("service account", account).is_ok() || open && account.is_empty());
    if !ok {
        return Err(refuse());
    }
    let star = if open { "*" } else { "" };
    Ok(Pattern::parse(&format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}{star}")))
}

fn namespace_pattern(text: &str) -> Result<Pattern, ResourceError> {
    let (stem, open) = stem(text);
    if open && stem.is_empty() || field::name("namespace", stem).is_ok() {
        return Ok(Pattern::parse(text));
    }
    let message = format!("`{}` is no namespace, nor the beginning of one and `*`", field::cut(text));
    Err(ResourceError::new(ErrorCode::InvalidIdentity, message))
}

/// A path that is not in canonical form could never match one that is: a Deny of it would be silently without effect.
fn path_pattern(text: &str) -> Result<Pattern, ResourceError> {
    let (stem, open) = stem(text);
    let refuse = |why: &str| {
        let message = format!("path pattern `{}` {why}", field::cut(text));
        Err(ResourceError::new(ErrorCode::InvalidPath, message))
    };
    if open && stem.is_empty() {
        return Ok(Pattern::parse(text));
    }
    if !stem.starts_with('/') || stem.len() > 4096 || stem.contains('*') {
        return refuse("must start with `/` and may have one `*`, at its end");
    }
    let lower = stem.to_ascii_lowercase();
    if *weft_engine::authz::normalise_path(stem) != *stem || ["%2f", "%5c", "\\"].iter().any(|odd| lower.contains(odd))
    {
        return refuse("is compared with canonical paths: write it without `//`, `/./`, `/../` and needless escapes");
    }
    Ok(Pattern::parse(text))
}

pub(super) fn rate_limit(wire: &v1::RateLimitPolicy) -> Result<RateLimitPolicy, ResourceError> {
    let name = names::object("RateLimitPolicy", &wire.namespace, &wire.name);
    let name = field::object_name(&["RateLimitPolicy"], &name)?;
    let source = wire.source.as_str().into();
    let broken = broken(&wire.invalid, &wire.requires);
    if broken.is_some() {
        return Ok(RateLimitPolicy { name, source, limiters: Vec::new(), broken });
    }
    let mut regexes = routes::Regexes::default();
    let mut limiters: Vec<Limiter> = Vec::with_capacity(wire.limits.len());
    for (index, found) in wire.limits.iter().enumerate() {
        let made = limit(found, &mut regexes).map_err(|error| error.within(&format!("{name} limit {index}")))?;
        limiters.push(made);
    }
    Ok(RateLimitPolicy { name, source, limiters, broken: None })
}

fn limit(wire: &v1::RateLimit, regexes: &mut routes::Regexes) -> Result<Limiter, ResourceError> {
    let out_of_range = |message: String| Err(ResourceError::new(ErrorCode::OutOfRange, message));
    let (per, burst) = (Duration::from_millis(wire.per_ms), if wire.burst == 0 { wire.requests } else { wire.burst });
    if wire.requests == 0 || wire.requests > MAX_REQUESTS || burst > MAX_REQUESTS {
        return out_of_range(format!("`requests` and `burst` go from 1 to {MAX_REQUESTS}"));
    }
    if per.is_zero() || per > MAX_WINDOW {
        return out_of_range("`per` is longer than nothing and at most a year".to_owned());
    }
    use v1::rate_limit::Key as Wire;
    let key = match Wire::try_from(wire.key).map_err(|_| field::unknown("key", wire.key))? {
        Wire::Service => Key::Service,
        Wire::ClientIdentity => Key::ClientIdentity,
    };
    // The name stands quoted in a response header.
    let name = field::name("limit", &wire.name)?;
    let rate = Rate { requests: wire.requests, per, burst };
    Ok(Limiter::new(name, rate, key, routes::matches(&wire.matches, regexes)?))
}
