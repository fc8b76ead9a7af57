//! Further roots under which identities of our own trust domain are believed (`--svid-roots`): of a SPIRE, say, that gives some sidecars their
//! certificates (`weft proxy --svid-from`).
//!
//! Invariants
//! - Who shows a certificate under them has proved who he is to other sidecars, and for his own stream; never to our CA, and never that he is
//!   control: proxies are told of them apart from the CA's roots.
//! - A file that cannot be read or used changes nothing: what it said before goes on, and the log says why.

use std::path::PathBuf;

use bytes::Bytes;
use tokio::sync::watch;
use weft_certs::tls::Roots;

use crate::federation::file::Seed;

/// The roots as they are now.
#[derive(Clone, Debug, Default)]
pub struct Further {
    checksum: String,
    /// Certificates in DER, sorted.
    pub der: Vec<Bytes>,
    /// The same, as handshakes take them; `None`: there are none.
    pub roots: Option<Roots>,
}

impl Further {
    /// With them the CA's.
    #[must_use]
    pub fn and(&self, ca: &Roots) -> Roots {
        self.roots.as_ref().map_or_else(|| ca.clone(), |roots| ca.with(roots))
    }
}

/// The file, and each change of it.
#[derive(Debug)]
pub struct SvidRoots {
    file: Option<PathBuf>,
    now: watch::Sender<Further>,
    // Of which the log has said that something is wrong.
    wrong: Option<String>,
}

impl SvidRoots {
    /// Reads the file; without one there are no such roots. Blocks.
    ///
    /// # Errors
    /// It cannot be read or used; one sentence.
    pub fn open(file: Option<PathBuf>) -> Result<Self, String> {
        let mut opened = Self { file, now: watch::Sender::default(), wrong: None };
        opened.read()?;
        Ok(opened)
    }

    /// The roots now, and each change.
    pub fn follow(&self) -> watch::Receiver<Further> {
        self.now.subscribe()
    }

    /// The roots now, DER.
    pub fn der(&self) -> Vec<Bytes> {
        self.now.borrow().der.clone()
    }

    /// Reads the file again. Blocks.
    pub fn look(&mut self) {
        match self.read() {
            Ok(()) => self.wrong = None,
            Err(why) if self.wrong.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::warn!("{why}; the roots of before go on");
                self.wrong = Some(why);
            }
        }
    }

    fn read(&mut self) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        let seed = Seed::read(file).map_err(|why| format!("--svid-roots: {why}"))?;
        if self.now.borrow().checksum == seed.checksum {
            return Ok(());
        }
        let der: Vec<Bytes> = seed.bundle.roots.iter().map(|root| Bytes::copy_from_slice(root)).collect();
        let roots =
            Roots::from_der(&der.concat()).map_err(|error| format!("--svid-roots {}: {error}", file.display()))?;
        tracing::info!(roots = der.len(), "further roots for certificates of the mesh were read");
        self.now.send_replace(Further { checksum: seed.checksum, der, roots: Some(roots) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_certs::ca::Ca;

    #[test]
    fn a_file_that_breaks_changes_nothing_and_one_that_changes_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| Ca::open(&dir.path().join(name), "cluster.local").unwrap());
        let file = dir.path().join("roots.pem");
        assert!(SvidRoots::open(Some(file.clone())).unwrap_err().starts_with("--svid-roots: the roots in "));
        std::fs::write(&file, one.root_pem()).unwrap();
        let mut roots = SvidRoots::open(Some(file.clone())).unwrap();
        let mut changes = roots.follow();
        let first = roots.der();
        assert_eq!(first.len(), 1);
        for broken in ["", "no certificate", "{\"keys\": []}"] {
            std::fs::write(&file, broken).unwrap();
            roots.look();
            assert!(roots.wrong.is_some() && roots.der() == first, "{broken}");
        }
        std::fs::write(&file, format!("{}{}", one.root_pem(), other.root_pem())).unwrap();
        roots.look();
        assert!(roots.wrong.is_none() && changes.has_changed().unwrap());
        assert_eq!(changes.borrow_and_update().der.len(), 2);
        roots.look();
        assert!(!changes.has_changed().unwrap());
    }
}
