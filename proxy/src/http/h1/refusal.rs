//! Refusals as bytes of HTTP/1: the reason's status, its code in `x-weft-reason`, one sentence for people; to a gRPC client gRPC's own form.

use http::StatusCode;
use weft_engine::reason::Reason;

use super::heads::{push, status_line};
use crate::http::headers::REASON;
use crate::http::inbound::Refusal;
use crate::http::refuse::sentence;

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

/// A refusal: its status and its bytes.
pub fn refusal(why: &Refusal, how: Manner) -> (StatusCode, Vec<u8>) {
    let Manner { grpc, named, close, bodyless } = how;
    let text = sentence(why.reason);
    let status = if grpc { StatusCode::OK } else { why.reason.http_status() };
    let mut out = Vec::with_capacity(512);
    status_line(&mut out, status.as_u16(), status.canonical_reason().unwrap_or_default().as_bytes());
    if grpc {
        push(&mut out, b"content-type", b"application/grpc");
        push(&mut out, b"grpc-status", why.reason.grpc_status().to_string().as_bytes());
        // The sentences are ASCII without `%`, so they need no percent-encoding.
        push(&mut out, b"grpc-message", text.trim_ascii_end().as_bytes());
        push(&mut out, b"content-length", b"0");
    } else {
        push(&mut out, b"content-type", b"text/plain; charset=utf-8");
        push(&mut out, b"content-length", text.len().to_string().as_bytes());
    }
    for (name, value) in &why.headers {
        push(&mut out, name.as_str().as_bytes(), value.as_bytes());
    }
    if named {
        push(&mut out, REASON.as_str().as_bytes(), why.reason.code().as_bytes());
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

/// A refusal of what is no request, after which nothing is read any more.
pub fn last(reason: Reason, named: bool) -> Vec<u8> {
    let mut bytes = refusal(&reason.into(), Manner { named, close: true, ..Manner::default() }).1;
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
            let (status, bytes) = refusal(&(*reason).into(), Manner { named: true, ..Manner::default() });
            let (code, fields, body) = parsed(&bytes);
            assert_eq!((code, status), (reason.http_status().as_u16(), reason.http_status()));
            assert!(fields.contains(&("x-weft-reason".into(), reason.code().into())));
            assert!(fields.contains(&("content-length".into(), body.len().to_string())));
            assert_eq!(body, sentence(*reason).as_bytes());
            let (_, bytes) = refusal(&(*reason).into(), Manner { grpc: true, close: true, ..Manner::default() });
            let (code, fields, body) = parsed(&bytes);
            assert_eq!((code, body), (200, &b""[..]));
            assert!(fields.contains(&("grpc-status".into(), reason.grpc_status().to_string())));
            assert!(fields.contains(&("connection".into(), "close".into())));
            assert!(!fields.iter().any(|(name, _)| name == "x-weft-reason"));
        }
        assert_eq!(parsed(&last(Reason::RequestTimeout, false)).0, 408);
    }
}
