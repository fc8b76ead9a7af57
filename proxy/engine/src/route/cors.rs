//! Cross-origin requests of browsers (Gateway API HTTPCORSFilter, the Fetch standard's CORS protocol).
//!
//! Invariants
//! - The filter alone says who may read a response: what the application says of that is removed.
//! - The origin is echoed, never `*`: what is allowed without credentials is then allowed in the same words. A response that depends on it says
//!   so (`Vary`), with or without an origin in the request.
//! - A preflight is answered whether or not it is allowed; one that is not lacks the fields, so that the browser refuses.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::HeaderEdit;
use super::rewrite::Scheme;
use crate::request::RequestView;

/// Who may call across origins, and how.
#[derive(Clone, Debug)]
pub struct Cors {
    /// Who.
    pub origins: Origins,
    /// Whether with cookies and the like.
    pub credentials: bool,
    /// With which methods, beside GET, HEAD and POST.
    pub methods: Listed,
    /// With which header fields, beside those that browsers always send.
    pub headers: Listed,
    /// Which fields of responses scripts may read.
    pub expose: Listed,
    /// For how long a browser may keep the answer to a preflight, in seconds.
    pub max_age: u32,
}

/// Names that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Listed {
    /// Nothing is said.
    #[default]
    None,
    /// All.
    Any,
    /// These, as a field's value.
    These(HeaderValue),
}

impl Listed {
    /// A list of names, or `*` alone; `None` if no field can hold it.
    pub fn of(names: &[String]) -> Option<Self> {
        match names {
            [] => Some(Self::None),
            [any] if any == "*" => Some(Self::Any),
            names => HeaderValue::try_from(names.join(", ")).ok().map(Self::These),
        }
    }

    // What is answered to one who asks for `asked`.
    fn told(&self, asked: Option<&[u8]>) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Any => asked.and_then(|asked| HeaderValue::from_bytes(asked).ok()),
            Self::These(names) => Some(names.clone()),
        }
    }
}

/// Origins that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// All, `null` too.
    Any,
    /// These.
    These(Vec<Origin>),
}

/// `SCHEME://HOST[:PORT]`; the host may be `*`, or begin with `*.`, which stands for one label or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Any,
    Exact(String),
    // With the dot that it begins with.
    Under(String),
}

/// Not `SCHEME://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no origin: write http://HOST or https://HOST, with :PORT if it has one of its own; HOST may begin with `*.`"
)]
pub struct BadOrigin(String);

impl Origin {
    /// Reads one.
    ///
    /// # Errors
    /// [`BadOrigin`].
    pub fn parse(text: &str) -> Result<Self, BadOrigin> {
        let bad = || BadOrigin(text.chars().take(100).collect());
        let (scheme, host, port) = parts(text.as_bytes()).ok_or_else(bad)?;
        let host = std::str::from_utf8(host).map_err(|_| bad())?.to_ascii_lowercase();
        let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let name = |name: &str| name.split('.').all(label);
        let host = match host.strip_prefix('*') {
            Some("") => Host::Any,
            Some(end) if end.strip_prefix('.').is_some_and(name) => Host::Under(end.to_owned()),
            None if name(&host) => Host::Exact(host),
            _ => return Err(bad()),
        };
        Ok(Self { scheme, host, port })
    }

    fn takes(&self, (scheme, host, port): (Scheme, &[u8], u16)) -> bool {
        let named = match &self.host {
            Host::Any => true,
            Host::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
            Host::Under(end) => {
                host.len() > end.len() && host[host.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
            }
        };
        named && self.scheme == scheme && self.port == port
    }
}

// Scheme, host and port; `None` if it is no http origin.
fn parts(origin: &[u8]) -> Option<(Scheme, &[u8], u16)> {
    let (scheme, rest) =
        [(Scheme::Http, &b"http://"[..]), (Scheme::Https, b"https://")].into_iter().find_map(|(scheme, begins)| {
            let head = origin.get(..begins.len())?;
            head.eq_ignore_ascii_case(begins).then(|| (scheme, &origin[begins.len()..]))
        })?;
    // The colons of an address in brackets are none of a port.
    let colon = rest.iter().rposition(|b| *b == b':').filter(|at| !rest[*at..].contains(&b']'));
    let (host, port) = match colon {
        None => (rest, scheme.port()),
        Some(at) => {
            let digits =
                std::str::from_utf8(&rest[at + 1..]).ok().filter(|it| it.bytes().all(|b| b.is_ascii_digit()))?;
            (&rest[..at], digits.parse().ok().filter(|port| *port != 0)?)
        }
    };
    (!host.is_empty() && !host.contains(&b'/')).then_some((scheme, host, port))
}

impl Cors {
    // The request's origin, if it is allowed.
    fn allowed(&self, request: &RequestView<'_>) -> Option<HeaderValue> {
        let origin = only(request, &ORIGIN)?;
        let allowed = match &self.origins {
            Origins::Any => true,
            Origins::These(known) => parts(origin).is_some_and(|asked| known.iter().any(|origin| origin.takes(asked))),
        };
        allowed.then(|| HeaderValue::from_bytes(origin).ok())?
    }

