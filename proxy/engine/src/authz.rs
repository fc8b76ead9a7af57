//! Who may: authorization policies of one target.
//!
//! Semantics: a broken policy closes its target; a Deny that matches wins; with at least one Allow policy, what none allows is
//! denied; with none, the default decides. An Allow rule that names methods or paths never matches a connection that is not HTTP;
//! a Deny rule that does, matches it by its other parts (fails closed).

use std::sync::Arc;

use crate::identity::Identity;
use crate::reason::Reason;

mod decide;
mod path;

pub use decide::{PolicySet, plain_may};
pub(crate) use path::escape_at;
pub use path::{Readings, normalise_path};

/// Allow or Deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Permits what it matches.
    Allow,
    /// Refuses what it matches, whatever others allow.
    Deny,
}

/// One policy object.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `AuthorizationPolicy/NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// FILE:LINE.
    pub source: Arc<str>,
    /// What its rules do.
    pub action: Action,
    /// Any of these. None: matches nothing.
    pub rules: Vec<Rule>,
    /// Why it cannot be enforced, with the code to refuse with.
    pub broken: Option<(Reason, Arc<str>)>,
}

/// Any of `from` (none: anybody) and any of `to` (none: anything).
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// FILE:LINE.
    pub source: Arc<str>,
    /// Who.
    pub from: Vec<From>,
    /// What.
    pub to: Vec<To>,
}

/// Each non-empty list must hold. A peer without identity matches none.
#[derive(Clone, Debug, Default)]
pub struct From {
    /// Patterns over the whole SPIFFE ID.
    pub identities: Vec<Pattern>,
    /// Patterns over the namespace.
    pub namespaces: Vec<Pattern>,
    /// Namespaces are those of this trust domain: another one's are other people's. `None`: of any.
    pub trust_domain: Option<Arc<str>>,
}

/// Each non-empty list must hold.
#[derive(Clone, Debug, Default)]
pub struct To {
    /// Methods, upper case, compared exactly.
    pub methods: Vec<Arc<str>>,
    /// Patterns over the normalised path.
    pub paths: Vec<Pattern>,
}

/// Exact text, or a prefix (`*` at the end).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The whole text.
    Exact(Arc<str>),
    /// Any text that starts so.
    Prefix(Arc<str>),
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The verified peer; `None` is a plain connection.
    pub peer: Option<&'a Identity>,
    /// Method and path; `None` is a connection that is not HTTP.
    pub http: Option<(&'a http::Method, &'a str)>,
}

/// The answer, naming what decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on. `by` is the policy's name, or empty if the default allowed.
    Allow {
        /// Policy and FILE:LINE of the rule.
        by: Arc<str>,
    },
    /// Refused.
    Deny {
        /// The code.
        reason: Reason,
        /// Policy and FILE:LINE of the rule, or what the default is.
        by: Arc<str>,
    },
}
