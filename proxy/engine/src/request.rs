//! What a decision may look at.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::head::Field;

/// The parts of a request head that routes, policies and limits match on. Borrowed: making one costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path without the query, percent-encoding untouched; starts with `/` (or is `*`).
    pub path: &'a str,
    /// Query without its `?`.
    pub query: Option<&'a str>,
    /// Header fields.
    pub headers: Headers<'a>,
}

impl<'a> RequestView<'a> {
    /// The view of an HTTP request's head.
    pub fn of<B>(request: &'a http::Request<B>) -> Self {
        Self {
            method: request.method(),
            path: request.uri().path(),
            query: request.uri().query(),
            headers: request.headers().into(),
        }
    }
}

/// Header fields, parsed or as they are on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Headers<'a> {
    /// Parsed.
    Map(&'a HeaderMap),
    /// As [`crate::head`] has read them.
    Raw {
        /// What they were read from.
        bytes: &'a [u8],
        /// Where they are in it.
        fields: &'a [Field],
    },
}

impl<'a> Headers<'a> {
    /// The values of all fields of that name, whatever the case it was sent in, in the order they came in.
    pub fn values(self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let (map, raw) = match self {
            Self::Map(map) => (Some(map.get_all(name)), None),
            Self::Raw { bytes, fields } => (None, Some((bytes, fields))),
        };
        let named =
            |bytes: &'a [u8], field: &Field| field.name.of(bytes).eq_ignore_ascii_case(name.as_str().as_bytes());
        let raw = raw.into_iter().flat_map(move |(bytes, fields)| {
            fields.iter().filter(move |field| named(bytes, field)).map(move |field| field.value.of(bytes))
        });
        map.into_iter().flatten().map(HeaderValue::as_bytes).chain(raw)
    }
}

impl<'a> From<&'a HeaderMap> for Headers<'a> {
    fn from(map: &'a HeaderMap) -> Self {
        Self::Map(map)
    }
}
