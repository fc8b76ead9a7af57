//! What other replicas tell, taken over.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;

use tonic::transport::Channel;
use weft_api::wire::replicas as wire;
use weft_api::wire::replicas::ask::About;

use super::{Heard, Replicas};
use crate::auth;
use crate::distribute::Hub;
use crate::model::Name;

impl Replicas {
    /// These live, by their Leases.
    pub(super) fn live(&self, live: BTreeSet<SocketAddr>) {
        let before = std::mem::replace(&mut self.state.lock().live, live.clone());
        if before != live {
            self.bump();
        }
    }

    /// This one is to be followed.
    pub(super) fn expect(&self, at: SocketAddr) {
        self.state.lock().peers.entry(at).or_default();
        self.bump();
    }

    /// This one is not to be followed any more.
    pub(super) fn forget(&self, hub: &Hub, at: SocketAddr) {
        self.lost(hub, at);
        self.state.lock().peers.remove(&at);
        self.bump();
    }

    /// What this one said counts no more.
    pub(super) fn lost(&self, hub: &Hub, at: SocketAddr) {
        let gone: Vec<Name> = {
            let state = self.state.lock();
            let heard = state.peers.get(&at).and_then(|peer| peer.heard.as_ref());
            heard.map(|heard| heard.proxies.iter().cloned().collect()).unwrap_or_default()
        };
        // They are away before they are there no more.
        hub.have_gone(&gone);
        if let Some(peer) = self.state.lock().peers.get_mut(&at) {
            let heard = peer.heard.take();
            (peer.tried, peer.left) = (true, peer.left || heard.is_some_and(|heard| heard.stopping));
        }
        self.bump();
        hub.look_again_at(gone);
        hub.metrics.replicas.seen(&self.seen());
    }

    /// What this one says. False: it is ourselves, or one that is heard at another address.
    pub(super) fn told(&self, hub: &Hub, at: SocketAddr, told: wire::Told) -> bool {
        let known = {
            let mut state = self.state.lock();
            let double = state.peers.iter().any(|(other, peer)| *other != at && peer.is(&told.id));
            let Some(peer) = state.peers.get_mut(&at) else { return false };
            if !told.id.is_empty() {
                peer.tried = true;
                peer.same = told.id == self.id || double;
                if peer.same {
                    return false;
                }
                let wire::Told { id, name, .. } = &told;
                peer.left = false;
                peer.heard = Some(Heard { id: id.clone(), name: name.clone(), ..Heard::default() });
            }
            let Some(heard) = &peer.heard else { return false };
            heard.proxies.clone()
        };
        let proxies = told.proxies.iter().filter_map(|proxy| Some((auth::workload(&proxy.workload).ok()?, proxy)));
        let proxies: Vec<(Name, &wire::Proxy)> = proxies.collect();
        let left = proxies.iter().filter(|(_, proxy)| !proxy.connected).map(|(name, _)| name.clone());
        let gone: Vec<Name> = if told.anew { known.iter().cloned().collect() } else { left.collect() };
        hub.have_gone(&gone);
        if let Some(heard) = self.state.lock().peers.get_mut(&at).and_then(|peer| peer.heard.as_mut()) {
            // Under the lock: what is answered after its question has ended is not kept.
            heard.take(&told, &proxies, &self.asked.borrow());
        }
        self.bump();
        let names: HashSet<Name> = gone.into_iter().chain(proxies.into_iter().map(|(name, _)| name)).collect();
        hub.look_again_at(names);
        if told.all_stirred || !told.stirred.is_empty() {
            hub.status.changed_elsewhere(told.stirred, told.all_stirred);
        }
        hub.metrics.replicas.seen(&self.seen());
        true
    }

    /// This is the way to one that is heard.
    pub(super) fn reached(&self, at: SocketAddr, channel: &Channel) {
        let mut state = self.state.lock();
        let heard = state.peers.get_mut(&at).and_then(|peer| peer.heard.as_mut());
        let Some(heard) = heard.filter(|heard| heard.channel.is_none()) else { return };
        heard.channel = Some(channel.clone());
        drop(state);
        self.bump();
    }
}

impl Heard {
    fn take(&mut self, told: &wire::Told, proxies: &[(Name, &wire::Proxy)], asked: &BTreeMap<u64, About>) {
        if told.anew {
            (self.proxies, self.answers) = Default::default();
        }
        for (name, proxy) in proxies {
            if proxy.connected {
                self.proxies.insert(name.clone());
            } else {
                self.proxies.remove(name);
            }
            for answer in self.answers.values_mut() {
                answer.waiting.remove(name);
            }
            for question in proxy.waiting.iter().filter(|number| asked.contains_key(number)) {
                self.answers.entry(*question).or_default().waiting.insert(name.clone());
            }
            for question in proxy.done.iter().filter(|number| asked.contains_key(number)) {
                self.answers.entry(*question).or_default().done.insert(name.clone());
            }
        }
        for question in told.answered.iter().filter(|number| asked.contains_key(number)) {
            self.answers.entry(*question).or_default().whole = true;
        }
        if let Some(zone) = &told.zone {
            self.zone.clone_from(zone);
        }
        self.whole |= told.whole;
        self.serves |= told.serves;
        self.stopping |= told.stopping;
    }
}
