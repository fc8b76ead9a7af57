//! Tables of heads that pass and that do not, and properties of all readers.

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
