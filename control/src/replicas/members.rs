//! Who is there beside us: replicas that are heard, and those that live for certain and are not.

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

impl Replicas {
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
