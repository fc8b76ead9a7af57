//! What is known of the copies, and what is to be done. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::Behind;
use crate::issue::signers::CertificateAuthority;
use crate::rotation::Waiting;

/// So long a copy of a later revision than ours is taken for another replica's, which has seen the CA before us. After that it is a mistake.
const AHEAD: Duration = Duration::from_secs(30);
/// Of the copies that are behind so many are named.
const NAMED: usize = 20;
/// Namespaces that are kept; more are left out, and counted.
pub const MAX_NAMESPACES: usize = 20_000;

/// The roots, and the CA's revision that they are of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// PEM.
    pub pem: String,
    /// Grows with each change of the CA.
    pub revision: u64,
}

impl Roots {
    /// Those of the CA as it is now.
    pub fn of(ca: &dyn CertificateAuthority) -> Self {
        Self { pem: ca.root_pem().to_owned(), revision: ca.revision() }
    }

    /// What tells them from others.
    pub fn told(&self) -> Told {
        Told { digest: xxh3_128(self.pem.as_bytes()), revision: self.revision }
    }
}

/// What a copy holds, in few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Of the PEM text.
    pub digest: u128,
    /// The CA's revision that it says it is of.
    pub revision: u64,
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The ConfigMap in a namespace.
    Namespace(String),
    /// A webhook configuration.
    Webhook(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(namespace) => write!(f, "the ConfigMap in namespace {namespace}"),
            Self::Webhook(name) => write!(f, "the webhook configuration {name}"),
        }
    }
}

/// A copy as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The object's `resourceVersion`: it is written only if it is still this.
    pub version: String,
    /// What it holds.
    pub told: Told,
    /// The `uid` of the webhook configuration that it goes with.
    pub owner: Option<String>,
}

/// A copy as it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it was.
    pub held: Held,
    /// When what it holds was seen first.
    pub since: Instant,
}

/// A webhook configuration: with it, the cluster's garbage collector takes away the ConfigMaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its `uid`.
    pub uid: String,
}

/// Whose the ConfigMaps are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owned {
    /// Nobody's: there is no webhook to go with, and they stay.
    #[default]
    No,
    /// The webhook is not installed: none is made that nobody would take away. Those that are there are kept current.
    Awaited,
    /// This one's.
    By(Owner),
}

/// All that is known.
#[derive(Debug, Default)]
pub struct View {
    wanted: BTreeSet<Place>,
    seen: BTreeMap<Place, Seen>,
    failed: BTreeMap<Place, String>,
    owned: Owned,
    left_out: usize,
}

impl View {
    /// Another place is to have a copy.
    pub fn want(&mut self, place: Place) {
        if self.wanted.len() >= MAX_NAMESPACES && !self.wanted.contains(&place) {
            self.left_out += 1;
        } else {
            self.wanted.insert(place);
        }
    }

    /// It is not to have one any more.
    pub fn forget(&mut self, place: &Place) {
        self.wanted.remove(place);
        self.failed.remove(place);
    }

    /// These namespaces and no others are to have one.
    pub fn want_namespaces(&mut self, namespaces: BTreeSet<Place>) {
        self.left_out = 0;
        self.wanted.retain(|place| matches!(place, Place::Webhook(_)) || namespaces.contains(place));
        for place in namespaces {
            self.want(place);
        }
        let wanted = &self.wanted;
        self.failed.retain(|place, _| wanted.contains(place));
    }

    /// How many namespaces were left out because there are too many.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Whose the ConfigMaps are to be.
    pub fn owned(&mut self, owned: Owned) {
        self.owned = owned;
    }

    /// Who that is.
    pub fn owner(&self) -> Option<&Owner> {
        match &self.owned {
            Owned::By(owner) => Some(owner),
            Owned::No | Owned::Awaited => None,
        }
    }

    /// A copy is there.
    pub fn saw(&mut self, place: Place, held: Held, now: Instant) {
        let before = self.seen.get(&place).filter(|before| before.held.told == held.told);
        let since = before.map_or(now, |before| before.since);
        self.failed.remove(&place);
        self.seen.insert(place, Seen { held, since });
    }

