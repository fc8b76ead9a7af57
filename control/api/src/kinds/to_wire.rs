//! Our policies -> wire.

use super::check::{self, Checker};
use super::decode::At;
use super::fault::{Fault, nearest};
use super::meta::Kind;
use super::policy::{
    Action, AuthorizationPolicySpec, AuthorizationRule, Limit, LimitKey, LimitMatch, RateLimitPolicySpec, TargetRef,
    Written,
};
use super::route::{Context, header_matches, path_match};
use super::tree::Position;
use crate::wire::v1;

/// What a policy covers, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Service of this name: the workloads and target ports behind it.
    Service(String),
    /// Every workload of the namespace.
    Namespace,
}

pub(super) fn targets(refs: &At<Vec<At<TargetRef>>>, namespace: &str, checker: &mut Checker) -> Vec<Target> {
    if refs.is_empty() {
        checker.fault(refs.at, "`targetRefs` names nothing: a policy covers a Service or its Namespace");
    }
    checker.at_most(refs.at, refs, 16, "targetRefs");
    refs.iter().filter_map(|target| checker.take(self::target(target, namespace))).collect()
}

fn target(target: &At<TargetRef>, namespace: &str) -> Result<Target, Fault> {
    if let Some(group) = target.group.as_ref().filter(|group| !matches!(group.as_str(), "" | "core")) {
        let message = format!("unknown target group `{}`: Service and Namespace are of the core group", group.value);
        return Err(Fault::new(group.at, message).suggest("\"\""));
    }
    match target.kind.as_str() {
        "Service" => check::object_name(&target.name).map(Target::Service),
        "Namespace" if target.name.as_str() == namespace => Ok(Target::Namespace),
        "Namespace" => {
            let message = format!("a policy covers its own namespace `{namespace}` only, not `{}`", target.name.value);
            Err(Fault::new(target.name.at, message).suggest(namespace))
        }
        kind => Err(Fault::new(target.kind.at, format!("unknown target kind `{kind}`, expected Service or Namespace"))
            .did_you_mean(kind, ["Service", "Namespace"])),
    }
}

pub(super) fn authorization(
    name: &str,
    spec: &AuthorizationPolicySpec,
    at: Position,
    context: &Context<'_>,
    checker: &mut Checker,
) -> v1::AuthorizationPolicy {
    use v1::authorization_policy::Action as Wire;
    let action = match spec.action {
        Action::Allow => Wire::Allow,
        Action::Deny => Wire::Deny,
    };
    if spec.rules.is_empty() {
        let effect =
            if action == Wire::Allow { "allows nothing: its targets deny everything" } else { "denies nothing" };
        checker.warn(at, format!("policy without rules {effect}"));
    }
    checker.at_most(at, &spec.rules, 1024, "rules");
    v1::AuthorizationPolicy {
        namespace: context.namespace.to_owned(),
        name: name.to_owned(),
        action: action.into(),
        rules: spec.rules.iter().map(|rule| authorization_rule(rule, context, checker)).collect(),
        source: context.source(at),
        ..v1::AuthorizationPolicy::default()
    }
}

fn authorization_rule(
    rule: &At<AuthorizationRule>,
    context: &Context<'_>,
    checker: &mut Checker,
) -> v1::AuthorizationRule {
    let mut from = Vec::new();
    for entry in written(&rule.from, "from", "anybody", checker) {
        let who = v1::AuthorizationFrom {
            identities: list(&entry.identities, "identities", check::identity_pattern, checker),
            namespaces: list(&entry.namespaces, "namespaces", check::namespace_pattern, checker),
        };
        if entry.identities.0.is_none() && entry.namespaces.0.is_none() {
            checker.fault(
                entry.at,
                "an entry of `from` that names nobody would match anybody: name `identities` or `namespaces`",
            );
        }
        from.push(who);
    }
    let mut to = Vec::new();
    for entry in written(&rule.to, "to", "anything", checker) {
        let what = v1::AuthorizationTo {
            methods: list(&entry.methods, "methods", check::policy_method, checker),
            paths: list(&entry.paths, "paths", check::path_pattern, checker),
        };
        if entry.methods.0.is_none() && entry.paths.0.is_none() {
            checker
                .fault(entry.at, "an entry of `to` that names nothing would match anything: name `methods` or `paths`");
        }
        to.push(what);
    }
    v1::AuthorizationRule { from, to, source: context.source(rule.at) }
}

/// The elements of a list. One that is written but empty is a fault: on the wire it would mean "any", the opposite of what it says.
fn written<'a, T>(list: &'a Written<T>, field: &str, any: &str, checker: &mut Checker) -> &'a [At<T>] {
    let Some(list) = &list.0 else { return &[] };
    if list.is_empty() {
        checker.fault(list.at, format!("`{field}` is empty: leave it out if {any} is meant"));
    }
    checker.at_most(list.at, list, 256, field);
    list
}

