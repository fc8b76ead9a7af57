//! Who is at the other end of a connection, and what is his.
//!
//! Invariant: an identity comes from a certificate that the handshake verified and that is still valid, or (for the CA only) from
//! what [`crate::issue`] proves; nothing that a message claims is believed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tonic::{Request, Status};
use weft_certs::revoked::DenyList;
use weft_engine::identity::Identity;

use crate::distribute::Hub;
use crate::model::Name;

/// The peer of a connection, put beside each request by the listener.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub addr: SocketAddr,
    /// Who it proved to be; none without a client certificate.
    pub proved: Option<Proved>,
}

/// What a client certificate proved.
#[derive(Clone, Debug)]
pub struct Proved {
    /// The identity.
    pub identity: Identity,
    /// Until when.
    pub not_after: SystemTime,
    /// Serial number of the certificate, lower-case hex.
    pub serial: Arc<str>,
    /// Which of our issuers signed it; none if it came from another CA.
    pub issuer: Option<Arc<str>>,
    /// It leads to roots of `--svid-roots` alone: enough for its holder's own stream, no proof for a certificate of ours.
    pub further: bool,
    /// Uid of the pod that the certificate was issued to; none if no pod was proved.
    pub pod: Option<Arc<str>>,
    /// The chain as it was shown, leaf first: for people.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl Proved {
    /// Whether it is not believed any more.
    pub fn is_on(&self, denied: &DenyList) -> bool {
        denied.has_written(&self.identity, &self.serial)
    }
}

/// The peer of a request.
pub fn peer<T>(request: &Request<T>) -> Result<&Peer, Status> {
    request.extensions().get::<Peer>().ok_or_else(|| Status::internal("the connection's peer is not known"))
}

/// The identity that the request's connection proved, if it still holds.
pub fn proved<T>(request: &Request<T>) -> Result<&Proved, Status> {
    let proved = peer(request)?.proved.as_ref().ok_or_else(|| {
        Status::unauthenticated("a client certificate of the mesh is needed here; get one by CreateCertificate")
    })?;
    if SystemTime::now() >= proved.not_after {
        return Err(expired());
    }
    Ok(proved)
}

/// The answer to a connection that has outlived its certificate.
pub fn expired() -> Status {
    Status::unauthenticated("the client certificate of this connection has expired; connect again with the renewed one")
}

/// Returns when the certificate has expired, by the wall clock, which may be set.
pub async fn ends(proved: &Proved) {
    while let Ok(left) = proved.not_after.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(Duration::from_secs(30)).max(Duration::from_millis(10))).await;
    }
}

/// Reads `NAMESPACE/POD`.
pub fn workload(text: &str) -> Result<Name, Status> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') && text.len() <= 512 =>
        {
            Ok(Name::new(namespace, name))
        }
        _ => Err(Status::invalid_argument("a workload is named NAMESPACE/POD")),
    }
}

/// Refuses unless the workload is known and belongs to the identity; and is the very pod that the certificate was issued to, if it was to one;
/// and that certificate is not revoked.
pub fn must_own(hub: &Hub, proved: &Proved, workload: &Name) -> Result<(), Status> {
    let identity = &proved.identity;
    if proved.is_on(&hub.denied()) {
        return Err(Status::permission_denied(format!("{identity}, or this certificate of it, is revoked")));
    }
    match hub.owns(proved, workload) {
        Some(true) => Ok(()),
        Some(false) => Err(Status::permission_denied(match &proved.pod {
            Some(uid) => {
                format!("workload {workload} is not the pod {uid} of {identity} that the certificate was issued to")
            }
            None => format!("workload {workload} does not belong to {identity}"),
        })),
        None => Err(Status::permission_denied(format!("workload {workload} is not known (yet)"))),
    }
}
