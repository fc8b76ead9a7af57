//! Who we are: the proxy's own certificate, from its first issue through every renewal.
//!
//! - [`IdentityStore`]: what the data path reads, one atomic load.
//! - [`renew`]: the task that asks for certificates, on the admin thread.
//! - [`authority`]: how control is asked.
//! - [`check`]: a new certificate proves itself in memory before it takes the place of the old one.
//! - [`trust`]: whose certificates are believed, ours and others'; [`given`]: the part of it that the process was given; [`revoked`]: whose are
//!   not any more.
//! - [`keep`]: all of it together, as the admin thread runs it.
//! - [`workload_api`]: an application's own certificate, over SPIFFE's Workload API; and ours over the same, from others.
//!
//! Invariants
//! - A key is made here, taken into use with one certificate, and never crosses the network. (With `--svid-from` whoever gives us certificates makes
//!   the keys, on this machine.)
//! - The old certificate serves until the new one has proved itself; a failed renewal changes nothing.
//! - An expired certificate is never used: from that moment [`IdentityStore::current`] answers [`Reason::IdentityExpired`].

pub mod authority;
pub mod check;
pub mod given;
pub mod keep;
pub mod renew;
pub mod revoked;
pub mod trust;
pub mod workload_api;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::{Notify, watch};
use weft_certs::svid::{Life, Lives, Svid};
use weft_certs::tls::{self, ClientAuth, Roots, TlsError};
use weft_engine::identity::Identity;
use weft_engine::reason::Reason;

use self::check::check;
use self::trust::Believed;

/// ALPN of HTTP/1 between sidecars.
pub const ALPN_H1: &[u8] = b"weft1-h1";
/// ALPN of HTTP/2 between sidecars.
pub const ALPN_H2: &[u8] = b"weft1-h2";
/// ALPN of opaque bytes between sidecars.
pub const ALPN_TCP: &[u8] = b"weft1-tcp";

/// A certificate in use, as rustls configurations. New connections take the newest; older ones keep theirs.
pub struct Current {
    /// Whom it proves, under the name that our trust domain has in it.
    pub identity: Identity,
    /// Serial number of the leaf, lower-case hex.
    pub serial: Arc<str>,
    /// SHA-256 of the public key, lower-case hex: shows that each renewal has a key of its own.
    pub key_id: Arc<str>,
    /// For inbound mesh connections: client certificate required, all three protocols.
    pub server: Arc<ServerConfig>,
    /// For outbound ones that speak HTTP/1. The caller compares the server's identity before the first byte.
    pub client_h1: Arc<ClientConfig>,
    /// For outbound ones that speak HTTP/2.
    pub client_h2: Arc<ClientConfig>,
    /// For outbound ones of opaque bytes.
    pub client_tcp: Arc<ClientConfig>,
    /// For the connection to control.
    pub control: Arc<ClientConfig>,
    /// When it ends.
    pub not_after: SystemTime,
    /// When it and those that it leads to are valid.
    pub lives: Lives,
    /// Whether it leads to what is believed: else whoever is told the same as we refuses it.
    pub believed: bool,
    /// The key and the chain.
    svid: Arc<Svid>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Current({} serial {} until {:?})", self.identity, self.serial, self.not_after)
    }
}

impl Current {
    /// Makes the configurations of a certificate whose peers, control among them, are verified by `roots`.
    pub fn new(svid: Arc<Svid>, roots: &Roots) -> Result<Self, TlsError> {
        let trust_domain = &svid.identity().trust_domain;
        let client = |alpn: &[u8]| tls::client_config(Some(&svid), roots, &[alpn], trust_domain);
        let alpn = [ALPN_H2, ALPN_H1, ALPN_TCP];
        Ok(Self {
            identity: svid.identity().clone(),
            serial: svid.serial().into(),
            key_id: svid.key_id().into(),
            server: tls::server_config(&svid, roots, &alpn, ClientAuth::Required, trust_domain)?,
            client_h1: client(ALPN_H1)?,
            client_h2: client(ALPN_H2)?,
            client_tcp: client(ALPN_TCP)?,
            control: tls::control_client_config(Some(&svid), roots, trust_domain)?,
            not_after: svid.not_after(),
            lives: svid.lives(),
            believed: true,
            svid,
        })
    }

    /// The same for what is believed of peers and of control.
    pub fn believing(svid: Arc<Svid>, believed: &Believed) -> Result<Self, TlsError> {
        Self::new(svid, &believed.peers)?.with_control(believed)
    }

    /// Where control's own certificate leads to other roots than those of peers do, or is in another name of the trust domain than ours is.
    pub fn with_control(mut self, believed: &Believed) -> Result<Self, TlsError> {
        self.control = tls::control_client_config(Some(&self.svid), &believed.control, &believed.domain)?;
        Ok(self)
    }
}

