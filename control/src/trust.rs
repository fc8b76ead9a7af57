//! Whose certificates the mesh believes: the roots of the CA, and those of the trust domains that it is federated with, from
//! files, or as [`crate::federation`] has read them.
//!
//! Invariants
//! - A file that cannot be read or used changes nothing: what it said before goes on, and the log says why.
//! - A trust domain is never empty, and nobody speaks for our own but the CA, under whichever of the names that it has or had.
//!
//! Files are read where blocking is allowed: [`crate::rotation`] looks at them, with the CA.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use bytes::Bytes;
use tokio::sync::watch;
use weft_api::wire::v1;
use weft_certs::ca::Called;
use weft_certs::tls::certificates;
use weft_engine::identity::Identity;

use crate::federation::Known;
use crate::issue::signers::CertificateAuthority;
use crate::svid_roots::{Further, SvidRoots};

/// A trust domain that the mesh is federated with, and the PEM file of its roots: `DOMAIN=FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federated {
    /// Such as `partner.example`.
    pub domain: String,
    /// One or more root certificates, PEM.
    pub file: PathBuf,
}

impl FromStr for Federated {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, file) = text
            .split_once('=')
            .filter(|(_, file)| !file.is_empty())
            .ok_or_else(|| format!("`{text}` is not DOMAIN=FILE; write it like partner.example=partner-roots.pem"))?;
        if file.starts_with("https://") || file.starts_with("http://") {
            return Err(format!("`{file}` is no file; put the URLs of bundle endpoints into the file of --federation"));
        }
        if Identity::new(domain, "any", "any").is_err() {
            return Err(format!("`{domain}` is no trust domain: lower-case letters, digits, `-`, `.` and `_` only"));
        }
        Ok(Self { domain: domain.to_owned(), file: file.into() })
    }
}

/// What is believed.
#[derive(Debug)]
pub struct Trust {
    federated: Vec<Federated>,
    // What each file said last, while it was good.
    known: Known,
    // What was read from bundle endpoints.
    read: Option<watch::Receiver<Known>>,
    // Of our own trust domain, beside the CA's.
    further: SvidRoots,
    // Files of which the log has said that something is wrong.
    wrong: BTreeMap<String, String>,
    // Of whom it has said that nobody but the CA speaks for them.
    ours: BTreeSet<String>,
}

impl Trust {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is broken, or speaks for our own domain or for one that another speaks for.
    pub fn open(trust_domain: &str, federated: Vec<Federated>) -> Result<Self, String> {
        let (known, further) = (Known::new(), SvidRoots::open(None)?);
        let mut trust = Self { federated, known, read: None, further, wrong: BTreeMap::new(), ours: BTreeSet::new() };
        for one in &trust.federated {
            if one.domain == trust_domain {
                return Err(format!("--federate {}: that is our own trust domain, whose roots the CA has", one.domain));
            }
            if trust.known.insert(one.domain.clone(), read(one)?).is_some() {
                return Err(format!("--federate {}: given twice; put all of its roots into one file", one.domain));
            }
        }
        Ok(trust)
    }

    /// And those that are read from bundle endpoints.
    #[must_use]
    pub fn and(self, read: watch::Receiver<Known>) -> Self {
        Self { read: Some(read), ..self }
    }

    /// And further ones of our own trust domain.
    #[must_use]
    pub fn with(self, further: SvidRoots) -> Self {
        Self { further, ..self }
    }

    /// Those, and each change of them.
    pub fn svid_roots(&self) -> watch::Receiver<Further> {
        self.further.follow()
    }

    /// The trust domains that files speak for.
    pub fn filed(&self) -> BTreeSet<String> {
        self.known.keys().cloned().collect()
    }

    /// Whether the mesh is federated with this trust domain.
    pub fn federates(&self, domain: &str) -> bool {
        self.known.contains_key(domain) || self.read.as_ref().is_some_and(|read| read.borrow().contains_key(domain))
    }

    /// As proxies are told.
    pub fn message(&self, ca: &dyn CertificateAuthority) -> v1::Trust {
        let called = ca.called();
        let own = certificates(ca.root_pem()).unwrap_or_default();
        let own = (called.now.clone(), own.iter().map(|root| Bytes::copy_from_slice(root)).collect());
        let mut all = self.known.clone();
        all.extend(self.read.iter().flat_map(|read| read.borrow().clone()));
        all.retain(|domain, _| !called.every().any(|name| name == domain));
        all.extend([own]);
        let bundle = |(trust_domain, mut roots): (String, Vec<Bytes>)| {
            // The same roots are the same bytes.
            roots.sort_unstable();
            roots.dedup();
            v1::TrustBundle { trust_domain, roots }
        };
        let Called { now, aliases, former } = called;
        // Who does not know of names would take this for somebody else's.
        let requires =
            if aliases.is_empty() && former.is_empty() { None } else { Some("trust-domain-names".to_owned()) };
        let bundles = all.into_iter().map(bundle).collect();
        let svid_roots = self.further.der();
        v1::Trust { bundles, own: now, aliases, former, svid_roots, requires: requires.into_iter().collect() }
    }

