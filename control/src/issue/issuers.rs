//! The issuers of `--identity-providers` that are in force. The file is read again every 2 s.
//!
//! Invariants
//! - A file that cannot be read or used changes nothing ([`crate::listed`]).
//! - An issuer whose keys are where they were keeps those that are held: an edit beside it costs it nothing, even while it is out of reach.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::oidc::Oidc;
use super::providers;
use crate::listed::Listed;
use crate::metrics::Metrics;

/// How often the file is read.
const LOOK: Duration = Duration::from_secs(2);

/// The file, and what is needed to make something of it.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Of `--identity-providers`.
    pub path: PathBuf,
    /// An issuer that somebody else proves already.
    pub taken: Option<String>,
    /// Counts readings of keys.
    pub metrics: Arc<Metrics>,
}

/// The issuers that are in force.
#[derive(Debug, Default)]
pub struct Issuers(ArcSwap<Vec<Arc<Oidc>>>);

impl Issuers {
    /// The one of this name.
    pub fn get(&self, issuer: &str) -> Option<Arc<Oidc>> {
        self.0.load().iter().find(|one| one.issuer == issuer).map(Arc::clone)
    }

    /// Reads the file for the first time, and gives what follows it for as long as it is polled.
    ///
    /// # Errors
    /// The file, or a file of keys that it names, cannot be used; one sentence.
    pub(super) async fn open(self: &Arc<Self>, source: Source) -> Result<impl Future<Output = ()> + use<>, String> {
        let mut list = Listed::new("--identity-providers", &source.path);
        self.look(&source, &mut list).await?;
        let issuers = Arc::clone(self);
        Ok(async move {
            let mut looks = interval(LOOK);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                match issuers.look(&source, &mut list).await {
                    Ok(false) => {}
                    Ok(true) => {
                        tracing::info!(issuers = issuers.0.load().len(), "the identity providers have changed");
                    }
                    Err(why) => list.refuse(why),
                }
            }
        })
    }

    /// Reads the file, and takes into force what is new; says whether there was something.
    async fn look(&self, source: &Source, list: &mut Listed) -> Result<bool, String> {
        let (reading, source) = (list.clone(), source.clone());
        let read =
            move || reading.read(|text, dir| providers::read(text, dir, source.taken.as_deref(), &source.metrics));
        let read = tokio::task::spawn_blocking(read).await;
        let Some((text, found)) = read.map_err(|error| error.to_string())?? else {
            list.took(None);
            return Ok(false);
        };
        let before = self.0.load_full();
        for one in &found {
            match before.iter().find(|before| before.issuer == one.issuer && before.place == one.place) {
                Some(before) => one.keys.inherit(&before.keys),
                None => one.keys.begin(Instant::now()).await.map_err(|why| format!("{}: {why}", one.name))?,
            }
        }
        self.0.store(Arc::new(found.into_iter().map(Arc::new).collect()));
        list.took(Some(text));
        Ok(true)
    }
}
