//! Tokens of any OIDC issuer by its public keys: Nomad's workload identity is one.
//!
//! A template turns claims into the identity: `ns/{nomad_namespace}/sa/{nomad_job_id}`. A part is literal text around one claim at most, so
//! that no two sets of claims give one identity; what comes out must be an identity by the mesh's own rules, never control's.

use std::time::SystemTime;

use tokio::time::Instant;
use weft_certs::jwt::{Algorithm, Claims, Unproved};
use weft_certs::tls::control_identity;
use weft_engine::identity::Identity;

use super::jwks::Jwks;
use super::{Cause, Method, Proof, Refusal};

/// One issuer.
#[derive(Debug)]
pub struct Oidc {
    /// What people call it.
    pub name: String,
    /// `iss` of its tokens.
    pub issuer: String,
    /// `aud` that they must have.
    pub audience: String,
    /// How they may be signed.
    pub algorithms: Vec<Algorithm>,
    /// From claims to the identity.
    pub template: Template,
    /// Where its keys are and by what roots that is verified, as it is written.
    pub place: (String, Option<String>),
    /// Its keys.
    pub keys: Jwks,
}

impl Oidc {
    /// Whom the token proves.
    pub async fn prove(&self, token: Unproved<'_>, trust_domain: &str, now: SystemTime) -> Result<Proof, Refusal> {
        // Before the issuer is asked for keys: what cannot be right for us is no reason to trouble it.
        token.claims().check(Some(&self.issuer), &self.audience, now)?;
        let keys = self.keys.with(token.key_id().unwrap_or_default(), Instant::now()).await?;
        let claims = token.prove(&keys, &self.algorithms)?;
        let identity = self.template.identity(&claims, trust_domain)?;
        Ok(Proof { identity, method: Method::Oidc, pod: None, once: None, token: None })
    }
}

/// `ns/PART/sa/PART`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    namespace: Part,
    account: Part,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    before: String,
    claim: Option<String>,
    after: String,
}

impl Template {
    /// Reads a template; the error is one sentence.
    pub fn read(text: &str) -> Result<Self, String> {
        let shape =
            || format!("`{text}` is no identity template; write it like `ns/{{nomad_namespace}}/sa/{{nomad_job_id}}`");
        let parts: Vec<&str> = text.split('/').collect();
        let ["ns", namespace, "sa", account] = parts[..] else { return Err(shape()) };
        let template = Self { namespace: Part::read(namespace)?, account: Part::read(account)? };
        // The literal text must be such that an identity can come of it at all.
        let sample = |part: &Part| format!("{}{}{}", part.before, part.claim.as_ref().map_or("", |_| "x"), part.after);
        Identity::new("td", &sample(&template.namespace), &sample(&template.account)).map_err(|_| shape())?;
        Ok(template)
    }

    fn identity(&self, claims: &Claims, trust_domain: &str) -> Result<Identity, Refusal> {
        let (namespace, account) = (self.namespace.fill(claims)?, self.account.fill(claims)?);
        let identity = Identity::new(trust_domain, &namespace, &account).map_err(|_| {
            // What the claims say may be anything: it is not repeated.
            Refusal::new(
                Cause::TokenClaims,
                "the token's claims give no identity: a part is empty or has other characters than a-z 0-9 - . _",
            )
        })?;
        if control_identity(trust_domain).is_ok_and(|control| control == identity) {
            return Err(Refusal::new(
                Cause::Reserved,
                "the token's claims give the identity of control itself, which nobody else may have",
            ));
        }
        Ok(identity)
    }
}

impl Part {
    fn read(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` must be text around one {{claim}} at most");
        let Some((before, rest)) = text.split_once('{') else {
            return if text.contains('}') { Err(wrong()) } else { Ok(Self::new(text, None, "")) };
        };
        let (claim, after) = rest.split_once('}').ok_or_else(wrong)?;
        if claim.is_empty() || before.contains('}') || claim.contains('{') || after.contains(['{', '}']) {
            return Err(wrong());
        }
        Ok(Self::new(before, Some(claim), after))
    }

    fn new(before: &str, claim: Option<&str>, after: &str) -> Self {
        Self { before: before.to_owned(), claim: claim.map(str::to_owned), after: after.to_owned() }
    }

    fn fill(&self, claims: &Claims) -> Result<String, Refusal> {
        let Some(claim) = &self.claim else { return Ok(self.before.clone()) };
        let found = claims.text(claim).filter(|value| !value.is_empty()).ok_or_else(|| {
            Refusal::new(
                Cause::TokenClaims,
                format!("the token has no claim `{claim}` that is text, which the identity is made of"),
            )
        })?;
        Ok(format!("{}{found}{}", self.before, self.after))
    }
}

/// An algorithm by its name; the error names those that there are.
pub fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::named(name).ok_or_else(|| {
        let known: Vec<_> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
        format!("`{name}` is no algorithm that is taken here, expected one of {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_text_around_one_claim() {
        for good in ["ns/{a}/sa/{b}", "ns/nomad/sa/{job}", "ns/nomad-{ns}/sa/x-{job}-y", "ns/a/sa/b", "ns/{a}/sa/{a}"] {
            assert!(Template::read(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "ns/{a}",
            "sa/{a}/ns/{b}",
            "ns/{a}/sa/{b}/more",
            "ns//sa/{a}",
            "ns/{a}{b}/sa/x",
            "ns/{a/sa/b",
            "ns/a}/sa/b",
            "ns/{}/sa/b",
            "ns/UP/sa/b",
            "ns/{{a}}/sa/b",
            "spiffe://td/ns/a/sa/b",
            "ns/a b/sa/c",
        ] {
            assert!(Template::read(bad).is_err(), "{bad}");
        }
    }
}
