//! Changes on their way from the sources to the hub.
//!
//! Invariants
//! - All changes that wait at a moment are published as one batch, in their order; what was sent together is never torn apart.
//! - Nothing is held back so that a batch may grow: a change that comes alone goes at once, and those that come while it is compiled are the next
//!   batch. So batches are as large as the load makes them.
//! - What is told beside changes ([`Feed::send_with`]) is passed on after they were published.
//! - At most [`WAITING`] sendings wait; who has one more waits for a place, which is counted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::Hub;
use crate::compile::Compiled;
use crate::model::Change;
use crate::status::Subjects;

/// Sendings that may wait.
const WAITING: usize = 1024;
/// A batch of more changes is not made larger: each change in it waits for all others.
const LARGE: usize = 4096;
/// Of endpoints that are left out this many are named in the log; the metric counts all.
const UNRESOLVED_SAID: usize = 20;

/// How often is looked whether who said that he leaves is still there.
const LOOK: Duration = Duration::from_secs(1);

/// What was sent together.
type Batch = (Vec<Change>, Subjects);

/// Where sources send their changes.
#[derive(Clone, Debug)]
pub struct Feed {
    changes: Sender<Batch>,
    hub: Arc<Hub>,
}

impl Feed {
    /// One that leads to a hub, and the task that goes on publishing for as long as there are senders.
    pub fn start(hub: Arc<Hub>) -> (Self, AbortOnDropHandle<()>) {
        let (changes, inbox) = mpsc::channel(WAITING);
        let task = tokio::spawn(publish(inbox, Arc::clone(&hub)));
        (Self { changes, hub }, AbortOnDropHandle::new(task))
    }

    /// Sends changes that belong together. The first sending of all is everything there is: with it the hub begins to answer.
    pub async fn send(&self, changes: Vec<Change>) {
        self.send_with(changes, Subjects::new()).await;
    }

    /// The same, with objects whose status is to be looked at when the changes are in force.
    pub async fn send_with(&self, changes: Vec<Change>, subjects: Subjects) {
        let Err(TrySendError::Full(batch)) = self.changes.try_send((changes, subjects)) else { return };
        self.hub.metrics.bound("changes", 1);
        // The other end is gone only when control stops.
        let _ = self.changes.send(batch).await;
    }
}

async fn publish(mut inbox: Receiver<Batch>, hub: Arc<Hub>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let batch = tokio::select! {
            batch = inbox.recv() => batch,
            _ = looks.tick() => {
                let looking = Arc::clone(&hub);
                if let Err(error) = tokio::task::spawn_blocking(move || looking.look_at_leaves()).await {
                    tracing::error!(%error, "who leaves could not be looked at");
                }
                continue;
            }
        };
        let Some((mut changes, mut subjects)) = batch else { return };
        while changes.len() < LARGE
            && let Ok((more, further)) = inbox.try_recv()
        {
            changes.extend(more);
            subjects.extend(further);
        }
        let taken = changes.len();
        let publishing = Arc::clone(&hub);
        // Compiling takes its time: not on the runtime's threads.
        match tokio::task::spawn_blocking(move || publish_batch(&publishing, changes)).await {
            Ok(changed) => {
                tracing::debug!(taken, changed, "the model changed");
                hub.status.saw(subjects);
            }
            Err(error) => tracing::error!(%error, "changes could not be compiled; what was in force stays"),
        }
    }
}

fn publish_batch(hub: &Hub, changes: Vec<Change>) -> usize {
    let before = hub.compiled(Compiled::unresolved_count);
    let changed = hub.publish(changes);
    let said: Vec<String> = hub.compiled(|compiled| {
        let more = compiled.unresolved_count() > before;
        let said = if more { UNRESOLVED_SAID } else { 0 };
        compiled.unresolved().take(said).collect()
    });
    for sentence in said {
        tracing::warn!("{sentence}");
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribute::session::Limits;
    use crate::metrics::Metrics;
    use crate::model::{Model, Name, Service};
    use crate::testing::{service, shop};

    fn hub() -> Arc<Hub> {
        Arc::new(Hub::new(Limits::default(), Arc::new(Metrics::new().unwrap())))
    }

    fn count(hub: &Hub, metric: &str) -> u64 {
        let text = String::from_utf8(hub.metrics.text().unwrap()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or(0)
    }

    fn one(number: usize) -> (Name, Service) {
        (Name::new("many", format!("s-{number}")), service(1))
    }

    async fn until(holds: impl Fn() -> bool) {
        let held = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), held).await.unwrap();
    }

    async fn services(hub: &Hub, wanted: usize) {
        until(|| hub.compiled(|compiled| compiled.model().services.len()) >= wanted).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_said_that_he_leaves_and_stays_is_called_again() {
        let hub = hub();
        let (feed, _task) = Feed::start(Arc::clone(&hub));
        feed.send(Model::default().changes_to(&shop())).await;
        services(&hub, 1).await;
        let leaver = hub.compiled(|compiled| compiled.model().workloads.keys().next().cloned()).unwrap();
        let (marking, begun) = (Arc::clone(&hub), tokio::time::Instant::now());
        let marked = tokio::task::spawn_blocking(move || marking.mark_leaving(&leaver, None, Duration::from_secs(20)));
        marked.await.unwrap();
        let leaving = || count(&hub, "weft_control_draining_workloads");
        assert_eq!(leaving(), 1);
        tokio::time::sleep(Duration::from_secs(39)).await;
        assert_eq!(leaving(), 1);
        until(|| leaving() == 0).await;
        assert!(begun.elapsed() < Duration::from_secs(42));
    }

    #[tokio::test]
    async fn what_waits_is_one_batch_and_what_comes_alone_waits_for_nothing() {
        let hub = hub();
        let (feed, _task) = Feed::start(Arc::clone(&hub));
        feed.send(Model::default().changes_to(&shop())).await;
        for number in 0..50 {
            let (name, service) = one(number);
            feed.send(vec![Change::Service(name, Some(service))]).await;
        }
        services(&hub, 52).await;
        // The model is there a moment before what is made of it, and before anybody is answered.
        hub.loaded().wait_for(|loaded| *loaded).await.unwrap();
        let batches = "weft_control_compile_duration_seconds_count";
        assert_eq!(count(&hub, batches), 1);
        let (name, service) = one(50);
        feed.send(vec![Change::Service(name, Some(service))]).await;
        services(&hub, 53).await;
        until(|| count(&hub, batches) > 1).await;
        assert_eq!(count(&hub, batches), 2);
        assert_eq!(count(&hub, "weft_control_bound_hits_total{bound=\"changes\"}"), 0);
    }

    #[tokio::test]
    async fn who_sends_more_than_may_wait_waits_and_nothing_is_lost() {
        let hub = hub();
        let (feed, _task) = Feed::start(Arc::clone(&hub));
        for number in 0..WAITING + 100 {
            let (name, service) = one(number);
            feed.send(vec![Change::Service(name, Some(service))]).await;
        }
        services(&hub, WAITING + 100).await;
        assert!(count(&hub, "weft_control_bound_hits_total{bound=\"changes\"}") > 0);
    }
}
