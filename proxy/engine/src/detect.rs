//! Which protocol the first bytes of a connection speak.
//!
//! Pure and bounded: the caller peeks, asks, and waits for more only as long as the answer is [`Detected::NeedMore`]; how long it
//! waits is its own affair. What is not certainly HTTP is opaque: policies that name methods or paths never allow such a
//! connection, so a disguise gains nothing.

use crate::head::MAX_METHOD;

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// Could still be several things.
    NeedMore,
    /// A TLS ClientHello.
    Tls,
    /// An HTTP/1 request.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Anything else.
    Opaque,
}

/// The client connection preface (RFC 9113 section 3.4).
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes after which an unfinished request line of an unknown method is taken for opaque.
pub const MAX_PREFIX: usize = 16 << 10;
/// Recognised as soon as their target begins.
const METHODS: [&[u8]; 9] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"];

/// Classifies what a client sent first.
pub fn detect(prefix: &[u8]) -> Detected {
    if prefix.is_empty() {
        return Detected::NeedMore;
    }
    if prefix[0] == 0x16 {
        return detect_tls(prefix);
    }
    if prefix.starts_with(HTTP2_PREFACE) {
        return Detected::Http2;
    }
    if HTTP2_PREFACE.starts_with(prefix) {
        return Detected::NeedMore;
    }
    detect_http1(after_empty_lines(prefix))
}

/// Servers skip empty lines before a request (RFC 9112 section 2.2), so they make nothing opaque; how many pass is for the head's check.
fn after_empty_lines(prefix: &[u8]) -> &[u8] {
    let text = prefix.iter().position(|b| !b"\r\n".contains(b)).unwrap_or(prefix.len());
    &prefix[text..]
}

/// A handshake record (RFC 8446 section 5.1): type 22, version 3.0 to 3.4, a length, and in it a message of type 1.
fn detect_tls(prefix: &[u8]) -> Detected {
    let version = prefix.get(1).is_none_or(|b| *b == 3) && prefix.get(2).is_none_or(|b| *b <= 4);
    let length = match prefix {
        [_, _, _, high, low, ..] => (4..=(16 << 10) + 256).contains(&(usize::from(*high) << 8 | usize::from(*low))),
        _ => true,
    };
    if !version || !length {
        return Detected::Opaque;
    }
    match prefix.get(5) {
        Some(1) => Detected::Tls,
        Some(_) => Detected::Opaque,
        None => Detected::NeedMore,
    }
}

/// Method, space, target, space, `HTTP/1.`: methods are upper case (IANA's registry knows no other), so that most text protocols
/// are told from HTTP by their first byte.
fn detect_http1(prefix: &[u8]) -> Detected {
    let is_method = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    match prefix.first() {
        None => return Detected::NeedMore,
        Some(first) if !first.is_ascii_uppercase() => return Detected::Opaque,
        Some(_) => {}
    }
    let Some(end) = prefix.iter().take(MAX_METHOD + 1).position(|b| !is_method(b)) else {
        return if prefix.len() > MAX_METHOD { Detected::Opaque } else { Detected::NeedMore };
    };
    if prefix[end] != b' ' {
        return Detected::Opaque;
    }
    let target = &prefix[end + 1..];
    if METHODS.contains(&&prefix[..end]) && (target.starts_with(b"/") || target.starts_with(b"http")) {
        // A sloppy rest of the line is for the head's check to refuse, not for opaque bytes to carry past it.
        return Detected::Http1;
    }
    detect_line(target)
}

/// The rest of a request line: `TARGET HTTP/1.x`.
fn detect_line(rest: &[u8]) -> Detected {
    let line = match rest.iter().take(MAX_PREFIX).position(|b| *b == b'\n') {
        Some(end) => &rest[..end],
        None if rest.len() >= MAX_PREFIX || !is_line(rest) => return Detected::Opaque,
        None => return Detected::NeedMore,
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.iter().rposition(|b| *b == b' ') {
        Some(at) if is_line(line) && line[at + 1..].starts_with(b"HTTP/1.") => Detected::Http1,
        _ => Detected::Opaque,
    }
}

fn is_line(bytes: &[u8]) -> bool {
    let text = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    text.iter().all(|b| *b >= 0x20 && *b != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HELLO: &[u8] = &[0x16, 3, 1, 0x02, 0x00, 1, 0, 1, 0xfc, 3, 3];

    #[test]
    fn protocols_are_told_apart() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Detected::Http1),
            (b"GET /", Detected::Http1),
            (b"POST http://a/b", Detected::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Detected::Http1),
            (b"CONNECT a:443 HTTP/1.1\r\n", Detected::Http1),
            (b"PROPFIND /dav HTTP/1.1\r\n", Detected::Http1),
            (b"PROPFIND /dav HTTP/1.1\n", Detected::Http1),
            (HTTP2_PREFACE, Detected::Http2),
            (b"PRI * HTTP/1.1\r\n", Detected::Http1),
            (HELLO, Detected::Tls),
            (b"\x16\x03\x01\x02\x00\x02", Detected::Opaque),
            (b"\x16\x09", Detected::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Detected::Opaque),
            (b"PING\r\n", Detected::Opaque),
            (b"EHLO client.example\r\n", Detected::Opaque),
            (b"SET a b\r\n", Detected::Opaque),
            (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", Detected::Opaque),
            (b"hello", Detected::Opaque),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Detected::Opaque),
            (b"\r\nGET / HTTP/1.1\r\n", Detected::Http1),
            (b"\n\r\n\nGET / HTTP/1.1\r\n", Detected::Http1),
            (b"\r\nPING\r\n", Detected::Opaque),
            (b"VERYLONGMETHODTHATNOBODYHAS / HTTP/1.1\r\n", Detected::Opaque),
        ] {
            assert_eq!(detect(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn fragments_wait_only_while_it_is_open() {
        for (bytes, expected) in [
            (&b""[..], Detected::NeedMore),
            (b"G", Detected::NeedMore),
            (b"GET", Detected::NeedMore),
            (b"GET ", Detected::NeedMore),
            (b"PRI * HT", Detected::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", Detected::NeedMore),
            (b"PROPFIND /dav HTTP/1", Detected::NeedMore),
            (b"\x16", Detected::NeedMore),
            (b"\r\n", Detected::NeedMore),
            (b"\r\n\r\nGE", Detected::NeedMore),
            (b"\x16\x03\x01\x02\x00", Detected::NeedMore),
            (b"g", Detected::Opaque),
            (b"PROPFIND /\0", Detected::Opaque),
        ] {
            assert_eq!(detect(bytes), expected, "{}", bytes.escape_ascii());
        }
        let mut long = b"PROPFIND /".to_vec();
        long.resize(MAX_PREFIX + 20, b'a');
        assert_eq!(detect(&long), Detected::Opaque);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_changes_its_mind(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut settled = None;
            for end in 0..=bytes.len() {
                let found = detect(&bytes[..end]);
                if let Some(before) = settled {
                    prop_assert_eq!(found, before, "at {}", end);
                } else if found != Detected::NeedMore {
                    settled = Some(found);
                }
            }
        }

        #[test]
        fn texts_settle_too(text in "[A-Z]{1,6}[ /*]{1,2}[a-z/]{0,4}[ ]?(HTTP/1.1)?[\r]?[\n]?[a-z]{0,3}") {
            let mut settled = None;
            for end in 0..=text.len() {
                let found = detect(&text.as_bytes()[..end]);
                if let Some(before) = settled {
                    prop_assert_eq!(found, before, "at {}", end);
                } else if found != Detected::NeedMore {
                    settled = Some(found);
                }
            }
        }
    }
}