    /// The fields that answer a preflight; `None`: the request is none.
    pub fn preflight(&self, request: &RequestView<'_>) -> Option<HeaderMap> {
        let asked = only(request, &ACCESS_CONTROL_REQUEST_METHOD).filter(|_| *request.method == Method::OPTIONS)?;
        only(request, &ORIGIN)?;
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = self.allowed(request) else { return Some(headers) };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        let told = [
            (ACCESS_CONTROL_ALLOW_METHODS, self.methods.told(Some(asked))),
            (ACCESS_CONTROL_ALLOW_HEADERS, self.headers.told(only(request, &ACCESS_CONTROL_REQUEST_HEADERS))),
            (ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed()),
        ];
        headers.extend(told.into_iter().filter_map(|(name, value)| Some((name, value?))));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        Some(headers)
    }

    /// What becomes of the response to any other request.
    pub fn edit(&self, request: &RequestView<'_>) -> HeaderEdit {
        let mut edit = HeaderEdit { add: vec![(VARY, HeaderValue::from_static("origin"))], ..HeaderEdit::default() };
        let allowed = self.allowed(request);
        let exposed = allowed.as_ref().and_then(|_| self.exposed());
        let credentials = allowed.as_ref().filter(|_| self.credentials).map(|_| HeaderValue::from_static("true"));
        for (name, value) in [
            (ACCESS_CONTROL_ALLOW_ORIGIN, allowed),
            (ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials),
            (ACCESS_CONTROL_EXPOSE_HEADERS, exposed),
        ] {
            match value {
                Some(value) => edit.set.push((name, value)),
                None => edit.remove.push(name),
            }
        }
        edit
    }

    // With credentials `*` would be a field of that name.
    fn exposed(&self) -> Option<HeaderValue> {
        match &self.expose {
            Listed::Any if self.credentials => None,
            Listed::Any => Some(HeaderValue::from_static("*")),
            other => other.told(None),
        }
    }
}

// The value of a field that is there once.
fn only<'a>(request: &RequestView<'a>, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = request.headers.values(name);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        let origins = match origins {
            ["*"] => Origins::Any,
            listed => Origins::These(listed.iter().map(|text| Origin::parse(text).unwrap()).collect()),
        };
        let listed =
            |names: &[&str]| Listed::of(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        let (methods, headers) = (listed(&["GET", "OPTIONS"]), listed(&["x-header-1", "x-header-2"]));
        Cors { origins, credentials, methods, headers, expose: listed(&["x-header-3"]), max_age: 3600 }
    }

