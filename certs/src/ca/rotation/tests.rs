//! By table, and by property: whatever is done in whatever order.

use proptest::prelude::*;

use super::*;
use crate::ca::names::MAX_NAMES;

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
    assert_eq!(all.abort(at(3700)), Err(RotationError::TooLate(Kind::Root)));
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

const FIRST: &str = "cluster.local";

fn names(authorities: &Authorities) -> (String, String, Option<Phase>) {
    assert!(authorities.is_sound());
    let again = serde_json::to_string(authorities).unwrap();
    assert_eq!(serde_json::from_str::<Authorities>(&again).unwrap(), *authorities);
    let aliases: Vec<_> = authorities.aliases(FIRST).into_iter().collect();
    (authorities.called(FIRST).to_owned(), aliases.join(" "), authorities.rotation().map(|rotation| rotation.phase))
}

fn called(name: &str, aliases: &str, phase: Option<Phase>) -> (String, String, Option<Phase>) {
    (name.to_owned(), aliases.to_owned(), phase)
}

/// From publishing to the end, as long as it takes.
fn through(authorities: &mut Authorities) {
    let mut second = 10_000;
    while authorities.rotation().is_some() {
        second += 5000;
        authorities.advance(WAITS, at(second)).unwrap();
    }
}

#[test]
fn a_name_is_believed_before_anything_is_issued_in_it_and_the_old_one_until_no_leaf_has_it() {
    let mut all = Authorities::first();
    assert!(!serde_json::to_string(&all).unwrap().contains("names"), "a CA that was never renamed is as it was");
    assert_eq!(names(&all), called(FIRST, "", None));
    all.rename(FIRST, "new.example", false, at(0)).unwrap();
    assert!(all.is_just_begun());
    all.advance(WAITS, at(0)).unwrap();
    assert_eq!(names(&all), called(FIRST, "new.example", Some(Phase::Publishing)));
    assert_eq!(all.advance(WAITS, at(10)), Err(RotationError::Early(Duration::from_secs(20))), "partners follow");
    all.advance(WAITS, at(30)).unwrap();
    assert_eq!(names(&all), called("new.example", FIRST, Some(Phase::Turning)));
    all.advance(WAITS, at(30)).unwrap();
    assert_eq!(all.advance(WAITS, at(3600)), Err(RotationError::Early(Duration::from_secs(36))));
    all.advance(WAITS, at(3636)).unwrap();
    assert_eq!(names(&all), called("new.example", "", Some(Phase::Withdrawing)));
    assert_eq!(all.abort(at(3700)), Err(RotationError::TooLate(Kind::TrustDomain)));
    all.advance(WAITS, at(3700)).unwrap();
    assert_eq!(names(&all), called("new.example", "", None));
    assert_eq!(all.every_name(FIRST).collect::<Vec<_>>(), [FIRST, "new.example"], "pods may still be started with it");
    is(&all, "root", "issuer", "issuer", None);
    // And back to the first.
    all.rename(FIRST, FIRST, false, at(4000)).unwrap();
    through(&mut all);
    assert_eq!(names(&all), called(FIRST, "", None));
    assert_eq!(all.every_name(FIRST).count(), 2);
}

#[test]
fn a_name_that_is_kept_is_believed_until_it_is_given_up() {
    let mut all = Authorities::first();
    all.rename(FIRST, "new.example", true, at(0)).unwrap();
    through(&mut all);
    assert_eq!(names(&all), called("new.example", FIRST, None));
    all.rename(FIRST, "newer.example", false, at(0)).unwrap();
    all.abort(at(1)).unwrap();
    through(&mut all);
    assert_eq!(names(&all), called("new.example", FIRST, None), "that it was turned back withdraws no other name");
    assert_eq!(all.drop_alias(FIRST, "newer.example", at(0)), Err(RotationError::NoAlias("newer.example".into())));
    all.drop_alias(FIRST, FIRST, at(0)).unwrap();
    assert_eq!(names(&all), called("new.example", "", Some(Phase::Withdrawing)));
    through(&mut all);
    assert_eq!(names(&all), called("new.example", "", None));
}

