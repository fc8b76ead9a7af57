//! A small HTTP server that says who answered and what it saw.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{Server, serve};
use crate::exit::Failure;

/// The most that `/bytes/N` makes.
const MAX_BYTES: usize = 64 << 20;
/// The first bytes of HTTP/2 by prior knowledge.
const H2_PREFACE: &[u8] = b"PRI ";

type Body = BoxBody<Bytes, hyper::Error>;

/// Serves until it is told to stop.
pub async fn run(server: Server) -> Result<(), Failure> {
    let listener = serve::listen(server.listen).await?;
    let (stop, grace) = (serve::stop()?, server.grace());
    let server = Arc::new(server);
    serve::accept(listener, stop, grace, move |stream, stop| connection(server.clone(), stream, stop)).await;
    Ok(())
}

async fn connection(server: Arc<Server>, stream: TcpStream, mut stop: watch::Receiver<bool>) {
    let h2 = tokio::select! {
        h2 = speaks_h2(&stream) => h2,
        _ = stop.wait_for(|stopping| *stopping) => return,
    };
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(answer(&server, request).await) }
    });
    let io = TokioIo::new(stream);
    // After the signal: what is in flight ends, then the connection.
    macro_rules! drive {
        ($connection:expr) => {{
            let connection = $connection;
            tokio::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = stop.wait_for(|stopping| *stopping) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }};
    }
    if h2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        drive!(builder.serve_connection(io, service));
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new());
        drive!(builder.serve_connection(io, service));
    }
}

/// Looks at the first bytes without taking them.
async fn speaks_h2(stream: &TcpStream) -> bool {
    let mut first = [0; 4];
    loop {
        match stream.peek(&mut first).await {
            Ok(seen) if seen == first.len() => return first == H2_PREFACE,
            Ok(seen) if seen > 0 && H2_PREFACE.starts_with(&first[..seen]) => {
                // The rest of the preface is under way; peek returns at once until it comes.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            _ => return false,
        }
    }
}

async fn answer(server: &Server, request: Request<Incoming>) -> Response<Body> {
    let asks_head = request.method() == http::Method::HEAD;
    let mut response = answer_get(server, request).await;
    // Over HTTP/2 hyper would send the body of an answer to HEAD.
    if asks_head && let Some(length) = response.body().size_hint().exact() {
        *response.body_mut() = Full::default().map_err(|never| match never {}).boxed();
        response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    }
    response
}

async fn answer_get(server: &Server, request: Request<Incoming>) -> Response<Body> {
    if server.slow > 0 {
        tokio::time::sleep(Duration::from_millis(server.slow)).await;
    }
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (word, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match word {
        "delay" => {
            let Ok(ms) = rest.parse() else { return text(StatusCode::BAD_REQUEST, "use /delay/MILLISECONDS\n") };
            tokio::time::sleep(Duration::from_millis(ms)).await;
            describe(server, StatusCode::OK, request).await
        }
        "status" => match rest.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
            Some(status) => describe(server, status, request).await,
            None => text(StatusCode::BAD_REQUEST, "use /status/CODE\n"),
        },
        "bytes" => match rest.parse() {
            Ok(count @ 0..=MAX_BYTES) => {
                let body = Full::new(Bytes::from(vec![b'x'; count])).map_err(|never| match never {});
                Response::new(body.boxed())
            }
            _ => text(StatusCode::BAD_REQUEST, "use /bytes/COUNT, at most 64 MiB\n"),
        },
        "echo" => {
            let kind = request.headers().get(http::header::CONTENT_TYPE).cloned();
            let mut response = Response::new(request.into_body().boxed());
            if let Some(kind) = kind {
                response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            }
            response
        }
        _ => describe(server, StatusCode::OK, request).await,
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response =
        Response::new(Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}

/// `{name, version, method, path, query, headers, body_bytes}`; the body is read to its end.
async fn describe(server: &Server, status: StatusCode, request: Request<Incoming>) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let mut body_bytes = 0_usize;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => body_bytes += frame.data_ref().map_or(0, Bytes::len),
            Err(_) => return text(StatusCode::BAD_REQUEST, "the body broke off\n"),
        }
    }
    let said = serde_json::json!({
        "name": server.name,
        "version": server.version_label,
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "headers": listed(&head.headers),
        "body_bytes": body_bytes,
    });
    let mut text = said.to_string();
    text.push('\n');
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// Header fields by name; values of a repeated one are joined by `, `.
fn listed(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut listed = BTreeMap::<String, String>::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        listed
            .entry(name.as_str().to_owned())
            .and_modify(|all| {
                all.push_str(", ");
                all.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    listed
}
