//! The shop's processes: control, a sidecar and an application a pod, and the clients.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app::client::Kind;
use crate::lab::{self, Control, Lab, Pod, Process, Sidecar};

use super::shop::{self, Flow, NAMESPACE, PARTS, Part, Runs, SERVICES};

/// How long an application may take until it listens.
const LISTENS: Duration = Duration::from_secs(20);
/// Where programs that are not in `PATH` of an ordinary user may be.
const MORE_PATHS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// The header that a server's sidecar tells the verified peer in.
const PEER_HEADER: &str = "x-forwarded-client-cert";

/// A pod and what runs in it.
pub struct Running {
    /// What it is.
    pub part: Part,
    /// The pod.
    pub pod: Pod,
    app: Option<Process>,
    sidecar: Option<Sidecar>,
}

/// Everything that runs.
pub struct Cluster {
    // Processes go before the lab that they run in: fields are dropped in this order.
    clients: Vec<(&'static str, Process)>,
    pods: BTreeMap<&'static str, Running>,
    control: Option<Control>,
    files: PathBuf,
    lab: Lab,
    without_sidecar: Option<String>,
}

/// Programs of others that take part if they are here.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// nginx.
    pub nginx: Option<PathBuf>,
    /// redis-server.
    pub redis: Option<PathBuf>,
}

impl Programs {
    /// Looks for them.
    pub fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(MORE_PATHS.iter().map(PathBuf::from)).collect();
        let find = |name: &str| dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        Self { nginx: find("nginx"), redis: find("redis-server") }
    }

    /// Whether a part can run.
    pub fn has(&self, runs: Runs) -> bool {
        match runs {
            Runs::Nginx => self.nginx.is_some(),
            Runs::Redis => self.redis.is_some(),
            _ => true,
        }
    }
}

impl Cluster {
    /// Starts control on the shop's manifests, then every pod; returns when all are ready.
    pub fn start(lab: Lab, programs: &Programs, without_sidecar: Option<String>) -> Result<Self, lab::Error> {
        let files = lab.dir().join("manifests");
        std::fs::create_dir_all(&files).map_err(file(&files))?;
        for (name, text) in shop::MANIFESTS {
            let taken = match *name {
                "nginx.yaml" => programs.has(Runs::Nginx),
                "redis.yaml" => programs.has(Runs::Redis),
                _ => true,
            };
            if taken {
                let path = files.join(name);
                std::fs::write(&path, text).map_err(file(&path))?;
            }
        }
        for (service, ip) in SERVICES {
            let ip: Ipv4Addr =
                ip.parse().map_err(|_| lab::Error::Invalid(format!("{service}: `{ip}` is no address")))?;
            lab.name(&host(service), ip.into())?;
        }
        let control = lab.control(&files, &[])?;
        let mut cluster =
            Self { clients: Vec::new(), pods: BTreeMap::new(), control: Some(control), files, lab, without_sidecar };
        for part in PARTS.iter().filter(|part| programs.has(part.runs)) {
            let running = cluster.start_pod(*part, programs)?;
            cluster.pods.insert(part.pod, running);
        }
        for running in cluster.pods.values_mut() {
            running.wait_ready()?;
        }
        Ok(cluster)
    }

    fn start_pod(&self, part: Part, programs: &Programs) -> Result<Running, lab::Error> {
        let ip =
            part.ip.parse().map_err(|_| lab::Error::Invalid(format!("{}: `{}` is no address", part.pod, part.ip)))?;
        let meshed = self.without_sidecar.as_deref() != Some(part.pod);
        let pod = if meshed {
            self.lab.pod_at(NAMESPACE, part.pod, ip)?
        } else {
            self.lab.plain_pod(NAMESPACE, part.pod, Some(ip))?
        };
        let mut running = Running { part, pod, app: None, sidecar: None };
        running.start_app(programs)?;
        if meshed {
            running.sidecar = Some(self.lab.sidecar(&running.pod, part.account, &[])?);
        }
        Ok(running)
    }

