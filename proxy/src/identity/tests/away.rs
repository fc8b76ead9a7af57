//! The CA is away for ten lives of a leaf, and comes back to hundreds of proxies that have waited for it.

use std::sync::atomic::AtomicBool;

use futures_util::future::{join_all, select};

use super::*;

/// Proxies that wait.
const PROXIES: usize = 300;
/// Short, so that all renewals begin within little more than a second: without jitter all would come back so.
const LEAF: Duration = Duration::from_secs(10);
/// The longest wait between two attempts, as `docs/identity.md` has it.
const LONGEST: Duration = Duration::from_secs(10);

/// A CA that is away for a while, and knows when it was asked.
struct Sometimes<C> {
    ca: FakeCa<C>,
    away: AtomicBool,
    failure: Failure,
    life: Mutex<Duration>,
    asked: Mutex<Vec<Instant>>,
}

impl<C: Fn() -> SystemTime + Sync> Authority for Sometimes<C> {
    async fn create(&self, csr: String, _: Credential) -> Result<Vec<String>, AskError> {
        self.asked.lock().push(Instant::now());
        if self.away.load(Ordering::Relaxed) {
            return Err(AskError { failure: self.failure, message: "away".into() });
        }
        let life = *self.life.lock();
        Ok(self.ca.issue(&csr, &web(), life))
    }
}

/// The most that fall into any second.
fn most_in_a_second(times: &[Instant]) -> usize {
    let within =
        |from: &Instant| times.iter().filter(|time| (*from..*from + Duration::from_secs(1)).contains(time)).count();
    times.iter().map(within).max().unwrap_or_default()
}

async fn ten_lives_without(failure: Failure) {
    let now = clock();
    let away = AtomicBool::new(false);
    // Issued by rustls' clock, which does not run ahead as the test's does.
    let ca = fake(SystemTime::now, &[]);
    let ca = Sometimes { ca, away, failure, life: Mutex::new(LEAF), asked: Mutex::default() };
    let settings = Settings { state_dir: None, ..ca.ca.settings() };
    let stores: Vec<_> = (0..PROXIES).map(|_| IdentityStore::default()).collect();
    let valid = || stores.iter().filter(|store| store.current_at(now()).is_ok()).count();
    let story = async {
        // All at one time, which is the worst case.
        while valid() < PROXIES {
            sleep(Duration::from_millis(10)).await;
        }
        ca.away.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while start.elapsed() + Duration::from_secs(2) < LEAF {
            assert_eq!(valid(), PROXIES, "a leaf serves to its end");
            sleep(Duration::from_millis(500)).await;
        }
        sleep((10 * LEAF).saturating_sub(start.elapsed())).await;
        assert_eq!(valid(), 0);
        // Each waits at least half of the longest wait, so the CA was asked no more than this while it was away.
        let asked = ca.asked.lock().len();
        let rounds = start.elapsed().as_secs_f64() / (LONGEST / 2).as_secs_f64() + 6.0;
        assert!(asked < PROXIES * (rounds as usize + 1) * 2, "{asked} times");

        ca.away.store(false, Ordering::Relaxed);
        *ca.life.lock() = HOUR;
        ca.asked.lock().clear();
        let back = Instant::now();
        while valid() < PROXIES {
            assert!(back.elapsed() <= LONGEST, "{} of {PROXIES} after {:?}", valid(), back.elapsed());
            sleep(Duration::from_millis(10)).await;
        }
        ca.asked.lock().clone()
    };
    let renewals = join_all(stores.iter().map(|store| run(store, store, &settings, &ca, now.clone())));
    let futures_util::future::Either::Left((came, _)) = select(Box::pin(story), renewals).await else {
        unreachable!("renewals never end")
    };
    assert_eq!(came.len(), PROXIES, "who has a certificate asks no more");
    // Whenever a proxy's last attempt was, its next is somewhere in the half of the longest wait that follows.
    let bound = PROXIES as f64 / (LONGEST / 2).as_secs_f64();
    let most = most_in_a_second(&came);
    assert!((most as f64) < 1.5 * bound, "{most} requests in a second, {bound} on the average at most");
    for store in &stores {
        assert_eq!(store.counters.issued(), 2);
        assert_eq!(store.counters.failed(failure), failures(store), "each failure has its reason");
        assert!(failures(store) >= 10, "it has asked {} times in ten lives", failures(store));
    }
}

#[tokio::test(start_paused = true)]
async fn all_recover_within_one_back_off_and_spread_over_it() {
    ten_lives_without(Failure::Unreachable).await;
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_refuses_is_asked_no_more_often() {
    ten_lives_without(Failure::Refused).await;
}
