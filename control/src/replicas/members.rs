//! Who is there beside us: replicas that are heard, and those that live for certain, as they follow us or by their Leases, and are not.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tonic::transport::Channel;

use super::{Follower, Heard, Peer, Replicas, State};

/// One of them.
#[derive(Clone, Debug)]
pub struct Member {
    /// The number of its run; what it calls itself, of one that is not heard.
    pub id: String,
    /// What it calls itself, or its address.
    pub name: String,
    /// The way to it; none to one that is not heard, or has not told yet what it has.
    pub way: Option<Channel>,
}

/// A replica as people see it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// What it calls itself; its address until it was heard.
    pub name: String,
    /// Where it is followed.
    pub address: SocketAddr,
    /// It tells what it knows.
    pub heard: bool,
    /// It is about to end.
    pub stopping: bool,
    /// Proxies that are connected to it.
    pub proxies: usize,
}

/// Somebody follows us, until this is dropped.
#[derive(Debug)]
pub(super) struct Following {
    number: u64,
    replicas: Arc<Replicas>,
}

impl Replicas {
    /// How many proxies each of those has to which others may be sent.
    pub fn serving(&self) -> Vec<usize> {
        let state = self.state.lock();
        let serving = state.heard().filter(|heard| heard.whole && heard.serves && !heard.stopping);
        serving.map(|heard| heard.proxies.len()).collect()
    }

    /// Those that are known, for people.
    pub fn seen(&self) -> Vec<Seen> {
        let state = self.state.lock();
        let unsaid = |at: &SocketAddr| state.live.contains(at) && !state.is_us(*at);
        let seen = state.peers.iter().filter(|(at, peer)| peer.heard.is_some() || unsaid(at) || !peer.tried);
        seen.map(|(address, peer)| Seen {
            name: peer.heard.as_ref().map_or_else(|| address.to_string(), |heard| heard.name.clone()),
            address: *address,
            heard: peer.heard.as_ref().is_some_and(|heard| heard.whole),
            stopping: peer.heard.as_ref().is_some_and(|heard| heard.stopping),
            proxies: peer.heard.as_ref().map_or(0, |heard| heard.proxies.len()),
        })
        .collect()
    }

    pub(super) fn followed(self: &Arc<Self>, id: String, name: String, back: SocketAddr) -> Following {
        let number = {
            let mut state = self.state.lock();
            state.next += 1;
            let number = state.next;
            state.followers.insert(number, Follower { id, name, back });
            number
        };
        self.bump();
        Following { number, replicas: Arc::clone(self) }
    }

    /// Where those that follow us, and those that live, are to be followed.
    pub(super) fn back(&self) -> BTreeSet<SocketAddr> {
        let state = self.state.lock();
        let unheard = |one: &&Follower| one.id != self.id && !state.peers.values().any(|peer| peer.is(&one.id));
        let unheard = state.followers.values().filter(unheard).map(|one| one.back);
        let heard = state.peers.iter().filter(|(_, peer)| {
            peer.heard.as_ref().is_some_and(|heard| state.followers.values().any(|one| one.id == heard.id))
        });
        unheard.chain(heard.map(|(at, _)| *at)).chain(state.live.iter().copied()).collect()
    }

    /// All of them but those that have ended: before that they have sent their proxies to others.
    pub fn members(&self) -> Vec<Member> {
        let state = self.state.lock();
        let member = |(name, heard): (String, Option<&Heard>)| Member {
            id: heard.map_or_else(|| name.clone(), |heard| heard.id.clone()),
            way: heard.filter(|heard| heard.whole).and_then(|heard| heard.channel.clone()),
            name,
        };
        state.there(&self.id, |peer| !peer.left).map(member).collect()
    }

    /// Who is there, in short: each with whether it can be asked. Another one as soon as any of it is otherwise.
    pub fn roll(&self) -> Vec<(String, bool)> {
        self.members().into_iter().map(|member| (member.id, member.way.is_some())).collect()
    }
}

impl State {
    /// Each by what it calls itself, with what was heard of it. `own`: our own number; `counts`: whether one counts that we follow.
    pub(super) fn there<'s>(
        &'s self,
        own: &'s str,
        counts: impl Fn(&Peer) -> bool,
    ) -> impl Iterator<Item = (String, Option<&'s Heard>)> {
        let followed = self.peers.iter().filter(move |(_, peer)| counts(peer));
        let followed = followed.filter_map(|(at, peer)| match &peer.heard {
            Some(heard) => Some((heard.name.clone(), Some(heard))),
            None => (self.live.contains(at) && !self.is_us(*at)).then(|| (at.to_string(), None)),
        });
        let unheard = move |one: &&Follower| one.id != own && !self.peers.values().any(|peer| peer.is(&one.id));
        followed.chain(self.followers.values().filter(unheard).map(|one| (one.name.clone(), None)))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.replicas.state.lock().followers.remove(&self.number);
        self.replicas.bump();
    }
}
