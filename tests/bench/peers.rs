//! Who is measured, and how each is started.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use weft::lab::{Lab, MARK, NODE, Pod, Process, until};
use weft_capture::netns::NetNs;
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::token;
use weft_engine::identity::Identity;

use super::arena::{NAMESPACE, Proxies, SERVER_IP, Way, write};
use super::envoy::{self, Mode, Side};
use super::{Error, Programs};

const TRUST_DOMAIN: &str = "cluster.local";
/// How long a part may take until it is ready.
const READY: Duration = Duration::from_secs(30);
/// How long one question about that may take, and how long its answer may be.
const STEP: Duration = Duration::from_secs(5);
const MAX_ANSWER: u64 = 64 << 10;
/// Life of what a run needs only at its start; certificates outlive any run.
const TOKEN_TTL: Duration = Duration::from_mins(10);
const CERTIFICATE_TTL: Duration = Duration::from_hours(12);

/// The manifests, as an operator would take them.
const MANIFESTS: [(&str, &str); 4] = [
    ("namespace.yaml", include_str!("../../deploy/examples/bench/namespace.yaml")),
    ("client.yaml", include_str!("../../deploy/examples/bench/client.yaml")),
    ("server.yaml", include_str!("../../deploy/examples/bench/server.yaml")),
    ("policy.yaml", include_str!("../../deploy/examples/bench/policy.yaml")),
];

/// Somebody who is measured.
#[derive(Debug, Clone)]
pub struct Peer {
    /// In the table.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// What stands between client and server.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Nothing.
    Direct,
    /// Two sidecars of Weft, and control; by this binary of weft-proxy.
    Weft(PathBuf),
    /// Two Envoys with so many worker threads.
    Envoy(Mode, u32),
    /// Two processes of a program that the caller has given; see docs/performance.md.
    Other(PathBuf),
}

/// What was started for a peer.
#[derive(Debug, Default)]
pub struct Started {
    /// The pair.
    pub proxies: Option<Proxies>,
    /// Weft's control.
    pub control: Option<Process>,
}

impl Kind {
    /// How the client's connections come to it.
    pub fn way(&self) -> Way {
        match self {
            Self::Direct => Way::Direct,
            Self::Weft(_) => Way::Captured,
            Self::Envoy(..) | Self::Other(_) => Way::Listener,
        }
    }

    /// Starts it, and waits until it says that it is ready.
    pub fn start(&self, lab: &Lab, client: &Pod, server: &Pod, programs: &Programs) -> Result<Started, Error> {
        match self {
            Self::Direct => Ok(Started::default()),
            Self::Weft(proxy) => weft(lab, client, server, programs, proxy),
            Self::Envoy(mode, workers) => envoy_pair(lab, client, server, programs, *mode, *workers),
            Self::Other(program) => other(lab, client, server, program),
        }
    }
}

fn weft(lab: &Lab, client: &Pod, server: &Pod, programs: &Programs, proxy: &Path) -> Result<Started, Error> {
    let (files, ca) = (lab.dir().join("files"), lab.dir().join("ca"));
    make_dir(&files)?;
    for (name, text) in MANIFESTS {
        write(&files.join(name), text)?;
    }
    let mut command = lab.node_command(&programs.control);
    command.arg("--files").arg(&files).arg("--ca-dir").arg(&ca);
    command.arg(format!("--listen={NODE}:15012")).arg(format!("--metrics={NODE}:15014"));
    let mut control = lab.start_on_node("control", command)?;
    wait_ready(lab.node(), (NODE, 15014).into(), "/healthz/ready", &mut control)?;
    let client = weft_sidecar(client, "client", &ca, proxy)?;
    let server = weft_sidecar(server, "server", &ca, proxy)?;
    Ok(Started { proxies: Some(Proxies { client, server }), control: Some(control) })
}

/// As released: no flag but those that say who it is and where control is. The mark tells its sockets from the application's.
fn weft_sidecar(pod: &Pod, account: &str, ca: &Path, proxy: &Path) -> Result<Process, Error> {
    let (dir, identity) = (pod.dir()?, identity(account)?);
    let token = token::sign(ca, &identity, TOKEN_TTL, SystemTime::now()).map_err(Error::certs)?;
    write(&dir.join("token"), &token)?;
    let mut command = pod.command(proxy, Vec::<String>::new());
    command.arg(format!("--workload={}", pod.workload()));
    command.arg(format!("--identity={identity}"));
    command.arg(format!("--control={NODE}:15012"));
    command.arg("--control-ca").arg(ca.join("root.pem"));
    command.arg("--token-file").arg(dir.join("token"));
    command.arg("--state-dir").arg(dir.join("state"));
    command.arg(format!("--exclude-mark={MARK:#x}"));
    let mut process = pod.start("sidecar", command)?;
    wait_ready(pod.net(), (Ipv4Addr::LOCALHOST, 15021).into(), "/healthz/ready", &mut process)?;
    Ok(process)
}

