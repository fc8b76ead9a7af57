//! Which roots and issuers a CA has, and the way from one to the next. Pure: time is an argument, keys are elsewhere.
//!
//! ```text
//!  root    publishing --------------> turning ------------------> withdrawing ----------> done
//!          both roots are published;  issued from the new one;    only the new root is
//!          issued from the old one    both roots are published    published
//!  issuer                             turning -----------------------------------------> done
//!  name    publishing --------------> turning ------------------> withdrawing ----------> done
//!          both names are believed;   issued in the new one;      the old name is not
//!          issued in the old one      both names are believed     believed, unless it is kept
//! ```
//!
//! The name is the trust domain's ([`super::names`]); the roots stay as they are.
//!
//! When a phase is over is seen from outside ([`crate::ca::Ca::advance`] is told): every live proxy has acknowledged the roots
//! (publishing, withdrawing), or shows a leaf of the new issuer (turning). Turning lasts for a leaf's longest life at least, because
//! certificates that nobody sees, such as applications', may live so long.
//!
//! Turning back is the same way, walked from where it was: of the two authorities the other one goes.
//!
//! Invariants
//! - What issues leads to a root that is published.
//! - A root, or a name, is withdrawn only when no leaf under it can be valid.
//! - The first of the published roots is the oldest: who was given the roots before the rotation began knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::names::Names;

/// Other replicas of control see within this time who issues, and their clocks are not further away than that.
const SLACK: Duration = Duration::from_secs(5);
/// Names of the first generation: a CA that was never rotated.
const FIRST_ROOT: &str = "root";
const FIRST_ISSUER: &str = "issuer";

/// What is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The root, and the issuer with it.
    Root,
    /// The issuer; the root stays.
    Issuer,
    /// The name of the trust domain; root and issuer stay.
    #[serde(rename = "trust-domain")]
    TrustDomain,
}

impl Kind {
    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuer => "issuer",
            Self::TrustDomain => "trust domain",
        }
    }
}

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The new root, or name, is published beside the old one, which issues.
    Publishing,
    /// The new one issues; leaves of the old one are still valid.
    Turning,
    /// The old root, or name, is not published any more.
    Withdrawing,
}

impl Phase {
    /// All phases, in their order.
    pub const ALL: [Self; 3] = [Self::Publishing, Self::Turning, Self::Withdrawing];

    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Publishing => "publishing",
            Self::Turning => "turning",
            Self::Withdrawing => "withdrawing",
        }
    }
}

/// A rotation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// What is exchanged.
    pub kind: Kind,
    /// Where it is.
    pub phase: Phase,
    /// The issuer that goes; of a trust domain's rotation the name.
    pub from: String,
    /// The issuer, or the name, that stays.
    pub to: String,
    /// It was turned back.
    pub aborted: bool,
    /// When the phase began, seconds since 1970.
    pub since: u64,
    /// The phase lasts until then at least, seconds since 1970: while publishing for copies of the roots that nobody sees, while turning for
    /// leaves that nobody sees. Not known before control has said how long.
    #[serde(default)]
    pub until: Option<u64>,
}

/// What a phase has to wait for although nobody can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Copies of the roots follow within this time: those of federated trust domains, of images, of machines beside the orchestrator.
    pub copies: Duration,
    /// The longest life of a leaf.
    pub leaves: Duration,
}

