//! Whom we believe: the roots that control has told, and until then those that the process was given.
//!
//! Invariants
//! - What control says is in force for every connection that begins after it was applied; it closes none.
//! - Control itself is believed by what the process was given too: one whose saved roots are of the past finds those of today there, and one
//!   that was given those of the past has been told today's.
//! - Never nobody: what cannot be used is refused before it gets here, and what was in force stays.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::watch;
use weft_api::convert;
use weft_certs::tls::{Roots, TlsError};

/// Roots, as they are used.
#[derive(Clone, Debug)]
pub struct Believed {
    /// For peers.
    pub peers: Roots,
    /// For control.
    pub control: Roots,
}

/// What is believed now.
#[derive(Debug)]
pub struct Trust {
    domain: Arc<str>,
    given: Roots,
    now: ArcSwap<Believed>,
    bundle: watch::Sender<Bytes>,
}

impl Trust {
    /// What the process was given: roots, and the same as a bundle.
    pub fn new(domain: Arc<str>, given: Roots, bundle: Bytes) -> Self {
        let believed = Believed { peers: given.clone(), control: given.clone() };
        Self { domain, given, now: ArcSwap::from_pointee(believed), bundle: watch::Sender::new(bundle) }
    }

    /// What is believed now.
    pub fn now(&self) -> Arc<Believed> {
        self.now.load_full()
    }

    /// The roots of our own domain, and each change of them, as SPIFFE has bundles: DER, one behind the other.
    pub fn bundle(&self) -> watch::Receiver<Bytes> {
        self.bundle.subscribe()
    }

    /// Believes what control says.
    ///
    /// # Errors
    /// [`TlsError`]: nothing has changed.
    pub fn tell(&self, told: &convert::Trust) -> Result<(), TlsError> {
        if told.bundles.is_empty() {
            return Ok(());
        }
        let peers = usable(told, &self.domain)?;
        let control = peers.own_and(&self.given);
        self.now.store(Arc::new(Believed { peers, control }));
        if let Some(roots) = told.bundles.get(&self.domain) {
            let bundle = Bytes::from(roots.concat());
            self.bundle.send_if_modified(|before| std::mem::replace(before, bundle.clone()) != bundle);
        }
        Ok(())
    }
}

/// The roots as the handshake takes them.
///
/// # Errors
/// [`TlsError`]: something among them is no root certificate.
pub fn usable(told: &convert::Trust, own: &str) -> Result<Roots, TlsError> {
    Roots::of_domains(own, &told.bundles)
}
