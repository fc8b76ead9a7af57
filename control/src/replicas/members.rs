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

/// A replica that serves.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Where it is followed, which is where it serves proxies.
    pub at: SocketAddr,
    /// The zone that it runs in; empty if it has said none.
    pub zone: String,
    /// How many proxies are connected to it.
    pub proxies: usize,
}

/// A replica as people see it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// What it calls itself; its address until it was heard.
    pub name: String,
    /// Where it is followed.
    pub address: SocketAddr,
    /// The zone that it runs in; empty if it has said none.
    #[serde(default)]
    pub zone: String,
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
    /// Those to which proxies may be sent.
    pub fn serving(&self) -> Vec<Serving> {
        let state = self.state.lock();
        let heard = state.peers.iter().filter_map(|(at, peer)| Some((*at, peer.heard.as_ref()?)));
        let serving = heard.filter(|(_, heard)| heard.whole && heard.serves && !heard.stopping);
        serving.map(|(at, heard)| Serving { at, zone: heard.zone.clone(), proxies: heard.proxies.len() }).collect()
    }

    /// Those that are known, for people.
    pub fn seen(&self) -> Vec<Seen> {
        let state = self.state.lock();
        let unsaid = |at: &SocketAddr| state.live.contains(at) && !state.is_us(*at);
        let seen = state.peers.iter().filter(|(at, peer)| peer.heard.is_some() || unsaid(at) || !peer.tried);
        seen.map(|(address, peer)| Seen {
            name: peer.heard.as_ref().map_or_else(|| address.to_string(), |heard| heard.name.clone()),
            address: *address,
            zone: peer.heard.as_ref().map_or_else(String::new, |heard| heard.zone.clone()),
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

#[cfg(test)]
mod tests {
    use weft_api::wire::replicas as wire;

    use super::*;
    use crate::distribute::Hub;
    use crate::distribute::session::Limits;
    use crate::metrics::Metrics;

    #[test]
    fn who_said_that_it_ends_and_has_ended_is_not_asked_and_who_is_lost_is_named() {
        let hub = Hub::new(Limits::default(), Arc::new(Metrics::new().unwrap()));
        let [ends, dies]: [SocketAddr; 2] = ["10.0.0.1:1", "10.0.0.2:1"].map(|at| at.parse().unwrap());
        let peer = |name: &str, stopping| {
            let heard = Heard { id: name.to_owned(), name: name.to_owned(), whole: true, stopping, ..Heard::default() };
            Peer { heard: Some(heard), ..Peer::default() }
        };
        {
            let mut state = hub.replicas.state.lock();
            state.peers = [(ends, peer("ends", true)), (dies, peer("dies", false))].into();
            state.live = [ends, dies].into();
        }
        let names = |of: &Hub| of.replicas.members().into_iter().map(|member| member.name).collect::<Vec<_>>();
        assert_eq!(names(&hub), ["ends", "dies"]);
        hub.replicas.lost(&hub, ends);
        hub.replicas.lost(&hub, dies);
        // Their Leases have not run out.
        assert_eq!(names(&hub), ["10.0.0.2:1"]);
        assert_eq!(hub.replicas.roll(), [("10.0.0.2:1".to_owned(), false)]);
        // Decisions wait for both: it may have kept a proxy.
        assert_eq!(hub.replicas.state.lock().silent("", 1), ["10.0.0.1:1", "10.0.0.2:1"]);
        // Another one at the same address is as new.
        let told = wire::Told { id: "anew".to_owned(), name: "anew".to_owned(), ..wire::Told::default() };
        assert!(hub.replicas.told(&hub, ends, told));
        assert_eq!(names(&hub), ["anew", "10.0.0.2:1"]);
    }
}