/// Why a step is not made. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// One at a time.
    #[error("a rotation of the {kind} is {phase} already; wait for its end or turn it back with --abort", kind = kind.label(), phase = phase.label())]
    UnderWay {
        /// Of what.
        kind: Kind,
        /// Where it is.
        phase: Phase,
    },
    /// There is nothing to go on with or to turn back.
    #[error("no rotation is under way")]
    None,
    /// Copies of the roots, or leaves of the old issuer, have still time.
    #[error("the phase lasts for another {} s at least", .0.as_secs())]
    Early(Duration),
    /// Somebody else keeps the issuer.
    #[error("the issuer comes from elsewhere (--issuer-from): exchange it there, and control follows")]
    Given,
    /// Turned back before.
    #[error("the rotation is being turned back already")]
    Aborted,
    /// The old root or name is withdrawn.
    #[error("the old {kind} is withdrawn already and every proxy uses the new one; to go back, rotate again", kind = .0.label())]
    TooLate(Kind),
    /// Nobody said how it is to be called.
    #[error("say what the trust domain is to be called: --to NAME")]
    Unnamed,
    /// It is called so.
    #[error("the trust domain is called `{0}` already")]
    Name(String),
    /// Not one of its other names.
    #[error("`{0}` is no other name of the trust domain: weft certs status says which there are")]
    NoAlias(String),
    /// Control has a certificate in each name that it ever had.
    #[error("the trust domain has had {0} names, which are the most; go back to one of them")]
    Names(usize),
}

/// New authorities that [`Authorities::begin`] has named, for which keys and certificates are to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// A new root.
    pub root: Option<String>,
    /// The new issuer, and the root that signs it.
    pub issuer: (String, String),
}

/// The roots and issuers of a CA, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorities {
    /// Issuers, and the root that each leads to.
    issuers: BTreeMap<String, String>,
    /// The roots that are believed, the oldest first.
    published: Vec<String>,
    /// The issuer that signs leaves.
    issuing: String,
    /// How many generations there have been.
    generations: u32,
    /// Somebody else keeps the issuer: nobody else begins or turns back.
    #[serde(default)]
    given: bool,
    /// What the trust domain is called.
    #[serde(default, skip_serializing_if = "Names::is_first")]
    names: Names,
    rotation: Option<Rotation>,
}

impl Authorities {
    /// One root, one issuer.
    pub fn first() -> Self {
        Self {
            issuers: BTreeMap::from([(FIRST_ISSUER.to_owned(), FIRST_ROOT.to_owned())]),
            published: vec![FIRST_ROOT.to_owned()],
            issuing: FIRST_ISSUER.to_owned(),
            generations: 1,
            given: false,
            names: Names::default(),
            rotation: None,
        }
    }

    /// Whether what was read from a file is what this module could have written.
    pub fn is_sound(&self) -> bool {
        let known = |issuer: &str| self.issuers.contains_key(issuer);
        let led = self.issuers.get(&self.issuing).is_some_and(|root| self.published.contains(root));
        let rotating = self.rotation.as_ref().is_none_or(|rotation| {
            let Rotation { from, to, .. } = rotation;
            match rotation.kind {
                Kind::Root | Kind::Issuer => known(from) && known(to) && [from, to].contains(&&self.issuing),
                Kind::TrustDomain => self.names.may_be(from) && self.names.may_be(to),
            }
        });
        let plain =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let names = self.issuers.iter().flat_map(|(issuer, root)| [issuer, root]).chain(&self.published);
        led && rotating && self.names.is_sound() && names.into_iter().all(|name| !name.is_empty() && plain(name))
    }

    /// Issuers, and the root that each leads to.
    pub fn issuers(&self) -> &BTreeMap<String, String> {
        &self.issuers
    }

    /// The roots that are believed, the oldest first.
    pub fn published(&self) -> &[String] {
        &self.published
    }

    /// The issuer that signs leaves.
    pub fn issuing(&self) -> &str {
        &self.issuing
    }

    /// The issuer of control's own certificate: under the oldest root that is published, since a new proxy may have been given no other.
    pub fn controls(&self) -> &str {
        let under_oldest = |issuer: &str| self.issuers.get(issuer) == self.published.first();
        if under_oldest(&self.issuing) {
            return &self.issuing;
        }
        self.issuers.keys().map(String::as_str).find(|issuer| under_oldest(issuer)).unwrap_or(&self.issuing)
    }

    /// What is under way.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }

    /// All roots that have a part in this.
    pub fn roots(&self) -> impl Iterator<Item = &str> {
        let issuers = self.issuers.values().filter(|root| !self.published.contains(root));
        self.published.iter().chain(issuers).map(String::as_str)
    }

