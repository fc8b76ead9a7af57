//! TokenReview: the API server says whether a token is good, and whose it is. It knows at once what no signature tells: that the pod
//! or the service account is gone.
//!
//! Bounds: 16 questions at a time, beyond which askers are told to try again; answers are kept for 10 s (by the token's hash), 1,024 of
//! them at most, so that a proxy that asks again costs nothing.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use weft_certs::files;

use super::https::Server;
use super::kubernetes::{Bound, account, uid as known, unbound};
use super::secret::SecretFile;
use super::{Cause, Pod, Refusal};
use crate::metrics::Metrics;
use crate::model::Name;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const AT_A_TIME: usize = 16;
const KEPT: usize = 1024;
const KEEP: Duration = Duration::from_secs(10);
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// By the token's hash: when it was answered, and what.
type Kept = HashMap<String, (Instant, Result<Bound, Refusal>)>;

/// Asks the API server.
pub struct Review {
    server: Server,
    own: SecretFile,
    places: Semaphore,
    kept: Mutex<Kept>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Review {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Review({:?})", self.server)
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    authenticated: bool,
    user: User,
    audiences: Vec<String>,
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    extra: HashMap<String, Vec<String>>,
}

impl Review {
    /// Shows the token in `own` to the API server.
    pub fn new(server: Server, own: SecretFile, metrics: Arc<Metrics>) -> Self {
        Self { server, own, places: Semaphore::new(AT_A_TIME), kept: Mutex::default(), metrics }
    }

    pub(super) async fn ask(&self, token: &str, audience: &str, now: Instant) -> Result<Bound, Refusal> {
        let hash = files::checksum(token.as_bytes());
        if let Some((at, kept)) = self.kept.lock().get(&hash)
            && now.saturating_duration_since(*at) < KEEP
        {
            return kept.clone();
        }
        let Ok(_place) = self.places.try_acquire() else {
            self.metrics.bound("token_reviews", 1);
            let message = "too many tokens are being reviewed by the API server now; try again";
            return Err(Refusal::new(Cause::Unavailable, message));
        };
        let answer = self.fetch(token, audience).await;
        self.metrics.token_reviews.with_label_values(&[if answer.is_ok() { "ok" } else { "failed" }]).inc();
        let answer = answer.map_err(|error| {
            tracing::warn!(error, "the API server could not review a token");
            Refusal::new(Cause::Unavailable, format!("the API server could not review the token: {error}"))
        })?;
        let read = read(answer.status, audience);
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT {
            kept.retain(|_, (at, _)| now.saturating_duration_since(*at) < KEEP);
        }
        if kept.len() < KEPT {
            kept.insert(hash, (now, read.clone()));
        }
        read
    }

    async fn fetch(&self, token: &str, audience: &str) -> Result<Answer, String> {
        let own = self.own.read().await?;
        let review = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        });
        let answer = self.server.post(PATH, Some(&own), review.to_string().into_bytes()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        // The error may quote what was sent, so it is not told.
        serde_json::from_slice(&answer).map_err(|_| "its answer is no TokenReview".to_owned())
    }
}

fn read(status: Status, audience: &str) -> Result<Bound, Refusal> {
    if !status.authenticated {
        let message = format!("the API server does not take the token: {}", short(&status.error));
        return Err(Refusal::new(Cause::TokenRevoked, message));
    }
    // A server that knows nothing of audiences names none.
    if !status.audiences.iter().any(|found| found == audience) {
        return Err(Refusal::new(Cause::TokenAudience, format!("the token is not for the audience `{audience}`")));
    }
    let extra = |name: &str| status.user.extra.get(name)?.first().filter(|value| !value.is_empty()).cloned();
    let (namespace, account) = account(&status.user.username)
        .ok_or_else(|| Refusal::new(Cause::TokenClaims, "the token is not of a service account"))?;
    let (name, uid) = extra(POD_NAME).zip(extra(POD_UID)).ok_or_else(unbound)?;
    let pod = Pod { name: Name::new(namespace, name), uid: known(uid)? };
    Ok(Bound { namespace: namespace.to_owned(), account: account.to_owned(), pod })
}

/// The server's words, as many as a log line bears. They name pods and accounts, never the token.
fn short(text: &str) -> &str {
    let end = text.char_indices().nth(300).map_or(text.len(), |(at, _)| at);
    if text.is_empty() { "it says no more" } else { &text[..end] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Status {
        serde_json::from_str::<Answer>(text).unwrap().status
    }

    #[test]
    fn an_answer_names_account_and_pod() {
        let good = r#"{"status":{"authenticated":true,"audiences":["weft"],"user":{"username":"system:serviceaccount:shop:web",
            "extra":{"authentication.kubernetes.io/pod-name":["web-1"],"authentication.kubernetes.io/pod-uid":["u1"]}}}}"#;
        let bound = read(status(good), "weft").unwrap();
        assert_eq!((bound.namespace.as_str(), bound.account.as_str()), ("shop", "web"));
        assert_eq!(bound.pod, Pod { name: Name::new("shop", "web-1"), uid: "u1".into() });
        for (from, to, cause) in [
            ("true", "false", Cause::TokenRevoked),
            (r#"["weft"]"#, r#"["other"]"#, Cause::TokenAudience),
            (r#"["weft"]"#, "[]", Cause::TokenAudience),
            ("system:serviceaccount:shop:web", "alice", Cause::TokenClaims),
            ("pod-uid", "node-uid", Cause::TokenClaims),
            (r#"["u1"]"#, "[]", Cause::TokenClaims),
        ] {
            assert_eq!(read(status(&good.replace(from, to)), "weft").unwrap_err().cause, cause, "{to}");
        }
        assert_eq!(read(status("{}"), "weft").unwrap_err().cause, Cause::TokenRevoked);
    }
}
