//! The trust domain's certificate authority.
//!
//! A long-lived root signs an issuer, the issuer signs leaves; all keys are ECDSA P-256. Everything lives in one home, made at first
//! start: a [directory], or whatever else is a [`store::Store`]. How one root or issuer follows another: [`rotation`].
//!
//! Invariants
//! - A [`Ca`] is what its home held at one moment and never changes; who changes the home, or [looks again](Ca::reload), gets another one.
//! - It is followed by what came of it, never by another CA that somebody has put in its place.
//! - A leaf carries the identity that the caller proved. What the request asks for is compared with it, never copied.
//! - A leaf never outlives its issuer.
//! - The root's key is not held in memory: it signs when an issuer is made. It may be taken off the machine meanwhile.

mod csr;
pub mod directory;
mod error;
mod given;
mod make;
pub mod names;
mod naming;
pub mod rotation;
pub mod store;

use std::fmt;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, DnType, DnValue, Issuer, PublicKeyData, SanType};
use rustls_pki_types::CertificateDer;
use weft_engine::identity::Identity;

pub use csr::{CsrError, check_request};
pub use error::CaError;
pub use given::Given;
pub use naming::Called;
pub use store::Home;

use self::make::{first_files, given_files, leaf, new_files, new_key};
use self::rotation::{Authorities, Kind, Waits};
use self::store::{Files, Store, Stored, Version, certificate_file, key_file};
use crate::svid::{KeyPair, Svid};
use crate::tls::{CONTROL_SERVER_NAME, Roots, control_identity, control_server_name};
use crate::token::TokenKey;
use crate::x509::{self, Leaf};

/// The subject's serial number (X.520).
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];
/// Certificates start this much before they are issued, so that a peer whose clock is slow takes them.
pub const BACKDATE: Duration = Duration::from_mins(1);
/// Longest life of a leaf; a longer wish is shortened to it.
pub const MAX_VALIDITY: Duration = Duration::from_hours(90 * 24);

/// The certificate authority of one trust domain.
pub struct Ca {
    home: Home,
    // What the home held when this was read or last found unchanged.
    version: ArcSwap<Version>,
    trust_domain: String,
    revision: u64,
    authorities: Authorities,
    known: Vec<Authority>,
    roots_pem: String,
    roots: Roots,
    leaves: Signer,
    own: Signer,
    token_key: TokenKey,
}

/// One that signs.
struct Signer {
    issuer: Issuer<'static, rcgen::KeyPair>,
    issuer_pem: String,
    root_pem: String,
    not_after: SystemTime,
}

/// A root or an issuer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Its name in the CA's home, such as `root-2`.
    pub name: String,
    /// Whether it is a root; else an issuer.
    pub root: bool,
    /// Whether it is a root that is published, or leads to one.
    pub published: bool,
    /// When it ends.
    pub not_after: SystemTime,
    certificate: CertificateDer<'static>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ca({} in {})", self.trust_domain(), self.home.place())
    }
}

impl Ca {
    /// Opens the CA in `home`, or makes one if there is none. Several processes may do so at once: one makes it, all open it.
    pub fn open(home: impl Into<Home>, trust_domain: &str) -> Result<Self, CaError> {
        Self::open_at(home, trust_domain, SystemTime::now())
    }

    /// [`Ca::open`] at a given time.
    pub fn open_at(home: impl Into<Home>, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        Self::open_or_make(home.into(), trust_domain, Authorities::first(), |first| {
            first_files(first, trust_domain, now)
        })
    }

    /// Opens the CA in `home`, or makes one whose issuer is `given`, if there is none. See [`Ca::follow`].
    pub fn open_given(
        home: impl Into<Home>,
        trust_domain: &str,
        given: &Given,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        Self::open_or_make(home.into(), trust_domain, Authorities::first().given(), |first| {
            given.check(trust_domain, now)?;
            let mut files = given_files(first.issuing(), Some(&first.published().concat()), given);
            files.insert(store::TOKEN_KEY.to_owned(), new_key()?.serialize_pem());
            Ok(files)
        })
    }

    fn open_or_make(
        home: Home,
        trust_domain: &str,
        first: Authorities,
        make: impl FnOnce(&Authorities) -> Result<Files, CaError>,
    ) -> Result<Self, CaError> {
        if Identity::new(trust_domain, "any", "any").is_err() {
            return Err(CaError::TrustDomain(trust_domain.to_owned()));
        }
        let stored = store::open_or_make(&*home, trust_domain, first, make)?;
        Self::of(home, stored)
    }