    /// What the trust domain is called, whose CA was made under the name `first`.
    pub fn called<'a>(&'a self, first: &'a str) -> &'a str {
        self.names.issuing(first)
    }

    /// Other names under which its workloads are believed, sorted.
    pub fn aliases<'a>(&'a self, first: &'a str) -> BTreeSet<&'a str> {
        let changing = self.rotation.as_ref().filter(|rotation| rotation.kind == Kind::TrustDomain);
        let both = changing.filter(|rotation| rotation.phase != Phase::Withdrawing);
        let both = both.into_iter().flat_map(|rotation| [&*rotation.from, &*rotation.to]);
        self.names.kept().chain(both).filter(|name| *name != self.called(first)).collect()
    }

    /// Every name that it has, had or was about to have, the oldest first: nobody else can have one of these.
    pub fn every_name<'a>(&'a self, first: &'a str) -> impl Iterator<Item = &'a str> {
        self.names.every(first)
    }

    /// From here on the issuer is what somebody else gives.
    #[must_use]
    pub fn given(self) -> Self {
        Self { given: true, ..self }
    }

    /// Begins a rotation to an authority of our own; for another name see [`Authorities::rename`].
    pub fn begin(&mut self, kind: Kind, now: SystemTime) -> Result<Begun, RotationError> {
        if self.given { Err(RotationError::Given) } else { self.begin_to(kind, now) }
    }

    /// Begins a rotation, wherever the new authority comes from.
    pub fn begin_to(&mut self, kind: Kind, now: SystemTime) -> Result<Begun, RotationError> {
        self.is_free()?;
        let number = self.generations + 1;
        let (from, to) = (self.issuing.clone(), format!("{FIRST_ISSUER}-{number}"));
        let (root, signer) = match kind {
            Kind::Root => {
                let root = format!("{FIRST_ROOT}-{number}");
                self.published.push(root.clone());
                (Some(root.clone()), root)
            }
            Kind::Issuer => (None, self.issuers.get(&from).cloned().unwrap_or_default()),
            Kind::TrustDomain => return Err(RotationError::Unnamed),
        };
        self.generations = number;
        self.issuers.insert(to.clone(), signer.clone());
        self.rotation = Some(Rotation::new(kind, Phase::Publishing, from, to.clone(), now));
        if kind == Kind::Issuer {
            // Peers know the root: there is nothing to publish.
            self.turn(now);
        }
        Ok(Begun { root, issuer: (to, signer) })
    }

    /// Begins to call the trust domain `to`; what it is called now is one of its other names afterwards if it is to be `kept`.
    pub fn rename(&mut self, first: &str, to: &str, kept: bool, now: SystemTime) -> Result<(), RotationError> {
        self.is_free()?;
        let from = self.called(first).to_owned();
        if from == to {
            return Err(RotationError::Name(from));
        }
        self.names.begin(first, to, kept)?;
        self.rotation = Some(Rotation::new(Kind::TrustDomain, Phase::Publishing, from, to.to_owned(), now));
        Ok(())
    }

    /// Gives up a name that was kept. Nothing has been issued in it for long: there is only to be withdrawn.
    pub fn drop_alias(&mut self, first: &str, alias: &str, now: SystemTime) -> Result<(), RotationError> {
        self.is_free()?;
        if !self.names.give_up(alias) {
            return Err(RotationError::NoAlias(alias.to_owned()));
        }
        let called = self.called(first).to_owned();
        self.rotation = Some(Rotation::new(Kind::TrustDomain, Phase::Withdrawing, alias.to_owned(), called, now));
        Ok(())
    }

    fn is_free(&self) -> Result<(), RotationError> {
        match self.rotation {
            Some(Rotation { kind, phase, .. }) => Err(RotationError::UnderWay { kind, phase }),
            None => Ok(()),
        }
    }

    /// Whether the first thing to do is to say how long the phase lasts at least, for which nobody has to be ready.
    pub fn is_just_begun(&self) -> bool {
        let rotation = self.rotation.as_ref();
        rotation.is_some_and(|rotation| rotation.phase != Phase::Withdrawing && rotation.until.is_none())
    }

