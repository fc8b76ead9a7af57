//! Whose turn it is, and what is heard of.

use tokio::time::Instant;

use super::super::desk::{A_SECOND, AT_ONCE, COUNTS, Desk, EVERY, GATHER, LOOKS, Missed};
use super::super::inbox::MOST_TOLD;
use super::*;

struct Turn {
    desk: Desk,
    start: Instant,
    model: Model,
}

impl Turn {
    fn new() -> Self {
        Self { desk: Desk::default(), start: Instant::now(), model: model() }
    }

    fn saw(&mut self, name: &str, at: Duration) -> Key {
        let mut object = route(web(), to(json!([])));
        object["metadata"]["name"] = name.into();
        let (key, subject) = read(Kind::HttpRoute, &object, &mut self.model);
        self.desk.saw(key.clone(), Some(subject), Some(&self.model), self.start + at, true);
        key
    }

    /// Writes all whose turn it is; how many.
    fn writes(&mut self, at: Duration, outcome: Result<(), Missed>) -> usize {
        let (now, mut count) = (self.start + at, 0);
        while let Some(key) = self.desk.take(now) {
            self.desk.writes(&key, now);
            self.desk.wrote(&key, outcome.as_ref().map(|()| &Json::Null).map_err(|missed| *missed), now);
            count += 1;
        }
        count
    }
}

#[test]
fn an_object_is_looked_at_soon_and_then_once_a_second() {
    let mut turn = Turn::new();
    let key = turn.saw("web", Duration::ZERO);
    assert_eq!(turn.writes(GATHER / 2, Ok(())), 0);
    assert_eq!(turn.writes(GATHER, Ok(())), 1);
    for ms in 0..900 {
        turn.desk.changed("HTTPRoute/shop/web", turn.start + GATHER + Duration::from_millis(ms));
    }
    assert_eq!(turn.desk.len(), 1, "it stands in the queue once");
    assert_eq!((turn.writes(GATHER + EVERY / 2, Ok(())), turn.writes(GATHER + EVERY, Ok(()))), (0, 1));
    // The service that it is attached to.
    turn.desk.changed("service/shop/web:80", turn.start + EVERY * 5);
    turn.desk.changed("service/shop/v2:80", turn.start + EVERY * 5);
    turn.desk.changed("consumer/client/shop/v2:80", turn.start + EVERY * 5);
    assert_eq!((turn.desk.len(), turn.writes(EVERY * 6, Ok(()))), (1, 1));
    turn.desk.changed("consumer/client/shop/web:80", turn.start + EVERY * 6);
    assert_eq!((turn.desk.len(), turn.writes(EVERY * 7, Ok(()))), (1, 1));
    // Numbers alone.
    turn.desk.changed("service/shop/web:80", turn.start + EVERY * 8);
    assert_eq!(turn.desk.take(turn.start + EVERY * 9).as_ref(), Some(&key));
    assert!(!turn.desk.may_count(&key, turn.start + EVERY * 9));
    turn.desk.leave(&key, turn.start + EVERY * 9);
    assert_eq!(turn.desk.next(), Some(turn.start + EVERY * 7 + COUNTS));
    turn.desk.saw(key, None, None, turn.start, true);
    assert!(turn.desk.is_empty());
    turn.desk.changed("service/shop/web:80", turn.start + EVERY * 20);
    assert!(turn.desk.is_empty(), "nothing of it is left");
}

#[test]
fn what_fails_waits_longer_each_time_and_what_changed_meanwhile_does_not() {
    let mut turn = Turn::new();
    turn.saw("web", Duration::ZERO);
    let (mut at, mut waits) = (GATHER, Vec::new());
    for _ in 0..9 {
        assert_eq!(turn.writes(at, Err(Missed::Failed)), 1);
        let next = turn.desk.next().unwrap() - turn.start;
        waits.push(next.saturating_sub(at).as_secs());
        at = next;
    }
    assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60, MOST_PAUSE.as_secs()]);
    let mut turn = Turn::new();
    turn.saw("web", Duration::ZERO);
    assert_eq!(turn.writes(GATHER, Err(Missed::Changed)), 1);
    assert_eq!(turn.desk.next(), Some(turn.start + GATHER + EVERY));
    // While it is written it waits.
    let key = turn.desk.take(turn.start + EVERY * 2).unwrap();
    turn.desk.writes(&key, turn.start + EVERY * 2);
    turn.desk.touch(&key, turn.start + EVERY * 2);
    assert!(turn.desk.is_empty());
    turn.desk.wrote(&key, Ok(&Json::Null), turn.start + EVERY * 2);
    assert_eq!(turn.desk.len(), 1);
}

#[test]
fn all_together_are_written_at_a_rate() {
    let mut turn = Turn::new();
    for number in 0..1_000 {
        turn.saw(&format!("web-{number}"), Duration::ZERO);
    }
    let first = turn.writes(GATHER, Ok(()));
    assert_eq!(first, AT_ONCE as usize);
    let later: usize = (1..=100).map(|step| turn.writes(GATHER + Duration::from_millis(100) * step, Ok(()))).sum();
    assert_eq!(later, A_SECOND as usize * 10);
    assert_eq!(turn.desk.len(), 1_000 - first - later);
    turn.desk.rest();
    assert!(turn.desk.is_empty());
    turn.desk.touch_all(turn.start + EVERY * 60);
    assert_eq!(turn.desk.len(), 1_000);
}

