use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use proptest::prelude::*;

use super::*;
use crate::identity::Identity;
use crate::request::RequestView;
use crate::route::{Match, PathMatch};

fn admits(rate: &Rate, cell: &Cell, now: Duration) -> bool {
    matches!(rate.check(cell, now), Decision::Admit { .. })
}

#[test]
fn a_burst_then_the_even_rate() {
    let rate = Rate { requests: 10, per: Duration::from_secs(1), burst: 3 };
    let cell = Cell::default();
    let at = |millis| Duration::from_secs(7) + Duration::from_millis(millis);
    let reset = |millis| Duration::from_millis(millis);
    assert_eq!(rate.check(&cell, at(0)), Decision::Admit { remaining: 2, reset: reset(100) });
    assert_eq!(rate.check(&cell, at(0)), Decision::Admit { remaining: 1, reset: reset(200) });
    assert_eq!(rate.check(&cell, at(0)), Decision::Admit { remaining: 0, reset: reset(300) });
    assert_eq!(rate.check(&cell, at(0)), Decision::Limit { retry_after: reset(100) });
    assert_eq!(rate.check(&cell, at(60)), Decision::Limit { retry_after: reset(40) });
    assert_eq!(rate.check(&cell, at(100)), Decision::Admit { remaining: 0, reset: reset(300) });
    assert!(!cell.is_whole(at(399)) && cell.is_whole(at(400)));
    assert_eq!(rate.check(&cell, at(5000)), Decision::Admit { remaining: 2, reset: reset(100) });
}

#[test]
fn edges_of_the_numbers() {
    let cell = Cell::default();
    let never = Rate { requests: 0, per: Duration::from_secs(1), burst: 5 };
    assert!(!admits(&never, &cell, Duration::ZERO));
    let extreme = Rate { requests: u64::MAX, per: Duration::from_nanos(1), burst: u64::MAX };
    assert!(admits(&extreme, &cell, Duration::MAX));
    let slow = Rate { requests: 1, per: Duration::MAX, burst: 1 };
    let cell = Cell::default();
    assert!(admits(&slow, &cell, Duration::ZERO));
    assert!(!admits(&slow, &cell, Duration::from_secs(1)));
    // 0 at once could never admit any: it counts as 1.
    let rate = Rate { requests: 1, per: Duration::from_secs(1), burst: 0 };
    assert!(admits(&rate, &Cell::default(), Duration::ZERO));
}

#[test]
fn a_lower_limit_forgives_what_a_higher_one_had_counted() {
    let cell = Cell::default();
    let hour = Rate { requests: 1, per: Duration::from_hours(1), burst: 5 };
    while admits(&hour, &cell, Duration::ZERO) {}
    let second = Rate { requests: 10, per: Duration::from_secs(1), burst: 5 };
    let Decision::Limit { retry_after } = second.check(&cell, Duration::ZERO) else { panic!("it is used up") };
    assert!(retry_after <= Duration::from_millis(100), "{retry_after:?}");
}

