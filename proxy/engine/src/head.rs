//! Whether an HTTP/1 request head is safe to parse: the shapes of request smuggling are refused before a parser sees them.
//!
//! Stricter than RFC 9112 wherever two parsers are known to disagree: what the proxy and the application could frame
//! differently is no request. Allocates nothing and keeps no state: call it again with more bytes.

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

/// Fields of one head at most: the default of hyper's parser, which would refuse more without a reason code.
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

/// What was seen so far of what decides where the request goes and where it ends.
#[derive(Default)]
struct Framing<'a> {
    http11: bool,
    connect: bool,
    // Of a target in absolute form; without the port that its scheme implies.
    authority: Option<&'a [u8]>,
    host: &'a [u8],
    default_port: &'a [u8],
    length: u64,
    fields: usize,
    hosts: usize,
    lengths: usize,
    codings: usize,
}

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
    let mut framing = Framing::default();
    // RFC 9112 section 2.2: an empty line before the request is to be ignored (old clients send one after a body).
    let mut at = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let mut first = true;
    loop {
        let visible = &bytes[..bytes.len().min(limit)];
        let Some(line) = next_line(visible.get(at..).unwrap_or_default())? else {
            return if bytes.len() >= limit { Err(Reason::HeaderTooLarge) } else { Ok(None) };
        };
        at += line.len() + 2;
        match (first, line.is_empty()) {
            (true, _) => framing.request_line(line)?,
            (false, false) => framing.field(line)?,
            (false, true) => {
                framing.whole()?;
                return Ok(Some(Head { len: at, body: framing.body() }));
            }
        }
        first = false;
    }
}

/// The next line without its CRLF; `None` if it has not ended.
fn next_line(bytes: &[u8]) -> Result<Option<&[u8]>, Reason> {
    let Some(end) = bytes.iter().position(|b| *b == b'\r' || *b == b'\n') else {
        return Ok(None);
    };
    match (bytes[end], bytes.get(end + 1)) {
        (b'\r', Some(b'\n')) => Ok(Some(&bytes[..end])),
        (b'\r', None) => Ok(None),
        _ => Err(Reason::MalformedRequest),
    }
}

impl<'a> Framing<'a> {
    fn request_line(&mut self, line: &'a [u8]) -> Result<(), Reason> {
        let mut parts = line.split(|b| *b == b' ');
        let (method, target, version) = (parts.next(), parts.next(), parts.next());
        let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next()) else {
            return Err(Reason::MalformedRequest);
        };
        require(!method.is_empty() && method.len() <= MAX_METHOD && method.iter().copied().all(is_token))?;
        // Bytes above ASCII are against RFC 3986, but curl and others send them and every server takes them; hyper insists on UTF-8.
        require(target.iter().copied().all(is_target_byte) && std::str::from_utf8(target).is_ok())?;
        self.target(method, target)?;
        self.http11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(Reason::MalformedRequest),
        };
        Ok(())
    }

    // RFC 9112 section 3.2.
    fn target(&mut self, method: &[u8], target: &'a [u8]) -> Result<(), Reason> {
        match method {
            b"CONNECT" => {
                self.connect = true;
                return require(is_host(target) && port_at(target).is_some_and(|colon| colon + 1 < target.len()));
            }
            // What HTTP/2 begins with (RFC 9113 section 3.4) is never a request.
            b"PRI" => return Err(Reason::MalformedRequest),
            b"OPTIONS" if target == b"*" => return Ok(()),
            _ if target.starts_with(b"/") => return Ok(()),
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
        Ok(())
    }

    fn field(&mut self, line: &'a [u8]) -> Result<(), Reason> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(Reason::HeaderTooLarge);
        }
        // A folded line starts with a space, which is no token: refused here too.
        let colon = line.iter().position(|b| *b == b':').ok_or(Reason::MalformedRequest)?;
        let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
        if name.is_empty() || !name.iter().copied().all(is_token) || !value.iter().copied().all(is_field_byte) {
            return Err(Reason::MalformedRequest);
        }
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
            self.host = value;
            require(is_host(value))
        } else if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            // 18 digits fit every integer type in use.
            require(!value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit))?;
            self.length = value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0'));
            Ok(())
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            require(value.eq_ignore_ascii_case(b"chunked"))
        } else {
            require(!looks_like(name, b"content-length") && !looks_like(name, b"transfer-encoding"))
        }
    }

    fn body(&self) -> BodyLength {
        if self.codings > 0 { BodyLength::Chunked } else { BodyLength::Known(self.length) }
    }

    fn whole(&self) -> Result<(), Reason> {
        require(self.lengths + self.codings <= 1)?;
        require(self.http11 || self.codings == 0)?;
        require(!self.connect || self.codings == 0 && self.length == 0)?;
        if let Some(authority) = self.authority
            && self.hosts == 1
        {
            let bare = |host: &'a [u8]| host.strip_suffix(self.default_port).unwrap_or(host);
            require(bare(authority).eq_ignore_ascii_case(bare(self.host)))?;
        }
        require(if self.http11 { self.hosts == 1 } else { self.hosts <= 1 })
    }
}

