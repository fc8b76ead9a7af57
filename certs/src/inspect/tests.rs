//! What is said of good chains and of each way in which one is not.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType,
};
use weft_engine::identity::Identity;

use super::*;
use crate::ca::Ca;
use crate::svid::KeyPair;

const HOUR: Duration = Duration::from_hours(1);

struct World {
    _dir: tempfile::TempDir,
    ca: Ca,
    now: SystemTime,
}

fn world(trust_domain: &str) -> World {
    let dir = tempfile::tempdir().unwrap();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(since);
    let ca = Ca::open_at(dir.path(), trust_domain, now).unwrap();
    World { _dir: dir, ca, now }
}

impl World {
    /// Leaf, issuer, root.
    fn chain(&self) -> Vec<String> {
        let identity = Identity::new(self.ca.trust_domain(), "shop", "web").unwrap();
        let csr = KeyPair::generate().unwrap().csr(&identity).unwrap();
        self.ca.issue(&csr, &identity, HOUR, self.now).unwrap()
    }

    fn look(&self, text: &str) -> Report {
        inspect(text.as_bytes(), None, self.now).unwrap()
    }
}

fn problems(report: &Report) -> Vec<&str> {
    report.problems.iter().map(|problem| &*problem.text).collect()
}

/// The one problem, of that certificate, which says that.
#[track_caller]
fn only_problem(report: &Report, certificate: usize, words: &str) {
    let [problem] = &report.problems[..] else { panic!("{:?}", problems(report)) };
    assert_eq!(problem.certificate, Some(certificate), "{problem:?}");
    assert!(problem.text.contains(words), "{problem:?}");
    assert!(!report.ok);
}

#[test]
fn a_whole_chain_is_described_and_verifies() {
    let world = world("cluster.local");
    let report = world.look(&world.chain().concat());
    assert!(report.ok && report.warnings.is_empty(), "{report:?}");
    let roles: Vec<_> = report.certificates.iter().map(|certificate| certificate.role).collect();
    assert_eq!(roles, [Role::Leaf, Role::Issuer, Role::Root]);
    let signers: Vec<_> = report.certificates.iter().map(|certificate| certificate.signed_by).collect();
    assert_eq!(signers, [SignedBy::Certificate(2), SignedBy::Certificate(3), SignedBy::Itself]);
    let leaf = &report.certificates[0];
    assert_eq!(leaf.identity.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/web"));
    assert_eq!(leaf.names, ["URI:spiffe://cluster.local/ns/shop/sa/web"]);
    assert_eq!((&*leaf.key, leaf.ends_in_s), ("ECDSA P-256", 3600));
    assert_eq!(leaf.chain.as_ref().unwrap().text, "leaf -> issuer -> the file's own root");
    assert!(leaf.issuer.contains("CN=weft issuer "), "{}", leaf.issuer);
    assert_eq!(report.private_keys, 0);
}

#[test]
fn roots_that_are_given_are_the_only_ones_trusted() {
    let (ours, theirs) = (world("cluster.local"), world("cluster.local"));
    let chain = ours.chain();
    let look = |text: &str, roots: &World| inspect(text.as_bytes(), Some(roots.ca.root_pem().as_bytes()), ours.now);
    let report = look(&chain[..2].concat(), &ours).unwrap();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.certificates[1].signed_by, SignedBy::GivenRoot);
    assert_eq!(report.certificates[0].chain.as_ref().unwrap().text, "leaf -> issuer -> one of the given roots");
    only_problem(&look(&chain.concat(), &theirs).unwrap(), 1, "does not lead to a certificate that is trusted");
}

#[test]
fn without_a_root_the_last_certificate_is_trusted_and_a_leaf_alone_is_not() {
    let world = world("cluster.local");
    let chain = world.chain();
    let report = world.look(&chain[..2].concat());
    assert!(report.ok, "{report:?}");
    assert_eq!(report.certificates[0].chain.as_ref().unwrap().text, "leaf -> the file's last certificate");
    only_problem(&world.look(&chain[0]), 1, "give the whole chain, or the mesh's roots by --roots");
}

