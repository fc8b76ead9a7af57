//! Redirects and rewrites (Gateway API HTTPRequestRedirectFilter, HTTPURLRewriteFilter): another path, another host.
//!
//! Paths are edited as they were sent, percent-encoding untouched; the query stays. `*` (of OPTIONS) and a path that does not begin as the
//! rule's match says stay as they are.

use std::net::SocketAddr;

use http::{HeaderValue, StatusCode};

use crate::request::RequestView;

/// What becomes of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEdit {
    /// This one, whatever it was.
    Full(String),
    /// Its first elements are replaced.
    Prefix {
        /// The elements that the rule's only match asks for.
        prefix: String,
        /// What stands in their place; empty: nothing.
        with: String,
    },
}

/// How a redirect's target is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

impl Scheme {
    /// As it is written.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(super) const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Sends a client elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `None`: `http`, as the request came.
    pub scheme: Option<Scheme>,
    /// `None`: the name that the client has called.
    pub host: Option<String>,
    /// `None`: the scheme's own if a scheme is said, else the port that the client has called.
    pub port: Option<u16>,
    /// `None`: the request's.
    pub path: Option<PathEdit>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Changes where a request says that it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Instead of the name that the client has called.
    pub host: Option<HeaderValue>,
    /// Of its path.
    pub path: Option<PathEdit>,
}

/// A rewritten request; `None` stays as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewritten<'a> {
    /// Its `Host` or `:authority`.
    pub host: Option<&'a HeaderValue>,
    /// Its path, without the query.
    pub path: Option<String>,
}

/// By what name a server was called, and where.
#[derive(Clone, Copy, Debug)]
pub struct Called<'a> {
    /// `Host` or `:authority` as it was sent, with its port; empty if the client has said none.
    pub authority: &'a [u8],
    /// Where its connection went.
    pub address: SocketAddr,
}

impl PathEdit {
    /// The new path.
    pub fn apply(&self, path: &str) -> String {
        match self {
            Self::Full(new) => new.clone(),
            Self::Prefix { prefix, with } => {
                let bare = |text: &'_ str| text.strip_suffix('/').unwrap_or(text).to_owned();
                let rest = path.strip_prefix(&*bare(prefix));
                let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
                    return path.to_owned();
                };
                let made = bare(with) + rest;
                if made.is_empty() { "/".to_owned() } else { made }
            }
        }
    }
}

impl Redirect {
    /// The value of `Location`.
    pub fn location(&self, request: &RequestView<'_>, called: &Called<'_>) -> Vec<u8> {
        let scheme = self.scheme.unwrap_or(Scheme::Http);
        let port = self.port.or(self.scheme.map(Scheme::port)).unwrap_or(called.address.port());
        let mut location = format!("{}://", scheme.text()).into_bytes();
        match &self.host {
            Some(host) => location.extend_from_slice(host.as_bytes()),
            None => location.extend_from_slice(&called.host()),
        }
        if port != scheme.port() {
            location.extend_from_slice(format!(":{port}").as_bytes());
        }
        match &self.path {
            Some(edit) => location.extend_from_slice(edit.apply(request.path).as_bytes()),
            // `*` is no path of an address.
            None if request.path.starts_with('/') => location.extend_from_slice(request.path.as_bytes()),
            None => {}
        }
        if let Some(query) = request.query {
            location.push(b'?');
            location.extend_from_slice(query.as_bytes());
        }
        location
    }
}