fn envoy_pair(
    lab: &Lab,
    client: &Pod,
    server: &Pod,
    programs: &Programs,
    mode: Mode,
    workers: u32,
) -> Result<Started, Error> {
    let program = programs.envoy.as_ref().ok_or_else(|| Error::missing("envoy"))?;
    let start = |pod: &Pod, side, account: &str, peer: &str| -> Result<Process, Error> {
        let (dir, certs) = (pod.dir()?, certificates(lab, pod, account)?);
        let config = dir.join("envoy.json");
        write(&config, &envoy::config(side, mode, SERVER_IP, &certs, &identity(peer)?.to_string()).to_string())?;
        let mut command = pod.command(program, ["--disable-hot-restart", "--log-level", "warn", "-c"]);
        command.arg(&config).arg("--concurrency").arg(workers.to_string());
        let mut process = pod.start("envoy", command)?;
        wait_ready(pod.net(), envoy::ADMIN, "/ready", &mut process)?;
        Ok(process)
    };
    let server = start(server, Side::Inbound, "server", "client")?;
    let client = start(client, Side::Outbound, "client", "server")?;
    Ok(Started { proxies: Some(Proxies { client, server }), control: None })
}

/// The contract of docs/performance.md: the program becomes the proxy, and its ports are Envoy's.
fn other(lab: &Lab, client: &Pod, server: &Pod, program: &Path) -> Result<Started, Error> {
    let start = |pod: &Pod, side: &str, account: &str, peer: &str| -> Result<Process, Error> {
        let mut command = pod.command(program, [side]);
        command.env("WEFT_BENCH_SERVER", SERVER_IP.to_string());
        command.env("WEFT_BENCH_CERTS", certificates(lab, pod, account)?);
        command.env("WEFT_BENCH_PEER_ID", identity(peer)?.to_string());
        command.env("WEFT_BENCH_DIR", pod.dir()?);
        Ok(pod.start("proxy", command)?)
    };
    let server = start(server, "inbound", "server", "client")?;
    let client = start(client, "outbound", "client", "server")?;
    Ok(Started { proxies: Some(Proxies { client, server }), control: None })
}

/// key.pem, chain.pem and root.pem for a pod, by Weft's own CA, so that all peers check the same chain and the same kind of key.
fn certificates(lab: &Lab, pod: &Pod, account: &str) -> Result<PathBuf, Error> {
    let dir = pod.dir()?.join("certs");
    let identity = identity(account)?;
    let ca = Ca::open(&lab.dir().join("ca"), TRUST_DOMAIN).map_err(Error::certs)?;
    let key = KeyPair::generate().map_err(Error::certs)?;
    let request = key.csr(&identity).map_err(Error::certs)?;
    let chain = ca.issue(&request, &identity, CERTIFICATE_TTL, SystemTime::now()).map_err(Error::certs)?;
    let svid = Svid::new(key, &chain).map_err(Error::certs)?;
    svid.save(&dir).map_err(Error::certs)?;
    // One file holds key and chain; Envoy wants them apart. The root is not sent.
    let saved = std::fs::read_dir(&dir).ok().and_then(|files| files.flatten().next()).map(|file| file.path());
    let saved = saved.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let key_pem = saved.find("-----BEGIN").and_then(|from| {
        let to = saved.find("-----BEGIN CERTIFICATE-----")?;
        saved.get(from..to)
    });
    write(&dir.join("key.pem"), key_pem.ok_or_else(|| Error::certs("the saved certificate has no key"))?)?;
    write(&dir.join("chain.pem"), &chain.split_last().map(|(_, sent)| sent.concat()).unwrap_or_default())?;
    write(&dir.join("root.pem"), ca.root_pem())?;
    Ok(dir)
}

fn identity(account: &str) -> Result<Identity, Error> {
    Identity::new(TRUST_DOMAIN, NAMESPACE, account).map_err(Error::certs)
}

fn make_dir(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Until it answers 200; at once if it ends.
fn wait_ready(net: &NetNs, address: SocketAddr, path: &str, process: &mut Process) -> Result<(), Error> {
    let name = process.name().to_owned();
    let mut dead = None;
    let ready = until(&name, READY, || {
        dead = process.check_alive().err();
        match get(net, address, path) {
            _ if dead.is_some() => Ok(()),
            Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => Ok(()),
            Ok(answer) => Err(answer),
            Err(error) => Err(error.to_string()),
        }
    });
    match dead {
        Some(error) => Err(error.into()),
        None => ready.map_err(|error| Error::Program { reason: format!("{error}{}", process.log_tail()), name }),
    }
}

/// An answer's text. Not the lab's own question, which is HTTP/1.0: Envoy refuses that.
fn get(net: &NetNs, address: SocketAddr, path: &str) -> std::io::Result<String> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, STEP)?;
        stream.set_read_timeout(Some(STEP))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut bytes = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    net.run(ask).map_err(std::io::Error::other)?
}
