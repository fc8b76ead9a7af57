use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use super::*;

/// An issuer's key of one kind.
struct Signer {
    kind: jsonwebtoken::Algorithm,
    private: EncodingKey,
    public: Value,
}

fn signer(algorithm: Algorithm, kid: &str) -> Signer {
    let (kind, library) = match algorithm {
        Algorithm::Es256 => (&rcgen::PKCS_ECDSA_P256_SHA256, algorithm.of_library()),
        Algorithm::Es384 => (&rcgen::PKCS_ECDSA_P384_SHA384, algorithm.of_library()),
        Algorithm::Rs256 | Algorithm::Ps256 => (&rcgen::PKCS_RSA_SHA256, algorithm.of_library()),
        Algorithm::EdDsa => (&rcgen::PKCS_ED25519, algorithm.of_library()),
    };
    let pair = rcgen::KeyPair::generate_for(kind).unwrap();
    let raw = pair.public_key_raw();
    let (private, public) = match algorithm {
        Algorithm::Es256 | Algorithm::Es384 => {
            (EncodingKey::from_ec_der(&pair.serialize_der()), DecodingKey::from_ec_der(raw))
        }
        Algorithm::Rs256 | Algorithm::Ps256 => {
            (EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap(), DecodingKey::from_rsa_der(raw))
        }
        Algorithm::EdDsa => (EncodingKey::from_ed_der(&pair.serialize_der()), DecodingKey::from_ed_der(raw)),
    };
    let mut public = serde_json::to_value(Jwk::from_decoding_key(&public, None).unwrap()).unwrap();
    public["kid"] = kid.into();
    Signer { kind: library, private, public }
}

impl Signer {
    fn keys(&self) -> Keys {
        keys(std::slice::from_ref(&self.public)).unwrap()
    }

    fn sign(&self, kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(self.kind) };
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }
}

fn keys(keys: &[Value]) -> Result<Keys, KeysError> {
    Keys::from_json(json!({ "keys": keys }).to_string().as_bytes())
}

