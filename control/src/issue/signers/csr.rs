//! Certificates through Kubernetes: a CertificateSigningRequest for a signer of the operator's choice.
//!
//! Invariants
//! - A request object has a name that nobody can guess, lives for as long as somebody waits for it, and is removed whatever becomes of it; those
//!   that a control left behind that died are swept ([`Requests::sweep`]).
//! - Control approves nothing but what it has made itself in the same question, for somebody who was proved.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
    CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};
use weft_certs::files;

use super::line::{Failed, Question};
use crate::cluster::{ClusterError, FIELD_MANAGER, MANAGED_BY, ask};

/// The API server takes no shorter life.
pub const SHORTEST: Duration = Duration::from_mins(10);
/// Of our objects, by the label that is ours alone.
const PURPOSE: (&str, &str) = ("weft.dev/purpose", "certificate");
/// Who the certificate is for, for people.
const IDENTITY: &str = "weft.dev/identity";
const USAGES: [&str; 3] = ["digital signature", "server auth", "client auth"];
/// Between two looks at an object; doubles up to the second.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LAST_LOOK: Duration = Duration::from_millis(500);
/// Nobody waits for an object that is older.
const LEFT_OVER: Duration = Duration::from_mins(5);
/// Objects that one sweep looks at.
const SWEPT: u32 = 500;

/// The signer.
#[derive(Clone)]
pub struct Requests {
    objects: Api<CertificateSigningRequest>,
    signer: String,
    approve: bool,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Requests({}, approved by {})", self.signer, if self.approve { "control" } else { "others" })
    }
}

impl Requests {
    /// Requests for the signer of this name. `approve`: control approves them itself.
    pub fn new(client: Client, signer: &str, approve: bool) -> Self {
        Self { objects: Api::all(client), signer: signer.to_owned(), approve }
    }

    /// The signer's.
    pub fn name(&self) -> &str {
        &self.signer
    }

    /// Makes a request, waits until it is signed or `deadline`, and removes it.
    pub async fn ask(&self, question: &Question<'_>, deadline: Instant) -> Result<Vec<String>, Failed> {
        let number = files::random_hex(16).map_err(|error| Failed::Slow(error.to_string()))?;
        let object = self.object(format!("weft-{number}"), question);
        let this = self.clone();
        // On its own: whoever asks may go away meanwhile, and the object must not stay.
        let asked = tokio::spawn(async move {
            let name = object.metadata.name.clone().unwrap_or_default();
            let signed = timeout_at(deadline, this.signed(&name, &object)).await;
            this.remove(&name).await;
            signed.unwrap_or_else(|_| {
                let who = if this.approve { "signed it" } else { "approved and signed it" };
                Err(Failed::Slow(format!("nobody has {who} in time; is the signer running?")))
            })
        });
        asked.await.map_err(|error| Failed::Slow(error.to_string()))?
    }

    fn object(&self, name: String, question: &Question<'_>) -> CertificateSigningRequest {
        let pairs = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Some(pairs.collect::<BTreeMap<_, _>>())
        };
        let identity = question.identity.to_string();
        CertificateSigningRequest {
            metadata: ObjectMeta {
                name: Some(name),
                labels: pairs(&[MANAGED_BY, PURPOSE]),
                annotations: pairs(&[(IDENTITY, &identity)]),
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(question.csr.as_bytes().to_vec()),
                signer_name: self.signer.clone(),
                usages: Some(USAGES.map(str::to_owned).to_vec()),
                expiration_seconds: i32::try_from(question.life.max(SHORTEST).as_secs()).ok(),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        }
    }

    async fn signed(&self, name: &str, object: &CertificateSigningRequest) -> Result<Vec<String>, Failed> {
        ask(self.objects.create(&PostParams::default(), object)).await.map_err(|error| failed("making it", &error))?;
        if self.approve {
            self.approved(name).await?;
        }
        let mut wait = FIRST_LOOK;
        loop {
            sleep(wait).await;
            wait = (wait * 2).min(LAST_LOOK);
            let seen = ask(self.objects.get(name)).await.map_err(|error| failed("looking at it", &error))?;
            if let Some(answer) = answer(seen.status.unwrap_or_default()) {
                return answer;
            }
        }
    }

    async fn approved(&self, name: &str) -> Result<(), Failed> {
        let condition = json!({
            "type": "Approved", "status": "True", "reason": "WeftProvedIdentity",
            "message": "control has proved who asks for this certificate",
        });
        let patch = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let patched = ask(self.objects.patch_approval(name, &params, &patch)).await;
        patched.map(|_| ()).map_err(|error| match error.status() {
            Some(403) => Failed::Refused(format!(
                "control may not approve requests for {} (give it the ClusterRole of docs/identity.md, or --approved-elsewhere): {error}",
                self.signer
            )),
            _ => failed("approving it", &error),
        })
    }

    async fn remove(&self, name: &str) {
        match ask(self.objects.delete(name, &DeleteParams::default())).await {
            Err(error) if !error.is_absent() => {
                tracing::warn!(name, %error, "a CertificateSigningRequest could not be removed; it will be swept");
            }
            _ => {}
        }
    }

    /// Removes what controls have left behind that died.
    pub async fn sweep(&self) -> Result<usize, ClusterError> {
        let label = |(name, value): (&str, &str)| format!("{name}={value}");
        let selector = format!("{},{}", label(MANAGED_BY), label(PURPOSE));
        let found = ask(self.objects.list(&ListParams::default().labels(&selector).limit(SWEPT))).await?;
        let now = k8s_openapi::jiff::Timestamp::now();
        let mut swept = 0;
        for object in found.items.iter().filter(|object| object.spec.signer_name == self.signer) {
            let (Some(name), Some(made)) = (&object.metadata.name, &object.metadata.creation_timestamp) else {
                continue;
            };
            if now.duration_since(made.0).unsigned_abs() >= LEFT_OVER {
                self.remove(name).await;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

/// What has become of a request; none yet.
fn answer(status: CertificateSigningRequestStatus) -> Option<Result<Vec<String>, Failed>> {
    let said = |condition: &CertificateSigningRequestCondition| {
        let words = [condition.reason.as_deref(), condition.message.as_deref()].into_iter().flatten();
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        let words: String = words.join(": ").chars().filter(|char| !char.is_control()).take(300).collect();
        format!("the request was {}: {words}", condition.type_.to_lowercase())
    };
    let conditions = status.conditions.unwrap_or_default();
    if let Some(no) = conditions.iter().find(|one| matches!(&*one.type_, "Denied" | "Failed")) {
        return Some(Err(Failed::Refused(said(no))));
    }
    let certificate = status.certificate.filter(|certificate| !certificate.0.is_empty())?;
    Some(String::from_utf8(certificate.0).map(|pem| vec![pem]).map_err(|_| Failed::Wrong("it is no PEM".to_owned())))
}

fn failed(doing: &str, error: &ClusterError) -> Failed {
    match error.status() {
        Some(403) => Failed::Refused(format!("{doing} is not allowed to control (see docs/identity.md): {error}")),
        Some(400 | 422) => Failed::Refused(error.to_string()),
        Some(404) => Failed::Refused("somebody has removed the request".to_owned()),
        Some(429 | 500..) => Failed::Slow(error.to_string()),
        _ => Failed::Away(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
