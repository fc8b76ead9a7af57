//! What the filters of a rule and its backend do with one request.
//!
//! Invariants
//! - A route without filters costs nothing: no walk, no allocation.
//! - What a filter answers itself is decided before a backend is drawn if the filter is the rule's, and after if it is the backend's.
//! - Of two filters of the same kind the backend's counts where both say something; header edits and response edits add up, the rule's first.

use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::cors::Cors;
use super::rewrite::{Called, Rewritten};
use super::{Filter, HeaderEdit, Mirror};
use crate::reason::Reason;
use crate::request::RequestView;

/// The filters that a request meets: its rule's, then its backend's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filters<'a> {
    /// The rule's.
    pub rule: &'a [Filter],
    /// The backend's.
    pub backend: &'a [Filter],
}

/// What the proxy answers itself, without a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, but for those that frame it.
    pub headers: HeaderMap,
}

/// A request that goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is refused.
    Refused(Reason),
    /// A filter answers it.
    Answered(Box<Answer>),
}

impl From<Reason> for Ended {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

impl<'a> Filters<'a> {
    fn all(&self) -> impl DoubleEndedIterator<Item = &'a Filter> + use<'a> {
        self.rule.iter().chain(self.backend)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rule.is_empty() && self.backend.is_empty()
    }

    /// What is changed of the request's fields, in order.
    pub fn request_edits(&self) -> impl Iterator<Item = &'a HeaderEdit> + use<'a> {
        self.all().filter_map(|filter| if let Filter::RequestHeaders(edit) = filter { Some(edit) } else { None })
    }

    /// What is changed of the response's fields, in order.
    pub fn response_edits(&self) -> impl Iterator<Item = &'a HeaderEdit> + use<'a> {
        self.all().filter_map(|filter| if let Filter::ResponseHeaders(edit) = filter { Some(edit) } else { None })
    }

    /// What becomes of a request's path and host. `path`: as it came, without the query.
    pub fn rewritten(&self, path: &str) -> Rewritten<'a> {
        let mut made = Rewritten::default();
        for filter in self.all() {
            if let Filter::Rewrite(rewrite) = filter {
                made.host = rewrite.host.as_ref().or(made.host);
                made.path = rewrite.path.as_ref().map(|edit| edit.apply(path)).or(made.path);
            }
        }
        made
    }

    /// What a filter answers to a request that thus reaches no backend.
    ///
    /// # Errors
    /// [`Reason::MalformedRequest`]: of its path or host no field can be made.
    pub fn answer(&self, request: &RequestView<'_>, called: &Called<'_>) -> Result<Option<Answer>, Reason> {
        if self.is_empty() {
            return Ok(None);
        }
        if let Some(headers) = self.cors().and_then(|cors| cors.preflight(request)) {
            return Ok(Some(self.answered(StatusCode::NO_CONTENT, headers)));
        }
        let redirect =
            self.all().rev().find_map(|filter| if let Filter::Redirect(it) = filter { Some(it) } else { None });
        let Some(redirect) = redirect else { return Ok(None) };
        let location = redirect.location(request, called);
        let location = HeaderValue::from_bytes(&location).map_err(|_| Reason::MalformedRequest)?;
        let mut headers = HeaderMap::from_iter([(LOCATION, location)]);
        if let Some(edit) = self.cors_edit(request) {
            edit.apply(&mut headers);
        }
        Ok(Some(self.answered(redirect.status, headers)))
    }

    fn cors(&self) -> Option<&'a Cors> {
        self.all().rev().find_map(|filter| if let Filter::Cors(it) = filter { Some(it) } else { None })
    }

    /// What becomes of the response's fields by the origin that the request has; before [`Self::response_edits`].
    pub fn cors_edit(&self, request: &RequestView<'_>) -> Option<Box<HeaderEdit>> {
        self.cors().map(|cors| Box::new(cors.edit(request)))
    }

    /// All its mirrors.
    pub fn mirrors(&self) -> impl Iterator<Item = &'a Mirror> + use<'a> {
        self.all().filter_map(|filter| if let Filter::Mirror(mirror) = filter { Some(mirror) } else { None })
    }

    // Whoever answers, the route's response filters hold.
    fn answered(&self, status: StatusCode, mut headers: HeaderMap) -> Answer {
        for edit in self.response_edits() {
            edit.apply(&mut headers);
        }
        Answer { status, headers }
    }
}

impl Mirror {
    /// Whether a request is copied for which this number was drawn, uniform over all of `u64`.
    pub fn takes(&self, random: u64) -> bool {
        let drawn = (u128::from(random) * u128::from(self.denominator.max(1))) >> 64;
        self.invalid.is_none() && drawn < u128::from(self.numerator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_takes_its_share() {
        let of = |numerator, denominator| Mirror { numerator, denominator, ..Mirror::default() };
        assert!(!of(0, 100).takes(0) && of(100, 100).takes(u64::MAX) && of(1, 3).takes(0) && !of(1, 3).takes(u64::MAX));
        assert!(!Mirror { invalid: Some("gone".into()), ..of(1, 1) }.takes(0));
        let mut random = fastrand::Rng::with_seed(7);
        let taken = (0..10_000).filter(|_| of(20, 100).takes(random.u64(..))).count();
        assert!((1800..2200).contains(&taken), "{taken}");
    }
}
