//! HTTP/1 heads as the bytes they are: read in one pass, without a copy, and strictly.
//!
//! Stricter than RFC 9112 wherever two parsers are known to disagree: what the proxy and the application could frame
//! differently is no request.
//!
//! Invariants
//! - Nothing is allocated but the list of fields, which the caller keeps and gives again, and no state is kept: call again with more
//!   bytes.
//! - A [`Span`] is a place in the very bytes that were read; it is as good as they are, and reading it never panics.
//! - What has come of an unfinished head is checked already: what no further byte can mend is refused at once.

mod fields;
mod request;
mod response;
mod scan;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_properties;
#[cfg(test)]
mod tests_response;

pub use fields::{Field, Kind, Span, forbidden_in_trailers, read_trailers, tokens};
pub use request::{RequestHead, read_request};
pub use response::{Asked, MAX_RESPONSE_FIELDS, ResponseBody, ResponseHead, read_response};

/// Fields of one request, or of one section of trailers, at most.
pub const MAX_FIELDS: usize = 100;

/// Longest method that passes: IANA's registry knows none longer than 17 letters.
pub const MAX_METHOD: usize = 24;

/// A length in decimal digits; `None` if it is no number, or longer than the 18 digits that fit every integer type in use.
fn length_of(value: &[u8]) -> Option<u64> {
    let number = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    number.then(|| value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}
