//! A pod: a network namespace with an address, and what runs in it.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use weft_capture::netns::NetNs;
use weft_capture::rules::{self, Capture};

use super::process::Process;
use super::{Error, Inner};

/// How long a connection from a pod may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A pod of the lab. Clones are the same pod; it is gone when the last of them and the processes in it are.
#[derive(Debug, Clone)]
pub struct Pod {
    lab: Arc<Inner>,
    namespace: String,
    name: String,
    ip: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
    net: NetNs,
}

impl Pod {
    pub(super) fn new(
        lab: Arc<Inner>,
        namespace: &str,
        name: &str,
        (ip, ip6): (Ipv4Addr, Option<Ipv6Addr>),
        net: NetNs,
    ) -> Self {
        Self { lab, namespace: namespace.to_owned(), name: name.to_owned(), ip, ip6, net }
    }

    /// Its namespace in the sense of Kubernetes.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `NAMESPACE/NAME`.
    pub fn workload(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Its IPv6 address, if this machine has IPv6.
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        self.ip6
    }

    /// Where a server listens that is to be reached at all of its addresses.
    pub fn any(&self, port: u16) -> SocketAddr {
        let any: IpAddr = if self.ip6.is_some() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        SocketAddr::from((any, port))
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// Where its own files are.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be made.
    pub fn dir(&self) -> Result<PathBuf, Error> {
        let dir = self.lab.dir.join("pods").join(&self.namespace).join(&self.name);
        std::fs::create_dir_all(&dir).map_err(Error::file(&dir))?;
        Ok(dir)
    }

    /// Installs capture rules, instead of those that were there.
    ///
    /// # Errors
    /// [`Error::Capture`] with the step that the kernel refused.
    pub fn capture(&self, capture: &Capture) -> Result<(), Error> {
        let failed = |source| Error::Capture { pod: self.workload(), source };
        self.net.run(|| rules::install(capture))?.map_err(failed)
    }

    /// A command that runs in the pod when it is started: with the lab's names, ending with this process at the latest.
    pub fn command<I, S>(&self, program: impl AsRef<OsStr>, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = exec_command(&self.lab, &self.net, &[]);
        command.arg(program).args(args);
        command
    }

    /// Starts a program in the pod. `part` names its log, which is `PART.log` in the pod's directory.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be started.
    pub fn spawn<I, S>(&self, part: &str, program: impl AsRef<OsStr>, args: I) -> Result<Process, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.start(part, self.command(program, args))
    }

    /// Starts a command that [`Pod::command`] made, changed by the caller.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be started.
    pub fn start(&self, part: &str, command: Command) -> Result<Process, Error> {
        let log = self.dir()?.join(format!("{part}.log"));
        Process::start(&self.lab.spawner, &format!("{} {part}", self.workload()), command, &log)
    }

    /// Starts the lab's own binary in the pod, such as `["app", "http"]`.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be started.
    pub fn weft<I, S>(&self, part: &str, args: I) -> Result<Process, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.spawn(part, self.lab.program.clone(), args)
    }

    /// Runs a program in the pod to its end and gives its output.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be started.
    pub fn output<I, S>(&self, program: impl AsRef<OsStr>, args: I) -> Result<std::process::Output, Error>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let failed = |error: std::io::Error| Error::Process {
            name: self.workload(),
            reason: error.to_string(),
            log: String::new(),
        };
        // Waited for right here, so the thread that starts it outlives it.
        self.command(program, args).stdin(std::process::Stdio::null()).output().map_err(failed)
    }

    /// A connection that the pod opens: captured like any of its application.
    ///
    /// # Errors
    /// As from `connect`, within five seconds.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.net.run(|| TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)).map_err(std::io::Error::other)?
    }

    /// A listener in the pod, for a test that plays the application itself.
    ///
    /// # Errors
    /// As from `bind`.
    pub fn listen(&self, port: u16) -> std::io::Result<TcpListener> {
        self.net.run(|| TcpListener::bind(self.any(port))).map_err(std::io::Error::other)?
    }
}

/// `PROGRAM lab-exec ... --`, to be followed by what shall run.
pub(super) fn exec_command(lab: &Inner, net: &NetNs, flags: &[String]) -> Command {
    let bind = |source: &Path, target: &str| format!("--bind={}:{target}", source.display());
    let mut command = Command::new(&lab.program);
    command
        .arg("lab-exec")
        .arg(format!("--netns={}", net.path_for_children()))
        .arg(format!("--parent={}", std::process::id()))
        .arg(bind(&lab.hosts.file, "/etc/hosts"))
        .arg(bind(&lab.hosts.resolv, "/etc/resolv.conf"))
        .args(flags)
        .arg("--");
    command
}