    /// There is none.
    pub fn lost(&mut self, place: &Place) {
        self.seen.remove(place);
    }

    /// These ConfigMaps and no others are there.
    pub fn saw_all_maps(&mut self, maps: BTreeMap<Place, Held>, now: Instant) {
        self.seen.retain(|place, _| matches!(place, Place::Webhook(_)) || maps.contains_key(place));
        for (place, held) in maps {
            self.saw(place, held, now);
        }
    }

    /// It could not be written.
    pub fn failed(&mut self, place: Place, why: String) {
        if self.wanted.contains(&place) {
            self.failed.insert(place, why);
        }
    }

    /// What is to be written, and over what.
    pub fn to_write(&self, roots: Told, now: Instant) -> impl Iterator<Item = (Place, Option<Seen>)> {
        self.wanted.iter().filter_map(move |place| match self.seen.get(place) {
            None => self.may_make(place).then(|| (place.clone(), None)),
            Some(seen) if seen.held.told.digest == roots.digest && self.is_owned(place, &seen.held) => None,
            Some(seen) if seen.held.told.revision > roots.revision && now - seen.since < AHEAD => None,
            Some(seen) => Some((place.clone(), Some(seen.clone()))),
        })
    }

    fn may_make(&self, place: &Place) -> bool {
        matches!(place, Place::Webhook(_)) || self.owned != Owned::Awaited
    }

    fn is_owned(&self, place: &Place, held: &Held) -> bool {
        let theirs = |owner: &Owner| held.owner.as_ref() == Some(&owner.uid);
        matches!(place, Place::Webhook(_)) || self.owner().is_none_or(theirs)
    }

