//! The renewal task: first certificate, then a new one at 2/3 of each one's life, and at once where it is not believed any more.
//!
//! ```text
//! start --> saved one, valid and ours? --yes--> in use --\
//!              | no                                       v
//!              +----------------> ask <--- wait until 2/3 of its life (+-10 %)
//!                                  | ok: checked, in use, saved ---^
//!                                  | failed: count, back off (jittered, 0.2 s .. 10 s), ask again
//! ```
//!
//! The same machine keeps the proxy's own certificate and the [application's](super::workload_api): the first is proved by itself or by a
//! token, the second by the first.
//!
//! Each attempt has a new key, but for a token: a join token is good for the one key that it was first shown with, and if the answer was
//! lost control has used it up all the same. So that key is kept for as long as the token is tried, until there is a certificate.
//!
//! Invariant: nothing here ends the use of a certificate; only time does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{sleep, timeout};
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::{Roots, TlsError};
use weft_engine::identity::Identity;

use super::authority::{AskError, Authority, Credential, Token};
use super::check::check;
use super::trust::{Trust, Vouched};
use super::{Counters, Current, Failure, IdentityStore};

/// One attempt, from connection to answer.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before the second attempt; doubles from there.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait between attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Shortest time between two certificates, if the CA hands out ones that are nearly over.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Sleeps are cut to this, so that a step of the clock is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// Share by which a renewal may come sooner or later.
const JITTER: f64 = 0.1;

/// Whose certificate is wanted, and by what.
#[derive(Clone)]
pub struct Settings {
    /// Who we are.
    pub identity: Identity,
    /// What peers' certificates, and our own, must lead to.
    pub trust: Arc<Trust>,
    /// Proves who we are while we have no valid certificate.
    pub token: Token,
    /// Where key and chain are kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({}, token {:?}, state in {:?})", self.identity, self.token, self.state_dir)
    }
}

/// Keeps `store` in a valid certificate for as long as it is polled; it never returns. Who we are is proved by the certificate in `proof`,
/// which may be the same store. `now` is the wall clock.
pub async fn run(
    store: &IdentityStore,
    proof: &IdentityStore,
    settings: &Settings,
    authority: &impl Authority,
    now: impl Fn() -> SystemTime + Sync,
) {
    let mut in_use = take_saved(store, settings, now()).await;
    loop {
        if let Some(current) = &in_use {
            tokio::select! {
                () = wait_until(current.svid.renew_at(jitter(JITTER)), &now) => {}
                () = store.disbelieved() => {
                    tracing::info!(serial = &*current.serial, "the certificate in use is not believed any more; it is renewed now");
                }
            }
        }
        let renewed = ask_until_answered(store, proof, settings, authority, &now).await;
        install(store, settings, &renewed);
        Counters::add(&store.counters.issued);
        tracing::info!(
            identity = %settings.identity, serial = &*renewed.serial, until = ?renewed.not_after,
            "certificate taken into use"
        );
        save(store, settings, &renewed).await;
        in_use = Some(renewed);
        sleep(MIN_INTERVAL).await;
    }
}

/// A certificate as it is used, if it is of our namespace and service account, has not expired and passes its check.
pub(super) fn checked(
    svid: Svid,
    identity: &Identity,
    now: SystemTime,
    make: impl FnOnce(Arc<Svid>) -> Result<Current, TlsError>,
) -> Result<Arc<Current>, AskError> {
    let fail = |failure, message| Err(AskError { failure, message });
    // Our trust domain may have another name than the one that we were started with: whether it has this one, the check says.
    if !svid.identity().has_path_of(identity) {
        return fail(Failure::BadAnswer, format!("the certificate is for {}, not {identity}", svid.identity()));
    }
    if svid.not_after() <= now {
        return fail(
            Failure::BadAnswer,
            "the certificate has expired; compare the clocks of its issuer and this machine".into(),
        );
    }
    let current = match make(Arc::new(svid)) {
        Ok(current) => current,
        Err(e) => return fail(Failure::Internal, e.to_string()),
    };
    match check(&current) {
        Ok(()) => Ok(Arc::new(current)),
        Err(e) => fail(Failure::SelfCheck, e.to_string()),
    }
}

fn ours(svid: Svid, settings: &Settings, now: SystemTime) -> Result<Arc<Current>, AskError> {
    checked(svid, &settings.identity, now, |svid| Current::believing(svid, &settings.trust.now()))
}

/// Takes a certificate into use, with what is believed by then: control may have said more since it was checked.
fn install(store: &IdentityStore, settings: &Settings, current: &Arc<Current>) {
    store.install(Arc::clone(current));
    if let Err(error) = store.believe(&settings.trust.now()) {
        tracing::error!(%error, "roots cannot be used; those before go on");
    }
}

/// The certificate that an earlier process saved, if it is still good.
async fn take_saved(store: &IdentityStore, settings: &Settings, now: SystemTime) -> Option<Arc<Current>> {
    let dir = settings.state_dir.clone()?;
    let loaded = tokio::task::spawn_blocking(move || Svid::load(&dir)).await;
    let svid = match loaded {
        Ok(Ok(Some(svid))) => svid,
        Ok(Ok(None)) => return None,
        Ok(Err(e)) => {
            tracing::warn!(error = %e, "the saved certificate is not used");
            return None;
        }
        Err(e) => {
            tracing::warn!(error = %e, "the saved certificate could not be read");
            return None;
        }
    };
    match ours(svid, settings, now) {
        Ok(current) => {
            install(store, settings, &current);
            tracing::info!(identity = %settings.identity, serial = &*current.serial, "saved certificate taken into use");
            Some(current)
        }
        Err(e) => {
            tracing::info!(error = %e, "the saved certificate is not used");
            None
        }
    }
}

