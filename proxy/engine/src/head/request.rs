//! Request heads: the shapes of request smuggling are refused before anybody routes or forwards them.

use super::fields::{Field, Kind, Span, looks_like};
use super::scan::{HOST, LITERAL, Line, Lines, TARGET, TOKEN, run, window};
use super::{MAX_FIELDS, MAX_METHOD};
use crate::framing::BodyLength;
use crate::reason::Reason;

/// A whole request head. Its spans are places in the bytes that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// Its length in bytes, with the empty line behind it and one that came before it.
    pub len: usize,
    /// What follows it.
    pub body: BodyLength,
    /// HTTP/1.1; else HTTP/1.0.
    pub http11: bool,
    /// The method: a token.
    pub method: Span,
    /// The request target: of a form of RFC 9112 section 3.2 that fits the method, and UTF-8.
    pub target: Span,
    // Where the path begins; behind the target if it has none.
    path_at: u32,
    absolute: bool,
}

impl RequestHead {
    /// The path without its query, percent-encoding untouched: `/` if a target in absolute form has none, `*` of `OPTIONS *`, and
    /// nothing of CONNECT.
    pub fn path<'a>(&self, bytes: &'a [u8]) -> &'a str {
        let path = self.split(bytes).0;
        // Was checked to be UTF-8, and `?` cuts no character.
        if path.is_empty() && self.absolute { "/" } else { std::str::from_utf8(path).unwrap_or_default() }
    }

    /// The query without its `?`.
    pub fn query<'a>(&self, bytes: &'a [u8]) -> Option<&'a str> {
        std::str::from_utf8(self.split(bytes).1?).ok()
    }

    /// Path and query within the target: what a target in origin form is (RFC 9112 section 3.2.1), behind a slash if
    /// [`Self::needs_slash`]. Nothing of CONNECT, whose target is no path.
    pub fn origin_form(&self) -> Span {
        Span { start: self.path_at, end: self.target.end }
    }

    /// Whether the target is in absolute form without a path: as `http://a` or `http://a?b`.
    pub fn needs_slash(&self, bytes: &[u8]) -> bool {
        self.absolute && self.origin_form().of(bytes).first() != Some(&b'/')
    }

    fn split<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], Option<&'a [u8]>) {
        let all = self.origin_form().of(bytes);
        match all.iter().position(|b| *b == b'?') {
            Some(at) => (&all[..at], Some(&all[at + 1..])),
            None => (all, None),
        }
    }
}

/// Reads the first request head in `bytes`; `None` if it has not come whole. `limit` is the largest head in bytes. `fields` is cleared
/// first; all spans are places in `bytes`.
///
/// # Errors
/// [`Reason::HeaderTooLarge`]: no end within the limit, or more than [`MAX_FIELDS`] fields. [`Reason::MalformedRequest`]:
/// - bare LF or CR, folded lines, space before a colon, control characters;
/// - `Transfer-Encoding` beside `Content-Length` or of any other value than `chunked`, more than one of either, a length that is no number,
///   either with `_` in its name (a CGI-like program takes it for the real one), and a body of CONNECT;
/// - an HTTP/1.1 request without exactly one `Host`, and one whose target names another authority;
/// - a target that is of none of the forms of RFC 9112 section 3.2, or of the wrong one for its method;
/// - a method longer than [`MAX_METHOD`].
pub fn read_request(bytes: &[u8], limit: usize, fields: &mut Vec<Field>) -> Result<Option<RequestHead>, Reason> {
    fields.clear();
    let (bytes, unfinished) = window(bytes, limit);
    // RFC 9112 section 2.2: an empty line before the request is to be ignored (old clients send one after a body).
    let start = match bytes {
        [b'\r', b'\n', ..] => 2,
        b"\r" => return unfinished,
        _ => 0,
    };
    let Some(line) = request_line(bytes, start)? else { return unfinished };
    let mut framing = Framing::default();
    let path_at = framing.target(line.method.of(bytes), line.target.of(bytes))?;
    let mut lines = Lines { bytes, at: line.end, bare_lf: false };
    loop {
        match lines.field()? {
            Line::More => return unfinished,
            Line::Empty => break,
            Line::Field(_) if fields.len() == MAX_FIELDS => return Err(Reason::HeaderTooLarge),
            Line::Field(field) => {
                framing.field(field.kind, field.name.of(bytes), field.value.of(bytes))?;
                fields.push(field);
            }
        }
    }
    framing.whole(line.http11)?;
    Ok(Some(RequestHead {
        len: lines.at,
        body: if framing.codings > 0 { BodyLength::Chunked } else { BodyLength::Known(framing.length) },
        http11: line.http11,
        method: line.method,
        target: line.target,
        path_at: line.target.start + path_at as u32,
        absolute: framing.authority.is_some(),
    }))
}

struct RequestLine {
    method: Span,
    target: Span,
    http11: bool,
    // Where the next line begins.
    end: usize,
}

