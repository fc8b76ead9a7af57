//! Join tokens: how a new workload proves to the CA who it is, before it has a certificate. In a pod Kubernetes' projected
//! service-account token takes this place; where there is no Kubernetes, `weft token` makes these.
//!
//! A token is a JWT (RFC 7519) signed with ES256 by the CA's token key: `aud` is the trust domain, `sub` the SPIFFE ID, `jti` a random
//! number. It can be used again until it expires.
//!
//! Invariant: the algorithm, the key id, the audience and the expiry are all checked; none is taken from what the token says of itself.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use weft_engine::identity::Identity;

use crate::ca::{Ca, CaError};
use crate::files;

/// Longest life that [`sign`] gives.
pub const MAX_TTL: Duration = Duration::from_hours(24);
/// How far a token's `nbf` may lie ahead of the verifier's clock.
const SKEW: Duration = Duration::from_mins(1);
/// Longer texts are not parsed.
const MAX_LENGTH: usize = 8 * 1024;

/// Why a token could not be made or is not taken. None holds any part of the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The CA's directory cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The identity belongs to another trust domain than the CA.
    #[error("the identity {identity} is not of the CA's trust domain {trust_domain}")]
    OtherTrustDomain {
        /// For whom the token was wanted or presented.
        identity: String,
        /// Whose CA it is.
        trust_domain: String,
    },
    /// The wanted life is zero or too long.
    #[error("a token's life must be between 1 s and {} s", MAX_TTL.as_secs())]
    Ttl,
    /// The library could not sign.
    #[error("the token could not be signed: {0}")]
    Sign(String),
    /// Not a token of ours: not a JWT, or another algorithm, key or signature.
    #[error("the token is not one of this CA ({0}); make one with `weft token`")]
    Invalid(&'static str),
    /// It is too late.
    #[error("the token has expired; make a new one with `weft token`")]
    Expired,
    /// It is too early.
    #[error("the token is not valid yet; compare the clocks of this machine and the one that made it")]
    NotYet,
    /// For another mesh.
    #[error("the token is for another trust domain than `{0}`")]
    Audience(String),
}

#[derive(Serialize, Deserialize)]
struct Claims {
    aud: String,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
}

/// The key that signs tokens; lives in the CA's directory.
pub(crate) struct TokenKey {
    pair: rcgen::KeyPair,
    id: String,
}

impl TokenKey {
    pub(crate) fn new(pair: rcgen::KeyPair) -> Self {
        let id = files::checksum(pair.public_key_raw())[..16].to_owned();
        Self { pair, id }
    }
}

/// Makes a token for `identity` with the key of the CA in `ca_dir`, valid for `ttl` from `now`.
pub fn sign(ca_dir: &Path, identity: &Identity, ttl: Duration, now: SystemTime) -> Result<String, TokenError> {
    let (key, trust_domain) = Ca::token_key(ca_dir)?;
    if *identity.trust_domain != *trust_domain {
        return Err(TokenError::OtherTrustDomain { identity: identity.to_string(), trust_domain });
    }
    if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
        return Err(TokenError::Ttl);
    }
    let now = unix(now);
    let claims = Claims {
        aud: trust_domain,
        sub: identity.to_string(),
        iat: now,
        nbf: now,
        exp: now.saturating_add(ttl.as_secs()),
        jti: files::random_hex(16).map_err(|e| TokenError::Sign(e.to_string()))?,
    };
    let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::ES256) };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(&key.pair.serialize_der()))
        .map_err(|e| TokenError::Sign(e.to_string()))
}

/// Checks tokens. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    key: Arc<DecodingKey>,
    key_id: Arc<str>,
    trust_domain: Arc<str>,
    validation: Arc<Validation>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier(key {} of {})", self.key_id, self.trust_domain)
    }
}