#[test]
fn more_names_than_are_kept_are_all() {
    let inbox = Inbox::default();
    let names: Vec<Arc<str>> = (0..70_000).map(|number| format!("HTTPRoute/shop/r-{number}").into()).collect();
    inbox.changed(names.iter());
    inbox.open();
    let taken = |inbox: &Inbox| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(inbox.next())
    };
    inbox.changed(names[..3].iter());
    inbox.changed([Arc::from("workload/shop/web-1"), Arc::from("10.0.0.1:80")].iter());
    assert_eq!(taken(&inbox).stirred.names.len(), 3, "nothing was kept before, and nothing is of what has no status");
    inbox.changed(names.iter());
    let waiting = taken(&inbox);
    assert!(waiting.stirred.all && waiting.stirred.names.is_empty());
}

#[test]
fn another_replica_hears_what_happens_here_and_nothing_of_third_ones() {
    let inbox = Inbox::default();
    let name = |number: usize| Arc::<str>::from(format!("HTTPRoute/shop/r-{number}"));
    inbox.changed([name(1)].iter());
    let ear = inbox.listen();
    assert!(ear.take().is_empty());
    inbox.changed([name(2), Arc::from("service/shop/web:80"), Arc::from("workload/shop/web-1")].iter());
    inbox.changed_elsewhere(vec!["HTTPRoute/shop/far".to_owned()], false);
    inbox.changed_elsewhere(Vec::new(), true);
    let heard = ear.take();
    assert_eq!((heard.all, heard.names.len()), (false, 2), "{heard:?}");
    assert!(ear.take().is_empty());
    // Whoever writes here hears both.
    inbox.open();
    inbox.changed_elsewhere(vec!["HTTPRoute/shop/far".to_owned(), "workload/shop/web-1".to_owned()], false);
    inbox.changed([name(3)].iter());
    let waiting = inbox.waiting.lock().stirred.names.len();
    assert_eq!(waiting, 2);
    inbox.changed_elsewhere(Vec::new(), true);
    assert!(inbox.waiting.lock().stirred.all);
    // More than a message may name is all, and an ear that is kept no more costs nothing.
    let names: Vec<Arc<str>> = (0..=MOST_TOLD).map(name).collect();
    inbox.changed(names.iter());
    assert!(ear.take().all && inbox.listeners() == 1);
    drop(ear);
    inbox.changed(names.iter());
    assert_eq!(inbox.listeners(), 0);
}

#[test]
fn what_happens_to_an_object_that_is_judged_is_looked_at_afterwards() {
    let mut turn = Turn::new();
    let key = turn.saw("web", Duration::ZERO);
    let at = |millis| turn.start + Duration::from_millis(millis);
    assert_eq!(turn.desk.take(at(100)), Some(key.clone()));
    turn.desk.asks(&key, at(100));
    // The answers are on their way.
    turn.desk.touch(&key, at(110));
    assert!(turn.desk.is_empty() && turn.desk.judged(&key).is_some());
    turn.desk.leave(&key, at(120));
    assert_eq!(turn.desk.next(), Some(at(100) + LOOKS), "others are not asked at once again");
    // Somebody has to be asked again whatever happens, and something happens before.
    assert_eq!(turn.desk.take(at(700)), Some(key.clone()));
    turn.desk.later(&key, at(5_000));
    turn.desk.later(&key, at(9_000));
    turn.desk.leave(&key, at(700));
    assert_eq!(turn.desk.next(), Some(at(5_000)));
    turn.desk.touch(&key, at(800));
    assert_eq!(turn.desk.next(), Some(at(850)));
    // Another replica is elected meanwhile, and then this one again: what was judged for the first time is not counted twice.
    assert_eq!(turn.desk.take(at(900)), Some(key.clone()));
    turn.desk.rest();
    assert!(turn.desk.judged(&key).is_none() && turn.desk.next().is_none());
    turn.desk.leave(&key, at(950));
    turn.desk.touch_all(at(1_000));
    assert_eq!(turn.desk.take(at(2_000)), Some(key.clone()));
    // It goes while it is judged.
    turn.desk.saw(key.clone(), None, None, at(2_000), true);
    turn.desk.leave(&key, at(2_000));
    assert!(turn.desk.is_empty() && turn.desk.judged(&key).is_none());
}

#[test]
fn all_that_are_judged_may_be_written() {
    let mut turn = Turn::new();
    for number in 0..1_000 {
        turn.saw(&format!("web-{number}"), Duration::ZERO);
    }
    let now = turn.start + EVERY;
    let judged: Vec<Key> = std::iter::from_fn(|| turn.desk.take(now)).collect();
    assert_eq!(judged.len(), AT_ONCE as usize);
    assert_eq!(turn.desk.next(), None, "not before one of them is out of hand");
    for key in &judged[..50] {
        turn.desk.writes(key, now);
    }
    for key in &judged[50..] {
        turn.desk.leave(key, now);
    }
    assert_eq!(std::iter::from_fn(|| turn.desk.take(now)).count(), 50);
}
