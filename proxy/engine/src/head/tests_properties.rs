//! Properties of all readers: heads in parts, and bytes that are none.

use super::scan::{FIELD, field_run, run};
use super::*;
use crate::reason::Reason;
use proptest::prelude::*;

const LIMIT: usize = 4096;

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        "[!-9A-Za-z^-z|~&&[^\"(),./]]{1,20}:[ \t]{0,2}[ -~\u{80}-\u{ff}\t]{0,40}",
        Just("x-weft-a: b".to_owned()),
        Just("Connection: close, x".to_owned()),
    ]
    // Not what would frame or be refused.
    .prop_filter("frames", |field| {
        let name = field.split(':').next().unwrap_or_default().replace('_', "-").to_ascii_lowercase();
        !["host", "content-length", "transfer-encoding"].contains(&name.as_str())
    })
}

fn fields() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(field(), 0..8)
}

fn lines(first: &str, fields: &[String], end: &str) -> String {
    let mut head = format!("{first}{end}");
    for field in fields {
        head.push_str(field);
        head.push_str(end);
    }
    head + end
}

// What may have been a head once.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        Just("GET /a?b HTTP/1.1\r\nHost: a"),
        Just("GET http://a HTTP/1.1\r\nHost: a"),
        Just("CONNECT a:1 HTTP/1.1\r\nHost: a"),
        Just("HTTP/1.1 200 OK"),
        Just("X: y"),
    ];
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (first, fields(), damage).prop_map(|(first, fields, damage)| {
        let mut bytes = lines(first, &fields, "\r\n").into_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

fn inside(bytes: &[u8], span: Span) -> bool {
    span.start <= span.end && span.end as usize <= bytes.len()
}

// Reads bytes in every way; what is found must be in them.
fn nothing_outside(bytes: &[u8], limit: usize) {
    let mut fields = Vec::new();
    let check = |fields: &[Field], len: usize| {
        assert!(len <= bytes.len().min(limit));
        for field in fields {
            assert!(inside(&bytes[..len], field.name) && inside(&bytes[..len], field.value));
            let value = field.value.of(bytes);
            assert_eq!(value, value.trim_ascii(), "trimmed");
            assert!(value.iter().all(|b| *b == b'\t' || *b >= b' ' && *b != 0x7f));
            forbidden_in_trailers(field.name.of(bytes), field.kind);
            assert!(tokens(value).all(|token| !token.is_empty()));
        }
    };
    if let Ok(Some(head)) = read_request(bytes, limit, &mut fields) {
        check(&fields, head.len);
        assert!([head.method, head.target, head.origin_form()].iter().all(|span| inside(&bytes[..head.len], *span)));
        let path = head.path(bytes);
        assert_eq!(path.is_empty(), head.method.of(bytes) == b"CONNECT");
        let mut origin = if head.needs_slash(bytes) { "/".to_owned() } else { String::new() };
        origin.push_str(str::from_utf8(head.origin_form().of(bytes)).unwrap());
        assert_eq!(origin, head.query(bytes).map_or(path.to_owned(), |query| format!("{path}?{query}")));
    }
    for asked in [Asked::Head, Asked::Connect, Asked::Other] {
        if let Ok(Some(head)) = read_response(bytes, limit, asked, &mut fields) {
            check(&fields, head.len);
            assert!(inside(&bytes[..head.len], head.reason) && (100..=999).contains(&head.status));
        }
    }
    if let Ok(Some(len)) = read_trailers(bytes, limit, &mut fields) {
        check(&fields, len);
    }
}

type Parse<'a> = dyn FnMut(&[u8]) -> Result<Option<usize>, Reason> + 'a;

proptest! {
    #[test]
    fn parts_of_heads_are_no_heads(fields in fields(), tail in "[ -~\r\n]{0,9}", lf in any::<bool>()) {
        let read = &mut Vec::new();
        let parts = |head: &str, parse: &mut Parse<'_>| {
            for end in 0..head.len() {
                assert_eq!(parse(&head.as_bytes()[..end]), Ok(None), "{head:?} until {end}");
            }
            assert_eq!(parse(format!("{head}{tail}").as_bytes()), Ok(Some(head.len())), "{head:?}");
        };
        let request = lines("\r\nGET http://a?b HTTP/1.1\r\nHost: a", &fields, "\r\n");
        parts(&request, &mut |bytes| Ok(read_request(bytes, LIMIT, read)?.map(|head| head.len)));
        prop_assert_eq!(read.len(), fields.len() + 1);
        let response = lines("HTTP/1.1 200 OK", &fields, if lf { "\n" } else { "\r\n" });
        parts(&response, &mut |bytes| Ok(read_response(bytes, LIMIT, Asked::Other, read)?.map(|head| head.len)));
        prop_assert_eq!(read.len(), fields.len());
        let trailers = lines("X: y", &fields, "\r\n");
        parts(&trailers, &mut |bytes| read_trailers(bytes, LIMIT, read));
        prop_assert_eq!(read.len(), fields.len() + 1);
        for (field, written) in read[1..].iter().zip(&fields) {
            let (name, value) = written.split_once(':').unwrap();
            prop_assert_eq!(field.name.of(trailers.as_bytes()), name.as_bytes());
            prop_assert_eq!(field.value.of(trailers.as_bytes()), value.trim_matches([' ', '\t']).as_bytes());
        }
    }

    #[test]
    fn eight_bytes_at_a_time_end_where_one_at_a_time_do(
        bytes in prop::collection::vec(prop_oneof![6 => Just(b'a'), 1 => Just(b'\t'), 1 => any::<u8>()], 0..60),
        at in 0usize..70,
    ) {
        prop_assert_eq!(field_run(&bytes, at), run(&bytes, at, FIELD));
    }

    #[test]
    fn no_bytes_panic_or_give_places_outside(bytes in prop::collection::vec(any::<u8>(), 0..200), limit in 0usize..200) {
        nothing_outside(&bytes, limit);
    }

    #[test]
    fn no_damaged_head_panics_or_gives_places_outside(bytes in damaged(), limit in prop_oneof![0usize..400, Just(LIMIT)]) {
        nothing_outside(&bytes, limit);
    }
}
