//! Tables of heads that pass and that do not, and a property of what is almost one.

use super::*;
use crate::framing::BodyLength;
use crate::reason::Reason;
use proptest::prelude::*;

const LIMIT: usize = 4096;

// The length of the first head.
fn read(head: &str) -> Result<Option<usize>, Reason> {
    Ok(read_request(head.as_bytes(), LIMIT, &mut Vec::new())?.map(|head| head.len))
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
        assert_eq!(read(head), Ok(Some(head.len())), "{head:?}");
        assert_eq!(read(&format!("{head}body\n\n")), Ok(Some(head.len())), "{head:?}");
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
        assert_eq!(read(head), Err(Reason::MalformedRequest), "{head:?}");
    }
}

#[test]
fn size_is_bounded() {
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(LIMIT));
    assert_eq!(read(&long), Err(Reason::HeaderTooLarge));
    assert_eq!(read(&long[..LIMIT - 1]), Ok(None));
    let with = |fields: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(fields - 1));
    assert!(read(&with(MAX_FIELDS)).unwrap().is_some());
    assert_eq!(read(&with(MAX_FIELDS + 1)), Err(Reason::HeaderTooLarge));
    let exact = "GET / HTTP/1.0\r\n\r\n";
    let limited = |limit| read_request(exact.as_bytes(), limit, &mut Vec::new());
    assert!(limited(exact.len()).unwrap().is_some());
    assert_eq!(limited(exact.len() - 1), Err(Reason::HeaderTooLarge));
}

#[test]
fn a_request_is_told_apart_into_places() {
    let head =
        b"\r\nPOST /a?b=c HTTP/1.1\r\nHost: [::1]:80\r\ncontent-LENGTH:3\r\nX: \t v\t w \t\r\nEmpty:  \r\n\r\nabc";
    let mut fields = vec![Field { name: Span::default(), value: Span::default(), kind: Kind::Other }];
    let read = read_request(head, LIMIT, &mut fields).unwrap().unwrap();
    assert_eq!((read.len, read.body, read.http11), (head.len() - 3, BodyLength::Known(3), true));
    assert_eq!((read.method.of(head), read.target.of(head)), (&b"POST"[..], &b"/a?b=c"[..]));
    let found: Vec<_> = fields.iter().map(|field| (field.name.of(head), field.value.of(head), field.kind)).collect();
    assert_eq!(
        found,
        [
            (&b"Host"[..], &b"[::1]:80"[..], Kind::Host),
            (b"content-LENGTH", b"3", Kind::ContentLength),
            (b"X", b"v\t w", Kind::Other),
            (b"Empty", b"", Kind::Other),
        ]
    );
    assert_eq!(Span { start: 3, end: 900 }.of(head), b"");
    assert_eq!(Span { start: 3, end: 2 }.of(head), b"");
    assert_eq!(Span { start: 3, end: 2 }.len(), 0);
}

#[test]
fn targets_have_their_path_and_query() {
    for (method, target, path, query, origin, slash) in [
        ("GET", "/", "/", None, "/", false),
        ("GET", "/a?", "/a", Some(""), "/a?", false),
        ("GET", "/a?b?c", "/a", Some("b?c"), "/a?b?c", false),
        ("GET", "//a//b", "//a//b", None, "//a//b", false),
        ("GET", "/caf\u{e9}?\u{e9}", "/caf\u{e9}", Some("\u{e9}"), "/caf\u{e9}?\u{e9}", false),
        ("GET", "/http://b/c", "/http://b/c", None, "/http://b/c", false),
        ("OPTIONS", "*", "*", None, "*", false),
        ("OPTIONS", "http://a", "/", None, "", true),
        ("GET", "http://a/", "/", None, "/", false),
        ("GET", "http://a/b?c", "/b", Some("c"), "/b?c", false),
        ("GET", "http://a?b/c", "/", Some("b/c"), "?b/c", true),
        ("GET", "HTTPS://a:443/b://c/d", "/b://c/d", None, "/b://c/d", false),
        ("CONNECT", "a:80", "", None, "", false),
    ] {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let bytes = head.as_bytes();
        let read = read_request(bytes, LIMIT, &mut Vec::new()).unwrap().unwrap();
        assert_eq!((read.path(bytes), read.query(bytes)), (path, query), "{target}");
        assert_eq!(read.origin_form().of(bytes), origin.as_bytes(), "{target}");
        assert_eq!(read.needs_slash(bytes), slash, "{target}");
        assert_eq!(read.target.of(bytes), target.as_bytes());
        // Other bytes than it was read from: nothing to be had, and no panic.
        assert!(read.path(b"G").len() <= 1 && read.query(b"G").is_none());
    }
}

