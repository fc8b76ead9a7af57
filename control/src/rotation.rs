//! The CA over time: what its home says is told to everybody, and a rotation is taken from phase to phase.
//!
//! Whoever may write there begins a rotation (`weft certs rotate-root`); control goes on with it, wherever it stands, for as long
//! as it runs. So it survives control's death in any phase: the home says where it is, and what proxies have is asked of them anew.
//!
//! Invariants
//! - No phase ends while a proxy that lives by the source, to whichever replica of control it is connected, or a copy of the roots
//!   ([`crate::copies`]), is away or behind; it is named. So is a replica that cannot say.
//! - What is waited for is always acknowledged after it was told: the hub has the roots of the CA that is looked at.
//! - A home that cannot be read, or in which there is no CA any more or another one, changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use weft_api::wire::replicas::ask::About;
use weft_certs::ca::rotation::{Kind, Phase, Rotation, RotationError, Waits};
use weft_certs::ca::{Ca, CaError, Given, Home};

use crate::config::Config;
use crate::copies::Roots;
use crate::distribute::Hub;
use crate::issue::signers::CertificateAuthority;
use crate::model::Name;
use crate::replicas::{Others, question};
use crate::trust::Trust;

/// How often the home is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Of those that are waited for so many are named in the log.
const NAMED: usize = 20;
/// How often they are named while a phase lasts, in looks.
const REMIND: u32 = 30;
/// What a proxy lacks.
const NO_ROOTS: &str = "has not acknowledged the roots";
const NO_NAMES: &str = "has not acknowledged the names of the trust domain";

/// Who signs, as it is now, and each change of it.
pub type Authority = watch::Receiver<Arc<dyn CertificateAuthority>>;

/// Follows the CA's home and takes a rotation on.
#[derive(Debug)]
pub struct Follower {
    ca: Arc<Ca>,
    told: watch::Sender<Arc<dyn CertificateAuthority>>,
    trust: Trust,
    hub: Arc<Hub>,
    waits: Waits,
    // Where somebody else keeps the issuer.
    given: Option<PathBuf>,
    // What the log has said already.
    said: Option<String>,
    looks: u32,
}

impl Follower {
    /// Opens the CA, and tells the hub of the roots. Blocks.
    ///
    /// # Errors
    /// It cannot be opened or made.
    pub fn open(config: &Config, home: Home, trust: Trust, hub: Arc<Hub>) -> Result<(Self, Authority), CaError> {
        let given = config.issuer_from.clone();
        let ca = match &given {
            None => Ca::open(home, &config.trust_domain)?,
            Some(dir) => {
                let (given, now) = (Given::read(dir)?, SystemTime::now());
                Ca::open_given(home, &config.trust_domain, &given, now)?
            }
        };
        let called = ca.called();
        if let Some(name) = called.every().find(|name| trust.federates(name)) {
            return Err(CaError::Federated(name.to_owned()));
        }
        if config.trust_domain != called.now && !called.aliases.contains(&config.trust_domain) {
            tracing::warn!(
                now = called.now,
                "--trust-domain {} is a name that the mesh had; write the one of now",
                config.trust_domain
            );
        }
        let ca = Arc::new(ca);
        let (told, seen) = watch::channel(Arc::clone(&ca) as Arc<dyn CertificateAuthority>);
        let waits = Waits { copies: config.copies(), leaves: config.leaf_ttl };
        let follower = Self { ca, told, trust, hub, waits, given, said: None, looks: 0 };
        follower.tell();
        Ok((follower, seen))
    }

    /// The CA as it is now.
    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    /// Never ends.
    pub async fn run(self) {
        keep_looking(self, Self::look).await;
    }

    /// One look: files are read, everybody is told, a phase that is over is ended. Blocks.
    pub fn look(&mut self, now: SystemTime) {
        self.trust.look(&self.ca.called());
        let stepped = self.step(now);
        self.hub.metrics.ca.broken.set(i64::from(stepped.is_err()));
        match stepped {
            Ok(()) => self.said = None,
            Err(error) => {
                let error = error.to_string();
                if self.said.as_ref() != Some(&error) {
                    tracing::error!(error, "the CA cannot be followed; what was in force goes on");
                    self.said = Some(error);
                }
            }
        }
    }

