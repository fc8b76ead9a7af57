//! What a proxy answers itself, as bytes of HTTP/1. Refusals: the reason's status, its code in `x-weft-reason`, one sentence for people; to a gRPC client gRPC's own form.

use http::{HeaderMap, StatusCode};
use weft_engine::reason::Reason;

use super::heads::{push, status_line};
use crate::http::headers::REASON;
use crate::http::refuse::{Reply, sentence};

/// How it is said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// In gRPC's form.
    pub grpc: bool,
    /// The code may be told to this peer.
    pub named: bool,
    /// The connection ends with it.
    pub close: bool,
    /// It answers HEAD.
    pub bodyless: bool,
}

/// The status and the bytes.
pub fn reply(why: &Reply, how: Manner) -> (StatusCode, Vec<u8>) {
    let Manner { grpc, named, close, bodyless } = how;
    let Some(reason) = why.reason else { return (why.status, answer(why, close)) };
    let text = sentence(reason);
    let status = if grpc { StatusCode::OK } else { why.status };
    let mut out = Vec::with_capacity(512);
    status_line(&mut out, status.as_u16(), status.canonical_reason().unwrap_or_default().as_bytes());
    if grpc {
        push(&mut out, b"content-type", b"application/grpc");
        push(&mut out, b"grpc-status", reason.grpc_status().to_string().as_bytes());
        // The sentences are ASCII without `%`, so they need no percent-encoding.
        push(&mut out, b"grpc-message", text.trim_ascii_end().as_bytes());
        push(&mut out, b"content-length", b"0");
    } else {
        push(&mut out, b"content-type", b"text/plain; charset=utf-8");
        push(&mut out, b"content-length", text.len().to_string().as_bytes());
    }
    push_all(&mut out, &why.headers);
    if named {
        push(&mut out, REASON.as_str().as_bytes(), reason.code().as_bytes());
    }
    if close {
        push(&mut out, b"connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    if !grpc && !bodyless {
        out.extend_from_slice(text.as_bytes());
    }
    (status, out)
}

// A route's own answer, which has no body.
fn answer(told: &Reply, close: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    status_line(&mut out, told.status.as_u16(), told.status.canonical_reason().unwrap_or_default().as_bytes());
    push_all(&mut out, &told.headers);
    // RFC 9110 section 8.6: what can have no body has no length.
    if told.status != StatusCode::NO_CONTENT {
        push(&mut out, b"content-length", b"0");
    }
    if close {
        push(&mut out, b"connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn push_all(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        push(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

/// A refusal of what is no request, after which nothing is read any more.
pub fn last(reason: Reason, named: bool) -> Vec<u8> {
    let mut bytes = reply(&reason.into(), Manner { named, close: true, ..Manner::default() }).1;
    if reason == Reason::RequestTimeout {
        // It is the client that took too long (RFC 9110 section 15.5.9), not somebody behind us.
        bytes.splice(..b"HTTP/1.1 504 Gateway Timeout".len(), *b"HTTP/1.1 408 Request Timeout");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &[u8]) -> (u16, Vec<(String, String)>, &[u8]) {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        let end = response.parse(bytes).unwrap().unwrap();
        let code = response.code.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let fields = response.headers.iter().map(|field| (field.name.to_owned(), text(field.value))).collect();
        (code, fields, &bytes[end..])
    }

    #[test]
    fn every_reason_can_be_told_in_every_form() {
        for reason in Reason::ALL {
            let (status, bytes) = reply(&(*reason).into(), Manner { named: true, ..Manner::default() });
            let (code, fields, body) = parsed(&bytes);
            assert_eq!((code, status), (reason.http_status().as_u16(), reason.http_status()));
            assert!(fields.contains(&("x-weft-reason".into(), reason.code().into())));
            assert!(fields.contains(&("content-length".into(), body.len().to_string())));
            assert_eq!(body, sentence(*reason).as_bytes());
            let (_, bytes) = reply(&(*reason).into(), Manner { grpc: true, close: true, ..Manner::default() });
            let (code, fields, body) = parsed(&bytes);
            assert_eq!((code, body), (200, &b""[..]));
            assert!(fields.contains(&("grpc-status".into(), reason.grpc_status().to_string())));
            assert!(fields.contains(&("connection".into(), "close".into())));
            assert!(!fields.iter().any(|(name, _)| name == "x-weft-reason"));
        }
        assert_eq!(parsed(&last(Reason::RequestTimeout, false)).0, 408);
    }

    #[test]
    fn an_answer_of_a_route_has_its_fields_and_no_body() {
        for (status, length) in [(StatusCode::FOUND, true), (StatusCode::NO_CONTENT, false)] {
            let headers = HeaderMap::from_iter([(http::header::LOCATION, "http://a/".parse().unwrap())]);
            let told = Reply { status, reason: None, headers };
            let (code, fields, body) = {
                let (said, bytes) = reply(&told, Manner { grpc: true, named: true, close: true, bodyless: false });
                assert_eq!(said, status);
                let (code, fields, body) = parsed(&bytes);
                (code, fields, body.to_vec())
            };
            assert_eq!((code, body), (status.as_u16(), Vec::new()));
            assert!(fields.contains(&("location".into(), "http://a/".into())), "{fields:?}");
            assert_eq!(fields.contains(&("content-length".into(), "0".into())), length);
            assert!(!fields.iter().any(|(name, _)| name.starts_with("x-weft") || name.starts_with("grpc")));
        }
    }
}
