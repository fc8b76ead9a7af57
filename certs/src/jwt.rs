//! JSON web tokens (RFC 7519), proved by public keys that their issuer publishes (a JWKS, RFC 7517). Our own join tokens
//! ([`crate::token`]), Kubernetes' service-account tokens and those of any OIDC issuer are all read here.
//!
//! Invariants
//! - Asymmetric algorithms alone: `none` and HMAC cannot even be configured. A key serves the algorithms of its own kind, so that no
//!   token chooses how its signature is checked.
//! - The key is chosen by `kid` among the issuer's own. Keys and URLs that a token's header brings along are not looked at; a header that
//!   says it must be understood (`crit`) is refused.
//! - Time is an argument. Nothing of a token's text is in an error or in `Debug`.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

/// Longer texts are not parsed.
pub const MAX_LENGTH: usize = 8 * 1024;
/// How far a token's `nbf` and `iat` may lie ahead of the verifier's clock.
pub const SKEW: Duration = Duration::from_mins(1);
/// Keys of one issuer; more are left out.
const MAX_KEYS: usize = 64;
/// Bytes of an RSA key of 2,048 bits: smaller ones are left out.
const MIN_RSA: usize = 256;

/// How a token may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA P-256, SHA-256.
    Es256,
    /// ECDSA P-384, SHA-384.
    Es384,
    /// RSA PKCS #1 v1.5, SHA-256.
    Rs256,
    /// RSA PSS, SHA-256.
    Ps256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All that can be allowed.
    pub const ALL: [Self; 5] = [Self::Es256, Self::Es384, Self::Rs256, Self::Ps256, Self::EdDsa];

    /// Its name in a token's header (RFC 7518, RFC 8037).
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// Why a token is not taken. None holds any part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Over the bound.
    #[error("it is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// Not three parts of base64url with JSON in the first two.
    #[error("it is no JWT")]
    Malformed,
    /// `none`, HMAC, or one that is not allowed or not of the key's kind.
    #[error("its algorithm is not allowed here")]
    Algorithm,
    /// The header has `crit`.
    #[error("its header has critical fields, which are not supported")]
    Critical,
    /// The header names no key, or one that the issuer does not publish.
    #[error("it names no key of its issuer")]
    UnknownKey,
    /// Somebody else made it, or it was altered.
    #[error("its signature does not match")]
    Signature,
    /// A claim is missing or of another type.
    #[error("its claim `{0}` is missing or malformed")]
    Claim(&'static str),
    /// Of another issuer.
    #[error("it is of another issuer")]
    Issuer,
    /// For somebody else.
    #[error("it is for another audience")]
    Audience,
    /// It is too late.
    #[error("it has expired")]
    Expired,
    /// It is too early.
    #[error("it is not valid yet; compare the clocks")]
    NotYet,
}

/// The set of keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// Not JSON, or not of that shape.
    #[error("it is no JWKS: {0}")]
    Malformed(String),
    /// No key that can be used.
    #[error(
        "it has no key of a kind that is taken here (RSA of 2048 bits or more, P-256, P-384, Ed25519) with a `kid`"
    )]
    Empty,
}

/// The public keys of an issuer, by `kid`.
#[derive(Clone)]
pub struct Keys(HashMap<String, (Vec<Algorithm>, DecodingKey)>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
}

/// What is looked at of a key; everything else may be anything.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn read(&self) -> Option<(Vec<Algorithm>, DecodingKey)> {
        let made = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let n = self.n.as_deref()?;
                // Base64url without padding: four characters for three bytes.
                if n.len() / 4 * 3 + n.len() % 4 * 3 / 4 < MIN_RSA {
                    return None;
                }
                (
                    vec![Algorithm::Rs256, Algorithm::Ps256],
                    DecodingKey::from_rsa_components(n, self.e.as_deref()?).ok()?,
                )
            }
            ("EC", Some("P-256")) => (vec![Algorithm::Es256], self.ec()?),
            ("EC", Some("P-384")) => (vec![Algorithm::Es384], self.ec()?),
            ("OKP", Some("Ed25519")) => {
                (vec![Algorithm::EdDsa], DecodingKey::from_ed_components(self.x.as_deref()?).ok()?)
            }
            _ => return None,
        };
        let (mut algorithms, key) = made;
        if let Some(only) = &self.alg {
            algorithms.retain(|algorithm| algorithm.name() == only);
        }
        let signs = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
        (signs && !algorithms.is_empty()).then_some((algorithms, key))
    }

    fn ec(&self) -> Option<DecodingKey> {
        DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?).ok()
    }
}

