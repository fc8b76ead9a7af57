use std::time::SystemTime;

use super::*;
use crate::ca::Ca;
use crate::ca::rotation::Kind;
use crate::svid::KeyPair;
use weft_engine::identity::Identity;

fn ca() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), "cluster.local").unwrap();
    (dir, ca)
}

fn written(ca: &Ca) -> Value {
    let text = document(ca.root_pem(), ca.revision(), Duration::from_mins(5)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn read(document: &Value) -> Result<Bundle, BundleError> {
    Bundle::from_json(document.to_string().as_bytes())
}

#[test]
fn what_is_written_is_read_and_the_sequence_grows_with_the_roots() {
    let (_dir, ca) = ca();
    let first = written(&ca);
    assert_eq!(first["keys"].as_array().unwrap().len(), 1);
    let key = &first["keys"][0];
    assert_eq!((&key["kty"], &key["crv"], &key["use"]), (&"EC".into(), &"P-256".into(), &"x509-svid".into()));
    // 32 bytes each, base64url without padding.
    for part in ["x", "y"] {
        assert_eq!(key[part].as_str().unwrap().len(), 43);
    }
    assert_eq!(first["spiffe_refresh_hint"], 300);
    let one = read(&first).unwrap();
    assert_eq!(one.roots, tls::certificates(ca.root_pem()).unwrap());
    assert_eq!(one.refresh_hint, Some(Duration::from_mins(5)));

    let rotating = ca.begin(Kind::Root, SystemTime::now()).unwrap();
    let both = read(&written(&rotating)).unwrap();
    assert_eq!(both.roots.len(), 2);
    assert!(both.roots.contains(&one.roots[0]));
    assert!(both.sequence > one.sequence, "{:?} {:?}", both.sequence, one.sequence);
}

#[test]
fn people_have_roots_in_either_form() {
    let (_dir, ca) = ca();
    let from_pem = Bundle::from_file(ca.root_pem().as_bytes()).unwrap();
    let from_json = Bundle::from_file(format!("\n {}", written(&ca)).as_bytes()).unwrap();
    assert_eq!(from_pem.roots, from_json.roots);
    for bad in ["", "nothing", "{}", "[]"] {
        assert!(Bundle::from_file(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn keys_for_something_else_are_passed_over() {
    let (_dir, ca) = ca();
    let mut document = written(&ca);
    let plain = read(&document).unwrap();
    let keys = document["keys"].as_array_mut().unwrap();
    let twice = keys[0].clone();
    keys.extend([
        json!({"kty": "RSA", "use": "jwt-svid", "kid": "1", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "EC"}),
        json!({"use": "of-tomorrow", "x5c": 3}),
        json!("no key at all"),
        twice,
    ]);
    document["spiffe_of_tomorrow"] = json!([1]);
    assert_eq!(read(&document).unwrap(), plain);
}

#[test]
fn what_is_not_whole_is_refused() {
    let (_dir, ca) = ca();
    let good = written(&ca);
    let base64 = good["keys"][0]["x5c"][0].as_str().unwrap().to_owned();
    let key = KeyPair::generate().unwrap();
    let web = Identity::new("cluster.local", "shop", "web").unwrap();
    let leaf = ca.issue(&key.csr(&web).unwrap(), &web, Duration::from_mins(1), SystemTime::now()).unwrap();
    let leaf: String = leaf[0].lines().filter(|line| !line.starts_with('-')).collect();
    for (x5c, want) in [
        (Value::Null, "has no `x5c`"),
        (json!("MIIB"), "has no `x5c`"),
        (json!([]), "its `x5c` has not exactly one certificate"),
        (json!([base64, base64]), "its `x5c` has not exactly one certificate"),
        (json!([7]), "its `x5c` is no certificate in base64"),
        (json!(["-----END CERTIFICATE-----"]), "its `x5c` is no certificate in base64"),
        (json!([format!("{base64}\n")]), "its `x5c` is no certificate in base64"),
        (json!(["AAAA"]), "its `x5c` is no certificate"),
        (json!([leaf]), "its `x5c` is no CA's certificate"),
    ] {
        let mut bad = good.clone();
        // A good key beside it does not save the document.
        let mut second = bad["keys"][0].clone();
        second["x5c"] = x5c.clone();
        bad["keys"].as_array_mut().unwrap().push(second);
        assert_eq!(read(&bad), Err(BundleError::Key(2, want)), "{x5c}");
    }
    let mut none = good.clone();
    none["keys"][0]["use"] = "jwt-svid".into();
    assert_eq!(read(&none), Err(BundleError::Empty));
    assert_eq!(read(&json!({"keys": []})), Err(BundleError::Empty));
    let mut negative = good.clone();
    negative["spiffe_sequence"] = (-1).into();
    for bad in [json!({}), json!({"keys": {}}), json!([]), negative] {
        assert!(matches!(read(&bad), Err(BundleError::Malformed(_))), "{bad}");
    }
}

#[test]
fn there_are_not_more_roots_than_every_proxy_can_hold() {
    let dir = tempfile::tempdir().unwrap();
    let many: String = (0..=MAX_ROOTS)
        .map(|i| Ca::open(&dir.path().join(i.to_string()), "cluster.local").unwrap().root_pem().to_owned())
        .collect();
    let text = document(&many, 1, Duration::ZERO).unwrap();
    assert_eq!(Bundle::from_json(&text), Err(BundleError::TooMany));
}
