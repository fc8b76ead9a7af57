//! A small cluster on one machine, without root: pods are network namespaces, everything that runs in them is a process.
//!
//! ```text
//!   node namespace                      pod namespace
//!   bridge weft0 10.244.0.1/16 -------- eth0 10.244.x.y/16, default route to the bridge,
//!     and fd00:10:244::1/64             and fd00:10:244::/64, if this machine has IPv6
//!   control, DNS                        capture rules, sidecar (marked), application
//! ```
//!
//! [`enter`] comes first thing in `main`, before any thread; then [`Lab::new`], [`Lab::pod`] and [`Pod::spawn`]. Invariants:
//!
//! - Namespaces are held by file descriptors of this process, processes by their ids; both go when the [`Lab`] is dropped. Should
//!   this process die first, its children get SIGKILL from the kernel and the namespaces vanish with them.
//! - Nothing outside is changed: mounts are private, `/etc/hosts` is bound per process, no file outside the lab's directory is written.
//! - Processes are started by one thread that lives as long as the lab, because the parent-death signal follows the thread.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use parking_lot::Mutex;
use weft_capture::netns::{self, NetNs};
use weft_capture::rules::{self, Capture, Exclude};

pub mod exec;
mod hosts;
mod links;
mod parts;
mod pod;
mod process;
mod ready;

pub use crate::plain_http::Answer;
pub use parts::{Control, Sidecar, sum};
pub use pod::Pod;
pub use process::{Ended, Process};
pub use ready::{http_get, until};

/// The mark on the sidecars' own sockets.
pub const MARK: u32 = 0x539;
/// The node's address on the bridge: control and the names' server are reached there.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The range of all pods, as a prefix length of [`NODE`].
pub const POD_PREFIX: u8 = 16;
/// The node's IPv6 address on the bridge.
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);
/// The range of all pods' IPv6 addresses, as a prefix length of [`NODE6`].
pub const POD_PREFIX6: u8 = 64;
/// The name of the bridge; an interface to sniff all pods' traffic on.
pub const BRIDGE: &str = "weft0";

/// Why a lab could not be built, or something in it did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This machine or user cannot have namespaces.
    #[error("cannot make namespaces here: {0}")]
    Namespaces(#[from] netns::Error),
    /// The kernel refused an interface, address or route.
    #[error("cannot {what}: {reason}")]
    Links {
        /// What was tried.
        what: String,
        /// Why not.
        reason: String,
    },
    /// The capture rules could not be installed.
    #[error("capture in pod {pod}: {source}")]
    Capture {
        /// The pod.
        pod: String,
        /// Why not.
        source: rules::Error,
    },
    /// A process could not be started or ended before it should.
    #[error("{name}: {reason}{log}")]
    Process {
        /// Pod and part.
        name: String,
        /// What happened.
        reason: String,
        /// The end of its log, on lines of their own.
        log: String,
    },
    /// A condition was not met in time.
    #[error("waited {waited:?} for {what}; {last}")]
    Waited {
        /// What was waited for.
        what: String,
        /// How long.
        waited: std::time::Duration,
        /// How it stood at the end.
        last: String,
    },
    /// A file of the lab could not be written or read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Something asked of the lab that it cannot do.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether no lab can be had here at all, so that the exit code should be 3.
    pub fn is_impossible(&self) -> bool {
        matches!(self, Self::Namespaces(_) | Self::Links { .. } | Self::Capture { .. })
    }

    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

/// Makes this process able to build labs. Call it first thing in `main`: an ordinary user enters a user namespace, which the kernel
/// refuses to a process with threads. Also raises the limit on open files to what is allowed.
///
/// # Errors
/// [`Error::Namespaces`], with the setting that forbids it.
pub fn enter() -> Result<(), Error> {
    netns::enter_user_namespace()?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    // Fewer files are no reason to stop here.
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum },
    );
    Ok(())
}

/// The cluster: one node, its pods, and what runs in them.
#[derive(Debug)]
pub struct Lab {
    /// What the pods share; they outlive a borrow of the lab, not the lab.
    pub(crate) inner: Arc<Inner>,
}

/// What the lab and its pods share.
#[derive(Debug)]
pub(crate) struct Inner {
    /// The binary that plays the parts: it is called with `lab-exec`, `proxy`, `control`, `app`.
    pub program: PathBuf,
    pub dir: PathBuf,
    /// Removed with the lab, unless the caller gave a directory.
    temporary: Mutex<Option<tempfile::TempDir>>,
    pub node: NetNs,
    /// Whether this machine has IPv6, so that pods have it too.
    pub ipv6: bool,
    pub hosts: hosts::Hosts,
    pub spawner: process::Spawner,
    links: AtomicU16,
    /// Last auto-assigned pod address, counted from 10.244.1.0.
    addresses: AtomicU16,
}

