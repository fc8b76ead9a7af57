//! An issuer that somebody else keeps.

use super::*;
use crate::ca::rotation::Phase;

/// Somebody's CA, and where it puts what it gives.
struct Elsewhere {
    dir: tempfile::TempDir,
    ca: Ca,
}

impl Elsewhere {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("theirs"), "cluster.local").unwrap();
        fs::create_dir(dir.path().join("given")).unwrap();
        let elsewhere = Self { dir, ca };
        elsewhere.give();
        elsewhere
    }

    fn given(&self) -> PathBuf {
        self.dir.path().join("given")
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.given().join(name), text).unwrap();
    }

    fn key(&self) -> String {
        let issuing = self.ca.authorities().issuing();
        fs::read_to_string(self.dir.path().join("theirs/keys").join(format!("{issuing}.key"))).unwrap()
    }

    fn give(&self) {
        self.file("tls.crt", &self.ca.leaves.issuer_pem);
        self.file("ca.crt", &self.ca.leaves.root_pem);
        self.file("tls.key", &self.key());
    }

    fn exchange(&mut self, kind: Kind) {
        self.ca = to_the_end(self.ca.begin(kind, SystemTime::now()).unwrap());
        self.give();
    }

    fn read(&self) -> Given {
        Given::read(&self.given()).unwrap()
    }

    fn ours(&self) -> Ca {
        let dir = self.dir.path().join("ours");
        Ca::open_given(&dir, "cluster.local", &self.read(), SystemTime::now()).unwrap()
    }
}

fn issue(ca: &Ca) -> Vec<String> {
    ca.issue(&KeyPair::generate().unwrap().csr(&web()).unwrap(), &web(), HOUR, SystemTime::now()).unwrap()
}

fn to_the_end(ca: Ca) -> Ca {
    let (mut ca, mut now) = (ca, SystemTime::now());
    while ca.authorities().rotation().is_some() {
        now += Duration::from_secs(10);
        ca = ca.advance(Waits { copies: Duration::ZERO, leaves: Duration::ZERO }, now).unwrap();
    }
    ca
}

#[test]
fn what_is_given_issues_and_its_root_is_believed() {
    let elsewhere = Elsewhere::new();
    let ca = elsewhere.ours();
    assert_eq!(ca.root_pem(), elsewhere.ca.root_pem());
    assert_eq!(issue(&ca)[1..], [elsewhere.ca.leaves.issuer_pem.clone(), elsewhere.ca.leaves.root_pem.clone()]);
    assert!(!elsewhere.dir.path().join("ours/keys/root.key").exists(), "nobody has given us that");
    assert!(ca.follow(&elsewhere.read(), SystemTime::now()).unwrap().is_none(), "it is the same");
    let error = ca.begin(Kind::Root, SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("--issuer-from"), "{error}");
}

#[test]
fn another_issuer_under_the_same_root_is_turned_to() {
    let mut elsewhere = Elsewhere::new();
    let ca = elsewhere.ours();
    elsewhere.exchange(Kind::Issuer);
    let turning = ca.follow(&elsewhere.read(), SystemTime::now()).unwrap().unwrap();
    let rotation = turning.authorities().rotation().unwrap();
    assert_eq!((rotation.kind, rotation.phase), (Kind::Issuer, Phase::Turning));
    assert_eq!(issue(&turning)[1], elsewhere.ca.leaves.issuer_pem);
    assert!(matches!(turning.abort(SystemTime::now()), Err(CaError::Rotation(RotationError::Given))));
    let done = to_the_end(turning);
    assert!(done.follow(&elsewhere.read(), SystemTime::now()).unwrap().is_none());
}

#[test]
fn another_root_is_published_before_anything_is_issued_under_it() {
    let mut elsewhere = Elsewhere::new();
    let ca = elsewhere.ours();
    let before = elsewhere.ca.root_pem().to_owned();
    elsewhere.exchange(Kind::Root);
    let publishing = ca.follow(&elsewhere.read(), SystemTime::now()).unwrap().unwrap();
    assert_eq!(publishing.root_pem(), format!("{before}{}", elsewhere.ca.root_pem()));
    assert_eq!(issue(&publishing)[2], before, "the old one goes on until everybody knows the new root");
    // And if it is exchanged again before that: one at a time.
    elsewhere.exchange(Kind::Root);
    assert!(publishing.follow(&elsewhere.read(), SystemTime::now()).unwrap().is_none());
    let second = to_the_end(publishing);
    let third = second.follow(&elsewhere.read(), SystemTime::now()).unwrap().unwrap();
    assert_eq!(to_the_end(third).root_pem(), elsewhere.ca.root_pem());
}

#[test]
fn a_ca_of_our_own_becomes_a_given_one_by_rotation() {
    let elsewhere = Elsewhere::new();
    let (_dir, own) = ca();
    let publishing = own.follow(&elsewhere.read(), SystemTime::now()).unwrap().unwrap();
    assert_eq!(issue(&publishing)[2], own.root_pem());
    assert_eq!(to_the_end(publishing).root_pem(), elsewhere.ca.root_pem());
}

#[test]
fn what_could_not_issue_is_refused_in_words_and_changes_nothing() {
    let elsewhere = Elsewhere::new();
    let ca = elsewhere.ours();
    let other = Elsewhere::new();
    let leaf = issue(&ca);
    let refused = |wanted: &str| {
        let given = elsewhere.read();
        let error = ca.follow(&given, SystemTime::now()).unwrap_err();
        assert!(matches!(error, CaError::Given { .. }) && error.to_string().contains(wanted), "{wanted}: {error}");
        assert!(ca.reload().unwrap().is_none());
        elsewhere.give();
    };
    elsewhere.file("tls.crt", "nothing");
    refused("tls.crt is no certificate");
    elsewhere.file("tls.crt", &other.ca.leaves.issuer_pem);
    refused("tls.key is not the key of tls.crt");
    elsewhere.file("tls.crt", &other.ca.leaves.issuer_pem);
    elsewhere.file("tls.key", "nothing");
    refused("tls.key is no private key");
    elsewhere.file("tls.crt", &other.ca.leaves.issuer_pem);
    elsewhere.file("tls.key", &other.key());
    refused("would not be believed");
    elsewhere.file("ca.crt", &[ca.root_pem(), other.ca.root_pem()].concat());
    refused("ca.crt is not one certificate");
    // A leaf is no issuer.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    elsewhere.file("tls.crt", &params.self_signed(&key).unwrap().pem());
    elsewhere.file("tls.key", &key.serialize_pem());
    refused("is not taken");
    drop(leaf);
    fs::remove_file(elsewhere.given().join("tls.key")).unwrap();
    assert!(matches!(Given::read(&elsewhere.given()), Err(CaError::File { .. })));
    let late = SystemTime::now() + Duration::from_hours(3651 * 24);
    elsewhere.give();
    other.give();
    assert!(matches!(ca.follow(&other.read(), late), Err(CaError::Given { .. })), "it has expired");
}

#[test]
fn debug_output_of_what_is_given_holds_no_secret() {
    let elsewhere = Elsewhere::new();
    assert!(!format!("{:?}", elsewhere.read()).contains("PRIVATE"));
}