    /// Opens the CA in `home`, of whatever trust domain; makes none.
    pub fn load(home: impl Into<Home>) -> Result<Self, CaError> {
        let home = home.into();
        let stored = store::load(&*home)?.ok_or_else(|| CaError::Absent(home.place()))?;
        Self::of(home, stored)
    }

    /// The CA as it is now; `None` if nothing has changed.
    ///
    /// # Errors
    /// It cannot be read, it is [gone](CaError::Gone), or what is there is [another](CaError::Another): this one stays good.
    pub fn reload(&self) -> Result<Option<Self>, CaError> {
        let gone = || CaError::Gone(self.home.place());
        if self.home.version()?.ok_or_else(gone)? == **self.version.load() {
            return Ok(None);
        }
        let stored = store::load(&*self.home)?.ok_or_else(gone)?;
        let found = Self::of(self.home.clone(), stored)?;
        let same = found.revision == self.revision && found.known == self.known;
        if found.revision <= self.revision && !same {
            return Err(CaError::Another { place: self.home.place(), found: found.revision, known: self.revision });
        }
        // Whoever changed it may have died before he did.
        self.home.publish(&found.version.load(), &found.roots_pem)?;
        if same {
            // Something else in the same home: a label, a root's key that was put back.
            self.version.store(found.version.load_full());
        }
        Ok((!same).then_some(found))
    }