    /// The phase is over as far as proxies are concerned: the next one. Where there is something to wait for that nobody sees, the first
    /// call in a phase begins that.
    pub fn advance(&mut self, waits: Waits, now: SystemTime) -> Result<(), RotationError> {
        let rotation = self.rotation.as_mut().ok_or(RotationError::None)?;
        match (rotation.phase, rotation.until) {
            (Phase::Publishing, None) => rotation.until = Some(seconds(now + waits.copies)),
            (Phase::Turning, None) => rotation.until = Some(seconds(now + waits.leaves + SLACK) + 1),
            (Phase::Publishing | Phase::Turning, Some(until)) if until > seconds(now) => {
                return Err(RotationError::Early(Duration::from_secs(until - seconds(now))));
            }
            (Phase::Publishing, Some(_)) => self.turn(now),
            (Phase::Turning, Some(_)) if rotation.kind == Kind::Root => self.withdraw(now),
            (Phase::Turning, Some(_)) if rotation.kind == Kind::TrustDomain && !self.names.keeps(&rotation.from) => {
                self.withdraw(now);
            }
            (Phase::Turning | Phase::Withdrawing, _) => self.finish(),
        }
        Ok(())
    }

    /// Turns back.
    pub fn abort(&mut self, now: SystemTime) -> Result<(), RotationError> {
        let rotation = self.rotation.as_mut().ok_or(RotationError::None)?;
        if self.given && rotation.kind != Kind::TrustDomain {
            return Err(RotationError::Given);
        }
        if rotation.aborted {
            return Err(RotationError::Aborted);
        }
        if rotation.phase == Phase::Withdrawing {
            return Err(RotationError::TooLate(rotation.kind));
        }
        rotation.aborted = true;
        std::mem::swap(&mut rotation.from, &mut rotation.to);
        match rotation.phase {
            // Nothing was issued under the new root, or in the new name.
            Phase::Publishing => self.withdraw(now),
            _ => self.turn(now),
        }
        Ok(())
    }

    /// Turns a change of name back before anybody was told of it, and forgets the name.
    pub fn refuse_name(&mut self, now: SystemTime) -> Result<(), RotationError> {
        let rotation = self.rotation.as_ref().filter(|rotation| rotation.kind == Kind::TrustDomain);
        let to = rotation.ok_or(RotationError::None)?.to.clone();
        if self.rotation.as_ref().is_some_and(|rotation| rotation.phase != Phase::Publishing) {
            return Err(RotationError::TooLate(Kind::TrustDomain));
        }
        self.abort(now)?;
        self.finish();
        self.names.forget(&to);
        Ok(())
    }

    fn turn(&mut self, now: SystemTime) {
        if let Some(rotation) = &mut self.rotation {
            match rotation.kind {
                Kind::Root | Kind::Issuer => self.issuing.clone_from(&rotation.to),
                Kind::TrustDomain => self.names.issue_in(&rotation.to),
            }
            rotation.phase = Phase::Turning;
            rotation.since = seconds(now);
            rotation.until = None;
        }
    }

    fn withdraw(&mut self, now: SystemTime) {
        if let Some(rotation) = &mut self.rotation {
            if rotation.kind == Kind::Root {
                let stays = self.issuers.get(&rotation.to);
                self.published.retain(|root| Some(root) == stays);
            }
            rotation.phase = Phase::Withdrawing;
            rotation.since = seconds(now);
            rotation.until = None;
        }
    }

    fn finish(&mut self) {
        if let Some(rotation) = self.rotation.take().filter(|rotation| rotation.kind == Kind::TrustDomain) {
            self.names.settle(&rotation.to);
        }
        self.issuers.retain(|issuer, _| *issuer == self.issuing);
    }
}

impl Rotation {
    fn new(kind: Kind, phase: Phase, from: String, to: String, now: SystemTime) -> Self {
        Self { kind, phase, from, to, aborted: false, since: seconds(now), until: None }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
