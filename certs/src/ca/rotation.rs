//! Which roots and issuers a CA has, and the way from one to the next. Pure: time is an argument, keys are elsewhere.
//!
//! ```text
//!  root    publishing --------------> turning ------------------> withdrawing ----------> done
//!          both roots are published;  issued from the new one;    only the new root is
//!          issued from the old one    both roots are published    published
//!  issuer                             turning -----------------------------------------> done
//! ```
//!
//! When a phase is over is seen from outside ([`crate::ca::Ca::advance`] is told): every live proxy has acknowledged the roots
//! (publishing, withdrawing), or shows a leaf of the new issuer (turning). Turning lasts for a leaf's longest life at least, because
//! certificates that nobody sees, such as applications', may live so long.
//!
//! Turning back is the same way, walked from where it was: of the two authorities the other one goes.
//!
//! Invariants
//! - What issues leads to a root that is published.
//! - A root is withdrawn only when no leaf under it can be valid.
//! - The first of the published roots is the oldest: who was given the roots before the rotation began knows it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

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
}

impl Kind {
    /// Its word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Issuer => "issuer",
        }
    }
}

/// Where a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The new root is published beside the old one, which issues.
    Publishing,
    /// The new one issues; leaves of the old one are still valid.
    Turning,
    /// The old root is not published any more.
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
    /// The issuer that goes.
    pub from: String,
    /// The issuer that stays.
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
    /// The old root is withdrawn.
    #[error("the old root is withdrawn already and every proxy uses the new one; to go back, rotate again")]
    TooLate,
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
            rotation: None,
        }
    }

    /// Whether what was read from a file is what this module could have written.
    pub fn is_sound(&self) -> bool {
        let known = |issuer: &str| self.issuers.contains_key(issuer);
        let led = self.issuers.get(&self.issuing).is_some_and(|root| self.published.contains(root));
        let rotating = self.rotation.as_ref().is_none_or(|rotation| {
            known(&rotation.from)
                && known(&rotation.to)
                && (rotation.from == self.issuing || rotation.to == self.issuing)
        });
        let plain =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        let names = self.issuers.iter().flat_map(|(issuer, root)| [issuer, root]).chain(&self.published);
        led && rotating && names.into_iter().all(|name| !name.is_empty() && plain(name))
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

    /// From here on the issuer is what somebody else gives.
    #[must_use]
    pub fn given(self) -> Self {
        Self { given: true, ..self }
    }

    /// Begins a rotation to an authority of our own.
    pub fn begin(&mut self, kind: Kind, now: SystemTime) -> Result<Begun, RotationError> {
        if self.given { Err(RotationError::Given) } else { self.begin_to(kind, now) }
    }

    /// Begins a rotation, wherever the new authority comes from.
    pub fn begin_to(&mut self, kind: Kind, now: SystemTime) -> Result<Begun, RotationError> {
        if let Some(Rotation { kind, phase, .. }) = self.rotation {
            return Err(RotationError::UnderWay { kind, phase });
        }
        self.generations += 1;
        let number = self.generations;
        let (from, to) = (self.issuing.clone(), format!("{FIRST_ISSUER}-{number}"));
        let (root, signer) = match kind {
            Kind::Root => {
                let root = format!("{FIRST_ROOT}-{number}");
                self.published.push(root.clone());
                (Some(root.clone()), root)
            }
            Kind::Issuer => (None, self.issuers.get(&from).cloned().unwrap_or_default()),
        };
        self.issuers.insert(to.clone(), signer.clone());
        let rotation = Rotation {
            kind,
            phase: Phase::Publishing,
            from,
            to: to.clone(),
            aborted: false,
            since: seconds(now),
            until: None,
        };
        self.rotation = Some(rotation);
        if kind == Kind::Issuer {
            // Peers know the root: there is nothing to publish.
            self.turn(now);
        }
        Ok(Begun { root, issuer: (to, signer) })
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
            (Phase::Turning | Phase::Withdrawing, _) => self.finish(),
        }
        Ok(())
    }

    /// Turns back.
    pub fn abort(&mut self, now: SystemTime) -> Result<(), RotationError> {
        let rotation = self.rotation.as_mut().ok_or(RotationError::None)?;
        if self.given {
            return Err(RotationError::Given);
        }
        if rotation.aborted {
            return Err(RotationError::Aborted);
        }
        if rotation.phase == Phase::Withdrawing {
            return Err(RotationError::TooLate);
        }
        rotation.aborted = true;
        std::mem::swap(&mut rotation.from, &mut rotation.to);
        match rotation.phase {
            // Nothing was issued under the new root.
            Phase::Publishing => self.withdraw(now),
            _ => self.turn(now),
        }
        Ok(())
    }

    fn turn(&mut self, now: SystemTime) {
        if let Some(rotation) = &mut self.rotation {
            self.issuing.clone_from(&rotation.to);
            rotation.phase = Phase::Turning;
            rotation.since = seconds(now);
            rotation.until = None;
        }
    }

    fn withdraw(&mut self, now: SystemTime) {
        if let Some(rotation) = &mut self.rotation {
            let stays = self.issuers.get(&rotation.to);
            self.published.retain(|root| Some(root) == stays);
            rotation.phase = Phase::Withdrawing;
            rotation.since = seconds(now);
            rotation.until = None;
        }
    }

    fn finish(&mut self) {
        self.rotation = None;
        self.issuers.retain(|issuer, _| *issuer == self.issuing);
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const WAITS: Waits = Waits { copies: Duration::from_secs(30), leaves: HOUR };

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn shape(authorities: &Authorities) -> (String, String, &str, Option<Phase>) {
        let rotation = authorities.rotation();
        (
            authorities.published().join(" "),
            authorities.issuing().to_owned(),
            authorities.controls(),
            rotation.map(|rotation| rotation.phase),
        )
    }

    fn is(authorities: &Authorities, published: &str, issuing: &str, controls: &str, phase: Option<Phase>) {
        assert_eq!(shape(authorities), (published.to_owned(), issuing.to_owned(), controls, phase));
        assert!(authorities.is_sound());
    }

    #[test]
    fn a_root_goes_step_by_step_and_control_is_known_by_the_old_one_until_it_is_withdrawn() {
        let mut all = Authorities::first();
        is(&all, "root", "issuer", "issuer", None);
        let begun = all.begin(Kind::Root, at(0)).unwrap();
        assert_eq!(begun, Begun { root: Some("root-2".into()), issuer: ("issuer-2".into(), "root-2".into()) });
        assert!(all.is_just_begun());
        all.advance(WAITS, at(0)).unwrap();
        is(&all, "root root-2", "issuer", "issuer", Some(Phase::Publishing));
        assert_eq!(all.advance(WAITS, at(10)), Err(RotationError::Early(Duration::from_secs(20))), "copies follow");
        all.advance(WAITS, at(30)).unwrap();
        is(&all, "root root-2", "issuer-2", "issuer", Some(Phase::Turning));
        assert!(all.is_just_begun());
        all.advance(WAITS, at(30)).unwrap();
        assert!(!all.is_just_begun());
        assert_eq!(all.advance(WAITS, at(3600)), Err(RotationError::Early(Duration::from_secs(36))));
        all.advance(WAITS, at(3636)).unwrap();
        is(&all, "root-2", "issuer-2", "issuer-2", Some(Phase::Withdrawing));
        assert_eq!(all.abort(at(3700)), Err(RotationError::TooLate));
        all.advance(WAITS, at(3700)).unwrap();
        is(&all, "root-2", "issuer-2", "issuer-2", None);
        assert_eq!(all.issuers().len(), 1);
        assert_eq!(all.advance(WAITS, at(3700)), Err(RotationError::None));
        assert_eq!(all.begin(Kind::Root, at(4000)).unwrap().issuer.0, "issuer-3", "no name comes twice");
    }

    #[test]
    fn an_issuer_goes_without_anything_to_publish() {
        let mut all = Authorities::first();
        let begun = all.begin(Kind::Issuer, at(0)).unwrap();
        assert_eq!(begun, Begun { root: None, issuer: ("issuer-2".into(), "root".into()) });
        is(&all, "root", "issuer-2", "issuer-2", Some(Phase::Turning));
        let twice = all.begin(Kind::Root, at(1)).unwrap_err();
        assert_eq!(twice, RotationError::UnderWay { kind: Kind::Issuer, phase: Phase::Turning });
        all.advance(WAITS, at(0)).unwrap();
        all.advance(WAITS, at(3606)).unwrap();
        is(&all, "root", "issuer-2", "issuer-2", None);
    }

    #[test]
    fn turned_back_before_anything_was_issued_the_new_root_is_withdrawn_at_once() {
        let mut all = Authorities::first();
        all.begin(Kind::Root, at(0)).unwrap();
        all.abort(at(1)).unwrap();
        is(&all, "root", "issuer", "issuer", Some(Phase::Withdrawing));
        all.advance(WAITS, at(2)).unwrap();
        is(&all, "root", "issuer", "issuer", None);
    }

    #[test]
    fn turned_back_later_the_leaves_of_the_new_one_have_to_go_first() {
        let mut all = Authorities::first();
        all.begin(Kind::Root, at(0)).unwrap();
        for second in [1, 31, 31] {
            all.advance(WAITS, at(second)).unwrap();
        }
        all.abort(at(100)).unwrap();
        assert!(all.is_just_begun(), "the wait begins anew");
        all.advance(WAITS, at(100)).unwrap();
        is(&all, "root root-2", "issuer", "issuer", Some(Phase::Turning));
        assert_eq!(all.abort(at(100)), Err(RotationError::Aborted));
        assert!(matches!(all.advance(WAITS, at(3700)), Err(RotationError::Early(_))));
        all.advance(WAITS, at(3706)).unwrap();
        is(&all, "root", "issuer", "issuer", Some(Phase::Withdrawing));
        all.advance(WAITS, at(3707)).unwrap();
        is(&all, "root", "issuer", "issuer", None);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Begin(Kind),
        Advance,
        Abort,
    }

    fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
        let step = prop_oneof![
            Just(Step::Begin(Kind::Root)),
            Just(Step::Begin(Kind::Issuer)),
            Just(Step::Advance),
            Just(Step::Advance),
            Just(Step::Abort),
        ];
        prop::collection::vec((step, 0_u64..5000), 0..40)
    }

    proptest! {
        /// Whatever is done in whatever order: a leaf that is valid leads to a root that is published, and what cannot be done changes nothing.
        #[test]
        fn no_valid_leaf_is_ever_without_its_root(steps in steps()) {
            let mut all = Authorities::first();
            let mut now = 0;
            // Until when a leaf under a root may be valid.
            let mut leaves: BTreeMap<String, u64> = BTreeMap::new();
            for (step, passes) in steps {
                let root = all.issuers()[all.issuing()].clone();
                // One is issued at the last moment before.
                now += passes;
                leaves.insert(root, now + HOUR.as_secs());
                let before = all.clone();
                let done = match step {
                    Step::Begin(kind) => all.begin(kind, at(now)).map(|_| ()),
                    Step::Advance => all.advance(WAITS, at(now)),
                    Step::Abort => all.abort(at(now)),
                };
                if done.is_err() {
                    prop_assert_eq!(&before, &all);
                }
                prop_assert!(all.is_sound());
                for (root, until) in &leaves {
                    prop_assert!(*until <= now || all.published().contains(root), "{root} until {until} at {now}: {all:?}");
                }
                prop_assert!(all.published().contains(&all.issuers()[all.controls()]));
                prop_assert!(all.issuers().len() <= 2 && all.published().len() <= 2);
            }
        }
    }
}
