//! What the other replicas of control say of objects, for the one who writes: it asks before it judges, and hears at which objects to look again.
//!
//! Invariants
//! - A replica that may have proxies and does not say how they are is named as silent, never left out.
//! - Questions are bounded: [`ASKS`] at a time, each about [`AT_A_TIME`] objects and for [`PATIENCE`]. Who did not answer one is not asked for
//!   [`SULKS`]: one that hangs delays nobody else for long.
//! - While another replica writes, nobody is asked and nothing is told.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until};
use weft_api::wire::replicas::ask::About;

use super::Key;
use crate::distribute::Hub;
use crate::replicas::Question;
use crate::replicas::whole::Elsewhere;

/// Objects in one question.
pub const AT_A_TIME: usize = 32;
const ASKS: usize = 2;
/// A refusal elsewhere has to be on its object within two seconds, also while a third replica hangs.
const PATIENCE: Duration = Duration::from_millis(500);
const SULKS: Duration = Duration::from_secs(5);
/// After one was lost its proxies come to others, which is told of each object that they use, and its Lease runs out. Only then all objects are
/// looked at: else each would be `Unknown` for a moment.
const LOST: Duration = Duration::from_secs(20);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A replica can be asked that could not, or some time has passed since one was lost: of any object it may be otherwise.
    Roll,
    /// About these objects; nothing, if the question was lost.
    Answered(Vec<Key>, Option<Elsewhere>),
}

/// The others.
#[derive(Debug)]
pub struct Others {
    hub: Arc<Hub>,
    /// While we write: they tell which objects are to be looked at again.
    question: Option<Question>,
    roll: Vec<(String, bool)>,
    /// All are to be looked at then.
    recount: Option<Instant>,
    asks: JoinSet<Elsewhere>,
    asked: HashMap<Id, Vec<Key>>,
    sulking: HashMap<String, Instant>,
}

impl Others {
    /// Nobody is asked yet.
    pub fn new(hub: Arc<Hub>) -> Self {
        let (roll, asks) = (Vec::new(), JoinSet::new());
        Self { hub, question: None, roll, recount: None, asks, asked: HashMap::new(), sulking: HashMap::new() }
    }

    /// We write from now on, or not any more: then what was asked is not answered.
    pub fn lead(&mut self, leads: bool) {
        self.question = leads.then(|| self.hub.replicas.ask(&self.hub, About::Objects(true)));
        (self.roll, self.recount) = (self.hub.replicas.roll(), None);
        (self.asks, self.asked) = (JoinSet::new(), HashMap::new());
    }

    /// Whether more may be asked.
    pub fn are_free(&self) -> bool {
        self.asks.len() < ASKS
    }

    /// Asks about these. Where nobody can be asked that is the answer.
    pub fn ask(&mut self, keys: &[Key], now: Instant) -> Option<Elsewhere> {
        self.sulking.retain(|_, until| *until > now);
        let mut members = self.hub.replicas.members();
        for member in &mut members {
            member.way = member.way.take().filter(|_| !self.sulking.contains_key(&member.id));
        }
        if members.iter().all(|member| member.way.is_none()) {
            return Some(Elsewhere::without(members));
        }
        let names = keys.iter().map(|(kind, name)| format!("{}/{name}", kind.name())).collect();
        let asking = self.asks.spawn(Elsewhere::ask(members, names, PATIENCE));
        self.asked.insert(asking.id(), keys.to_vec());
        None
    }

    /// The next that happens. Nothing is lost if nobody waits for it any more.
    pub async fn next(&mut self) -> Event {
        loop {
            let changed = async {
                match &mut self.question {
                    Some(question) => question.changed().await,
                    None => std::future::pending().await,
                }
            };
            let recount = self.recount;
            let lost = async {
                match recount {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(done) = self.asks.join_next_with_id() => return self.answered(done),
                () = changed => if self.has_come() {
                    return Event::Roll;
                },
                () = lost => {
                    self.recount = None;
                    return Event::Roll;
                }
            }
        }
    }

    /// Looks who is there. True: somebody is to be asked about everything.
    fn has_come(&mut self) -> bool {
        let roll = self.hub.replicas.roll();
        if roll == self.roll {
            return false;
        }
        let before = std::mem::replace(&mut self.roll, roll);
        let came = self.roll.iter().any(|one| one.1 && !before.contains(one));
        if !came {
            self.recount.get_or_insert_with(|| Instant::now() + LOST);
        }
        came
    }

    fn answered(&mut self, done: Result<(Id, Elsewhere), tokio::task::JoinError>) -> Event {
        match done {
            Ok((id, elsewhere)) => {
                let until = Instant::now() + SULKS;
                self.sulking.extend(elsewhere.late.iter().map(|replica| (replica.clone(), until)));
                Event::Answered(self.asked.remove(&id).unwrap_or_default(), Some(elsewhere))
            }
            Err(error) => {
                tracing::error!(%error, "a question to other controls died");
                Event::Answered(self.asked.remove(&error.id()).unwrap_or_default(), None)
            }
        }
    }
}
