use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, DistinguishedName, IsCa};

use super::rotation::RotationError;
use super::*;

mod given;
mod naming;
mod rotating;

const HOUR: Duration = Duration::from_hours(1);

fn ca() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    (dir, ca)
}

fn web() -> Identity {
    Identity::new("cluster.local", "shop", "web").unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_ca_has_right_modes_and_opens_again_as_the_same() {
    let (dir, first) = ca();
    let dir = dir.path().join("ca");
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("keys")), 0o700);
    assert_eq!(mode(&dir.join("root.pem")), 0o644);
    for entry in fs::read_dir(dir.join("keys")).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    assert_eq!(fs::read_to_string(dir.join("root.pem")).unwrap(), first.root_pem());

    fs::remove_file(dir.join("root.pem")).unwrap();
    let second = Ca::open(&dir, "cluster.local").unwrap();
    assert_eq!(second.root_pem(), first.root_pem());
    assert_eq!(fs::read_to_string(dir.join("root.pem")).unwrap(), first.root_pem(), "the copy is made again");
}

#[test]
fn the_roots_key_may_be_kept_elsewhere() {
    let (dir, _) = ca();
    fs::remove_file(dir.path().join("ca/keys/root.key")).unwrap();
    Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
}

#[test]
fn another_trust_domain_is_refused_by_name() {
    let (dir, _) = ca();
    let error = Ca::open(&dir.path().join("ca"), "other.example").unwrap_err().to_string();
    assert!(error.contains("`cluster.local`, not `other.example`"), "{error}");
    assert!(error.contains("rotate-trust-domain --to other.example"), "{error}");
    let error = Ca::open(&dir.path().join("new"), "Not A Domain").unwrap_err();
    assert!(matches!(error, CaError::TrustDomain(_)), "{error}");
    assert!(!dir.path().join("new").exists());
}