fn require(holds: bool) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(Reason::MalformedRequest) }
}

/// Without the spaces and tabs around it: nothing else is optional (RFC 9110 section 5.6.3).
fn trimmed(value: &[u8]) -> &[u8] {
    let Some(start) = value.iter().position(|b| !b" \t".contains(b)) else { return &[] };
    let end = value.iter().rposition(|b| !b" \t".contains(b)).unwrap_or(start);
    &value[start..=end]
}

/// RFC 9110 section 5.6.2.
fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// Visible, space, tab, or obs-text (RFC 9110 section 5.5).
fn is_field_byte(b: u8) -> bool {
    b == b'\t' || b >= 0x20 && b != 0x7f
}

/// Whether a program that takes `_` for `-` would take it for that field.
fn looks_like(name: &[u8], field: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (*a == b'_' && *b == b'-');
    name.len() == field.len() && name.iter().zip(field).all(same)
}

/// Not what ends a line or a target, nor `#`, which some servers cut at and others do not, nor what hyper refuses without a reason.
fn is_target_byte(b: u8) -> bool {
    b > 0x20 && b != 0x7f && !b"#<>`".contains(&b)
}

/// `uri-host [":" port]`, or nothing: no byte that ends an authority or separates two.
fn is_host(value: &[u8]) -> bool {
    let (name, port) = value.split_at(port_at(value).unwrap_or(value.len()));
    let named = match name {
        [b'[', inner @ .., b']'] => inner.iter().all(|b| b.is_ascii_alphanumeric() || b":.%-_~".contains(b)),
        _ => name.iter().all(|b| b.is_ascii_graphic() && !b"/\\?#@,\"<>^`{|}[]:".contains(b)),
    };
    named && port.iter().skip(1).all(u8::is_ascii_digit) && (!name.is_empty() || port.is_empty())
}

/// Where the colon before a port is.
fn port_at(authority: &[u8]) -> Option<usize> {
    let after = authority.iter().rposition(|b| *b == b']').map_or(0, |at| at + 1);
    authority[after..].iter().position(|b| *b == b':').map(|at| after + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 4096;

    fn check(head: &str) -> Result<HeadCheck, Reason> {
        check_head(head.as_bytes(), LIMIT)
    }

    #[test]
    fn ordinary_heads_pass() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost:\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a:80\r\n\r\n",
            "POST /a?b=c HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 3\r\nX:  v\t w \r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: caf\u{e9}\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a/b HTTP/1.1\r\nHost: A\r\n\r\n",
            "GET HTTP://a:80?b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET https://[::1] HTTP/1.1\r\nHost: [::1]:443\r\n\r\n",
            "GET http://a/ HTTP/1.0\r\n\r\n",
            "CONNECT a:443 HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
            "GET /{\"a\":[1|2]}?b=c^d HTTP/1.1\r\nHost: a\r\nX_Y: z\r\n\r\n",
            "GET /caf\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(check(head), Ok(HeadCheck::Ok { len: head.len() }), "{head:?}");
            assert_eq!(check(&format!("{head}body\n\n")), Ok(HeadCheck::Ok { len: head.len() }), "{head:?}");
        }
    }

    #[test]
    fn smuggling_shapes_are_refused() {
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0c\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \x0c1\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n X: folded\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET /\r\nHost: a\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTRANSFER_ENCODING: chunked\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http:// HTTP/1.1\r\nHost:\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a: HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT /a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "ABCDEFGHIJKLMNOPQRSTUVWXY / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:80:81\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: :80\r\n\r\n",
        ] {
            assert_eq!(check(head), Err(Reason::MalformedRequest), "{head:?}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(LIMIT));
        assert_eq!(check(&long), Err(Reason::HeaderTooLarge));
        assert_eq!(check(&long[..LIMIT - 1]), Ok(HeadCheck::NeedMore));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS));
        assert_eq!(check(&many), Err(Reason::HeaderTooLarge));
        let exact = "GET / HTTP/1.0\r\n\r\n";
        assert_eq!(check_head(exact.as_bytes(), exact.len()), Ok(HeadCheck::Ok { len: exact.len() }));
        assert_eq!(check_head(exact.as_bytes(), exact.len() - 1), Err(Reason::HeaderTooLarge));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), limit in 0usize..200) {
            let _ = check_head(&bytes, limit);
        }

        #[test]
        fn near_heads_never_panic_and_parts_never_pass(
            head in "(GET|POST|P) /?[a-z ]{0,3} HTTP/1.[0-2]\r?\n((Host|Content-Length|Transfer-Encoding|X)[ ]?: ?(chunked|1|a)?[\r]?\n){0,4}\r?\n?",
        ) {
            if let Ok(HeadCheck::Ok { len }) = check(&head) {
                for end in 0..len {
                    prop_assert_eq!(check(&head[..end]), Ok(HeadCheck::NeedMore));
                }
            }
        }
    }
}
