//! Why something was pushed: the last changes, from what was seen to the last answer.
//!
//! An event is one compilation that changed a resource: what caused it, what came of it, how many streams were told, how they answered.
//!
//! Invariants
//! - `waiting` of an event is the number of streams that were told and have not answered; each stands in `following` under its number. A
//!   stream has answered when the oldest change that it has not answered is younger than the event.
//! - At most [`EVENTS`] events of [`BYTES`] bytes are kept, each with at most [`NAMED`] names of a sort; of a stream at most [`FOLLOWED`] are
//!   followed, of the others it is counted among those of which nothing is known.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::compile::Changes;
use crate::model::Change;

const EVENTS: usize = 4096;
const BYTES: usize = 2 << 20;
const NAMED: usize = 32;
const FOLLOWED: usize = 64;
/// An event that is thrown out younger than this is missed: a bound that was hit.
const KEPT: Duration = Duration::from_mins(10);

/// What made control compile.
#[derive(Clone, Debug, Default)]
pub struct Cause {
    /// `objects`, `drain`, `trust` or `revoked`.
    pub what: &'static str,
    /// The objects, `KIND/NAMESPACE/NAME`; not all of many.
    pub objects: Vec<String>,
    /// How many they are.
    pub objects_in_all: usize,
}

impl Cause {
    /// Not an object: `what` happened to this workload, if to any.
    pub fn of(what: &'static str, workload: Option<String>) -> Self {
        let objects: Vec<String> = workload.into_iter().map(|name| format!("Pod/{name}")).collect();
        Self { what, objects_in_all: objects.len(), objects }
    }

    /// This object came, changed or went.
    pub fn add(&mut self, change: &Change) {
        self.what = "objects";
        self.objects_in_all += 1;
        if self.objects.len() < NAMED {
            self.objects.push(object(change));
        }
    }
}

/// The kind of the object that a change is about: a label of metrics.
pub fn kind(change: &Change) -> &str {
    match change {
        Change::Namespace(..) => "Namespace",
        Change::Node(..) => "Node",
        Change::Service(..) => "Service",
        Change::Slice(..) => "EndpointSlice",
        Change::Workload(..) => "Pod",
        Change::Route((kind, _), _) => kind,
        Change::Grant(..) => "ReferenceGrant",
        Change::Authorization(..) => "AuthorizationPolicy",
        Change::RateLimit(..) => "RateLimitPolicy",
    }
}

fn object(change: &Change) -> String {
    let kind = kind(change);
    match change {
        Change::Namespace(name, _) | Change::Node(name, _) => format!("{kind}/{name}"),
        Change::Route((_, name), _)
        | Change::Service(name, _)
        | Change::Slice(name, _)
        | Change::Workload(name, _)
        | Change::Grant(name, _)
        | Change::Authorization(name, _)
        | Change::RateLimit(name, _) => format!("{kind}/{name}"),
    }
}

/// One change, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number, from 1.
    pub id: u64,
    /// When it was seen, in seconds since 1970.
    pub at: f64,
    /// `objects`, `drain`, `trust` or `revoked`.
    pub cause: String,
    /// The objects that came, changed or went, `KIND/NAMESPACE/NAME`; not all of many.
    pub objects: Vec<String>,
    /// How many they are.
    pub objects_in_all: usize,
    /// The resources that were made, made anew or taken away; not all of many.
    pub resources: Vec<Arc<str>>,
    /// How many they are.
    pub resources_in_all: usize,
    /// Milliseconds from when it was seen until it was compiled.
    pub compiled_ms: f64,
    /// Proxies that were told.
    pub told: usize,
    /// Of these, those that have not answered yet.
    pub waiting: usize,
    /// Answers by which something was refused.
    pub refused: usize,
    /// Proxies that went away before they answered.
    pub gone: usize,
    /// Milliseconds from when it was seen until the last of them had answered.
    pub answered_ms: Option<f64>,
}

impl Event {
    fn bytes(&self) -> usize {
        let names = self.objects.iter().map(String::len).chain(self.resources.iter().map(|name| name.len()));
        size_of::<Self>() + names.map(|length| length + size_of::<String>()).sum::<usize>()
    }

    /// Whether it is about this object or resource.
    pub fn is_about(&self, name: &str) -> bool {
        self.objects.iter().any(|object| object == name) || self.resources.iter().any(|resource| **resource == *name)
    }
}

#[derive(Debug)]
struct Kept {
    event: Event,
    /// Since the store was made, as all times that come from it.
    seen: Duration,
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Kept>,
    bytes: usize,
    next: u64,
    /// By stream: when it was told, and of which event.
    following: HashMap<u64, VecDeque<(Duration, u64)>>,
}

/// The last changes.
#[derive(Debug, Default)]
pub struct Events(Mutex<State>);

