//! Who asks for a certificate, by what that is proved, and who signs it ([`signers`]). One file a prover: [`certificate`] (renewal by one that is still valid),
//! [`join`] (our own tokens, single use), [`kubernetes`] (service-account tokens), [`oidc`] (tokens of any issuer).
//!
//! Invariants
//! - What an identity is made of is proved by a signature or by the API server; nothing that the request says of itself is believed.
//! - Which prover looks at a token is told by its issuer alone (`iss`; none: a join token). One issuer, one prover: a token that one
//!   refuses is never tried on another.
//! - A token that may be used once is used up, for good and for all replicas, before a certificate is issued, and only by a request that will not be refused for
//!   something else.
//! - Every refusal has a [`Cause`]; what cannot be decided now (`unavailable`) is never a "yes".

pub mod cause;
pub mod certificate;
pub mod https;
pub mod issuers;
pub mod join;
pub mod jwks;
pub mod kubernetes;
pub mod oidc;
pub mod providers;
pub mod review;
pub mod secret;
pub mod settings;
pub mod signers;
pub mod used;

use std::sync::Arc;
use std::time::SystemTime;

use tokio_util::task::AbortOnDropHandle;
use weft_certs::ca::Ca;
use weft_certs::jwt::Unproved;
use weft_engine::identity::Identity;

pub use cause::{Cause, Method, Pod, Refusal};
use issuers::Issuers;
use secret::Bearer;
pub use settings::Settings;

use crate::auth::Proved;
use crate::distribute::Hub;
use crate::metrics::Metrics;
use used::{Once, UseError, UsedTokens};

/// What was proved.
#[derive(Clone, Debug)]
pub struct Proof {
    /// Who asks.
    pub identity: Identity,
    /// By what.
    pub method: Method,
    /// The pod that the proof is bound to.
    pub pod: Option<Pod>,
    /// The token has to be used up before a certificate is issued.
    pub once: Option<Once>,
    /// A token that has proved it and that somebody else could check as well: none of ours.
    pub token: Option<Bearer>,
}

/// All provers.
#[derive(Debug)]
pub struct Provers {
    joins: Option<(join::Join, Arc<UsedTokens>)>,
    kubernetes: Option<kubernetes::Kubernetes>,
    oidc: Arc<Issuers>,
    _oidc: Option<AbortOnDropHandle<()>>,
    trust_domain: String,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
}

impl Provers {
    /// As configured. The key of join tokens is the CA's, if there is one; used tokens are shared by the replicas.
    ///
    /// # Errors
    /// A file that is named cannot be used. An issuer that does not answer is no error: it may come up later.
    pub async fn open(
        settings: &Settings,
        trust_domain: &str,
        joins: Option<(Arc<Ca>, UsedTokens)>,
        hub: Arc<Hub>,
    ) -> anyhow::Result<Self> {
        let metrics = Arc::clone(&hub.metrics);
        let oidc = Arc::new(Issuers::default());
        let following = match settings.oidc(&metrics) {
            Some(source) => Some(oidc.open(source).await.map_err(anyhow::Error::msg)?),
            None => None,
        };
        let joins = joins.map(|(ca, used)| (join::Join::new(&ca), Arc::new(used)));
        Ok(Self {
            joins,
            kubernetes: settings.kubernetes(trust_domain, &metrics).await?,
            oidc,
            _oidc: following.map(|following| AbortOnDropHandle::new(tokio::spawn(following))),
            trust_domain: trust_domain.to_owned(),
            hub,
            metrics,
        })
    }

    /// Who asks. Whoever is revoked is refused whatever he shows; who shows a certificate that is revoked has shown none.
    pub async fn prove(&self, proved: Option<&Proved>, token: Option<&str>, now: SystemTime) -> Result<Proof, Refusal> {
        let denied = self.hub.denied();
        let stolen = proved.filter(|proved| proved.is_on(&denied));
        if let Some(stolen) = stolen.filter(|_| token.is_none()) {
            let message = format!("{}, or this certificate of it, is revoked", stolen.identity);
            let refusal = Refusal::new(Cause::Revoked, message).by(Method::Certificate);
            return Err(Refusal { identity: Some(stolen.identity.clone()), ..refusal });
        }
        let proof = self.by_any(proved.filter(|_| stolen.is_none()), token, now).await?;
        if denied.has_identity(&proof.identity) {
            return Err(Refusal::new(Cause::Revoked, format!("{} is revoked", proof.identity)).after(&proof));
        }
        Ok(proof)
    }

