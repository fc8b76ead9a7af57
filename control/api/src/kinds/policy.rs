//! Our own kinds as people write them (weft.dev/v1alpha1).

use serde::{Deserialize, Deserializer};

use super::decode::{At, NotYet};
use super::gateway::{NameValueMatch, PathMatch};

/// What a policy covers, in its own namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Empty: the core group.
    pub group: Option<At<String>>,
    /// `Service` or `Namespace`.
    pub kind: At<String>,
    /// Name.
    pub name: At<String>,
    /// Not yet.
    pub section_name: Option<NotYet>,
}

/// A list that is absent, or written: one that is written but empty must be told apart, because absent means "any".
#[derive(Clone, Debug)]
pub struct Written<T>(pub Option<At<Vec<At<T>>>>);

impl<T> Default for Written<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Written<T> {
    // Not by way of Option: `from:` with nothing behind it is written, and empty.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        At::deserialize(deserializer).map(|list| Self(Some(list)))
    }
}

/// Who may: AuthorizationPolicy `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// What it covers.
    pub target_refs: At<Vec<At<TargetRef>>>,
    /// What its rules do.
    pub action: Action,
    /// Any of these; none matches nothing.
    #[serde(default)]
    pub rules: Vec<At<AuthorizationRule>>,
}

/// `AuthorizationPolicy.spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Action {
    /// Permits what it matches.
    Allow,
    /// Refuses what it matches, whatever others allow.
    Deny,
}

/// Any of `from` (none: anybody) and any of `to` (none: anything).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationRule {
    /// Who.
    #[serde(default)]
    pub from: Written<From>,
    /// What.
    #[serde(default)]
    pub to: Written<To>,
}

/// Each list that is written must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// `NAMESPACE/SERVICE-ACCOUNT`, `NAMESPACE/*`, a SPIFFE ID, or a SPIFFE ID's beginning and `*`.
    #[serde(default)]
    pub identities: Written<String>,
    /// Namespaces; `*` at the end matches any rest.
    #[serde(default)]
    pub namespaces: Written<String>,
}

/// Each list that is written must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// HTTP methods.
    #[serde(default)]
    pub methods: Written<String>,
    /// Paths; `*` at the end matches any rest.
    #[serde(default)]
    pub paths: Written<String>,
}

/// How often: RateLimitPolicy `spec`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitPolicySpec {
    /// What it covers.
    pub target_refs: At<Vec<At<TargetRef>>>,
    /// All of these count.
    pub limits: At<Vec<At<Limit>>>,
}

/// One limit: `requests` in each `per`, and `burst` at once.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// Shown in the `RateLimit` header fields. Default: the policy's name, and a number if it has several.
    pub name: Option<At<String>>,
    /// Requests, at least 1.
    pub requests: At<u64>,
    /// In this time.
    pub per: At<String>,
    /// Requests admitted at once; default `requests`.
    pub burst: Option<At<u64>>,
    /// What shares one allowance.
    #[serde(default)]
    pub key: LimitKey,
    /// Any of these; none means every request.
    #[serde(default, rename = "match")]
    pub matches: Vec<At<LimitMatch>>,
}

/// What shares one allowance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum LimitKey {
    /// All clients together.
    #[default]
    Service,
    /// Each client identity has its own.
    ClientIdentity,
}

/// All of these must hold.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitMatch {
    /// Path.
    pub path: Option<At<PathMatch>>,
    /// Method.
    pub method: Option<At<String>>,
    /// Header fields.
    #[serde(default)]
    pub headers: Vec<At<NameValueMatch>>,
}
