//! The `/etc/hosts` and `/etc/resolv.conf` that are bound over the pods' own: service names to cluster addresses, and the lab's
//! server for all other names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::{Error, NODE};

/// Names that every pod finds.
#[derive(Debug)]
pub struct Hosts {
    /// Bound over `/etc/hosts`; rewritten in place, because a bind mount follows the file, not its name.
    pub file: PathBuf,
    /// Bound over `/etc/resolv.conf`.
    pub resolv: PathBuf,
    names: Mutex<BTreeMap<String, IpAddr>>,
}

impl Hosts {
    /// Files with nothing but `localhost` and the lab's name server.
    pub fn create(dir: &Path) -> Result<Self, Error> {
        let hosts = Self { file: dir.join("hosts"), resolv: dir.join("resolv.conf"), names: Mutex::default() };
        let resolv = format!("nameserver {NODE}\noptions timeout:1 attempts:2\n");
        std::fs::write(&hosts.resolv, resolv).map_err(Error::file(&hosts.resolv))?;
        hosts.write(&BTreeMap::new())?;
        Ok(hosts)
    }

    /// Adds or moves a name.
    pub fn add(&self, name: &str, address: IpAddr) -> Result<(), Error> {
        let mut names = self.names.lock();
        names.insert(name.to_owned(), address);
        self.write(&names)
    }

    fn write(&self, names: &BTreeMap<String, IpAddr>) -> Result<(), Error> {
        let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for (name, address) in names {
            let _ = writeln!(text, "{address} {name}");
        }
        std::fs::write(&self.file, text).map_err(Error::file(&self.file))
    }
}