    /// Starts a flow's client; it reports to the socket `report`.
    pub fn start_client(&mut self, index: usize, flow: &Flow, report: &Path) -> Result<(), lab::Error> {
        let Some(running) = self.pods.get(flow.from) else {
            return Err(lab::Error::Invalid(format!("flow {}: there is no pod {}", flow.name, flow.from)));
        };
        let kind = match flow.kind {
            Kind::Http => "http",
            Kind::Grpc => "grpc",
            Kind::Tcp => "tcp",
            Kind::Redis => "redis",
        };
        let mut args: Vec<String> = ["app", "client", kind]
            .iter()
            .map(ToString::to_string)
            .chain([format!("{}:{}", host(flow.to.0), flow.to.1)])
            .collect();
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        flag("method", flow.method.to_owned());
        flag("path", flow.path.to_owned());
        flag("body", flow.body.to_string());
        flag("rate", flow.rate.to_string());
        flag("connections", flow.connections.to_string());
        flag("seen", PEER_HEADER.to_owned());
        flag("label", index.to_string());
        flag("report", report.display().to_string());
        let client = running.pod.weft(&format!("client-{}", flow.name), args)?;
        self.clients.push((flow.name, client));
        Ok(())
    }

    /// Ends the clients: each reports what it has counted.
    pub fn stop_clients(&mut self) {
        for (_, client) in &mut self.clients {
            client.terminate();
        }
        for (_, client) in &mut self.clients {
            let _ = client.wait(Duration::from_secs(5));
        }
        self.clients.clear();
    }

    /// Whether the shop has this pod: parts that are not on this machine are left out.
    pub fn has(&self, pod: &str) -> bool {
        self.pods.contains_key(pod)
    }

    /// What the sidecars of a flow's servers counted of its client's service account: peers that were verified, and all.
    pub fn peers(&self, flow: &Flow) -> (u64, u64) {
        let destination = format!("destination=\"{}\"", flow.server());
        let client = format!("source=\"{}\"", flow.client());
        let metric = if flow.is_http() { "weft_requests_total" } else { "weft_tcp_connections_opened_total" };
        let mut counted = (0, 0);
        for server in flow.servers {
            let text = self.metrics(server);
            let count = |labels: &[&str]| {
                let labels = [&["direction=\"inbound\"", &destination], labels].concat();
                lab::sum(&text, metric, &labels) as u64
            };
            let verified = count(&[&client, "tls=\"mtls\""]);
            // Who came without a proof has no name: whoever it was, it counts against the share.
            counted = (counted.0 + verified, counted.1 + verified + count(&["tls=\"plain\""]));
        }
        counted
    }

    /// Where the manifests are.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// SIGKILL to a pod's application and sidecar, at once.
    pub fn kill_pod(&mut self, pod: &str) -> bool {
        let Some(running) = self.pods.get_mut(pod) else { return false };
        let mut parts: Vec<&mut Process> =
            running.app.iter_mut().chain(running.sidecar.as_mut().map(|sidecar| &mut sidecar.process)).collect();
        for part in &mut parts {
            part.signal(rustix::process::Signal::KILL);
        }
        for part in &mut parts {
            part.kill();
        }
        let killed = !parts.is_empty();
        (running.app, running.sidecar) = (None, None);
        killed
    }

    /// Starts what was killed in a pod, without waiting.
    pub fn revive_pod(&mut self, pod: &str, programs: &Programs) -> Result<(), lab::Error> {
        let Some(running) = self.pods.get_mut(pod) else { return Ok(()) };
        running.start_app(programs)?;
        running.sidecar = Some(self.lab.sidecar(&running.pod, running.part.account, &[])?);
        Ok(())
    }

    /// SIGKILL to control.
    pub fn kill_control(&mut self) -> bool {
        match self.control.take() {
            Some(mut control) => {
                control.process.kill();
                true
            }
            None => false,
        }
    }

    /// Starts control again, without waiting.
    pub fn revive_control(&mut self) -> Result<(), lab::Error> {
        self.control = Some(self.lab.control_unready(&self.files, &[])?);
        Ok(())
    }

    /// Parts that have ended though nobody told them to: one sentence each. Each is told once.
    pub fn dead(&mut self) -> Vec<String> {
        let mut dead = Vec::new();
        let mut look = |what: String, process: &mut Process| {
            if let Some(ended) = process.poll_ended() {
                dead.push(format!("{what} ended by itself ({ended})"));
            }
        };
        for (name, client) in &mut self.clients {
            look(format!("the client of {name}"), client);
        }
        for (name, running) in &mut self.pods {
            if let Some(app) = &mut running.app {
                look(format!("the application of {name}"), app);
            }
            if let Some(sidecar) = &mut running.sidecar {
                look(format!("the sidecar of {name}"), &mut sidecar.process);
            }
        }
        if let Some(control) = &mut self.control {
            look("control".to_owned(), &mut control.process);
        }
        dead
    }