    /// Which copies are behind.
    pub fn behind(&self, roots: Told) -> Behind {
        let current = |place: &Place| match self.seen.get(place) {
            Some(seen) => seen.held.told.digest == roots.digest,
            None => !self.may_make(place),
        };
        let behind: Vec<&Place> = self.wanted.iter().filter(|place| !current(place)).collect();
        let named = behind.iter().take(NAMED).map(|place| {
            let why = match self.failed.get(place) {
                Some(why) => format!("does not have the roots yet: {why}"),
                None => "does not have the roots yet".to_owned(),
            };
            Waiting { workload: place.to_string(), why }
        });
        Behind { roots, count: behind.len(), named: named.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(pem: &str, revision: u64) -> Told {
        Roots { pem: pem.to_owned(), revision }.told()
    }

    fn namespace(name: &str) -> Place {
        Place::Namespace(name.to_owned())
    }

    fn held(version: &str, told: Told) -> Held {
        Held { version: version.to_owned(), told, owner: None }
    }

    fn places(view: &View, roots: Told, now: Instant) -> Vec<(String, Option<String>)> {
        view.to_write(roots, now).map(|(place, seen)| (place.to_string(), seen.map(|seen| seen.held.version))).collect()
    }

    #[test]
    fn what_is_missing_or_differs_is_written_over_what_was_seen() {
        let now = Instant::now();
        let mut view = View::default();
        view.want_namespaces(["a", "b", "c"].map(namespace).into());
        view.want(Place::Webhook("weft".into()));
        view.saw(namespace("b"), held("7", roots("old", 1)), now);
        view.saw(namespace("c"), held("8", roots("new", 1)), now);
        view.saw(namespace("unwanted"), held("9", roots("old", 1)), now);
        let new = roots("new", 2);
        let all = [
            ("the ConfigMap in namespace a".to_owned(), None),
            ("the ConfigMap in namespace b".to_owned(), Some("7".to_owned())),
            ("the webhook configuration weft".to_owned(), None),
        ];
        assert_eq!(places(&view, new, now), all);
        assert_eq!(view.behind(new).count, 3);
        view.saw(namespace("a"), held("10", new), now);
        view.saw(namespace("b"), held("11", new), now);
        view.failed(Place::Webhook("weft".into()), "forbidden".into());
        let behind = view.behind(new);
        assert_eq!((behind.count, &*behind.named[0].why), (1, "does not have the roots yet: forbidden"));
        view.saw(Place::Webhook("weft".into()), held("12", new), now);
        assert_eq!((view.behind(new).count, view.to_write(new, now).count()), (0, 0));
    }

    #[test]
    fn a_replica_that_is_behind_leaves_newer_copies_alone_but_not_a_mistake() {
        let now = Instant::now();
        let mut view = View::default();
        view.want(namespace("a"));
        view.saw(namespace("a"), held("7", roots("newer", 5)), now);
        let ours = roots("ours", 4);
        assert_eq!(places(&view, ours, now + Duration::from_secs(29)), []);
        // Seen again: no longer time for that.
        view.saw(namespace("a"), held("7", roots("newer", 5)), now + Duration::from_secs(20));
        assert_eq!(places(&view, ours, now + Duration::from_secs(30)).len(), 1);
        // Somebody has edited it: mended at once.
        view.saw(namespace("a"), held("8", roots("edited", 4)), now);
        assert_eq!(places(&view, ours, now), [("the ConfigMap in namespace a".to_owned(), Some("8".to_owned()))]);
    }

    #[test]
    fn what_a_webhook_owns_is_made_with_it_and_given_to_it() {
        let now = Instant::now();
        let roots = roots("r", 1);
        let mut view = View::default();
        view.want_namespaces(["a", "b"].map(namespace).into());
        view.saw(namespace("a"), held("1", roots), now);
        view.owned(Owned::Awaited);
        assert_eq!(places(&view, roots, now), [], "none is made that nobody takes away");
        assert_eq!(view.behind(roots).count, 0, "and no rotation waits for it");
        view.owned(Owned::By(Owner { name: "weft".into(), uid: "one".into() }));
        let both = [
            ("the ConfigMap in namespace a".to_owned(), Some("1".to_owned())),
            ("the ConfigMap in namespace b".to_owned(), None),
        ];
        assert_eq!(places(&view, roots, now), both);
        assert_eq!(view.behind(roots).count, 1, "whose it is matters to no rotation");
        for name in ["a", "b"] {
            view.saw(namespace(name), Held { owner: Some("one".into()), ..held("2", roots) }, now);
        }
        assert_eq!(places(&view, roots, now), []);
        view.owned(Owned::By(Owner { name: "weft".into(), uid: "made anew".into() }));
        assert_eq!(places(&view, roots, now).len(), 2);
    }

    #[test]
    fn a_relist_takes_away_what_is_gone() {
        let now = Instant::now();
        let mut view = View::default();
        view.want(Place::Webhook("weft".into()));
        view.want_namespaces(["a", "b"].map(namespace).into());
        view.saw(Place::Webhook("weft".into()), held("1", roots("r", 1)), now);
        view.saw(namespace("a"), held("2", roots("r", 1)), now);
        view.saw(namespace("b"), held("3", roots("r", 1)), now);
        view.saw_all_maps([(namespace("a"), held("2", roots("r", 1)))].into(), now);
        assert_eq!(places(&view, roots("r", 1), now), [("the ConfigMap in namespace b".to_owned(), None)]);
        view.want_namespaces([namespace("a")].into());
        assert_eq!(places(&view, roots("r", 1), now), []);
    }

    #[test]
    fn namespaces_have_a_bound() {
        let mut view = View::default();
        view.want_namespaces((0..MAX_NAMESPACES + 2).map(|number| namespace(&number.to_string())).collect());
        assert_eq!(view.left_out(), 2);
    }

    #[test]
    fn what_was_judged_by_other_roots_is_not_known() {
        let behind = View::default().behind(roots("old", 1));
        assert!(behind.of(roots("old", 1)).is_empty());
        assert_eq!(behind.of(roots("new", 2)).len(), 1);
    }
}
