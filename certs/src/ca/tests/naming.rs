//! A change of the trust domain's name on disk, and what is issued in each of its phases.

use super::*;
use crate::ca::rotation::Phase;
use crate::token::{Verifier, sign};

const NEW: &str = "new.example";
const WAITS: Waits = Waits { copies: Duration::ZERO, leaves: HOUR };

fn named(domain: &str) -> Identity {
    web().within(&domain.into())
}

/// Who a leaf says that its holder is, who has asked in one name and proved himself in another.
fn issued(ca: &Ca, asked: &str, proved: &str) -> Result<String, CaError> {
    let request = KeyPair::generate().unwrap().csr(&named(asked)).unwrap();
    let chain = ca.issue(&request, &named(proved), HOUR, SystemTime::now())?;
    Ok(x509::identity(&x509::certificates(&chain[0]).unwrap()[0]).unwrap().to_string())
}

fn controls(ca: &Ca) -> Vec<String> {
    let svids = ca.issue_control(&[], HOUR, SystemTime::now()).unwrap();
    svids.iter().map(|svid| svid.identity().trust_domain.to_string()).collect()
}

fn called(now: &str, aliases: &[&str], former: &[&str]) -> (String, Vec<String>, Vec<String>) {
    let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    (now.to_owned(), texts(aliases), texts(former))
}

/// The phases of a change to [`NEW`]: before it, in each, and after it.
fn phases(first: Ca) -> Vec<(Option<Phase>, Ca)> {
    let mut now = SystemTime::now();
    let mut all = vec![(None, first)];
    let mut ca = all[0].1.rename(NEW, false, now).unwrap();
    while let Some(rotation) = ca.authorities().rotation() {
        let phase = rotation.phase;
        if all.last().unwrap().0 != Some(phase) {
            all.push((Some(phase), Ca::load(ca.home.clone()).unwrap()));
        }
        now += 2 * HOUR;
        ca = ca.advance(WAITS, now).unwrap();
    }
    all.push((None, ca));
    all
}

#[test]
fn whatever_name_is_asked_for_the_one_of_now_is_issued() {
    let (_dir, first) = ca();
    let old = "spiffe://cluster.local/ns/shop/sa/web";
    let new = "spiffe://new.example/ns/shop/sa/web";
    let phases = phases(first);
    assert_eq!(phases.len(), 5);
    for ((phase, ca), is) in phases.iter().zip([old, old, new, new, new]) {
        assert_eq!(issued(ca, "cluster.local", "cluster.local").unwrap(), is, "{phase:?}");
        assert!(issued(ca, "other.example", "cluster.local").is_err(), "{phase:?}");
        assert!(matches!(issued(ca, "other.example", "other.example"), Err(CaError::ForeignIdentity(_))), "{phase:?}");
    }
    for (phase, ca) in &phases[1..] {
        for (asked, proved) in [(NEW, "cluster.local"), ("cluster.local", NEW), (NEW, NEW)] {
            assert!(issued(ca, asked, proved).is_ok(), "{phase:?} {asked} {proved}");
        }
        assert_eq!(controls(ca), ["cluster.local", NEW], "{phase:?}");
    }
    assert!(issued(&phases[0].1, NEW, NEW).is_err() && controls(&phases[0].1) == ["cluster.local"]);
    let believed = |at: usize| {
        let ca: &Ca = &phases[at].1;
        let Called { now, aliases, former } = ca.called();
        (now, aliases, former)
    };
    assert_eq!(believed(1), called("cluster.local", &[NEW], &[]));
    assert_eq!(believed(2), called(NEW, &["cluster.local"], &[]));
    assert_eq!(believed(3), called(NEW, &[], &["cluster.local"]));
}

#[test]
fn control_starts_with_any_name_that_the_mesh_ever_had_and_with_no_other() {
    let (dir, first) = ca();
    let dir = dir.path().join("ca");
    assert!(matches!(Ca::open(&dir, NEW), Err(CaError::OtherTrustDomain { .. })));
    let begun = first.rename(NEW, false, SystemTime::now()).unwrap();
    for _ in 0..2 {
        for name in ["cluster.local", NEW] {
            Ca::open(&dir, name).unwrap();
        }
        assert!(matches!(Ca::open(&dir, "other.example"), Err(CaError::OtherTrustDomain { .. })));
        // What was turned back may have been written into manifests already.
        let _ = begun.abort(SystemTime::now());
    }
    assert!(matches!(first.rename(NEW, false, SystemTime::now()), Err(CaError::Conflict)));
    // But not what turned out to be somebody else's.
    let again = Ca::load(&dir).unwrap().advance(WAITS, SystemTime::now()).unwrap();
    again.rename("theirs.example", true, SystemTime::now()).unwrap().refuse_name(SystemTime::now()).unwrap();
    assert!(matches!(Ca::open(&dir, "theirs.example"), Err(CaError::OtherTrustDomain { .. })));
    assert_eq!(
        Ca::load(&dir).unwrap().called(),
        Called { former: vec![NEW.to_owned()], ..Called::only("cluster.local") }
    );
    assert!(matches!(
        Ca::load(&dir).unwrap().rename("Not A Domain", false, SystemTime::now()),
        Err(CaError::TrustDomain(_))
    ));
}

#[test]
fn a_join_token_is_good_whatever_the_mesh_is_called_when_it_is_used() {
    let (dir, first) = ca();
    let (dir, now) = (dir.path().join("ca"), SystemTime::now());
    let started_before = Verifier::from_ca(&first);
    let before = sign(&dir, &web(), HOUR, now).unwrap();
    assert!(sign(&dir, &named(NEW), HOUR, now).is_err());
    for (phase, ca) in &phases(first)[1..] {
        for verifier in [&started_before, &Verifier::from_ca(ca)] {
            for token in
                [&before, &sign(&dir, &named(NEW), HOUR, now).unwrap(), &sign(&dir, &web(), HOUR, now).unwrap()]
            {
                assert!(verifier.verify(token, now).unwrap().has_path_of(&web()), "{phase:?}");
            }
        }
    }
}