    fn step(&mut self, now: SystemTime) -> Result<(), CaError> {
        let ca = Arc::clone(&self.ca);
        let ca = match ca.reload()? {
            Some(changed) => {
                let changed = self.vetted(changed, now)?;
                self.take(changed)
            }
            None => ca,
        };
        self.tell();
        let ca = match &self.given {
            Some(dir) if ca.authorities().rotation().is_none() => match ca.follow(&Given::read(dir)?, now)? {
                Some(begun) => self.take(begun),
                None => ca,
            },
            _ => ca,
        };
        let Some(Rotation { phase, .. }) = ca.authorities().rotation() else {
            self.hub.metrics.ca.rotation(None, 0);
            return Ok(());
        };
        let waiting = waiting(&*ca, &self.hub);
        self.hub.metrics.ca.rotation(Some(*phase), waiting.len());
        if waiting.is_empty() || ca.authorities().is_just_begun() {
            match ca.advance(self.waits, now) {
                Ok(next) => {
                    self.take(next);
                }
                // Somebody else has gone on: seen at the next look.
                Err(CaError::Rotation(RotationError::Early(_)) | CaError::Conflict) => {}
                Err(error) => return Err(error),
            }
        } else {
            self.remind(*phase, &waiting);
        }
        Ok(())
    }

    /// A name that is another mesh's becomes none of ours: nobody is told of it, and its identities stay that mesh's.
    fn vetted(&self, changed: Ca, now: SystemTime) -> Result<Ca, CaError> {
        let begun = changed.authorities().rotation().filter(|rotation| rotation.kind == Kind::TrustDomain);
        let name = begun.filter(|begun| begun.phase == Phase::Publishing).map(|begun| begun.to.as_str());
        let Some(name) = name.filter(|name| self.trust.federates(name)) else { return Ok(changed) };
        tracing::error!(
            name,
            "the mesh is federated with this trust domain and cannot be called so itself: turned back"
        );
        changed.refuse_name(now)
    }

    fn take(&mut self, ca: Ca) -> Arc<Ca> {
        let ca = Arc::new(ca);
        match ca.authorities().rotation() {
            Some(Rotation { kind, phase, from, to, aborted, until, .. }) => {
                let (kind, phase) = (kind.label(), phase.label());
                tracing::info!(kind, phase, from, to, aborted, until, "the CA is being rotated");
            }
            None => {
                tracing::info!(
                    issuing = ca.authorities().issuing(),
                    "the CA has changed, and no rotation is under way"
                );
            }
        }
        self.looks = 0;
        self.ca = Arc::clone(&ca);
        self.told.send_replace(Arc::clone(&ca) as Arc<dyn CertificateAuthority>);
        self.tell();
        ca
    }

    fn tell(&self) {
        if self.hub.trust(&self.trust.message(&*self.ca)) {
            tracing::info!("the roots that are believed have changed");
        }
    }

    fn remind(&mut self, phase: Phase, waiting: &[Waiting]) {
        if self.looks.is_multiple_of(REMIND) {
            let named: Vec<_> = waiting.iter().take(NAMED).map(|one| format!("{} {}", one.workload, one.why)).collect();
            let (phase, proxies) = (phase.label(), waiting.len());
            tracing::warn!(phase, proxies, "the rotation waits: {}", named.join("; "));
        }
        self.looks += 1;
    }
}

/// Looks every second; never ends.
pub(crate) async fn keep_looking<F: Send + 'static>(mut follower: F, look: fn(&mut F, SystemTime)) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let looked = tokio::task::spawn_blocking(move || {
            look(&mut follower, SystemTime::now());
            follower
        });
        match looked.await {
            Ok(back) => follower = back,
            Err(error) => {
                tracing::error!(%error, "the CA is not followed any more; restart control");
                return;
            }
        }
    }
}

