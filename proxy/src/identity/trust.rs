//! Whom we believe: the roots that control has told, and until then those that the process was given.
//!
//! Invariants
//! - What control says is in force for every connection that begins after it was applied; it closes none.
//! - Control itself is believed by what the process was given too: one whose saved roots are of the past finds those of today there, and one
//!   that was given those of the past has been told today's.
//! - Never nobody: what cannot be used is refused before it gets here, and what was in force stays.

use std::collections::BTreeMap;
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

/// The roots of each trust domain as SPIFFE has bundles: by the domain's SPIFFE ID, in DER, one behind the other.
pub type Bundles = BTreeMap<String, Bytes>;

/// What is believed now.
#[derive(Debug)]
pub struct Trust {
    domain: Arc<str>,
    given: Roots,
    now: ArcSwap<Believed>,
    bundles: watch::Sender<Bundles>,
}

impl Trust {
    /// What the process was given: roots, and the same as the bundle of our own domain.
    pub fn new(domain: Arc<str>, given: Roots, bundle: Bytes) -> Self {
        let believed = Believed { peers: given.clone(), control: given.clone() };
        let bundles = watch::Sender::new(Bundles::from([(spiffe_id(&domain), bundle)]));
        Self { domain, given, now: ArcSwap::from_pointee(believed), bundles }
    }

    /// What is believed now.
    pub fn now(&self) -> Arc<Believed> {
        self.now.load_full()
    }

    /// The roots of our own domain and of those that it is federated with, and each change of them.
    pub fn bundles(&self) -> watch::Receiver<Bundles> {
        self.bundles.subscribe()
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
        let bundle = |(domain, roots): (&Arc<str>, &Vec<Bytes>)| (spiffe_id(domain), Bytes::from(roots.concat()));
        let bundles: Bundles = told.bundles.iter().map(bundle).collect();
        self.bundles.send_if_modified(|before| {
            let new = *before != bundles;
            *before = bundles;
            new
        });
        Ok(())
    }
}

/// What SPIFFE calls a trust domain.
pub fn spiffe_id(domain: &str) -> String {
    format!("spiffe://{domain}")
}

/// The roots as the handshake takes them.
///
/// # Errors
/// [`TlsError`]: something among them is no root certificate.
pub fn usable(told: &convert::Trust, own: &str) -> Result<Roots, TlsError> {
    Roots::of_domains(own, &told.bundles)
}
