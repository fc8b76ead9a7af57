//! Metrics, health, and what `/debug/` shows of the mesh ([`PAGES`]), for operators, over plain HTTP/1. Where there are several replicas of
//! control, what they know of their proxies is put together ([`whole`]); events, metrics and health are our own.

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
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::plain::{accept, http1, plain, typed};
use super::status::{Sources, Status};
use crate::distribute::Hub;
use crate::distribute::picture::KINDS;
use crate::replicas::whole;
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

/// What there is on a page of `/debug/`: JSON if the status is 200, else words.
type Page = (StatusCode, Vec<u8>);

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
        async move {
            let admin = &admin;
            http1(tcp, true, |request| async move { admin.answer(&request, addr).await }).await
        }
    })
    .await;
}

impl Admin {
    async fn answer(&self, request: &Request<Incoming>, addr: SocketAddr) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/metrics" => match self.hub.metrics.text() {
                Ok(text) => typed(StatusCode::OK, prometheus::TEXT_FORMAT, text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            },
            "/healthz/live" => plain(StatusCode::OK, "live\n"),
            "/healthz/ready" if self.hub.replicas.is_stopping() => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "control is stopping\n")
            }
            "/healthz/ready" if self.hub.metrics.control_not_after.get() == 0 => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "control has no certificate of its own yet; its log says why\n")
            }
            "/healthz/ready" if *self.hub.loaded().borrow() => plain(StatusCode::OK, "ready\n"),
            "/healthz/ready" => plain(StatusCode::SERVICE_UNAVAILABLE, &Sources::waits(&self.hub)),
            path if path.starts_with("/debug/") && !self.debug_remote && !addr.ip().to_canonical().is_loopback() => {
                plain(StatusCode::FORBIDDEN, "loopback only; start control with --debug-remote\n")
            }
            path if path.starts_with("/debug/") => {
                let (status, body) = self.whole(path, request.uri().query()).await;
                shown(status, body)
            }
            _ => plain(StatusCode::NOT_FOUND, PAGES),
        }
    }

    /// A page of `/debug/`, of all replicas.
    async fn whole(&self, path: &str, query: Option<&str>) -> Page {
        let page = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let (hub, workload) = (&*self.hub, asked(query, "workload"));
        let (kind, name) = (asked(query, "kind"), asked(query, "name"));
        match (path, workload) {
            ("/debug/status", _) => json(&Status::new(hub, SystemTime::now()).await),
            ("/debug/proxies", workload) => json(&whole::proxies(hub, hub.describe(workload.as_deref()), &page).await),
            ("/debug/objects", _) if kind.is_none() || name.is_none() => {
                json(&whole::refused_objects(hub, hub.refused_objects()).await)
            }
            ("/debug/objects", _) => {
                let whole = whole::object(hub, &kind.unwrap_or_default(), &name.unwrap_or_default()).await;
                whole.map_or_else(|| self.here(path, query), |whole| json(&whole.object))
            }
            ("/debug/resource", _) => match name {
                Some(name) => json(&whole::resource(hub, hub.resource(&name)).await),
                None => self.here(path, query),
            },
            ("/debug/certificates", None) => {
                let ca = Arc::clone(&self.ca.borrow());
                json(&whole::report(hub, rotation::Report::new(&*ca, hub)).await)
            }
            ("/debug/tables" | "/debug/diff" | "/debug/certificates", Some(_)) => {
                let own = self.here(path, query);
                match own.0 {
                    StatusCode::NOT_FOUND => {
                        whole::elsewhere::<Value>(hub, &page).await.map_or(own, |page| json(&page))
                    }
                    _ => own,
                }
            }
            _ => self.here(path, query),
        }
    }

    /// The same of this replica alone.
    pub fn here(&self, path: &str, query: Option<&str>) -> Page {
        let (hub, workload) = (&self.hub, asked(query, "workload"));
        match (path, workload) {
            ("/debug/proxies", workload) => json(&hub.describe(workload.as_deref())),
            ("/debug/tables", Some(workload)) => found(hub.tables(&workload), || no_stream(&workload)),
            ("/debug/diff", Some(workload)) => found(hub.differences(&workload), || no_stream(&workload)),
            ("/debug/objects", _) => self.objects(query),
            ("/debug/resource", _) => found(asked(query, "name").map(|name| hub.resource(&name)), || PAGES.to_owned()),
            ("/debug/events", _) => match asked(query, "since").map_or(Ok(u64::MAX), |seconds| seconds.parse()) {
                Ok(seconds) => json(&hub.events(asked(query, "object").as_deref(), Duration::from_secs(seconds))),
                Err(_) => (StatusCode::BAD_REQUEST, b"since is a number of seconds\n".to_vec()),
            },
            ("/debug/certificates", workload) => self.certificates(workload),
            _ => (StatusCode::NOT_FOUND, PAGES.into()),
        }
    }

    fn objects(&self, query: Option<&str>) -> Page {
        let (Some(kind), Some(name)) = (asked(query, "kind"), asked(query, "name")) else {
            return json(&self.hub.refused_objects());
        };
        let unknown = || format!("nothing is compiled from a {kind}; there are {}", KINDS.join(", "));
        found(self.hub.object(&kind, &name), unknown)
    }

    fn certificates(&self, workload: Option<String>) -> Page {
        let ca = Arc::clone(&self.ca.borrow());
        let Some(workload) = workload else { return json(&rotation::Report::new(&*ca, &self.hub)) };
        let streams = self.hub.streams();
        match streams.iter().find(|stream| stream.client.workload.to_string() == workload) {
            Some(stream) => {
                let roots = ca.root_pem().to_owned();
                let x5c = stream.client.proved.chain.iter().map(|one| ByteString(one.to_vec())).collect();
                json(&Shown { workload, x5c, roots })
            }
            None => (StatusCode::NOT_FOUND, format!("{}\n", no_stream(&workload)).into_bytes()),
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
    format!("{workload} has no stream to control")
}

/// What a query says of `key`.
fn asked(query: Option<&str>, key: &str) -> Option<String> {
    let mut pairs = query?.split('&').filter_map(|part| part.split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == key)?;
    Some(value.replace("%2F", "/").replace("%2f", "/").replace("%3A", ":").replace("%3a", ":"))
}

fn found(answer: Option<impl Serialize>, otherwise: impl Fn() -> String) -> Page {
    match answer {
        Some(answer) => json(&answer),
        None => (StatusCode::NOT_FOUND, format!("{}\n", otherwise()).into_bytes()),
    }
}

fn json(value: &impl Serialize) -> Page {
    match serde_json::to_vec(value) {
        Ok(json) => (StatusCode::OK, json),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n").into_bytes()),
    }
}

/// A good one is JSON; anything else is words.
fn shown(status: StatusCode, body: Vec<u8>) -> Response<Full<Bytes>> {
    let content_type = if status == StatusCode::OK { "application/json" } else { "text/plain; charset=utf-8" };
    typed(status, content_type, body)
}
