//! Whether one match takes a request.
//!
//! Routes look at the path as it was sent (percent-encoding untouched): they choose where a request goes, they guard nothing.
//! Authorization has a stricter reading of its own ([`crate::authz::Readings`]).

use std::borrow::Cow;

use http::HeaderName;
use regex::{Regex, RegexBuilder};

use super::{Match, PathMatch, ValueMatch};
use crate::authz::Readings;
use crate::request::RequestView;

/// Longest pattern that people may write, in bytes (Gateway API).
const MAX_PATTERN: usize = 4096;
/// Most memory that one compiled pattern may take, in bytes (the crate's own default is 10 MiB: too much for a sidecar).
const MAX_COMPILED: usize = 1 << 20;
const OPEN: &str = r"\A(?:";
const CLOSE: &str = r")\z";

/// The pattern is no regular expression of crate `regex`, or too large.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a usable regular expression: {why}; write it in RE2 syntax, at most {MAX_PATTERN} bytes")]
pub struct BadRegex {
    /// What was written, cut after 100 characters.
    pub pattern: String,
    /// One line.
    pub why: String,
}

/// A regular expression that matches whole texts only (Gateway API leaves anchoring open; Envoy and Istio match whole).
pub fn whole_regex(pattern: &str) -> Result<Regex, BadRegex> {
    let refuse = |why: String| BadRegex { pattern: pattern.chars().take(100).collect(), why };
    if pattern.len() > MAX_PATTERN {
        return Err(refuse(format!("{} bytes long", pattern.len())));
    }
    let compile = |text: &str| {
        RegexBuilder::new(text).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build().map_err(|error| {
            let text = error.to_string();
            refuse(text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
        })
    };
    // Alone first: `a)|(b` would close the group that anchors it.
    compile(pattern)?;
    compile(&format!("{OPEN}{pattern}{CLOSE}"))
}

/// The pattern as it was written.
pub(super) fn written(regex: &Regex) -> &str {
    let text = regex.as_str();
    text.strip_prefix(OPEN).and_then(|text| text.strip_suffix(CLOSE)).unwrap_or(text)
}

impl Match {
    /// Whether all of it holds for a request.
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        self.matches_where(request, |wanted| wanted.matches(request.path))
    }

    /// Whether any reading of its path lets it take a request: for limits, which no spelling shall escape.
    pub fn matches_any(&self, request: &RequestView<'_>, readings: &Readings<'_>) -> bool {
        self.matches_where(request, |wanted| match readings {
            Readings::Plain(path) => wanted.matches(path),
            Readings::Several(paths) => wanted.matches(request.path) || paths.iter().any(|path| wanted.matches(path)),
            Readings::Unreadable => true,
        })
    }

    fn matches_where(&self, request: &RequestView<'_>, path: impl Fn(&PathMatch) -> bool) -> bool {
        self.path.as_ref().is_none_or(path)
            && self.method.as_ref().is_none_or(|wanted| wanted == request.method)
            && self.headers.iter().all(|(name, wanted)| header_matches(request, name, wanted))
            && self.query.iter().all(|(name, wanted)| query_matches(request.query.unwrap_or(""), name, wanted))
    }
}

impl PathMatch {
    /// Whether it takes a path (without query).
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == path,
            Self::Prefix(prefix) => {
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                // `/` is every path, `*` of OPTIONS too.
                prefix.is_empty()
                    || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

impl ValueMatch {
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }

    fn matches_header(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == value,
            Self::Regex(regex) => std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
        }
    }
}

fn header_matches(request: &RequestView<'_>, name: &HeaderName, wanted: &ValueMatch) -> bool {
    request.headers.values(name).any(|value| wanted.matches_header(value))
}

/// The first parameter of that name counts (Gateway API: what a repeated one means is left open).
fn query_matches(query: &str, name: &str, wanted: &ValueMatch) -> bool {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(found, _)| decode_parameter(found) == name)
        .is_some_and(|(_, value)| wanted.matches(&decode_parameter(value)))
}

