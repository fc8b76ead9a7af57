//! The roots of other trust domains, read from their SPIFFE bundle endpoints: one task a trust domain ([`reader`]), as the file of
//! `--federation` lists them ([`file`]). Ours are published by [`crate::server::bundle`].
//!
//! Invariants
//! - What was learnt last goes on while an endpoint is away or says what cannot be used, and with a state directory across restarts.
//! - An endpoint speaks for its own trust domain, and none for ours.
//! - The list is read again every 2 s. An entry that is the same goes on as it was; a trust domain that is no longer on it is no longer
//!   believed; one whose entry has changed is believed by what was learnt, until the new endpoint has spoken.
//! - Nobody waits for an endpoint: what is learnt is taken over at the next look at the CA ([`crate::rotation`]).

pub mod file;
pub mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::listed::Listed;
use crate::metrics::Metrics;
use file::{Partner, Written};
use reader::Reader;

/// Roots (DER) by trust domain.
pub type Known = BTreeMap<String, Vec<Bytes>>;

/// How often the list is read.
const LOOK: Duration = Duration::from_secs(2);

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

/// Whose endpoints are read, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of `--federation`.
    pub list: PathBuf,
    /// Our own trust domain.
    pub own: String,
    /// Those that files speak for (`--federate`).
    pub filed: BTreeSet<String>,
    /// Where what is learnt is kept.
    pub state_dir: Option<PathBuf>,
    /// How often endpoints are read.
    pub pace: Pace,
}

/// What is learnt, for as long as this is held.
#[derive(Debug)]
pub struct Federation {
    /// What is known now of the trust domains that are listed, which may be nothing of some.
    pub known: watch::Receiver<Known>,
    _following: AbortOnDropHandle<()>,
}

impl Federation {
    /// Begins to read the endpoints that the file lists, and to follow the file.
    ///
    /// # Errors
    /// The file, or one that it names, cannot be used. An endpoint that does not answer is no error: it may come up later.
    pub async fn open(settings: Settings, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        let (out, known) = watch::channel(Known::new());
        let mut follower = Follower {
            list: Listed::new("--federation", &settings.list),
            settings: Arc::new(settings),
            out: Arc::new(out),
            metrics: Arc::clone(metrics),
            readers: BTreeMap::new(),
        };
        follower.look().await.map_err(anyhow::Error::msg)?;
        Ok(Self { known, _following: AbortOnDropHandle::new(tokio::spawn(follower.run())) })
    }
}

/// Keeps one task for each entry of the list.
#[derive(Debug)]
struct Follower {
    settings: Arc<Settings>,
    list: Listed,
    out: Arc<watch::Sender<Known>>,
    metrics: Arc<Metrics>,
    readers: BTreeMap<String, Reading>,
}

/// An entry, and the task that reads its endpoint.
#[derive(Debug)]
struct Reading {
    written: Written,
    task: AbortOnDropHandle<()>,
}

impl Reading {
    /// It says nothing any more when this returns.
    async fn end(self) {
        self.task.abort();
        // That it was cancelled is what was wanted.
        let _ = self.task.await;
    }
}

impl Follower {
    /// Never ends.
    async fn run(mut self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            match self.look().await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(domains = self.readers.len(), "the list of federated trust domains has changed");
                }
                Err(why) => self.list.refuse(why),
            }
            self.metrics.federation_broken.set(i64::from(self.list.is_broken()));
        }
    }

    /// Reads the list, and takes into force what is new; says whether there was something.
    async fn look(&mut self) -> Result<bool, String> {
        let (list, settings) = (self.list.clone(), Arc::clone(&self.settings));
        let read = move || list.read(|text, dir| file::read(text, dir, &settings.own, &settings.filed));
        let read = tokio::task::spawn_blocking(read).await;
        let Some((text, partners)) = read.map_err(|error| error.to_string())?? else {
            self.list.took(None);
            return Ok(false);
        };
        let mut before = std::mem::take(&mut self.readers);
        for partner in partners {
            let domain = partner.domain.clone();
            let reading = match before.remove(&domain) {
                Some(same) if same.written == partner.written => same,
                other => {
                    if let Some(other) = other {
                        other.end().await;
                    }
                    self.begin(partner).await?
                }
            };
            self.readers.insert(domain, reading);
        }
        for (domain, gone) in before {
            gone.end().await;
            self.out.send_modify(|known| drop(known.remove(&domain)));
            // Whether it was ever read does not matter any more.
            let _ = self.metrics.federation_read.remove_label_values(&[&domain]);
        }
        self.list.took(Some(text));
        Ok(true)
    }

    async fn begin(&self, partner: Partner) -> Result<Reading, String> {
        let written = partner.written.clone();
        let (settings, out, metrics) = (Arc::clone(&self.settings), Arc::clone(&self.out), Arc::clone(&self.metrics));
        let open = move || Reader::open(partner, settings.state_dir.as_deref(), settings.pace, out, metrics);
        let reader = tokio::task::spawn_blocking(open).await.map_err(|error| error.to_string())?;
        Ok(Reading { written, task: AbortOnDropHandle::new(tokio::spawn(follow(reader))) })
    }
}

/// Never ends.
async fn follow(mut reader: Reader) {
    loop {
        let again = reader.read(SystemTime::now()).await;
        tokio::time::sleep(again).await;
    }
}
