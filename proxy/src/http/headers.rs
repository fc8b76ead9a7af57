//! What a proxy does to header fields, whatever the routes say.
//!
//! Invariants
//! - Fields that concern one connection only (RFC 9110 section 7.6.1), and those that `Connection` names, never pass to the next.
//! - What tells an application who its peer is comes from us alone: a client's own is removed before ours is set.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};

/// The reason code of a refusal.
pub const REASON: HeaderName = HeaderName::from_static("x-weft-reason");
/// Whose certificate the client has shown: `By=SPIFFE;URI=SPIFFE`.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The addresses that a request has come by.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const OURS: &str = "x-weft-";

/// Whether it is a gRPC call, whose refusals are gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Removes what concerns one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        strip_nominated(headers);
        headers.remove(CONNECTION);
    }
    if headers.remove(UPGRADE).is_some() {
        headers.remove(HTTP2_SETTINGS);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    // hyper frames the body anew.
    headers.remove(TRANSFER_ENCODING);
    if let Some(accepted) = headers.get(TE)
        && accepted != "trailers"
    {
        let trailers = tokens(accepted).any(|name| name.eq_ignore_ascii_case("trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    // hyper answers `100 Continue` itself as soon as the next hop wants the body, so the next hop is not asked.
    headers.remove(EXPECT);
}

// Fields that `Connection` names. Framing and the name of the server are not a client's to withdraw.
fn strip_nominated(headers: &mut HeaderMap) {
    let plain = |value: &HeaderValue| {
        let value = value.as_bytes();
        [&b"keep-alive"[..], b"close", b"upgrade"].iter().any(|known| value.eq_ignore_ascii_case(known))
    };
    if headers.get_all(CONNECTION).iter().all(plain) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter_map(|name| HeaderName::try_from(name).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH, UPGRADE, TE, CONNECTION].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty())
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
    fn what_concerns_one_connection_stays_there() {
        let mut map = headers(&[
            ("connection", "keep-alive, X-Private, host"),
            ("x-private", "1"),
            ("host", "shop"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA"),
            ("expect", "100-continue"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("host", "shop"), ("te", "trailers"), ("accept", "*/*")]));
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
