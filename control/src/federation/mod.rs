//! The roots of other trust domains, read from their SPIFFE bundle endpoints: one task a trust domain ([`reader`]), as the file of
//! `--federation` lists them ([`file`]). Ours are published by [`crate::server::bundle`].
//!
//! Invariants
//! - What was learnt last goes on while an endpoint is away or says what cannot be used, and with a state directory across restarts.
//! - An endpoint speaks for its own trust domain, and none for ours.
//! - Nobody waits for an endpoint: what is learnt is taken over at the next look at the CA ([`crate::rotation`]).

pub mod file;
pub mod reader;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::metrics::Metrics;
use reader::Reader;

/// Roots (DER) by trust domain.
pub type Known = BTreeMap<String, Vec<Bytes>>;

/// How often endpoints are read.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// At most so often, whatever the endpoint says; also after a first failure.
    pub least: Duration,
    /// If the endpoint says nothing.
    pub usual: Duration,
    /// At least so often.
    pub most: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { least: Duration::from_secs(10), usual: Duration::from_mins(5), most: Duration::from_hours(1) }
    }
}

/// What is learnt, for as long as this is held.
#[derive(Debug)]
pub struct Federation {
    /// The trust domains that are listed.
    pub domains: Vec<String>,
    /// What is known of them now, which may be nothing of some.
    pub known: watch::Receiver<Known>,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Federation {
    /// Begins to read the endpoints that the file lists.
    ///
    /// # Errors
    /// The file, or one that it names, cannot be used. An endpoint that does not answer is no error: it may come up later.
    pub fn open(
        path: &Path,
        own: &str,
        state_dir: Option<&Path>,
        pace: Pace,
        metrics: &Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the list of federated trust domains in {} cannot be read", path.display()))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let partners =
            file::read(&text, dir, own).map_err(|fault| anyhow::Error::msg(format!("{}:{fault}", path.display())))?;
        let domains = partners.iter().map(|partner| partner.domain.clone()).collect();
        let (out, known) = watch::channel(Known::new());
        let out = Arc::new(out);
        let tasks = partners.into_iter().map(|partner| {
            let reader = Reader::open(partner, state_dir, pace, Arc::clone(&out), Arc::clone(metrics));
            AbortOnDropHandle::new(tokio::spawn(follow(reader)))
        });
        Ok(Self { domains, tasks: tasks.collect(), known })
    }

    /// The tasks alone: whoever holds them keeps the endpoints being read.
    pub fn into_tasks(self) -> Vec<AbortOnDropHandle<()>> {
        self.tasks
    }
}

/// Never ends.
async fn follow(mut reader: Reader) {
    loop {
        let again = reader.read(SystemTime::now()).await;
        tokio::time::sleep(again).await;
    }
}
