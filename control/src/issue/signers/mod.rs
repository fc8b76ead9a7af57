//! Who signs the mesh's certificates: one trait, three kinds. Here is the built-in one, weft-certs' [`Ca`]. A CA elsewhere is [`outside`]:
//! [`create_certificate`] or [`csr`] behind the bounds of [`line`](self::line), under roots that somebody else keeps ([`roots`]).
//!
//! Invariants
//! - Who asks has been proved, rationed and is audited before anybody here is asked; a signer is told whom to name, and decides nothing.
//! - What a signer knows of roots is one moment's, and never changes: another moment's is another one ([`crate::rotation::Authority`]).

pub mod create_certificate;
pub mod csr;
pub mod line;
pub mod outside;
pub mod roots;
mod settings;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use rustls::pki_types::CertificateDer;
use weft_certs::ca::rotation::Rotation;
use weft_certs::ca::{self, Ca, CaError, Called};
use weft_certs::svid::Svid;
use weft_certs::tls::Roots;
use weft_engine::identity::Identity;

pub use self::settings::Settings;
use super::Refusal;
use super::secret::Bearer;
use super::used::UsedTokens;
use crate::config::Config;
use crate::distribute::Hub;
use crate::homes::Homes;
use crate::rotation::{self, Authority, AuthorityReport, seconds};
use crate::trust::Trust;

/// A certificate that somebody has proved to be entitled to.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The request, PEM: nothing but its key is taken from it.
    pub csr: &'a str,
    /// Whom the certificate has to name.
    pub identity: &'a Identity,
    /// Uid of the pod that was proved.
    pub pod: Option<&'a str>,
    /// The token that has proved all that, if one has.
    pub token: Option<&'a Bearer>,
    /// How long it should live.
    pub life: Duration,
}

/// Who signs, and whose signature is believed.
#[tonic::async_trait]
pub trait CertificateAuthority: fmt::Debug + Send + Sync {
    /// The trust domain, such as `cluster.local`.
    fn trust_domain(&self) -> &str;

    /// The names that the trust domain has, had, or is about to have.
    fn called(&self) -> Called;

    /// The root certificates that are published, PEM: what every workload must be given.
    fn root_pem(&self) -> &str;

    /// The same, as the TLS configurations take them.
    fn roots(&self) -> &Roots;

    /// Grows with each change of the roots; all replicas of control see the same.
    fn revision(&self) -> u64;

    /// Name of the authority that a peer's certificate hangs on (leaf first, as in a handshake); none if it is none of ours.
    fn above(&self, chain: &[CertificateDer<'_>]) -> Option<String>;

    /// Name of who signs now.
    fn issuing(&self) -> &str;

    /// Its name, for people, if it is a CA elsewhere.
    fn elsewhere(&self) -> Option<&str> {
        None
    }

    /// Whether it has to be shown a token for each certificate.
    fn wants_token(&self) -> bool {
        false
    }

    /// Roots and issuers, for people.
    fn authorities(&self) -> Vec<AuthorityReport>;

    /// The rotation that is under way, where they are made here.
    fn rotation(&self) -> Option<&Rotation>;

    /// Signs for a workload. PEM, leaf first, root last.
    ///
    /// # Errors
    /// A refusal that says why, to the workload and to the audit log.
    async fn sign(&self, wanted: Wanted<'_>, now: SystemTime) -> Result<Vec<String>, Refusal>;

    /// Control's own certificates, each with a new key: one in each name that the trust domain ever had, where that can change. They have the
    /// DNS names `served_as` too, which a CA elsewhere does not give.
    ///
    /// # Errors
    /// As for a workload.
    async fn sign_control(&self, served_as: &[String], life: Duration, now: SystemTime) -> Result<Vec<Svid>, Refusal>;
}

#[tonic::async_trait]
impl CertificateAuthority for Ca {
    fn trust_domain(&self) -> &str {
        self.trust_domain()
    }

    fn called(&self) -> Called {
        self.called()
    }

    fn root_pem(&self) -> &str {
        self.root_pem()
    }

    fn roots(&self) -> &Roots {
        self.roots()
    }

    fn revision(&self) -> u64 {
        self.revision()
    }

    fn above(&self, chain: &[CertificateDer<'_>]) -> Option<String> {
        chain.get(1).and_then(|issuer| self.issuer_named(issuer)).map(str::to_owned)
    }

    fn issuing(&self) -> &str {
        self.authorities().issuing()
    }

    fn authorities(&self) -> Vec<AuthorityReport> {
        let report = |known: &ca::Authority| AuthorityReport {
            id: known.name.clone(),
            role: if known.root { "root" } else { "issuer" }.to_owned(),
            not_after: seconds(known.not_after),
            published: known.published,
            leaving: false,
            held_up_by: Vec::new(),
        };
        self.known().iter().map(report).collect()
    }

    fn rotation(&self) -> Option<&Rotation> {
        self.authorities().rotation()
    }

    async fn sign(&self, wanted: Wanted<'_>, now: SystemTime) -> Result<Vec<String>, Refusal> {
        let Wanted { csr, identity, pod, life, token: _ } = wanted;
        Ok(match pod {
            Some(uid) => self.issue_to_pod(csr, identity, uid, life, now),
            None => self.issue(csr, identity, life, now),
        }?)
    }

    async fn sign_control(&self, served_as: &[String], life: Duration, now: SystemTime) -> Result<Vec<Svid>, Refusal> {
        Ok(self.issue_control(served_as, life, now)?)
    }
}

/// The CA whose key signs join tokens, and the marks of those that were used.
pub type Joins = (Arc<Ca>, UsedTokens);

/// Follows whoever signs.
#[derive(Debug)]
pub enum Keeper {
    /// The built-in CA.
    Here(Box<rotation::Follower>),
    /// A CA elsewhere.
    Elsewhere(Box<roots::Follower>),
}

impl Keeper {
    /// Finds who signs, and tells the hub of the roots; and the CA whose key signs join tokens, with their marks, if there is one.
    ///
    /// # Errors
    /// The CA cannot be opened, or its roots cannot be read. That a CA elsewhere does not answer is no error.
    pub async fn open(
        config: &Config,
        trust: Trust,
        hub: Arc<Hub>,
    ) -> anyhow::Result<(Self, Authority, Option<Joins>)> {
        let homes = if config.has_home() { Some(Homes::open(config).await?) } else { None };
        let line = config.signing.line(config, &hub.metrics).await?;
        let config = config.clone();
        // Files are read, and a home may be far away.
        let opened = tokio::task::spawn_blocking(move || match (line, homes) {
            (None, Some(homes)) => {
                let (follower, authority) = rotation::Follower::open(&config, homes.ca, trust, hub)?;
                let joins = (Arc::clone(follower.ca()), homes.used);
                Ok((Self::Here(Box::new(follower)), authority, Some(joins)))
            }
            (None, None) => bail!("there is no home for the CA: give --ca-dir or --ca-secret"),
            (Some(line), homes) => {
                let homes = homes.filter(|_| !line.wants_token());
                let joins = homes
                    .map(|homes| Ok::<_, CaError>((Arc::new(Ca::open(homes.ca, &config.trust_domain)?), homes.used)));
                let (follower, authority) = roots::Follower::open(&config, line, trust, hub)?;
                Ok((Self::Elsewhere(Box::new(follower)), authority, joins.transpose()?))
            }
        });
        opened.await?
    }

    /// Never ends.
    pub async fn run(self) {
        match self {
            Self::Here(follower) => follower.run().await,
            Self::Elsewhere(follower) => follower.run().await,
        }
    }
}
