//! A CA elsewhere, as control sees it: the roots that its certificates lead to, and the way to it.
//!
//! Invariant: nothing that it has sent is handed on before it was looked at ([`weft_certs::outside`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use weft_certs::ca::rotation::Rotation;
use weft_certs::ca::{Called, check_request};
use weft_certs::outside::{Answer, Asked, Pod, Root, check, pem_of, root_of};
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::{Roots, TlsError, control_identity};
use weft_engine::identity::Identity;

use super::line::{Line, Question, Upstream};
use super::{CertificateAuthority, Wanted};
use crate::issue::secret::Bearer;
use crate::issue::{Cause, Refusal};
use crate::rotation::{AuthorityReport, Waiting, seconds};

/// What is known of what the CA has issued; for as long as control runs.
#[derive(Debug, Default)]
pub(super) struct Issued {
    /// Until when certificates of workloads are valid, by root.
    pub until: BTreeMap<String, SystemTime>,
    /// The root of control's own.
    pub own: Option<String>,
}

/// A CA elsewhere and its roots at one moment.
#[derive(Debug)]
pub struct Outside {
    trust_domain: String,
    line: Arc<Line>,
    issued: Arc<Mutex<Issued>>,
    published: Vec<Root>,
    /// How many of those, the first ones, are wanted; the others have been taken out and are believed still.
    wanted: usize,
    pem: String,
    roots: Roots,
    revision: u64,
}

impl Outside {
    /// With these roots: those that are wanted, and those that are believed still.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn new(
        trust_domain: &str,
        line: &Arc<Line>,
        issued: &Arc<Mutex<Issued>>,
        (wanted, leaving): (&[Root], &[Root]),
        revision: u64,
    ) -> Result<Self, TlsError> {
        let published: Vec<_> = wanted.iter().chain(leaving).cloned().collect();
        let pem = pem_of(&published);
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            line: Arc::clone(line),
            issued: Arc::clone(issued),
            roots: Roots::from_pem(&pem)?,
            wanted: wanted.len(),
            published,
            pem,
            revision,
        })
    }

    async fn ask(&self, wanted: Wanted<'_>, pod: Pod<'_>, now: SystemTime) -> Result<Answer, Refusal> {
        let Wanted { csr, identity, token, life, .. } = wanted;
        check_request(csr, identity, &[&self.trust_domain])?;
        let life = self.line.life(life);
        let sent = self.line.ask(&Question { csr, identity, token, life }).await?;
        // Asked again: it may have taken seconds.
        let now = now.max(SystemTime::now());
        check(&sent, Asked { csr, identity, pod, life }, &self.published, now).map_err(|error| {
            let message = format!("the answer of the CA {} is refused: {error}", self.line.name());
            Refusal::new(Cause::CaAnswer, message)
        })
    }

    /// Whether control itself shows a certificate under this root.
    fn own_under(&self, root: &str) -> Option<Waiting> {
        let shows = self.issued.lock().own.as_deref() == Some(root);
        shows.then(|| Waiting::showing("control", root))
    }

    async fn own_token(&self) -> Result<Option<Bearer>, Refusal> {
        let Upstream::CreateCertificate(ca) = &self.line.upstream else { return Ok(None) };
        let read = ca.own.read().await.map(|text| Some(Bearer::new(&text)));
        read.map_err(|why| Refusal::new(Cause::Unavailable, format!("control's own (--issue-by-token): {why}")))
    }
}

#[tonic::async_trait]
impl CertificateAuthority for Outside {
    fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    fn called(&self) -> Called {
        Called::only(&self.trust_domain)
    }

    fn root_pem(&self) -> &str {
        &self.pem
    }

    fn roots(&self) -> &Roots {
        &self.roots
    }

    fn revision(&self) -> u64 {
        self.revision
    }

    fn above(&self, chain: &[CertificateDer<'_>]) -> Option<String> {
        root_of(chain, &self.published, SystemTime::now()).map(|root| root.name.clone())
    }

    fn issuing(&self) -> &str {
        self.line.name()
    }

    fn elsewhere(&self) -> Option<&str> {
        Some(self.line.name())
    }

    fn wants_token(&self) -> bool {
        self.line.wants_token()
    }

    fn authorities(&self) -> Vec<AuthorityReport> {
        let report = |(at, root): (usize, &Root)| AuthorityReport {
            id: root.name.clone(),
            role: "root".to_owned(),
            not_after: seconds(root.not_after),
            published: true,
            leaving: at >= self.wanted,
            held_up_by: self.own_under(&root.name).filter(|_| at >= self.wanted).into_iter().collect(),
        };
        self.published.iter().enumerate().map(report).collect()
    }

    fn rotation(&self) -> Option<&Rotation> {
        None
    }

    async fn sign(&self, wanted: Wanted<'_>, now: SystemTime) -> Result<Vec<String>, Refusal> {
        let answer = self.ask(wanted, Pod::Proved(wanted.pod), now).await?;
        let mut issued = self.issued.lock();
        let until = issued.until.entry(answer.root).or_insert(answer.leaf.not_after);
        *until = answer.leaf.not_after.max(*until);
        Ok(answer.chain)
    }

    async fn sign_control(&self, _: &[String], life: Duration, now: SystemTime) -> Result<Vec<Svid>, Refusal> {
        let broken =
            |error: String| Refusal::new(Cause::Ca, format!("control's own certificate cannot be made: {error}"));
        let identity: Identity = control_identity(&self.trust_domain).map_err(|error| broken(error.to_string()))?;
        let key = KeyPair::generate().map_err(|error| broken(error.to_string()))?;
        let csr = key.csr(&identity).map_err(|error| broken(error.to_string()))?;
        let token = self.own_token().await?;
        let wanted = Wanted { csr: &csr, identity: &identity, pod: None, token: token.as_ref(), life };
        // Which pod we are ourselves nobody has told us.
        let answer = self.ask(wanted, Pod::Any, now).await?;
        let svid = Svid::new(key, &answer.chain).map_err(|error| broken(error.to_string()))?;
        self.issued.lock().own = Some(answer.root);
        Ok(vec![svid])
    }
}
