//! The public keys of an issuer, from a file or a URL, held as they were last good.
//!
//! Invariants
//! - A token that names a key which is not held makes the keys be read again, at most every 10 s: an issuer may turn its keys, and nobody can
//!   make us flood it.
//! - Keys older than 5 minutes are read again by whoever needs them next, so that withdrawn ones go. What cannot be read leaves the
//!   last good ones in force (contract C6) and counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;
use tokio::time::Instant;
use weft_certs::jwt::Keys;

use super::https::{HttpsError, Server};
use super::secret::SecretFile;
use super::{Cause, Refusal};
use crate::metrics::Metrics;

/// Between two readings, whatever tokens say.
const AGAIN: Duration = Duration::from_secs(10);
/// Keys are taken for current so long.
const FRESH: Duration = Duration::from_mins(5);
/// Longer files are not read.
const MAX_FILE: u64 = 512 * 1024;

/// Where keys are.
#[derive(Debug)]
pub enum Place {
    /// In a file.
    File(PathBuf),
    /// At a URL, and the token to show there.
    Url(Box<Server>, Option<SecretFile>),
}

/// The keys of one issuer.
#[derive(Debug)]
pub struct Jwks {
    issuer: String,
    place: Place,
    held: ArcSwapOption<Held>,
    /// When they were last read or tried to be.
    tried: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Held {
    keys: Arc<Keys>,
    read: Instant,
}

impl Jwks {
    /// Nothing is read yet.
    pub fn new(issuer: &str, place: Place, metrics: Arc<Metrics>) -> Self {
        Self { issuer: issuer.to_owned(), place, held: ArcSwapOption::empty(), tried: Mutex::new(None), metrics }
    }

    /// Reads them for the first time. A file must be good; a server may come up later than control.
    pub async fn begin(&self, now: Instant) -> Result<(), String> {
        match (self.refresh(now).await, &self.place) {
            (Err(error), Place::File(path)) => {
                Err(format!("the keys of {} in {}: {error}", self.issuer, path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Begins with what another one holds, which has been reading them from the same place.
    pub fn inherit(&self, before: &Self) {
        self.held.store(before.held.load_full());
    }

    /// The keys, among them the one of this name if the issuer has it.
    pub async fn with(&self, key_id: &str, now: Instant) -> Result<Arc<Keys>, Refusal> {
        let held = self.held.load_full();
        if let Some(held) = held.filter(|held| held.keys.has(key_id)) {
            let old = now.saturating_duration_since(held.read) >= FRESH;
            // Who finds another one reading uses what there is.
            if old && self.tried.try_lock().is_ok() {
                self.again(now).await;
                return Ok(self.held.load_full().map_or_else(|| Arc::clone(&held.keys), |read| Arc::clone(&read.keys)));
            }
            return Ok(Arc::clone(&held.keys));
        }
        self.again(now).await;
        match self.held.load_full() {
            Some(held) => Ok(Arc::clone(&held.keys)),
            None => {
                let message = format!("the keys of {} could not be read yet; try again", self.issuer);
                Err(Refusal::new(Cause::Unavailable, message))
            }
        }
    }

    async fn again(&self, now: Instant) {
        let _ = self.refresh(now).await;
    }

    async fn refresh(&self, now: Instant) -> Result<(), String> {
        let mut tried = self.tried.lock().await;
        // Somebody else may have read them while we waited.
        if tried.is_some_and(|tried| now.saturating_duration_since(tried) < AGAIN) {
            return Ok(());
        }
        *tried = Some(now);
        let read = self.read().await;
        self.metrics.key_reads.with_label_values(&[if read.is_ok() { "ok" } else { "failed" }]).inc();
        match read {
            Ok(keys) => {
                self.held.store(Some(Arc::new(Held { keys: Arc::new(keys), read: now })));
                Ok(())
            }
            Err(error) => {
                tracing::warn!(
                    issuer = self.issuer,
                    error,
                    "the keys could not be read; the last good ones stay in force"
                );
                Err(error)
            }
        }
    }

    async fn read(&self) -> Result<Keys, String> {
        let text = match &self.place {
            Place::File(path) => read_file(path.clone()).await?,
            Place::Url(server, token) => {
                let token = match token {
                    Some(file) => Some(file.read().await?),
                    None => None,
                };
                let got = server.get(token.as_deref()).await;
                got.map_err(|error: HttpsError| error.to_string())?.to_vec()
            }
        };
        Keys::from_json(&text).map_err(|error| error.to_string())
    }
}

async fn read_file(path: PathBuf) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let read = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
        Ok::<_, std::io::Error>(text)
    });
    read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
