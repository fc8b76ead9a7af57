//! Network and user namespaces, held by file descriptors.
//!
//! [`enter_user_namespace`] must be called in `main` before any other thread exists: the kernel refuses it to a process with
//! threads. Everything else works from any thread and changes that thread alone, for good or (with [`NetNs::run`]) in a thread of
//! its own. Nothing here needs a program or a writable `/run/netns`.

use rustix::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::path::Path;
use std::sync::Arc;

/// Why namespaces cannot be had here.
#[derive(Debug, thiserror::Error)]
#[error("namespaces: {operation} failed: {source}{hint}")]
pub struct Error {
    operation: &'static str,
    source: std::io::Error,
    hint: &'static str,
}

fn failed<E: Into<std::io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error { operation, source: source.into(), hint: "" }
}

/// The calling thread leaves the namespaces that it shares with others.
fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // rustix marks this as unsound for CLONE_FILES only, which is never asked for here; its replacement is `unsafe`, which this
    // workspace denies.
    #[expect(deprecated, reason = "safe without CLONE_FILES")]
    rustix::thread::unshare(flags)
}

/// Makes this process root of its own user and mount namespace, unless it has the rights already. Call it first thing in `main`.
///
/// As root with `CAP_SYS_ADMIN` only the mount namespace is new. An ordinary user becomes uid 0 of a user namespace in which that
/// one uid is mapped. Mounts made afterwards are seen by nobody else.
///
/// # Errors
/// With the reason and the setting to look at, where the kernel or its administrator forbids user namespaces.
pub fn enter_user_namespace() -> Result<(), Error> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let privileged = uid.is_root() && unshare(UnshareFlags::NEWNS).is_ok();
    if !privileged {
        unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(|errno| Error {
            operation: "a user namespace",
            source: errno.into(),
            hint: match errno {
                Errno::PERM | Errno::ACCESS => {
                    "; user namespaces are forbidden here: see kernel.unprivileged_userns_clone, \
                     kernel.apparmor_restrict_unprivileged_userns, and whether a sandbox forbids unshare; root works without"
                }
                Errno::NOSPC => "; none are left: see user.max_user_namespaces",
                Errno::INVAL => "; it must be entered before any thread is started",
                _ => "",
            },
        })?;
        let write = |path: &str, text: String| std::fs::write(path, text);
        write("/proc/self/setgroups", "deny".to_owned()).map_err(failed("writing /proc/self/setgroups"))?;
        write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw())).map_err(failed("writing /proc/self/uid_map"))?;
        write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw())).map_err(failed("writing /proc/self/gid_map"))?;
    }
    private_mounts()
}

/// Gives the calling thread a mount namespace of its own.
///
/// # Errors
/// If the caller is not root of its user namespace.
pub fn new_mount_namespace() -> Result<(), Error> {
    unshare(UnshareFlags::NEWNS).map_err(failed("a mount namespace"))?;
    private_mounts()
}

fn private_mounts() -> Result<(), Error> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("making mounts private"))
}

/// A network namespace, kept alive by this handle.
#[derive(Debug, Clone)]
pub struct NetNs(Arc<OwnedFd>);

impl NetNs {
    /// A new, empty one; the calling thread stays where it is.
    ///
    /// # Errors
    /// If the caller is not root of its user namespace.
    pub fn create() -> Result<Self, Error> {
        in_thread(|| {
            unshare(UnshareFlags::NEWNET).map_err(failed("a network namespace"))?;
            Self::current()
        })
    }

    /// The one that the calling thread is in.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The one behind a path such as `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// If there is none, or it may not be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self(Arc::new(fd.map_err(failed("opening a network namespace"))?)))
    }

    /// The calling thread goes there and stays.
    ///
    /// # Errors
    /// If the handle is not of a network namespace, or the caller has no rights over it.
    pub fn enter(&self) -> Result<(), Error> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(failed("entering a network namespace"))
    }

    /// Runs something inside, in a thread of its own, and gives its result. Sockets made there belong there for ever.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or the closure panicked.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T, Error> {
        in_thread(|| {
            self.enter()?;
            Ok(job())
        })
    }

    /// A path by which a child process finds it while this process lives.
    pub fn path_for_children(&self) -> String {
        format!("/proc/{}/fd/{}", rustix::process::getpid().as_raw_nonzero(), self.0.as_raw_fd())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn in_thread<T: Send>(job: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, job);
        let thread = thread.map_err(failed("starting a thread"))?;
        let lost = || Err(failed("a job in a network namespace")(std::io::Error::other("it panicked")));
        thread.join().unwrap_or_else(|_| lost())
    })
}