/// Holds the certificate in use.
pub struct IdentityStore {
    current: ArcSwapOption<Current>,
    /// Held while one is made from the one before.
    changing: Mutex<()>,
    changes: watch::Sender<u64>,
    /// Tells that the certificate in use is not believed any more.
    disbelieved: Notify,
    /// What became of renewals, for metrics.
    pub counters: Counters,
}

impl Default for IdentityStore {
    fn default() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            changing: Mutex::new(()),
            changes: watch::Sender::new(0),
            disbelieved: Notify::new(),
            counters: Counters::default(),
        }
    }
}

impl IdentityStore {
    /// The certificate in use; [`Reason::IdentityExpired`] if there is none yet or it has expired.
    pub fn current(&self) -> Result<Arc<Current>, Reason> {
        self.current_at(SystemTime::now())
    }

    /// [`IdentityStore::current`] at a given time.
    pub fn current_at(&self, now: SystemTime) -> Result<Arc<Current>, Reason> {
        self.current.load_full().filter(|current| now < current.not_after).ok_or(Reason::IdentityExpired)
    }

    /// When the certificates in use are valid, by their metric's label. One that has expired is told of, too: nothing has taken its place.
    pub fn lives(&self) -> impl Iterator<Item = (&'static str, Life)> {
        let lives = self.current.load().as_ref().map(|current| current.lives);
        lives.into_iter().flat_map(|Lives { leaf, issuer, root }| {
            let all = [("leaf", Some(leaf)), ("issuer", issuer), ("root", root)];
            all.into_iter().filter_map(|(label, life)| Some((label, life?)))
        })
    }

    /// Changes whenever a certificate is taken into use; the value is how many have been.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The same certificate, with what is believed now.
    ///
    /// # Errors
    /// [`TlsError`]: the one before goes on.
    pub fn believe(&self, believed: &Believed) -> Result<(), TlsError> {
        let _changing = self.changing.lock();
        if let Some(current) = self.current.load_full() {
            let mut again = Current::believing(Arc::clone(&current.svid), believed)?;
            again.believed = check(&again).is_ok();
            let disbelieved = !again.believed;
            self.current.store(Some(Arc::new(again)));
            if disbelieved {
                self.disbelieved.notify_waiters();
            }
        }
        Ok(())
    }

    /// Takes a certificate into use.
    pub fn install(&self, current: Arc<Current>) {
        let _changing = self.changing.lock();
        self.current.store(Some(current));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns when the certificate in use is not believed: the roots or the name that it is of were exchanged while its proxy was away.
    pub async fn disbelieved(&self) {
        loop {
            let told = self.disbelieved.notified();
            if self.current.load().as_ref().is_some_and(|current| !current.believed) {
                return;
            }
            told.await;
        }
    }
}

macro_rules! failures {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        /// Why a certificate could not be had.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failure { $($(#[$doc])* $name,)* }

        impl Failure {
            /// Every failure, in the order of declaration.
            pub const ALL: &'static [Failure] = &[$(Failure::$name,)*];

            /// The value of the metric's label.
            pub const fn code(self) -> &'static str {
                match self { $(Failure::$name => $code,)* }
            }
        }
    };
}

failures! {
    /// Control cannot be reached, or did not answer in time.
    Unreachable = "unreachable";
    /// Control refused the token, the certificate or the request.
    Refused = "refused";
    /// Control answered that it has too much to do.
    Busy = "busy";
    /// The token's file cannot be read, or there is neither token nor valid certificate.
    NoCredential = "no_credential";
    /// Control's answer is no certificate for our key and identity.
    BadAnswer = "bad_answer";
    /// The new certificate did not pass a handshake with itself.
    SelfCheck = "self_check";
    /// This machine could not make a key or a configuration.
    Internal = "internal";
}

/// What became of renewals. Counts only grow.
#[derive(Default)]
pub struct Counters {
    issued: AtomicU64,
    failed: [AtomicU64; Failure::ALL.len()],
    not_saved: AtomicU64,
}

impl Counters {
    /// Certificates had from control, the first included; one found on disk is not counted.
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// Failed attempts, by reason.
    pub fn failed(&self, failure: Failure) -> u64 {
        self.failed[failure as usize].load(Ordering::Relaxed)
    }

    /// Certificates that are in use but could not be written to the state directory.
    pub fn not_saved(&self) -> u64 {
        self.not_saved.load(Ordering::Relaxed)
    }

    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn count_failure(&self, failure: Failure) {
        Self::add(&self.failed[failure as usize]);
    }
}

#[cfg(test)]
mod tests;