fn claims() -> Value {
    json!({"iss": "https://issuer", "aud": "weft", "sub": "x", "iat": 1000, "nbf": 1000, "exp": 2000})
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn prove(token: &str, keys: &Keys, allowed: &[Algorithm]) -> Result<Claims, JwtError> {
    Unproved::read(token)?.prove(keys, allowed)
}

#[test]
fn each_algorithm_proves_by_its_own_kind_of_key_and_no_other() {
    let signers = Algorithm::ALL.map(|algorithm| (algorithm, signer(algorithm, "k")));
    for (algorithm, signer) in &signers {
        let token = signer.sign("k", &claims());
        assert!(prove(&token, &signer.keys(), &[*algorithm]).is_ok(), "{algorithm:?}");
        let others: Vec<_> = Algorithm::ALL.into_iter().filter(|other| other != algorithm).collect();
        assert_eq!(prove(&token, &signer.keys(), &others), Err(JwtError::Algorithm), "{algorithm:?}");
        for (_, other) in signers.iter().filter(|(other, _)| other != algorithm) {
            let refused = prove(&token, &other.keys(), &Algorithm::ALL).unwrap_err();
            assert!(matches!(refused, JwtError::Algorithm | JwtError::Signature), "{algorithm:?}: {refused}");
        }
    }
}

#[test]
fn none_hmac_and_keys_of_the_tokens_own_are_refused() {
    let signer = signer(Algorithm::Es256, "k");
    let good = signer.sign("k", &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let with = |header: Value| {
        // The library encodes what it is given as claims: so a header of any kind is made.
        let encoded = jsonwebtoken::encode(&Header::default(), &header, &EncodingKey::from_secret(b"x")).unwrap();
        format!("{}.{}.{}", encoded.split('.').nth(1).unwrap(), parts[1], parts[2])
    };
    let refused = |header| prove(&with(header), &signer.keys(), &Algorithm::ALL).unwrap_err();
    for alg in ["none", "None", "NONE", "HS256", "HS384", "ES256K", "RS512", ""] {
        assert_eq!(refused(json!({"alg": alg, "kid": "k"})), JwtError::Algorithm, "{alg}");
    }
    assert_eq!(refused(json!({"alg": "ES256"})), JwtError::UnknownKey);
    assert_eq!(refused(json!({"alg": "ES256", "kid": "other"})), JwtError::UnknownKey);
    assert_eq!(refused(json!({"alg": "ES256", "kid": "k", "crit": ["exp"]})), JwtError::Critical);
    // Anybody can bring a key along.
    let own = self::signer(Algorithm::Es256, "k");
    let header = Header {
        kid: Some("k".into()),
        jwk: Some(serde_json::from_value(own.public.clone()).unwrap()),
        ..Header::new(own.kind)
    };
    let brought = jsonwebtoken::encode(&header, &claims(), &own.private).unwrap();
    assert_eq!(prove(&brought, &signer.keys(), &Algorithm::ALL), Err(JwtError::Signature));
    // The public key as an HMAC secret: the classic confusion.
    let secret = EncodingKey::from_secret(signer.public["x"].as_str().unwrap().as_bytes());
    let header = Header { kid: Some("k".into()), ..Header::new(jsonwebtoken::Algorithm::HS256) };
    let confused = jsonwebtoken::encode(&header, &claims(), &secret).unwrap();
    assert_eq!(prove(&confused, &signer.keys(), &Algorithm::ALL), Err(JwtError::Algorithm));
}

#[test]
fn altered_and_malformed_tokens_are_refused() {
    let signer = signer(Algorithm::Es256, "k");
    let good = signer.sign("k", &claims());
    let other = signer.sign("k", &json!({"aud": "weft"}));
    let (parts, others): (Vec<&str>, Vec<&str>) = (good.split('.').collect(), other.split('.').collect());
    let swapped = format!("{}.{}.{}", parts[0], others[1], parts[2]);
    assert_eq!(prove(&swapped, &signer.keys(), &Algorithm::ALL), Err(JwtError::Signature));
    assert_eq!(
        prove(&format!("{}.{}.", parts[0], parts[1]), &signer.keys(), &Algorithm::ALL),
        Err(JwtError::Signature)
    );
    for bad in ["", ".", "..", "a.b", "a.b.c", &format!("{good}.x"), &format!("x.{good}"), "é.é.é"] {
        assert_eq!(Unproved::read(bad).err(), Some(JwtError::Malformed), "{bad}");
    }
    assert_eq!(Unproved::read(&"x".repeat(MAX_LENGTH + 1)).err(), Some(JwtError::TooLong));
    assert!(prove(&format!(" {good}\n"), &signer.keys(), &Algorithm::ALL).is_ok());
}

#[test]
fn issuer_audience_and_times_are_checked() {
    let check = |change: &dyn Fn(&mut Value), now| {
        let mut claims = claims();
        change(&mut claims);
        let Value::Object(map) = claims else { unreachable!() };
        Claims(map).check(Some("https://issuer"), "weft", at(now))
    };
    let as_is = |now| check(&|_| (), now);
    assert_eq!((as_is(1999), as_is(2000)), (Ok(()), Err(JwtError::Expired)));
    assert_eq!((as_is(940), as_is(939)), (Ok(()), Err(JwtError::NotYet)));
    let set = |name: &'static str, value: Value| check(&move |c| c[name] = value.clone(), 1500);
    assert_eq!(set("iss", "https://issuer/".into()), Err(JwtError::Issuer));
    assert_eq!(set("iss", json!(["https://issuer"])), Err(JwtError::Issuer));
    assert_eq!(set("aud", json!(["a", "weft"])), Ok(()));
    for other in [json!("weft2"), json!([]), json!(["a", ["weft"]])] {
        assert_eq!(set("aud", other), Err(JwtError::Audience));
    }
    assert_eq!(set("aud", json!(null)), Err(JwtError::Claim("aud")));
    assert_eq!(set("exp", json!(null)), Err(JwtError::Claim("exp")));
    assert_eq!(set("exp", json!("2000")), Err(JwtError::Claim("exp")));
    assert_eq!(set("exp", json!(-1)), Err(JwtError::Claim("exp")));
    assert_eq!(set("exp", json!(1e300)), Err(JwtError::Claim("exp")));
    assert_eq!(set("exp", json!(1500.5)), Err(JwtError::Expired));
    assert_eq!(set("nbf", json!(null)), Ok(()));
    assert_eq!(set("iat", json!(9999)), Err(JwtError::NotYet));
}

#[test]
fn keys_that_are_weak_or_for_something_else_are_left_out() {
    let good = signer(Algorithm::Es256, "k").public;
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        keys(&[key])
    };
    assert!(with("use", "sig".into()).is_ok());
    assert!(with("alg", "ES256".into()).is_ok());
    for (name, value) in [
        ("use", json!("enc")),
        ("alg", json!("ES384")),
        ("kid", json!(null)),
        ("crv", json!("P-521")),
        ("kty", json!("oct")),
    ] {
        assert_eq!(with(name, value).err(), Some(KeysError::Empty), "{name}");
    }
    // 1,024 bits.
    let weak = json!({"kty": "RSA", "kid": "k", "n": "x".repeat(171), "e": "AQAB"});
    assert_eq!(keys(&[weak]).err(), Some(KeysError::Empty));
    assert_eq!(keys(&[json!({"kty": "oct", "kid": "k", "k": "c2VjcmV0"})]).err(), Some(KeysError::Empty));
    assert!(keys(&[json!("nonsense"), good.clone()]).unwrap().has("k"));
    assert!(matches!(Keys::from_json(b"{}"), Err(KeysError::Malformed(_))));
    let many: Vec<Value> = (0..200)
        .map(|n| {
            let mut key = good.clone();
            key["kid"] = n.to_string().into();
            key
        })
        .collect();
    assert_eq!(keys(&many).unwrap().0.len(), MAX_KEYS);
}

#[test]
fn debug_output_holds_nothing_of_a_token() {
    let signer = signer(Algorithm::Es256, "k");
    let token = signer.sign("k", &json!({"aud": "weft", "secret": "hidden"}));
    let read = Unproved::read(&token).unwrap();
    let text = format!("{read:?} {:?} {:?}", read.claims(), signer.keys());
    assert!(!text.contains("hidden") && !text.contains(token.split('.').nth(2).unwrap()), "{text}");
}
