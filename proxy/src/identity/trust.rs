//! Whom we believe: the roots that control has told, and until then those that the process was given.
//!
//! Invariants
//! - What control says is in force for every connection that begins after it was applied; it closes none but those of who is revoked.
//! - Control itself is believed by what the process was given too: one whose saved roots are of the past finds those of today there, and one
//!   that was given those of the past has been told today's.
//! - What control, once it has proved itself, sends with our certificate is believed until it says more: the root, and the name that our
//!   trust domain has in it.
//! - Whatever our own trust domain is called, and whichever of its names the process was started with: here it is known by that one alone.
//! - Never nobody: what cannot be used is refused before it gets here, and what was in force stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use weft_api::convert;
use weft_certs::revoked::Denied;
use weft_certs::tls::{Leaf, Roots, TlsError};

use super::revoked::Revoked;
use crate::Shared;

/// Roots, as they are used.
#[derive(Clone, Debug)]
pub struct Believed {
    /// For peers.
    pub peers: Roots,
    /// For control, which is known by the name that the process was started with.
    pub control: Roots,
    /// That name.
    pub domain: Arc<str>,
}

/// The roots of each trust domain as SPIFFE has bundles: by the domain's SPIFFE ID, in DER, one behind the other.
pub type Bundles = BTreeMap<String, Bytes>;

/// What is believed now.
#[derive(Debug)]
pub struct Trust {
    domain: Arc<str>,
    parts: Mutex<Parts>,
    now: ArcSwap<Believed>,
    /// Who of those is not believed any more.
    pub revoked: Revoked,
    bundles: watch::Sender<Bundles>,
}

/// What came with a certificate from control.
#[derive(Clone, Debug)]
pub struct Vouched {
    /// The root of its chain.
    pub root: Roots,
    /// What our trust domain is called in it.
    pub name: Arc<str>,
}

/// What it is made of.
#[derive(Clone, Debug)]
struct Parts {
    domain: Arc<str>,
    given: Roots,
    told: Option<Roots>,
    // Of our own domain, for peers alone: further ones that control has told, and those of the Workload API that our certificate comes from.
    svid: Option<Roots>,
    agent: Option<Roots>,
    vouched: Option<Vouched>,
    denied: Denied,
}

impl Parts {
    fn together(&self) -> Believed {
        let peers = self.told.as_ref().unwrap_or(&self.given);
        let peers = match &self.vouched {
            Some(Vouched { root, name }) => peers.with(root).also_called(name),
            None => peers.clone(),
        };
        let control = peers.own_and(&self.given);
        let further = [&self.svid, &self.agent].into_iter().flatten();
        let peers = further.fold(peers, |peers, further| peers.with(further));
        Believed { peers: peers.denying(&self.denied), control, domain: Arc::clone(&self.domain) }
    }
}

impl Trust {
    /// What the process was given: roots, and the same as the bundle of our own domain.
    pub fn new(domain: Arc<str>, given: Roots, bundle: Bytes) -> Self {
        let revoked = Revoked::default();
        let (denied, given) = (revoked.denied().clone(), only(&domain, given));
        let parts =
            Parts { domain: Arc::clone(&domain), given, told: None, svid: None, agent: None, vouched: None, denied };
        let bundles = watch::Sender::new(Bundles::from([(spiffe_id(&domain), bundle)]));
        let now = ArcSwap::from_pointee(parts.together());
        Self { domain, parts: Mutex::new(parts), now, revoked, bundles }
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
        let names = [&told.own].into_iter().chain(&told.aliases).cloned().collect();
        let peers = usable(told)?.called(Arc::clone(&self.domain), names);
        let svid = match &*told.svid_roots {
            [] => None,
            roots => Some(Roots::from_der(&roots.concat())?),
        };
        self.change(|parts| (parts.told, parts.svid, parts.vouched) = (Some(peers), svid, None));
        let bundle = |(domain, roots): (&Arc<str>, &Vec<Bytes>)| (spiffe_id(domain), Bytes::from(roots.concat()));
        let own = told.bundles.get(&told.own);
        let aliases = told.aliases.iter().filter_map(|alias| Some(bundle((alias, own?))));
        self.publish(told.bundles.iter().map(bundle).chain(aliases).collect());
        Ok(())
    }

    /// Who a peer is to us: of our own trust domain under the name by which we know it.
    pub fn known(&self, leaf: Leaf) -> Leaf {
        Leaf { identity: self.now.load().peers.known(leaf.identity), ..leaf }
    }

    /// What would be believed with what control's CA has sent with our certificate.
    pub fn vouching(&self, vouched: &Vouched) -> Believed {
        Parts { vouched: Some(vouched.clone()), ..self.parts.lock().clone() }.together()
    }

    /// Believes for peers the roots that the Workload API has given with our certificate, beside those that control tells.
    pub fn agent(&self, roots: Roots) {
        self.change(|parts| parts.agent = Some(roots));
    }

    /// Believes that until control says more: who was given the roots before they were exchanged, or started with another name of the mesh,
    /// and comes meanwhile, could use no certificate otherwise.
    pub fn vouch(&self, vouched: Vouched) {
        self.change(|parts| parts.vouched = Some(vouched));
    }

    /// The file that the process was given says something else.
    pub fn give(&self, given: Roots, bundle: Bytes) {
        let told = self.change(|parts| {
            parts.given = only(&self.domain, given);
            parts.told.is_some()
        });
        if !told {
            self.publish(Bundles::from([(spiffe_id(&self.domain), bundle)]));
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Parts) -> T) -> T {
        let mut parts = self.parts.lock();
        let changed = change(&mut parts);
        self.now.store(Arc::new(parts.together()));
        changed
    }

    fn publish(&self, bundles: Bundles) {
        self.bundles.send_if_modified(|before| {
            let new = *before != bundles;
            *before = bundles;
            new
        });
    }
}

/// What is believed now is what every connection begins with from here on.
///
/// # Errors
/// [`TlsError`]: what was in force goes on.
pub fn enforce(shared: &Shared) -> Result<(), TlsError> {
    let believed = shared.trust.now();
    [&shared.identity, &shared.application].into_iter().try_for_each(|store| store.believe(&believed))
}

/// Roots of a domain that has one name.
fn only(domain: &Arc<str>, roots: Roots) -> Roots {
    roots.called(Arc::clone(domain), vec![Arc::clone(domain)])
}

/// What SPIFFE calls a trust domain.
pub fn spiffe_id(domain: &str) -> String {
    format!("spiffe://{domain}")
}

/// The roots as the handshake takes them.
///
/// # Errors
/// [`TlsError`]: something among them is no root certificate.
pub fn usable(told: &convert::Trust) -> Result<Roots, TlsError> {
    Roots::of_domains(&told.own, &told.bundles)
}
