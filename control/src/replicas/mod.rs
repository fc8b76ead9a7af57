//! Several replicas of control, all of which serve: what one knows of its proxies, decisions of the others need.
//!
//! Each follows each other one over gRPC ([`follow`] asks, [`tell`] answers): it hears which proxies are connected there and which workloads leave. A
//! decision (may a pod go, may a rotation go on) is a question to all ([`question`]); who answers it says whom it waits for, and each change of
//! that. Nothing is told of what nobody asks for.
//!
//! Invariants
//! - A proxy is known to be somewhere before it is known to be here no more, at each replica and between them: one that moves is waited for all
//!   the way. Who has read [`Question::is_over`] looks at its own proxies afterwards, and begins anew if anything was heard meanwhile.
//! - One that was connected to a replica that is lost is away from then on, as if its stream here had ended, unless it is connected elsewhere.
//! - A replica that lives for certain (it follows us, or its Lease says so) and is not heard may have any proxy: no question is over.
//! - Who is about to end says so, and is sent nobody ([`share`]).
//! - Questions are bounded ([`QUESTIONS`]); of a replica is kept which proxies it has, and of each question whom it concerns there.

pub mod follow;
pub mod members;
pub mod presence;
pub mod question;
pub mod share;
pub mod tell;
pub mod whole;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;
use weft_api::wire::replicas as wire;
use weft_api::wire::replicas::ask::About;

use crate::auth;
use crate::distribute::Hub;
use crate::model::Name;

/// Questions that are open at a time.
const QUESTIONS: usize = 4096;
/// A question that is asked again and again is kept open for so long after the last time.
const KEPT: Duration = Duration::from_secs(30);

/// What other replicas have to hear at once.
#[derive(Clone, Debug)]
pub enum Moved {
    /// A proxy came or went.
    Proxy(Name),
    /// Something is new about a workload that leaves.
    Leave(Name),
}

/// The questions that are open, by number.
type Asked = Arc<BTreeMap<u64, About>>;

/// The other replicas, as far as they are known.
#[derive(Debug)]
pub struct Replicas {
    /// A number of this run.
    id: String,
    name: Mutex<String>,
    state: Mutex<State>,
    /// Counts what was heard.
    heard: watch::Sender<u64>,
    asked: watch::Sender<Asked>,
    /// Those that were named to us have been heard once, or cannot be.
    settled: watch::Sender<bool>,
    /// We are about to end.
    stopping: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<SocketAddr, Peer>,
    /// Those whose Leases say that they live.
    live: BTreeSet<SocketAddr>,
    /// Who follows us, by the number of its stream.
    followers: BTreeMap<u64, Follower>,
    standing: Vec<(About, Question, Instant)>,
    next: u64,
}

/// A replica that we follow, or try to.
#[derive(Debug, Default)]
struct Peer {
    /// It was tried, and could not be reached or is nobody else.
    tried: bool,
    /// It is ourselves, or one that is heard at another address.
    same: bool,
    /// It said that it was about to end, and has not been heard since.
    left: bool,
    heard: Option<Heard>,
}

/// What a replica has told.
#[derive(Debug, Default)]
struct Heard {
    /// The way to it.
    channel: Option<Channel>,
    id: String,
    name: String,
    whole: bool,
    serves: bool,
    stopping: bool,
    proxies: HashSet<Name>,
    answers: HashMap<u64, Answer>,
}

#[derive(Debug, Default)]
struct Answer {
    whole: bool,
    waiting: BTreeSet<Name>,
    done: BTreeSet<Name>,
}

#[derive(Clone, Debug)]
struct Follower {
    id: String,
    name: String,
    back: SocketAddr,
}

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

/// Of this run. Nobody else has it; without the kernel's randomness, nobody else of this machine.
fn identity() -> String {
    weft_certs::files::random_hex(16).unwrap_or_else(|_| std::process::id().to_string())
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            id: identity(),
            name: Mutex::default(),
            state: Mutex::default(),
            heard: watch::Sender::new(0),
            asked: watch::Sender::default(),
            settled: watch::Sender::new(true),
            stopping: watch::Sender::new(false),
        }
    }
}

