//! The rustls configurations of the mesh, and how a peer is checked.
//!
//! Invariants
//! - TLS 1.3 only, key exchange X25519MLKEM768 first. (What asks an application's health is no part of the mesh: [`unverified_client_config`].)
//! - A peer's chain leads to the roots of the trust domain that it names, is valid now, and names exactly one SPIFFE ID. The domain is ours,
//!   under any name that it has now ([`Roots::called`]), or one that we are federated with. Neither that identity nor that certificate has been revoked ([`crate::revoked`]).
//! - No resumption on either side and no early data: every connection is a full handshake with all these checks.
//! - Who the server is, beyond "of the mesh", is for the caller to compare by [`peer_identity`] before the first byte of an application;
//!   [`client_config_for`] makes the handshake itself do so.
//!
//! Why no session is resumed: as strict as a full handshake it would save 26 % of the CPU (docs/identity.md, "Session resumption").

mod by_name;
mod endpoint;
mod unverified;
mod verify;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use weft_engine::identity::{Identity, NotAnIdentity};

pub use crate::x509::LeafError;

use crate::revoked::Denied;
use crate::svid::Svid;
use crate::x509;
pub use crate::x509::Leaf;
use by_name::ByName;
pub use endpoint::{EndpointId, endpoint_client_config};
pub use unverified::unverified_client_config;
use verify::MeshVerifier;

/// The name that clients of control put into SNI, and a DNS name of its certificate.
pub const CONTROL_SERVER_NAME: &str = "weft-control";

/// The name for clients that were started with this trust domain, which tells control by which name they know it; just
/// [`CONTROL_SERVER_NAME`] where the two together are no DNS name.
pub fn control_server_name(trust_domain: &str) -> String {
    let name = format!("{CONTROL_SERVER_NAME}.{trust_domain}");
    if ServerName::try_from(name.as_str()).is_ok() { name } else { CONTROL_SERVER_NAME.to_owned() }
}

/// Who control must prove to be.
pub fn control_identity(trust_domain: &str) -> Result<Identity, NotAnIdentity> {
    Identity::new(trust_domain, "weft-system", "weft-control")
}

