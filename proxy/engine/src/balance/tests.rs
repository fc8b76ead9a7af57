use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

struct Endpoint {
    load: Load,
    weight: u32,
    draining: bool,
}

impl Candidate for Endpoint {
    fn load(&self) -> &Load {
        &self.load
    }
    fn weight(&self) -> u32 {
        self.weight
    }
    fn draining(&self) -> bool {
        self.draining
    }
}

fn endpoint(weight: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint { load: Load::new(Duration::ZERO), weight, draining: false })
}

fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// A closed loop: `clients` each send the next request when the last has been answered. Returns requests by endpoint.
fn closed_loop(
    members: &[Arc<Endpoint>],
    clients: usize,
    from: Duration,
    until: Duration,
    rtt: impl Fn(usize, &mut fastrand::Rng) -> Duration,
) -> Vec<u64> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut sent = vec![0u64; members.len()];
    // (when it ends, which endpoint, when it began), the earliest on top.
    let mut held: BinaryHeap<std::cmp::Reverse<(Duration, usize, Duration)>> = BinaryHeap::new();
    let mut now = from;
    while now < until {
        while held.len() < clients {
            let chosen = choose(members, Order::default(), now, random.u64(..), &[]).unwrap();
            members[chosen].load.begin();
            sent[chosen] += 1;
            held.push(std::cmp::Reverse((now + rtt(chosen, &mut random), chosen, now)));
        }
        let std::cmp::Reverse((end, chosen, began)) = held.pop().unwrap();
        now = end;
        members[chosen].load.end(now, now.saturating_sub(began), true);
    }
    for std::cmp::Reverse((_, chosen, _)) in held {
        members[chosen].load.end(now, Duration::ZERO, true);
    }
    sent
}

fn share(sent: &[u64], of: usize) -> f64 {
    sent[of] as f64 / sent.iter().sum::<u64>() as f64
}

#[test]
fn an_endpoint_ten_times_slower_gets_under_a_tenth() {
    for clients in [1, 2, 8, 32, 128] {
        let members = [endpoint(1), endpoint(1), endpoint(1)];
        let sent = closed_loop(&members, clients, Duration::ZERO, Duration::from_secs(20), |at, random| {
            let base = if at == 1 { 100_000 } else { 10_000 };
            Duration::from_micros(base * random.u64(70..=130) / 100)
        });
        assert!(share(&sent, 1) < 0.1, "{clients} clients: {sent:?}");
        assert!(share(&sent, 0) > 0.3 && share(&sent, 2) > 0.3, "{clients} clients: {sent:?}");
        assert!(members.iter().all(|member| member.load.in_flight() == 0));
    }
}

#[test]
fn an_endpoint_that_recovers_gets_its_share_back() {
    let members = [endpoint(1), endpoint(1), endpoint(1)];
    let slow = |at: usize, _: &mut fastrand::Rng| millis(if at == 1 { 100 } else { 10 });
    closed_loop(&members, 8, Duration::ZERO, Duration::from_secs(10), slow);
    let well = |_: usize, random: &mut fastrand::Rng| Duration::from_micros(random.u64(9_000..11_000));
    closed_loop(&members, 8, Duration::from_secs(10), Duration::from_secs(70), well);
    let sent = closed_loop(&members, 8, Duration::from_secs(70), Duration::from_secs(80), well);
    assert!(share(&sent, 1) > 0.2, "{sent:?}");
}

#[test]
fn a_new_endpoint_is_not_flooded() {
    let mut members = vec![endpoint(1), endpoint(1), endpoint(1)];
    let even = |_: usize, random: &mut fastrand::Rng| Duration::from_micros(random.u64(800..1200));
    closed_loop(&members, 32, Duration::ZERO, Duration::from_secs(5), even);
    let fresh = Endpoint { load: Load::new(Duration::from_secs(5)), weight: 1, draining: false };
    members.push(Arc::new(fresh));
    // Its first answers take long: caches are cold.
    let worst = std::cell::Cell::new(0);
    let sent = closed_loop(&members, 32, Duration::from_secs(5), Duration::from_secs(6), |at, random| {
        worst.set(worst.get().max(members[3].load.in_flight()));
        if at == 3 { millis(20) } else { even(at, random) }
    });
    // An even share of what is held would be 8.
    assert!(worst.get() <= 4 && share(&sent, 3) < 0.25, "{sent:?}, {} held", worst.get());
    let sent = closed_loop(&members, 32, Duration::from_secs(40), Duration::from_secs(41), even);
    assert!((0.15..0.35).contains(&share(&sent, 3)), "{sent:?}");
}