proptest! {
    /// Over every span: admitted <= rate x time + burst; and a client that asks all the time gets the floor of the rate.
    #[test]
    fn admits_the_rate_and_the_burst_and_no_more(
        requests in 1u64..2000,
        per_ms in prop_oneof![Just(1000u64), Just(60_000), 1u64..5000],
        burst in 1u64..50,
        gaps in prop::collection::vec(prop_oneof![Just(0u64), 0u64..2_000_000, 0u64..500_000_000], 1..400),
    ) {
        let rate = Rate { requests, per: Duration::from_millis(per_ms), burst };
        let cell = Cell::default();
        let mut now = Duration::from_secs(3);
        let mut admitted = Vec::new();
        for gap in gaps {
            now += Duration::from_nanos(gap);
            match rate.check(&cell, now) {
                Decision::Admit { remaining, .. } => {
                    prop_assert!(remaining < burst);
                    admitted.push(now);
                }
                Decision::Limit { retry_after } => {
                    prop_assert!(retry_after > Duration::ZERO);
                    // Asking again then is admitted, and just before is not.
                    let later = Cell(AtomicU64::new(cell.0.load(Ordering::Relaxed)));
                    let early = now + retry_after.saturating_sub(Duration::from_nanos(2));
                    prop_assert!(retry_after < Duration::from_nanos(2) || !admits(&rate, &later, early));
                    prop_assert!(admits(&rate, &later, now + retry_after));
                }
            }
        }
        for (from, start) in admitted.iter().enumerate() {
            for (to, end) in admitted.iter().enumerate().skip(from) {
                let allowed = end.saturating_sub(*start).as_nanos() * u128::from(requests) / (u128::from(per_ms) * 1_000_000);
                prop_assert!((to - from + 1) as u128 <= allowed + u128::from(burst));
            }
        }
    }

    /// The greediest client there is: asks again at the very moment that it was told.
    #[test]
    fn who_keeps_to_retry_after_gets_no_more_than_the_rate(
        requests in 1u64..1_000_000,
        per_ms in prop_oneof![Just(1000u64), 1u64..5000],
        burst in 1u64..5,
    ) {
        let rate = Rate { requests, per: Duration::from_millis(per_ms), burst };
        let cell = Cell::default();
        let (mut now, mut admitted) = (Duration::ZERO, 0u128);
        while admitted < 2000 {
            match rate.check(&cell, now) {
                Decision::Admit { .. } => admitted += 1,
                Decision::Limit { retry_after } => now += retry_after,
            }
            let even = now.as_nanos() * u128::from(requests) / (u128::from(per_ms) * 1_000_000);
            prop_assert!(admitted <= even + u128::from(burst), "{} at {:?}", admitted, now);
        }
    }

    #[test]
    fn whoever_asks_all_the_time_gets_all_of_it(
        requests in 1u64..200_000,
        per_ms in prop_oneof![Just(1000u64), 1u64..5000],
        // With a burst of 1 a client would have to ask at the very nanosecond.
        burst in 2u64..20,
    ) {
        let rate = Rate { requests, per: Duration::from_millis(per_ms), burst };
        let cell = Cell::default();
        let step = Duration::from_nanos(per_ms * 1_000_000 / requests / 3 + 1);
        let (mut now, mut admitted) = (Duration::ZERO, 0u128);
        for _ in 0..3000 {
            admitted += u128::from(admits(&rate, &cell, now));
            now += step;
        }
        let last = now.saturating_sub(step);
        // The interval that the limit is rounded to, in 1/64 ns: the limit's own, up to one part in so many.
        let interval = (u128::from(per_ms) * 64_000_000).div_ceil(u128::from(requests));
        let floor = last.as_nanos() * 64 / interval;
        prop_assert!(admitted >= (floor + u128::from(burst) - 1).min(3000), "{admitted} of {floor} + {burst}");
    }
}

#[test]
fn threads_together_get_no_more_than_the_limit() {
    let rate = Rate { requests: 1000, per: Duration::from_secs(1000), burst: 500 };
    let cell = Cell::default();
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    admitted.fetch_add(u64::from(admits(&rate, &cell, Duration::from_secs(9))), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 500);
}

fn client(number: usize) -> Identity {
    Identity::new("cluster.local", "shop", &format!("client-{number}")).unwrap()
}

fn limiter(key: Key, max_keys: usize) -> Limiter {
    let rate = Rate { requests: 1, per: Duration::from_secs(1), burst: 1 };
    Limiter::with_max_keys("limit", rate, key, Vec::new(), max_keys)
}

#[test]
fn keys_have_cells_of_their_own() {
    let limit = limiter(Key::ClientIdentity, 10);
    let (one, two, plain) = (limit.cell(Some(&client(1))), limit.cell(Some(&client(2))), limit.cell(None));
    assert!(Arc::ptr_eq(&one, &limit.cell(Some(&client(1)))));
    for cell in [&one, &two, &plain] {
        assert!(admits(&limit.rate, cell, Duration::ZERO));
        assert!(!admits(&limit.rate, cell, Duration::ZERO));
    }
    let limit = limiter(Key::Service, 10);
    assert!(Arc::ptr_eq(&limit.cell(Some(&client(1))), &limit.cell(None)));
}

