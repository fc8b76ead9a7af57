//! The decision: broken policies, then Deny, then Allow, then the default.

use std::sync::Arc;

use super::path::{Readings, decode_all};
use super::{Action, From, Pattern, Policy, Question, Rule, To, Verdict};
use crate::identity::Identity;
use crate::reason::Reason;

/// The policies of one target.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    policies: Vec<Policy>,
    default_deny: bool,
    // What a verdict says, for each policy and rule, made once: a decision allocates nothing.
    labels: Vec<Vec<Arc<str>>>,
    // The first broken policy closes the target, whatever is asked.
    closed: Option<Verdict>,
    // What there is to say where nothing matches.
    otherwise: Option<Verdict>,
    // Whether some rule looks at paths: without one no path is ever read.
    reads_paths: bool,
}

impl PolicySet {
    /// `default_deny`: what happens where no Allow policy is.
    pub fn new(mut policies: Vec<Policy>, default_deny: bool) -> Self {
        for to in policies.iter_mut().flat_map(|p| &mut p.rules).flat_map(|rule| &mut rule.to) {
            add_decoded(&mut to.paths);
        }
        let label = |policy: &Policy, rule: &Rule| -> Arc<str> {
            let source = if rule.source.is_empty() { &policy.source } else { &rule.source };
            if source.is_empty() { Arc::clone(&policy.name) } else { format!("{} at {source}", policy.name).into() }
        };
        let labels = policies.iter().map(|p| p.rules.iter().map(|rule| label(p, rule)).collect()).collect();
        let reads_paths =
            policies.iter().flat_map(|p| &p.rules).flat_map(|rule| &rule.to).any(|to| !to.paths.is_empty());
        let closed = policies.iter().find_map(|policy| {
            let (reason, why) = policy.broken.as_ref()?;
            Some(Verdict::Deny { reason: *reason, by: broken_label(policy, why) })
        });
        let otherwise = otherwise(&policies, default_deny);
        Self { policies, default_deny, labels, closed, otherwise, reads_paths }
    }

    /// Whether there is nothing to decide: no policy, and the default allows.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && !self.default_deny
    }

    /// The policies as given, the decoded spelling of each path pattern added.
    pub fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// Who may: see the module's text for the order.
    pub fn decide(&self, question: &Question<'_>) -> Verdict {
        if let Some(closed) = &self.closed {
            return closed.clone();
        }
        let path = match question.http {
            Some((_, path)) if self.reads_paths => Some(Readings::of(path)),
            _ => None,
        };
        if let Some(by) = self.first(Action::Deny, question, path.as_ref()) {
            return Verdict::Deny { reason: Reason::DeniedByPolicy, by };
        }
        if let Some(by) = self.first(Action::Allow, question, path.as_ref()) {
            return Verdict::Allow { by };
        }
        self.otherwise.clone().unwrap_or_else(|| Verdict::Allow { by: Arc::default() })
    }

    fn first(&self, action: Action, question: &Question<'_>, path: Option<&Readings<'_>>) -> Option<Arc<str>> {
        let policies = self.policies.iter().zip(&self.labels).filter(|(policy, _)| policy.action == action);
        for (policy, labels) in policies {
            if let Some(at) = policy.rules.iter().position(|rule| rule.matches(action, question, path)) {
                return labels.get(at).cloned();
            }
        }
        None
    }
}

/// The verdict where no rule matches; `None`: goes on.
fn otherwise(policies: &[Policy], default_deny: bool) -> Option<Verdict> {
    let mut allowing = policies.iter().filter(|policy| policy.action == Action::Allow).map(|policy| &policy.name);
    let by = match (allowing.next(), allowing.count()) {
        (Some(only), 0) => format!("no rule of {only} matches"),
        (Some(first), more) => format!("no rule of {first} or of {more} more Allow policies matches"),
        (None, _) if default_deny => "the default is deny and no policy allows".to_owned(),
        (None, _) => return None,
    };
    Some(Verdict::Deny { reason: Reason::NotAllowed, by: by.into() })
}

