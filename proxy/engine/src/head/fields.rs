//! Header fields as they are on the wire, and which of them a proxy cares for.

use super::MAX_FIELDS;
use super::scan::{Line, Lines, trimmed, window};
use crate::reason::Reason;

/// A place in the bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// Its first byte.
    pub start: u32,
    /// Behind its last byte.
    pub end: u32,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    /// What stands there; nothing if `bytes` are not the ones it was made of and too short.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Its length in bytes.
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// Whether nothing stands there.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Which field it is, as far as a proxy treats it in a way of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Passes as it is.
    Other,
    /// `Host`.
    Host,
    /// `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// `Connection`.
    Connection,
    /// `Keep-Alive`.
    KeepAlive,
    /// `Proxy-Connection`.
    ProxyConnection,
    /// `TE`.
    Te,
    /// `Trailer`.
    Trailer,
    /// `Upgrade`.
    Upgrade,
    /// `HTTP2-Settings`.
    Http2Settings,
    /// `Expect`.
    Expect,
    /// `Content-Type`.
    ContentType,
    /// `X-Forwarded-For`.
    ForwardedFor,
    /// `X-Forwarded-Client-Cert`.
    ClientCert,
    /// `X-Weft-*`; and this, [`Self::ForwardedFor`] and [`Self::ClientCert`] with `_` for a `-`, which CGI-like programs take for the
    /// same: no peer may say it, only we.
    Ours,
    /// `Grpc-Status`.
    GrpcStatus,
}

impl Kind {
    /// The kind of a field of that name, whatever its case.
    pub fn of(name: &[u8]) -> Self {
        let (kind, known): (Self, &[u8]) = match name.len() {
            2 => (Self::Te, b"te"),
            4 => (Self::Host, b"host"),
            6 => (Self::Expect, b"expect"),
            7 if matches!(name[0], b't' | b'T') => (Self::Trailer, b"trailer"),
            7 => (Self::Upgrade, b"upgrade"),
            10 if matches!(name[0], b'c' | b'C') => (Self::Connection, b"connection"),
            10 => (Self::KeepAlive, b"keep-alive"),
            11 => (Self::GrpcStatus, b"grpc-status"),
            12 => (Self::ContentType, b"content-type"),
            14 if matches!(name[0], b'c' | b'C') => (Self::ContentLength, b"content-length"),
            14 => (Self::Http2Settings, b"http2-settings"),
            15 => (Self::ForwardedFor, b"x-forwarded-for"),
            16 => (Self::ProxyConnection, b"proxy-connection"),
            17 => (Self::TransferEncoding, b"transfer-encoding"),
            23 => (Self::ClientCert, b"x-forwarded-client-cert"),
            _ => (Self::Other, b""),
        };
        if kind != Self::Other && name.eq_ignore_ascii_case(known) {
            return kind;
        }
        // All of these begin with an X.
        if !matches!(name, [b'x' | b'X', b'-' | b'_', ..]) {
            return Self::Other;
        }
        let forged = matches!(kind, Self::ForwardedFor | Self::ClientCert) && looks_like(name, known);
        if forged || name.get(..OURS.len()).is_some_and(|name| looks_like(name, OURS)) {
            Self::Ours
        } else {
            Self::Other
        }
    }
}

const OURS: &[u8] = b"x-weft-";

/// A header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, in the case it was sent in.
    pub name: Span,
    /// Its value, without spaces and tabs around it.
    pub value: Span,
    /// Which it is.
    pub kind: Kind,
}

/// Whether a program that takes `_` for `-` and no notice of case would take a name for that field's.
pub(super) fn looks_like(name: &[u8], field: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-');
    name.len() == field.len() && name.iter().zip(field).all(same)
}

/// Reads the section of trailer fields, which begins behind the line of the last chunk: fields and an empty line, or that line
/// alone. Its length in bytes with the empty line, at most `limit`; `None` if it has not come whole. `fields` is cleared first; their
/// spans are places in `bytes`. Which of them may pass is told by [`forbidden_in_trailers`].
///
/// # Errors
/// [`Reason::MalformedRequest`]: what has come is no section of fields. [`Reason::HeaderTooLarge`]: it does not end within the limit, or
/// has more than [`MAX_FIELDS`] fields.
pub fn read_trailers(bytes: &[u8], limit: usize, fields: &mut Vec<Field>) -> Result<Option<usize>, Reason> {
    fields.clear();
    let (bytes, unfinished) = window(bytes, limit);
    let mut lines = Lines { bytes, at: 0, bare_lf: false };
    loop {
        match lines.field()? {
            Line::More => return unfinished,
            Line::Empty => return Ok(Some(lines.at)),
            Line::Field(_) if fields.len() == MAX_FIELDS => return Err(Reason::HeaderTooLarge),
            Line::Field(field) => fields.push(field),
        }
    }
}

/// What frames, routes, authenticates, changes how a request or a body is understood, or tells who somebody is, besides the
/// [`Kind`]s. `*` at the end: whatever begins so.
const NOT_IN_TRAILERS: &[&[u8]] = &[
    b"accept-encoding",
    b"age",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"cookie",
    b"date",
    b"expires",
    b"forwarded",
    b"if-*",
    b"location",
    b"max-forwards",
    b"pragma",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"via",
    b"warning",
    b"www-authenticate",
    b"x-forwarded-*",
    b"x-real-ip",
];

/// Fields that frame, with `_` for `-`.
const FRAMING: &[&[u8]] = &[b"content-length", b"transfer-encoding", b"content-type"];

/// Whether a field is one that no trailer section may hold (RFC 9110 section 6.5.1): a program that merges trailers into the header
/// would take for checked what no proxy has checked. A name with `_` for `-` counts as that name.
pub fn forbidden_in_trailers(name: &[u8], kind: Kind) -> bool {
    match kind {
        Kind::GrpcStatus => false,
        Kind::Other => NOT_IN_TRAILERS.iter().chain(FRAMING).any(|field| match field {
            [begin @ .., b'*'] => name.get(..begin.len()).is_some_and(|name| looks_like(name, begin)),
            field => looks_like(name, field),
        }),
        _ => true,
    }
}

/// The elements of a list (RFC 9110 section 5.6.1), without what is empty. For lists of tokens: a quoted comma separates too.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trimmed).filter(|token| !token.is_empty())
}