#[test]
fn times_are_told_in_words() {
    let world = world("cluster.local");
    let chain = world.chain().concat();
    let at = |now| inspect(chain.as_bytes(), None, now).unwrap();
    let late = at(world.now + 3 * HOUR);
    assert_eq!(problems(&late), ["it expired 2 h ago", "its chain does not verify: a certificate of it has expired"]);
    assert_eq!(late.certificates[0].ends_in_s, -7200);
    let early = at(world.now - 10 * HOUR);
    assert!(problems(&early)[0].starts_with("it is not valid for another 9 h; compare the clocks"), "{early:?}");
    // Ten years less ten days.
    let end = at(world.now + Duration::from_hours(3640 * 24));
    let warned: Vec<_> = end.warnings.iter().map(|warning| (warning.certificate, &*warning.text)).collect();
    let text = "it ends in 10 days, and all that it signed ends with it: rotate it before";
    assert_eq!(warned, [(Some(2), text), (Some(3), text)]);
}

#[test]
fn a_chain_in_another_order_is_told() {
    let world = world("cluster.local");
    let mut chain = world.chain();
    chain.reverse();
    only_problem(&world.look(&chain.concat()), 3, "it is a leaf and not the first");
}

#[test]
fn an_issuer_of_the_same_name_and_another_key_is_told() {
    let world = world("cluster.local");
    let chain = world.chain();
    let name = |common: &str| {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "cluster.local");
        name.push(DnType::CommonName, common);
        name
    };
    let report = world.look(&chain[0]);
    let common = report.certificates[0].issuer.split("CN=").nth(1).unwrap().to_owned();
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&common);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let impostor = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
    let report = world.look(&format!("{}{impostor}", chain[0]));
    let told = problems(&report).join("\n");
    assert!(told.contains("it names certificate 2 as its signer, whose key did not sign it"), "{told}");
    assert!(told.contains("its chain does not verify"), "{told}");
}

/// A leaf with these names and purposes by an authority of the test's own, with that authority.
fn odd(world: &World, names: Vec<SanType>, purposes: Vec<ExtendedKeyUsagePurpose>, authority: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.not_before = (world.now - HOUR).into();
    root.not_after = (world.now + 1000 * HOUR).into();
    root.subject_alt_names = vec![SanType::URI(format!("spiffe://{authority}").try_into().unwrap())];
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.not_before = (world.now - HOUR).into();
    leaf.not_after = (world.now + 2000 * HOUR).into();
    leaf.subject_alt_names = names;
    leaf.extended_key_usages = purposes;
    let signed = leaf.signed_by(&rcgen::KeyPair::generate().unwrap(), &Issuer::from_params(&root, &key)).unwrap();
    format!("{}{}", signed.pem(), root.self_signed(&key).unwrap().pem())
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn a_leaf_that_no_peer_would_take_says_why() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let world = world("cluster.local");
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    let both = || vec![ServerAuth, ClientAuth];
    let look = |names, purposes, authority| world.look(&odd(&world, names, purposes, authority));
    let good = look(vec![uri(id)], both(), "cluster.local");
    assert!(good.ok, "{good:?}");
    // It lives longer than who signed it.
    assert_eq!(good.warnings.len(), 1);
    assert!(good.warnings[0].text.contains("it ends after certificate 2, which signed it"));

    let dns = || SanType::DnsName("web.shop".try_into().unwrap());
    only_problem(&look(vec![dns()], both(), "cluster.local"), 1, "0 URI names where exactly one SPIFFE ID is needed");
    only_problem(&look(vec![uri(id), uri(id)], both(), "cluster.local"), 1, "2 URI names");
    only_problem(&look(vec![uri(id)], vec![ServerAuth], "cluster.local"), 1, "it is not meant for clients");
    // Peers look at the leaf's name alone, and a mesh may have got another one since its authority was made.
    let renamed = look(vec![uri(id)], both(), "other.example");
    let foreign = "of trust domain cluster.local, and was signed by an authority of other.example";
    assert!(renamed.ok && renamed.warnings.iter().any(|warning| warning.text.contains(foreign)), "{renamed:?}");
    let names = look(vec![uri(id), dns(), SanType::IpAddress("::1".parse().unwrap())], both(), "cluster.local");
    assert_eq!(names.certificates[0].names, [&format!("URI:{id}"), "DNS:web.shop", "IP:::1"]);
}