/// Why a configuration cannot be made or a peer is not known.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate in the text, or one that is broken.
    #[error("the roots are not PEM certificates; give the file root.pem of the CA's directory")]
    Roots,
    /// rustls refuses the configuration.
    #[error("the TLS configuration cannot be made: {0}")]
    Config(#[from] rustls::Error),
    /// The trust domain cannot be one.
    #[error(transparent)]
    TrustDomain(#[from] NotAnIdentity),
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// The peer's certificate is none of a workload.
    #[error("the peer's identity is not known: {0}")]
    Peer(#[from] LeafError),
}

type Anchors = Arc<[TrustAnchor<'static>]>;

/// The root certificates that a workload trusts: for its own trust domain, and for each that it is federated with, of which identities
/// must lead to that domain's roots and no others. Cheap to clone.
#[derive(Clone)]
pub struct Roots {
    own: Anchors,
    names: Option<Arc<Names>>,
    foreign: Arc<BTreeMap<Arc<str>, Anchors>>,
    denied: Denied,
}

/// What our own trust domain is called.
#[derive(Debug)]
struct Names {
    known_as: Arc<str>,
    all: Vec<Arc<str>>,
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({}, of others {:?})", self.own.len(), self.foreign.keys())
    }
}

impl Roots {
    /// Reads one or more certificates; all must be good.
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        Self::new(&x509::certificates(pem).ok_or(TlsError::Roots)?)
    }

    /// The root that a CA has sent with a certificate: the last of the chain, if that is one.
    pub fn of_chain(chain_pem: &[String]) -> Option<Self> {
        let certs = x509::certificates(chain_pem.last()?)?;
        let roots = !certs.is_empty() && certs.iter().all(x509::self_issued);
        if roots { Self::new(&certs).ok() } else { None }
    }

    /// Reads certificates in DER that stand one behind the other, as SPIFFE has bundles.
    pub fn from_der(bundle: &[u8]) -> Result<Self, TlsError> {
        Self::new(&x509::concatenated(bundle).ok_or(TlsError::Roots)?)
    }

    fn new(certs: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        Ok(Self { own: anchors(certs)?, names: None, foreign: Arc::default(), denied: Denied::default() })
    }

    /// Those of every trust domain, one certificate in DER each; `own` must be among the domains.
    pub fn of_domains<'a, R: AsRef<[u8]> + 'a>(
        own: &str,
        bundles: impl IntoIterator<Item = (&'a Arc<str>, &'a Vec<R>)>,
    ) -> Result<Self, TlsError> {
        let (mut ours, mut foreign) = (None, BTreeMap::new());
        for (domain, roots) in bundles {
            let certs: Vec<_> = roots.iter().map(|root| CertificateDer::from(root.as_ref())).collect();
            if **domain == *own {
                ours = Some(anchors(&certs)?);
            } else {
                foreign.insert(Arc::clone(domain), anchors(&certs)?);
            }
        }
        let (own, foreign) = (ours.ok_or(TlsError::Roots)?, Arc::new(foreign));
        Ok(Self { own, names: None, foreign, denied: Denied::default() })
    }

    /// Our own trust domain has these names and no others: a peer in any of them must lead to our own roots. Here it is `known_as` one,
    /// which need not be among them. Without this it has the one name that a configuration is made for.
    #[must_use]
    pub fn called(self, known_as: Arc<str>, all: Vec<Arc<str>>) -> Self {
        Self { names: Some(Arc::new(Names { known_as, all })), ..self }
    }

    /// An identity that a peer has proved, under the name by which our own trust domain is known here if it is of that.
    pub fn known(&self, identity: Identity) -> Identity {
        match &self.names {
            Some(names) if names.all.contains(&identity.trust_domain) => identity.within(&names.known_as),
            _ => identity,
        }
    }

    /// Whether this is a name of our own trust domain, which has the name `otherwise` if nothing else was said.
    fn is_own(&self, domain: &str, otherwise: &str) -> bool {
        match &self.names {
            Some(names) => names.all.iter().any(|name| **name == *domain),
            None => domain == otherwise,
        }
    }

    /// Those of the own trust domain alone, and with them `others`' own, for the one name that a configuration is made for; nobody is denied.
    #[must_use]
    pub fn own_and(&self, others: &Self) -> Self {
        let own = self.own.iter().chain(&*others.own).cloned().collect();
        Self { own, names: None, foreign: Arc::default(), denied: Denied::default() }
    }

    /// The same, but for who is on the list that is in force when a handshake ends.
    #[must_use]
    pub fn denying(self, denied: &Denied) -> Self {
        Self { denied: denied.clone(), ..self }
    }

    /// With them `others`' own; those of other trust domains stay.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let own = self.own.iter().chain(&*others.own).cloned().collect();
        Self { own, ..self.clone() }
    }

    /// The same, and of our own trust domain another name, if names were said.
    #[must_use]
    pub fn also_called(&self, name: &Arc<str>) -> Self {
        let Some(names) = self.names.as_ref().filter(|names| !names.all.contains(name)) else { return self.clone() };
        let all = names.all.iter().chain([name]).cloned().collect();
        self.clone().called(Arc::clone(&names.known_as), all)
    }
}

fn anchors(certs: &[CertificateDer<'_>]) -> Result<Anchors, TlsError> {
    if certs.is_empty() {
        return Err(TlsError::Roots);
    }
    let anchors = certs.iter().map(|cert| webpki::anchor_from_trusted_cert(cert).map(|anchor| anchor.to_owned()));
    anchors.collect::<Result<_, _>>().map_err(|_| TlsError::Roots)
}

/// Whether [`Roots`] would take this certificate.
pub(crate) fn is_anchor(certificate: &CertificateDer<'_>) -> bool {
    webpki::anchor_from_trusted_cert(certificate).is_ok()
}

/// The certificates of a PEM text that [`Roots`] would take.
///
/// # Errors
/// [`TlsError::Roots`]: there is none, or one is broken.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs = x509::certificates(pem).ok_or(TlsError::Roots)?;
    anchors(&certs).map(|_| certs)
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without one the handshake fails.
    Required,
    /// Without one it succeeds and the peer has no identity; a bad one still fails.
    Optional,
}

