//! A real API server with its etcd for one run, started and ended by the scripts of tests/e2e/rig.
//!
//! It is gone with the run however that ends: whoever ends it waits for the end of a pipe that only this process holds.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::super::Error;
use super::super::account::{Memory, Usage};
use super::processes::free;
use super::world::SERVICE_RANGE;

/// How often it is looked whether all has ended.
const LOOK: Duration = Duration::from_millis(20);
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/rig");

/// An API server that runs; it ends when this is dropped.
pub struct Rig {
    dir: PathBuf,
    /// Where it listens.
    pub addr: SocketAddr,
    end: Child,
    // What `end` waits for.
    held: Option<ChildStdin>,
    etcd: u32,
    apiserver: u32,
}

/// What the servers behind the source `kubernetes` have used.
#[derive(Debug, Clone, Copy)]
pub struct Servers {
    /// Of etcd.
    pub etcd: Memory,
    /// Of the API server.
    pub apiserver: Memory,
    /// CPU time of both, in seconds.
    pub cpu: f64,
    /// Writes a second while the world was written.
    pub writes: f64,
}

impl Rig {
    /// Starts it with a state of its own in `dir`, on ports of its own.
    pub fn start(dir: &Path) -> Result<Self, Error> {
        let failed = |reason: String| Error::Program { name: "the API server".to_owned(), reason };
        let io = |source| Error::File { path: SCRIPTS.into(), source };
        let (addr, etcd, peer) = (free()?, free()?, free()?);
        let script = |name: &str| {
            let mut command = Command::new(name);
            command.env("RIG_DIR", dir).env("RIG_PORT", addr.port().to_string());
            command.env("RIG_ETCD_PORT", etcd.port().to_string()).env("RIG_ETCD_PEER_PORT", peer.port().to_string());
            command.env("RIG_SERVICES", SERVICE_RANGE).stdout(Stdio::null());
            command
        };
        // What the scripts start and leave behind is our child then, and counts as ours. Without it only that count is wrong.
        let _ = set_child_subreaper(Some(getpid()));
        let mut end = script("sh");
        end.args(["-c", r#"cat >/dev/null; exec "$0""#, &format!("{SCRIPTS}/down")]).process_group(0);
        let mut end = end.stdin(Stdio::piped()).spawn().map_err(io)?;
        let held = end.stdin.take();
        let mut rig = Self { dir: dir.to_owned(), addr, end, held, etcd: 0, apiserver: 0 };
        let ready =
            script(&format!("{SCRIPTS}/ready")).stdin(Stdio::null()).stderr(Stdio::piped()).output().map_err(io)?;
        (rig.etcd, rig.apiserver) = (rig.id("etcd"), rig.id("apiserver"));
        if !ready.status.success() {
            let said = String::from_utf8_lossy(&ready.stderr).trim().to_owned();
            // It says in one sentence what is not there, and how to get it.
            return Err(if ready.status.code() == Some(3) { Error::Usage(said) } else { failed(said) });
        }
        Ok(rig)
    }

    fn id(&self, name: &str) -> u32 {
        let text = std::fs::read_to_string(self.dir.join(format!("{name}.pid")));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }

    /// How control calls it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("control.kubeconfig")
    }

    /// How its administrator calls it.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, Error> {
        let file = |name: &str| self.dir.join("pki").join(name);
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(file("ca.crt")).map_err(Error::certs)?;
        roots.add(root).map_err(Error::certs)?;
        let chain = vec![CertificateDer::from_pem_file(file("admin.crt")).map_err(Error::certs)?];
        let key = PrivateKeyDer::from_pem_file(file("admin.key")).map_err(Error::certs)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(Error::certs)?.with_root_certificates(roots).with_client_auth_cert(chain, key);
        config.map(Arc::new).map_err(Error::certs)
    }

    /// What its processes have used.
    pub fn servers(&self, writes: f64) -> Result<Servers, Error> {
        let cpu_us = Usage::of(self.etcd)?.cpu_us + Usage::of(self.apiserver)?.cpu_us;
        Ok(Servers { etcd: Memory::of(self.etcd)?, apiserver: Memory::of(self.apiserver)?, cpu: cpu_us / 1e6, writes })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.held = None;
        while matches!(self.end.try_wait(), Ok(None)) {
            // Ours, so nobody else takes note of their end.
            for id in [self.etcd, self.apiserver] {
                if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                    let _ = waitpid(Some(id), WaitOptions::NOHANG);
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}
