//! The source `kubernetes`: watches of an API server.
//!
//! - `kind`: which kinds are watched, and how one of their objects is read: by the code that reads files.
//! - `rights`: what it means that a kind may not be read.
//! - `watch`: one kind, listed and watched, whatever happens to the connection.
//! - `store`: what of it is in force.
//! - `kept`: the last good versions, for the next start.
//!
//! Invariants
//! - Nothing is told before every kind was listed once: what was never read is not "nothing" (contract C6).
//! - A lost connection, an expired watch, a list that was broken off: none of them removes anything.
//! - What comes while somebody is busy with what came before waits in a bounded queue, and is told together: there is no timer.

mod kept;
mod kind;
mod rights;
mod store;
mod watch;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use kube::Client;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::kept::Texts;
use self::kind::WATCHED;
pub use self::rights::forbidden;
use self::store::Store;
pub use self::store::Told;
use self::watch::{Event, Follower};
use super::State;
use super::saved::{self, Keep, Saver};
use crate::metrics::Metrics;

/// Events under way between the watches and whoever takes them; then the watches wait, and the API server with them.
const QUEUE: usize = 1024;
/// So many are taken at once.
const BATCH: usize = 4096;

/// The kinds that are watched.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    WATCHED.iter().map(|watched| watched.kind)
}

/// The watches of an API server; they end when this is dropped.
#[derive(Debug)]
pub struct Kubernetes {
    events: mpsc::Receiver<(usize, Event)>,
    taken: Vec<(usize, Event)>,
    store: Store,
    waiting: Told,
    told: Option<State>,
    keeping: Option<Keeping>,
    metrics: Arc<Metrics>,
    _watches: Vec<AbortOnDropHandle<()>>,
}

/// What is kept for the next start, and who writes it.
#[derive(Debug)]
struct Keeping {
    texts: Texts,
    saver: Saver,
}

impl Kubernetes {
    /// Begins to watch. With `keep`, last good versions survive a restart: they are read now.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn watch(client: &Client, metrics: &Arc<Metrics>, keep: Option<Keep>) -> io::Result<Self> {
        let keeping = keep.map(Keeping::start).transpose()?;
        let (out, events) = mpsc::channel(QUEUE);
        let follow = |(number, watched)| {
            let follower = Follower::new(client.clone(), number, watched, out.clone(), Arc::clone(metrics));
            let follower = follower.keeping(keeping.is_some());
            AbortOnDropHandle::new(tokio::spawn(follower.run()))
        };
        let watches = WATCHED.iter().enumerate().map(follow).collect();
        let mut store = Store::new(Instant::now());
        if let Some(keeping) = &keeping {
            store = store.keeping(&keeping.texts);
        }
        let (taken, waiting, metrics) = (Vec::new(), Told::default(), Arc::clone(metrics));
        Ok(Self { events, taken, store, waiting, told: None, keeping, metrics, _watches: watches })
    }

    /// What has changed since the last time: at first all there is, once that is known. Empty if only [`Self::state`] is another. Nothing is
    /// lost if this is not waited for to its end.
    pub async fn next(&mut self) -> Told {
        loop {
            if self.events.recv_many(&mut self.taken, BATCH).await == 0 {
                // No watch is left, which cannot be while this lives.
                std::future::pending::<()>().await;
            }
            let now = Instant::now();
            for (number, event) in self.taken.drain(..) {
                self.store.take(number, event, now, &mut self.waiting);
            }
            if let Some(keeping) = &self.keeping {
                keeping.save(&self.metrics);
            }
            let state = Some(self.store.state());
            let news = std::mem::replace(&mut self.told, state) != state;
            if self.complete() && !self.waiting.is_empty() || news {
                return if self.complete() { std::mem::take(&mut self.waiting) } else { Told::default() };
            }
        }
    }

    /// Whether all of it was read once.
    pub fn complete(&self) -> bool {
        self.store.complete()
    }

    /// What was not, and why.
    pub fn missing(&self) -> Vec<String> {
        self.store.missing().collect()
    }

    /// How much of the present is known.
    pub fn state(&self) -> State {
        self.store.state()
    }

    /// How many objects are broken; the log says how.
    pub fn problems(&self) -> usize {
        self.store.broken()
    }
}

impl Keeping {
    fn start(keep: Keep) -> io::Result<Self> {
        let before = saved::recall(&keep, kept::FILE);
        let saver = Saver::start(keep, kept::FILE, before.as_ref())?;
        Ok(Self { texts: Texts::from(before.unwrap_or_default()), saver })
    }

    /// Has what is new written, where nobody waits for it.
    fn save(&self, metrics: &Metrics) {
        let news = self.texts.news();
        metrics.bound("kept_objects", news.left_out);
        if news.changed {
            let texts = self.texts.clone();
            self.saver.save(move || texts.snapshot());
        }
    }
}

#[cfg(test)]
mod tests;
