//! Metrics, health, `/debug/proxies` and `/debug/certificates`, for operators, over plain HTTP/1.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use k8s_openapi::ByteString;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
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
            "/debug/certificates" => self.certificates(request.uri().query()),
            _ => plain(
                StatusCode::NOT_FOUND,
                "/metrics, /healthz/ready, /healthz/live, /debug/proxies[?workload=NS/POD], /debug/certificates[?workload=NS/POD]\n",
            ),
        }
    }

    fn proxies(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        json(&self.hub.describe(workload(query).as_deref()))
    }

    fn certificates(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let ca = Arc::clone(&self.ca.borrow());
        let Some(workload) = workload(query) else { return json(&rotation::Report::new(&*ca, &self.hub)) };
        let streams = self.hub.streams();
        match streams.iter().find(|stream| stream.client.workload.to_string() == workload) {
            Some(stream) => {
                let roots = ca.root_pem().to_owned();
                let x5c = stream.client.proved.chain.iter().map(|one| ByteString(one.to_vec())).collect();
                json(&Shown { workload, x5c, roots })
            }
            None => plain(StatusCode::NOT_FOUND, &format!("{workload} has no stream to this control\n")),
        }
    }
}

/// What a proxy shows: `/debug/certificates?workload=NS/POD`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shown {
    /// `NAMESPACE/POD`.
    pub workload: String,
    /// The certificates that it opened its stream with, DER in base64, leaf first.
    pub x5c: Vec<ByteString>,
    /// The roots that are published, PEM.
    pub roots: String,
}

impl Shown {
    /// The certificates, DER.
    pub fn chain(&self) -> Vec<CertificateDer<'_>> {
        self.x5c.iter().map(|one| CertificateDer::from(one.0.as_slice())).collect()
    }
}

/// The workload that a query names.
fn workload(query: Option<&str>) -> Option<String> {
    let workload = query?.split('&').find_map(|part| part.strip_prefix("workload="))?;
    Some(workload.replace("%2F", "/").replace("%2f", "/"))
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(json) => typed(StatusCode::OK, "application/json", json),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}
