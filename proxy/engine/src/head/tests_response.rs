//! Responses and trailer sections: tables of what passes and of what does not.

use super::*;
use crate::reason::Reason;

const LIMIT: usize = 4096;

fn read(head: &str, asked: Asked) -> Result<Option<ResponseHead>, Reason> {
    read_response(head.as_bytes(), LIMIT, asked, &mut Vec::new())
}

#[test]
fn bodies_end_where_the_specification_says() {
    use ResponseBody::{Chunked, Known, None, UntilClose};
    for (asked, head, body, close) in [
        (Asked::Other, "HTTP/1.1 200 OK\r\n\r\n", UntilClose, false),
        (Asked::Other, "HTTP/1.0 200 OK\r\n\r\n", UntilClose, true),
        (Asked::Other, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Known(0), false),
        (Asked::Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", Known(5), false),
        (Asked::Other, "HTTP/1.1 200 OK\r\nContent-Length: 5, 05 ,5\r\n\r\n", Known(5), false),
        (Asked::Other, "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Chunked, false),
        (Asked::Other, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Chunked, false),
        (Asked::Other, "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", None, false),
        (Asked::Other, "HTTP/1.1 304 No\r\nTransfer-Encoding: chunked\r\n\r\n", None, false),
        (Asked::Other, "HTTP/1.1 100 Continue\r\n\r\n", None, false),
        (Asked::Other, "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n", None, false),
        (Asked::Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", None, false),
        (Asked::Head, "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n", None, false),
        (Asked::Connect, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", None, false),
        (Asked::Connect, "HTTP/1.1 299 OK\r\n\r\n", None, false),
        (Asked::Connect, "HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n", Known(5), false),
        (Asked::Connect, "HTTP/1.1 300 No\r\n\r\n", UntilClose, false),
        (Asked::Other, "HTTP/1.1 999\r\nContent-Length: 1\r\nconnection: x, Close\r\n\r\n", Known(1), true),
        (Asked::Other, "HTTP/1.0 200 \r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\n", Known(1), false),
        (Asked::Other, "HTTP/1.0 200 \r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", UntilClose, true),
        (Asked::Other, "HTTP/1.1 200 OK\nContent-Length: 5\n\n", Known(5), false),
        (Asked::Other, "HTTP/1.1 200\nContent-Length: 5\r\n\n", Known(5), false),
        (Asked::Other, "HTTP/1.1 200 Caf\u{e9}\tau lait\r\nX: \u{e9}\r\nContent-Length: 5\r\n\r\n", Known(5), false),
    ] {
        let found = read(&format!("{head}\0body"), asked).unwrap().unwrap();
        assert_eq!((found.len, found.body, found.close), (head.len(), body, close), "{head:?}");
    }
}

#[test]
fn a_response_is_told_apart_into_places() {
    for end in ["\r\n", "\n"] {
        let head = ["HTTP/1.0 203 Not  so \tsure", "Content-Type: a/b \t", "X-weft-Reason:no", "", ""].join(end);
        let bytes = head.as_bytes();
        let mut fields = Vec::new();
        let found = read_response(bytes, LIMIT, Asked::Other, &mut fields).unwrap().unwrap();
        assert_eq!((found.status, found.http11, found.reason.of(bytes)), (203, false, &b"Not  so \tsure"[..]));
        let fields: Vec<_> = fields.iter().map(|f| (f.name.of(bytes), f.value.of(bytes), f.kind)).collect();
        let typed = (&b"Content-Type"[..], &b"a/b"[..], Kind::ContentType);
        assert_eq!(fields, [typed, (b"X-weft-Reason", b"no", Kind::Ours)]);
    }
}

#[test]
fn responses_that_could_be_read_two_ways_are_refused() {
    for head in [
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1\t200 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 +20 OK\r\n\r\n",
        "HTTP/1.1 200\tOK\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\n\r\n",
        "HTTP/1.1 200 OK\r\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\n\tfolded\n\n",
        "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX(: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: \x7f\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\rX: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000000\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert_eq!(read(head, Asked::Other), Err(Reason::UpstreamProtocol), "{head:?}");
    }
}

#[test]
fn responses_are_bounded() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(LIMIT));
    assert_eq!(read(&long, Asked::Other), Err(Reason::UpstreamProtocol));
    assert_eq!(read(&long[..LIMIT - 1], Asked::Other), Ok(None));
    let with = |fields: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(fields));
    assert!(read(&with(MAX_RESPONSE_FIELDS), Asked::Other).unwrap().is_some());
    assert_eq!(read(&with(MAX_RESPONSE_FIELDS + 1), Asked::Other), Err(Reason::UpstreamProtocol));
    let exact = with(1);
    let limited = |limit| read_response(exact.as_bytes(), limit, Asked::Other, &mut Vec::new());
    assert!(limited(exact.len()).unwrap().is_some());
    assert_eq!(limited(exact.len() - 1), Err(Reason::UpstreamProtocol));
}

#[test]
fn trailer_sections_end_with_an_empty_line() {
    for (section, names) in [
        ("\r\n", &[][..]),
        ("Grpc-Status: 0\r\nX:\r\n\r\n", &[("Grpc-Status", "0", Kind::GrpcStatus), ("X", "", Kind::Other)]),
    ] {
        let bytes = format!("{section}GET /");
        let bytes = bytes.as_bytes();
        let mut fields = Vec::new();
        for part in 0..section.len() {
            assert_eq!(read_trailers(&bytes[..part], LIMIT, &mut fields), Ok(None), "{section:?} until {part}");
            assert_eq!(read_trailers(bytes, part, &mut fields), Err(Reason::HeaderTooLarge));
        }
        assert_eq!(read_trailers(bytes, section.len(), &mut fields), Ok(Some(section.len())));
        let found = fields.iter().map(|f| (f.name.of(bytes), f.value.of(bytes), f.kind));
        assert!(found.eq(names.iter().map(|(name, value, kind)| (name.as_bytes(), value.as_bytes(), *kind))));
    }
    for bad in ["\n", "X: a\n\r\n", "X: a\rY", "X: a\r\n\n", "X: a\r\n b\r\n", "X\r\n", " X: a\r\n", "\rX", "X: \0"] {
        assert_eq!(read_trailers(bad.as_bytes(), LIMIT, &mut Vec::new()), Err(Reason::MalformedRequest), "{bad:?}");
    }
    let with = |fields: usize| format!("{}\r\n", "X: y\r\n".repeat(fields));
    assert!(read_trailers(with(MAX_FIELDS).as_bytes(), LIMIT, &mut Vec::new()).unwrap().is_some());
    let many = with(MAX_FIELDS + 1);
    assert_eq!(read_trailers(many.as_bytes(), LIMIT, &mut Vec::new()), Err(Reason::HeaderTooLarge));
}

#[test]
fn what_needs_a_check_is_no_trailer() {
    for (name, forbidden) in [
        ("Host", true),
        ("Content-Length", true),
        ("transfer_encoding", true),
        ("TE", true),
        ("Trailer", true),
        ("Connection", true),
        ("Expect", true),
        ("Authorization", true),
        ("Proxy-Authorization", true),
        ("cookie", true),
        ("Set-Cookie", true),
        ("Content-Encoding", true),
        ("If-Match", true),
        ("if-anything", true),
        ("Forwarded", true),
        ("X-Forwarded-Proto", true),
        ("x_forwarded_for", true),
        ("X-Forwarded-Client-Cert", true),
        ("X-Weft-Reason", true),
        ("X_Weft_Peer", true),
        ("Grpc-Status", false),
        ("grpc-message", false),
        ("grpc-status-details-bin", false),
        ("Digest", false),
        ("Server-Timing", false),
        ("ETag", false),
        ("X-Checksum", false),
        ("Iffy", false),
    ] {
        assert_eq!(forbidden_in_trailers(name.as_bytes(), Kind::of(name.as_bytes())), forbidden, "{name}");
    }
}
