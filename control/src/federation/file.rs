//! The file of `--federation`: a list of trust domains and their bundle endpoints, YAML or JSON, read strictly ([`crate::listed`]).
//!
//! ```yaml
//! - domain: partner.example
//!   url: https://bundle.partner.example/
//!   profile: https_web                 # the server is known by its host name
//!   ca: partner-web-ca.pem             # roots for that; default: the system's
//! - domain: other.example
//!   url: https://bundle.other.example:8443/
//!   profile: https_spiffe              # the server is known by its SPIFFE ID, under the trust domain's own roots
//!   endpoint_id: spiffe://other.example/ns/weft-system/sa/weft-control
//!   bundle: other.example.pem          # those roots to begin with: PEM or a SPIFFE bundle
//! ```
//!
//! File names in it are relative to its own directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weft_api::kinds::Fault;
use weft_api::kinds::decode::At;
use weft_certs::bundle::Bundle;
use weft_certs::files::checksum;
use weft_certs::tls::{EndpointId, endpoint_client_config};
use weft_engine::identity::Identity;

use crate::issue::https::Server;
use crate::listed::entries;

/// Trust domains that may be listed.
const MAX: usize = 64;
/// Longer files of roots are not read.
const MAX_FILE: u64 = 512 * 1024;

/// A trust domain and its endpoint.
#[derive(Debug)]
pub struct Partner {
    /// Such as `partner.example`.
    pub domain: String,
    /// The entry as it is written: one that is the same again goes on as it was.
    pub written: Written,
    /// Where its roots are.
    pub url: String,
    /// The same, ready to be asked.
    pub server: Server,
    /// For `https_spiffe`.
    pub spiffe: Option<Spiffe>,
}

/// How the server of an endpoint is known by SPIFFE.
#[derive(Debug)]
pub struct Spiffe {
    /// What it must show.
    pub id: EndpointId,
    /// The file of the roots to begin with.
    pub bundle: PathBuf,
    /// What it said at start.
    pub seed: Seed,
}

/// Roots to begin with.
#[derive(Clone, Debug)]
pub struct Seed {
    /// What the file says.
    pub bundle: Bundle,
    /// Its checksum.
    pub checksum: String,
}

impl Seed {
    /// Reads the file. Blocks.
    pub fn read(path: &Path) -> Result<Self, String> {
        use std::io::Read as _;
        let mut text = Vec::new();
        let failed = |error: &dyn std::fmt::Display| format!("the roots in {}: {error}", path.display());
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
        read.map_err(|error| failed(&error))?;
        let bundle = Bundle::from_file(&text).map_err(|error| failed(&error))?;
        Ok(Self { bundle, checksum: checksum(&text) })
    }
}

/// An entry, as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    domain: At<String>,
    url: At<String>,
    profile: At<String>,
    ca: Option<At<String>>,
    endpoint_id: Option<At<String>>,
    bundle: Option<At<String>>,
}

impl PartialEq for Written {
    // Where it stands does not matter.
    fn eq(&self, other: &Self) -> bool {
        let text = |field: &Option<At<String>>| field.as_ref().map(|field| field.value.clone());
        let texts = |of: &Self| [text(&of.ca), text(&of.endpoint_id), text(&of.bundle)];
        (&*self.domain, &*self.url, &*self.profile) == (&*other.domain, &*other.url, &*other.profile)
            && texts(self) == texts(other)
    }
}

/// Reads the text; `dir` is where the files that it names are, `own` our trust domain, and for those of `filed` files speak already.
pub fn read(text: &str, dir: &Path, own: &str, filed: &BTreeSet<String>) -> Result<Vec<Partner>, Fault> {
    let written: Vec<Written> = entries(text, "federated trust domains", MAX)?;
    let mut found: Vec<Partner> = Vec::with_capacity(written.len());
    for one in written {
        let domain = &one.domain;
        if Identity::new(domain, "any", "any").is_err() {
            let message =
                format!("`{}` is no trust domain: lower-case letters, digits, `-`, `.` and `_` only", **domain);
            return Err(Fault::new(domain.at, message));
        }
        if domain.as_str() == own {
            return Err(Fault::new(domain.at, "that is our own trust domain, whose roots the CA has"));
        }
        if filed.contains(domain.as_str()) {
            let message = format!("`{}` is in --federate too; its roots come from one place only", **domain);
            return Err(Fault::new(domain.at, message));
        }
        if found.iter().any(|other| other.domain == domain.value) {
            return Err(Fault::new(domain.at, format!("trust domain `{}` is there twice", **domain)));
        }
        found.push(partner(one, dir)?);
    }
    Ok(found)
}

