//! How the proxy stops: what is in flight is counted, the rest of the proxy hears that it begins. And how it turns requests away before, while
//! its application still runs ([`Drain::turn_away`]).
//!
//! Invariant: a unit of work that holds an [`InFlight`] keeps [`Drain::idle`] waiting; nothing else does.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The state of stopping; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
    count: Arc<Count>,
}

#[derive(Debug, Default)]
struct Count {
    // The token takes a lock to tell, and this is asked once a request.
    begun: AtomicBool,
    in_flight: AtomicUsize,
    zero: Notify,
    // In milliseconds of the proxy's clock; 0: never.
    turns_away_until: AtomicU64,
}

/// One request or connection in flight; it counts until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Count>);

impl Drain {
    /// From now on no new work is taken.
    pub fn begin(&self) {
        self.count.begun.store(true, Ordering::Release);
        self.begun.cancel();
    }

    /// Whether it has begun.
    pub fn begun(&self) -> bool {
        self.count.begun.load(Ordering::Acquire)
    }

    /// Returns once it has begun. Connections poll it beside everything else, and the token's lock is one for all of them: it is asked at
    /// the first poll, and then when it is known to have begun. The task must stay the same.
    pub async fn wait(&self) {
        let mut begun = pin!(self.begun.cancelled());
        let mut asked = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut asked, true) && !self.begun() {
                return Poll::Pending;
            }
            begun.as_mut().poll(cx)
        })
        .await;
    }

    /// Requests that their callers' sidecars can send elsewhere are turned away until then, by the proxy's clock: the application is about to be
    /// stopped, and not all callers know. It ends by itself: an application that is only restarted is served again.
    pub fn turn_away(&self, until: Duration) {
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.count.turns_away_until.fetch_max(until, Ordering::SeqCst);
    }

    /// Whether they are turned away now; the clock is read only if they ever were.
    pub fn turns_away(&self, now: impl FnOnce() -> Duration) -> bool {
        let until = self.count.turns_away_until.load(Ordering::SeqCst);
        until > 0 && now() < Duration::from_millis(until)
    }

    /// Counts one request or connection.
    pub fn guard(&self) -> InFlight {
        self.count.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.count))
    }

    /// Requests and connections in flight.
    pub fn in_flight(&self) -> usize {
        self.count.in_flight.load(Ordering::Relaxed)
    }

    /// Returns once nothing is in flight. More may come afterwards if it has not begun.
    pub async fn idle(&self) {
        loop {
            // Registered before the look, so that no end is missed between the two.
            let zero = self.count.zero.notified();
            tokio::pin!(zero);
            zero.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            zero.await;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.zero.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_away_for_a_while() {
        let (drain, second) = (Drain::default(), Duration::from_secs(1));
        assert!(!drain.turns_away(|| Duration::ZERO));
        drain.turn_away(2 * second);
        // Whoever asks for less takes nothing back.
        drain.turn_away(second);
        assert!(drain.turns_away(|| second) && drain.clone().turns_away(|| second));
        assert!(!drain.turns_away(|| 2 * second) && !drain.begun());
    }

    #[tokio::test]
    async fn waits_for_what_is_in_flight() {
        let drain = Drain::default();
        drain.idle().await;
        let (one, two) = (drain.guard(), drain.clone().guard());
        assert_eq!(drain.in_flight(), 2);
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move {
                drain.wait().await;
                drain.idle().await;
            }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && !drain.begun());
        drain.begin();
        drain.begin();
        assert!(drain.begun());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        waiting.await.unwrap();
        assert_eq!(drain.in_flight(), 0);
    }
}
