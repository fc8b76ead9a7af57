//! Response heads, and where the bodies behind them end.
//!
//! A little more is tolerated than of requests: whoever answers was chosen by us, and old applications are not mended by a proxy. What
//! decides where the response ends is as strict.

use super::fields::{Field, Kind, Span, tokens};
use super::scan::{Line, Lines, field_run, window};
use crate::reason::Reason;

/// Fields of one response at most.
pub const MAX_RESPONSE_FIELDS: usize = 128;

/// What follows a response's head (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// Nothing, whatever the fields say: `Content-Length` tells what a GET would give, `Transfer-Encoding` nothing.
    None,
    /// So many bytes.
    Known(u64),
    /// Chunks. A `Content-Length` beside it must not be passed on.
    Chunked,
    /// All that comes before the connection is closed.
    UntilClose,
}

/// The request's method, as far as the response's body depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// HEAD: no response has a body.
    Head,
    /// CONNECT: what follows a 2xx is no HTTP.
    Connect,
    /// Any other.
    Other,
}

/// A whole response head. Its spans are places in the bytes that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Its length in bytes, with the empty line.
    pub len: usize,
    /// 100 to 999.
    pub status: u16,
    /// HTTP/1.1; else HTTP/1.0.
    pub http11: bool,
    /// What follows it.
    pub body: ResponseBody,
    /// The reason phrase, often empty.
    pub reason: Span,
    /// Whether the connection ends with this response: HTTP/1.0 without `keep-alive`, or `Connection: close`.
    pub close: bool,
}

/// Reads the first response head in `bytes`; `None` if it has not come whole. `limit` is the largest head in bytes. `fields` is cleared
/// first; all spans are places in `bytes`. LF alone ends a line too (RFC 9112 section 2.2).
///
/// # Errors
/// [`Reason::UpstreamProtocol`]:
/// - what is no status line of HTTP/1.0 or 1.1, folded lines, CR or another control character within a line, bad names;
/// - `Transfer-Encoding` of HTTP/1.0 or of anything but `chunked`, once; a `Content-Length` that is no number, or several that differ;
/// - no end within the limit, or more than [`MAX_RESPONSE_FIELDS`] fields.
pub fn read_response(
    bytes: &[u8],
    limit: usize,
    asked: Asked,
    fields: &mut Vec<Field>,
) -> Result<Option<ResponseHead>, Reason> {
    fields.clear();
    read(bytes, limit, asked, fields).map_err(|_| Reason::UpstreamProtocol)
}

fn read(bytes: &[u8], limit: usize, asked: Asked, fields: &mut Vec<Field>) -> Result<Option<ResponseHead>, Reason> {
    let (bytes, unfinished) = window(bytes, limit);
    let Some(line) = status_line(bytes)? else { return unfinished };
    let mut framing = Framing::default();
    let mut lines = Lines { bytes, at: line.end, bare_lf: true };
    loop {
        match lines.field()? {
            Line::More => return unfinished,
            Line::Empty => break,
            Line::Field(_) if fields.len() == MAX_RESPONSE_FIELDS => return Err(Reason::UpstreamProtocol),
            Line::Field(field) => {
                framing.field(field.kind, field.value.of(bytes))?;
                fields.push(field);
            }
        }
    }
    Ok(Some(ResponseHead {
        len: lines.at,
        status: line.status,
        http11: line.http11,
        body: framing.body(&line, asked)?,
        reason: line.reason,
        close: framing.close || !line.http11 && !framing.keep_alive,
    }))
}

struct StatusLine {
    http11: bool,
    status: u16,
    reason: Span,
    // Where the next line begins.
    end: usize,
}

// RFC 9112 section 4; the space behind the status may be missing with the phrase, as it often is. `None` if it has not ended.
fn status_line(bytes: &[u8]) -> Result<Option<StatusLine>, Reason> {
    const SHAPE: &[u8; 12] = b"HTTP/1.1 200";
    let fits = |(at, b): (usize, &u8)| match at {
        7 => matches!(b, b'0' | b'1'),
        9 => matches!(b, b'1'..=b'9'),
        10.. => b.is_ascii_digit(),
        _ => *b == SHAPE[at],
    };
    if !bytes.iter().take(SHAPE.len()).enumerate().all(fits) {
        return Err(Reason::UpstreamProtocol);
    }
    let Some(head) = bytes.first_chunk::<12>() else { return Ok(None) };
    let status = head[9..].iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let from = if bytes.get(12) == Some(&b' ') { 13 } else { 12 };
    // Without the space there is no phrase.
    let to = if from == 13 { field_run(bytes, from) } else { from };
    let mut lines = Lines { bytes, at: to, bare_lf: true };
    let whole = lines.end()?;
    let line = StatusLine { http11: head[7] == b'1', status, reason: Span::new(from, to), end: lines.at };
    Ok(whole.then_some(line))
}

/// What was seen so far of what decides where the response ends.
#[derive(Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Framing {
    fn field(&mut self, kind: Kind, value: &[u8]) -> Result<(), Reason> {
        let bad = Err(Reason::UpstreamProtocol);
        match kind {
            // RFC 9112 section 6.3: a list of equal lengths, in one field or several, is one.
            Kind::ContentLength => {
                for length in value.split(|b| *b == b',') {
                    let length = super::length_of(super::scan::trimmed(length));
                    if length.is_none() || self.length.is_some() && self.length != length {
                        return bad;
                    }
                    self.length = length;
                }
            }
            Kind::TransferEncoding if self.chunked || !value.eq_ignore_ascii_case(b"chunked") => return bad,
            Kind::TransferEncoding => self.chunked = true,
            Kind::Connection => {
                for option in tokens(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn body(&self, line: &StatusLine, asked: Asked) -> Result<ResponseBody, Reason> {
        if self.chunked && !line.http11 {
            return Err(Reason::UpstreamProtocol);
        }
        Ok(match (line.status, asked) {
            (100..=199 | 204 | 304, _) | (_, Asked::Head) | (200..=299, Asked::Connect) => ResponseBody::None,
            _ if self.chunked => ResponseBody::Chunked,
            _ => self.length.map_or(ResponseBody::UntilClose, ResponseBody::Known),
        })
    }
}