fn partner(one: Written, dir: &Path) -> Result<Partner, Fault> {
    let Written { domain, url, profile, ca, endpoint_id, bundle } = one.clone();
    // To loopback too: roots that come unproved are nobody's.
    if !url.starts_with("https://") {
        return Err(Fault::new(url.at, format!("`{}` is no https:// URL", *url)));
    }
    let at = |place: &At<String>, message: String| Fault::new(place.at, message);
    let surplus = |field: &Option<At<String>>, name: &str, other: &str| match field {
        Some(field) => Err(at(field, format!("`{name}` is for profile {other}"))),
        None => Ok(()),
    };
    let (server, spiffe) = match profile.as_str() {
        "https_web" => {
            surplus(&endpoint_id, "endpoint_id", "https_spiffe")?;
            surplus(&bundle, "bundle", "https_spiffe")?;
            let roots = ca.map(|ca| dir.join(&ca.value));
            (Server::new(&url, roots.as_deref()).map_err(|error| at(&url, error.to_string()))?, None)
        }
        "https_spiffe" => {
            surplus(&ca, "ca", "https_web")?;
            let needed = |name: &str| at(&profile, format!("https_spiffe needs `{name}`"));
            let endpoint_id = endpoint_id.ok_or_else(|| needed("endpoint_id"))?;
            let bundle = bundle.ok_or_else(|| needed("bundle"))?;
            let id = EndpointId::of(&domain, &endpoint_id).ok_or_else(|| {
                let message = format!("`{}` is no SPIFFE ID like spiffe://{}/a/path", *endpoint_id, *domain);
                at(&endpoint_id, message)
            })?;
            let path = dir.join(&bundle.value);
            let seed = Seed::read(&path).map_err(|error| at(&bundle, error))?;
            let config = endpoint_client_config(&id, &seed.bundle.roots);
            let config = config.map_err(|error| at(&bundle, error.to_string()))?;
            let server = Server::verified_by(&url, config).map_err(|error| at(&url, error.to_string()))?;
            (server, Some(Spiffe { id, bundle: path, seed }))
        }
        other => return Err(at(&profile, format!("`{other}` is no profile; write https_web or https_spiffe"))),
    };
    Ok(Partner { domain: domain.value, written: one, url: url.value, server, spiffe })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_certs::ca::Ca;

    const WEB: &str =
        "- domain: partner.example\n  url: https://127.0.0.1:8443/\n  profile: https_web\n  ca: other.pem\n";
    const SPIFFE: &str = "- domain: other.example\n  url: https://127.0.0.1:8443/\n  profile: https_spiffe\n  \
                          endpoint_id: spiffe://other.example/spire/server\n  bundle: other.pem\n";

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(&dir.path().join("ca"), "other.example").unwrap();
        std::fs::write(dir.path().join("other.pem"), ca.root_pem()).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_list_is_read() {
        let dir = folder();
        let read = read(&format!("{WEB}{SPIFFE}"), dir.path(), "cluster.local", &BTreeSet::new()).unwrap();
        assert_eq!((read[0].domain.as_str(), read[0].spiffe.is_some()), ("partner.example", false));
        let spiffe = read[1].spiffe.as_ref().unwrap();
        assert_eq!(spiffe.id.to_string(), "spiffe://other.example/spire/server");
        assert_eq!(spiffe.seed.bundle.roots.len(), 1);
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_with_its_place() {
        let dir = folder();
        for (text, from, to, want) in [
            (WEB, "https://127.0.0.1", "http://127.0.0.1", "2:8: `http://127.0.0.1:8443/` is no https:// URL"),
            (WEB, "https_web", "web", "3:12: `web` is no profile"),
            (WEB, "partner.example", "Partner", "1:11: `Partner` is no trust domain"),
            (WEB, "partner.example", "cluster.local", "1:11: that is our own trust domain"),
            (WEB, "ca: other.pem", "bundle: other.pem", "4:11: `bundle` is for profile https_spiffe"),
            (SPIFFE, "bundle: other.pem", "ca: other.pem", "5:7: `ca` is for profile https_web"),
            (SPIFFE, "  bundle: other.pem\n", "", "3:12: https_spiffe needs `bundle`"),
            (SPIFFE, "spiffe://other.example", "spiffe://partner.example", "4:16: `spiffe://partner.example/spire"),
            (SPIFFE, "other.pem", "absent.pem", "5:11: the roots in "),
            (SPIFFE, "profile", "profil", "3:3: unknown field `profil`; did you mean `profile`?"),
        ] {
            let error =
                read(&text.replace(from, to), dir.path(), "cluster.local", &BTreeSet::new()).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}\n{want}");
        }
        let error =
            read(&format!("{WEB}{WEB}"), dir.path(), "cluster.local", &BTreeSet::new()).unwrap_err().to_string();
        assert!(error.starts_with("5:11: trust domain `partner.example` is there twice"), "{error}");
        let filed = BTreeSet::from(["partner.example".to_owned()]);
        let error = read(WEB, dir.path(), "cluster.local", &filed).unwrap_err().to_string();
        assert!(error.starts_with("1:11: `partner.example` is in --federate too"), "{error}");
        for bad in ["", "domain: partner.example\n", "---\n- a\n---\n- b\n", "- {"] {
            assert!(read(bad, dir.path(), "cluster.local", &BTreeSet::new()).is_err(), "{bad}");
        }
    }
}