    /// Pods through whose sidecar nothing came in, of these.
    pub fn bypassed(&self, servers: impl IntoIterator<Item = &'static str>) -> Vec<&'static str> {
        let taken = |pod: &str| {
            let text = self.metrics(pod);
            let count = |metric: &str| lab::sum(&text, metric, &["direction=\"inbound\"", "tls=\"mtls\""]);
            count("weft_requests_total") + count("weft_tcp_connections_opened_total") > 0.0
        };
        servers.into_iter().filter(|pod| !taken(pod)).collect()
    }

    /// The metrics of a pod's sidecar; empty without one.
    pub fn metrics(&self, pod: &str) -> String {
        let sidecar = self.pods.get(pod).and_then(|running| running.sidecar.as_ref());
        sidecar.and_then(|sidecar| sidecar.metrics().ok()).unwrap_or_default()
    }

    /// Keeps logs and manifests after the end, and says where.
    pub fn keep(&self) -> PathBuf {
        self.lab.keep()
    }
}

impl Running {
    fn start_app(&mut self, programs: &Programs) -> Result<(), lab::Error> {
        let part = &self.part;
        let weft = |kind: &str| {
            let (name, version) = (part.account.to_owned(), part.version.to_owned());
            let listen = format!("--listen=0.0.0.0:{}", part.port);
            self.pod.weft("app", ["app", kind, &listen, "--name", &name, "--version-label", &version])
        };
        let app = match part.runs {
            Runs::Clients => None,
            Runs::Http => Some(weft("http")?),
            Runs::Grpc => Some(weft("grpc")?),
            Runs::Tcp => Some(weft("tcp")?),
            Runs::Nginx => start_nginx(&self.pod, part.port, programs)?,
            Runs::Redis => start_redis(&self.pod, part.port, programs)?,
        };
        self.app = app;
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<(), lab::Error> {
        if let Some(app) = &mut self.app {
            let port = self.part.port;
            let what = format!("{} to listen on port {port}", app.name());
            let mut dead = None;
            lab::until(&what, LISTENS, || {
                if let Err(error) = app.check_alive() {
                    dead = Some(error);
                    return Ok(());
                }
                let try_it = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop);
                match self.pod.net().run(try_it) {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            })?;
            if let Some(error) = dead {
                return Err(error);
            }
        }
        if let Some(sidecar) = &mut self.sidecar {
            sidecar.wait_ready()?;
        }
        Ok(())
    }
}

/// The name that applications call a service by.
fn host(service: &str) -> String {
    format!("{service}.{NAMESPACE}")
}

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> lab::Error + '_ {
    move |source| lab::Error::File { path: path.to_owned(), source }
}

/// One process, no other user, all its files in the pod's directory: so it runs for an ordinary user too.
fn start_nginx(pod: &Pod, port: u16, programs: &Programs) -> Result<Option<Process>, lab::Error> {
    let Some(nginx) = &programs.nginx else { return Ok(None) };
    let dir = pod.dir()?;
    let place = dir.display();
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(temporary, "  {kind}_temp_path {place}/{kind};");
    }
    // Root of its user namespace is whom nginx runs as; without saying so it gives its folders to a user that is not mapped, and fails.
    let config = format!(
        "user root;\ndaemon off;\nmaster_process off;\npid {place}/nginx.pid;\nerror_log stderr;\nevents {{ worker_connections 256; }}\n\
         http {{\n{temporary}  access_log off;\n  server {{\n    listen {port};\n    root {place}/html;\n    \
         add_header x-seen-{PEER_HEADER} $http_x_forwarded_client_cert;\n  }}\n}}\n"
    );
    let html = dir.join("html");
    std::fs::create_dir_all(&html).map_err(file(&html))?;
    let index = html.join("index.html");
    std::fs::write(&index, "<!doctype html><title>shop</title><p>nginx, unchanged</p>\n").map_err(file(&index))?;
    let path = dir.join("nginx.conf");
    std::fs::write(&path, config).map_err(file(&path))?;
    let args = ["-e".as_ref(), "stderr".as_ref(), "-p".as_ref(), dir.as_os_str(), "-c".as_ref(), path.as_os_str()];
    pod.spawn("app", nginx, args).map(Some)
}

fn start_redis(pod: &Pod, port: u16, programs: &Programs) -> Result<Option<Process>, lab::Error> {
    let Some(redis) = &programs.redis else { return Ok(None) };
    let (port, dir) = (port.to_string(), pod.dir()?.display().to_string());
    let args = [
        "--port",
        &port,
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        &dir,
    ];
    pod.spawn("app", redis, args).map(Some)
}
