//! Applications.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::listen;

/// An HTTP/1 application with what it has seen.
#[derive(Clone)]
pub struct App {
    pub addr: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<AtomicUsize>,
}

impl App {
    /// Answers with its name, method, path, header fields of interest and body.
    pub async fn start(name: &'static str) -> Self {
        let connections = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let (conns, reqs) = (Arc::clone(&connections), Arc::clone(&requests));
        let addr = listen(move |stream, _| {
            conns.fetch_add(1, Ordering::SeqCst);
            let reqs = Arc::clone(&reqs);
            async move {
                let service = service_fn(move |request| {
                    reqs.fetch_add(1, Ordering::SeqCst);
                    echo(name, request)
                });
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            }
        })
        .await;
        Self { addr, connections, requests }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn echo(name: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut text = format!("{name} {} {}\n", parts.method, parts.uri.path());
    for (field, value) in &parts.headers {
        text = format!("{text}{field}: {}\n", value.to_str().unwrap());
    }
    text.push_str(&String::from_utf8_lossy(&body));
    Ok(Response::builder()
        .header("x-app", name)
        .header("x-weft-reason", "not_processed")
        .body(Full::new(text.into()))
        .unwrap())
}

/// An HTTP/2 application: echoes the body and adds a trailer, as gRPC servers do.
pub async fn grpc_app() -> SocketAddr {
    listen(|stream, _| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let sum = async {
                let mut fields = http::HeaderMap::new();
                fields.insert("grpc-status", "0".parse().unwrap());
                Some(Ok(fields))
            };
            let body = request.into_body().with_trailers(sum);
            Ok::<_, Infallible>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
        });
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

/// Opaque bytes: says `hello` first, then echoes until the client has ended, then says `bye`.
pub async fn greeting_app() -> SocketAddr {
    listen(|mut stream, _| async move {
        let _ = stream.write_all(b"hello ").await;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        let _ = stream.write_all(&heard).await;
        let _ = stream.write_all(b" bye").await;
    })
    .await
}

/// Answers each request with these bytes, and ends the connection after `responses`.
pub async fn scripted_app(answer: &'static str, responses: usize) -> SocketAddr {
    listen(move |mut stream, _| async move {
        for _ in 0..responses {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                match stream.read_buf(&mut seen).await {
                    Ok(n) if n > 0 => {}
                    _ => return,
                }
            }
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await
}