#[test]
fn a_fast_failure_does_not_look_quick() {
    let members = [endpoint(1), endpoint(1), endpoint(1)];
    let mut random = fastrand::Rng::with_seed(3);
    let mut to_failing = 0;
    for tick in 0..10_000u64 {
        let now = millis(tick);
        let chosen = choose(&members, Order::default(), now, random.u64(..), &[]).unwrap();
        members[chosen].load.begin();
        if chosen == 0 {
            to_failing += 1;
            members[chosen].load.end(now, Duration::from_micros(100), false);
        } else {
            members[chosen].load.end(now, millis(5), true);
        }
    }
    assert!(to_failing < 1000, "{to_failing} of 10000");
}

#[test]
fn an_idle_estimate_decays_and_an_abandoned_wait_counts() {
    let load = Load::new(Duration::ZERO);
    assert!((load.score(Duration::ZERO) - 0.030).abs() < 1e-6);
    load.begin();
    load.end(millis(10), millis(10), true);
    assert!((load.score(millis(10)) - 0.010).abs() < 1e-6, "the first answer replaces the guess");
    load.begin();
    load.end(millis(20), millis(200), true);
    assert!((load.score(millis(20)) - 0.200).abs() < 1e-6, "a peak counts at once");
    let later = load.score(millis(20) + Duration::from_secs(10));
    assert!((later - 0.200 / std::f64::consts::E).abs() < 1e-3, "{later}");
    load.begin();
    load.abandoned(millis(30), millis(1));
    assert!(load.score(millis(30)) < 0.201);
    load.begin();
    load.abandoned(millis(30), Duration::from_secs(3));
    assert!(load.score(millis(30)) > 2.9);
    assert_eq!(load.in_flight(), 0);
    load.end(millis(40), millis(1), true);
    assert_eq!(load.in_flight(), 0, "an end without a beginning does not wrap");
}

#[test]
fn back_off_grows_to_its_bound_and_one_request_probes() {
    let load = Load::new(Duration::ZERO);
    let mut now = Duration::from_secs(100);
    assert!(load.usable(now));
    for expected in [1, 2, 4, 8, 16, 30, 30] {
        load.failed(now);
        load.failed(now + millis(1));
        assert!(!load.usable(now + millis(expected * 1000 - 1)), "{expected}");
        now += Duration::from_secs(expected);
        assert!(load.usable(now), "{expected}");
        assert!(load.claim(now), "the first may probe");
        assert!(!load.usable(now) && !load.claim(now), "the second may not");
    }
    load.connected();
    assert!(load.usable(now) && load.claim(now) && load.claim(now));
}

#[test]
fn a_probe_that_nobody_reports_on_is_repeated() {
    let load = Load::new(Duration::ZERO);
    load.failed(Duration::ZERO);
    assert!(load.claim(Duration::from_secs(1)));
    assert!(!load.claim(Duration::from_secs(1)));
    assert!(load.claim(Duration::from_secs(2)));
}

#[test]
fn a_failing_endpoint_is_left_and_comes_back() {
    let members = [endpoint(1), endpoint(1)];
    members[0].load.failed(Duration::ZERO);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..100 {
        assert_eq!(choose(&members, Order::default(), millis(500), random.u64(..), &[]), Some(1));
    }
    // After the back-off exactly one request finds out.
    let probes =
        (0..100).filter(|_| choose(&members, Order::default(), millis(1000), random.u64(..), &[]) == Some(0)).count();
    assert_eq!(probes, 1);
    members[0].load.begin();
    members[0].load.end(millis(1005), millis(5), true);
    let back =
        (0..100).filter(|_| choose(&members, Order::default(), millis(1010), random.u64(..), &[]) == Some(0)).count();
    assert!(back > 10, "{back}");
}

#[test]
fn what_is_unfit_is_the_last_resort_and_what_was_tried_is_none() {
    let draining = Arc::new(Endpoint { load: Load::new(Duration::ZERO), weight: 1, draining: true });
    let failing = endpoint(1);
    failing.load.failed(Duration::ZERO);
    let now = millis(10);
    for random in [0, 1, u64::MAX / 3, u64::MAX] {
        let members = [Arc::clone(&draining), endpoint(1), Arc::clone(&failing)];
        assert_eq!(choose(&members, Order::default(), now, random, &[]), Some(1));
        assert_eq!(choose(&members, Order::default(), now, random, &[1]), Some(0), "draining goes before failing");
        assert_eq!(choose(&members, Order::default(), now, random, &[1, 0]), Some(2));
        assert_eq!(choose(&members, Order::default(), now, random, &[0, 1, 2]), None);
        assert_eq!(choose::<Endpoint>(&[] as &[Arc<Endpoint>], Order::default(), now, random, &[]), None);
    }
}

