//! What is told about proofs of identity on the command line, and the provers made of it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use super::https::Server;
use super::issuers::Source;
use super::jwks::{Jwks, Place};
use super::kubernetes::{By, Kubernetes};
use super::review::Review;
use super::secret::SecretFile;
use crate::cluster;
use crate::metrics::Metrics;

/// How workloads prove who they are, beside join tokens and certificates.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Take service-account tokens of this API server, each reviewed by it (TokenReview).
    #[arg(long, value_name = "URL", help_heading = "Proof of identity", conflicts_with = "kubernetes_jwks")]
    pub kubernetes_api: Option<String>,
    /// Take service-account tokens by the API server's public keys, without asking about each: a file, or its URL (https://HOST/openid/v1/jwks).
    #[arg(long, value_name = "FILE|URL", help_heading = "Proof of identity")]
    pub kubernetes_jwks: Option<String>,
    /// Roots to verify the API server by; default: those that the kubelet gives a pod.
    #[arg(long, value_name = "FILE", help_heading = "Proof of identity")]
    pub kubernetes_ca: Option<PathBuf>,
    /// Our own token for the API server, read at each use; default: the one that the kubelet gives a pod.
    #[arg(long, value_name = "FILE", help_heading = "Proof of identity")]
    pub kubernetes_token: Option<PathBuf>,
    /// Issuer of service-account tokens (`--service-account-issuer` of the API server).
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://kubernetes.default.svc.cluster.local",
        help_heading = "Proof of identity"
    )]
    pub kubernetes_issuer: String,
    /// Audience that service-account tokens must be for.
    #[arg(long, value_name = "NAME", default_value = "weft", help_heading = "Proof of identity")]
    pub kubernetes_audience: String,
    /// Take tokens of the OIDC issuers that this file lists (YAML or JSON; see docs/identity.md). Read again when it changes.
    #[arg(long, value_name = "FILE", help_heading = "Proof of identity")]
    pub identity_providers: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kubernetes_api: None,
            kubernetes_jwks: None,
            kubernetes_ca: None,
            kubernetes_token: None,
            kubernetes_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            kubernetes_audience: "weft".to_owned(),
            identity_providers: None,
        }
    }
}

impl Settings {
    /// The prover of service-account tokens, if one is wanted.
    pub(super) async fn kubernetes(
        &self,
        trust_domain: &str,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Option<Kubernetes>> {
        let roots = cluster::roots(self.kubernetes_ca.as_deref());
        let own = cluster::token(self.kubernetes_token.as_deref());
        let own = SecretFile::new(&own);
        let by = match (&self.kubernetes_api, &self.kubernetes_jwks) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => bail!("give one of --kubernetes-api and --kubernetes-jwks"),
            (Some(api), None) => {
                let server = Server::new(api, Some(&roots)).context("--kubernetes-api")?;
                By::Review(Box::new(Review::new(server, own, Arc::clone(metrics))))
            }
            (None, Some(keys)) => {
                let place = if keys.contains("://") {
                    Place::Url(Box::new(Server::new(keys, Some(&roots)).context("--kubernetes-jwks")?), Some(own))
                } else {
                    Place::File(keys.into())
                };
                let keys = Jwks::new(&self.kubernetes_issuer, place, Arc::clone(metrics));
                keys.begin(Instant::now()).await.map_err(anyhow::Error::msg).context("--kubernetes-jwks")?;
                By::Keys(keys)
            }
        };
        Ok(Some(Kubernetes::new(&self.kubernetes_issuer, &self.kubernetes_audience, trust_domain, by)))
    }

    /// The file of identity providers, if there is one.
    pub(super) fn oidc(&self, metrics: &Arc<Metrics>) -> Option<Source> {
        let path = self.identity_providers.clone()?;
        let kubernetes = self.kubernetes_api.is_some() || self.kubernetes_jwks.is_some();
        let taken = kubernetes.then(|| self.kubernetes_issuer.clone());
        Some(Source { path, taken, metrics: Arc::clone(metrics) })
    }
}
