//! The mesh's own processes in a lab: control on the node, a sidecar in each pod.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use weft_engine::identity::Identity;

use super::process::Process;
use super::ready::{http_get, until};
use super::{Error, Lab, MARK, NODE, Pod, pod};
use crate::plain_http::Answer;

/// Where control serves proxies, and where it answers about itself.
const CONTROL: (u16, u16) = (15012, 15014);
/// The sidecar's metrics and health.
const SIDECAR: (u16, u16) = (15020, 15021);
/// How long a part may take until it is ready; two cores may be busy compiling.
const READY: Duration = Duration::from_secs(30);
/// Life of the join tokens that sidecars get.
const TOKEN_TTL: Duration = Duration::from_mins(10);
/// The trust domain of every lab.
const TRUST_DOMAIN: &str = "cluster.local";

/// Control, running on the node.
#[derive(Debug)]
pub struct Control {
    /// The process.
    pub process: Process,
    ca_dir: PathBuf,
}

impl Lab {
    /// Starts control on a directory of manifests and waits until it answers. Its certificates stay in the lab's directory, so a
    /// second call after the first one's end is a restart. `extra` are further flags, such as `--leaf-ttl 10s`.
    ///
    /// # Errors
    /// [`Error::Process`] or [`Error::Waited`] with the end of its log.
    pub fn control(&self, files: &Path, extra: &[&str]) -> Result<Control, Error> {
        let mut control = self.control_unready(files, extra)?;
        control.wait_ready(self)?;
        Ok(control)
    }

    /// [`Lab::control`] without waiting.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be started.
    pub fn control_unready(&self, files: &Path, extra: &[&str]) -> Result<Control, Error> {
        let ca_dir = self.dir().join("ca");
        let mut command = self.node_command(&self.inner.program);
        command.arg("control").arg("--files").arg(files).arg("--ca-dir").arg(&ca_dir);
        command.arg(format!("--listen={NODE}:{}", CONTROL.0)).arg(format!("--metrics={NODE}:{}", CONTROL.1));
        command.arg("--state-dir").arg(self.dir().join("control-state")).args(extra);
        Ok(Control { process: self.start_on_node("control", command)?, ca_dir })
    }

    /// A command that runs on the node when [`Lab::start_on_node`] starts it.
    pub fn node_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = pod::exec_command(&self.inner, &self.inner.node, &[]);
        command.arg(program);
        command
    }

    /// Starts a command that [`Lab::node_command`] made; its log is `PART.log` in the lab's directory.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be started.
    pub fn start_on_node(&self, part: &str, command: Command) -> Result<Process, Error> {
        Process::start(&self.inner.spawner, part, command, &self.dir().join(format!("{part}.log")))
    }

    /// Starts the sidecar of a pod, with the identity of this service account, without waiting for it. Its sockets carry [`MARK`],
    /// as [`Lab::pod`]'s rules expect. `extra` are further flags of `weft proxy`.
    ///
    /// # Errors
    /// [`Error::Process`] if it cannot be started, [`Error::Invalid`] for an account that is no name.
    pub fn sidecar(&self, pod: &Pod, account: &str, extra: &[&str]) -> Result<Sidecar, Error> {
        let mut command = pod.command(&self.inner.program, ["proxy"]);
        command.arg(format!("--exclude-mark={MARK:#x}"));
        self.start_sidecar(pod, account, command, extra)
    }

    /// [`Lab::sidecar`] as in a pod of a cluster: a user of its own without any right, told apart by its uid. Root only, and the pod's
    /// rules must exclude this uid (see [`Pod::capture`]).
    ///
    /// # Errors
    /// As [`Lab::sidecar`].
    pub fn sidecar_as(&self, pod: &Pod, account: &str, uid: u32, extra: &[&str]) -> Result<Sidecar, Error> {
        let dir = pod.dir()?;
        std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).map_err(Error::file(&dir))?;
        // It must get there; what is secret below has modes of its own.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(self.dir(), open).map_err(Error::file(self.dir()))?;
        let mut command = pod::exec_command(&self.inner, pod.net(), &[format!("--uid={uid}")]);
        // The binary that lab-exec is, whose path this user may not be able to walk.
        command.args(["/proc/self/exe", "proxy"]);
        self.start_sidecar(pod, account, command, extra)
    }

    fn start_sidecar(&self, pod: &Pod, account: &str, mut command: Command, extra: &[&str]) -> Result<Sidecar, Error> {
        let dir = pod.dir()?;
        let ca_dir = self.dir().join("ca");
        let identity = Identity::new(TRUST_DOMAIN, pod.namespace(), account)
            .map_err(|error| Error::Invalid(format!("service account {account}: {error}")))?;
        let (token_file, root_file) = (dir.join("token"), dir.join("root.pem"));
        // A sidecar that starts from its state needs no token; without a CA there is none to be had.
        if ca_dir.exists() {
            // The lab stands for the orchestrator, which would put a new token there whenever one is needed.
            let uses = weft_certs::token::Uses::Many;
            let token = weft_certs::token::sign_for(&ca_dir, &identity, uses, TOKEN_TTL, SystemTime::now())
                .map_err(|error| Error::Invalid(format!("token for {identity}: {error}")))?;
            std::fs::write(&token_file, token).map_err(Error::file(&token_file))?;
            // A pod keeps the copy that it was given, however old it is.
            if !root_file.exists() {
                std::fs::copy(ca_dir.join("root.pem"), &root_file).map_err(Error::file(&root_file))?;
            }
        }
        command
            .arg(format!("--workload={}", pod.workload()))
            .arg("--control-ca")
            .arg(&root_file)
            .arg("--token-file")
            .arg(&token_file)
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg(format!("--dns={NODE}:53"))
            .args(extra);
        // Unless there are several.
        if !extra.iter().any(|flag| flag.starts_with("--control=")) {
            command.arg(format!("--control={NODE}:{}", CONTROL.0));
        }
        // Unless it is to know its trust domain by another name.
        if !extra.iter().any(|flag| flag.starts_with("--identity=")) {
            command.arg(format!("--identity={identity}"));
        }
        Ok(Sidecar { process: pod.start("sidecar", command)?, pod: pod.clone() })
    }
}

