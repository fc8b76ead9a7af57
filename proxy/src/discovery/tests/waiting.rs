//! Requests that wait for an answer, in paused time.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::time::Instant;
use weft_engine::reason::Reason;

use super::super::driver::Want;
use super::super::snapshot::{Destination, Entry, Snapshot};
use super::super::{Discovery, HOLD};
use super::*;
use crate::Clock;

fn bare() -> (Arc<Discovery>, mpsc::Receiver<Want>) {
    let discovery = Discovery::bare(Clock::start());
    let asked = discovery.core.lock().take().unwrap().asked;
    (Arc::new(discovery), asked)
}

fn outside(name: &str) -> Snapshot {
    let entry = Arc::new(Entry { destination: Destination::Outside, last_used: 0.into() });
    match name.parse() {
        Ok(addr) => Snapshot { by_addr: HashMap::from([(addr, entry)]), ..Snapshot::default() },
        Err(_) => Snapshot { by_host: HashMap::from([(name.into(), entry)]), ..Snapshot::default() },
    }
}

async fn asked_for(asked: &mut mpsc::Receiver<Want>) -> Arc<str> {
    match asked.recv().await {
        Some(Want::Address(name)) => name,
        _ => panic!("not asked for an address"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_address_is_held_until_it_is_answered() {
    let (discovery, mut asked) = bare();
    let waiting = tokio::spawn({
        let discovery = Arc::clone(&discovery);
        async move { discovery.resolve(addr("[::ffff:10.96.0.1]:80")).await }
    });
    assert_eq!(&*asked_for(&mut asked).await, VIP);
    discovery.publish(Snapshot::default());
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "another change is no answer");
    discovery.publish(outside(VIP));
    assert!(matches!(waiting.await.unwrap(), Ok(Destination::Outside)));
    assert_eq!(discovery.counters().held_answered.load(Ordering::Relaxed), 1);
    // From now on nobody is asked.
    assert!(matches!(discovery.resolve(addr(VIP)).await, Ok(Destination::Outside)));
    assert!(asked.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_it_fails_after_a_second_with_a_reason() {
    let (discovery, mut asked) = bare();
    let begun = Instant::now();
    let (one, two) = tokio::join!(discovery.resolve(addr(VIP)), discovery.resolve_host("Web.Shop.", 80));
    assert!(matches!(one, Err(Reason::DiscoveryTimeout)) && matches!(two, Err(Reason::DiscoveryTimeout)));
    assert_eq!(begun.elapsed(), HOLD);
    assert_eq!(&*asked_for(&mut asked).await, VIP);
    assert_eq!(&*asked_for(&mut asked).await, "web.shop:80");
    assert_eq!(discovery.counters().held_timeout.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_of_questions_is_bounded_by_time_too() {
    let (discovery, _asked) = bare();
    let begun = Instant::now();
    let all: Vec<_> = (0..super::super::WANTS + 10)
        .map(|n| {
            let discovery = Arc::clone(&discovery);
            tokio::spawn(async move { discovery.resolve_host(&format!("h{n}"), 80).await.is_err() })
        })
        .collect();
    for one in all {
        assert!(one.await.unwrap());
    }
    assert_eq!(begun.elapsed(), HOLD);
}

#[tokio::test(start_paused = true)]
async fn outside_the_meshs_ranges_nobody_asks() {
    let (discovery, mut asked) = bare();
    let extent = vec!["10.0.0.0/8".parse().unwrap()];
    discovery.publish(Snapshot { extent, extent_known: true, ..Snapshot::default() });
    assert!(matches!(discovery.resolve(addr("192.0.2.1:443")).await, Ok(Destination::Outside)));
    assert!(asked.try_recv().is_err());
    assert!(discovery.resolve(addr(VIP)).await.is_err(), "inside them an answer is needed");
}

#[tokio::test(start_paused = true)]
async fn what_had_to_be_refused_fails_at_once() {
    let (discovery, _asked) = bare();
    let refused =
        HashMap::from([(name(VIP), Reason::PolicyUnsupported), (name("web.shop:80"), Reason::InvalidBackend)]);
    discovery.publish(Snapshot { refused, ..Snapshot::default() });
    let begun = Instant::now();
    assert!(matches!(discovery.resolve(addr(VIP)).await, Err(Reason::PolicyUnsupported)));
    assert!(matches!(discovery.resolve_host("web.shop", 80).await, Err(Reason::InvalidBackend)));
    assert!(matches!(discovery.resolve_host("a b", 80).await, Err(Reason::NameUnresolved)));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn the_state_says_how_old_it_is() {
    let (discovery, _asked) = bare();
    assert!(!discovery.status().connected && !discovery.status().has_inbound && !discovery.status().from_disk);
    let mut changes = discovery.changes();
    discovery.heard();
    discovery.set_connected(true);
    changes.changed().await.unwrap();
    let status = discovery.status();
    assert!(status.connected && status.state_age == Duration::ZERO);
}
