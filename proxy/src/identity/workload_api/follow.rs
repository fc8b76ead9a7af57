//! Our own certificate and the roots of our peers from another implementation of the Workload API, instead of control's CA.
//!
//! ```text
//! connect --> message --> ours, not expired, passes its check? --yes--> in use --> next message
//!    ^                        | no                                                  | the stream ends
//!    \-- back off (jittered, 0.2 s .. 10 s; the certificate in use serves on) <-----+
//! ```
//!
//! - When to renew is for the other side to decide; it sends a new message then, and when its roots change.
//! - Control is verified by `--control-ca` as ever: its certificate is not the other side's business.
//! - Peers are believed by the roots that come from here and by those that control tells: others may have their certificates from its CA.
//! - Nothing is kept on disk: the other side is on this machine and gives it again.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};
use weft_api::wire::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use weft_api::wire::spiffe::{X509svid, X509svidRequest, X509svidResponse};
use weft_certs::svid::Svid;
use weft_certs::tls::{Roots, TlsError};

use super::SECURITY_HEADER;
use crate::identity::authority::{AskError, refused};
use crate::identity::renew::{ATTEMPT_TIMEOUT, Backoff, Settings, checked};
use crate::identity::{Counters, Current, Failure, IdentityStore};

/// Longer messages are refused: a chain and a bundle of a few certificates take some KiB.
const MAX_MESSAGE: usize = 1 << 20;
/// Names that an error lists.
const MAX_NAMES: usize = 4;

/// Keeps `store` in the certificate that the Workload API at `path` gives, for as long as it is polled; it never returns. Of `settings` the
/// identity counts, and the roots for control. `now` is the wall clock.
pub async fn follow(store: &IdentityStore, settings: &Settings, path: &Path, now: impl Fn() -> SystemTime + Sync) {
    let mut backoff = Backoff::default();
    let mut in_use = None;
    loop {
        let before = store.counters.issued();
        let error = follow_stream(store, settings, path, &mut in_use, &now).await;
        if store.counters.issued() > before {
            backoff = Backoff::default();
        }
        backoff.failed(store, &error).await;
    }
}

/// Takes what comes until something is wrong.
async fn follow_stream(
    store: &IdentityStore,
    settings: &Settings,
    path: &Path,
    in_use: &mut Option<X509svid>,
    now: &(impl Fn() -> SystemTime + Sync),
) -> AskError {
    let unreachable = |message: &str| {
        let message = format!("the Workload API at {} {message}", path.display());
        AskError { failure: Failure::Unreachable, message }
    };
    let opened = timeout(ATTEMPT_TIMEOUT, open(path)).await;
    let (mut stream, mut next) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(status)) => return refused("the Workload API", &status),
        Err(_) => return unreachable("does not answer"),
    };
    loop {
        let Some(message) = next else { return unreachable("has ended the stream") };
        let given = match ours(message, settings) {
            Ok(given) => given,
            Err(error) => return error,
        };
        // After a reconnect it is often the same.
        if in_use.as_ref() != Some(&given) || store.current_at(now()).is_err() {
            match read(&given, settings, now()) {
                Ok((svid, roots)) => {
                    if let Err(error) = take(store, settings, svid, roots) {
                        return AskError { failure: Failure::Internal, message: error.to_string() };
                    }
                }
                Err(error) => return error,
            }
            *in_use = Some(given);
        }
        next = match stream.message().await {
            Ok(next) => next,
            Err(status) => return refused("the Workload API", &status),
        };
    }
}

/// The stream, and what came first.
///
/// No pings: the kernel tells when the other process has gone, and servers written in Go take frequent pings for an attack.
async fn open(path: &Path) -> Result<(Streaming<X509svidResponse>, Option<X509svidResponse>), Status> {
    let path: Arc<Path> = path.into();
    let connect = move |_: http::Uri| {
        let path = Arc::clone(&path);
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    // The connector knows where; the URI only gives `:authority` and `:scheme`.
    let channel = Endpoint::from_static("http://workload-api").connect_with_connector_lazy(tower::service_fn(connect));
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert(SECURITY_HEADER, AsciiMetadataValue::from_static("true"));
    let mut stream = client.fetch_x509svid(request).await?.into_inner();
    let first = stream.message().await?;
    Ok((stream, first))
}

/// The one of our identity.
fn ours(message: X509svidResponse, settings: &Settings) -> Result<X509svid, AskError> {
    let wanted = settings.identity.to_string();
    let names: Vec<_> = message.svids.iter().take(MAX_NAMES).map(|svid| svid.spiffe_id.clone()).collect();
    message.svids.into_iter().find(|svid| svid.spiffe_id == wanted).ok_or_else(|| AskError {
        failure: Failure::BadAnswer,
        message: format!("the Workload API gives {names:?}, not {wanted}; register the workload there under this name"),
    })
}

fn read(given: &X509svid, settings: &Settings, now: SystemTime) -> Result<(Arc<Svid>, Roots), AskError> {
    let bad = |message: String| AskError { failure: Failure::BadAnswer, message };
    let roots = Roots::from_der(&given.bundle)
        .map_err(|_| bad("the bundle of the Workload API is empty or has more than certificates in DER".into()))?;
    let svid = Svid::from_der(&given.x509_svid_key, &given.x509_svid).map_err(|error| bad(error.to_string()))?;
    if *svid.identity() != settings.identity {
        return Err(bad(format!("the certificate is for {}, not {}", svid.identity(), settings.identity)));
    }
    // It must be good by those that came with it.
    let alone = roots.clone().denying(settings.trust.revoked.denied());
    let current = checked(svid, &settings.identity, now, |svid| Current::new(svid, &alone))?;
    Ok((Arc::clone(&current.svid), roots))
}

fn take(store: &IdentityStore, settings: &Settings, svid: Arc<Svid>, roots: Roots) -> Result<(), TlsError> {
    settings.trust.agent(roots);
    let current = Arc::new(Current::believing(svid, &settings.trust.now())?);
    tracing::info!(
        identity = %settings.identity, serial = &*current.serial, until = ?current.not_after,
        "certificate of the Workload API taken into use"
    );
    store.install(current);
    Counters::add(&store.counters.issued);
    Ok(())
}