/// How a stream stands to an event that it was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Acknowledged,
    Refused,
    Unknown,
}

impl Events {
    /// A change that was seen at `seen` is compiled, and `told` streams are about to be told. Returns its number, and how many events were
    /// thrown out too early to make room for it. What was only looked at again is none.
    pub fn begin(&self, cause: Cause, changes: &Changes, told: usize, seen: Duration, now: Duration) -> (u64, u64) {
        if told == 0 && changes.is_empty() && cause.objects_in_all == 0 {
            return (0, 0);
        }
        let ago = now.saturating_sub(seen);
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(ago);
        let sets = changes.members.values().flatten();
        let resources: BTreeSet<&Arc<str>> = changes.names.iter().chain(sets).take(NAMED).collect();
        let mut state = self.0.lock();
        state.next += 1;
        let event = Event {
            id: state.next,
            at: at.as_secs_f64(),
            cause: cause.what.to_owned(),
            objects: cause.objects,
            objects_in_all: cause.objects_in_all,
            resources: resources.into_iter().cloned().collect(),
            resources_in_all: changes.len(),
            compiled_ms: ago.as_secs_f64() * 1e3,
            told,
            waiting: told,
            ..Event::default()
        };
        state.bytes += event.bytes();
        state.ring.push_back(Kept { event, seen });
        (state.next, state.make_room(now))
    }

    /// A stream was told of an event at `at`, and `unanswered` is the oldest change that it has not answered. Returns how long the event took
    /// if it is over.
    pub fn told(&self, event: u64, stream: u64, at: Duration, unanswered: Option<Duration>) -> Option<Duration> {
        let mut state = self.0.lock();
        if unanswered.is_none_or(|oldest| oldest > at) {
            // There was nothing to send.
            return state.answer(event, Answer::Acknowledged, at);
        }
        let following = state.following.entry(stream).or_default();
        following.push_back((at, event));
        let given_up = (following.len() > FOLLOWED).then(|| following.pop_front()).flatten();
        given_up.and_then(|(_, event)| state.answer(event, Answer::Unknown, at))
    }

    /// A stream has answered all but what changed at `unanswered` or later. Returns how long each event took that is over with that.
    pub fn answered(
        &self,
        stream: u64,
        unanswered: Option<Duration>,
        refused: bool,
        now: Duration,
    ) -> impl Iterator<Item = Duration> {
        let answer = if refused { Answer::Refused } else { Answer::Acknowledged };
        self.0.lock().settle(stream, unanswered, answer, now).into_iter()
    }

    /// A stream has ended: of what it has not answered nothing is known.
    pub fn closed(&self, stream: u64, now: Duration) {
        let mut state = self.0.lock();
        state.settle(stream, None, Answer::Unknown, now);
        state.following.remove(&stream);
    }

    /// Those that are kept and not older than `since`, about this object or resource if one is named; the oldest first.
    pub fn list(&self, about: Option<&str>, since: Duration, now: Duration) -> Vec<Event> {
        let state = self.0.lock();
        let recent = state.ring.iter().filter(|kept| now.saturating_sub(kept.seen) <= since).map(|kept| &kept.event);
        recent.filter(|event| about.is_none_or(|about| event.is_about(about))).cloned().collect()
    }
}

impl State {
    fn make_room(&mut self, now: Duration) -> u64 {
        let mut missed = 0;
        while self.ring.len() > EVENTS || (self.bytes > BYTES && self.ring.len() > 1) {
            let Some(Kept { event, seen }) = self.ring.pop_front() else { break };
            self.bytes -= event.bytes();
            missed += u64::from(now.saturating_sub(seen) < KEPT);
        }
        missed
    }

    fn settle(&mut self, stream: u64, unanswered: Option<Duration>, answer: Answer, now: Duration) -> Vec<Duration> {
        let Some(following) = self.following.get_mut(&stream) else { return Vec::new() };
        let open = following.iter().position(|(at, _)| unanswered.is_some_and(|oldest| oldest <= *at));
        let done: Vec<(Duration, u64)> = following.drain(..open.unwrap_or(following.len())).collect();
        if following.is_empty() {
            self.following.remove(&stream);
        }
        done.into_iter().filter_map(|(_, event)| self.answer(event, answer, now)).collect()
    }