    fn ask<T>(method: &Method, fields: &[(&'static str, &str)], ask: impl Fn(&RequestView<'_>) -> T) -> T {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        ask(&RequestView { method, path: "/", query: None, headers: (&headers).into() })
    }

    #[test]
    fn origins_are_compared_by_scheme_host_and_port() {
        for (known, asked, yes) in [
            ("https://www.foo.com", "https://www.foo.com", true),
            ("https://www.foo.com", "HTTPS://WWW.foo.com:443", true),
            ("https://www.foo.com:443", "https://www.foo.com", true),
            ("https://www.foo.com", "http://www.foo.com", false),
            ("https://www.foo.com", "https://www.foo.com:8443", false),
            ("https://www.foo.com", "https://www.foo.com.evil.com", false),
            ("https://www.foo.com", "https://evil.com/https://www.foo.com", false),
            ("https://*.bar.com", "https://www.bar.com", true),
            ("https://*.bar.com", "https://xpto.www.bar.com", true),
            ("https://*.bar.com", "https://bar.com", false),
            ("https://*.bar.com", "https://.bar.com", false),
            ("https://*.bar.com", "https://evilbar.com", false),
            ("https://*", "https://anything", true),
            ("https://*", "https://anything:8443", false),
            ("http://*:8080", "http://[::1]:8080", true),
            ("http://*", "http://a:080", true),
            ("http://*", "http://a:", false),
            ("http://*", "http://a:+80", false),
            ("http://*", "http://", false),
            ("http://*", "null", false),
        ] {
            let allowed = ask(&Method::GET, &[("origin", asked)], |view| cors(&[known], false).allowed(view));
            assert_eq!(allowed.is_some(), yes, "{known} {asked}");
        }
        for bad in [
            "",
            "www.foo.com",
            "ftp://a",
            "https://",
            "https://a b",
            "https://a:0",
            "https://a:65536",
            "https://a/",
            "https://*a",
            "https://a.*",
            "https://*.*.a",
            "https://[::1]",
        ] {
            assert!(Origin::parse(bad).is_err(), "{bad}");
        }
        assert!(ask(&Method::GET, &[("origin", "null")], |view| cors(&["*"], false).allowed(view)).is_some());
        let two = [("origin", "https://a"), ("origin", "https://a")];
        assert!(ask(&Method::GET, &two, |view| cors(&["*"], false).allowed(view)).is_none());
    }

    /// The conformance suite's cases of HTTPRouteCORS.
    #[test]
    fn preflights_are_answered_as_the_filter_says() {
        let preflight =
            |cors: &Cors, fields: &[(&'static str, &str)]| ask(&Method::OPTIONS, fields, |view| cors.preflight(view));
        let asks = |origin| vec![("origin", origin), ("access-control-request-method", "PUT")];
        let told = preflight(&cors(&["https://www.foo.com"], true), &asks("https://www.foo.com")).unwrap();
        let expected = [
            ("vary", "origin"),
            ("access-control-allow-origin", "https://www.foo.com"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, OPTIONS"),
            ("access-control-allow-headers", "x-header-1, x-header-2"),
            ("access-control-expose-headers", "x-header-3"),
            ("access-control-max-age", "3600"),
        ];
        assert_eq!(
            told,
            HeaderMap::from_iter(expected.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())))
        );
        let told = preflight(&cors(&["https://www.foo.com"], true), &asks("https://foobar.com")).unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        // `*` stands for what is asked, with and without credentials.
        for credentials in [true, false] {
            let any =
                Cors { methods: Listed::Any, headers: Listed::Any, expose: Listed::Any, ..cors(&["*"], credentials) };
            let told = preflight(&any, &asks("https://a:12345")).unwrap();
            assert_eq!(told["access-control-allow-origin"], "https://a:12345");
            assert_eq!(told["access-control-allow-methods"], "PUT");
            assert!(!told.contains_key("access-control-allow-headers"));
            assert_eq!(told.contains_key("access-control-allow-credentials"), credentials);
            assert_eq!(told.get("access-control-expose-headers").is_some(), !credentials);
            let mut asks = asks("https://a");
            asks.push(("access-control-request-headers", "x-header-1, x-header-2"));
            assert_eq!(preflight(&any, &asks).unwrap()["access-control-allow-headers"], "x-header-1, x-header-2");
        }
        // No preflights.
        assert!(preflight(&cors(&["*"], false), &[("origin", "https://a")]).is_none());
        assert!(preflight(&cors(&["*"], false), &[("access-control-request-method", "PUT")]).is_none());
        assert!(ask(&Method::GET, &asks("https://a"), |view| cors(&["*"], false).preflight(view)).is_none());
    }

    #[test]
    fn only_the_filter_says_who_may_read_a_response() {
        let mut sent = HeaderMap::new();
        for name in ["access-control-allow-origin", "access-control-expose-headers", "access-control-allow-credentials"]
        {
            sent.insert(name, "*".parse().unwrap());
        }
        sent.insert("vary", "accept".parse().unwrap());
        let answered = |fields: &[(&'static str, &str)], credentials| {
            let mut headers = sent.clone();
            ask(&Method::GET, fields, |view| cors(&["https://a"], credentials).edit(view)).apply(&mut headers);
            assert_eq!(headers.get_all("vary").iter().collect::<Vec<_>>(), ["accept", "origin"]);
            headers.remove("vary");
            headers
        };
        let told = answered(&[("origin", "https://a")], true);
        assert_eq!(
            (&told["access-control-allow-origin"], &told["access-control-allow-credentials"]),
            (&"https://a".parse().unwrap(), &"true".parse().unwrap())
        );
        assert_eq!(told["access-control-expose-headers"], "x-header-3");
        assert_eq!(answered(&[("origin", "https://a")], false).len(), 2);
        assert!(answered(&[("origin", "https://b")], true).is_empty());
        assert!(answered(&[], true).is_empty());
    }
}