impl Replicas {
    /// Whether a proxy is connected to another replica.
    pub fn have(&self, workload: &Name) -> bool {
        self.state.lock().heard().any(|heard| heard.proxies.contains(workload))
    }

    /// Waits until what the others know of workloads that leave is known here, as far as they can be reached: a proxy that comes before that
    /// might be told that one is back.
    pub async fn settled(&self) {
        let mut settled = self.settled.subscribe();
        // The sender is ours.
        let _ = settled.wait_for(|settled| *settled).await;
    }

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

    /// How many proxies each of those has to which others may be sent.
    pub fn serving(&self) -> Vec<usize> {
        let state = self.state.lock();
        let serving = state.heard().filter(|heard| heard.whole && heard.serves && !heard.stopping);
        serving.map(|heard| heard.proxies.len()).collect()
    }

    /// Whether we are about to end.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Returns when we are about to end.
    pub async fn stopping(&self) {
        let mut stopping = self.stopping.subscribe();
        // The sender is ours.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// This is the way to one that is heard.
    fn reached(&self, at: SocketAddr, channel: &Channel) {
        let mut state = self.state.lock();
        let heard = state.peers.get_mut(&at).and_then(|peer| peer.heard.as_mut());
        let Some(heard) = heard.filter(|heard| heard.channel.is_none()) else { return };
        heard.channel = Some(channel.clone());
        drop(state);
        self.bump();
    }

    /// What we call ourselves; empty where nothing was said.
    pub fn name(&self) -> String {
        self.name.lock().clone()
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

    fn bump(&self) {
        self.heard.send_modify(|heard| *heard += 1);
    }

    /// These live, by their Leases.
    fn live(&self, live: BTreeSet<SocketAddr>) {
        let before = std::mem::replace(&mut self.state.lock().live, live.clone());
        if before != live {
            self.bump();
        }
    }

    /// This one is to be followed.
    fn expect(&self, at: SocketAddr) {
        self.state.lock().peers.entry(at).or_default();
        self.bump();
    }

    /// This one is not to be followed any more.
    fn forget(&self, hub: &Hub, at: SocketAddr) {
        self.lost(hub, at);
        self.state.lock().peers.remove(&at);
        self.bump();
    }

    /// What this one said counts no more.
    fn lost(&self, hub: &Hub, at: SocketAddr) {
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
    fn told(&self, hub: &Hub, at: SocketAddr, told: wire::Told) -> bool {
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

    fn followed(self: &Arc<Self>, id: String, name: String, back: SocketAddr) -> Following {
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
    fn back(&self) -> BTreeSet<SocketAddr> {
        let state = self.state.lock();
        let unheard = |one: &&Follower| one.id != self.id && !state.peers.values().any(|peer| peer.is(&one.id));
        let unheard = state.followers.values().filter(unheard).map(|one| one.back);
        let heard = state.peers.iter().filter(|(_, peer)| {
            peer.heard.as_ref().is_some_and(|heard| state.followers.values().any(|one| one.id == heard.id))
        });
        unheard.chain(heard.map(|(at, _)| *at)).chain(state.live.iter().copied()).collect()
    }
}

impl Peer {
    fn is(&self, id: &str) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.id == id)
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
        self.whole |= told.whole;
        self.serves |= told.serves;
        self.stopping |= told.stopping;
    }
}

impl State {
    fn heard(&self) -> impl Iterator<Item = &Heard> {
        self.peers.values().filter_map(|peer| peer.heard.as_ref())
    }

    /// Whether there is nobody else at this address.
    fn is_us(&self, at: SocketAddr) -> bool {
        self.peers.get(&at).is_some_and(|peer| peer.same)
    }

    fn answers(&self, question: u64) -> impl Iterator<Item = &Answer> {
        self.heard().filter_map(move |heard| heard.answers.get(&question))
    }

    /// Replicas that are there and have not answered.
    fn silent(&self, own: &str, question: u64) -> Vec<String> {
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

/// Somebody follows us, until this is dropped.
#[derive(Debug)]
struct Following {
    number: u64,
    replicas: Arc<Replicas>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.replicas.state.lock().followers.remove(&self.number);
        self.replicas.bump();
    }
}
