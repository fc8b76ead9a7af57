//! Metrics, health, and what `/debug/` shows of the mesh ([`PAGES`]), for operators, over plain HTTP/1.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

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
use super::status::Status;
use crate::distribute::Hub;
use crate::distribute::picture::KINDS;
use crate::rotation::{self, Authority};

/// What can be asked for.
const PAGES: &str = "\
/metrics
/healthz/ready
/healthz/live
/debug/status
/debug/proxies[?workload=NS/POD]
/debug/tables?workload=NS/POD
/debug/diff?workload=NS/POD
/debug/objects[?kind=KIND&name=NS/NAME]
/debug/resource?name=NAME
/debug/events[?object=KIND/NS/NAME&since=SECONDS]
/debug/certificates[?workload=NS/POD]
";

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
            path if path.starts_with("/debug/") => self.debug(path, request.uri().query()),
            _ => plain(StatusCode::NOT_FOUND, PAGES),
        }
    }

    fn debug(&self, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        let (hub, workload) = (&self.hub, asked(query, "workload"));
        match (path, workload) {
            ("/debug/status", _) => json(&Status::new(hub, SystemTime::now())),
            ("/debug/proxies", workload) => json(&hub.describe(workload.as_deref())),
            ("/debug/tables", Some(workload)) => found(hub.tables(&workload), || no_stream(&workload)),
            ("/debug/diff", Some(workload)) => found(hub.differences(&workload), || no_stream(&workload)),
            ("/debug/objects", _) => self.objects(query),
            ("/debug/resource", _) => found(asked(query, "name").map(|name| hub.resource(&name)), || PAGES.to_owned()),
            ("/debug/events", _) => match asked(query, "since").map_or(Ok(u64::MAX), |seconds| seconds.parse()) {
                Ok(seconds) => json(&hub.events(asked(query, "object").as_deref(), Duration::from_secs(seconds))),
                Err(_) => plain(StatusCode::BAD_REQUEST, "since is a number of seconds\n"),
            },
            ("/debug/certificates", workload) => self.certificates(workload),
            _ => plain(StatusCode::NOT_FOUND, PAGES),
        }
    }

    fn objects(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let (Some(kind), Some(name)) = (asked(query, "kind"), asked(query, "name")) else {
            return json(&self.hub.refused_objects());
        };
        let unknown = || format!("nothing is compiled from a {kind}; there are {}", KINDS.join(", "));
        found(self.hub.object(&kind, &name), unknown)
    }

    fn certificates(&self, workload: Option<String>) -> Response<Full<Bytes>> {
        let ca = Arc::clone(&self.ca.borrow());
        let Some(workload) = workload else { return json(&rotation::Report::new(&*ca, &self.hub)) };
        let streams = self.hub.streams();
        match streams.iter().find(|stream| stream.client.workload.to_string() == workload) {
            Some(stream) => {
                let roots = ca.root_pem().to_owned();
                let x5c = stream.client.proved.chain.iter().map(|one| ByteString(one.to_vec())).collect();
                json(&Shown { workload, x5c, roots })
            }
            None => plain(StatusCode::NOT_FOUND, &format!("{}\n", no_stream(&workload))),
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

fn no_stream(workload: &str) -> String {
    format!("{workload} has no stream to this control")
}

/// What a query says of `key`.
fn asked(query: Option<&str>, key: &str) -> Option<String> {
    let mut pairs = query?.split('&').filter_map(|part| part.split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == key)?;
    Some(value.replace("%2F", "/").replace("%2f", "/").replace("%3A", ":").replace("%3a", ":"))
}

fn found(answer: Option<impl Serialize>, otherwise: impl Fn() -> String) -> Response<Full<Bytes>> {
    match answer {
        Some(answer) => json(&answer),
        None => plain(StatusCode::NOT_FOUND, &format!("{}\n", otherwise())),
    }
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(json) => typed(StatusCode::OK, "application/json", json),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}