#[test]
fn the_table_of_keys_is_bounded_and_forgets_only_what_is_whole_and_unused() {
    let limit = limiter(Key::ClientIdentity, 3);
    let at = Duration::from_secs;
    let kept = limit.cell_at(Some(&client(0)), at(1));
    assert!(admits(&limit.rate, &limit.cell_at(Some(&client(1)), at(9)), at(9)));
    drop(limit.cell_at(Some(&client(2)), at(9)));
    assert_eq!(limit.keys(), 3);
    // Client 2's is whole and unused; client 0's is in use, client 1's is not whole.
    drop(limit.cell_at(Some(&client(3)), at(9)));
    assert_eq!((limit.keys(), limit.bound_hits()), (3, 0));
    assert!(Arc::ptr_eq(&kept, &limit.cell_at(Some(&client(0)), at(9))));
    // Swept just now: who finds it full is counted with others, and that is counted.
    let first = limit.cell_at(Some(&client(4)), at(9));
    let second = limit.cell_at(Some(&client(5)), at(9));
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!((limit.keys(), limit.bound_hits()), (3, 2));
    // A second later there is room again.
    assert!(!Arc::ptr_eq(&first, &limit.cell_at(Some(&client(4)), at(11))));
    assert_eq!(limit.bound_hits(), 2);
}

#[test]
fn an_edit_keeps_the_counters() {
    let old = limiter(Key::ClientIdentity, 3);
    let cell = old.cell(Some(&client(1)));
    let edited = limiter(Key::ClientIdentity, 3).keeping(&old);
    assert!(Arc::ptr_eq(&cell, &edited.cell(Some(&client(1)))));
    let other_key = limiter(Key::Service, 3).keeping(&old);
    assert!(!Arc::ptr_eq(&old.cell(None), &other_key.cell(None)));
}

#[test]
fn no_spelling_of_a_path_escapes() {
    let matches = vec![Match { path: Some(PathMatch::Prefix("/api".into())), ..Match::default() }];
    let rate = Rate { requests: 1, per: Duration::from_secs(1), burst: 1 };
    let limit = Limiter::new("limit", rate, Key::Service, matches);
    let headers = HeaderMap::new();
    for (path, yes) in [
        ("/api", true),
        ("/api/x", true),
        ("//api/x", true),
        ("/%61pi/x", true),
        ("/y/../api", true),
        ("/api%2fx", true),
        ("/y%2f..%2fapi", true),
        ("/%00", true),
        ("/apis", false),
        ("/", false),
    ] {
        let request = RequestView { method: &Method::GET, path, query: None, headers: (&headers).into() };
        assert_eq!(limit.applies(&request), yes, "{path}");
    }
}

#[test]
fn clients_are_told_in_the_drafts_form() {
    let rate = Rate { requests: 100, per: Duration::from_mins(1), burst: 2 };
    let limit = Limiter::new("per-client", rate, Key::Service, Vec::new());
    assert_eq!(limit.policy_header(), "\"per-client\";q=100;w=60");
    let cell = limit.cell(None);
    assert_eq!(limit.status_header(&limit.check(&cell, Duration::ZERO)), "\"per-client\";r=1;t=1");
    limit.check(&cell, Duration::ZERO);
    assert_eq!(limit.status_header(&limit.check(&cell, Duration::ZERO)), "\"per-client\";r=0;t=1");
    let short = Limiter::new("short", Rate { per: Duration::from_millis(100), ..rate }, Key::Service, Vec::new());
    assert_eq!(short.policy_header(), "\"short\";q=100");
    assert_eq!((whole_seconds(Duration::from_millis(1200)), whole_seconds(Duration::ZERO)), (2, 1));
}
