//! HTTP/1 for few callers: the accept loop of the metrics port and of the bundle endpoint, and their answers.
//!
//! Bounds: open connections, time for a head, and for a whole connection if it has one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Open connections; a scraper, or a mesh that federates with us, needs one at a time.
const CONNECTIONS: usize = 64;
const HEADER_TIME: Duration = Duration::from_secs(10);

/// Gives each connection to `serve` until `stopping`; `full` counts that there was no place for another.
pub async fn accept<F>(
    listener: TcpListener,
    stopping: CancellationToken,
    full: impl Fn(),
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        if places.available_permits() == 0 {
            full();
        }
        // Waiting here leaves newcomers in the kernel's queue, which is bounded too.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return,
        };
        let Ok((tcp, addr)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (served, stopping) = (serve(tcp, addr), stopping.clone());
        tokio::spawn(async move {
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::debug!(%addr, error, "a connection ended badly");
                },
                () = stopping.cancelled() => {}
            }
            drop(place);
        });
    }
}

/// Answers the requests of a connection: all of them, or the first alone.
pub async fn http1<A: Future<Output = Response<Full<Bytes>>>>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    keep_alive: bool,
    answer: impl Fn(Request<Incoming>) -> A,
) -> Result<(), String> {
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    hyper::server::conn::http1::Builder::new()
        .keep_alive(keep_alive)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .serve_connection(TokioIo::new(io), service)
        .await
        .map_err(|error| error.to_string())
}

/// An answer in words.
pub fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text.as_bytes().to_vec())
}

/// An answer of this type.
pub fn typed(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