impl Verifier {
    /// The verifier of the tokens that this CA's key signs.
    pub fn from_ca(ca: &Ca) -> Self {
        let key = ca.own_token_key();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[ca.trust_domain()]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "sub"]);
        // Checked below against the caller's clock, which the library does not take.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        Self {
            key: Arc::new(DecodingKey::from_ec_der(key.pair.public_key_raw())),
            key_id: key.id.as_str().into(),
            trust_domain: ca.trust_domain().into(),
            validation: Arc::new(validation),
        }
    }

    /// Whom the token proves. The expiry is exact; the start may lie 60 s ahead.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, TokenError> {
        use jsonwebtoken::errors::ErrorKind;
        let token = token.trim();
        if token.len() > MAX_LENGTH {
            return Err(TokenError::Invalid("too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid("not a JWT"))?;
        if header.kid.as_deref() != Some(&*self.key_id) {
            return Err(TokenError::Invalid("unknown key id"));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|e| match e.kind() {
                ErrorKind::InvalidAudience => TokenError::Audience(self.trust_domain.to_string()),
                ErrorKind::InvalidSignature => TokenError::Invalid("wrong signature"),
                ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Invalid("wrong algorithm"),
                _ => TokenError::Invalid("malformed"),
            })?
            .claims;
        self.check(&claims, unix(now))
    }

    fn check(&self, claims: &Claims, now: u64) -> Result<Identity, TokenError> {
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        if now.saturating_add(SKEW.as_secs()) < claims.nbf {
            return Err(TokenError::NotYet);
        }
        let identity: Identity = claims.sub.parse().map_err(|_| TokenError::Invalid("its subject is no SPIFFE ID"))?;
        if identity.trust_domain == self.trust_domain {
            Ok(identity)
        } else {
            let trust_domain = self.trust_domain.to_string();
            Err(TokenError::OtherTrustDomain { identity: claims.sub.clone(), trust_domain })
        }
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_mins(10);

    fn ca() -> (tempfile::TempDir, Ca, Verifier) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), "cluster.local").unwrap();
        let verifier = Verifier::from_ca(&ca);
        (dir, ca, verifier)
    }

    fn web() -> Identity {
        Identity::new("cluster.local", "shop", "web").unwrap()
    }

    /// A token with the right key, with these claims.
    fn forged(ca: &Ca, change: impl FnOnce(&mut serde_json::Value)) -> String {
        let key = ca.own_token_key();
        let mut claims = serde_json::json!({
            "aud": "cluster.local", "sub": web().to_string(), "iat": 1000, "nbf": 1000, "exp": 2000, "jti": "1",
        });
        change(&mut claims);
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(&key.pair.serialize_der())).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn proves_an_identity_until_it_expires() {
        let (dir, _ca, verifier) = ca();
        let now = at(1_000_000);
        let token = sign(dir.path(), &web(), TTL, now).unwrap();
        assert_eq!(verifier.verify(&token, now).unwrap(), web());
        assert_eq!(verifier.verify(&format!("{token}\n"), now + TTL - Duration::from_secs(1)).unwrap(), web());
        assert!(matches!(verifier.verify(&token, now + TTL), Err(TokenError::Expired)));
        assert!(verifier.verify(&token, now - SKEW).is_ok());
        assert!(matches!(verifier.verify(&token, now - SKEW - Duration::from_secs(1)), Err(TokenError::NotYet)));
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!((header.alg, header.kid.is_some()), (Algorithm::ES256, true));
    }

    #[test]
    fn every_token_has_a_number_of_its_own() {
        let (dir, ..) = ca();
        let claims = |token: &str| jsonwebtoken::dangerous::insecure_decode::<Claims>(token).unwrap().claims;
        let make = || claims(&sign(dir.path(), &web(), TTL, at(1_000_000)).unwrap());
        let (first, second) = (make(), make());
        assert_ne!(first.jti, second.jti);
        assert_eq!(first.jti.len(), 32);
        assert_eq!(first.aud, "cluster.local");
    }

    #[test]
    fn another_cas_token_is_refused() {
        let (dir, ..) = ca();
        let (_, _, verifier) = ca();
        let now = at(1_000_000);
        let token = sign(dir.path(), &web(), TTL, now).unwrap();
        assert!(matches!(verifier.verify(&token, now), Err(TokenError::Invalid("unknown key id"))));
    }

    #[test]
    fn altered_tokens_are_refused() {
        let (dir, _ca, verifier) = ca();
        let now = at(1_000_000);
        let token = sign(dir.path(), &web(), TTL, now).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let other = sign(dir.path(), &Identity::new("cluster.local", "shop", "admin").unwrap(), TTL, now).unwrap();
        let body = other.split('.').nth(1).unwrap();
        for bad in [
            String::new(),
            "a.b.c".into(),
            token[..token.len() - 4].into(),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{body}.{}", parts[0], parts[2]),
            "x".repeat(10_000),
        ] {
            assert!(matches!(verifier.verify(&bad, now), Err(TokenError::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn another_algorithm_is_refused_even_with_our_key_id() {
        let (_dir, ca, verifier) = ca();
        let key = ca.own_token_key();
        let claims = serde_json::json!({"aud": "cluster.local", "sub": web().to_string(), "nbf": 0, "iat": 0, "exp": 9_999_999, "jti": "1"});
        // The public key as an HMAC secret: the classic confusion.
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::HS256) };
        let token =
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(key.pair.public_key_raw())).unwrap();
        assert!(matches!(verifier.verify(&token, at(1000)), Err(TokenError::Invalid("wrong algorithm"))));
    }

    #[test]
    fn claims_are_needed_and_checked() {
        let (_dir, ca, verifier) = ca();
        let verify = |change: &dyn Fn(&mut serde_json::Value)| verifier.verify(&forged(&ca, |c| change(c)), at(1500));
        assert_eq!(verify(&|_| ()).unwrap(), web());
        for claim in ["aud", "sub", "nbf", "exp", "jti"] {
            let without = |c: &mut serde_json::Value| {
                c.as_object_mut().unwrap().remove(claim);
            };
            assert!(verify(&without).is_err(), "{claim}");
        }
        assert!(matches!(verify(&|c| c["aud"] = "other.example".into()), Err(TokenError::Audience(_))));
        assert!(matches!(verify(&|c| c["sub"] = "shop/web".into()), Err(TokenError::Invalid(_))));
        let foreign = "spiffe://other.example/ns/shop/sa/web";
        assert!(matches!(verify(&|c| c["sub"] = foreign.into()), Err(TokenError::OtherTrustDomain { .. })));
    }

    #[test]
    fn signing_is_bounded_and_needs_a_ca() {
        let (dir, ..) = ca();
        let now = at(1_000_000);
        assert!(matches!(sign(dir.path(), &web(), Duration::ZERO, now), Err(TokenError::Ttl)));
        assert!(matches!(sign(dir.path(), &web(), MAX_TTL * 2, now), Err(TokenError::Ttl)));
        let foreign = Identity::new("other.example", "shop", "web").unwrap();
        assert!(matches!(sign(dir.path(), &foreign, TTL, now), Err(TokenError::OtherTrustDomain { .. })));
        let empty = tempfile::tempdir().unwrap();
        let error = sign(empty.path(), &web(), TTL, now).unwrap_err();
        assert!(matches!(error, TokenError::Ca(CaError::Absent(_))), "{error}");
        assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "signing makes nothing");
    }
}