    /// Begins the rotation to what is given, if that is another issuer than the last that was taken; `None` if it is not, or if a rotation
    /// has to end first.
    ///
    /// # Errors
    /// It is of no use ([`CaError::Given`]), or somebody else changed the CA: nothing has changed.
    pub fn follow(&self, given: &Given, now: SystemTime) -> Result<Option<Self>, CaError> {
        let (issuer, root) = given.certificates()?;
        let is_known = |certificate: &CertificateDer<'_>, root: bool| {
            self.known.iter().any(|known| known.root == root && known.certificate == *certificate)
        };
        if is_known(&issuer, false) || self.authorities.rotation().is_some() {
            return Ok(None);
        }
        given.check(self.trust_domain(), now)?;
        let kind = if is_known(&root, true) { Kind::Issuer } else { Kind::Root };
        let mut authorities = self.authorities.clone().given();
        let begun = authorities.begin_to(kind, now)?;
        let new = given_files(&begun.issuer.0, begun.root.as_deref(), given);
        self.replace(authorities, &new).map(Some)
    }

    fn of(home: Home, stored: Stored) -> Result<Self, CaError> {
        let store = &*home;
        let authorities = &stored.authorities;
        let roots_pem = store::roots_pem(&stored);
        Ok(Self {
            leaves: Signer::of(store, &stored, authorities.issuing())?,
            own: Signer::of(store, &stored, authorities.controls())?,
            known: known(store, &stored)?,
            roots: own_roots(&stored, &roots_pem)?,
            roots_pem,
            token_key: TokenKey::new(token_key(store, &stored)?),
            version: ArcSwap::from_pointee(stored.version),
            trust_domain: stored.trust_domain,
            revision: stored.revision,
            authorities: stored.authorities,
            home,
        })
    }

    /// Which roots and issuers there are, and the rotation that is under way.
    pub fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// The same one by one: roots before issuers.
    pub fn known(&self) -> &[Authority] {
        &self.known
    }

    /// Name of the issuer with this certificate (DER), if it is one of ours.
    pub fn issuer_named(&self, certificate: &[u8]) -> Option<&str> {
        let found = self.known.iter().find(|authority| !authority.root && *authority.certificate == *certificate);
        found.map(|authority| &*authority.name)
    }

    /// Begins a rotation.
    ///
    /// # Errors
    /// One is under way, the root's key is not here, or somebody else changed the CA: nothing has changed.
    pub fn begin(&self, kind: Kind, now: SystemTime) -> Result<Self, CaError> {
        let mut authorities = self.authorities.clone();
        let begun = authorities.begin(kind, now)?;
        let new = new_files(&begun, self.trust_domain(), now, |root| {
            let key = store::root_key(&*self.home, root)?;
            let certificate = self.known.iter().find(|authority| authority.root && authority.name == root);
            let certificate = certificate.ok_or(CaError::Conflict)?.certificate.clone();
            let key = rcgen::KeyPair::from_pem(&key)?;
            Ok(Issuer::from_ca_cert_der(&certificate, key)?)
        })?;
        self.replace(authorities, &new)
    }

    /// The phase is over as far as proxies are concerned: the next one ([`Authorities::advance`]).
    ///
    /// # Errors
    /// There is something left to wait for ([`RotationError::Early`]), there is no rotation, or somebody else changed the CA.
    pub fn advance(&self, waits: Waits, now: SystemTime) -> Result<Self, CaError> {
        let mut authorities = self.authorities.clone();
        authorities.advance(waits, now)?;
        self.replace(authorities, &Files::new())
    }

    /// Turns a rotation back.
    ///
    /// # Errors
    /// There is none or it has gone too far, or somebody else changed the CA: nothing has changed.
    pub fn abort(&self, now: SystemTime) -> Result<Self, CaError> {
        let mut authorities = self.authorities.clone();
        authorities.abort(now)?;
        self.replace(authorities, &Files::new())
    }

    fn replace(&self, authorities: Authorities, new: &Files) -> Result<Self, CaError> {
        Self::of(self.home.clone(), store::replace(&*self.home, self.revision, authorities, new)?)
    }

    /// Grows with each change of the CA, that of its roots among them; all replicas of control see the same.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The root certificates that are published, PEM: what every workload must be given.
    pub fn root_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The same, as the TLS configurations take them.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Issues a leaf for the key of the request and the identity that the caller has proved.
    ///
    /// Returns PEM certificates, leaf first, root last. The life is cut to [`MAX_VALIDITY`] and to the issuer's own.
    pub fn issue(
        &self,
        csr_pem: &str,
        identity: &Identity,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, CaError> {
        self.issue_as(csr_pem, identity, None, validity, now)
    }

    /// [`Ca::issue`], to a pod of this uid and no other of the same identity: [`Leaf::pod`](crate::x509::Leaf::pod) says so.
    pub fn issue_to_pod(
        &self,
        csr_pem: &str,
        identity: &Identity,
        uid: &str,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, CaError> {
        self.issue_as(csr_pem, identity, Some(uid), validity, now)
    }

    fn issue_as(
        &self,
        csr_pem: &str,
        identity: &Identity,
        pod: Option<&str>,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, CaError> {
        let named = self.called().named_now(identity).ok_or_else(|| CaError::ForeignIdentity(identity.to_string()))?;
        let key = csr::check(csr_pem, identity, &self.every_name().collect::<Vec<_>>())?;
        let mut params = leaf(&named, validity, self.leaves.not_after, now)?;
        if let Some(uid) = pod {
            let number = x509::pod_text(uid).try_into()?;
            params
                .distinguished_name
                .push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), DnValue::PrintableString(number));
        }
        self.leaves.sign(&params, &key)
    }

    /// Control's own certificates, one in each name that the trust domain ever had, the oldest first: whoever was started with that name knows
    /// control by it. Each has its SPIFFE ID, and the DNS names that clients put into SNI: those of sidecars, and `served_as`, such as that of
    /// the Service by which an API server calls. Issued anew by their holder before they end.
    pub fn issue_control(
        &self,
        served_as: &[String],
        validity: Duration,
        now: SystemTime,
    ) -> Result<Vec<Svid>, CaError> {
        self.every_name().map(|name| self.issue_control_as(name, served_as, validity, now)).collect()
    }

    fn issue_control_as(
        &self,
        name: &str,
        served_as: &[String],
        validity: Duration,
        now: SystemTime,
    ) -> Result<Svid, CaError> {
        let key = KeyPair::generate()?;
        let identity = control_identity(name).map_err(|_| CaError::TrustDomain(name.to_owned()))?;
        let public = csr::check(&key.csr(&identity)?, &identity, &[name])?;
        // By the oldest root that is published: a new proxy may have been given no other.
        let mut params = leaf(&identity, validity, self.own.not_after, now)?;
        let own = control_server_name(name);
        let own = Some(&*own).filter(|own| *own != CONTROL_SERVER_NAME);
        for dns in [CONTROL_SERVER_NAME].into_iter().chain(own).chain(served_as.iter().map(String::as_str)) {
            params.subject_alt_names.push(SanType::DnsName(dns.try_into()?));
        }
        Ok(Svid::new(key, &self.own.sign(&params, &public)?)?)
    }

    /// A chain for any parameters, for tests of what the CA would never issue.
    #[cfg(test)]
    pub(crate) fn sign_for_test(
        &self,
        params: &CertificateParams,
        key: &rcgen::KeyPair,
    ) -> Vec<CertificateDer<'static>> {
        self.leaves.sign(params, key).unwrap().iter().flat_map(|pem| x509::certificates(pem).unwrap()).collect()
    }

    /// The leaf alone, PEM.
    #[cfg(test)]
    pub(crate) fn sign_pem_for_test(&self, params: &CertificateParams, key: &rcgen::KeyPair) -> String {
        self.leaves.sign(params, key).unwrap().swap_remove(0)
    }

    pub(crate) fn own_token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// The token key of the CA in `home` and every name of its trust domain, the first first, without opening the rest.
    pub(crate) fn token_key(home: &Home) -> Result<(TokenKey, Vec<String>), CaError> {
        let stored = store::load(&**home)?.ok_or_else(|| CaError::Absent(home.place()))?;
        let names = stored.authorities.every_name(&stored.trust_domain).map(str::to_owned).collect();
        Ok((TokenKey::new(token_key(&**home, &stored)?), names))
    }
}