#[test]
fn what_no_further_byte_can_mend_is_refused_at_once() {
    for part in [
        "GET\r",
        " ",
        "G(",
        "GET  ",
        "GET /\n",
        "GET / HTTP/2",
        "GET / HTTP/1.1\n",
        "GET a HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\nHost ",
    ] {
        assert_eq!(read(part), Err(Reason::MalformedRequest), "{part:?}");
    }
    assert_eq!(read(&"A".repeat(MAX_METHOD)), Ok(None));
    assert_eq!(read(&"A".repeat(MAX_METHOD + 1)), Err(Reason::MalformedRequest));
}

#[test]
fn kinds_are_known_whatever_their_case() {
    for (name, kind) in [
        ("host", Kind::Host),
        ("Content-Length", Kind::ContentLength),
        ("transfer-encoding", Kind::TransferEncoding),
        ("Connection", Kind::Connection),
        ("keep-alive", Kind::KeepAlive),
        ("Proxy-Connection", Kind::ProxyConnection),
        ("te", Kind::Te),
        ("trailer", Kind::Trailer),
        ("upgrade", Kind::Upgrade),
        ("http2-settings", Kind::Http2Settings),
        ("expect", Kind::Expect),
        ("content-type", Kind::ContentType),
        ("x-forwarded-for", Kind::ForwardedFor),
        ("x-forwarded-client-cert", Kind::ClientCert),
        ("x-weft-reason", Kind::Ours),
        ("x-weft-", Kind::Ours),
        // As long as one that is looked for.
        ("x-weft-abcdefgh", Kind::Ours),
        ("x-weft-abcdefghijklmnop", Kind::Ours),
        ("x-weft-abc", Kind::Ours),
        ("x_weft-reason", Kind::Ours),
        ("x-forwarded_for", Kind::Ours),
        ("x_forwarded_client_cert", Kind::Ours),
        ("grpc-status", Kind::GrpcStatus),
        ("x-weft", Kind::Other),
        ("x-forwarded-fox", Kind::Other),
        ("content_length", Kind::Other),
        ("grpc_status", Kind::Other),
        ("a", Kind::Other),
        ("", Kind::Other),
    ] {
        for name in [name.to_ascii_lowercase(), name.to_ascii_uppercase(), name.to_owned()] {
            assert_eq!(Kind::of(name.as_bytes()), kind, "{name}");
        }
    }
}

#[test]
fn lists_are_told_apart() {
    let tokens = |value: &'static str| tokens(value.as_bytes()).map(|t| str::from_utf8(t).unwrap()).collect::<Vec<_>>();
    assert_eq!(tokens(" a ,,b,\t, c d\t"), ["a", "b", "c d"]);
    assert!(tokens(" , ").is_empty());
}

proptest! {
    #[test]
    fn near_heads_never_panic_and_parts_never_pass(
        head in "(GET|POST|P) /?[a-z ]{0,3} HTTP/1.[0-2]\r?\n((Host|Content-Length|Transfer-Encoding|X)[ ]?: ?(chunked|1|a)?[\r]?\n){0,4}\r?\n?",
    ) {
        if let Ok(Some(len)) = read(&head) {
            for end in 0..len {
                prop_assert_eq!(read(&head[..end]), Ok(None));
            }
        }
    }
}
