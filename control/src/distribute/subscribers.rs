//! Who listens to what, so that a change touches only those who hold what changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::session::{Listen, Touched};
use crate::compile::{Changes, Topic};

/// Streams by topic. Invariant: a topic without streams is not here.
#[derive(Debug, Default)]
pub struct Subscribers {
    by_topic: HashMap<Topic, HashSet<u64>>,
}

impl Subscribers {
    /// Takes over what a session began or ceased to listen to.
    pub fn apply(&mut self, stream: u64, listens: Vec<Listen>) {
        for listen in listens {
            match listen {
                Listen::To(topic) => {
                    self.by_topic.entry(topic).or_default().insert(stream);
                }
                Listen::No(topic) => self.remove(stream, &topic),
            }
        }
    }

    /// Takes a stream out of a topic.
    pub fn remove(&mut self, stream: u64, topic: &Topic) {
        if let Some(streams) = self.by_topic.get_mut(topic) {
            streams.remove(&stream);
            if streams.is_empty() {
                self.by_topic.remove(topic);
            }
        }
    }

    /// What each stream has to look at again. Costs the size of the change times those who listen to it.
    pub fn touched(&self, changes: &Changes) -> HashMap<u64, Touched> {
        let mut touched: HashMap<u64, Touched> = HashMap::new();
        let topics = changes.names.iter().cloned().map(Topic::Name);
        let topics = topics.chain(changes.ips.iter().copied().map(Topic::Ip));
        let topics = topics.chain(changes.services.iter().cloned().map(Topic::Service));
        for topic in topics {
            for stream in self.by_topic.get(&topic).into_iter().flatten() {
                touched.entry(*stream).or_default().topics.push(topic.clone());
            }
        }
        for (head, members) in &changes.members {
            let Some(streams) = self.by_topic.get(&Topic::Name(Arc::clone(head))) else { continue };
            let members: Arc<BTreeSet<Arc<str>>> = Arc::new(members.clone());
            for stream in streams {
                touched.entry(*stream).or_default().members.push((Arc::clone(head), Arc::clone(&members)));
            }
        }
        touched
    }

    /// Who listens to any of these.
    pub fn listeners<'t>(&self, topics: impl Iterator<Item = &'t Topic>) -> BTreeSet<u64> {
        topics.filter_map(|topic| self.by_topic.get(topic)).flatten().copied().collect()
    }

    /// How many topics have a listener.
    pub fn topics(&self) -> usize {
        self.by_topic.len()
    }
}