#[test]
fn text_of_others_cannot_drive_a_terminal() {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "\u{1b}[2J\u{202e}evil");
    let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
    let report = inspect(pem.as_bytes(), None, SystemTime::now()).unwrap();
    let json = serde_json::to_string(&report).unwrap();
    assert!(report.certificates[0].subject.contains("\\u{1b}[2J\\u{202e}evil"), "{report:?}");
    assert!(!json.contains('\u{1b}') && !json.contains('\u{202e}'), "{json}");
}

#[test]
fn a_private_key_is_counted_and_never_shown() {
    let world = world("cluster.local");
    let key = rcgen::KeyPair::generate().unwrap();
    let report = world.look(&format!("weft-svid-1 sha256=00\n{}{}", key.serialize_pem(), world.chain().concat()));
    assert!(report.ok, "{report:?}");
    assert_eq!(report.private_keys, 1);
    let body = key.serialize_pem().lines().nth(1).unwrap().to_owned();
    assert!(!format!("{report:?}{}", serde_json::to_string(&report).unwrap()).contains(&body));
}

#[test]
fn what_cannot_be_looked_at_is_refused_in_words() {
    let world = world("cluster.local");
    let chain = world.chain();
    let refused = |text: &[u8]| inspect(text, None, world.now).unwrap_err();
    assert_eq!(refused(b""), InspectError::None);
    assert_eq!(refused(b"\x30\x82\x01\x00"), InspectError::None);
    assert_eq!(refused(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()), InspectError::None);
    assert_eq!(refused(&chain[0].as_bytes()[..chain[0].len() / 2]), InspectError::Broken);
    let other = "-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n";
    assert_eq!(refused(format!("{}{other}", chain[0]).as_bytes()), InspectError::NotX509(2));
    assert_eq!(refused(&vec![b' '; MAX_BYTES + 1]), InspectError::TooLong);
    assert_eq!(refused(other.repeat(MAX_CERTIFICATES + 1).as_bytes()), InspectError::TooMany);
    assert_eq!(inspect(chain.concat().as_bytes(), Some(b"no PEM"), world.now).unwrap_err(), InspectError::None);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(noise: Vec<u8>, at: proptest::sample::Index, value: u8) {
        let now = SystemTime::now();
        let _ = inspect(&noise, None, now);
        let certificate = rcgen::generate_simple_self_signed(vec!["a.b".to_owned()]).unwrap().cert;
        let mut der = certificate.der().to_vec();
        let at = at.index(der.len());
        der[at] = value;
        let ders = [CertificateDer::from(der), certificate.der().clone()];
        let _ = look(&ders, Some(&ders), 0, now);
    }
}

#[test]
fn the_pod_that_a_leaf_was_issued_to_stands_in_its_subject() {
    let world = world("cluster.local");
    let identity = Identity::new("cluster.local", "shop", "web").unwrap();
    let csr = KeyPair::generate().unwrap().csr(&identity).unwrap();
    let chain = world.ca.issue_to_pod(&csr, &identity, "0a1b-2c3d", HOUR, world.now).unwrap();
    let report = world.look(&chain.concat());
    assert!(report.ok && report.warnings.is_empty(), "{report:?}");
    assert_eq!(report.certificates[0].subject, "serialNumber=pod:0a1b-2c3d");
}
