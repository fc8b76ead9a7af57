//! The file of `--identity-providers`: a list of OIDC issuers, YAML or JSON, read strictly.
//!
//! ```yaml
//! - name: nomad
//!   issuer: https://nomad.example
//!   audience: weft
//!   jwks: https://nomad.example/.well-known/jwks.json    # or a file
//!   ca: nomad-ca.pem                                     # roots for that URL; default: the system's
//!   algorithms: [RS256]                                  # default: all asymmetric ones
//!   identity: ns/{nomad_namespace}/sa/{nomad_job_id}
//! ```
//!
//! File names in it are relative to its own directory.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use weft_api::kinds::Fault;
use weft_api::kinds::decode::At;
use weft_certs::jwt::Algorithm;

use super::https::Server;
use super::jwks::{Jwks, Place};
use super::oidc::{Oidc, Template, algorithm};
use crate::listed::entries;
use crate::metrics::Metrics;

/// Issuers that may be named.
const MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: At<String>,
    issuer: At<String>,
    audience: At<String>,
    jwks: At<String>,
    ca: Option<At<String>>,
    identity: At<String>,
    #[serde(default)]
    algorithms: Vec<At<String>>,
}

/// Reads the text; `dir` is where the files that it names are, `taken` an issuer that somebody else proves already.
pub fn read(text: &str, dir: &Path, taken: Option<&str>, metrics: &Arc<Metrics>) -> Result<Vec<Oidc>, Fault> {
    let written: Vec<Written> = entries(text, "identity providers", MAX)?;
    let mut found: Vec<Oidc> = Vec::with_capacity(written.len());
    for one in written {
        let twice =
            |what: &str, at: &At<String>| Err(Fault::new(at.at, format!("{what} `{}` is there twice", at.value)));
        if found.iter().any(|other| other.name == one.name.value) {
            return twice("name", &one.name);
        }
        if taken == Some(one.issuer.as_str()) || found.iter().any(|other| other.issuer == one.issuer.value) {
            return twice("issuer", &one.issuer);
        }
        found.push(provider(one, dir, metrics)?);
    }
    Ok(found)
}

fn provider(one: Written, dir: &Path, metrics: &Arc<Metrics>) -> Result<Oidc, Fault> {
    for (what, text) in [("name", &one.name), ("issuer", &one.issuer), ("audience", &one.audience), ("jwks", &one.jwks)]
    {
        if text.is_empty() {
            return Err(Fault::new(text.at, format!("`{what}` is empty")));
        }
    }
    let template = Template::read(&one.identity).map_err(|message| Fault::new(one.identity.at, message))?;
    let algorithms = one.algorithms.iter();
    let algorithms = algorithms.map(|name| algorithm(name).map_err(|message| Fault::new(name.at, message)));
    let mut algorithms = algorithms.collect::<Result<Vec<_>, _>>()?;
    if algorithms.is_empty() {
        algorithms = Algorithm::ALL.to_vec();
    }
    let written = (one.jwks.value.clone(), one.ca.as_ref().map(|ca| ca.value.clone()));
    let roots = one.ca.as_ref().map(|ca| dir.join(&ca.value));
    let place = if one.jwks.contains("://") {
        let server = Server::new(&one.jwks, roots.as_deref());
        Place::Url(Box::new(server.map_err(|error| Fault::new(one.jwks.at, error.to_string()))?), None)
    } else if let Some(ca) = &one.ca {
        return Err(Fault::new(ca.at, "`ca` is for a `jwks` that is a URL"));
    } else {
        Place::File(dir.join(&one.jwks.value))
    };
    Ok(Oidc {
        place: written,
        keys: Jwks::new(&one.issuer, place, Arc::clone(metrics)),
        name: one.name.value,
        issuer: one.issuer.value,
        audience: one.audience.value,
        algorithms,
        template,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "- name: nomad\n  issuer: https://nomad.example\n  audience: weft\n  jwks: keys.json\n  \
                        identity: ns/{nomad_namespace}/sa/{nomad_job_id}\n";

    fn read_text(text: &str) -> Result<Vec<Oidc>, Fault> {
        read(text, Path::new("/etc/weft"), Some("https://kubernetes"), &Arc::new(Metrics::new().unwrap()))
    }

    #[test]
    fn a_list_is_read() {
        let more = "- {name: b, issuer: b, audience: w, jwks: \"http://127.0.0.1:4646/keys\", algorithms: [ES256], identity: \"ns/b/sa/{c}\"}\n";
        let read = read_text(&format!("{GOOD}{more}")).unwrap();
        assert_eq!(read[0].algorithms, Algorithm::ALL);
        assert_eq!(read[1].algorithms, [Algorithm::Es256]);
        let json = r#"[{"name":"a","issuer":"a","audience":"w","jwks":"k","identity":"ns/a/sa/b"}]"#;
        assert_eq!(read_text(json).unwrap()[0].name, "a");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (from, to, want) in [
            ("audience", "audiense", "3:3: unknown field `audiense`; did you mean `audience`?"),
            ("  audience: weft\n", "", "1:3: field `audience` is missing"),
            ("audience: weft", "audience: \"\"", "3:13: `audience` is empty"),
            ("ns/{nomad", "app/{nomad", "5:13: `app/{nomad_namespace}/sa/{nomad_job_id}` is no identity template"),
            (
                "jwks: keys.json",
                "jwks: http://nomad.example/keys",
                "4:9: `http://nomad.example/keys` is no https:// URL",
            ),
            ("jwks: keys.json", "jwks: keys.json\n  ca: x.pem", "5:7: `ca` is for a `jwks` that is a URL"),
            ("https://nomad.example", "https://kubernetes", "2:11: issuer `https://kubernetes` is there twice"),
            ("audience: weft", "audience: weft\n  algorithms: [none]", "4:16: `none` is no algorithm"),
            ("audience: weft", "audience: weft\n  algorithms: [HS256]", "4:16: `HS256` is no algorithm"),
        ] {
            let error = read_text(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}\n{want}");
        }
        let error = read_text(&format!("{GOOD}{GOOD}")).unwrap_err().to_string();
        assert!(error.starts_with("6:9: name `nomad` is there twice"), "{error}");
        for bad in ["", "# nothing\n", "name: nomad\n", "---\n- a\n---\n- b\n", "- {"] {
            assert!(read_text(bad).is_err(), "{bad}");
        }
    }
}