/// A proxy, or a copy of the roots, that a rotation waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// `NAMESPACE/POD`; of a copy, where it is.
    pub workload: String,
    /// What it lacks: the end of a sentence that begins with its name.
    pub why: String,
}

impl Waiting {
    /// Somebody whose certificate hangs on an authority that goes.
    pub(crate) fn showing(workload: &str, authority: &str) -> Self {
        Self { workload: workload.to_owned(), why: showing(authority) }
    }
}

/// Whom the phase waits for. Nobody, if there is no rotation.
pub fn waiting(ca: &dyn CertificateAuthority, hub: &Hub) -> Vec<Waiting> {
    let Some(rotation) = ca.rotation() else { return Vec::new() };
    let why = match (rotation.phase, rotation.kind) {
        (Phase::Publishing | Phase::Withdrawing, Kind::TrustDomain) => NO_NAMES.to_owned(),
        (Phase::Publishing | Phase::Withdrawing, Kind::Root | Kind::Issuer) => NO_ROOTS.to_owned(),
        (Phase::Turning, _) => showing(&rotation.from),
    };
    let mut waiting = lagging(hub, &question::about(rotation, hub), &why);
    if matches!(rotation.phase, Phase::Publishing | Phase::Withdrawing) && *hub.loaded().borrow() {
        waiting.extend(hub.copies_behind(Roots::of(ca).told()));
    }
    waiting
}

/// Whose certificate hangs on this authority, or may: live proxies that are away are among them.
pub(crate) fn under(authority: &str, hub: &Hub) -> Vec<Waiting> {
    lagging(hub, &About::Issuer(authority.to_owned()), &showing(authority))
}

fn showing(authority: &str) -> String {
    format!("still shows a certificate of {authority}")
}

/// Live proxies that lack something, wherever they are connected, those that are away, and replicas that do not say.
fn lagging(hub: &Hub, about: &About, why: &str) -> Vec<Waiting> {
    if !*hub.loaded().borrow() {
        let why = "has not read its sources yet, so it does not know who lives".to_owned();
        return vec![Waiting { workload: "control".to_owned(), why }];
    }
    let mut lacks: BTreeMap<Name, String> = BTreeMap::new();
    // Before we look at our own: so one that moves is found with them, here, or away.
    let Others { proxies: mut here, waiting, silent } = hub.replicas.others(hub, about);
    lacks.extend(waiting.into_iter().map(|name| (name, why.to_owned())));
    for stream in hub.streams() {
        if question::lacks(about, &stream, hub) {
            lacks.insert(stream.client.workload.clone(), why.to_owned());
        }
        here.insert(stream.client.workload.clone());
    }
    let away = hub.live().into_iter().filter(|live| !here.contains(live));
    lacks.extend(away.map(|name| (name, "is not connected".to_owned())));
    let lacks = lacks.into_iter().map(|(workload, why)| Waiting { workload: workload.to_string(), why });
    let silent = silent.into_iter().map(|name| Waiting {
        workload: format!("control {name}"),
        why: "has not said how its proxies are".to_owned(),
    });
    lacks.chain(silent).collect()
}

/// What is known of the mesh's certificates: `/debug/certificates`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The trust domain, by the name that leaves are issued in.
    pub trust_domain: String,
    /// Other names under which its workloads are believed.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Trust domains that the mesh is federated with.
    #[serde(default)]
    pub federated: Vec<String>,
    /// The issuer that signs leaves, or the name of the CA elsewhere that does.
    pub issuing: String,
    /// A CA elsewhere issues: roots are exchanged there, and control follows.
    #[serde(default)]
    pub elsewhere: bool,
    /// Roots, then issuers.
    pub authorities: Vec<AuthorityReport>,
    /// What is under way.
    pub rotation: Option<RotationReport>,
    /// Every proxy that is connected, or ought to be.
    pub proxies: Vec<ProxyReport>,
}

/// A root or an issuer.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuthorityReport {
    /// Its name, such as `root-2`.
    pub id: String,
    /// `root` or `issuer`.
    pub role: String,
    /// When it ends, seconds since 1970.
    pub not_after: u64,
    /// Whether proxies are told to believe it, or the root that it leads to.
    pub published: bool,
    /// It was taken out of the file of roots, and is published still.
    #[serde(default)]
    pub leaving: bool,
    /// Who needs it until then.
    #[serde(default)]
    pub held_up_by: Vec<Waiting>,
}