impl Lab {
    /// A node without pods. `program` is a `weft` binary (or one whose main calls [`crate::main`]); it plays every part. Logs,
    /// certificates and states are kept in `dir`, or in a temporary directory that goes with the lab.
    ///
    /// # Errors
    /// [`Error::Namespaces`] or [`Error::Links`] where this machine cannot have it; see [`Error::is_impossible`].
    pub fn new(program: &Path, dir: Option<&Path>) -> Result<Self, Error> {
        let (dir, temporary) = match dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(Error::file(dir))?;
                (dir.to_owned(), None)
            }
            None => {
                let made = tempfile::Builder::new().prefix("weft-lab-").tempdir();
                let made = made.map_err(Error::file(&std::env::temp_dir()))?;
                (made.path().to_owned(), Some(made))
            }
        };
        // Processes find it from whatever directory.
        let dir = std::fs::canonicalize(&dir).map_err(Error::file(&dir))?;
        let node = NetNs::create()?;
        let ipv6 = links::bridge(&node)?;
        let hosts = hosts::Hosts::create(&dir)?;
        let inner = Inner {
            program: program.to_owned(),
            dir,
            temporary: Mutex::new(temporary),
            node,
            ipv6,
            hosts,
            spawner: process::Spawner::start()?,
            links: AtomicU16::new(0),
            addresses: AtomicU16::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where logs, certificates and states are.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Keeps the temporary directory after the lab's end, for a look at its logs; says where.
    pub fn keep(&self) -> PathBuf {
        if let Some(dir) = self.inner.temporary.lock().take() {
            let _ = dir.keep();
        }
        self.inner.dir.clone()
    }

    /// The node's network namespace, in which control runs.
    pub fn node(&self) -> &NetNs {
        &self.inner.node
    }

    /// Applications find `name` at `address` from now on, in the `/etc/hosts` that is bound over theirs.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn name(&self, name: &str, address: IpAddr) -> Result<(), Error> {
        self.inner.hosts.add(name, address)
    }

    /// A pod with an address of its own choice, whose traffic is captured.
    ///
    /// # Errors
    /// [`Error::Links`] or [`Error::Capture`].
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod, Error> {
        let pod = self.plain_pod(namespace, name, None)?;
        pod.capture(&Capture::new(Exclude::Mark(MARK)))?;
        Ok(pod)
    }

    /// A pod with this address, whose traffic is captured.
    ///
    /// # Errors
    /// [`Error::Links`] or [`Error::Capture`].
    pub fn pod_at(&self, namespace: &str, name: &str, address: Ipv4Addr) -> Result<Pod, Error> {
        let pod = self.plain_pod(namespace, name, Some(address))?;
        pod.capture(&Capture::new(Exclude::Mark(MARK)))?;
        Ok(pod)
    }

    /// A pod without capture: outside the mesh, unless [`Pod::capture`] is called.
    ///
    /// # Errors
    /// [`Error::Links`], also for an address outside 10.244.0.0/16.
    pub fn plain_pod(&self, namespace: &str, name: &str, address: Option<Ipv4Addr>) -> Result<Pod, Error> {
        let address = address.unwrap_or_else(|| {
            let [high, low] = self.inner.addresses.fetch_add(1, Ordering::Relaxed).saturating_add(0x0101).to_be_bytes();
            Ipv4Addr::new(10, 244, high, low)
        });
        if address.octets()[..2] != NODE.octets()[..2] || address == NODE {
            return Err(Error::Invalid(format!(
                "pod {name}: address {address} is not a free one in {NODE}/{POD_PREFIX}"
            )));
        }
        let net = NetNs::create()?;
        let number = self.inner.links.fetch_add(1, Ordering::Relaxed);
        let addresses = (address, self.inner.ipv6.then(|| beside(address)));
        links::pod(&self.inner.node, &net, number, addresses)?;
        Ok(Pod::new(self.inner.clone(), namespace, name, addresses, net))
    }

    /// Whether this machine has IPv6, so that pods have addresses of both families.
    pub fn has_ipv6(&self) -> bool {
        self.inner.ipv6
    }
}

/// The IPv6 address of the pod at `address`: the same last two bytes.
fn beside(address: Ipv4Addr) -> Ipv6Addr {
    let [.., high, low] = address.octets();
    let mut segments = NODE6.segments();
    segments[7] = u16::from_be_bytes([high, low]);
    Ipv6Addr::from(segments)
}
