//! What a decision may look at.

use http::{HeaderMap, Method};

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
    pub headers: &'a HeaderMap,
}

impl<'a> RequestView<'a> {
    /// The view of an HTTP request's head.
    pub fn of<B>(request: &'a http::Request<B>) -> Self {
        Self {
            method: request.method(),
            path: request.uri().path(),
            query: request.uri().query(),
            headers: request.headers(),
        }
    }
}
