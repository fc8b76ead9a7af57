//! Metrics, health, `/debug/proxies` and `/debug/certificates`, for operators, over plain HTTP/1.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::distribute::Hub;
use crate::rotation::{self, Authority};

/// Open connections; a scraper needs one.
const CONNECTIONS: usize = 64;
const HEADER_TIME: Duration = Duration::from_secs(10);

/// What the page shows, and to whom.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The store.
    pub hub: Arc<Hub>,
    /// The CA.
    pub ca: Authority,
    /// Answer /debug to others than loopback.
    pub debug_remote: bool,
}

/// Serves until `stopping`.
pub async fn serve(listener: TcpListener, admin: Admin, stopping: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return,
        };
        let Ok((tcp, addr)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (admin, stopping) = (admin.clone(), stopping.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = admin.answer(&request, addr);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .serve_connection(TokioIo::new(tcp), service);
            tokio::select! {
                served = connection => if let Err(error) = served {
                    tracing::debug!(%addr, %error, "a connection to the metrics port ended badly");
                },
                () = stopping.cancelled() => {}
            }
            drop(place);
        });
    }
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>, addr: SocketAddr) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/metrics" => match self.hub.metrics.text() {
                Ok(text) => typed(StatusCode::OK, prometheus::TEXT_FORMAT, text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            },
            "/healthz/live" => plain(StatusCode::OK, "live\n"),
            "/healthz/ready" if self.hub.metrics.control_not_after.get() == 0 => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "control has no certificate of its own yet; its log says why\n")
            }
            "/healthz/ready" if *self.hub.loaded().borrow() => plain(StatusCode::OK, "ready\n"),
            "/healthz/ready" => plain(StatusCode::SERVICE_UNAVAILABLE, "the sources have not been read yet\n"),
            path if path.starts_with("/debug/") && !self.debug_remote && !addr.ip().to_canonical().is_loopback() => {
                plain(StatusCode::FORBIDDEN, "loopback only; start control with --debug-remote\n")
            }
            "/debug/proxies" => self.proxies(request.uri().query()),
            "/debug/certificates" => {
                let ca = Arc::clone(&self.ca.borrow());
                json(&rotation::Report::new(&*ca, &self.hub))
            }
            _ => plain(
                StatusCode::NOT_FOUND,
                "/metrics, /healthz/ready, /healthz/live, /debug/proxies[?workload=NS/POD], /debug/certificates\n",
            ),
        }
    }

    fn proxies(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let workload = query.and_then(|query| query.split('&').find_map(|part| part.strip_prefix("workload=")));
        let workload = workload.map(|workload| workload.replace("%2F", "/").replace("%2f", "/"));
        json(&self.hub.describe(workload.as_deref()))
    }
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(json) => typed(StatusCode::OK, "application/json", json),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

/// An answer in words.
pub(super) fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text.as_bytes().to_vec())
}

/// An answer of this type.
pub(super) fn typed(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