    /// Reads the files again, and says whom nobody may speak for, since our own trust domain has or had that name.
    pub fn look(&mut self, called: &Called) {
        self.further.look();
        let ours: BTreeSet<_> = called.every().filter(|name| self.federates(name)).map(str::to_owned).collect();
        for name in ours.difference(&self.ours) {
            tracing::warn!(
                name,
                "is a name of our own trust domain: its federation (--federate, --federation) is not in force"
            );
        }
        self.ours = ours;
        for one in &self.federated {
            match read(one) {
                Ok(roots) => {
                    self.wrong.remove(&one.domain);
                    self.known.insert(one.domain.clone(), roots);
                }
                Err(why) if self.wrong.get(&one.domain) == Some(&why) => {}
                Err(why) => {
                    tracing::warn!(domain = one.domain, "{why}; the roots of before go on");
                    self.wrong.insert(one.domain.clone(), why);
                }
            }
        }
    }
}

fn read(one: &Federated) -> Result<Vec<Bytes>, String> {
    let named = || format!("--federate {}={}", one.domain, one.file.display());
    let pem = std::fs::read_to_string(&one.file).map_err(|error| format!("{}: {error}", named()))?;
    let certs = certificates(&pem).map_err(|error| format!("{}: {error}", named()))?;
    Ok(certs.iter().map(|cert| Bytes::copy_from_slice(cert)).collect())
}

#[cfg(test)]
mod tests {
    use weft_certs::ca::Ca;

    use super::*;

    fn ca(dir: &std::path::Path, domain: &str) -> Ca {
        Ca::open(&dir.join(domain), domain).unwrap()
    }

    #[test]
    fn a_file_that_breaks_changes_nothing_and_one_that_changes_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let ours = ca(dir.path(), "cluster.local");
        let (theirs, next) = (ca(dir.path(), "partner.example"), ca(dir.path(), "partner2.example"));
        let file = dir.path().join("partner.pem");
        std::fs::write(&file, theirs.root_pem()).unwrap();
        let federated = Federated { domain: "partner.example".into(), file: file.clone() };
        let mut trust = Trust::open("cluster.local", vec![federated]).unwrap();
        let first = trust.message(&ours);
        let domains: Vec<_> = first.bundles.iter().map(|bundle| &*bundle.trust_domain).collect();
        assert_eq!(domains, ["cluster.local", "partner.example"]);
        for broken in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&file, broken).unwrap();
            trust.look(&ours.called());
            assert_eq!(trust.message(&ours), first);
        }
        std::fs::remove_file(&file).unwrap();
        trust.look(&ours.called());
        assert_eq!(trust.message(&ours), first);
        std::fs::write(&file, format!("{}{}", next.root_pem(), theirs.root_pem())).unwrap();
        trust.look(&ours.called());
        assert_eq!(trust.message(&ours).bundles[1].roots.len(), 2);
        assert!(trust.ours.is_empty());
        trust.look(&Called { former: vec!["partner.example".into()], ..ours.called() });
        assert!(trust.ours.contains("partner.example"), "the log has said that it is not in force");
    }

    #[test]
    fn nobody_else_speaks_for_our_own_domain() {
        let dir = tempfile::tempdir().unwrap();
        let ours = ca(dir.path(), "cluster.local");
        let file = dir.path().join("root.pem");
        std::fs::write(&file, ours.root_pem()).unwrap();
        let federated = |domain: &str| Federated { domain: domain.into(), file: file.clone() };
        let wrong = Trust::open("cluster.local", vec![federated("cluster.local")]).unwrap_err();
        assert!(wrong.contains("our own"), "{wrong}");
        let twice = Trust::open("cluster.local", vec![federated("a.org"), federated("a.org")]).unwrap_err();
        assert!(twice.contains("twice"), "{twice}");
    }

    #[test]
    fn a_change_of_name_is_told_and_no_file_speaks_for_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let ours = ca(dir.path(), "cluster.local");
        let (file, now) = (dir.path().join("root.pem"), std::time::SystemTime::now());
        std::fs::write(&file, ours.root_pem()).unwrap();
        let trust = Trust::open("cluster.local", vec![Federated { domain: "new.example".into(), file }]).unwrap();
        assert!(trust.federates("new.example") && !trust.federates("cluster.local"));
        let before = trust.message(&ours);
        assert_eq!((before.bundles.len(), &*before.own, before.requires.len()), (2, "cluster.local", 0));
        let begun = ours.rename("new.example", false, now).unwrap();
        let told = trust.message(&begun);
        assert_eq!(
            (told.bundles.len(), &*told.own, told.aliases),
            (1, "cluster.local", vec!["new.example".to_owned()])
        );
        assert_eq!(told.requires, ["trust-domain-names"]);
        // What was turned back is nobody else's either; unless it was somebody else's before.
        let back = begun.abort(now).unwrap();
        assert_eq!(trust.message(&back).former, ["new.example"]);
    }

    #[test]
    fn it_is_written_domain_and_file() {
        let read: Federated = "partner.example=a/b.pem".parse().unwrap();
        assert_eq!((&*read.domain, read.file), ("partner.example", "a/b.pem".into()));
        for bad in ["", "partner.example", "partner.example=", "Partner=a", "=a", "a.org=https://a.org/"] {
            assert!(bad.parse::<Federated>().is_err(), "{bad}");
        }
    }
}
