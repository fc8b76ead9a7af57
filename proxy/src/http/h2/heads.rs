//! Whom a request is for, and what its route makes of that.

use std::net::SocketAddr;

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri};
use weft_engine::reason::Reason;
use weft_engine::route::Rewritten;

/// Makes `:authority` the one name of whom a request is for (RFC 9113 section 8.3.1): a `Host` that says another refuses the request,
/// one that stands alone becomes it, and where neither came it is the destination.
///
/// # Errors
/// [`Reason::MalformedRequest`]: it says no name, or two.
pub fn settle_authority(head: &mut Request<()>, destination: SocketAddr) -> Result<(), Reason> {
    let mut hosts = head.headers().get_all(HOST).iter();
    let host = hosts.next();
    let several = hosts.next().is_some();
    let authority = match (head.uri().authority(), host) {
        _ if several => return Err(Reason::MalformedRequest),
        (Some(named), _) if named.as_str().contains('@') => return Err(Reason::MalformedRequest),
        (Some(named), Some(host)) if !named.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(Reason::MalformedRequest);
        }
        (Some(_), _) => return Ok(()),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).ok(),
        (None, None) => Authority::try_from(destination.to_string()).ok(),
    };
    let authority = authority.filter(|name| !name.as_str().contains('@')).ok_or(Reason::MalformedRequest)?;
    let path = head.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build();
    *head.uri_mut() = uri.map_err(|_| Reason::MalformedRequest)?;
    Ok(())
}

/// Gives a request another path or name, by its route. The target of a plain CONNECT is neither.
///
/// # Errors
/// [`Reason::MalformedRequest`]: they do not make a target.
pub fn rewrite(head: &mut Request<()>, rewritten: &Rewritten<'_>) -> Result<(), Reason> {
    let tunnel = *head.method() == Method::CONNECT && head.extensions().get::<h2::ext::Protocol>().is_none();
    if *rewritten == Rewritten::default() || tunnel {
        return Ok(());
    }
    let mut parts = std::mem::take(head.uri_mut()).into_parts();
    if let Some(path) = &rewritten.path {
        let query = parts.path_and_query.as_ref().and_then(PathAndQuery::query);
        let path = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        parts.path_and_query = Some(PathAndQuery::try_from(path).map_err(|_| Reason::MalformedRequest)?);
    }
    if let Some(host) = rewritten.host {
        parts.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| Reason::MalformedRequest)?);
        head.headers_mut().remove(HOST);
    }
    *head.uri_mut() = Uri::from_parts(parts).map_err(|_| Reason::MalformedRequest)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(authority: Option<&str>, hosts: &[&str]) -> Result<String, Reason> {
        let mut head = Request::new(());
        *head.uri_mut() = match authority {
            Some(name) => format!("https://{name}/a?b=c").parse().unwrap(),
            None => "/a?b=c".parse().unwrap(),
        };
        for host in hosts {
            head.headers_mut().append(HOST, host.parse().unwrap());
        }
        settle_authority(&mut head, "10.0.0.1:80".parse().unwrap())?;
        Ok(head.uri().to_string())
    }

    #[test]
    fn a_request_is_for_one_name() {
        assert_eq!(settled(Some("shop:80"), &[]).unwrap(), "https://shop:80/a?b=c");
        assert_eq!(settled(Some("shop"), &["SHOP"]).unwrap(), "https://shop/a?b=c");
        assert_eq!(settled(None, &["shop"]).unwrap(), "http://shop/a?b=c");
        assert_eq!(settled(None, &[]).unwrap(), "http://10.0.0.1:80/a?b=c");
        for (authority, hosts) in [
            (Some("shop"), &["other"][..]),
            (Some("shop"), &["shop", "shop"]),
            (Some("shop"), &[""]),
            (Some("user@shop"), &[]),
            (None, &["user@shop"]),
            (None, &["a b"]),
            (None, &["shop", "shop"]),
        ] {
            assert_eq!(settled(authority, hosts), Err(Reason::MalformedRequest), "{authority:?} {hosts:?}");
        }
    }

    #[test]
    fn a_rewritten_head_says_the_new_path_and_name() {
        let name = "b.example".parse().unwrap();
        let rewritten = |host, path: Option<&str>| Rewritten { host, path: path.map(str::to_owned) };
        let made = |method: Method, rewritten| {
            let mut head = Request::builder().method(method).uri("http://shop:80/a?b=c").body(()).unwrap();
            rewrite(&mut head, &rewritten).unwrap();
            head.uri().to_string()
        };
        assert_eq!(made(Method::GET, rewritten(None, None)), "http://shop:80/a?b=c");
        assert_eq!(made(Method::GET, rewritten(None, Some("/n"))), "http://shop:80/n?b=c");
        assert_eq!(made(Method::GET, rewritten(Some(&name), None)), "http://b.example/a?b=c");
        assert_eq!(made(Method::CONNECT, rewritten(Some(&name), Some("/n"))), "http://shop:80/a?b=c");
    }
}
