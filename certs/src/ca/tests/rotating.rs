//! A rotation on disk.

use super::*;
use crate::ca::rotation::Phase;

const WAITS: Waits = Waits { copies: Duration::ZERO, leaves: HOUR };

/// After the last leaf of before has ended.
fn later(now: SystemTime) -> SystemTime {
    now + HOUR + Duration::from_secs(10)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("keys")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn root_of(chain: &[String]) -> &str {
    chain.last().unwrap()
}

fn issue(ca: &Ca) -> Vec<String> {
    ca.issue(&KeyPair::generate().unwrap().csr(&web()).unwrap(), &web(), HOUR, SystemTime::now()).unwrap()
}

fn phase(ca: &Ca) -> Option<Phase> {
    ca.authorities().rotation().map(|rotation| rotation.phase)
}

/// Whether a chain leads to the roots that somebody holds.
fn leads(chain: &[String], roots: &str) -> bool {
    let pem = chain[..2].concat();
    crate::inspect::inspect(pem.as_bytes(), Some(roots.as_bytes()), SystemTime::now()).unwrap().ok
}

#[test]
fn a_root_is_exchanged_on_disk_step_by_step() {
    let (dir, first) = ca();
    let dir = dir.path().join("ca");
    let (now, before) = (SystemTime::now(), first.root_pem().to_owned());

    let second = first.begin(Kind::Root, now).unwrap();
    assert_eq!(phase(&second), Some(Phase::Publishing));
    let published = fs::read_to_string(dir.join("root.pem")).unwrap();
    assert!(published.starts_with(&before) && published.len() > before.len(), "new proxies are given both");
    assert_eq!(second.root_pem(), published);
    assert_eq!(root_of(&issue(&second)), before);

    let third = (0..3).fold(second, |ca, _| ca.advance(WAITS, now).unwrap());
    let leaf = issue(&third);
    assert!(!leads(&leaf, &before) && leads(&leaf, &published));
    let control = third.issue_control(&[], HOUR, SystemTime::now()).unwrap().remove(0);
    assert!(leads(control.chain_pem(), &before), "who was given the old root alone can still join");
    assert!(matches!(third.advance(WAITS, now), Err(CaError::Rotation(RotationError::Early(_)))));

    let fourth = third.advance(WAITS, later(now)).unwrap();
    let after = fs::read_to_string(dir.join("root.pem")).unwrap();
    assert_eq!((format!("{before}{after}"), fourth.root_pem()), (published, &*after));
    assert!(leads(&leaf, &after));
    assert!(leads(fourth.issue_control(&[], HOUR, SystemTime::now()).unwrap()[0].chain_pem(), &after));
    assert_eq!(fourth.known().len(), 4, "the old key is kept until all have acknowledged");

    let last = fourth.advance(WAITS, later(now)).unwrap();
    assert!(phase(&last).is_none());
    assert_eq!(names(&dir), ["ca.json", "issuer-2.key", "issuer-2.pem", "root-2.key", "root-2.pem", "token.key"]);
    assert!(names(&dir).iter().all(|name| mode(&dir.join("keys").join(name)) == 0o600));
    assert_eq!(Ca::open(&dir, "cluster.local").unwrap().root_pem(), after);
}

#[test]
fn an_issuer_is_exchanged_under_the_same_root_which_has_to_be_there() {
    let (dir, first) = ca();
    let dir = dir.path().join("ca");
    let key = dir.join("keys/root.key");
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let error = first.begin(Kind::Issuer, SystemTime::now()).unwrap_err();
    assert!(error.to_string().contains("keys/root.key; put it back"), "{error}");
    assert!(first.reload().unwrap().is_none(), "nothing has changed");
    fs::write(&key, kept).unwrap();

    let second = first.begin(Kind::Issuer, SystemTime::now()).unwrap();
    let leaf = issue(&second);
    assert!(leads(&leaf, first.root_pem()) && leaf[1] != issue(&first)[1]);
    let der = |pem: &str| x509::certificates(pem).unwrap().remove(0);
    assert_eq!(second.issuer_named(&der(&leaf[1])), Some("issuer-2"));
    assert_eq!(second.issuer_named(&der(&issue(&first)[1])), Some("issuer"));
    assert_eq!(second.issuer_named(&der(&leaf[2])), None, "a root is no issuer");
    let waiting = second.advance(WAITS, SystemTime::now()).unwrap();
    waiting.advance(WAITS, later(SystemTime::now())).unwrap();
    assert_eq!(names(&dir), ["ca.json", "issuer-2.key", "issuer-2.pem", "root.key", "root.pem", "token.key"]);
}

#[test]
fn of_two_who_change_it_at_once_one_is_told() {
    let (dir, one) = ca();
    let other = Ca::load(&dir.path().join("ca")).unwrap();
    let begun = one.begin(Kind::Root, SystemTime::now()).unwrap();
    assert!(matches!(other.begin(Kind::Root, SystemTime::now()), Err(CaError::Conflict)));
    let other = other.reload().unwrap().unwrap();
    assert_eq!(other.root_pem(), begun.root_pem());
    assert!(other.reload().unwrap().is_none());
    let error = other.begin(Kind::Issuer, SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("of the root is publishing already"), "{error}");
    let back = other.abort(SystemTime::now()).unwrap().advance(WAITS, SystemTime::now()).unwrap();
    assert_eq!(back.root_pem(), one.root_pem());
    assert!(matches!(begun.advance(WAITS, SystemTime::now()), Err(CaError::Conflict)));
}

/// `ca.json` of a CA that an earlier version made.
fn as_first_form(dir: &Path) {
    let path = dir.join("keys/ca.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let manifest = manifest.as_object_mut().unwrap();
    manifest.insert("form".into(), 1.into());
    manifest.remove("revision").unwrap();
    manifest.remove("authorities").unwrap();
    fs::write(&path, serde_json::to_vec(manifest).unwrap()).unwrap();
}

#[test]
fn a_ca_of_the_first_form_is_used_as_it_is_and_can_be_rotated() {
    let (dir, made) = ca();
    let dir = dir.path().join("ca");
    as_first_form(&dir);
    let kept = fs::read(dir.join("keys/ca.json")).unwrap();
    let opened = Ca::open(&dir, "cluster.local").unwrap();
    assert_eq!((opened.root_pem(), fs::read(dir.join("keys/ca.json")).unwrap()), (made.root_pem(), kept));
    opened.begin(Kind::Root, SystemTime::now()).unwrap();
    assert_eq!(phase(&Ca::load(&dir).unwrap()), Some(Phase::Publishing));
}

#[test]
fn what_a_crash_in_the_middle_left_is_in_nobodys_way() {
    let (dir, first) = ca();
    let keys = dir.path().join("ca/keys");
    // The files of the next generation were written, and then the power went.
    fs::write(keys.join("root-2.pem"), "half").unwrap();
    fs::write(keys.join("issuer-2.key"), "half").unwrap();
    let again = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    assert_eq!(again.root_pem(), first.root_pem());
    let begun = again.begin(Kind::Root, SystemTime::now()).unwrap();
    let waited = begun.advance(WAITS, SystemTime::now()).unwrap();
    issue(&waited.advance(WAITS, SystemTime::now()).unwrap());
}

#[test]
fn authorities_that_do_not_fit_together_are_damage() {
    let (dir, _) = ca();
    let path = dir.path().join("ca/keys/ca.json");
    let whole = fs::read_to_string(&path).unwrap();
    for (from, to) in [
        ("\"issuing\": \"issuer\"", "\"issuing\": \"other\""),
        ("\"issuing\": \"issuer\"", "\"issuing\": \"issuer\", \"more\": 1"),
        ("\"issuer\": \"root\"", "\"issuer\": \"../root\""),
    ] {
        assert!(whole.contains(from), "{whole}");
        fs::write(&path, whole.replace(from, to)).unwrap();
        assert!(matches!(Ca::load(&dir.path().join("ca")), Err(CaError::Damaged { .. })), "{to}");
    }
    // What a later version has written is no damage.
    fs::write(&path, whole.replace("\"form\": 2", "\"form\": 3, \"more\": {}")).unwrap();
    assert!(matches!(Ca::load(&dir.path().join("ca")), Err(CaError::OtherForm { found: 3, .. })));
}

#[test]
fn only_what_came_of_the_ca_in_force_is_followed() {
    let (dir, ours) = ca();
    let dir = dir.path().join("ca");
    let begun = ours.begin(Kind::Root, SystemTime::now()).unwrap();
    fs::rename(&dir, dir.with_extension("kept")).unwrap();
    assert!(matches!(begun.reload(), Err(CaError::Gone(_))));
    // A replica that starts now makes one anew: that is another CA.
    Ca::open(&dir, "cluster.local").unwrap();
    let error = begun.reload().unwrap_err();
    assert!(matches!(error, CaError::Another { found: 1, known: 2, .. }), "{error}");
    assert!(matches!(ours.reload(), Err(CaError::Another { .. })), "its revision is the same, its root is not");
    // Put back, it is followed again; so is what came of it while nobody looked.
    fs::remove_dir_all(&dir).unwrap();
    fs::rename(dir.with_extension("kept"), &dir).unwrap();
    assert!(begun.reload().unwrap().is_none());
    assert_eq!(ours.reload().unwrap().unwrap().root_pem(), begun.root_pem());
}
