//! One endpoint, read again and again.
//!
//! Invariants
//! - The server of an `https_spiffe` endpoint is verified by the roots that were learnt last, so that it may rotate them; by those of its
//!   `bundle` file when that has changed, so that people can mend what has come apart.
//! - A document with a lower sequence than the last one is refused: somebody shows an old one, from before roots were withdrawn.
//! - What is refused changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::watch;
use weft_certs::bundle::{Bundle, BundleError};
use weft_certs::files::{Form, checksum};
use weft_certs::tls::{TlsError, endpoint_client_config};

use super::file::{Partner, Seed};
use super::{Known, Pace};
use crate::issue::https::HttpsError;
use crate::metrics::Metrics;

/// What is kept of an endpoint: a line that says of which, then its document.
const FORM: Form = Form { name: "weft-federated-1", max_bytes: 1 << 20 };
/// Where, in the state directory.
const DIR: &str = "federation";
/// Failures after which the wait does not grow any more.
const MAX_DOUBLINGS: u32 = 8;

/// Why a reading was of no use.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Https(#[from] HttpsError),
    #[error("what the endpoint gave is not used: {0}")]
    Bundle(#[from] BundleError),
    #[error(
        "what the endpoint gave is older than what it gave before (sequence {found} after {had}); if it was made anew, {mend}"
    )]
    Sequence { had: u64, found: u64, mend: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Reads one endpoint.
#[derive(Debug)]
pub struct Reader {
    partner: Partner,
    held: Option<Bundle>,
    // Of which endpoint and of which roots to begin with that was learnt.
    origin: String,
    saved: Option<PathBuf>,
    pace: Pace,
    out: Arc<watch::Sender<Known>>,
    metrics: Arc<Metrics>,
    failures: u32,
    // What the log has said already.
    said: Option<String>,
}

impl Reader {
    /// Begins with what was learnt before the last restart, or with the roots of the `bundle` file. Blocks.
    pub fn open(
        partner: Partner,
        state_dir: Option<&Path>,
        pace: Pace,
        out: Arc<watch::Sender<Known>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let saved = state_dir.map(|dir| dir.join(DIR).join(format!("bundle-{}", partner.domain)));
        metrics.federation_read.with_label_values(&[&partner.domain]).set(0);
        let mut reader = Self {
            origin: origin(&partner),
            held: partner.spiffe.as_ref().map(|spiffe| spiffe.seed.bundle.clone()),
            partner,
            saved,
            pace,
            out,
            metrics,
            failures: 0,
            said: None,
        };
        if let Some(found) = reader.load() {
            reader.held = Some(found);
        }
        reader.tell();
        reader
    }

    /// Reads it once; gives when to do so again.
    pub async fn read(&mut self, now: SystemTime) -> Duration {
        let outcome = self.look().await;
        self.metrics.federation_reads.with_label_values(&[if outcome.is_ok() { "ok" } else { "failed" }]).inc();
        let hint = self.held.as_ref().and_then(|held| held.refresh_hint).unwrap_or(self.pace.usual);
        let usual = hint.clamp(self.pace.least, self.pace.most);
        match outcome {
            Ok(()) => {
                let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                self.metrics.federation_read.with_label_values(&[&self.partner.domain]).set(seconds);
                (self.failures, self.said) = (0, None);
                usual
            }
            Err(error) => {
                let error = error.to_string();
                if self.said.as_ref() != Some(&error) {
                    let domain = &*self.partner.domain;
                    tracing::warn!(domain, "the federated roots could not be read: {error}; those of before go on");
                    self.said = Some(error);
                }
                let wait = self.pace.least.saturating_mul(1 << self.failures.min(MAX_DOUBLINGS));
                self.failures = self.failures.saturating_add(1);
                wait.min(usual)
            }
        }
    }

    async fn look(&mut self) -> Result<(), ReadError> {
        self.prepare().await?;
        let text = self.partner.server.get(None).await?;
        let found = Bundle::from_json(&text)?;
        let had = self.held.as_ref().and_then(|held| held.sequence);
        if let (Some(had), Some(found)) = (had, found.sequence)
            && found < had
        {
            return Err(ReadError::Sequence { had, found, mend: self.mend() });
        }
        if self.held.as_ref() != Some(&found) {
            self.save(&text).await;
            let (roots, sequence) = (found.roots.len(), found.sequence);
            tracing::info!(domain = self.partner.domain, roots, sequence, "the federated roots were read");
            self.held = Some(found);
            self.tell();
        }
        Ok(())
    }

    /// The server is verified by what is known now.
    async fn prepare(&mut self) -> Result<(), ReadError> {
        let Some(spiffe) = &self.partner.spiffe else { return Ok(()) };
        let (id, path, had) = (spiffe.id.clone(), spiffe.bundle.clone(), spiffe.seed.checksum.clone());
        let seed = tokio::task::spawn_blocking(move || Seed::read(&path)).await;
        // A file that is gone or broken has served its turn: what it said is known.
        if let Ok(Ok(seed)) = seed
            && seed.checksum != had
        {
            self.begin_anew(seed);
        }
        if let Some(held) = &self.held {
            self.partner.server.verify_by(endpoint_client_config(&id, &held.roots)?);
        }
        Ok(())
    }

    fn begin_anew(&mut self, seed: Seed) {
        tracing::info!(domain = self.partner.domain, "the file of roots to begin with has changed: beginning with it");
        self.held = Some(seed.bundle.clone());
        if let Some(spiffe) = &mut self.partner.spiffe {
            spiffe.seed = seed;
        }
        self.origin = origin(&self.partner);
        self.tell();
    }

    fn tell(&self) {
        let Some(held) = &self.held else { return };
        let roots: Vec<Bytes> = held.roots.iter().map(|root| Bytes::copy_from_slice(root)).collect();
        self.out.send_modify(|known| {
            known.insert(self.partner.domain.clone(), roots);
        });
    }

    fn mend(&self) -> String {
        match (&self.partner.spiffe, &self.saved) {
            (Some(spiffe), _) => format!("put its roots into {}", spiffe.bundle.display()),
            (None, Some(saved)) => format!("remove {} and restart control", saved.display()),
            (None, None) => "restart control".to_owned(),
        }
    }

    fn load(&self) -> Option<Bundle> {
        let found = FORM.read(self.saved.as_deref()?);
        let body = match found {
            Ok(found) => found?.body,
            Err(error) => {
                self.metrics.saved_errors.inc();
                tracing::warn!(domain = self.partner.domain, "{error}; it is ignored and will be written anew");
                return None;
            }
        };
        let document = body.strip_prefix(self.origin.as_bytes())?.strip_prefix(b"\n")?;
        Bundle::from_json(document).ok()
    }

    async fn save(&self, document: &[u8]) {
        let Some(path) = self.saved.clone() else { return };
        let body = [self.origin.as_bytes(), b"\n", document].concat();
        let written = tokio::task::spawn_blocking(move || FORM.write(&path, &body)).await;
        if let Err(error) = written.map_err(std::io::Error::other).flatten() {
            self.metrics.saved_errors.inc();
            let domain = &*self.partner.domain;
            tracing::warn!(domain, "the federated roots cannot be saved and would not survive a restart: {error}");
        }
    }
}

fn origin(partner: &Partner) -> String {
    let spiffe = partner.spiffe.as_ref().map(|spiffe| format!("{} {}", spiffe.id, spiffe.seed.checksum));
    checksum(format!("{} {}", partner.url, spiffe.unwrap_or_default()).as_bytes())
}
