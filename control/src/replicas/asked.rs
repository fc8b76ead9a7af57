//! Questions to all other replicas, and how these stand to them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use weft_api::wire::replicas::ask::About;

use super::{Answer, Heard, Replicas, State};
use crate::distribute::Hub;
use crate::model::Name;

/// Questions that are open at a time.
const QUESTIONS: usize = 4096;
/// A question that is asked again and again is kept open for so long after the last time.
const KEPT: Duration = Duration::from_secs(30);

/// How other replicas stand to a question at a moment.
#[derive(Debug, Default)]
pub struct Others {
    /// The proxies that are connected to them.
    pub proxies: HashSet<Name>,
    /// Those of them that are waited for.
    pub waiting: BTreeSet<Name>,
    /// Replicas that have not answered, as they call themselves.
    pub silent: Vec<String>,
}

impl Replicas {
    /// Asks all of them, now and when they come back, until the question is dropped.
    pub fn ask(self: &Arc<Self>, hub: &Hub, about: About) -> Question {
        let number = {
            let mut state = self.state.lock();
            state.next += 1;
            state.next
        };
        self.asked.send_modify(|asked| {
            if asked.len() < QUESTIONS {
                Arc::make_mut(asked).insert(number, about);
            } else {
                // Who cannot be asked is waited for.
                hub.metrics.bound("questions", 1);
            }
        });
        Question { number, replicas: Arc::clone(self), heard: self.heard.subscribe() }
    }

    /// How others stand to a question that is asked again and again: it stays open meanwhile. Who looks at its own proxies afterwards misses
    /// none that moves.
    pub fn others(self: &Arc<Self>, hub: &Hub, about: &About) -> Others {
        let now = Instant::now();
        let (known, old) = {
            let mut state = self.state.lock();
            let nobody = state.peers.is_empty() && state.followers.is_empty();
            let (standing, old): (Vec<_>, Vec<_>) = std::mem::take(&mut state.standing)
                .into_iter()
                .partition(|(_, _, used)| !nobody && now.duration_since(*used) < KEPT);
            state.standing = standing;
            (nobody || state.standing.iter().any(|(standing, ..)| standing == about), old)
        };
        drop(old);
        if !known {
            let question = self.ask(hub, about.clone());
            self.state.lock().standing.push((about.clone(), question, now));
        }
        let mut state = self.state.lock();
        let found = state.standing.iter_mut().find(|(standing, ..)| standing == about);
        let Some(number) = found.map(|(_, question, used)| {
            *used = now;
            question.number
        }) else {
            return Others::default();
        };
        Others {
            proxies: state.heard().flat_map(|heard| &heard.proxies).cloned().collect(),
            waiting: state.answers(number).flat_map(|answer| answer.waiting.clone()).collect(),
            silent: state.silent(&self.id, number),
        }
    }
}

impl State {
    fn answers(&self, question: u64) -> impl Iterator<Item = &Answer> {
        self.heard().filter_map(move |heard| heard.answers.get(&question))
    }

    /// Replicas that are there and have not answered.
    pub(super) fn silent(&self, own: &str, question: u64) -> Vec<String> {
        let answered = |heard: &Heard| heard.answers.get(&question).is_some_and(|answer| answer.whole);
        let silent = self.there(own, |_| true).filter(|(_, heard)| !heard.is_some_and(answered));
        silent.map(|(name, _)| name).collect()
    }
}

/// A question that is open.
#[derive(Debug)]
pub struct Question {
    number: u64,
    replicas: Arc<Replicas>,
    heard: watch::Receiver<u64>,
}

impl Question {
    /// Whether all have answered and wait for nobody. What is heard from now on ends [`Question::changed`].
    pub fn is_over(&mut self) -> bool {
        self.heard.mark_unchanged();
        let state = self.replicas.state.lock();
        state.answers(self.number).all(|answer| answer.waiting.is_empty())
            && state.silent(&self.replicas.id, self.number).is_empty()
    }

    /// Whether anything was heard since [`Question::is_over`].
    pub fn has_changed(&self) -> bool {
        self.heard.has_changed().unwrap_or(false)
    }

    /// Waits until anything is heard.
    pub async fn changed(&mut self) {
        // The sender is ours.
        let _ = self.heard.changed().await;
    }

    /// Whom they wait for; replicas that have not answered among them.
    pub fn waiting(&self) -> BTreeSet<String> {
        let state = self.replicas.state.lock();
        let silent = state.silent(&self.replicas.id, self.number);
        let proxies = state.answers(self.number).flat_map(|answer| &answer.waiting).map(Name::to_string);
        proxies.chain(silent.into_iter().map(|name| format!("control {name}"))).collect()
    }

    /// Whom they waited for.
    pub fn done(&self) -> BTreeSet<Name> {
        let state = self.replicas.state.lock();
        state.answers(self.number).flat_map(|answer| &answer.done).cloned().collect()
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.replicas.asked.send_modify(|asked| drop(Arc::make_mut(asked).remove(&self.number)));
        let mut state = self.replicas.state.lock();
        for peer in state.peers.values_mut() {
            if let Some(heard) = &mut peer.heard {
                heard.answers.remove(&self.number);
            }
        }
    }
}
