//! Filters of Gateway API as people write them.

use serde::Deserialize;

use crate::kinds::decode::{At, NotYet};

/// A filter.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteFilter {
    /// Which of the fields below counts.
    #[serde(rename = "type")]
    pub how: At<FilterType>,
    /// Of `RequestHeaderModifier`.
    pub request_header_modifier: Option<At<HeaderModifier>>,
    /// Of `ResponseHeaderModifier`.
    pub response_header_modifier: Option<At<HeaderModifier>>,
    /// Of `RequestMirror`.
    pub request_mirror: Option<At<RequestMirror>>,
    /// Of `RequestRedirect`.
    pub request_redirect: Option<At<RequestRedirect>>,
    /// Of `URLRewrite`.
    pub url_rewrite: Option<At<UrlRewrite>>,
    /// Of `CORS`.
    pub cors: Option<At<Cors>>,
    /// Not yet.
    pub external_auth: Option<NotYet>,
    /// Not yet.
    pub extension_ref: Option<NotYet>,
}

/// `HTTPRouteFilter.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum FilterType {
    /// Changes request header fields.
    RequestHeaderModifier,
    /// Changes response header fields.
    ResponseHeaderModifier,
    /// Copies requests.
    RequestMirror,
    /// Answers with another place.
    RequestRedirect,
    /// Changes the request's path and host.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Answers preflights, and says who may read responses.
    #[serde(rename = "CORS")]
    Cors,
    /// Not yet.
    ExternalAuth,
    /// Not yet.
    ExtensionRef,
}

/// Sends copies of requests elsewhere.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestMirror {
    /// Where to.
    pub backend_ref: At<ObjectReference>,
    /// Of a hundred requests; default all.
    pub percent: Option<At<u32>>,
    /// The same as a fraction.
    pub fraction: Option<At<Fraction>>,
}

/// A reference to a Service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectReference {
    /// Default: empty, the core group.
    pub group: Option<At<String>>,
    /// Default `Service`.
    pub kind: Option<At<String>>,
    /// Name.
    pub name: At<String>,
    /// Default: the route's.
    pub namespace: Option<At<String>>,
    /// The service's port (required for a Service).
    pub port: Option<At<u16>>,
}

/// A part of a whole.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fraction {
    /// So many ...
    pub numerator: At<u32>,
    /// ... of so many; default 100.
    pub denominator: Option<At<u32>>,
}

/// Who may call across origins. Of a list `*` alone is all.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// `SCHEME://HOST[:PORT]`, the host `*` or beginning with `*.`.
    #[serde(default)]
    pub allow_origins: Vec<At<String>>,
    /// With cookies and the like; default no.
    #[serde(default)]
    pub allow_credentials: bool,
    /// Beside GET, HEAD and POST.
    #[serde(default)]
    pub allow_methods: Vec<At<String>>,
    /// Of requests.
    #[serde(default)]
    pub allow_headers: Vec<At<String>>,
    /// Of responses.
    #[serde(default)]
    pub expose_headers: Vec<At<String>>,
    /// Seconds for which the answer to a preflight may be kept; default 5.
    pub max_age: Option<At<u32>>,
}

impl std::fmt::Display for FilterType {
    /// As it is written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UrlRewrite => f.write_str("URLRewrite"),
            Self::Cors => f.write_str("CORS"),
            other => write!(f, "{other:?}"),
        }
    }
}

/// Answers with another place; what is not said stays as the request has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<At<String>>,
    /// Precise hostname.
    pub hostname: Option<At<String>>,
    /// Path.
    pub path: Option<At<PathModifier>>,
    /// Port.
    pub port: Option<At<u16>>,
    /// 301, 302 (default), 303, 307 or 308.
    pub status_code: Option<At<u16>>,
}

/// Changes the request's path and host.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// Precise hostname.
    pub hostname: Option<At<String>>,
    /// Path.
    pub path: Option<At<PathModifier>>,
}

/// Another path.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// Which of the fields below counts.
    #[serde(rename = "type")]
    pub how: At<PathModifierType>,
    /// Of `ReplaceFullPath`.
    pub replace_full_path: Option<At<String>>,
    /// Of `ReplacePrefixMatch`; may be empty.
    pub replace_prefix_match: Option<At<String>>,
}

/// `HTTPPathModifier.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum PathModifierType {
    /// The whole path.
    ReplaceFullPath,
    /// The elements that the rule's only match asks for.
    ReplacePrefixMatch,
}

/// Set, then add, then remove.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Overwrites.
    #[serde(default)]
    pub set: Vec<At<Header>>,
    /// Appends.
    #[serde(default)]
    pub add: Vec<At<Header>>,
    /// Removes.
    #[serde(default)]
    pub remove: Vec<At<String>>,
}

/// A header field.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Name.
    pub name: At<String>,
    /// Value.
    pub value: At<String>,
}