fn list(
    list: &Written<String>,
    field: &str,
    read: impl Fn(&At<String>) -> Result<String, Fault>,
    checker: &mut Checker,
) -> Vec<String> {
    let elements = written(list, field, "any", checker);
    elements.iter().filter_map(|text| checker.take(read(text))).collect()
}

pub(super) fn rate_limit(
    name: &str,
    spec: &RateLimitPolicySpec,
    at: Position,
    context: &Context<'_>,
    checker: &mut Checker,
) -> v1::RateLimitPolicy {
    if spec.limits.is_empty() {
        checker.fault(spec.limits.at, "`limits` is empty: a policy has at least one limit");
    }
    checker.at_most(spec.limits.at, &spec.limits, 64, "limits");
    let single = spec.limits.len() == 1;
    let mut limits: Vec<v1::RateLimit> = Vec::new();
    for (index, limit) in spec.limits.iter().enumerate() {
        let default = if single { name.to_owned() } else { format!("{name}-{index}") };
        let wire = self::limit(limit, default, checker);
        if limits.iter().any(|other| other.name == wire.name) {
            checker.fault(limit.at, format!("limit `{}` is there twice", wire.name));
        }
        limits.push(wire);
    }
    v1::RateLimitPolicy {
        namespace: context.namespace.to_owned(),
        name: name.to_owned(),
        limits,
        source: context.source(at),
        ..v1::RateLimitPolicy::default()
    }
}

fn limit(limit: &At<Limit>, default_name: String, checker: &mut Checker) -> v1::RateLimit {
    let name = match &limit.name {
        Some(name) => checker.take(check::object_name(name)).unwrap_or_default(),
        None => default_name,
    };
    if limit.requests.value == 0 {
        checker.fault(
            limit.requests.at,
            "`requests: 0` admits nothing: an AuthorizationPolicy with action Deny says that",
        );
    }
    if let Some(burst) = limit.burst.as_ref().filter(|burst| burst.value == 0) {
        checker.fault(burst.at, "`burst: 0` admits nothing: write 1 or more, or leave it out");
    }
    for number in std::iter::once(&limit.requests).chain(&limit.burst) {
        // More than a proxy can see; keeps the arithmetic of the limiter away from its edges.
        if number.value > 1_000_000_000 {
            checker.fault(number.at, "at most 1000000000");
        }
    }
    let per_ms = checker.take(check::duration(&limit.per)).unwrap_or_default();
    if per_ms == 0 && check::duration(&limit.per).is_ok() {
        checker.fault(limit.per.at, "`per` must be longer than nothing");
    }
    let key = match limit.key {
        LimitKey::Service => v1::rate_limit::Key::Service,
        LimitKey::ClientIdentity => v1::rate_limit::Key::ClientIdentity,
    };
    checker.at_most(limit.at, &limit.matches, 64, "matches");
    v1::RateLimit {
        name,
        requests: limit.requests.value,
        per_ms,
        burst: limit.burst.as_ref().map_or(0, |burst| burst.value),
        key: key.into(),
        matches: limit.matches.iter().map(|one| limit_match(one, checker)).collect(),
    }
}

fn limit_match(found: &At<LimitMatch>, checker: &mut Checker) -> v1::RouteMatch {
    v1::RouteMatch {
        path: found.path.as_ref().and_then(|path| path_match(path, checker)),
        method: found.method.as_ref().and_then(|method| checker.take(check::policy_method(method))).unwrap_or_default(),
        headers: header_matches(&found.headers, checker),
        query: Vec::new(),
    }
}

/// What a broken policy stands for until it is mended: nothing but its reason, so that its targets are closed.
pub fn closed_authorization(namespace: &str, name: &str, why: &str, source: &str) -> v1::AuthorizationPolicy {
    v1::AuthorizationPolicy {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        action: v1::authorization_policy::Action::Deny.into(),
        invalid: why.to_owned(),
        source: source.to_owned(),
        ..v1::AuthorizationPolicy::default()
    }
}

/// The same for a rate limit.
pub fn closed_rate_limit(namespace: &str, name: &str, why: &str, source: &str) -> v1::RateLimitPolicy {
    v1::RateLimitPolicy {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        invalid: why.to_owned(),
        source: source.to_owned(),
        ..v1::RateLimitPolicy::default()
    }
}

/// The kind of a policy from a word that may be misspelt.
pub fn policy_kind_like(word: &str) -> Option<Kind> {
    let names = Kind::ALL.into_iter().filter(|kind| kind.is_policy()).map(Kind::name);
    let name = nearest(word, names)?;
    Kind::ALL.into_iter().find(|kind| kind.name() == name)
}
