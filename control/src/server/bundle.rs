//! Our SPIFFE bundle endpoint (`--bundle-endpoint`): the roots of the mesh, for whoever federates with it, over HTTPS.
//!
//! Profile `https_spiffe`: control shows its own certificate; who asks is not asked who it is, since roots are no secret.
//!
//! Bounds: open connections, time for a handshake, for a head and for a whole connection, one answer each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use weft_certs::bundle::document;

use super::admin::{plain, typed};
use super::tls::CurrentDoors;
use crate::metrics::Metrics;
use crate::rotation::Authority;

/// Open connections; a mesh that federates with us needs one at a time.
const CONNECTIONS: usize = 64;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const HEADER_TIME: Duration = Duration::from_secs(10);
/// For all of it: the answer is a few KiB.
const TIME: Duration = Duration::from_secs(30);

/// What is published.
#[derive(Clone, Debug)]
pub struct Published {
    /// The CA.
    pub ca: Authority,
    /// Our certificate.
    pub doors: CurrentDoors,
    /// How often others should ask.
    pub refresh: Duration,
    /// Counts answers.
    pub metrics: Arc<Metrics>,
}

/// Serves until `stopping`.
pub async fn serve(listener: TcpListener, published: Published, stopping: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        if places.available_permits() == 0 {
            published.metrics.bound("bundle_connections", 1);
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
        let (published, stopping) = (published.clone(), stopping.clone());
        tokio::spawn(async move {
            tokio::select! {
                served = timeout(TIME, published.connection(tcp)) => match served {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%addr, error, "a connection to the bundle endpoint ended badly"),
                    Err(_) => tracing::debug!(%addr, "a connection to the bundle endpoint took too long"),
                },
                () = stopping.cancelled() => {}
            }
            drop(place);
        });
    }
}

impl Published {
    async fn connection(&self, tcp: TcpStream) -> Result<(), String> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.doors.load().bundle));
        let shaken = timeout(HANDSHAKE_TIME, acceptor.accept(tcp)).await.map_err(|late| late.to_string())?;
        let tls = shaken.map_err(|error| {
            self.metrics.handshake_failures.inc();
            error.to_string()
        })?;
        let service = service_fn(|request| {
            let answer = self.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .serve_connection(TokioIo::new(tls), service)
            .await
            .map_err(|error| error.to_string())
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        if request.uri().path() != "/" {
            return plain(StatusCode::NOT_FOUND, "the bundle is at /\n");
        }
        let ca = Arc::clone(&self.ca.borrow());
        match document(ca.root_pem(), ca.revision(), self.refresh) {
            Ok(document) => {
                self.metrics.bundle_answers.inc();
                typed(StatusCode::OK, "application/json", document)
            }
            Err(error) => {
                tracing::error!(%error, "the roots cannot be published");
                plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n"))
            }
        }
    }
}
