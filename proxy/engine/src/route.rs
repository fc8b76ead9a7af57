//! Route tables: which rule of a service's routes takes a request, or a connection that is no HTTP ([`ConnectionTable`]).
//!
//! Of requests precedence is Gateway API's (HTTPRoute `matches`): exact path, then the longest prefix (a regular expression counts as a prefix of
//! its length), then a method, then most headers, then most query parameters, then the oldest route, then `namespace/name`, then
//! the first rule, then the first match. Of a GRPCRoute it is the most characters of the service, then of the method, then most headers, then
//! as above. It is computed once, when the table is made.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use crate::retry::Retry;

mod apply;
mod connection;
mod cors;
mod filters;
mod matching;
mod rewrite;
mod table;

pub use apply::pick_backend;
pub use connection::{BadHostname, ConnectionTable, Hostname, MAX_HOSTNAME, Opening, Tables, Taken};
pub use cors::{BadOrigin, Cors, Listed, Origin, Origins};
pub use filters::{Answer, Ended, Filters};
pub use matching::{BadRegex, whole_regex};
pub use rewrite::{Called, PathEdit, Redirect, Rewrite, Rewritten, Scheme};
pub use table::{Choice, RouteTable};

/// One rule: where requests go, and what is done to them.
#[derive(Clone, Debug, Default)]
pub struct Rule {
    /// `KIND/NAMESPACE/NAME` of the route it stands in.
    pub route: Arc<str>,
    /// The rule's own name, or its index.
    pub name: Arc<str>,
    /// FILE:LINE.
    pub source: Arc<str>,
    /// Any of these; none means every request.
    pub matches: Vec<Match>,
    /// Applied to each request of the rule, in order.
    pub filters: Vec<Filter>,
    /// Where to, by weight.
    pub backends: Vec<Backend>,
    /// The whole request, retries included.
    pub request_timeout: Option<Duration>,
    /// One attempt.
    pub backend_request_timeout: Option<Duration>,
    /// Further attempts, beyond those that are safe anyway.
    pub retry: Option<Retry>,
}

impl Rule {
    /// The services that it needs: of its backends and of its mirrors, those that can be used.
    pub fn services(&self) -> impl Iterator<Item = &Arc<str>> {
        let backends = self.backends.iter().filter(|backend| backend.invalid.is_none()).map(|backend| &backend.service);
        let filters = self.filters.iter().chain(self.backends.iter().flat_map(|backend| &backend.filters));
        let mirrors =
            filters.filter_map(|filter| if let Filter::Mirror(mirror) = filter { Some(mirror) } else { None });
        backends.chain(mirrors.filter(|mirror| mirror.invalid.is_none()).map(|mirror| &mirror.service))
    }
}

/// A route as it comes from one object.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// `KIND/NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// Smaller is older.
    pub created: u64,
    /// What its rules look at.
    pub layer: Layer,
    /// Of a TLSRoute: the names that its clients ask for. None: whatever they ask for, or nothing.
    pub hostnames: Vec<Hostname>,
    /// In the order in which they are written.
    pub rules: Vec<Rule>,
}

/// What the rules of a route look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// Requests: HTTPRoute, GRPCRoute.
    #[default]
    Http,
    /// The name that a TLS client asks for: TLSRoute.
    Tls,
    /// Nothing: TCPRoute.
    Tcp,
}

/// All of these must hold.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// `None` matches every path.
    pub path: Option<PathMatch>,
    /// `None` matches every method.
    pub method: Option<Method>,
    /// Header fields; the name is case-insensitive, one of the field's values must match.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// Query parameters, percent-decoded; the first value of a repeated name counts.
    pub query: Vec<(String, ValueMatch)>,
}

/// How a path matches.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole path elements: `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`. A trailing slash is ignored.
    Prefix(String),
    /// The whole path: must come from [`whole_regex`], which anchors it.
    Regex(regex::Regex),
}

/// How a header's or parameter's value matches.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// The whole value: must come from [`whole_regex`], which anchors it.
    Regex(regex::Regex),
}

/// What is done to a request or its response.
#[derive(Clone, Debug)]
pub enum Filter {
    /// To the request, before it leaves.
    RequestHeaders(HeaderEdit),
    /// To the response, before it is passed on.
    ResponseHeaders(HeaderEdit),
    /// The request is answered with another place.
    Redirect(Redirect),
    /// To the request's path or host, before it leaves.
    Rewrite(Rewrite),
    /// Preflights are answered, and responses say who may read them.
    Cors(Cors),
    /// A copy goes elsewhere, and what comes of that is nobody's.
    Mirror(Mirror),
}

/// Where copies of requests go (Gateway API HTTPRequestMirrorFilter).
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// Resource name of the service.
    pub service: Arc<str>,
    /// Of `denominator` requests so many are copied.
    pub numerator: u32,
    /// At least 1.
    pub denominator: u32,
    /// Why it cannot be used; then nothing is copied.
    pub invalid: Option<Arc<str>>,
}

/// Header modifier: set, then add, then remove (Gateway API HTTPHeaderFilter).
#[derive(Clone, Debug, Default)]
pub struct HeaderEdit {
    /// Overwrites.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appends.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Removes.
    pub remove: Vec<HeaderName>,
}

/// A weighted reference to a service.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    /// Resource name of the service: `service/NAMESPACE/NAME:PORT`.
    pub service: Arc<str>,
    /// Share of requests: weight / sum of weights.
    pub weight: u32,
    /// Applied to requests that go to this backend only.
    pub filters: Vec<Filter>,
    /// Why it cannot be used; its share is answered 500.
    pub invalid: Option<Arc<str>>,
}
