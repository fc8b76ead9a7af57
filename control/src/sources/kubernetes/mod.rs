//! The source `kubernetes`: watches of an API server.
//!
//! - `kind`: which kinds are watched, and how one of their objects is read: by the code that reads files.
//! - `watch`: one kind, listed and watched, whatever happens to the connection.
//! - `store`: what of it is in force.
//!
//! Invariants
//! - Nothing is told before every kind was listed once: what was never read is not "nothing" (contract C6).
//! - A lost connection, an expired watch, a list that was broken off: none of them removes anything.
//! - What comes while somebody is busy with what came before waits in a bounded queue, and is told together: there is no timer.

mod kind;
mod store;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use kube::Client;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::kind::WATCHED;
use self::store::Store;
pub use self::store::Told;
use self::watch::{Event, Follower};
use super::State;
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
    _watches: Vec<AbortOnDropHandle<()>>,
}

impl Kubernetes {
    /// Begins to watch.
    pub fn watch(client: &Client, metrics: &Arc<Metrics>) -> Self {
        let (out, events) = mpsc::channel(QUEUE);
        let follow = |(number, watched)| {
            let follower = Follower::new(client.clone(), number, watched, out.clone(), Arc::clone(metrics));
            AbortOnDropHandle::new(tokio::spawn(follower.run()))
        };
        let watches = WATCHED.iter().enumerate().map(follow).collect();
        let store = Store::new(Instant::now());
        Self { events, taken: Vec::new(), store, waiting: Told::default(), told: None, _watches: watches }
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
