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
//! - Questions are bounded ([`asked`]); of a replica is kept which proxies it has, and of each question whom it concerns there.

mod asked;
pub mod follow;
mod heard;
pub mod members;
pub mod presence;
pub mod question;
pub mod share;
pub mod tell;
pub mod whole;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;
use weft_api::wire::replicas::ask::About;

pub use asked::{Others, Question};
pub use members::Seen;

use crate::leases::run_id;
use crate::model::Name;

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
    /// The zone that we run in; empty until it is known.
    zone: watch::Sender<String>,
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
    zone: String,
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

impl Default for Replicas {
    fn default() -> Self {
        Self {
            id: run_id(),
            name: Mutex::default(),
            state: Mutex::default(),
            heard: watch::Sender::new(0),
            asked: watch::Sender::default(),
            settled: watch::Sender::new(true),
            stopping: watch::Sender::new(false),
            zone: watch::Sender::default(),
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

    /// The zone that we run in, as far as it is known.
    pub fn zone(&self) -> String {
        self.zone.borrow().clone()
    }

    fn is_in(&self, zone: &str) {
        self.zone.send_if_modified(|before| {
            let other = before != zone;
            zone.clone_into(before);
            other
        });
    }

    /// What we call ourselves; empty where nothing was said.
    pub fn name(&self) -> String {
        self.name.lock().clone()
    }

    fn bump(&self) {
        self.heard.send_modify(|heard| *heard += 1);
    }
}

impl Peer {
    fn is(&self, id: &str) -> bool {
        self.heard.as_ref().is_some_and(|heard| heard.id == id)
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
}