#[test]
fn damage_is_said_with_the_file_and_never_mended_in_silence() {
    for name in ["ca.json", "root.pem", "issuer.key", "issuer.pem", "token.key"] {
        let (dir, _) = ca();
        let dir = dir.path().join("ca");
        let path = dir.join("keys").join(name);
        let whole = fs::read(&path).unwrap();
        for damage in [&whole[..whole.len() / 2], b"", b"\xff\xfe"] {
            fs::write(&path, damage).unwrap();
            let error = Ca::open(&dir, "cluster.local").unwrap_err();
            assert!(matches!(error, CaError::Damaged { .. }), "{name}: {error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(Ca::open(&dir, "cluster.local").unwrap_err(), CaError::Damaged { .. }), "{name}");
        fs::write(&path, &whole).unwrap();
        Ca::open(&dir, "cluster.local").unwrap();
    }
}

#[test]
fn a_crash_at_first_start_leaves_no_ca_and_the_next_start_makes_one() {
    let dir = tempfile::tempdir().unwrap();
    let half = dir.path().join(".keys.0123");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("root.key"), "half").unwrap();
    Ca::open(dir.path(), "cluster.local").unwrap();
    assert!(!half.exists());
}

#[test]
fn a_widened_mode_is_narrowed_again() {
    let (dir, _) = ca();
    let key = dir.path().join("ca/keys/issuer.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o660)).unwrap();
    Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    assert_eq!(mode(&key), 0o600);
}

#[test]
fn starts_at_once_agree_on_one_ca() {
    let dir = tempfile::tempdir().unwrap();
    let roots: Vec<String> = std::thread::scope(|scope| {
        let open = || Ca::open(dir.path(), "cluster.local").unwrap().root_pem().to_owned();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_leaf_names_the_proved_identity_alone_and_starts_a_minute_ago() {
    let (_dir, ca) = ca();
    let key = KeyPair::generate().unwrap();
    let now = SystemTime::UNIX_EPOCH
        + Duration::from_secs(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
    let chain = ca.issue(&key.csr(&web()).unwrap(), &web(), HOUR, now).unwrap();
    assert_eq!(chain.len(), 3);
    assert_eq!(chain[2], ca.root_pem());
    let svid = Svid::new(key, &chain).unwrap();
    assert_eq!(*svid.identity(), web());
    assert_eq!(svid.not_before(), now - BACKDATE);
    assert_eq!(svid.not_after(), now + HOUR);
    assert_eq!(svid.serial().len(), 32, "128 bits: {}", svid.serial());
}

#[test]
fn serials_differ() {
    let (_dir, ca) = ca();
    let csr = KeyPair::generate().unwrap().csr(&web()).unwrap();
    let leaf = || ca.issue(&csr, &web(), HOUR, SystemTime::now()).unwrap().remove(0);
    let serials: std::collections::BTreeSet<_> =
        (0..16).map(|_| x509::leaf(&x509::certificates(&leaf()).unwrap()[0]).unwrap().serial).collect();
    assert_eq!(serials.len(), 16);
}

#[test]
fn a_leaf_does_not_outlive_its_issuer_or_the_bound() {
    let (_dir, ca) = ca();
    let issue = |now| {
        let key = KeyPair::generate().unwrap();
        ca.issue(&key.csr(&web()).unwrap(), &web(), 10 * MAX_VALIDITY, now).map(|chain| Svid::new(key, &chain).unwrap())
    };
    let now = SystemTime::now();
    assert!(issue(now).unwrap().not_after() <= now + MAX_VALIDITY);
    let late = ca.leaves.not_after - HOUR;
    assert_eq!(issue(late).unwrap().not_after(), ca.leaves.not_after);
    assert!(matches!(issue(ca.leaves.not_after), Err(CaError::Validity(_))));
}

/// A request with these names, signed with a key of this kind.
fn request(names: Vec<SanType>, kind: &'static rcgen::SignatureAlgorithm) -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.serialize_request(&rcgen::KeyPair::generate_for(kind).unwrap()).unwrap().pem().unwrap()
}

fn uri(identity: &str) -> SanType {
    SanType::URI(identity.try_into().unwrap())
}

#[test]
fn a_request_for_other_names_is_refused() {
    let (_dir, ca) = ca();
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let issue = |names| ca.issue(&request(names, p256), &web(), HOUR, SystemTime::now());
    issue(vec![]).unwrap();
    issue(vec![uri(&web().to_string())]).unwrap();
    for names in [
        vec![uri("spiffe://cluster.local/ns/shop/sa/admin")],
        vec![uri(&web().to_string()), uri("spiffe://cluster.local/ns/shop/sa/admin")],
        vec![SanType::DnsName("weft-control".try_into().unwrap())],
    ] {
        assert!(matches!(issue(names), Err(CaError::Csr(CsrError::Name(_)))));
    }
    let foreign = Identity::new("other.example", "shop", "web").unwrap();
    let error = ca.issue(&request(vec![], p256), &foreign, HOUR, SystemTime::now()).unwrap_err();
    assert!(matches!(error, CaError::ForeignIdentity(_)));
}

#[test]
fn a_request_to_be_a_ca_gets_a_leaf() {
    let (_dir, ca) = ca();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let chain = ca.issue(&csr, &web(), HOUR, SystemTime::now()).unwrap();
    let der = x509::certificates(&chain[0]).unwrap().remove(0);
    let (_, leaf) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
}

#[test]
fn keys_are_p256_or_better_and_proved() {
    let (_dir, ca) = ca();
    let issue = |csr: &str| ca.issue(csr, &web(), HOUR, SystemTime::now());
    for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        issue(&request(vec![], kind)).unwrap();
    }
    let rsa = request(vec![], &rcgen::PKCS_RSA_SHA256);
    assert!(matches!(issue(&rsa), Err(CaError::Csr(CsrError::Key))));

    // The signature covers all before it: alter a byte of the subject.
    let good = request(vec![], &rcgen::PKCS_ECDSA_P256_SHA256);
    let mut der = pem_body(&good);
    let at = der.windows(5).position(|bytes| bytes == b"rcgen").unwrap();
    der[at] ^= 1;
    assert!(matches!(issue(&pem_text(&der)), Err(CaError::Csr(CsrError::Signature))));
    der[at] ^= 1;
    issue(&pem_text(&der)).unwrap();
    der.push(0);
    assert!(matches!(issue(&pem_text(&der)), Err(CaError::Csr(CsrError::Malformed))), "trailing bytes");

    for bad in ["", "nonsense", ca.root_pem()] {
        assert!(matches!(issue(bad), Err(CaError::Csr(CsrError::Malformed))), "{bad}");
    }
    let long = "x".repeat(20_000);
    assert!(matches!(issue(&long), Err(CaError::Csr(CsrError::TooLong))));
}

fn pem_body(pem: &str) -> Vec<u8> {
    use rustls_pki_types::CertificateSigningRequestDer;
    use rustls_pki_types::pem::PemObject;
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn pem_text(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
    for (i, group) in der.chunks(3).enumerate() {
        let word = group.iter().chain([0, 0].iter()).take(3).fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        for digit in 0..4_usize {
            let value = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
        if i % 16 == 15 {
            text.push('\n');
        }
    }
    text + "\n-----END CERTIFICATE REQUEST-----\n"
}

#[test]
fn controls_certificate_names_its_identity_and_its_dns_name() {
    let (_dir, ca) = ca();
    let svid = ca.issue_control(&[], HOUR, SystemTime::now()).unwrap().remove(0);
    assert_eq!(svid.identity().to_string(), "spiffe://cluster.local/ns/weft-system/sa/weft-control");
    let der = x509::certificates(&svid.chain_pem()[0]).unwrap().remove(0);
    let leaf = webpki::EndEntityCert::try_from(&der).unwrap();
    assert_eq!(leaf.valid_dns_names().collect::<Vec<_>>(), [CONTROL_SERVER_NAME, "weft-control.cluster.local"]);
}

#[test]
fn debug_output_holds_no_secret() {
    let (dir, ca) = ca();
    let text = format!(
        "{ca:?} {:?} {:?}",
        KeyPair::generate().unwrap(),
        ca.issue_control(&[], HOUR, SystemTime::now()).unwrap()
    );
    let keys = dir.path().join("ca/keys");
    for name in ["issuer.key", "token.key"] {
        let secret = fs::read_to_string(keys.join(name)).unwrap();
        let line = secret.lines().nth(1).unwrap();
        assert!(!text.contains(line));
    }
    assert!(!text.contains("PRIVATE") && text.len() < 500, "{text}");
}

#[test]
fn a_leaf_says_which_pod_it_was_issued_to_beside_its_one_name() {
    let (_dir, ca) = ca();
    let key = KeyPair::generate().unwrap();
    let request = key.csr(&web()).unwrap();
    let hour = Duration::from_hours(1);
    let leaf = |chain: Vec<String>| x509::leaf(&x509::certificates(&chain[0]).unwrap()[0]).unwrap();
    let uid = "1a359748-4f1e-4056-bb42-584e63d8d3d6";
    let bound = leaf(ca.issue_to_pod(&request, &web(), uid, hour, SystemTime::now()).unwrap());
    assert_eq!((bound.pod.as_deref(), &bound.identity), (Some(uid), &web()));
    assert_eq!(leaf(ca.issue(&request, &web(), hour, SystemTime::now()).unwrap()).pod, None);
    // No request can say it, nor can anything be slipped into the name.
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let number = DnValue::PrintableString("pod:another".try_into().unwrap());
    params.distinguished_name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), number);
    let own = rcgen::KeyPair::generate().unwrap();
    let asked = params.serialize_request(&own).unwrap().pem().unwrap();
    assert_eq!(leaf(ca.issue(&asked, &web(), hour, SystemTime::now()).unwrap()).pod, None);
    assert!(matches!(ca.issue_to_pod(&request, &web(), "a\0b", hour, SystemTime::now()), Err(CaError::Make(_))));
}
