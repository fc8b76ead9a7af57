//! `istio.v1.auth.IstioCertificateService`: a workload asks for its certificate.
//!
//! Who asks is proved by a client certificate (renewal) or a join token (first time); what the certificate request says of itself is not
//! believed. Every issue and every refusal is one line of the audit log (target `weft::audit`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tonic::{Request, Response, Status};
use weft_api::wire::ca::istio_certificate_service_server::IstioCertificateService;
use weft_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use weft_certs::ca::Ca;
use weft_certs::token::Verifier;
use weft_engine::identity::Identity;
use weft_engine::ratelimit::{Decision, Key, Limiter, Rate};

use crate::auth;
use crate::config::Config;
use crate::metrics::Metrics;

/// The gRPC service.
#[derive(Debug)]
pub struct CertificateService {
    ca: Arc<Ca>,
    tokens: Verifier,
    longest: Duration,
    limiter: Limiter,
    started: Instant,
    metrics: Arc<Metrics>,
}

/// A refusal: its cause as a label, and what the caller is told.
type Refusal = (&'static str, Status);

impl CertificateService {
    /// Signs with `ca`.
    pub fn new(ca: Arc<Ca>, config: &Config, metrics: Arc<Metrics>) -> Self {
        let (requests, burst) = config.certificates;
        let rate = Rate { requests, per: Duration::from_secs(1), burst };
        Self {
            tokens: Verifier::from_ca(&ca),
            ca,
            longest: config.leaf_ttl,
            limiter: Limiter::new("certificates", rate, Key::ClientIdentity, Vec::new()),
            started: Instant::now(),
            metrics,
        }
    }

    /// Who asks. A certificate counts for more than a token, which may have run out since the first time; both must agree if both
    /// are good.
    fn identify(&self, request: &Request<IstioCertificateRequest>) -> Result<Identity, Refusal> {
        let proved = auth::proved(request).ok().map(|proved| proved.identity.clone());
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        let token = token.map(|token| self.tokens.verify(token.trim(), SystemTime::now()));
        match (proved, token) {
            (Some(proved), Some(Ok(claimed))) if proved != claimed => {
                Err(("mismatch", Status::permission_denied("the token and the client certificate name two identities")))
            }
            (Some(identity), _) | (None, Some(Ok(identity))) => Ok(identity),
            (None, Some(Err(error))) => Err(("token", Status::unauthenticated(error.to_string()))),
            (None, None) => Err((
                "unauthenticated",
                Status::unauthenticated("a join token (authorization: Bearer ...) or a client certificate is needed"),
            )),
        }
    }

    fn issue(
        &self,
        identity: &Identity,
        request: &IstioCertificateRequest,
    ) -> Result<(Vec<String>, Duration), Refusal> {
        let cell = self.limiter.cell(Some(identity));
        if let Decision::Limit { retry_after } = self.limiter.rate.check(&cell, self.started.elapsed()) {
            let message = format!("too many certificates for {identity}; try again in {} ms", retry_after.as_millis());
            return Err(("rate_limited", Status::resource_exhausted(message)));
        }
        let asked = match u64::try_from(request.validity_duration) {
            Ok(0) => self.longest,
            Ok(seconds) => Duration::from_secs(seconds).min(self.longest),
            Err(_) => return Err(("validity", Status::invalid_argument("validity_duration must not be negative"))),
        };
        let chain = self
            .ca
            .issue(&request.csr, identity, asked, SystemTime::now())
            .map_err(|error| ("request", Status::invalid_argument(error.to_string())))?;
        Ok((chain, asked))
    }

    fn refuse(&self, identity: Option<&Identity>, addr: SocketAddr, (cause, status): Refusal) -> Status {
        self.metrics.refused.with_label_values(&[cause]).inc();
        let identity = identity.map(ToString::to_string).unwrap_or_default();
        tracing::warn!(target: "weft::audit", identity, %addr, cause, message = status.message(), "certificate refused");
        status
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let addr = auth::peer(&request)?.addr;
        let identity = self.identify(&request).map_err(|refusal| self.refuse(None, addr, refusal))?;
        let issued = self.issue(&identity, request.get_ref());
        let (cert_chain, life) = issued.map_err(|refusal| self.refuse(Some(&identity), addr, refusal))?;
        self.metrics.issued.inc();
        tracing::info!(target: "weft::audit", %identity, %addr, seconds = life.as_secs(), "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