impl Control {
    /// Waits until it serves proxies.
    ///
    /// # Errors
    /// [`Error::Process`] if it ended, [`Error::Waited`].
    pub fn wait_ready(&mut self, lab: &Lab) -> Result<(), Error> {
        wait_ready(&mut self.process, "control to be ready", || control_get(lab, "/healthz/ready"))
    }

    /// Asks control's metrics port.
    ///
    /// # Errors
    /// As from the socket.
    pub fn get(&self, lab: &Lab, path: &str) -> std::io::Result<Answer> {
        control_get(lab, path)
    }

    /// The directory of its certificates; `root.pem` in it is the mesh's root.
    pub fn ca_dir(&self) -> &Path {
        &self.ca_dir
    }
}

fn control_get(lab: &Lab, path: &str) -> std::io::Result<Answer> {
    http_get(lab.node(), SocketAddr::from((NODE, CONTROL.1)), path)
}

fn wait_ready(
    process: &mut Process,
    what: &str,
    mut ask: impl FnMut() -> std::io::Result<Answer>,
) -> Result<(), Error> {
    let mut dead = None;
    let waited = until(what, READY, || {
        if let Err(error) = process.check_alive() {
            dead = Some(error);
            return Ok(());
        }
        match ask() {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(format!("{} {}", answer.status, answer.body.trim_end())),
            Err(error) => Err(error.to_string()),
        }
    });
    match (dead, waited) {
        (Some(error), _) => Err(error),
        (None, Err(Error::Waited { what, waited, last })) => {
            Err(Error::Waited { what, waited, last: format!("{last}{}", process.log_tail()) })
        }
        (None, waited) => waited,
    }
}

/// A sidecar, running in its pod.
#[derive(Debug)]
pub struct Sidecar {
    /// The process.
    pub process: Process,
    pod: Pod,
}

impl Sidecar {
    /// Waits until it has its identity and takes traffic.
    ///
    /// # Errors
    /// [`Error::Process`] if it ended, [`Error::Waited`] with the reason that it gives and the end of its log.
    pub fn wait_ready(&mut self) -> Result<(), Error> {
        let pod = self.pod.clone();
        wait_ready(&mut self.process, &format!("the sidecar of {} to be ready", pod.workload()), || health(&pod))
    }

    /// Whether it says that it is ready, now.
    pub fn is_ready(&self) -> bool {
        health(&self.pod).is_ok_and(|answer| answer.status == 200)
    }

    /// Its metrics, in Prometheus's text format.
    ///
    /// # Errors
    /// As from the socket.
    pub fn metrics(&self) -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, SIDECAR.0));
        http_get(self.pod.net(), address, "/metrics").map(|answer| answer.body)
    }

    /// The sum of all series of a metric whose labels contain each of these texts, such as `direction="inbound"`.
    ///
    /// # Errors
    /// As from the socket.
    pub fn metric(&self, name: &str, labels: &[&str]) -> std::io::Result<f64> {
        Ok(sum(&self.metrics()?, name, labels))
    }

    /// The pod it belongs to.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }
}

fn health(pod: &Pod) -> std::io::Result<Answer> {
    http_get(pod.net(), SocketAddr::from((Ipv4Addr::LOCALHOST, SIDECAR.1)), "/healthz/ready")
}

/// The sum of all series of a metric, in Prometheus's text format, whose labels contain each of these texts.
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let values = text.lines().filter(of_metric).filter(|line| labels.iter().all(|label| line.contains(label)));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_label() {
        let text = "# HELP a x\na{b=\"1\",c=\"2\"} 3\na{b=\"1\",c=\"3\"} 4\na_b{b=\"1\"} 100\na 1\n";
        assert!((sum(text, "a", &["b=\"1\""]) - 7.0).abs() < f64::EPSILON);
        assert!((sum(text, "a", &[]) - 8.0).abs() < f64::EPSILON);
    }
}