    // A certificate counts for more than a token, which may have run out since the first time; both must agree if both are good.
    async fn by_any(&self, proved: Option<&Proved>, token: Option<&str>, now: SystemTime) -> Result<Proof, Refusal> {
        let by_certificate = certificate::prove(proved, now, || self.hub.model());
        let by_token = match token {
            Some(token) => Some(self.by_token(token, now).await),
            None => None,
        };
        match (by_certificate, by_token) {
            (Some(Ok(proof)), Some(Ok(other)))
                if !proof.identity.has_path_of(&other.identity) || two_pods(&proof, &other) =>
            {
                let message = "the token and the client certificate name two identities, or two pods";
                Err(Refusal::new(Cause::Mismatch, message).by(other.method))
            }
            (Some(Ok(proof)), Some(Ok(Proof { token, .. }))) => Ok(Proof { token, ..proof }),
            (Some(Ok(proof)), _) => Ok(proof),
            (_, Some(by_token)) => by_token,
            (Some(Err(refusal)), None) => Err(refusal),
            (None, None) => {
                let message = "a token (authorization: Bearer ...) or a client certificate of the mesh that is still valid is needed";
                Err(Refusal::new(Cause::Unauthenticated, message))
            }
        }
    }

    async fn by_token(&self, text: &str, now: SystemTime) -> Result<Proof, Refusal> {
        let token = Unproved::read(text)?;
        let shown = Some(Bearer::new(text));
        let Some(issuer) = token.issuer() else { return self.by_join(token, now) };
        if let Some(kubernetes) = self.kubernetes.as_ref().filter(|kubernetes| kubernetes.issuer() == issuer) {
            let proof = kubernetes.prove(text, token, now, || self.hub.model()).await;
            let proof = proof.map(|proof| Proof { token: shown, ..proof });
            return proof.map_err(|refusal| refusal.by(Method::Kubernetes));
        }
        if let Some(provider) = self.oidc.get(issuer) {
            let proof = provider.prove(token, &self.trust_domain, now).await;
            let proof = proof.map(|proof| Proof { token: shown, ..proof });
            return proof.map_err(|refusal| refusal.by(Method::Oidc));
        }
        let message = "the token's issuer is none that control was told of (--kubernetes-issuer, --identity-providers)";
        Err(Refusal::new(Cause::TokenIssuer, message))
    }

    fn by_join(&self, token: Unproved<'_>, now: SystemTime) -> Result<Proof, Refusal> {
        let Some((join, _)) = &self.joins else {
            let message = "join tokens (weft token) are not taken here: certificates are issued elsewhere, and there is no --ca-dir \
                           whose key could have signed one";
            return Err(Refusal::new(Cause::TokenIssuer, message).by(Method::Join));
        };
        join.prove(token, now)
    }

    /// Uses up a token for a key.
    pub async fn use_up(&self, once: Once, key: String, now: SystemTime) -> Result<(), Refusal> {
        // Only the prover of join tokens asks for this.
        let Some((_, used)) = &self.joins else { return Ok(()) };
        let (used, all) = (Arc::clone(used), used);
        let taken = tokio::task::spawn_blocking(move || used.take(&once, &key, now)).await;
        self.metrics.used_tokens.set(i64::try_from(all.count()).unwrap_or(i64::MAX));
        match taken {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let cause = match &error {
                    UseError::Used => Cause::TokenReplayed,
                    UseError::Full(_) => {
                        self.metrics.bound("used_tokens", 1);
                        Cause::Unavailable
                    }
                    UseError::Store { .. } => Cause::Unavailable,
                };
                Err(Refusal::new(cause, error.to_string()))
            }
            Err(_) => Err(Refusal::new(Cause::Unavailable, "the token's use could not be recorded; try again")),
        }
    }
}

fn two_pods(one: &Proof, other: &Proof) -> bool {
    one.pod.as_ref().zip(other.pod.as_ref()).is_some_and(|(one, other)| one.uid != other.uid)
}