fn damaged(store: &dyn Store, what: impl Into<String>) -> CaError {
    CaError::Damaged { place: store.place(), what: what.into() }
}

fn token_key(store: &dyn Store, stored: &Stored) -> Result<rcgen::KeyPair, CaError> {
    rcgen::KeyPair::from_pem(&stored.token_key).map_err(|_| damaged(store, format!("{} is no key", store::TOKEN_KEY)))
}

impl Signer {
    fn of(store: &dyn Store, stored: &Stored, name: &str) -> Result<Self, CaError> {
        let damaged = |what: String| damaged(store, what);
        let file = |name: &str| stored.files.get(name).cloned().ok_or_else(|| damaged(format!("{name} is not there")));
        let root = stored.authorities.issuers().get(name).map_or("", String::as_str);
        let (issuer_pem, root_pem) = (file(&certificate_file(name))?, file(&certificate_file(root))?);
        let key =
            rcgen::KeyPair::from_pem(&file(&key_file(name))?).map_err(|_| damaged(format!("{name}.key is no key")))?;
        let certificate = first(store, &certificate_file(name), &issuer_pem)?;
        Self::new(issuer_pem, root_pem, &certificate, key)
    }

    /// Of PEM texts, with the issuer's own certificate and its key.
    fn new(
        issuer_pem: String,
        root_pem: String,
        certificate: &CertificateDer<'_>,
        key: rcgen::KeyPair,
    ) -> Result<Self, CaError> {
        let not_after = x509::not_after(certificate).map_err(|_| CaError::Validity("the issuer is no certificate"))?;
        Ok(Self { not_after, issuer: Issuer::from_ca_cert_der(certificate, key)?, issuer_pem, root_pem })
    }

    fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<Vec<String>, CaError> {
        let leaf = params.signed_by(key, &self.issuer)?.pem();
        Ok(vec![leaf, self.issuer_pem.clone(), self.root_pem.clone()])
    }
}

/// Of workloads in each name that is believed.
fn own_roots(stored: &Stored, roots_pem: &str) -> Result<Roots, CaError> {
    let (authorities, first) = (&stored.authorities, &stored.trust_domain);
    let called = authorities.called(first);
    let names = std::iter::once(called).chain(authorities.aliases(first)).map(Into::into).collect();
    Ok(Roots::from_pem(roots_pem)?.called(called.into(), names))
}

/// Roots before issuers.
fn known(store: &dyn Store, stored: &Stored) -> Result<Vec<Authority>, CaError> {
    let authorities = &stored.authorities;
    let published = |root: &str| authorities.published().iter().any(|published| published == root);
    let roots = authorities.roots().map(|name| (name, true, published(name)));
    let issuers = authorities.issuers().iter().map(|(name, root)| (name.as_str(), false, published(root)));
    let all = roots.chain(issuers).map(|(name, root, published)| {
        let file = certificate_file(name);
        let certificate = first(store, &file, stored.files.get(&file).map_or("", String::as_str))?;
        let not_after = ends(store, name, &certificate)?;
        Ok(Authority { name: name.to_owned(), root, published, not_after, certificate })
    });
    all.collect()
}

/// The first certificate of a file: of an issuer, itself; behind it may be those between it and the root.
fn first(store: &dyn Store, file: &str, pem: &str) -> Result<CertificateDer<'static>, CaError> {
    let found = x509::certificates(pem).and_then(|certificates| certificates.into_iter().next());
    found.ok_or_else(|| damaged(store, format!("{file} is no certificate")))
}

fn ends(store: &dyn Store, name: &str, certificate: &CertificateDer<'_>) -> Result<SystemTime, CaError> {
    x509::not_after(certificate).map_err(|_| damaged(store, format!("{} is no certificate", certificate_file(name))))
}

/// What an issued certificate (PEM) says: its serial number is what an audit log names it by.
pub fn leaf_of(leaf_pem: &str) -> Option<Leaf> {
    let leaf = x509::certificates(leaf_pem)?.into_iter().next()?;
    x509::leaf(&leaf).ok()
}

#[cfg(test)]
mod tests;
