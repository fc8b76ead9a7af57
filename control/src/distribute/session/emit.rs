//! What is sent: the next response, made from the queue and from what is true now.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use weft_api::names::{Digest, ResourceType, followed};
use weft_api::wire::{discovery, v1};

use super::{Entry, Held, Members, Pending, Phase, Seen, Sent, Session, Work};
use crate::compile::{Collection, Compiled, Resource};

/// Bytes of an entry beside its name and its bytes: version, type URL, tags and lengths.
const OVERHEAD: usize = 96;
/// Entries for which an empty queue keeps room.
const IDLE_ROOM: usize = 4;

/// A response in the making.
struct Draft {
    group: &'static str,
    nonce: u64,
    room: usize,
    resources: Vec<discovery::Resource>,
    removed: Vec<String>,
    sent: Vec<(Arc<str>, Option<Arc<Resource>>)>,
    answer: bool,
    brief: bool,
}

impl Draft {
    fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Whether `bytes` more fit. One that is larger than a whole response goes alone.
    fn fits(&self, bytes: usize) -> bool {
        bytes <= self.room || self.is_empty()
    }

    fn fits_resource(&self, name: &str, resource: &Resource) -> bool {
        self.fits(name.len() + resource.bytes.len() + OVERHEAD)
    }

    fn push(&mut self, name: &Arc<str>, resource: &Arc<Resource>) {
        self.room = self.room.saturating_sub(name.len() + resource.bytes.len() + OVERHEAD);
        self.sent.push((Arc::clone(name), Some(Arc::clone(resource))));
        // What is of the response's own type does not repeat it, to whom reads it so.
        let type_url = if self.brief && resource.type_url == self.group { "" } else { resource.type_url };
        self.resources.push(discovery::Resource {
            version: resource.version.to_string(),
            resource: Some(prost_types::Any { type_url: type_url.to_owned(), value: resource.bytes.to_vec() }),
            name: name.to_string(),
        });
    }

    fn remove(&mut self, name: &Arc<str>) {
        self.room = self.room.saturating_sub(name.len() + 4);
        self.sent.push((Arc::clone(name), None));
        self.removed.push(name.to_string());
    }
}

impl Session {
    /// The next response, if there is something to say and the window is open.
    pub fn next(&mut self, compiled: &Compiled, now: Duration) -> Option<discovery::DeltaDiscoveryResponse> {
        while self.has_work() {
            if let Some(response) = self.make(compiled, now) {
                return Some(response);
            }
        }
        None
    }

    fn make(&mut self, compiled: &Compiled, now: Duration) -> Option<discovery::DeltaDiscoveryResponse> {
        let mut draft = Draft {
            group: self.queue.front()?.group,
            nonce: self.nonce + 1,
            room: self.limits.message,
            resources: Vec::new(),
            removed: Vec::new(),
            sent: Vec::new(),
            answer: false,
            brief: self.brief,
        };
        // Endpoints last: what points to what should be in one response, however many endpoints hang on it.
        let mut endpoints = VecDeque::new();
        while let Some(entry) = self.queue.pop_front() {
            if entry.group == draft.group && matches!(entry.work, Work::Members(_)) {
                endpoints.push_back(entry);
            } else if entry.group != draft.group || !self.work(&entry.work, compiled, &mut draft) {
                self.queue.push_front(entry);
                break;
            }
        }
        let structure = self.queue.front().is_none_or(|next| next.group != draft.group);
        while structure && let Some(entry) = endpoints.pop_front() {
            if !self.work(&entry.work, compiled, &mut draft) {
                endpoints.push_front(entry);
                break;
            }
        }
        let rest = self.queue.iter().position(|entry| entry.group != draft.group).unwrap_or(self.queue.len());
        for entry in endpoints.into_iter().rev() {
            self.queue.insert(rest, entry);
        }
        if self.sweep {
            self.sweep();
        }
        let changed = if self.queue.is_empty() {
            if !self.more_claims {
                self.claims = HashMap::new();
            }
            // A stream that is up to date holds no room for all that it was told at first.
            self.queue.shrink_to(IDLE_ROOM);
            self.queued.shrink_to(IDLE_ROOM);
            self.changed.take()
        } else {
            self.changed
        };
        if draft.is_empty() && !draft.answer {
            return None;
        }
        self.nonce = draft.nonce;
        let changed = changed.filter(|at| *at <= now);
        self.outstanding.insert(draft.nonce, Sent { resources: draft.sent, at: now, changed });
        Some(discovery::DeltaDiscoveryResponse {
            system_version_info: env!("CARGO_PKG_VERSION").to_owned(),
            resources: draft.resources,
            type_url: draft.group.to_owned(),
            nonce: draft.nonce.to_string(),
            removed_resources: draft.removed,
        })
    }

    /// Does one entry of the queue; false if it did not fit and has to be taken up again.
    fn work(&mut self, work: &Work, compiled: &Compiled, draft: &mut Draft) -> bool {
        match work {
            Work::Answer => {
                draft.answer = true;
                true
            }
            Work::Resource(name) => {
                let done = self.emit(name, compiled, draft);
                if done {
                    self.queued.remove(name);
                }
                done
            }
            Work::Members(head) => {
                let Some(mut members) = self.collections.remove(head) else {
                    self.queued.remove(head);
                    return true;
                };
                let done = self.emit_members(head, &mut members, compiled, draft);
                self.collections.insert(Arc::clone(head), members);
                if done {
                    self.queued.remove(head);
                }
                done
            }
        }
    }

