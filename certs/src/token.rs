//! Join tokens: how a new workload proves to the CA who it is, before it has a certificate. In a pod Kubernetes' projected
//! service-account token takes this place; where there is no Kubernetes, `weft token` makes these.
//!
//! A token is a JWT (RFC 7519) signed with ES256 by the CA's token key: `aud` is the trust domain's first name, `sub` the SPIFFE ID, `jti` a random
//! number. It is good for one key, unless it says that it is reusable; whoever takes tokens keeps the list of those that were used.
//!
//! Invariant: the algorithm, the key id, the audience and the expiry are all checked; none is taken from what the token says of itself.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{DecodingKey, EncodingKey, Header};
use serde::Serialize;
use weft_engine::identity::Identity;

use crate::ca::{Ca, CaError, Home};
use crate::files;
use crate::jwt::{Algorithm, JwtError, Keys, Unproved, unix};

/// Longest life that [`sign`] gives.
pub const MAX_TTL: Duration = Duration::from_hours(24);

/// How often a token may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uses {
    /// By one key: a copy of the token is worth nothing once it was used.
    #[default]
    Once,
    /// By anybody who has it, until it expires.
    Many,
}

/// Why a token could not be made or is not taken. None holds any part of the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The CA cannot be used.
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
    /// Not a token of ours, or not for us, or not now.
    #[error("the join token is not taken: {0}; make a new one with `weft token`")]
    Invalid(#[from] JwtError),
    /// It proves no identity.
    #[error("the join token's subject is no SPIFFE ID; make a new one with `weft token`")]
    Subject,
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reusable: bool,
}

/// The key that signs tokens; lives with the CA.
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

/// Makes a token for `identity` with the key of the CA in `home`, valid for `ttl` from `now`, to be used once.
pub fn sign(home: impl Into<Home>, identity: &Identity, ttl: Duration, now: SystemTime) -> Result<String, TokenError> {
    sign_for(home, identity, Uses::Once, ttl, now)
}

/// [`sign`], for as many uses as are said.
pub fn sign_for(
    home: impl Into<Home>,
    identity: &Identity,
    uses: Uses,
    ttl: Duration,
    now: SystemTime,
) -> Result<String, TokenError> {
    let (key, names) = Ca::token_key(&home.into())?;
    // It is good under whichever name the mesh has when it is used.
    let trust_domain = names.first().cloned().unwrap_or_default();
    if !names.iter().any(|name| **name == *identity.trust_domain) {
        return Err(TokenError::OtherTrustDomain { identity: identity.to_string(), trust_domain });
    }
    let identity = identity.within(&trust_domain.as_str().into());
    if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
        return Err(TokenError::Ttl);
    }
    let now = unix(now);
    let claims = Claims {
        aud: &trust_domain,
        sub: identity.to_string(),
        iat: now,
        nbf: now,
        exp: now.saturating_add(ttl.as_secs()),
        jti: files::random_hex(16).map_err(|e| TokenError::Sign(e.to_string()))?,
        reusable: uses == Uses::Many,
    };
    let header = Header { kid: Some(key.id.clone()), ..Header::new(jsonwebtoken::Algorithm::ES256) };
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(&key.pair.serialize_der()))
        .map_err(|e| TokenError::Sign(e.to_string()))
}

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Whom.
    pub identity: Identity,
    /// The token's number: what has to be remembered of a token that was used.
    pub id: String,
    /// How often it may be used.
    pub uses: Uses,
    /// Until when it has to be remembered.
    pub expires: SystemTime,
}

/// Checks tokens. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    keys: Arc<Keys>,
    trust_domain: Arc<str>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?} of {})", self.keys, self.trust_domain)
    }
}

impl Verifier {
    /// The verifier of the tokens that this CA's key signs.
    pub fn from_ca(ca: &Ca) -> Self {
        let key = ca.own_token_key();
        let public = DecodingKey::from_ec_der(key.pair.public_key_raw());
        Self { keys: Arc::new(Keys::one(&key.id, Algorithm::Es256, public)), trust_domain: ca.first_name().into() }
    }

    /// Whom the token proves, under the first name of the trust domain. The expiry is exact; the start may lie 60 s ahead.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, TokenError> {
        Ok(self.prove(Unproved::read(token)?, now)?.identity)
    }

    /// [`Verifier::verify`] for who keeps the list of used tokens.
    pub fn prove(&self, token: Unproved<'_>, now: SystemTime) -> Result<Join, TokenError> {
        let claims = token.prove(&self.keys, &[Algorithm::Es256])?;
        claims.check(None, &self.trust_domain, now)?;
        let needed = |name: &'static str| claims.text(name).ok_or(JwtError::Claim(name));
        claims.time("nbf")?.ok_or(JwtError::Claim("nbf"))?;
        let id = needed("jti")?.to_owned();
        let identity: Identity = needed("sub")?.parse().map_err(|_| TokenError::Subject)?;
        if identity.trust_domain != self.trust_domain {
            let trust_domain = self.trust_domain.to_string();
            return Err(TokenError::OtherTrustDomain { identity: identity.to_string(), trust_domain });
        }
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.time("exp")?.unwrap_or_default());
        let uses = if claims.read("reusable").unwrap_or(false) { Uses::Many } else { Uses::Once };
        Ok(Join { identity, id, uses, expires })
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::Algorithm as Signed;

    use super::*;
    use crate::jwt::SKEW;

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
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Signed::ES256) };
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
        assert!(matches!(verifier.verify(&token, now + TTL), Err(TokenError::Invalid(JwtError::Expired))));
        assert!(verifier.verify(&token, now - SKEW).is_ok());
        assert!(matches!(
            verifier.verify(&token, now - SKEW - Duration::from_secs(1)),
            Err(TokenError::Invalid(JwtError::NotYet))
        ));
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!((header.alg, header.kid.is_some()), (Signed::ES256, true));
    }

    #[test]
    fn every_token_has_a_number_of_its_own_and_says_how_often_it_may_be_used() {
        let (dir, _ca, verifier) = ca();
        let make = |uses| {
            let token = sign_for(dir.path(), &web(), uses, TTL, at(1_000_000)).unwrap();
            verifier.prove(Unproved::read(&token).unwrap(), at(1_000_000)).unwrap()
        };
        let (first, second) = (make(Uses::Once), make(Uses::Many));
        assert_ne!(first.id, second.id);
        assert_eq!(first.id.len(), 32);
        assert_eq!((first.uses, second.uses), (Uses::Once, Uses::Many));
        assert_eq!(first.expires, at(1_000_000) + TTL);
    }

    #[test]
    fn another_cas_token_is_refused() {
        let (dir, ..) = ca();
        let (_, _, verifier) = ca();
        let now = at(1_000_000);
        let token = sign(dir.path(), &web(), TTL, now).unwrap();
        assert!(matches!(verifier.verify(&token, now), Err(TokenError::Invalid(JwtError::UnknownKey))));
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
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Signed::HS256) };
        let token =
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(key.pair.public_key_raw())).unwrap();
        assert!(matches!(verifier.verify(&token, at(1000)), Err(TokenError::Invalid(JwtError::Algorithm))));
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
        assert!(matches!(verify(&|c| c["aud"] = "other.example".into()), Err(TokenError::Invalid(JwtError::Audience))));
        assert!(matches!(verify(&|c| c["sub"] = "shop/web".into()), Err(TokenError::Subject)));
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