/// The algorithms of the mesh, named one by one: an upgrade of rustls changes none of them.
///
/// AES-128 comes first: it has ten rounds where AES-256 has fourteen, and every byte between pods pays for them. rustls prefers 256 bits
/// because CNSA asks that of national security systems, which binds nobody else. No classical attack comes near 128 bits, and Grover's
/// on a quantum machine does not parallelise (NIST takes AES-128 for its category 1, which suffices). What is recorded today and read
/// tomorrow depends on the key exchange, and that is hybrid.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    })
}

/// For connections to other sidecars: any identity of the trust domain passes the handshake, the caller compares it by
/// [`peer_identity`].
pub fn client_config(
    svid: Option<&Svid>,
    roots: &Roots,
    alpn: &[&[u8]],
    trust_domain: &str,
) -> Result<Arc<ClientConfig>, TlsError> {
    client(svid, alpn, Arc::new(MeshVerifier::new(provider(), roots, trust_domain)))
}

/// Like [`client_config`], and the handshake fails if the server is not `expected`.
pub fn client_config_for(
    expected: &Identity,
    svid: Option<&Svid>,
    roots: &Roots,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = MeshVerifier::new(provider(), roots, &expected.trust_domain).expecting(expected.clone());
    client(svid, alpn, Arc::new(verifier))
}

/// For connections to control (gRPC): the server must be control. Without an SVID a token has to prove who asks.
pub fn control_client_config(
    svid: Option<&Svid>,
    roots: &Roots,
    trust_domain: &str,
) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_for(&control_identity(trust_domain)?, svid, roots, &[b"h2"])
}

fn client(
    svid: Option<&Svid>,
    alpn: &[&[u8]],
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // rustls restores the stored chain of a resumed session without verifying it again.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// For listeners: sidecars require a client certificate, control takes one if there is one.
pub fn server_config(
    svid: &Svid,
    roots: &Roots,
    alpn: &[&[u8]],
    auth: ClientAuth,
    trust_domain: &str,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = MeshVerifier::new(provider(), roots, trust_domain).client_auth(auth);
    server(Arc::new(SingleCertAndKey::from(svid.certified())), alpn, Arc::new(verifier))
}

/// For control, which takes a client certificate if there is one: by the [name](control_server_name) that a client says it shows one of its
/// certificates, the first to whoever says none of theirs.
pub fn control_server_config(svids: &[Svid], roots: &Roots, trust_domain: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = MeshVerifier::new(provider(), roots, trust_domain).client_auth(ClientAuth::Optional);
    server(Arc::new(ByName::of(svids, None)), &[b"h2"], Arc::new(verifier))
}

/// For a listener of control's that everybody may call: no client is asked who it is. It shows the certificate in the trust domain that the
/// host name ends with which a client calls, and to others the one in `otherwise`.
pub fn public_server_config(svids: &[Svid], alpn: &[&[u8]], otherwise: &str) -> Result<Arc<ServerConfig>, TlsError> {
    server(Arc::new(ByName::of(svids, Some(otherwise))), alpn, Arc::new(NoClientAuth))
}

fn server(
    certificate: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Whether a client's chain is one that these roots would take, now; leaf first. For who has taken it by others, and wants to know by which.
pub fn leads_to(chain: &[CertificateDer<'_>], roots: &Roots, trust_domain: &str, now: SystemTime) -> bool {
    let (Some((leaf, between)), Ok(now)) = (chain.split_first(), now.duration_since(SystemTime::UNIX_EPOCH)) else {
        return false;
    };
    let verifier = MeshVerifier::new(provider(), roots, trust_domain);
    verifier.verify_client_cert(leaf, between, UnixTime::since_unix_epoch(now)).is_ok()
}

/// Whom the peer of a finished handshake proved to be (`connection.peer_certificates()`).
pub fn peer_identity(chain: Option<&[CertificateDer<'_>]>) -> Result<Identity, TlsError> {
    let leaf = chain.and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
    Ok(x509::identity(leaf)?)
}

/// The same with serial number and end of the certificate: no stream may live on it for longer.
pub fn peer_leaf(chain: Option<&[CertificateDer<'_>]>) -> Result<Leaf, TlsError> {
    let leaf = chain.and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
    Ok(x509::leaf(leaf)?)
}

#[cfg(test)]
mod tests;
