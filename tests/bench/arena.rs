//! Where one peer is measured: a lab of its own with a client's pod and a server's, the same applications in each, and the peer's
//! proxies between them. All labs have the same addresses, so that `deploy/examples/bench` is taken as it stands.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use weft::lab::{Lab, Pod, Process, until};

use super::account::{Memory, Usage};
use super::peers::Peer;
use super::{Error, Programs};

/// The server's port of HTTP/1.1.
pub const HTTP: u16 = 8080;
/// The server's port of HTTP/2 by prior knowledge.
pub const H2C: u16 = 8081;
/// The server's port of bytes that are no HTTP: 16 of them, which come back.
pub const ECHO: u16 = 7000;
/// The server's port of iperf3.
pub const IPERF: u16 = 5201;

/// The Kubernetes namespace of both pods, as in `deploy/examples/bench`.
pub const NAMESPACE: &str = "bench";
/// The pods' addresses, as there.
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 10);
/// The server's.
pub const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 20);
/// The server's Service, as there.
pub const SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);

/// How long a program may take until it listens; two cores may be busy.
const STARTS: Duration = Duration::from_secs(20);
/// Bytes of a response's body.
const BODY: usize = 1024;

/// How the client's connections reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight to the server's pod.
    Direct,
    /// To the Service's address; the pod's rules redirect it.
    Captured,
    /// To a port of the client's proxy on loopback.
    Listener,
}

/// A pair of proxies.
#[derive(Debug)]
pub struct Proxies {
    /// Beside the client.
    pub client: Process,
    /// Beside the server.
    pub server: Process,
}

/// What both proxies of a pair have used.
#[derive(Debug, Clone, Copy)]
pub struct Both<T> {
    /// The client's.
    pub client: T,
    /// The server's.
    pub server: T,
}

/// One peer, running. Fields are dropped in this order: processes before the lab.
#[derive(Debug)]
pub struct Arena {
    proxies: Option<Proxies>,
    _control: Option<Process>,
    _apps: Vec<Process>,
    /// The pod from which the load comes.
    pub client: Pod,
    way: Way,
    _lab: Lab,
}

impl Arena {
    /// Starts everything and waits until a connection to each port comes about.
    pub fn start(peer: &Peer, programs: &Programs) -> Result<Self, Error> {
        let lab = Lab::new(&programs.bench, None)?;
        pass_by_netfilter(&lab)?;
        let way = peer.kind.way();
        let pod = |name: &str, ip| match way {
            Way::Captured => lab.pod_at(NAMESPACE, name, ip),
            Way::Direct | Way::Listener => lab.plain_pod(NAMESPACE, name, Some(ip)),
        };
        let (client, server) = (pod("client-0", CLIENT_IP)?, pod("server-0", SERVER_IP)?);
        let apps = applications(&server, programs)?;
        let started = peer.kind.start(&lab, &client, &server, programs)?;
        let mut arena =
            Self { proxies: started.proxies, _control: started.control, _apps: apps, client, way, _lab: lab };
        arena.wait_ready()?;
        Ok(arena)
    }

    /// Where the client connects to for a port of the server.
    pub fn target(&self, port: u16) -> SocketAddr {
        match self.way {
            Way::Direct => (SERVER_IP, port).into(),
            Way::Captured => (SERVICE_IP, port).into(),
            Way::Listener => (Ipv4Addr::LOCALHOST, port + super::envoy::OUTBOUND_OFFSET).into(),
        }
    }

    /// What the proxies have used so far; zero without any.
    pub fn usage(&self) -> Result<Both<Usage>, Error> {
        self.both(Usage::of)
    }

    /// What the proxies hold; zero without any.
    pub fn memory(&self) -> Result<Both<Memory>, Error> {
        self.both(Memory::of)
    }

    /// Whether there are proxies at all.
    pub fn has_proxies(&self) -> bool {
        self.proxies.is_some()
    }

    fn both<T: Default>(&self, look: impl Fn(u32) -> Result<T, Error>) -> Result<Both<T>, Error> {
        match &self.proxies {
            Some(pair) => Ok(Both { client: look(pair.client.id())?, server: look(pair.server.id())? }),
            None => Ok(Both { client: T::default(), server: T::default() }),
        }
    }

    fn wait_ready(&mut self) -> Result<(), Error> {
        for port in [HTTP, H2C, ECHO, IPERF] {
            let (client, to) = (self.client.clone(), self.target(port));
            let mut dead = None;
            until("the way to the server", STARTS, || {
                for process in self.proxies.iter_mut().flat_map(|pair| [&mut pair.client, &mut pair.server]) {
                    if let Err(error) = process.check_alive() {
                        dead = Some(error);
                        return Ok(());
                    }
                }
                client.connect(to).map(drop).map_err(|error| format!("{to}: {error}"))
            })?;
            if let Some(error) = dead {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// The wire between the pods is a bridge, which may ask the node's netfilter about each packet. That is charged to whoever sends, so it would
/// be part of every proxy's figure; the redirection inside the pods stays.
fn pass_by_netfilter(lab: &Lab) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    // Absent where the kernel has no such thing.
    let set = lab.node().run(|| if path.exists() { std::fs::write(path, "0") } else { Ok(()) });
    let set = set.map_err(weft::lab::Error::from)?;
    set.map_err(|source| Error::File { path: path.to_owned(), source })
}

/// nginx in one process, iperf3, and the echo.
fn applications(pod: &Pod, programs: &Programs) -> Result<Vec<Process>, Error> {
    let dir = pod.dir()?;
    let config = dir.join("nginx.conf");
    write(&config, &nginx(&dir))?;
    let args = [Path::new("-e"), Path::new("stderr"), Path::new("-p"), &dir, Path::new("-c"), &config];
    let mut apps = vec![
        pod.spawn("nginx", &programs.nginx, args)?,
        pod.spawn("echo", &programs.bench, ["load", "serve-echo", &ECHO.to_string()])?,
    ];
    if let Some(iperf) = &programs.iperf {
        apps.push(pod.spawn("iperf3", iperf, ["-s", "-p", &IPERF.to_string()])?);
    }
    let ports: &[u16] = if programs.iperf.is_some() { &[HTTP, H2C, ECHO, IPERF] } else { &[HTTP, H2C, ECHO] };
    for port in ports {
        // By the loopback address, which nobody redirects.
        let address = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), *port));
        let listens = until("the server's applications", STARTS, || {
            pod.connect(address).map_err(|error| format!("port {port}: {error}"))
        });
        if let Err(error) = listens {
            let logs: String = apps.iter().map(Process::log_tail).collect();
            return Err(Error::Program {
                name: "the server's applications".to_owned(),
                reason: format!("{error}{logs}"),
            });
        }
    }
    Ok(apps)
}

/// One process, nothing logged, no bound that the load could meet.
fn nginx(dir: &Path) -> String {
    let (place, body) = (dir.display(), "x".repeat(BODY));
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("  {name}_temp_path {place};\n"))
        .concat();
    format!(
        "user root;
daemon off;
master_process off;
pid {place}/nginx.pid;
error_log stderr;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  http2_max_concurrent_streams 1024;
  default_type text/plain;
{temporary}  server {{
    listen {HTTP} backlog=4096;
    listen {H2C} http2 backlog=4096;
    return 200 \"{body}\";
  }}
}}
"
    )
}

/// Writes a file of the lab.
pub fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(|source| Error::File { path: PathBuf::from(path), source })
}
