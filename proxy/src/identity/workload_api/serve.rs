//! The server: the application's certificate, the roots of the mesh and those of the trust domains that it is federated with, once at first
//! and again at each change.
//!
//! A stream lives as long as both ends do. It begins with a message at once; while there is no certificate yet it is held, for [`HOLD`] at
//! most, and then refused as UNAVAILABLE, after which libraries try again by themselves.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tower::ServiceExt;
use weft_api::wire::spiffe::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use weft_api::wire::spiffe::{X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse};

use super::SECURITY_HEADER;
use super::host::AnyHost;
use crate::Shared;
use crate::identity::trust::{Bundles, spiffe_id};
use crate::identity::{Failure, IdentityStore};

/// How long a request for a certificate waits for the first one.
pub const HOLD: Duration = Duration::from_secs(5);
/// Open connections; a library has one for each process.
const CONNECTIONS: usize = 256;
/// Open streams of all connections together.
const STREAMS: usize = 256;
/// Open streams of one connection.
const STREAMS_PER_CONNECTION: u32 = 32;
/// Requests have no content.
const MAX_REQUEST: usize = 4 * 1024;
/// Bytes of a request's header fields.
const MAX_HEADERS: u32 = 16 * 1024;
/// Pause after the kernel had no file descriptor for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The certificates of a PEM text as SPIFFE has bundles: in DER, one behind the other.
pub fn bundle(pem: &str) -> Bytes {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten();
    certificates.flat_map(|certificate| certificate.to_vec()).collect()
}

/// What is served.
#[derive(Clone)]
pub struct WorkloadApi {
    shared: Arc<Shared>,
    bundles: watch::Receiver<Bundles>,
    hold: Duration,
    streams: Arc<Semaphore>,
}

impl WorkloadApi {
    /// Gives out the certificates of `shared.application`, with these roots. A request waits for the first one for `hold`.
    pub fn new(shared: Arc<Shared>, bundles: watch::Receiver<Bundles>, hold: Duration) -> Self {
        Self { shared, bundles, hold, streams: Arc::new(Semaphore::new(STREAMS)) }
    }

    /// Serves the socket for as long as it is polled.
    ///
    /// # Errors
    /// A listener that tokio does not take.
    pub async fn serve(self, listener: StdListener) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let shared = Arc::clone(&self.shared);
        let service = SpiffeWorkloadApiServer::new(self).max_decoding_message_size(MAX_REQUEST);
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection to the Workload API");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => drop(tokio::spawn(serve_connection(stream, service.clone(), place))),
                // Closed: its library tries again later.
                Err(_) => shared.telemetry.bound_hit("workload_api_connections"),
            }
        }
    }

    /// A place for a stream, if the request is one that was meant.
    fn admit<T>(&self, request: &Request<T>) -> Result<OwnedSemaphorePermit, Status> {
        if request.metadata().get(SECURITY_HEADER).is_none_or(|value| value.as_bytes() != b"true") {
            return Err(Status::invalid_argument(format!(
                "the metadata `{SECURITY_HEADER}: true` is missing; use a library for SPIFFE's Workload API"
            )));
        }
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            self.shared.telemetry.bound_hit("workload_api_streams");
            Status::unavailable(format!("{STREAMS} streams are open; close some, or try again later"))
        })
    }

    /// Waits for a certificate.
    async fn certificate(&self) -> Result<(), Status> {
        let store = &self.shared.application;
        let mut changes = store.changes();
        let had = async {
            while store.current().is_err() {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        if timeout(self.hold, had).await.is_ok() {
            return Ok(());
        }
        let refused =
            |store: &IdentityStore| store.lives().next().is_none() && store.counters.failed(Failure::Refused) > 0;
        let identity = &self.shared.config.identity;
        if refused(store) || refused(&self.shared.identity) {
            let why = format!("control refuses a certificate for {identity}; the sidecar's log says why");
            return Err(Status::permission_denied(why));
        }
        let why = format!("there is no certificate for {identity} yet; the sidecar's log says why, try again");
        Err(Status::unavailable(why))
    }

    fn certificates_now(&self) -> Option<X509svidResponse> {
        let current = self.shared.application.current().ok()?;
        let mut bundles = self.bundles.borrow().clone();
        let own = [&current.identity.trust_domain, &self.shared.config.identity.trust_domain];
        // The roots under the name that our trust domain has in the certificate; before control has said that name, under ours.
        let own = own.into_iter().find_map(|name| bundles.remove(&spiffe_id(name)));
        let svid = X509svid {
            spiffe_id: current.identity.to_string(),
            x509_svid: current.svid.chain_der().into(),
            x509_svid_key: Bytes::copy_from_slice(current.svid.key_der().secret_pkcs8_der()),
            bundle: own.unwrap_or_default(),
            hint: String::new(),
        };
        let federated_bundles = bundles.into_iter().collect();
        Some(X509svidResponse { svids: vec![svid], federated_bundles, crl: Vec::new() })
    }

    fn bundles_now(&self) -> X509BundlesResponse {
        let bundles = self.bundles.borrow().clone().into_iter().collect();
        X509BundlesResponse { bundles, crl: Vec::new() }
    }

    /// A stream of what `message` says: now, and whenever that has become something else.
    fn watch<T>(
        &self,
        place: OwnedSemaphorePermit,
        message: fn(&Self) -> Option<T>,
    ) -> Response<ReceiverStream<Result<T, Status>>>
    where
        T: Clone + PartialEq + Send + 'static,
    {
        let (out, stream) = mpsc::channel(1);
        let api = self.clone();
        tokio::spawn(async move {
            let (mut certificates, mut bundles) = (api.shared.application.changes(), api.bundles.clone());
            let mut sent = None;
            loop {
                // Seen before it is read: a change in between is one more round, never one that is missed.
                certificates.mark_unchanged();
                bundles.mark_unchanged();
                let new = message(&api);
                if let Some(message) = new.clone().filter(|_| new != sent) {
                    if out.send(Ok(message)).await.is_err() {
                        break;
                    }
                    sent = new;
                }
                tokio::select! {
                    Ok(()) = certificates.changed() => {}
                    Ok(()) = bundles.changed() => {}
                    () = out.closed() => break,
                }
            }
            drop(place);
        });
        Response::new(ReceiverStream::new(stream))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = ReceiverStream<Result<X509svidResponse, Status>>;
    type FetchX509BundlesStream = ReceiverStream<Result<X509BundlesResponse, Status>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let place = self.admit(&request)?;
        self.certificate().await?;
        Ok(self.watch(place, Self::certificates_now))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let place = self.admit(&request)?;
        Ok(self.watch(place, |api| Some(api.bundles_now())))
    }
}

async fn serve_connection(
    stream: UnixStream,
    service: SpiffeWorkloadApiServer<WorkloadApi>,
    place: OwnedSemaphorePermit,
) {
    let answer = service_fn(move |request| service.clone().oneshot(request));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_header_list_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(AnyHost::new(stream)), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the Workload API ended badly");
    }
    drop(place);
}