/// A pattern with escapes (`/a%20b`) stands for the decoded text too: a path is read in both ways.
fn add_decoded(patterns: &mut Vec<Pattern>) {
    let decoded = |pattern: &Pattern| {
        let (Pattern::Exact(text) | Pattern::Prefix(text)) = pattern;
        let text: Arc<str> = decode_all(text).filter(|decoded| **decoded != **text)?.into();
        Some(if matches!(pattern, Pattern::Exact(_)) { Pattern::Exact(text) } else { Pattern::Prefix(text) })
    };
    let added: Vec<Pattern> = patterns.iter().filter_map(decoded).collect();
    patterns.extend(added);
}

fn broken_label(policy: &Policy, why: &str) -> Arc<str> {
    if policy.source.is_empty() {
        format!("{}: {why}", policy.name).into()
    } else {
        format!("{} at {}: {why}", policy.name, policy.source).into()
    }
}

/// Whether a connection may speak at all, before any policy: a strict port takes none without a verified peer.
pub fn plain_may(strict: bool, peer: Option<&Identity>) -> Result<(), Reason> {
    if strict && peer.is_none() { Err(Reason::PlaintextRefused) } else { Ok(()) }
}

impl Rule {
    fn matches(&self, action: Action, question: &Question<'_>, path: Option<&Readings<'_>>) -> bool {
        (self.from.is_empty() || question.peer.is_some_and(|peer| self.from.iter().any(|from| from.matches(peer))))
            && (self.to.is_empty() || self.to.iter().any(|to| to.matches(action, question, path)))
    }
}

impl From {
    fn matches(&self, peer: &Identity) -> bool {
        (self.identities.is_empty() || self.identities.iter().any(|pattern| pattern.matches_identity(peer)))
            && (self.namespaces.is_empty()
                || self.is_near(peer) && self.namespaces.iter().any(|pattern| pattern.matches(&peer.namespace)))
    }

    fn is_near(&self, peer: &Identity) -> bool {
        self.trust_domain.as_ref().is_none_or(|domain| *domain == peer.trust_domain)
    }
}

impl To {
    fn matches(&self, action: Action, question: &Question<'_>, path: Option<&Readings<'_>>) -> bool {
        if self.methods.is_empty() && self.paths.is_empty() {
            return true;
        }
        let Some((method, _)) = question.http else {
            // Nobody can say what this connection asks for: a Deny must assume the worst, an Allow too.
            return action == Action::Deny;
        };
        (self.methods.is_empty() || self.methods.iter().any(|wanted| **wanted == *method.as_str()))
            && (self.paths.is_empty() || path.is_some_and(|readings| readings.match_paths(action, &self.paths)))
    }
}

impl Pattern {
    /// `*` at the end makes a prefix, and alone it matches any text; a `*` elsewhere stands for itself (the conversion from
    /// the wire refuses it).
    pub fn parse(text: &str) -> Self {
        text.strip_suffix('*').map_or_else(|| Self::Exact(text.into()), |prefix| Self::Prefix(prefix.into()))
    }

    /// Whether it matches a text.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => **wanted == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
        }
    }

    /// Whether it matches an identity's SPIFFE ID, without making that text.
    pub fn matches_identity(&self, identity: &Identity) -> bool {
        let (wanted, whole) = match self {
            Self::Exact(wanted) => (wanted, true),
            Self::Prefix(prefix) => (prefix, false),
        };
        let mut rest: &str = wanted;
        let parts =
            ["spiffe://", &identity.trust_domain, "/ns/", &identity.namespace, "/sa/", &identity.service_account];
        for part in parts {
            match rest.strip_prefix(part) {
                Some(more) => rest = more,
                None => return !whole && part.starts_with(rest),
            }
        }
        rest.is_empty()
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
        }
    }
}

#[cfg(test)]
mod tests;
