//! Routes of connections that are no HTTP: by the name that a TLS client asks for, or by nothing but the port.
//!
//! Invariants
//! - Precedence is Gateway API's: an exact hostname, then the longest wildcard, then a route without hostnames; of equals the oldest route,
//!   then `namespace/name`. It is computed once, when the table is made.
//! - A more specific kind of route hides the others from what it is about, in GEP-1294's order: HTTPRoute and GRPCRoute from requests,
//!   TLSRoute from TLS, TCPRoute takes what is left. What a TLSRoute is attached to refuses TLS that none of its routes matches.
//! - Names are compared without regard to case and without the root's dot.

use std::cmp::Reverse;
use std::sync::Arc;

use super::table::{RouteTable, by_age};
use super::{Layer, Route, Rule, pick_backend};
use crate::reason::Reason;

/// Longest host name, in bytes (RFC 1035 section 2.3.4, in text and without the root's dot).
pub const MAX_HOSTNAME: usize = 253;

/// A name that TLS clients ask for, or `*.` and the end of such names: `*.example.com` takes `a.example.com` and `a.b.example.com`, not
/// `example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostname(Arc<str>);

/// What was written is no host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHostname {
    /// TLS clients do not ask for addresses (RFC 6066 section 3).
    #[error("an IP address is no name that a TLS client asks for")]
    Address,
    /// A label is empty, too long, or has characters that none may have.
    #[error("not a host name: labels of letters, digits and `-`, and at most a whole `*` as the first")]
    Malformed,
}

impl Hostname {
    /// Reads one, in lower case and without the root's dot.
    ///
    /// # Errors
    /// [`BadHostname`].
    pub fn parse(text: &str) -> Result<Self, BadHostname> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let name = text.strip_prefix("*.").unwrap_or(text);
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Err(BadHostname::Address);
        }
        if text.len() > MAX_HOSTNAME || !name.split('.').all(is_label) {
            return Err(BadHostname::Malformed);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// As it is written.
    pub fn text(&self) -> &Arc<str> {
        &self.0
    }

    /// Whether a client that asks for `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        match self.0.strip_prefix('*') {
            // With its dot: what stands before is one label at least, and whole labels.
            Some(end) => name.len() > end.len() && name[name.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes()),
            None => name.eq_ignore_ascii_case(self.0.as_bytes()),
        }
    }

    fn is_wildcard(&self) -> bool {
        self.0.starts_with('*')
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// How a connection that is no HTTP begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening<'a> {
    /// With a ClientHello.
    Tls {
        /// The name that it asks for (SNI), if any.
        sni: Option<&'a str>,
    },
    /// With anything else, or with the server's word.
    Opaque,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// The rule that took it.
    pub rule: &'a Rule,
    /// The hostname that matched; none if the rule's route has none.
    pub hostname: Option<&'a Hostname>,
}

/// The compiled rules of all TLSRoutes and TCPRoutes of one service port.
#[derive(Clone, Debug, Default)]
pub struct ConnectionTable {
    rules: Vec<Rule>,
    /// Some TLSRoute is attached.
    tls: bool,
    /// Hostnames with the place of their rule, in order of precedence; `None` takes any client.
    names: Vec<(Option<Hostname>, usize)>,
    /// The place of the rule that takes all the rest.
    tcp: Option<usize>,
}

impl ConnectionTable {
    /// Sorts the names of all routes once; the order in which the routes are given does not matter. Of a route without matches only the first
    /// rule can take anything.
    fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by(by_age);
        let mut table = Self { tls: routes.iter().any(|route| route.layer == Layer::Tls), ..Self::default() };
        for route in routes {
            let place = table.rules.len();
            if !route.rules.is_empty() {
                match route.layer {
                    Layer::Tls if route.hostnames.is_empty() => table.names.push((None, place)),
                    Layer::Tls => table.names.extend(route.hostnames.into_iter().map(|name| (Some(name), place))),
                    Layer::Http | Layer::Tcp => table.tcp = table.tcp.or(Some(place)),
                }
            }
            table.rules.extend(route.rules);
        }
        // Stable: age and name have settled what is equal.
        table.names.sort_by_key(|(name, _)| match name {
            Some(name) if !name.is_wildcard() => (0, Reverse(0)),
            Some(name) => (1, Reverse(name.0.len())),
            None => (2, Reverse(0)),
        });
        table
    }

    /// Whether a ClientHello decides: then it has to be read before any endpoint is called.
    pub fn reads_tls(&self) -> bool {
        self.tls
    }

    /// The rule that takes a connection. `None`: no route is about it, it goes to the service's own endpoints.
    ///
    /// # Errors
    /// [`Reason::NoRoute`]: it is TLS, TLSRoutes are attached, and none of them matches.
    pub fn select(&self, opening: Opening<'_>) -> Result<Option<Taken<'_>>, Reason> {
        let Opening::Tls { sni } = opening else { return Ok(self.rest()) };
        if !self.tls {
            return Ok(self.rest());
        }
        let asked = |name: &Option<Hostname>| match (name, sni) {
            (None, _) => true,
            (Some(name), Some(sni)) => name.matches(sni),
            (Some(_), None) => false,
        };
        let (hostname, rule) = self.names.iter().find(|(name, _)| asked(name)).ok_or(Reason::NoRoute)?;
        Ok(Some(Taken { rule: &self.rules[*rule], hostname: hostname.as_ref() }))
    }

    fn rest(&self) -> Option<Taken<'_>> {
        self.tcp.map(|rule| Taken { rule: &self.rules[rule], hostname: None })
    }

    /// All rules: routes by age and name.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl<'a> Taken<'a> {
    /// The backend for one connection, a place in `rule.backends`; `random` is uniform over all of `u64`.
    ///
    /// # Errors
    /// [`Reason::InvalidBackend`]: there is none with a weight, or the draw fell on one that cannot be used.
    pub fn backend(&self, random: u64) -> Result<&'a super::Backend, Reason> {
        let index = pick_backend(&self.rule.backends, random).ok_or(Reason::InvalidBackend)?;
        let backend = &self.rule.backends[index];
        if backend.invalid.is_some() { Err(Reason::InvalidBackend) } else { Ok(backend) }
    }
}

/// All routes of one service port, by what they look at.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// What takes HTTP requests. `None`: no route is about them, they go to the service's own endpoints.
    pub requests: Option<RouteTable>,
    /// What takes other connections. `None`: as above.
    pub connections: Option<ConnectionTable>,
}

impl Tables {
    /// Shares the routes out. Requests are taken by TCPRoutes where no HTTPRoute and no GRPCRoute is attached: they travel on connections of that port, too.
    pub fn new(routes: Vec<Route>) -> Self {
        let (http, others): (Vec<_>, Vec<_>) = routes.into_iter().partition(|route| route.layer == Layer::Http);
        let tcp: Vec<Route> = others.iter().filter(|route| route.layer == Layer::Tcp).cloned().collect();
        let requests = if http.is_empty() { tcp } else { http };
        Self {
            requests: (!requests.is_empty()).then(|| RouteTable::new(requests)),
            connections: (!others.is_empty()).then(|| ConnectionTable::new(others)),
        }
    }
}

#[cfg(test)]
mod tests;
