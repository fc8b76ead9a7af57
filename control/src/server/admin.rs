//! Metrics, health, `/debug/proxies` and `/debug/certificates`, for operators, over plain HTTP/1.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::plain::{accept, http1, plain, typed};
use crate::distribute::Hub;
use crate::rotation::{self, Authority};

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
    let metrics = Arc::clone(&admin.hub.metrics);
    let full = || metrics.bound("metrics_connections", 1);
    accept(listener, stopping, full, |tcp, addr| {
        let admin = admin.clone();
        async move { http1(tcp, true, |request| admin.answer(request, addr)).await }
    })
    .await;
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
