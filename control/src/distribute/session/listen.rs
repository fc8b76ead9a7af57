//! What a stream listens to, so that it is told of what changes there and of nothing else.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use super::{Names, Session};
use crate::compile::{Changes, Topic, topics_of};

/// A topic that the stream begins or ceases to listen to. Beginning twice is no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Begins.
    To(Topic),
    /// Ceases.
    No(Topic),
}

impl Listen {
    /// The resource that it is about, if it is about one.
    pub fn name(&self) -> Option<&Arc<str>> {
        let (Self::To(topic) | Self::No(topic)) = self;
        topic.name()
    }
}

/// The names that listen to something beside themselves, by what that is: a topic is known by its hash, since each proxy listens to two for
/// every service that it calls, and they are large. The hash is keyed anew for every stream, so nobody can seek two that are the same.
#[derive(Debug, Default)]
pub(super) struct Listening {
    by_topic: BTreeSet<(u64, Arc<str>)>,
    keyed: RandomState,
    news: Vec<Listen>,
}

impl Listening {
    fn listen(&mut self, name: &Arc<str>) {
        for topic in topics_of(name) {
            let first = match self.hash(&topic) {
                None => true,
                Some(hash) => {
                    let first = self.under(hash).next().is_none();
                    self.by_topic.insert((hash, Arc::clone(name)));
                    first
                }
            };
            if first {
                self.news.push(Listen::To(topic));
            }
        }
    }

    fn unlisten(&mut self, name: &Arc<str>) {
        for topic in topics_of(name) {
            let last = match self.hash(&topic) {
                None => true,
                Some(hash) => self.by_topic.remove(&(hash, Arc::clone(name))) && self.under(hash).next().is_none(),
            };
            if last {
                self.news.push(Listen::No(topic));
            }
        }
    }

    /// `None`: the topic is the name itself, and needs not be noted.
    fn hash(&self, topic: &Topic) -> Option<u64> {
        (!matches!(topic, Topic::Name(_))).then(|| self.keyed.hash_one(topic))
    }

    fn under(&self, hash: u64) -> impl Iterator<Item = &Arc<str>> {
        let from = (hash, Arc::default());
        self.by_topic.range(from..).take_while(move |(found, _)| *found == hash).map(|(_, name)| name)
    }

    /// The names that listen to a topic which is no name.
    pub(super) fn to(&self, topic: &Topic) -> impl Iterator<Item = &Arc<str>> {
        self.hash(topic).into_iter().flat_map(|hash| self.under(hash))
    }
}

impl Session {
    pub(super) fn listen(&mut self, name: &Arc<str>) {
        self.listening.listen(name);
    }

    pub(super) fn unlisten(&mut self, name: &Arc<str>) {
        self.listening.unlisten(name);
    }

    /// Topics that the stream begins or ceases to listen to since the last call. To be passed on before the lock on the compiled
    /// resources is given back, or a change is missed.
    pub fn take_listens(&mut self) -> Vec<Listen> {
        std::mem::take(&mut self.listening.news)
    }

    /// All topics that it listens to, and maybe some that it does not.
    pub fn topics(&self) -> Vec<Topic> {
        let missing = self.roots.iter().filter(|root| !self.nodes.contains_key(*root));
        self.nodes.keys().chain(missing).flat_map(topics_of).collect()
    }
}

/// The part of some [`Changes`] that one stream listens to.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Topics; never of endpoints.
    pub topics: Vec<Topic>,
    /// Changed endpoints by set.
    pub members: Vec<(Arc<str>, Arc<Names>)>,
}

impl Touched {
    /// All of `changes`, for a stream that listens to everything.
    pub fn all(changes: &Changes) -> Self {
        let names = changes.names.iter().cloned().map(Topic::Name);
        let ips = changes.ips.iter().copied().map(Topic::Ip);
        let services = changes.services.iter().cloned().map(Topic::Service);
        let members = changes.members.iter().map(|(head, names)| (Arc::clone(head), Arc::new(names.clone())));
        Self { topics: names.chain(ips).chain(services).collect(), members: members.collect() }
    }
}