    fn emit(&mut self, name: &Arc<str>, compiled: &Compiled, draft: &mut Draft) -> bool {
        let Some(current) = compiled.get(name) else {
            // Gone: whatever pointed to it changes too. A workload that is gone keeps its last rules while its proxy is connected,
            // a pod may be served after its object has been deleted; one that is not there yet is listened for.
            if self.roots.contains(name) {
                self.listen(name);
            }
            return true;
        };
        if current.type_url == v1::Address::TYPE_URL && !self.roots.contains(name) {
            return true;
        }
        let is_head = current.type_url == v1::EndpointHead::TYPE_URL;
        let before = self.nodes.get(name).map(Held::seen);
        if let Some(before) = before {
            if is_head || before.sent_version() == Some(&current.version) {
                return true;
            }
        } else if let Some(claimed) = self.claims.get(&**name)
            && **claimed == *current.version
        {
            self.claims.remove(&**name);
            let confirmed = Held::Settled(Arc::clone(&current));
            if is_head {
                self.collections
                    .insert(Arc::clone(name), Members::whole(compiled.collection(name).map(|set| &set.members)));
            }
            self.hold(name, &current, confirmed, draft.group);
            return true;
        }
        if !draft.fits_resource(name, &current) {
            return false;
        }
        draft.push(name, &current);
        let held = Held::sending(Some(Arc::clone(&current)), draft.nonce, before);
        if is_head {
            // One that holds an empty set needs not be asked what is in it.
            let claimed = self.claims.remove(&**name).filter(|digest| *digest != Digest::default().to_version());
            let phase = if claimed.is_some() { Phase::Awaiting } else { Phase::Loading };
            let members = Members::new(phase, BTreeMap::new());
            self.collections.insert(Arc::clone(name), members);
            if phase == Phase::Loading {
                self.queued.insert(Arc::clone(name));
                self.queue.push_front(Entry { group: draft.group, work: Work::Members(Arc::clone(name)) });
            }
        }
        self.hold(name, &current, held, draft.group);
        true
    }

    /// Remembers what the proxy has now, and puts in front of the queue what it points to and what the proxy lacks.
    fn hold(&mut self, name: &Arc<str>, resource: &Arc<Resource>, held: Held, group: &'static str) {
        for next in resource.points_to.iter().rev().filter_map(|next| followed(next, &self.workload.namespace)) {
            if !self.nodes.contains_key(&next) {
                self.queue.push_front(Entry { group, work: Work::Resource(next) });
            }
        }
        match self.nodes.insert(Arc::clone(name), held) {
            Some(before) => {
                let mut old = before.seen().sent.into_iter().flat_map(|sent| &sent.points_to);
                self.sweep |= !old.all(|old| resource.points_to.contains(old));
            }
            None => self.listen(name),
        }
    }

    /// Sends the members that differ; a set that was loading ends with the head of what was sent.
    fn emit_members(&mut self, head: &Arc<str>, members: &mut Members, compiled: &Compiled, draft: &mut Draft) -> bool {
        if members.phase() == Phase::Awaiting {
            return true;
        }
        let truth = compiled.collection(head);
        if !send_differences(members, truth, draft) {
            return false;
        }
        if members.phase() == Phase::Loading {
            let Some(current) = compiled.get(head) else { return true };
            let Some(node) = self.nodes.get_mut(head) else { return true };
            if node.seen().sent_version() != Some(&current.version) {
                if !draft.fits_resource(head, &current) {
                    return false;
                }
                draft.push(head, &current);
                *node = Held::sending(Some(current), draft.nonce, Some(node.seen()));
            }
            members.enter(Phase::Steady);
        }
        true
    }
}

/// False if not all fitted; what is left stays pending.
fn send_differences(members: &mut Members, truth: Option<&Collection>, draft: &mut Draft) -> bool {
    match members.take_pending() {
        Pending::Some(mut pending) => {
            while let Some(name) = pending.pop_first() {
                if !send_difference(members, &name, truth, draft) {
                    pending.insert(name);
                    members.put_back(Pending::Some(pending));
                    return false;
                }
            }
        }
        Pending::All => {
            let there = |name: &Arc<str>| truth.is_some_and(|set| set.members.contains_key(name));
            let gone: Vec<Arc<str>> =
                members.iter().map(|(name, _)| name).filter(|name| !there(name)).cloned().collect();
            let all = truth.into_iter().flat_map(|set| set.members.keys());
            for name in gone.iter().chain(all) {
                if !send_difference(members, name, truth, draft) {
                    members.put_back(Pending::All);
                    return false;
                }
            }
        }
    }
    true
}

fn send_difference(members: &mut Members, name: &Arc<str>, truth: Option<&Collection>, draft: &mut Draft) -> bool {
    let current = truth.and_then(|set| set.members.get(name));
    let sent = members.get(name).and_then(Seen::sent_version);
    if sent == current.map(|current| &current.version) {
        return true;
    }
    let fits = match current {
        Some(current) => draft.fits_resource(name, current),
        None => draft.fits(name.len() + 4),
    };
    if !fits {
        return false;
    }
    match current {
        Some(current) => draft.push(name, current),
        None => draft.remove(name),
    }
    members.send(name, current.cloned(), draft.nonce);
    true
}
