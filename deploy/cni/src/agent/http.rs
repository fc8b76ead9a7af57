//! What the agent tells: `/metrics` and `/healthz/ready`, to few callers.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{IntCounter, IntGauge, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

const CONNECTIONS: usize = 8;
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// The agent's figures.
pub struct Told {
    registry: Registry,
    /// 1 while the plugin's entry is where it has to be.
    pub installed: IntGauge,
    /// How often the entry was written.
    pub written: IntCounter,
    /// Pods that have not proved their capture yet.
    pub waiting: IntGauge,
    /// Pods that were given rules which they lacked.
    pub repaired: IntCounter,
    /// Reasons for which that was not possible, each once for a pod.
    pub unrepaired: IntCounter,
}

impl Told {
    /// All zero.
    ///
    /// # Errors
    /// If two figures have one name.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let counter = |name, help| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        Ok(Self {
            installed: gauge(
                "weft_cni_installed",
                "1 while the plugin is in the configuration that the runtime uses.",
            )?,
            written: counter("weft_cni_entries_written_total", "Times that the plugin's entry was put in, or back.")?,
            waiting: gauge("weft_cni_pods_waiting", "Pods of this node that have not proved their capture yet.")?,
            repaired: counter(
                "weft_cni_pods_repaired_total",
                "Pods that started without the plugin and were given their rules.",
            )?,
            unrepaired: counter(
                "weft_cni_pods_unrepaired_total",
                "Reasons for which a pod could not be given its rules yet.",
            )?,
            registry,
        })
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/metrics" => match TextEncoder::new().encode_to_string(&self.registry.gather()) {
                Ok(text) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            "/healthz/ready" if self.installed.get() == 1 => (StatusCode::OK, "ready\n".to_owned()),
            "/healthz/ready" => {
                (StatusCode::SERVICE_UNAVAILABLE, "the plugin is not in the node's configuration\n".to_owned())
            }
            _ => (StatusCode::NOT_FOUND, "there are /metrics and /healthz/ready\n".to_owned()),
        }
    }
}

/// Answers at this address, for ever; at none, waits for ever.
///
/// # Errors
/// If the port is taken.
pub async fn serve(at: Option<SocketAddr>, told: Arc<Told>) -> std::io::Result<impl Future<Output = ()>> {
    let listener = match at {
        Some(at) => Some(TcpListener::bind(at).await?),
        None => None,
    };
    Ok(async move {
        let Some(listener) = listener else { return std::future::pending().await };
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((tcp, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let told = Arc::clone(&told);
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let (status, text) = told.answer(request.uri().path());
                    let mut response = Response::new(Full::new(Bytes::from(text)));
                    *response.status_mut() = status;
                    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4");
                    response.headers_mut().insert(header::CONTENT_TYPE, plain);
                    std::future::ready(Ok::<_, Infallible>(response))
                });
                let mut server = hyper::server::conn::http1::Builder::new();
                let serving = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(tcp), service);
                let _ = timeout(CONNECTION_TIME, serving).await;
                drop(place);
            });
        }
    })
}
