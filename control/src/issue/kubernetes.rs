//! Service-account tokens of Kubernetes, projected into a pod for us (audience-bound).
//!
//! Proved by the API server's public keys, without asking it, or by a TokenReview. Either way the pod that the token is bound to must be
//! in the model with that uid and that service account: a token outlives its pod, a pod's name is used again.
//!
//! What nobody can tell is who shows a token: it is as good in another pod as in its own. So it must be bound to a pod, live 24 h at most
//! (the kubelet's default is one), and be for our audience alone by the operator's choice.

use std::ops::Deref;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::time::Instant;
use weft_certs::jwt::{Algorithm, Claims, JwtError, Unproved};
use weft_engine::identity::Identity;

use super::jwks::Jwks;
use super::review::Review;
use super::{Cause, Method, Pod, Proof, Refusal};
use crate::model::{Model, Name};

/// Longest life of a token that is taken.
const MAX_LIFE: Duration = Duration::from_hours(24);
const SUBJECT: &str = "system:serviceaccount:";

/// Checks service-account tokens of one cluster.
#[derive(Debug)]
pub struct Kubernetes {
    issuer: String,
    audience: String,
    trust_domain: String,
    by: By,
}

/// How a token is proved.
#[derive(Debug)]
pub enum By {
    /// By the API server's public keys.
    Keys(Jwks),
    /// By the API server itself.
    Review(Box<Review>),
}

/// What a token says, once it is proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub namespace: String,
    pub account: String,
    pub pod: Pod,
}

impl Kubernetes {
    /// Takes tokens of this issuer for this audience.
    pub fn new(issuer: &str, audience: &str, trust_domain: &str, by: By) -> Self {
        let (issuer, audience) = (issuer.to_owned(), audience.to_owned());
        Self { issuer, audience, trust_domain: trust_domain.to_owned(), by }
    }

    /// Whose tokens these are.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Whom the token proves. The model is looked at after the token was proved.
    pub async fn prove<M: Deref<Target = Model>>(
        &self,
        text: &str,
        token: Unproved<'_>,
        now: SystemTime,
        model: impl FnOnce() -> Option<M>,
    ) -> Result<Proof, Refusal> {
        // Before anybody is asked: what cannot be right for us is no reason to trouble the API server.
        token.claims().check(Some(&self.issuer), &self.audience, now)?;
        let bound = match &self.by {
            By::Keys(jwks) => {
                let keys = jwks.with(token.key_id().unwrap_or_default(), Instant::now()).await?;
                let claims = token.prove(&keys, &Algorithm::ALL)?;
                short_lived(&claims)?;
                bound(&claims)?
            }
            By::Review(review) => review.ask(text.trim(), &self.audience, Instant::now()).await?,
        };
        let refused = |refusal: Refusal| refusal.of_pod(&bound.pod);
        let model = model().ok_or_else(|| {
            refused(Refusal::new(
                Cause::Unavailable,
                "control has not read its sources yet, so no pod is known; try again",
            ))
        })?;
        live(&bound, &model).map_err(refused)?;
        let identity = Identity::new(&self.trust_domain, &bound.namespace, &bound.account).map_err(|error| {
            refused(Refusal::new(Cause::TokenClaims, format!("the token's service account gives no identity: {error}")))
        })?;
        Ok(Proof { identity, method: Method::Kubernetes, pod: Some(bound.pod), once: None, token: None })
    }
}

fn short_lived(claims: &Claims) -> Result<(), Refusal> {
    let needed = |name| claims.time(name).and_then(|time| time.ok_or(JwtError::Claim(name)));
    if needed("exp")?.saturating_sub(needed("iat")?) <= MAX_LIFE.as_secs() {
        return Ok(());
    }
    let message = format!(
        "the token lives longer than {} h; project one with expirationSeconds of an hour",
        MAX_LIFE.as_secs() / 3600
    );
    Err(Refusal::new(Cause::TokenClaims, message))
}

/// The claim `kubernetes.io` of a bound token.
#[derive(Deserialize)]
struct Private {
    namespace: String,
    serviceaccount: Object,
    pod: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    #[serde(default)]
    uid: String,
}

fn bound(claims: &Claims) -> Result<Bound, Refusal> {
    let private: Private = claims.read("kubernetes.io")?;
    let subject = format!("{SUBJECT}{}:{}", private.namespace, private.serviceaccount.name);
    if claims.text("sub") != Some(&subject) {
        return Err(JwtError::Claim("sub").into());
    }
    let pod = private.pod.ok_or_else(unbound)?;
    let pod = Pod { name: Name::new(&private.namespace, pod.name), uid: uid(pod.uid)? };
    Ok(Bound { namespace: private.namespace, account: private.serviceaccount.name, pod })
}

/// It is written into certificates: letters, digits and `-`, 60 at most. The API server makes UUIDs.
pub(super) fn uid(uid: String) -> Result<String, Refusal> {
    match uid.len() {
        0 => Err(unbound()),
        1..=60 if uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') => Ok(uid),
        _ => Err(Refusal::new(Cause::TokenClaims, "the pod's uid in the token is none that the API server makes")),
    }
}

pub(super) fn unbound() -> Refusal {
    let message = "the token is bound to no pod; mount a projected service-account token (volumes: projected: serviceAccountToken)";
    Refusal::new(Cause::TokenClaims, message)
}

/// Reads `system:serviceaccount:NAMESPACE:NAME`.
pub(super) fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(SUBJECT)?.split_once(':').filter(|(_, account)| !account.contains(':'))
}

/// The pod is there, is that very one, and runs as that service account.
fn live(bound: &Bound, model: &Model) -> Result<(), Refusal> {
    let Pod { name, uid } = &bound.pod;
    let Some(found) = model.workloads.get(name) else {
        let message = format!("pod {name} is not known: it was deleted, or control has not heard of it yet");
        return Err(Refusal::new(Cause::PodUnknown, message));
    };
    if found.uid.is_empty() {
        let message = format!("control knows no uid of pod {name}, or it has ended; its manifest needs metadata.uid");
        return Err(Refusal::new(Cause::PodUnknown, message));
    }
    if found.uid != *uid {
        let message = format!("the token is bound to an earlier pod {name} (uid {uid}), which was deleted");
        return Err(Refusal::new(Cause::PodReplaced, message));
    }
    if found.service_account != bound.account {
        let (has, says) = (&found.service_account, &bound.account);
        let message = format!("pod {name} runs as service account {has}, the token says {says}");
        return Err(Refusal::new(Cause::ServiceAccount, message));
    }
    Ok(())
}