/// A rotation under way.
#[derive(Debug, Serialize, Deserialize)]
pub struct RotationReport {
    /// `root`, `issuer` or `trust-domain`.
    pub kind: Kind,
    /// `publishing`, `turning` or `withdrawing`.
    pub phase: Phase,
    /// The issuer, or the name, that goes.
    pub from: String,
    /// The issuer, or the name, that stays.
    pub to: String,
    /// It was turned back.
    pub aborted: bool,
    /// When the phase began, seconds since 1970.
    pub since: u64,
    /// The phase lasts until then at least, seconds since 1970: for copies of the roots, or for leaves of `from` that nobody sees.
    pub until: Option<u64>,
    /// Whom it waits for.
    pub waiting: Vec<Waiting>,
}

/// A proxy and the certificate that it shows.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProxyReport {
    /// `NAMESPACE/POD`.
    pub workload: String,
    /// Whether it has a stream to this control; without one the rest is not known.
    pub connected: bool,
    /// Its SPIFFE ID.
    pub identity: Option<String>,
    /// Serial number of the certificate that it has shown, lower-case hex.
    pub serial: Option<String>,
    /// Which of our issuers signed that; none if another CA did.
    pub issuer: Option<String>,
    /// When that ends, seconds since 1970.
    pub not_after: Option<u64>,
    /// Whether it has acknowledged the roots as they are now.
    pub roots_acknowledged: bool,
}

impl Report {
    /// As it is now.
    pub fn new(ca: &dyn CertificateAuthority, hub: &Hub) -> Self {
        let mut report = Self { proxies: proxies(hub), federated: hub.federated(), ..Self::of(ca) };
        if let Some(rotation) = &mut report.rotation {
            rotation.waiting = waiting(ca, hub);
        }
        for leaving in report.authorities.iter_mut().filter(|authority| authority.leaving) {
            leaving.held_up_by.extend(under(&leaving.id, hub));
        }
        report
    }

    /// Of the CA alone: nothing is known of the proxies.
    pub fn of(ca: &dyn CertificateAuthority) -> Self {
        let rotation = ca.rotation().map(|rotation| RotationReport {
            kind: rotation.kind,
            phase: rotation.phase,
            from: rotation.from.clone(),
            to: rotation.to.clone(),
            aborted: rotation.aborted,
            since: rotation.since,
            until: rotation.until,
            waiting: Vec::new(),
        });
        Self {
            trust_domain: ca.trust_domain().to_owned(),
            aliases: ca.called().aliases,
            federated: Vec::new(),
            issuing: ca.issuing().to_owned(),
            elsewhere: ca.elsewhere().is_some(),
            authorities: ca.authorities(),
            rotation,
            proxies: Vec::new(),
        }
    }
}

fn proxies(hub: &Hub) -> Vec<ProxyReport> {
    let streams = hub.streams();
    let here: BTreeSet<&Name> = streams.iter().map(|stream| &stream.client.workload).collect();
    let away = hub.live().into_iter().filter(|live| !here.contains(live)).map(|name| ProxyReport {
        workload: name.to_string(),
        connected: false,
        identity: None,
        serial: None,
        issuer: None,
        not_after: None,
        roots_acknowledged: false,
    });
    let connected = streams.iter().map(|stream| {
        let proved = &stream.client.proved;
        ProxyReport {
            workload: stream.client.workload.to_string(),
            connected: true,
            identity: Some(proved.identity.to_string()),
            serial: Some(proved.serial.to_string()),
            issuer: proved.issuer.as_deref().map(str::to_owned),
            not_after: Some(seconds(proved.not_after)),
            roots_acknowledged: hub.believes(stream),
        }
    });
    let mut proxies: Vec<_> = connected.chain(away).collect();
    proxies.sort_by(|one, two| one.workload.cmp(&two.workload));
    proxies
}

/// Since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
