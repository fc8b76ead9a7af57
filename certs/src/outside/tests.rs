use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
};

use super::*;
use crate::ca::Ca;

const HOUR: Duration = Duration::from_hours(1);

/// A CA elsewhere, and a request that it is shown.
struct Elsewhere {
    _dir: tempfile::TempDir,
    ca: Ca,
    key: rcgen::KeyPair,
    csr: String,
    web: Identity,
    now: SystemTime,
}

fn elsewhere() -> Elsewhere {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), "cluster.local").unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let web = Identity::new("cluster.local", "shop", "web").unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(web.to_string().try_into().unwrap())];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    Elsewhere { _dir: dir, ca, key, csr, web, now: SystemTime::now() }
}

impl Elsewhere {
    fn roots(&self) -> Vec<Root> {
        Root::read(self.ca.root_pem()).unwrap()
    }

    fn check(&self, sent: &[String]) -> Result<Answer, AnswerError> {
        self.check_by(sent, &self.roots())
    }

    fn check_by(&self, sent: &[String], roots: &[Root]) -> Result<Answer, AnswerError> {
        let asked = Asked { csr: &self.csr, identity: &self.web, pod: Pod::Proved(Some("u1")), life: HOUR };
        check(sent, asked, roots, self.now)
    }

    fn good(&self) -> Vec<String> {
        self.ca.issue(&self.csr, &self.web, HOUR, self.now).unwrap()
    }

    /// What a CA would be wrong to sign.
    fn signed(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<String> {
        self.signed_for(&self.key, change)
    }

    fn signed_for(&self, key: &rcgen::KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.not_before = (self.now - Duration::from_mins(1)).into();
        params.not_after = (self.now + HOUR).into();
        params.subject_alt_names = vec![uri(&self.web.to_string())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let mut chain = self.good();
        chain[0] = self.ca.sign_pem_for_test(&params, key);
        chain
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn what_was_asked_for_is_handed_on_leaf_first_and_root_last() {
    let ca = elsewhere();
    let good = ca.good();
    let answer = ca.check(&good).unwrap();
    assert_eq!(answer.chain.len(), 3);
    assert_eq!((answer.leaf.identity, answer.leaf.pod), (ca.web.clone(), None));
    // As istio-csr has it: the chain in one element, the root in another; a CA may keep the root to itself, or send others besides.
    let other = elsewhere();
    for sent in [
        vec![format!("{}{}", good[0], good[1]), good[2].clone()],
        vec![good[..2].concat()],
        vec![good[0].clone(), other.good()[1].clone(), good[1].clone(), other.good()[2].clone()],
    ] {
        assert_eq!(ca.check(&sent).unwrap().chain, answer.chain);
    }
    // The pod that was proved may stand in it.
    assert_eq!(
        ca.check(&ca.ca.issue_to_pod(&ca.csr, &ca.web, "u1", HOUR, ca.now).unwrap()).unwrap().leaf.pod.unwrap(),
        "u1"
    );
}

#[test]
fn whatever_else_a_ca_sends_is_refused_with_its_reason() {
    let ca = elsewhere();
    let refused = |sent: Vec<String>, wanted: &str| {
        let error = ca.check(&sent).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}, not {wanted}");
    };
    let admin = "spiffe://cluster.local/ns/shop/sa/admin";
    refused(ca.signed(|params| params.subject_alt_names = vec![uri(admin)]), "which was not asked for");
    refused(ca.signed(|params| params.subject_alt_names.push(uri(admin))), "2 URI names");
    refused(ca.signed(|params| params.subject_alt_names.clear()), "0 URI names");
    let dns = || SanType::DnsName("db.shop.svc".try_into().unwrap());
    refused(ca.signed(|params| params.subject_alt_names.push(dns())), "db.shop.svc");
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    refused(ca.signed_for(&other, |_| {}), "another key");
    refused(ca.signed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "a CA's");
    refused(ca.signed(|params| params.not_after = (ca.now + 2 * HOUR).into()), "lives for 7");
    refused(ca.signed(|params| params.not_after = (ca.now - Duration::from_secs(2)).into()), "expired");
    refused(ca.signed(|params| params.not_before = (ca.now + Duration::from_mins(5)).into()), "not valid yet");
    refused(ca.signed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]), "clients");
    refused(ca.signed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]), "servers");
    let number = DnValue::PrintableString("pod:u2".try_into().unwrap());
    refused(
        ca.signed(|params| params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 5]), number)),
        "pod u2",
    );
    refused(Vec::new(), "empty");
    refused(vec!["nonsense".to_owned()], "empty");
    refused(vec![ca.good()[0].replace("MII", "AAA")], "parsed as X.509");
    refused(vec![ca.good()[0].clone()], "does not lead to");
    refused(vec![ca.good()[0].clone(); 17], "more than 16");
    refused(vec!["x".repeat(MAX_BYTES + 1)], "longer than");
    // Another root than those that were given.
    let error = ca.check_by(&ca.good(), &elsewhere().roots()).unwrap_err();
    assert!(error.to_string().contains("does not lead to"), "{error}");
}

#[test]
fn of_two_roots_the_one_that_a_chain_leads_to_is_named() {
    let (old, new) = (elsewhere(), elsewhere());
    let roots = Root::read(&format!("{}{}{}", old.ca.root_pem(), new.ca.root_pem(), old.ca.root_pem())).unwrap();
    assert_eq!(roots.len(), 2);
    for (ca, root) in [(&old, &roots[0]), (&new, &roots[1])] {
        let svid: Vec<_> = ca.good()[..2].iter().flat_map(|pem| x509::certificates(pem).unwrap()).collect();
        assert_eq!(root_of(&svid, &roots, ca.now).unwrap().name, root.name);
        assert_eq!(ca.check_by(&ca.good(), &roots).unwrap().chain[2], root.pem);
        assert!(root_of(&svid, &elsewhere().roots(), ca.now).is_none());
    }
    assert!(root_of(&[], &roots, old.now).is_none());
    for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(Root::read(bad).is_err(), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_altered_answer_is_refused_or_the_same(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        static CA: std::sync::LazyLock<Elsewhere> = std::sync::LazyLock::new(elsewhere);
        static GOOD: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| CA.good().concat());
        let mut bytes = GOOD.clone().into_bytes();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(text) = String::from_utf8(bytes) && let Ok(answer) = CA.check(&[text]) {
            prop_assert_eq!(answer.leaf.identity, CA.web.clone());
        }
    }
}