impl Keys {
    /// Reads a JWKS. Keys of other kinds or for other uses are left out: an issuer may publish more than we need.
    pub fn from_json(text: &[u8]) -> Result<Self, KeysError> {
        let set: JwkSet = serde_json::from_slice(text).map_err(|error| KeysError::Malformed(error.to_string()))?;
        let keys = set.keys.into_iter().filter_map(|key| {
            let key: Jwk = serde_json::from_value(key).ok()?;
            let read = key.read()?;
            Some((key.kid?, read))
        });
        let keys: HashMap<_, _> = keys.take(MAX_KEYS).collect();
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self(keys)) }
    }

    /// One key that is known.
    pub(crate) fn one(id: &str, algorithm: Algorithm, key: DecodingKey) -> Self {
        Self(HashMap::from([(id.to_owned(), (vec![algorithm], key))]))
    }

    /// Whether there is a key of this name.
    pub fn has(&self, key_id: &str) -> bool {
        self.0.contains_key(key_id)
    }
}

/// A token that was read and not proved: what it says is a claim.
pub struct Unproved<'a> {
    message: &'a str,
    signature: &'a str,
    algorithm: Option<Algorithm>,
    key_id: Option<String>,
    claims: Claims,
}

impl fmt::Debug for Unproved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unproved(key {:?})", self.key_id)
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

impl<'a> Unproved<'a> {
    /// Reads a token; what is around it may be blank.
    pub fn read(token: &'a str) -> Result<Self, JwtError> {
        let token = token.trim();
        if token.len() > MAX_LENGTH {
            return Err(JwtError::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(JwtError::Malformed)?;
        if claims.contains('.') {
            return Err(JwtError::Malformed);
        }
        let header: Header = part(header)?;
        if header.crit.is_some() {
            return Err(JwtError::Critical);
        }
        let algorithm = Algorithm::named(&header.alg);
        Ok(Self { message, signature, algorithm, key_id: header.kid, claims: Claims(part(claims)?) })
    }

    /// By whom it says that it was issued.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.text("iss")
    }

    /// The key that it names.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// What it says, for a first look that only ever refuses.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Checks the signature: one of these algorithms, by the key that it names.
    pub fn prove(self, keys: &Keys, allowed: &[Algorithm]) -> Result<Claims, JwtError> {
        let algorithm = self.algorithm.filter(|algorithm| allowed.contains(algorithm)).ok_or(JwtError::Algorithm)?;
        let (kinds, key) = self.key_id.and_then(|id| keys.0.get(&id)).ok_or(JwtError::UnknownKey)?;
        if !kinds.contains(&algorithm) {
            return Err(JwtError::Algorithm);
        }
        let verified =
            jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, algorithm.of_library());
        match verified {
            Ok(true) => Ok(self.claims),
            Ok(false) | Err(_) => Err(JwtError::Signature),
        }
    }
}

/// Base64url with JSON in it. The library only decodes what stands in the middle of a token, so it is put there.
fn part<T: DeserializeOwned>(text: &str) -> Result<T, JwtError> {
    jsonwebtoken::dangerous::insecure_decode_claims(format!(".{text}.")).map_err(|_| JwtError::Malformed)
}

/// What a token says.
#[derive(Clone, PartialEq)]
pub struct Claims(Map<String, Value>);

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Claims {
    /// A claim that is text, if there is one of that name.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// A claim read as a type.
    pub fn read<T: DeserializeOwned>(&self, name: &'static str) -> Result<T, JwtError> {
        let value = self.0.get(name).cloned().ok_or(JwtError::Claim(name))?;
        serde_json::from_value(value).map_err(|_| JwtError::Claim(name))
    }

    /// A time in seconds since 1970 (it may have a fraction, RFC 7519 section 2); `None` if it is not there.
    pub fn time(&self, name: &'static str) -> Result<Option<u64>, JwtError> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let whole = value.as_u64();
                let fraction = || value.as_f64().filter(|time| (0.0..1e15).contains(time)).map(|time| time as u64);
                whole.or_else(fraction).map(Some).ok_or(JwtError::Claim(name))
            }
        }
    }

    /// Issuer, audience and times. The expiry is needed and exact; the start may lie [`SKEW`] ahead.
    pub fn check(&self, issuer: Option<&str>, audience: &str, now: SystemTime) -> Result<(), JwtError> {
        if issuer.is_some_and(|issuer| self.text("iss") != Some(issuer)) {
            return Err(JwtError::Issuer);
        }
        let for_us = match self.0.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(audience)),
            _ => return Err(JwtError::Claim("aud")),
        };
        if !for_us {
            return Err(JwtError::Audience);
        }
        let now = unix(now);
        if now >= self.time("exp")?.ok_or(JwtError::Claim("exp"))? {
            return Err(JwtError::Expired);
        }
        let ahead = now.saturating_add(SKEW.as_secs());
        for start in ["nbf", "iat"] {
            if self.time(start)?.is_some_and(|start| ahead < start) {
                return Err(JwtError::NotYet);
            }
        }
        Ok(())
    }
}

/// Seconds since 1970.
pub(crate) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