/// `application/x-www-form-urlencoded`: `%XX` and `+`. What is no valid escape stays as it is.
fn decode_parameter(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, taken) = match bytes[at] {
            b'+' => (b' ', 1),
            b'%' => crate::authz::escape_at(bytes, at).map_or((b'%', 1), |byte| (byte, 3)),
            other => (other, 1),
        };
        out.push(byte);
        at += taken;
    }
    match String::from_utf8_lossy(&out) {
        Cow::Borrowed(text) => Cow::Owned(text.to_owned()),
        Cow::Owned(text) => Cow::Owned(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::read_request;
    use crate::request::Headers;
    use http::{HeaderMap, HeaderValue, Method};
    use proptest::prelude::*;

    fn prefix(text: &str) -> PathMatch {
        PathMatch::Prefix(text.to_owned())
    }

    #[test]
    fn prefixes_match_whole_elements() {
        for (wanted, path, yes) in [
            ("/a", "/a", true),
            ("/a", "/a/", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a", "/", false),
            ("/a/", "/a", true),
            ("/a/", "/a/b", true),
            ("/a/", "/ab", false),
            ("/", "/anything", true),
            ("/", "*", true),
            ("/a/b", "/a", false),
            ("/a", "/A", false),
        ] {
            assert_eq!(prefix(wanted).matches(path), yes, "{wanted} on {path}");
        }
    }

    #[test]
    fn regexes_match_whole_texts_and_cannot_escape_their_anchor() {
        let regex = whole_regex("/v[0-9]+|/w").unwrap();
        assert_eq!(written(&regex), "/v[0-9]+|/w");
        for (path, yes) in [("/v1", true), ("/w", true), ("/v1/x", false), ("/x/w", false), ("/v1\n", false)] {
            assert_eq!(PathMatch::Regex(regex.clone()).matches(path), yes, "{path}");
        }
        for bad in ["a)|(?:b", "(", "(?:a{1000}){1000}", &"a".repeat(5000), "(?=a)"] {
            let error = whole_regex(bad).unwrap_err();
            assert!(!error.why.is_empty() && error.pattern.len() <= 100, "{error}");
        }
    }

    #[test]
    fn headers_match_by_any_value_and_case_blind_name() {
        let mut headers = HeaderMap::new();
        headers.append(HeaderName::from_bytes(b"X-Env").unwrap(), HeaderValue::from_static("one"));
        headers.append("x-env", HeaderValue::from_static("two"));
        headers.append("x-raw", HeaderValue::from_bytes(b"\xff").unwrap());
        let request = RequestView { method: &Method::GET, path: "/", query: None, headers: (&headers).into() };
        let on = |name: &'static str, wanted| Match {
            headers: vec![(HeaderName::from_static(name), wanted)],
            ..Match::default()
        };
        assert!(on("x-env", ValueMatch::Exact("two".into())).matches(&request));
        assert!(!on("x-env", ValueMatch::Exact("tw".into())).matches(&request));
        assert!(on("x-env", ValueMatch::Regex(whole_regex("o.e").unwrap())).matches(&request));
        assert!(!on("x-env", ValueMatch::Regex(whole_regex("o").unwrap())).matches(&request));
        assert!(!on("x-raw", ValueMatch::Regex(whole_regex(".*").unwrap())).matches(&request));
        assert!(!on("x-none", ValueMatch::Regex(whole_regex(".*").unwrap())).matches(&request));
    }

    #[test]
    fn parameters_are_decoded_and_the_first_counts() {
        let headers = HeaderMap::new();
        for (query, name, value, yes) in [
            ("a=1", "a", "1", true),
            ("a=1&a=2", "a", "2", false),
            ("b=2&a=1", "a", "1", true),
            ("%61=%31", "a", "1", true),
            ("a=x%20y", "a", "x y", true),
            ("a=x+y", "a", "x y", true),
            ("a=100%", "a", "100%", true),
            ("a", "a", "", true),
            ("aa=1", "a", "1", false),
            ("", "a", "", false),
        ] {
            let request =
                RequestView { method: &Method::GET, path: "/", query: Some(query), headers: (&headers).into() };
            let wanted = Match { query: vec![(name.into(), ValueMatch::Exact(value.into()))], ..Match::default() };
            assert_eq!(wanted.matches(&request), yes, "{query} {name}={value}");
        }
    }

    // A name in any case, and a value with space around it.
    fn sent() -> impl Strategy<Value = (String, String)> {
        ("[xX]-([aA]|[eE][nN][vV])", "[ \t]?(one|two|\u{e9}?|o[ \t,]e)[ \t]?")
    }

    proptest! {
        #[test]
        fn fields_match_alike_parsed_and_as_they_came(sent in prop::collection::vec(sent(), 0..5), wanted in "one|two|o e|\u{e9}|") {
            let mut head = "GET / HTTP/1.1\r\nHost: a\r\n".to_owned();
            let mut map = HeaderMap::new();
            map.insert("host", HeaderValue::from_static("a"));
            for (name, value) in &sent {
                head.extend([name, ":", value, "\r\n"]);
                let value = value.trim_matches([' ', '\t']);
                map.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            head.push_str("\r\n");
            let mut fields = Vec::new();
            read_request(head.as_bytes(), 4096, &mut fields).unwrap().unwrap();
            let raw = Headers::Raw { bytes: head.as_bytes(), fields: &fields };
            for name in ["host", "x-a", "x-env", "x-none"].map(HeaderName::from_static) {
                prop_assert!(raw.values(&name).eq(Headers::Map(&map).values(&name)), "{name}");
                for wanted in [ValueMatch::Exact(wanted.clone()), ValueMatch::Regex(whole_regex(&wanted).unwrap())] {
                    let wanted = Match { headers: vec![(name.clone(), wanted)], ..Match::default() };
                    let on = |headers| wanted.matches(&RequestView { method: &Method::GET, path: "/", query: None, headers });
                    prop_assert_eq!(on(raw), on((&map).into()));
                }
            }
        }
    }
}