// RFC 9112 section 3, with single spaces; `None` if it has not ended.
fn request_line(bytes: &[u8], start: usize) -> Result<Option<RequestLine>, Reason> {
    // Where a part ends, which a space must.
    let part = |from: usize, class: u8| {
        let end = run(bytes, from, class);
        match bytes.get(end) {
            None => Ok(None),
            Some(b' ') if end > from => Ok(Some(end)),
            Some(_) => Err(Reason::MalformedRequest),
        }
    };
    let end = part(start, TOKEN)?;
    require(end.unwrap_or(bytes.len()) - start <= MAX_METHOD)?;
    let Some(end) = end else { return Ok(None) };
    let method = Span::new(start, end);
    let start = end + 1;
    let Some(end) = part(start, TARGET)? else { return Ok(None) };
    let target = Span::new(start, end);
    // Bytes above ASCII are against RFC 3986, but curl and others send them and every server takes them.
    require(std::str::from_utf8(target.of(bytes)).is_ok())?;
    let rest = bytes.get(end + 1..).unwrap_or_default();
    let http11 = match rest.first_chunk() {
        Some(b"HTTP/1.1\r\n") => true,
        Some(b"HTTP/1.0\r\n") => false,
        None if b"HTTP/1.1\r\n".starts_with(rest) || b"HTTP/1.0\r\n".starts_with(rest) => return Ok(None),
        _ => return Err(Reason::MalformedRequest),
    };
    Ok(Some(RequestLine { method, target, http11, end: end + 11 }))
}

/// What was seen so far of what decides where the request goes and where it ends.
#[derive(Default)]
struct Framing<'a> {
    connect: bool,
    // Of a target in absolute form; without the port that its scheme implies.
    authority: Option<&'a [u8]>,
    host: &'a [u8],
    default_port: &'a [u8],
    length: u64,
    hosts: usize,
    lengths: usize,
    codings: usize,
}

impl<'a> Framing<'a> {
    // RFC 9112 section 3.2. Where the path begins in the target.
    fn target(&mut self, method: &[u8], target: &'a [u8]) -> Result<usize, Reason> {
        match method {
            b"CONNECT" => {
                self.connect = true;
                require(is_host(target) && port_at(target).is_some_and(|colon| colon + 1 < target.len()))?;
                return Ok(target.len());
            }
            // What HTTP/2 begins with (RFC 9113 section 3.4) is never a request.
            b"PRI" => return Err(Reason::MalformedRequest),
            b"OPTIONS" if target == b"*" => return Ok(0),
            _ if target.starts_with(b"/") => return Ok(0),
            _ => {}
        }
        let scheme = target.iter().position(|b| *b == b':').ok_or(Reason::MalformedRequest)?;
        let (scheme, rest) = target.split_at(scheme);
        let is_scheme = |b: &u8| b.is_ascii_alphanumeric() || b"+-.".contains(b);
        require(scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(is_scheme))?;
        let rest = rest.strip_prefix(b"://").ok_or(Reason::MalformedRequest)?;
        let authority = &rest[..rest.iter().position(|b| b"/?".contains(b)).unwrap_or(rest.len())];
        require(!authority.is_empty() && is_host(authority))?;
        self.authority = Some(authority);
        if scheme.eq_ignore_ascii_case(b"http") {
            self.default_port = b":80";
        } else if scheme.eq_ignore_ascii_case(b"https") {
            self.default_port = b":443";
        }
        Ok(target.len() - rest.len() + authority.len())
    }

    fn field(&mut self, kind: Kind, name: &[u8], value: &'a [u8]) -> Result<(), Reason> {
        match kind {
            Kind::Host => {
                self.hosts += 1;
                self.host = value;
                require(is_host(value))
            }
            Kind::ContentLength => {
                self.lengths += 1;
                self.length = super::length_of(value).ok_or(Reason::MalformedRequest)?;
                Ok(())
            }
            Kind::TransferEncoding => {
                self.codings += 1;
                require(value.eq_ignore_ascii_case(b"chunked"))
            }
            Kind::Other => require(!looks_like(name, b"content-length") && !looks_like(name, b"transfer-encoding")),
            _ => Ok(()),
        }
    }

    fn whole(&self, http11: bool) -> Result<(), Reason> {
        require(self.lengths + self.codings <= 1)?;
        require(http11 || self.codings == 0)?;
        require(!self.connect || self.codings == 0 && self.length == 0)?;
        if let Some(authority) = self.authority
            && self.hosts == 1
        {
            let bare = |host: &'a [u8]| host.strip_suffix(self.default_port).unwrap_or(host);
            require(bare(authority).eq_ignore_ascii_case(bare(self.host)))?;
        }
        require(if http11 { self.hosts == 1 } else { self.hosts <= 1 })
    }
}

fn require(holds: bool) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(Reason::MalformedRequest) }
}

/// `uri-host [":" port]`, or nothing: no byte that ends an authority or separates two.
fn is_host(value: &[u8]) -> bool {
    let (name, port) = value.split_at(port_at(value).unwrap_or(value.len()));
    let (inner, class) = match name {
        [b'[', inner @ .., b']'] => (inner, LITERAL),
        _ => (name, HOST),
    };
    run(inner, 0, class) == inner.len()
        && port.iter().skip(1).all(u8::is_ascii_digit)
        && (!name.is_empty() || port.is_empty())
}

/// Where the colon before a port is, which is behind an address in brackets.
fn port_at(authority: &[u8]) -> Option<usize> {
    let after = if authority.first() == Some(&b'[') { run(authority, 1, LITERAL) } else { 0 };
    authority[after..].iter().position(|b| *b == b':').map(|at| after + at)
}
