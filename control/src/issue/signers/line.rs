//! The way to a CA elsewhere.
//!
//! Invariants
//! - Bounded: so many questions at once ([`PLACES`]), each for so long ([`TIME`]), whoever waits for a place included. Nobody waits for longer
//!   than a sidecar does.
//! - A CA that is away is asked once in a while ([`LONGEST_PAUSE`] at most) and not for everybody who wants something; all others hear at once
//!   why they get nothing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use weft_engine::identity::Identity;

use super::create_certificate::CreateCertificate;
use super::csr::Requests;
use crate::issue::secret::Bearer;
use crate::issue::{Cause, Refusal};
use crate::metrics::Metrics;

/// Questions under way.
const PLACES: usize = 64;
/// For all of a question. A sidecar waits for 10 s, and should hear why.
const TIME: Duration = Duration::from_secs(9);
/// Between two sweeps.
const SWEEP: Duration = Duration::from_mins(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A sidecar that asks again after its own back-off should find the CA that is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A certificate to ask for.
#[derive(Debug)]
pub struct Question<'a> {
    /// The request, PEM.
    pub csr: &'a str,
    /// Whom it is for, to be seen by people.
    pub identity: &'a Identity,
    /// The token that has proved that, if one has.
    pub token: Option<&'a Bearer>,
    /// How long it should live.
    pub life: Duration,
}

/// There is no certificate.
#[derive(Debug)]
pub enum Failed {
    /// The CA cannot be reached: nobody else would get one now.
    Away(String),
    /// It has not answered in time, or is busy.
    Slow(String),
    /// It says no.
    Refused(String),
    /// It said something else.
    Wrong(String),
    /// It has to be shown a token.
    TokenNeeded,
}

/// Whom to ask.
#[derive(Debug)]
pub enum Upstream {
    /// A CA that speaks Istio's protocol.
    CreateCertificate(CreateCertificate),
    /// A signer of Kubernetes.
    Requests(Requests),
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    next: Duration,
    why: String,
}

/// See above.
#[derive(Debug)]
pub struct Line {
    /// Whom to ask.
    pub upstream: Upstream,
    places: Semaphore,
    pause: Mutex<Pause>,
    metrics: Arc<Metrics>,
}

impl Line {
    /// Nothing is asked yet.
    pub fn new(upstream: Upstream, metrics: Arc<Metrics>) -> Self {
        let pause = Pause { until: Instant::now(), next: FIRST_PAUSE, why: String::new() };
        Self { upstream, places: Semaphore::new(PLACES), pause: Mutex::new(pause), metrics }
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        match &self.upstream {
            Upstream::CreateCertificate(ca) => ca.name(),
            Upstream::Requests(signer) => signer.name(),
        }
    }

    /// Whether it has to be shown a token for each certificate.
    pub fn wants_token(&self) -> bool {
        matches!(self.upstream, Upstream::CreateCertificate(_))
    }

    /// For how long a certificate should live that somebody wants for `life`.
    pub fn life(&self, life: Duration) -> Duration {
        match &self.upstream {
            Upstream::CreateCertificate(_) => life,
            Upstream::Requests(_) => life.max(super::csr::SHORTEST),
        }
    }

    /// Asks: PEM, one or more certificates in each element, as the CA has sent them.
    ///
    /// # Errors
    /// There is none, and why.
    pub async fn ask(&self, question: &Question<'_>) -> Result<Vec<String>, Refusal> {
        let asked = self.in_bounds(question).await;
        let outcome = match &asked {
            Ok(_) => "ok",
            Err(Failed::Away(_) | Failed::Slow(_)) => "unavailable",
            Err(Failed::Refused(_) | Failed::TokenNeeded) => "refused",
            Err(Failed::Wrong(_)) => "wrong",
        };
        self.metrics.ca.answers.with_label_values(&[outcome]).inc();
        asked.map_err(|failed| self.told(failed))
    }

    /// Never ends: removes now and then what a control that died has left there.
    pub async fn keep_clean(&self) {
        let Upstream::Requests(signer) = &self.upstream else { return };
        loop {
            match signer.sweep().await {
                Ok(0) => {}
                Ok(swept) => tracing::info!(swept, "CertificateSigningRequests that nobody waited for were removed"),
                Err(error) => {
                    tracing::warn!(%error, "CertificateSigningRequests that were left behind cannot be looked for");
                }
            }
            tokio::time::sleep(SWEEP).await;
        }
    }

    async fn in_bounds(&self, question: &Question<'_>) -> Result<Vec<String>, Failed> {
        let deadline = Instant::now() + TIME;
        self.paused()?;
        let Ok(Ok(_place)) = timeout_at(deadline, self.places.acquire()).await else {
            self.metrics.bound("signing", 1);
            return Err(Failed::Slow(format!("{PLACES} other requests are waiting for it")));
        };
        self.paused()?;
        self.metrics.ca.signing.inc();
        let asked = match &self.upstream {
            Upstream::CreateCertificate(ca) => timeout_at(deadline, ca.ask(question)).await,
            Upstream::Requests(signer) => Ok(signer.ask(question, deadline).await),
        };
        self.metrics.ca.signing.dec();
        let asked = asked.unwrap_or_else(|_| Err(Failed::Slow(format!("no answer in {} s", TIME.as_secs()))));
        match &asked {
            Err(Failed::Away(why)) => self.rest(why),
            Err(Failed::Slow(_)) => {}
            _ => self.pause.lock().next = FIRST_PAUSE,
        }
        asked
    }

    fn paused(&self) -> Result<(), Failed> {
        let pause = self.pause.lock();
        if Instant::now() < pause.until { Err(Failed::Away(pause.why.clone())) } else { Ok(()) }
    }

    fn rest(&self, why: &str) {
        let mut pause = self.pause.lock();
        let now = Instant::now();
        // Those who failed together count once.
        if now >= pause.until {
            pause.until = now + pause.next;
            pause.next = (pause.next * 2).min(LONGEST_PAUSE);
            why.clone_into(&mut pause.why);
        }
    }

    fn told(&self, failed: Failed) -> Refusal {
        let name = self.name();
        match failed {
            Failed::Away(why) => Refusal::new(Cause::Unavailable, format!("the CA {name} cannot be reached: {why}")),
            Failed::Slow(why) => Refusal::new(Cause::Unavailable, format!("the CA {name} does not answer: {why}")),
            Failed::Refused(why) => Refusal::new(Cause::Ca, format!("the CA {name} refuses: {why}")),
            Failed::Wrong(why) => {
                Refusal::new(Cause::CaAnswer, format!("the answer of the CA {name} is refused: {why}"))
            }
            Failed::TokenNeeded => {
                let message =
                    format!("the CA {name} has to be shown a token for each certificate; renew by one (--token-file)");
                Refusal::new(Cause::TokenNeeded, message)
            }
        }
    }
}