async fn ask_until_answered(
    store: &IdentityStore,
    proof: &IdentityStore,
    settings: &Settings,
    authority: &impl Authority,
    now: &(impl Fn() -> SystemTime + Sync),
) -> Arc<Current> {
    let mut backoff = Backoff::default();
    let mut token_first = false;
    let mut shown = None;
    loop {
        let attempt = ask(proof, settings, authority, token_first, &mut shown, now);
        let asked = timeout(ATTEMPT_TIMEOUT, attempt).await.unwrap_or_else(|_| {
            let message = format!("control did not answer within {} s", ATTEMPT_TIMEOUT.as_secs());
            Err(AskError { failure: Failure::Unreachable, message })
        });
        match asked {
            Ok(current) => return current,
            Err(e) => backoff.failed(store, &e).await,
        }
        token_first = !token_first;
    }
}

/// A token that was shown, and the key that it was shown with.
struct Shown {
    token: Arc<str>,
    key: KeyPair,
}

/// The wait after a failed attempt.
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_BACKOFF)
    }
}

impl Backoff {
    /// Counts and tells the failure, then waits.
    pub(super) async fn failed(&mut self, store: &IdentityStore, error: &AskError) {
        store.counters.count_failure(error.failure);
        tracing::warn!(reason = error.failure.code(), %error, retry_in = ?self.0, "no certificate yet");
        // Between half of it and the whole, so that proxies that lost control together do not come back together.
        sleep(self.0.mul_f64(0.75 + jitter(0.25))).await;
        self.0 = (self.0 * 2).min(MAX_BACKOFF);
    }
}

/// One attempt: by the certificate in use while it is valid, then, if that is refused, by the token; the other way round where control has
/// said that it wants a token each time, because it issues by a CA elsewhere.
///
/// Every second attempt begins with the other one: a certificate that control refuses within the handshake (its clock is ahead of ours, its CA
/// was made anew) looks like a broken connection from here.
async fn ask(
    proof: &IdentityStore,
    settings: &Settings,
    authority: &impl Authority,
    token_first: bool,
    shown: &mut Option<Shown>,
    now: &(impl Fn() -> SystemTime + Sync),
) -> Result<Arc<Current>, AskError> {
    let certificate = proof.current_at(now()).ok();
    let (token, mut error) = match settings.token.wanted(authority.wants_token()).read().await {
        Ok(token) => {
            let message = "there is neither a valid certificate nor a token; give --token-file".into();
            (token, AskError { failure: Failure::NoCredential, message })
        }
        Err(e) => (None, e),
    };
    let mut credentials = [certificate.map(Credential::Certificate), token.map(Credential::Token)];
    if token_first != authority.wants_token() {
        credentials.reverse();
    }
    for credential in credentials.into_iter().flatten() {
        match ask_by(settings, authority, credential, shown, now).await {
            Err(e) if e.failure == Failure::Refused => error = e,
            answer => return answer,
        }
    }
    Err(error)
}

async fn ask_by(
    settings: &Settings,
    authority: &impl Authority,
    credential: Credential,
    shown: &mut Option<Shown>,
    now: &(impl Fn() -> SystemTime + Sync),
) -> Result<Arc<Current>, AskError> {
    let internal = |e: weft_certs::svid::SvidError| AskError { failure: Failure::Internal, message: e.to_string() };
    let key = match (&credential, &*shown) {
        (Credential::Token(token), Some(before)) if before.token == *token => before.key.clone(),
        _ => KeyPair::generate().map_err(internal)?,
    };
    if let Credential::Token(token) = &credential {
        // Before it is asked: whoever gives up waiting for the answer drops this.
        *shown = Some(Shown { token: Arc::clone(token), key: key.clone() });
    }
    let csr = key.csr(&settings.identity).map_err(internal)?;
    let chain = authority.create(csr, credential).await?;
    let svid = || {
        let made = Svid::new(key.clone(), &chain);
        made.map_err(|e| AskError { failure: Failure::BadAnswer, message: e.to_string() })
    };
    match (ours(svid()?, settings, now()), Roots::of_chain(&chain)) {
        // Control has proved itself: under the root that it sends, and the name, the certificate may be good after all.
        (Err(e), Some(root)) if e.failure == Failure::SelfCheck => {
            let vouched = Vouched { root, name: Arc::clone(&svid()?.identity().trust_domain) };
            let believed = settings.trust.vouching(&vouched);
            let current = checked(svid()?, &settings.identity, now(), |svid| Current::believing(svid, &believed))?;
            settings.trust.vouch(vouched);
            Ok(current)
        }
        (answer, _) => answer,
    }
}

/// A certificate that cannot be saved is used all the same: it is lost only with the process.
async fn save(store: &IdentityStore, settings: &Settings, current: &Current) {
    let Some(dir) = settings.state_dir.clone() else { return };
    let svid = Arc::clone(&current.svid);
    let error = match tokio::task::spawn_blocking(move || svid.save(&dir)).await {
        Ok(Ok(())) => return,
        Ok(Err(e)) => e.to_string(),
        Err(e) => e.to_string(),
    };
    Counters::add(&store.counters.not_saved);
    tracing::warn!(error, "the certificate could not be saved; a restart will need control");
}

/// Sleeps in slices: the wall clock may step while we sleep.
async fn wait_until(time: SystemTime, now: &(impl Fn() -> SystemTime + Sync)) {
    while let Ok(left) = time.duration_since(now()) {
        if left.is_zero() {
            return;
        }
        sleep(left.min(MAX_SLEEP)).await;
    }
}

/// A number between -`share` and `share`.
fn jitter(share: f64) -> f64 {
    (fastrand::f64() * 2.0 - 1.0) * share
}