#[test]
fn a_change_of_name_turns_back_from_wherever_it_is() {
    // So many steps were made; what is believed beside the old name once it is turned back.
    for (steps, after) in [(1, ""), (2, ""), (3, "new.example"), (4, "new.example")] {
        for kept in [false, true] {
            let mut all = Authorities::first();
            all.rename(FIRST, "new.example", kept, at(0)).unwrap();
            for step in 1..steps {
                all.advance(WAITS, at(step * 40)).unwrap();
            }
            all.abort(at(200)).unwrap();
            assert_eq!(names(&all).0, FIRST, "{steps}");
            assert_eq!(names(&all).1, after, "{steps}");
            through(&mut all);
            assert_eq!(names(&all), called(FIRST, "", None), "{steps}");
            all.rename(FIRST, "new.example", false, at(0)).unwrap();
            through(&mut all);
            assert_eq!(names(&all), called("new.example", "", None), "a wish to keep went with what was turned back");
        }
    }
}

#[test]
fn names_are_few_and_one_thing_is_done_at_a_time() {
    let mut all = Authorities::first();
    assert_eq!(all.rename(FIRST, FIRST, false, at(0)), Err(RotationError::Name(FIRST.into())));
    assert_eq!(all.begin(Kind::TrustDomain, at(0)), Err(RotationError::Unnamed));
    assert_eq!(all, Authorities::first());
    for number in 1..MAX_NAMES {
        all.rename(FIRST, &format!("d{number}.example"), true, at(0)).unwrap();
        let busy = all.begin(Kind::Root, at(0)).unwrap_err();
        assert_eq!(busy, RotationError::UnderWay { kind: Kind::TrustDomain, phase: Phase::Publishing });
        through(&mut all);
    }
    assert_eq!(all.rename(FIRST, "one-more.example", false, at(0)), Err(RotationError::Names(MAX_NAMES)));
    all.rename(FIRST, "d1.example", false, at(0)).unwrap();
    through(&mut all);
    assert_eq!(names(&all).0, "d1.example");
    all.begin(Kind::Issuer, at(0)).unwrap();
    let busy = all.rename(FIRST, FIRST, false, at(0)).unwrap_err();
    assert_eq!(busy, RotationError::UnderWay { kind: Kind::Issuer, phase: Phase::Turning });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin(Kind),
    Rename(&'static str, bool),
    DropAlias(&'static str),
    Advance,
    Abort,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let step = prop_oneof![
        Just(Step::Begin(Kind::Root)),
        Just(Step::Begin(Kind::Issuer)),
        (prop::sample::select(vec![FIRST, "a.example", "b.example"]), any::<bool>())
            .prop_map(|(name, kept)| Step::Rename(name, kept)),
        prop::sample::select(vec![FIRST, "a.example"]).prop_map(Step::DropAlias),
        Just(Step::Advance),
        Just(Step::Advance),
        Just(Step::Abort),
    ];
    prop::collection::vec((step, 0_u64..5000), 0..40)
}

proptest! {
    /// Whatever is done in whatever order: a leaf that is valid leads to a root that is published, in a name that is believed, and what
    /// cannot be done changes nothing.
    #[test]
    fn no_valid_leaf_is_ever_without_its_root_or_its_name(steps in steps()) {
        let mut all = Authorities::first();
        let mut now = 0;
        // Until when a leaf under a root may be valid.
        let mut leaves: BTreeMap<String, u64> = BTreeMap::new();
        let mut named: BTreeMap<String, u64> = BTreeMap::new();
        for (step, passes) in steps {
            let root = all.issuers()[all.issuing()].clone();
            // One is issued at the last moment before.
            now += passes;
            leaves.insert(root, now + HOUR.as_secs());
            named.insert(all.called(FIRST).to_owned(), now + HOUR.as_secs());
            let before = all.clone();
            let done = match step {
                Step::Begin(kind) => all.begin(kind, at(now)).map(|_| ()),
                Step::Rename(name, kept) => all.rename(FIRST, name, kept, at(now)),
                Step::DropAlias(name) => all.drop_alias(FIRST, name, at(now)),
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
            for (name, until) in &named {
                let believed = name == all.called(FIRST) || all.aliases(FIRST).contains(&**name);
                prop_assert!(*until <= now || believed, "{name} until {until} at {now}: {all:?}");
            }
            prop_assert!(all.published().contains(&all.issuers()[all.controls()]));
            prop_assert!(all.issuers().len() <= 2 && all.published().len() <= 2);
        }
    }
}
