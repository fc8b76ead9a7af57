//! `httpGet`, as the kubelet does it: header fields of its own if the probe names none, any certificate taken, redirects within the host
//! followed.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use weft_api::probe::{HttpGet, Scheme};
use weft_certs::tls::unverified_client_config;

use super::{Door, Found, MAX_ANSWER};

/// As the kubelet's client follows.
const MAX_REDIRECTS: usize = 10;

pub(super) async fn ask(door: Door, get: &HttpGet, agent: Option<&HeaderValue>) -> io::Result<Found> {
    let addr = door.addr;
    let mut target = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    for _ in 0..=MAX_REDIRECTS {
        let request = request(addr, &target, get, agent)?;
        let response = send(door, get.scheme, request).await?;
        let status = response.status();
        if !status.is_redirection() {
            return Ok(Found::Answer(status, beginning(response).await));
        }
        match within(addr, &response) {
            Some(next) => target = next,
            // The kubelet takes a redirect to another host for success, without going there.
            None => return Ok(Found::Answer(StatusCode::OK, beginning(response).await)),
        }
    }
    Ok(Found::Failed(format!("{addr} redirects more than {MAX_REDIRECTS} times")))
}

fn request(
    addr: SocketAddr,
    target: &str,
    get: &HttpGet,
    agent: Option<&HeaderValue>,
) -> io::Result<Request<Empty<Bytes>>> {
    let mut request = Request::get(target).body(Empty::new()).map_err(io::Error::other)?;
    let fields = request.headers_mut();
    fields.insert(HOST, HeaderValue::from_str(&addr.to_string()).map_err(io::Error::other)?);
    fields.insert(USER_AGENT, agent.cloned().unwrap_or(HeaderValue::from_static("kube-probe/")));
    fields.insert(ACCEPT, HeaderValue::from_static("*/*"));
    // The first of a name takes the place of ours, further ones come beside it.
    let mut named: Vec<HeaderName> = Vec::new();
    for field in &get.http_headers {
        let name = HeaderName::try_from(field.name.as_str()).map_err(io::Error::other)?;
        let value = HeaderValue::from_str(&field.value).map_err(io::Error::other)?;
        if named.contains(&name) && name != HOST {
            fields.append(name, value);
        } else {
            fields.insert(name.clone(), value);
            named.push(name);
        }
    }
    Ok(request)
}

async fn send(door: Door, scheme: Scheme, request: Request<Empty<Bytes>>) -> io::Result<Response<Incoming>> {
    let tcp = door.open().await?;
    match scheme {
        Scheme::Http => exchange(tcp, request).await,
        Scheme::Https => {
            let tls = TlsConnector::from(unverified_client_config().map_err(io::Error::other)?);
            exchange(tls.connect(ServerName::from(door.addr.ip()), tcp).await?, request).await
        }
    }
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> io::Result<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    // It ends when the answer has been read or given up: its other end is dropped then.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

/// The first bytes of a body; one that breaks is as long as it got.
async fn beginning(response: Response<Incoming>) -> Bytes {
    let (mut body, mut read) = (response.into_body(), Vec::new());
    while read.len() < MAX_ANSWER
        && let Some(Ok(frame)) = body.frame().await
    {
        read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    read.truncate(MAX_ANSWER);
    read.into()
}

/// Where a redirect leads, if that is the application again.
fn within(addr: SocketAddr, response: &Response<Incoming>) -> Option<String> {
    let location: Uri = response.headers().get(LOCATION)?.to_str().ok()?.parse().ok()?;
    let here = location.authority().is_none_or(|authority| {
        authority.host().trim_matches(['[', ']']) == addr.ip().to_string()
            && authority.port_u16().is_none_or(|port| port == addr.port())
    });
    here.then(|| location.path_and_query().map_or("/", PathAndQuery::as_str).to_owned())
}
