//! `istio.v1.auth.IstioCertificateService`: a workload asks for its certificate.
//!
//! [`crate::issue`] says who asks; what the certificate request says of itself is not believed. Every issue and every refusal is one
//! line of the audit log (target `weft::audit`): who, from where, by what proof, for which pod, the serial number or the cause.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Response, Status};
use weft_api::names::{RENEW_BY, TOKEN};
use weft_api::wire::ca::istio_certificate_service_server::IstioCertificateService;
use weft_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use weft_certs::ca::{check_request, leaf_of};
use weft_engine::identity::Identity;
use weft_engine::ratelimit::{Decision, Key, Limiter, Rate};

use crate::auth;
use crate::config::Config;
use crate::issue::signers::Wanted;
use crate::issue::{Cause, Pod, Proof, Provers, Refusal};
use crate::metrics::Metrics;
use crate::rotation::Authority;

/// The gRPC service.
#[derive(Debug)]
pub struct CertificateService {
    ca: Authority,
    provers: Provers,
    longest: Duration,
    limiter: Limiter,
    started: Instant,
    metrics: Arc<Metrics>,
}

impl CertificateService {
    /// `ca` signs.
    pub fn new(ca: Authority, provers: Provers, config: &Config, metrics: Arc<Metrics>) -> Self {
        let (requests, burst) = config.certificates;
        let rate = Rate { requests, per: Duration::from_secs(1), burst };
        Self {
            ca,
            provers,
            longest: config.leaf_ttl,
            limiter: Limiter::new("certificates", rate, Key::ClientIdentity, Vec::new()),
            started: Instant::now(),
            metrics,
        }
    }

    async fn issue(
        &self,
        proof: &Proof,
        request: &IstioCertificateRequest,
        now: SystemTime,
    ) -> Result<Vec<String>, Refusal> {
        let identity = &proof.identity;
        self.ration(identity)?;
        let asked = match u64::try_from(request.validity_duration) {
            Ok(0) => self.longest,
            Ok(seconds) => Duration::from_secs(seconds).min(self.longest),
            Err(_) => return Err(Refusal::new(Cause::Validity, "validity_duration must not be negative")),
        };
        if let Some(once) = &proof.once {
            let called = self.ca.borrow().called();
            let key = check_request(&request.csr, identity, &called.every().collect::<Vec<_>>())?;
            self.provers.use_up(once.clone(), key, now).await?;
        }
        let ca = Arc::clone(&self.ca.borrow());
        let pod = proof.pod.as_ref().map(|pod| pod.uid.as_str());
        let wanted = Wanted { csr: &request.csr, identity, pod, token: proof.token.as_ref(), life: asked };
        ca.sign(wanted, now).await
    }

    fn ration(&self, identity: &Identity) -> Result<(), Refusal> {
        let cell = self.limiter.cell(Some(identity));
        match self.limiter.rate.check(&cell, self.started.elapsed()) {
            Decision::Admit { .. } => Ok(()),
            Decision::Limit { retry_after } => {
                let wait = retry_after.as_millis();
                let message = format!("too many certificates for {identity}; try again in {wait} ms");
                Err(Refusal::new(Cause::RateLimited, message))
            }
        }
    }

    fn refuse(&self, addr: SocketAddr, refusal: &Refusal) -> Status {
        let (cause, method) = (refusal.cause.label(), refusal.method.label());
        self.metrics.refused.with_label_values(&[cause, method]).inc();
        let identity = refusal.identity.as_ref().map(ToString::to_string).unwrap_or_default();
        let (pod, pod_uid) = pod(refusal.pod.as_deref());
        let reason = refusal.message.as_str();
        tracing::warn!(target: "weft::audit", cause, method, identity, %addr, pod, pod_uid, reason, "certificate refused");
        refusal.status()
    }

    fn issued(&self, addr: SocketAddr, proof: &Proof, chain: &[String], now: SystemTime) {
        let method = proof.method.label();
        self.metrics.issued.with_label_values(&[method]).inc();
        let leaf = chain.first().and_then(|leaf| leaf_of(leaf));
        // As it was given, which is not always as it was asked for.
        let seconds =
            leaf.as_ref().and_then(|leaf| leaf.not_after.duration_since(now).ok()).map_or(0, |left| left.as_secs());
        let (identity, serial) = (&proof.identity, leaf.map(|leaf| leaf.serial).unwrap_or_default());
        let (pod, pod_uid) = pod(proof.pod.as_ref());
        tracing::info!(target: "weft::audit", method, %identity, %addr, serial, seconds, pod, pod_uid, "certificate issued");
    }
}

/// Name and uid for the log, empty if there is no pod.
fn pod(pod: Option<&Pod>) -> (String, &str) {
    pod.map_or_else(Default::default, |pod| (pod.name.to_string(), pod.uid.as_str()))
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let now = SystemTime::now();
        let peer = auth::peer(&request)?.clone();
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        let proof = self.provers.prove(peer.proved.as_ref(), token, now).await;
        let mut proof = proof.map_err(|refusal| self.refuse(peer.addr, &refusal))?;
        // It is issued, and told of, under the name that the mesh has now.
        if let Some(now) = self.ca.borrow().called().named_now(&proof.identity) {
            proof.identity = now;
        }
        let issued = self.issue(&proof, request.get_ref(), now).await;
        let cert_chain = issued.map_err(|refusal| self.refuse(peer.addr, &refusal.after(&proof)))?;
        self.issued(peer.addr, &proof, &cert_chain, now);
        let mut response = Response::new(IstioCertificateResponse { cert_chain });
        if self.ca.borrow().wants_token() {
            response.metadata_mut().insert(RENEW_BY, AsciiMetadataValue::from_static(TOKEN));
        }
        Ok(response)
    }
}