    /// Returns how long the event took, if all who were told have acknowledged it now.
    fn answer(&mut self, event: u64, answer: Answer, now: Duration) -> Option<Duration> {
        let first = self.ring.front()?.event.id;
        let Kept { event, seen } = self.ring.get_mut(usize::try_from(event.checked_sub(first)?).ok()?)?;
        event.waiting = event.waiting.saturating_sub(1);
        match answer {
            Answer::Acknowledged => {}
            Answer::Refused => event.refused += 1,
            Answer::Unknown => event.gone += 1,
        }
        if event.waiting > 0 {
            return None;
        }
        let took = now.saturating_sub(*seen);
        event.answered_ms = Some(took.as_secs_f64() * 1e3);
        (event.refused == 0 && event.gone == 0).then_some(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    const HOUR: Duration = Duration::from_hours(1);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn changes(names: usize) -> Changes {
        Changes {
            names: (0..names).map(|number| format!("service/shop/{number}:80").into()).collect(),
            ..Changes::default()
        }
    }

    fn cause() -> Cause {
        let mut cause = Cause::default();
        cause.add(&Change::Service(Name::new("shop", "web"), None));
        cause
    }

    #[test]
    fn an_event_is_over_when_the_last_who_was_told_has_answered() {
        let events = Events::default();
        let (event, missed) = events.begin(cause(), &changes(1), 3, ms(100), ms(104));
        assert_eq!((event, missed), (1, 0));
        assert_eq!(events.told(event, 7, ms(104), Some(ms(104))), None);
        assert_eq!(events.told(event, 8, ms(104), Some(ms(90))), None);
        assert_eq!(events.told(event, 9, ms(104), None), None, "nothing had to be sent");
        assert_eq!(events.answered(7, Some(ms(105)), false, ms(110)).count(), 0);
        // Still at something older.
        assert_eq!(events.answered(8, Some(ms(95)), false, ms(120)).count(), 0);
        assert_eq!(events.answered(8, None, false, ms(150)).collect::<Vec<_>>(), [ms(50)]);
        assert_eq!(events.answered(8, None, false, ms(160)).count(), 0);
        let [said] = &events.list(None, HOUR, ms(200))[..] else { panic!("one event") };
        assert_eq!((said.told, said.waiting, said.compiled_ms, said.answered_ms), (3, 0, 4.0, Some(50.0)));
        assert_eq!((said.objects[0].as_str(), said.resources_in_all), ("Service/shop/web", 1));
    }

    #[test]
    fn who_refuses_or_goes_away_ends_the_wait_and_is_no_convergence() {
        let events = Events::default();
        let (event, _) = events.begin(cause(), &changes(1), 2, ms(0), ms(0));
        for stream in [1, 2] {
            assert_eq!(events.told(event, stream, ms(0), Some(ms(0))), None);
        }
        assert_eq!(events.answered(1, None, true, ms(5)).count(), 0);
        events.closed(2, ms(9));
        let said = &events.list(None, HOUR, ms(9))[0];
        assert_eq!((said.waiting, said.refused, said.gone, said.answered_ms), (0, 1, 1, Some(9.0)));
        assert!(events.0.lock().following.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_missed_is_counted() {
        let events = Events::default();
        let mut missed = 0;
        for number in 0..EVENTS as u64 + 10 {
            let (event, thrown) = events.begin(cause(), &changes(100), 1, ms(number), ms(number));
            // One that never answers is not followed for ever.
            assert_eq!(events.told(event, 1, ms(number), Some(ms(0))), None);
            missed += thrown;
        }
        let state = events.0.lock();
        assert!(
            state.ring.len() < EVENTS && state.bytes <= BYTES,
            "{} events, {} bytes",
            state.ring.len(),
            state.bytes
        );
        assert_eq!(missed as usize, EVENTS + 10 - state.ring.len());
        assert_eq!(state.following[&1].len(), FOLLOWED);
        assert_eq!(state.bytes, state.ring.iter().map(|kept| kept.event.bytes()).sum::<usize>());
        assert!(
            state.ring.iter().all(|kept| kept.event.resources.len() == NAMED && kept.event.resources_in_all == 100)
        );
    }

    #[test]
    fn events_are_found_by_object_resource_and_age() {
        let events = Events::default();
        events.begin(cause(), &changes(1), 0, ms(0), ms(0));
        events.begin(Cause::of("drain", Some("shop/web-1".to_owned())), &changes(0), 0, ms(60_000), ms(60_000));
        let found =
            |about, since| events.list(about, since, ms(61_000)).iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(found(None, HOUR), [1, 2]);
        assert_eq!(found(None, ms(5_000)), [2]);
        assert_eq!(found(Some("Service/shop/web"), HOUR), [1]);
        assert_eq!(found(Some("service/shop/0:80"), HOUR), [1]);
        assert_eq!(found(Some("Pod/shop/web-1"), HOUR), [2]);
        assert_eq!(found(Some("Pod/shop/web"), HOUR), [0; 0]);
        assert_eq!(events.begin(Cause::of("trust", None), &changes(0), 0, ms(0), ms(0)), (0, 0));
        assert_eq!(found(None, HOUR), [1, 2]);
    }
}
