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

use crate::framing::BodyLength;
use crate::reason::Reason;

/// What the bytes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadCheck {
    /// No whole head yet, and nothing wrong so far.
    NeedMore,
    /// A whole head.
    Ok {
        /// Its length in bytes, the empty line included.
        len: usize,
    },
}

/// Fields of one request, or of one section of trailers, at most.
pub const MAX_FIELDS: usize = 100;

/// A whole head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its length in bytes, the empty line included.
    pub len: usize,
    /// What follows it.
    pub body: BodyLength,
}

/// Longest method that passes: IANA's registry knows none longer than 17 letters.
pub const MAX_METHOD: usize = 24;

/// Checks the first request head in `bytes`. `limit` is the largest head in bytes.
///
/// Refuses with [`Reason::HeaderTooLarge`] what does not end within the limit or has too many fields, and with [`Reason::MalformedRequest`]:
/// - bare LF or CR, folded lines, space before a colon, control characters;
/// - `Transfer-Encoding` beside `Content-Length` or of any other value than `chunked`, more than one of either, a length that is no number,
///   either with `_` in its name (a CGI-like program takes it for the real one), and a body of CONNECT;
/// - an HTTP/1.1 request without exactly one `Host`, and one whose target names another authority;
/// - a target that is of none of the forms of RFC 9112 section 3.2, or of the wrong one for its method.
pub fn check_head(bytes: &[u8], limit: usize) -> Result<HeadCheck, Reason> {
    Ok(read_head(bytes, limit)?.map_or(HeadCheck::NeedMore, |head| HeadCheck::Ok { len: head.len }))
}

/// [`check_head`], which also says what body follows; `None` if no whole head has come yet.
///
/// # Errors
/// As [`check_head`].
pub fn read_head(bytes: &[u8], limit: usize) -> Result<Option<Head>, Reason> {
    Ok(request::read(bytes, limit, |_| ())?.map(|head| Head { len: head.len, body: head.body }))
}

/// A length in decimal digits; `None` if it is no number, or longer than the 18 digits that fit every integer type in use.
fn length_of(value: &[u8]) -> Option<u64> {
    let number = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
    number.then(|| value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}