impl Called<'_> {
    // The name without its port; brackets stay.
    fn host(&self) -> Vec<u8> {
        let name = self.authority;
        let colon = name.iter().rposition(|b| *b == b':').filter(|at| !name[*at..].contains(&b']'));
        match &name[..colon.unwrap_or(name.len())] {
            [] => match self.address {
                SocketAddr::V4(address) => address.ip().to_string().into_bytes(),
                SocketAddr::V6(address) => format!("[{}]", address.ip()).into_bytes(),
            },
            name => name.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};
    use proptest::prelude::*;

    use super::*;
    use crate::route::PathMatch;

    fn prefix(prefix: &str, with: &str) -> PathEdit {
        PathEdit::Prefix { prefix: prefix.to_owned(), with: with.to_owned() }
    }

    /// The table of HTTPPathModifier, and what it leaves open.
    #[test]
    fn prefixes_are_replaced_by_whole_elements() {
        for (path, from, with, made) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/fo%6f/b", "/foo", "/xyz", "/fo%6f/b"),
            ("/foo//b%2Fc", "/foo", "/xyz", "/xyz//b%2Fc"),
            ("*", "/", "/xyz", "*"),
        ] {
            assert_eq!(prefix(from, with).apply(path), made, "{path} {from} {with}");
        }
        assert_eq!(PathEdit::Full("/new".into()).apply("/old"), "/new");
    }

    proptest! {
        #[test]
        fn what_matched_stays_a_path_and_keeps_its_rest(
            from in "(/[a-c]{1,2}){0,2}/?", rest in "(/[a-c]{0,2}){0,3}", with in "(/[x-z]{1,2}){0,2}/?",
        ) {
            let from = if from.is_empty() { "/".to_owned() } else { from };
            let path = format!("{}{rest}", from.trim_end_matches('/'));
            let path = if path.is_empty() { "/".to_owned() } else { path };
            prop_assert!(PathMatch::Prefix(from.clone()).matches(&path));
            let made = prefix(&from, &with).apply(&path);
            prop_assert!(made.starts_with('/') && made.ends_with(&rest), "{path} -> {made}");
            prop_assert!(with.is_empty() || with == "/" || PathMatch::Prefix(with.clone()).matches(&made), "{made}");
            // Back again.
            if !with.trim_end_matches('/').is_empty() && !from.trim_end_matches('/').is_empty() {
                prop_assert_eq!(prefix(&with, &from).apply(&made), path);
            }
        }
    }

    fn located(redirect: &Redirect, target: &str, authority: &str, address: &str) -> String {
        let headers = HeaderMap::new();
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let request = RequestView { method: &Method::GET, path, query, headers: (&headers).into() };
        let called = Called { authority: authority.as_bytes(), address: address.parse().unwrap() };
        String::from_utf8(redirect.location(&request, &called)).unwrap()
    }

    /// HTTPRequestRedirectFilter's rules for host, scheme and port.
    #[test]
    fn a_redirect_says_what_changes_and_keeps_the_rest() {
        use Scheme::{Http, Https};
        let to = |scheme, host: Option<&str>, port, path| Redirect {
            scheme,
            host: host.map(str::to_owned),
            port,
            path,
            status: StatusCode::FOUND,
        };
        let (at80, at8080) = ("10.0.0.1:80", "10.0.0.1:8080");
        let full = Some(PathEdit::Full("/full".into()));
        for (redirect, target, authority, address, wanted) in [
            (to(None, Some("example.org"), None, None), "/a?b=c", "shop", at80, "http://example.org/a?b=c"),
            (to(None, Some("example.org"), None, None), "/a", "shop:8080", at8080, "http://example.org:8080/a"),
            (to(None, None, None, None), "/a", "shop:1234", at8080, "http://shop:8080/a"),
            (to(None, None, Some(80), None), "/a", "shop:8080", at8080, "http://shop/a"),
            (to(None, None, Some(8083), None), "/a", "shop", at80, "http://shop:8083/a"),
            (to(None, None, Some(443), None), "/a", "shop", at80, "http://shop:443/a"),
            (to(Some(Https), None, None, None), "/a", "shop:8080", at8080, "https://shop/a"),
            (to(Some(Https), None, Some(443), None), "/a", "shop", at80, "https://shop/a"),
            (to(Some(Https), None, Some(8443), None), "/a", "shop", at80, "https://shop:8443/a"),
            (to(Some(Https), None, Some(80), None), "/a", "shop", at80, "https://shop:80/a"),
            (to(Some(Http), None, None, None), "/a", "shop:8080", at8080, "http://shop/a"),
            (to(None, None, None, full), "/a?b", "[::1]:80", "[::1]:80", "http://[::1]/full?b"),
            (to(None, None, None, Some(prefix("/a", "/z"))), "/a/b", "[::1]", at80, "http://[::1]/z/b"),
            (to(None, None, None, None), "/", "", at8080, "http://10.0.0.1:8080/"),
            (to(None, None, None, None), "*", "", "[::1]:80", "http://[::1]"),
        ] {
            assert_eq!(located(&redirect, target, authority, address), wanted, "{redirect:?}");
        }
    }
}
