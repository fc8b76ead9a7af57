//! Who is not believed any more: no handshake with him ends well, and what he has open ends.
//!
//! Invariants
//! - A connection is known here before its peer is looked up: who is revoked meanwhile is found by the one or by the other.
//! - A change wakes the connections that it ends, and no others. Once it is told it is in force; control is told so afterwards.
//! - Costs an open connection one entry, and the look at one flag each time that it moves.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use weft_api::convert;
use weft_certs::revoked::{Denied, DenyList, Serial};
use weft_certs::tls::Leaf;
use weft_engine::identity::Identity;

/// Entries of ended connections are looked for from so many on.
const SWEEP_AT: usize = 64;

/// The list, and the connections that it may end.
#[derive(Debug, Default)]
pub struct Revoked {
    denied: Denied,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    peers: Vec<Weak<Known>>,
    sweep_at: usize,
}

/// What the peer of a connection has proved.
pub struct Known {
    identity: Identity,
    serial: Serial,
    revoked: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({} serial {})", self.identity, self.serial)
    }
}

impl Known {
    /// Whether he is not believed any more.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        if let Some(waiting) = self.waiting.lock().take() {
            waiting.wake();
        }
    }
}

/// A connection's own hold of what its peer has proved. One task waits by it at a time.
#[derive(Debug)]
pub struct Proof {
    known: Arc<Known>,
    // What was left to be woken, so that it is not asked anew each time.
    waiting: Option<Waker>,
    /// How long both certificates were good for when it was made.
    pub left: Duration,
}

impl Proof {
    /// For those who only ask.
    pub fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// Ready once the peer is not believed any more.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(cx.waker())) {
            self.waiting = Some(cx.waker().clone());
            // Left before the look: a change in between would wake nobody.
            *self.known.waiting.lock() = Some(cx.waker().clone());
        }
        if self.known.is_revoked() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Returns once the peer is not believed any more; never where nothing was proved.
pub async fn revoked(proof: &mut Option<Proof>) {
    poll_fn(|cx| proof.as_mut().map_or(Poll::Pending, |proof| proof.poll_revoked(cx))).await;
}

impl Revoked {
    /// What handshakes ask.
    pub fn denied(&self) -> &Denied {
        &self.denied
    }

    /// Takes another list, and ends what is open of those who are on it; says how many that are.
    pub fn tell(&self, told: &convert::Revoked) -> usize {
        let serials = told.serials.iter().map(|serial| Serial::of(serial));
        let list = Arc::new(DenyList::new(told.identities.iter().cloned(), serials));
        self.denied.set(Arc::clone(&list));
        let open = self.open.lock();
        let peers = open.peers.iter().filter_map(Weak::upgrade);
        let revoked = peers.filter(|peer| !peer.is_revoked() && list.has(&peer.identity, peer.serial.bytes()));
        revoked.map(|peer| peer.revoke()).count()
    }

    /// A handshake has ended well: what its peer has shown, while our own certificate ends then. `None`: he is not believed any more.
    pub fn admit(&self, shown: Leaf, own: SystemTime, now: SystemTime) -> Option<Proof> {
        let left = own.min(shown.not_after).duration_since(now).unwrap_or_default();
        let Leaf { identity, number: serial, .. } = shown;
        let known = Arc::new(Known { identity, serial, revoked: AtomicBool::new(false), waiting: Mutex::new(None) });
        self.open.lock().add(&known);
        let denied = self.denied.has(&known.identity, known.serial.bytes());
        (!denied).then(|| Proof { known, waiting: None, left })
    }

    /// Whether this certificate of this identity is not believed any more.
    pub fn has(&self, identity: &Identity, serial: &str) -> bool {
        self.denied.now().has_written(identity, serial)
    }

    /// Entries of the list.
    pub fn len(&self) -> usize {
        self.denied.now().len()
    }

    /// Whether nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Open {
    // At most as many ended ones as open ones are kept.
    fn add(&mut self, known: &Arc<Known>) {
        if self.peers.len() >= self.sweep_at.max(SWEEP_AT) {
            self.peers.retain(|peer| peer.strong_count() > 0);
            self.sweep_at = self.peers.len() * 2;
        }
        self.peers.push(Arc::downgrade(known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: Duration = Duration::from_secs(100);

    fn shown(account: &str, serial: &str, now: SystemTime) -> Leaf {
        let identity = Identity::new("cluster.local", "shop", account).unwrap();
        let number = serial.parse().unwrap();
        Leaf { identity, pod: None, serial: serial.to_owned(), number, not_before: now, not_after: now + LEFT }
    }

    fn told(identities: &[&str], serials: &[&'static [u8]]) -> convert::Revoked {
        let identities = identities.iter().map(|account| Identity::new("cluster.local", "shop", account).unwrap());
        let serials = serials.iter().map(|serial| bytes::Bytes::from_static(serial));
        convert::Revoked { identities: identities.collect(), serials: serials.collect() }
    }

    #[tokio::test]
    async fn a_change_ends_those_that_it_names_and_wakes_no_others() {
        let (all, now) = (Revoked::default(), SystemTime::now());
        let admit = |account, serial| Some(all.admit(shown(account, serial, now), now + 2 * LEFT, now).unwrap());
        let (mut web, mut cart, mut stolen) = (admit("web", "01"), admit("cart", "02"), admit("cart", "03"));
        assert_eq!(web.as_ref().unwrap().left, LEFT);
        let waits = async |proof: &mut Option<Proof>| {
            tokio::time::timeout(Duration::from_millis(20), revoked(proof)).await.is_err()
        };
        assert!(waits(&mut web).await && waits(&mut cart).await && waits(&mut stolen).await);
        let waiting = tokio::spawn(async move { revoked(&mut web).await });
        tokio::task::yield_now().await;
        assert_eq!(all.tell(&told(&["web"], &[&[3]])), 2);
        waiting.await.unwrap();
        assert!(!waits(&mut stolen).await && waits(&mut cart).await);
        // Said again it ends nothing; who comes now is not let in, whichever it is that is revoked.
        assert_eq!(all.tell(&told(&["web"], &[&[3]])), 0);
        assert!(all.admit(shown("web", "04", now), now + LEFT, now).is_none());
        assert!(all.admit(shown("other", "0003", now), now + LEFT, now).is_none());
        assert_eq!(all.tell(&told(&[], &[])), 0);
        assert!(all.admit(shown("web", "04", now), now + LEFT, now).is_some());
        waits(&mut None).await;
    }

    #[test]
    fn ended_connections_are_forgotten() {
        let (all, now) = (Revoked::default(), SystemTime::now());
        let keep: Vec<_> = (0..100).map(|_| all.admit(shown("web", "01", now), now, now)).collect();
        for _ in 0..10_000 {
            drop(all.admit(shown("web", "01", now), now, now));
        }
        assert!(all.open.lock().peers.len() <= 200, "{}", all.open.lock().peers.len());
        assert_eq!(all.tell(&told(&["web"], &[])), keep.len());
    }
}
