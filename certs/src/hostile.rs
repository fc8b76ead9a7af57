//! Bytes from strangers: nothing panics, and nothing but the real thing is taken.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use crate::ca::Ca;
use crate::svid::{KeyPair, Svid};
use crate::tls::{Roots, peer_identity};
use crate::token;
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use weft_engine::identity::Identity;

const HOUR: Duration = Duration::from_hours(1);

struct Fixture {
    _dir: tempfile::TempDir,
    ca: Ca,
    verifier: token::Verifier,
    now: SystemTime,
    csr: String,
    token: String,
    leaf: Vec<u8>,
    saved: Vec<u8>,
}

fn web() -> Identity {
    Identity::new("cluster.local", "shop", "web").unwrap()
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    let now = SystemTime::now();
    let key = KeyPair::generate().unwrap();
    let csr = key.csr(&web()).unwrap();
    let chain = ca.issue(&csr, &web(), HOUR, now).unwrap();
    let svid = Svid::new(key, &chain).unwrap();
    svid.save(dir.path()).unwrap();
    Fixture {
        verifier: token::Verifier::from_ca(&ca),
        token: token::sign(&dir.path().join("ca"), &web(), HOUR, now).unwrap(),
        leaf: CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap().to_vec(),
        saved: std::fs::read(dir.path().join("svid.pem")).unwrap(),
        ca,
        now,
        csr,
        _dir: dir,
    }
});

/// The bytes with some of them replaced.
fn altered(bytes: &[u8], edits: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in edits {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
}

fn load(bytes: &[u8]) -> Option<Svid> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("svid.pem"), bytes).unwrap();
    Svid::load(dir.path()).unwrap_or(None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let f = &*FIXTURE;
        prop_assert!(f.ca.issue(&text, &web(), HOUR, f.now).is_err());
        prop_assert!(f.verifier.verify(&text, f.now).is_err());
        prop_assert!(Roots::from_pem(&text).is_err());
        prop_assert!(peer_identity(Some(&[CertificateDer::from(bytes.clone())])).is_err());
        prop_assert!(load(&bytes).is_none());
    }

    #[test]
    fn an_altered_token_is_refused_or_unchanged(edits in edits()) {
        let f = &*FIXTURE;
        let bytes = altered(f.token.as_bytes(), &edits);
        if let Ok(text) = std::str::from_utf8(&bytes) && text.trim() != f.token {
            prop_assert!(f.verifier.verify(text, f.now).is_err(), "{}", text);
        }
    }

    #[test]
    fn an_altered_request_gets_nothing_or_the_proved_identity(edits in edits()) {
        let f = &*FIXTURE;
        if let Ok(text) = String::from_utf8(altered(f.csr.as_bytes(), &edits)) && let Ok(chain) = f.ca.issue(&text, &web(), HOUR, f.now) {
            // Only what stands outside the block may differ.
            let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
            prop_assert_eq!(peer_identity(Some(&[leaf])).unwrap(), web());
        }
    }

    #[test]
    fn an_altered_certificate_is_survived(edits in edits()) {
        let _ = peer_identity(Some(&[CertificateDer::from(altered(&FIXTURE.leaf, &edits))]));
    }

    #[test]
    fn an_altered_saved_certificate_is_not_used(edits in edits()) {
        let bytes = altered(&FIXTURE.saved, &edits);
        prop_assert!(bytes == FIXTURE.saved || load(&bytes).is_none());
    }
}