#[test]
fn large_sets_are_used_whole_and_their_few_fit_members_are_found() {
    let members: Vec<_> = (0..1000).map(|_| endpoint(1)).collect();
    let mut random = fastrand::Rng::with_seed(5);
    let mut hits = vec![0u32; members.len()];
    for _ in 0..100_000 {
        hits[choose(&members, Order::default(), Duration::ZERO, random.u64(..), &[]).unwrap()] += 1;
    }
    assert!(hits.iter().all(|hits| (40..180).contains(hits)), "{:?} {:?}", hits.iter().min(), hits.iter().max());
    for (index, member) in members.iter().enumerate() {
        if index != 777 {
            member.load.failed(Duration::ZERO);
        }
    }
    for _ in 0..100 {
        assert_eq!(choose(&members, Order::default(), millis(1), random.u64(..), &[]), Some(777));
    }
}

proptest! {
    /// Idle and equally quick members share by weight: the larger of two wins its share, not everything.
    #[test]
    fn ten_thousand_draws_follow_the_weights(weights in prop::collection::vec(1u32..20, 1..10), seed in any::<u64>()) {
        let members: Vec<_> = weights.iter().map(|weight| endpoint(*weight)).collect();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut hits = vec![0u32; members.len()];
        for _ in 0..10_000 {
            hits[choose(&members, Order::default(), Duration::ZERO, random.u64(..), &[]).unwrap()] += 1;
        }
        let sum: u32 = weights.iter().sum();
        for (weight, hits) in weights.iter().zip(hits) {
            let share = f64::from(*weight) / f64::from(sum);
            let tolerance = 6.0 * (10_000.0 * share * (1.0 - share)).sqrt() + 1.0;
            prop_assert!((f64::from(hits) - 10_000.0 * share).abs() <= tolerance, "{hits} of share {share}");
        }
    }

    #[test]
    fn never_panics_and_never_chooses_what_was_tried(
        weights in prop::collection::vec(any::<u32>(), 0..40),
        random in any::<u64>(),
        now in any::<u32>(),
        tried in prop::collection::vec(0usize..40, 0..5),
    ) {
        let members: Vec<_> = weights.iter().map(|weight| endpoint(*weight)).collect();
        match choose(&members, Order::default(), millis(now.into()), random, &tried) {
            Some(chosen) => prop_assert!(chosen < members.len() && !tried.contains(&chosen)),
            None => prop_assert!((0..members.len()).all(|index| tried.contains(&index))),
        }
    }
}

#[test]
fn a_far_one_is_taken_only_if_no_near_one_is_fit() {
    let order = Order { near: 2, sticky: false };
    let mut members = [endpoint(1), endpoint(1), endpoint(1), endpoint(1)];
    let mut random = fastrand::Rng::with_seed(3);
    let mut hits = |members: &[Arc<Endpoint>], tried: &[usize]| {
        let chosen = (0..200).map(|_| choose(members, order, millis(1), random.u64(..), tried).unwrap());
        chosen.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(hits(&members, &[]), [0, 1].into());
    assert_eq!(hits(&members, &[0]), [1].into());
    assert_eq!(hits(&members, &[0, 1]), [2, 3].into());
    members[0].load.failed(millis(0));
    assert_eq!(hits(&members, &[]), [1].into());
    members[1] = Arc::new(Endpoint { load: Load::new(Duration::ZERO), weight: 1, draining: true });
    assert_eq!(hits(&members, &[]), [2, 3].into());
    // Nobody is fit: one that leaves is better than one that fails.
    members[2].load.failed(millis(0));
    members[3].load.failed(millis(0));
    assert_eq!(hits(&members, &[]), [1].into());
}

#[test]
fn of_a_sticky_set_the_first_that_is_fit_is_taken() {
    let order = Order { near: 0, sticky: true };
    let members = [endpoint(1), endpoint(1), endpoint(1)];
    let chosen = |tried: &[usize], now| choose(&members, order, millis(now), 77, tried);
    // However much it holds.
    (0..1000).for_each(|_| members[0].load.begin());
    assert_eq!((chosen(&[], 1), chosen(&[0], 1)), (Some(0), Some(1)));
    members[0].load.failed(millis(0));
    assert_eq!(chosen(&[], 500), Some(1));
    // Its back-off has ended: one request finds out.
    assert_eq!((chosen(&[], 1000), chosen(&[], 1000)), (Some(0), Some(1)));
}
