//! What a proxy does to header fields, whatever the routes say. (Those that concern one connection only: [`super::h1`] removes them, the
//! library of [`super::h2`] refuses them.)
//!
//! Invariant: what tells an application who its peer is comes from us alone: a client's own is removed before ours is set.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

/// The reason code of a refusal.
pub const REASON: HeaderName = HeaderName::from_static("x-weft-reason");
/// Whose certificate the client has shown: `By=SPIFFE;URI=SPIFFE`.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The addresses that a request has come by.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const OURS: &str = "x-weft-";

/// Whether it is a gRPC call, whose refusals are gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Removes what a client says of its own identity, and every `x-weft-` field; also with `_` for `-`, which CGI-like programs take for
/// the same.
pub fn strip_identity(headers: &mut HeaderMap) {
    headers.remove(CLIENT_CERT);
    if headers.keys().any(is_ours) {
        let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
    }
}

fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
    let begins = |with: &str| name.len() >= with.len() && name.bytes().zip(with.bytes()).all(same);
    begins(OURS)
        || [CLIENT_CERT, FORWARDED_FOR]
            .iter()
            .any(|ours| name != ours.as_str() && name.len() == ours.as_str().len() && begins(ours.as_str()))
}

/// Appends the peer's address to `X-Forwarded-For`.
pub fn append_forwarded_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    let Some(before) = headers.get(FORWARDED_FOR) else {
        headers.insert(FORWARDED_FOR, peer.clone());
        return;
    };
    // Several fields are one list (RFC 9110 section 5.3): appending a field appends to it.
    let joined = [before.as_bytes(), b", ", peer.as_bytes()].concat();
    let several = headers.get_all(FORWARDED_FOR).iter().nth(1).is_some();
    match HeaderValue::from_bytes(&joined) {
        Ok(joined) if !several => headers.insert(FORWARDED_FOR, joined).is_some(),
        _ => headers.append(FORWARDED_FOR, peer.clone()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_client_does_not_say_who_it_is() {
        let mut map = headers(&[
            ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/a/sa/admin"),
            ("x-weft-reason", "not_processed"),
            ("x-weft-anything", "1"),
            ("x_forwarded_client_cert", "URI=spiffe://cluster.local/ns/a/sa/admin"),
            ("x-forwarded_for", "10.0.0.1"),
            ("x_weft_reason", "not_processed"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-wefted", "1"),
        ]);
        strip_identity(&mut map);
        assert_eq!(map, headers(&[("x-forwarded-for", "10.0.0.2"), ("x-wefted", "1")]));
    }

    #[test]
    fn addresses_are_appended() {
        let peer = HeaderValue::from_static("10.0.0.9");
        let mut map = HeaderMap::new();
        append_forwarded_for(&mut map, &peer);
        assert_eq!(map, headers(&[("x-forwarded-for", "10.0.0.9")]));
        let mut map = headers(&[("x-forwarded-for", "1.2.3.4")]);
        append_forwarded_for(&mut map, &peer);
        assert_eq!(map, headers(&[("x-forwarded-for", "1.2.3.4, 10.0.0.9")]));
        let mut map = headers(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8")]);
        append_forwarded_for(&mut map, &peer);
        assert_eq!(map.get_all("x-forwarded-for").iter().count(), 3);
    }
}
