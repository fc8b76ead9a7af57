//! Our SPIFFE bundle endpoint (`--bundle-endpoint`): the roots of the mesh, for whoever federates with it, over HTTPS.
//!
//! Profile `https_spiffe`: control shows its own certificate; who asks is not asked who it is, since roots are no secret.
//!
//! Bounds, beside those of [`super::plain`]: time for a handshake and for a whole connection, one answer each.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use weft_certs::bundle::document;

use super::plain::{accept, http1, plain, typed};
use super::tls::CurrentDoors;
use crate::metrics::Metrics;
use crate::rotation::Authority;

const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
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
    let metrics = Arc::clone(&published.metrics);
    let full = || metrics.bound("bundle_connections", 1);
    accept(listener, stopping, full, |tcp, _| {
        let published = published.clone();
        async move { timeout(TIME, published.connection(tcp)).await.map_err(|late| late.to_string())? }
    })
    .await;
}

impl Published {
    async fn connection(&self, tcp: TcpStream) -> Result<(), String> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.doors.load().bundle));
        let shaken = timeout(HANDSHAKE_TIME, acceptor.accept(tcp)).await.map_err(|late| late.to_string())?;
        let tls = shaken.map_err(|error| {
            self.metrics.handshake_failures.inc();
            error.to_string()
        })?;
        http1(tls, false, |request| ready(self.answer(&request))).await
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
