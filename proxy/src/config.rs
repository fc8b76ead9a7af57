//! How the proxy is told what to do: flags, or the same names in one JSON file; a flag wins over the file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use weft_api::probe::{HOOK_KEY_VARIABLE, Handlers};
use weft_engine::identity::Identity;
use weft_engine::shed;

use crate::admin::HookKey;
use crate::identity::authority::Token;
use crate::limits::cgroup;

/// The sidecar of one workload: takes its connections, inbound and outbound, and gives them mutual TLS, routes, balancing, policy and
/// limits. The pod's rules (`weft-capture`) must redirect connections to it.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Args {
    /// A JSON file with the same names as these flags; a flag wins.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// The pod that it stands beside: NAMESPACE/POD.
    #[arg(long, value_name = "NAMESPACE/POD")]
    pub workload: Option<String>,
    /// Its identity: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.
    #[arg(long, value_name = "SPIFFE-ID")]
    pub identity: Option<String>,
    /// Control: HOST:PORT. Replicas that are equals stand in one flag with commas between them, or behind one name with several addresses; may
    /// be given several times: the first that can be reached serves, such as one nearby before those farther away.
    #[arg(long, value_name = "HOST:PORT[,HOST:PORT]")]
    #[serde(deserialize_with = "one_or_several")]
    pub control: Option<Vec<String>>,
    /// PEM file of the roots that control's and all peers' certificates lead to (root.pem of control's --ca-dir).
    #[arg(long, value_name = "FILE")]
    pub control_ca: Option<PathBuf>,
    /// File with the join token (see `weft token`); read at each use.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Keeps the last good tables, the key and the certificate here, to start from while control is away. Use a memory-backed directory.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Serves SPIFFE's Workload API on a unix socket at this path, so that the application can have a certificate of its own. Its directory must
    /// exist and should be a volume of this pod alone: whoever can open the socket can act as the workload.
    #[arg(long, value_name = "PATH")]
    pub workload_api: Option<PathBuf>,
    /// Takes the sidecar's own certificate, and the roots of its peers, from SPIFFE's Workload API (such as SPIRE's agent) at this socket, instead
    /// of control's CA. --control-ca then verifies control alone.
    #[arg(long, value_name = "unix:PATH")]
    pub svid_from: Option<String>,
    /// Where the pod's outbound connections are redirected to [default: [::]:15001, which is IPv4 too].
    #[arg(long, value_name = "ADDR")]
    pub outbound: Option<SocketAddr>,
    /// Where the pod's inbound connections are redirected to [default: [::]:15006].
    #[arg(long, value_name = "ADDR")]
    pub inbound: Option<SocketAddr>,
    /// Metrics [default: [::]:15020].
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Health and drain [default: [::]:15021].
    #[arg(long, value_name = "ADDR")]
    pub health: Option<SocketAddr>,
    /// Administration: tables, configuration, drain. Loopback only [default: 127.0.0.1:15000].
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Mark on the proxy's own sockets, by which the rules let them pass (such as 0x539). In a pod the uid does that: leave it out.
    #[arg(long, value_name = "MARK")]
    pub exclude_mark: Option<String>,
    /// Name servers; none means those of /etc/resolv.conf.
    #[arg(long, value_name = "ADDR")]
    pub dns: Vec<SocketAddr>,
    /// What the kubelet would ask the application and asks us instead, as the injector writes it: JSON, handlers of Kubernetes by
    /// CONTAINER/KIND, such as {"web/livenessProbe": {"httpGet": {"port": 8080, "path": "/ok"}}}.
    #[arg(long, value_name = "JSON")]
    pub app_probes: Option<String>,
    /// Answers the application's DNS at this port of both loopback addresses (convention: 127.0.0.1:15053), where the pod's rules capture DNS:
    /// caches, asks the name servers, and walks the search list of /etc/resolv.conf at once. None means that DNS is not ours.
    #[arg(long, value_name = "ADDR")]
    pub dns_listen: Option<SocketAddr>,
    /// The cluster's load balancer rewrites ClusterIPs to pods' addresses where applications connect (Cilium's socket-level one): a request or TLS
    /// connection to a pod, for the name of a Service that this pod is an endpoint of, means the Service [default: that very pod].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub socket_lb: Option<bool>,
    /// Threads that carry traffic; none means one for each CPU that the cgroup's quota allows.
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// How long requests in flight may take to end after SIGTERM [default: 30 s], in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub drain_deadline: Option<u64>,
    /// Who calls a hook at --health (/drain-wait, and those of --app-probes) must show this in the header x-weft-hook-key, or call over loopback; none
    /// means that anybody may. The injector gives it to the kubelet.
    #[arg(long, value_name = "KEY", env = HOOK_KEY_VARIABLE, hide_env_values = true)]
    pub hook_key: Option<HookKey>,
    /// Open connections, both directions together [default: 10000].
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Open inbound connections of one source address; a /64 of IPv6 is one source [default: half of --max-connections].
    #[arg(long, value_name = "N")]
    pub max_connections_per_source: Option<usize>,
    /// Memory at which new connections and requests are refused, so that those in flight go on: bytes, or a number with Ki, Mi or Gi; 0 means
    /// none [default: 85 % of the cgroup's limit, none without one].
    #[arg(long, value_name = "BYTES")]
    pub memory_budget: Option<String>,
    /// The share of good requests in the access log, 0 to 1; refusals and failures are always in it [default: 0].
    #[arg(long, value_name = "SHARE")]
    pub access_log_sample: Option<f64>,
    /// Where the access log goes, as lines of JSON; none means standard output.
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
}

/// What the proxy runs with.
#[derive(Debug)]
pub struct Config {
    /// The pod.
    pub workload: Workload,
    /// Who it is.
    pub identity: Identity,
    /// Control, HOST:PORT.
    pub control: Vec<String>,
    /// Roots of trust.
    pub control_ca: PathBuf,
    /// Proves who we are at first.
    pub token: Token,
    /// Last good state.
    pub state_dir: Option<PathBuf>,
    /// Socket of the application's own certificates.
    pub workload_api: Option<PathBuf>,
    /// Socket that ours come from; `None`: from control's CA.
    pub svid_from: Option<PathBuf>,
    /// Listener of outbound connections.
    pub outbound: SocketAddr,
    /// Listener of inbound connections.
    pub inbound: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
    /// Health and drain.
    pub health: SocketAddr,
    /// Administration, a loopback address.
    pub admin: SocketAddr,
    /// SO_MARK of own sockets.
    pub exclude: Option<u32>,
    /// Name servers; empty means the system's.
    pub dns: Vec<SocketAddr>,
    /// What is asked of the application in the kubelet's place.
    pub app_probes: Handlers,
    /// The application's DNS, a loopback address; `None`: not ours.
    pub dns_listen: Option<SocketAddr>,
    /// A pod's address with a Service's name means the Service.
    pub socket_lb: bool,
    /// Threads of the data path.
    pub workers: usize,
    /// After SIGTERM.
    pub drain_deadline: Duration,
    /// Who may call hooks over the network; `None`: anybody.
    pub hook_key: Option<HookKey>,
    /// Share of good requests in the access log.
    pub access_log_sample: f64,
    /// Its file; `None` is standard output.
    pub access_log: Option<PathBuf>,
    /// Bounds.
    pub limits: Limits,
}

/// A pod's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Pod.
    pub name: Arc<str>,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Bounds of the data path.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections, both directions together.
    pub max_connections: usize,
    /// Open inbound connections of one source.
    pub max_connections_per_source: usize,
    /// Bytes at which load is shed; `None`: never.
    pub memory_budget: Option<u64>,
    /// Bytes of a request's head.
    pub head_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: 10_000, max_connections_per_source: 5000, memory_budget: None, head_bytes: 64 * 1024 }
    }
}

/// A setting is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither flag nor file gives it.
    #[error("--{0} is missing: give the flag, or the same name in the --config file")]
    Missing(&'static str),
    /// It cannot be used.
    #[error("--{name} `{value}`: {why}")]
    Bad {
        /// The flag.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// The configuration file cannot be read or is no JSON of the right names.
    #[error("--config {path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

fn bad(name: &'static str, value: impl fmt::Display, why: impl fmt::Display) -> ConfigError {
    ConfigError::Bad { name, value: value.to_string(), why: why.to_string() }
}

macro_rules! prefer {
    ($flags:ident over $file:ident: $($name:ident),*) => {
        Args { config: None, dns: if $flags.dns.is_empty() { $file.dns } else { $flags.dns }, $($name: $flags.$name.or($file.$name)),* }
    };
}

impl Args {
    /// Flags over file over defaults, all of it checked.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let flags = self;
        let file = match &flags.config {
            Some(path) => from_file(path)?,
            None => Args::default(),
        };
        let all = prefer!(flags over file: workload, identity, control, control_ca, token_file, state_dir, workload_api, svid_from, outbound, inbound, metrics,
            health, admin, exclude_mark, app_probes, dns_listen, socket_lb, workers, drain_deadline, hook_key, max_connections, max_connections_per_source, memory_budget, access_log_sample, access_log);
        let identity = all.identity.ok_or(ConfigError::Missing("identity"))?;
        let sample = all.access_log_sample.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&sample) {
            return Err(bad("access-log-sample", sample, "give a share from 0 to 1"));
        }
        let svid_from = all.svid_from.as_deref().map(unix_socket).transpose()?;
        if let (Some(path), Some(_)) = (&all.workload_api, &svid_from) {
            let why = "it cannot be served with --svid-from: let the application ask that Workload API itself";
            return Err(bad("workload-api", path.display(), why));
        }
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Ok(Config {
            workload: workload(&all.workload.ok_or(ConfigError::Missing("workload"))?)?,
            identity: identity.parse().map_err(|error| bad("identity", &identity, error))?,
            control: all.control.ok_or(ConfigError::Missing("control"))?,
            control_ca: all.control_ca.ok_or(ConfigError::Missing("control-ca"))?,
            token: all.token_file.map_or(Token::None, Token::File),
            state_dir: all.state_dir,
            workload_api: all.workload_api,
            svid_from,
            outbound: all.outbound.unwrap_or(any(15001)),
            inbound: all.inbound.unwrap_or(any(15006)),
            metrics: all.metrics.unwrap_or(any(15020)),
            health: all.health.unwrap_or(any(15021)),
            admin: loopback("admin", all.admin.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 15000))))?,
            exclude: all.exclude_mark.as_deref().map(mark).transpose()?,
            dns: all.dns,
            app_probes: all.app_probes.as_deref().map_or(Ok(Handlers::new()), app_probes)?,
            dns_listen: all.dns_listen.map(|addr| loopback("dns-listen", addr)).transpose()?,
            socket_lb: all.socket_lb.unwrap_or(false),
            workers: all.workers.unwrap_or_else(cpus).max(1),
            drain_deadline: Duration::from_secs(all.drain_deadline.unwrap_or(30)),
            hook_key: all.hook_key,
            access_log_sample: sample,
            access_log: all.access_log,
            limits: limits(all.max_connections, all.max_connections_per_source, all.memory_budget.as_deref())?,
        })
    }
}

/// CPUs that this process may use: `available_parallelism` reads affinity and the cgroup's quota.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn limits(
    max_connections: Option<usize>,
    per_source: Option<usize>,
    memory_budget: Option<&str>,
) -> Result<Limits, ConfigError> {
    let default = Limits::default();
    let max_connections = max_connections.unwrap_or(default.max_connections);
    let memory_budget = match memory_budget {
        Some(text) => Some(bytes(text)?).filter(|budget| *budget > 0),
        None => cgroup::memory_limit().map(shed::default_budget),
    };
    let max_connections_per_source = per_source.unwrap_or(max_connections.div_ceil(2));
    Ok(Limits { max_connections, max_connections_per_source, memory_budget, ..default })
}

// As in a manifest of Kubernetes, as far as anybody writes sizes of memory.
fn bytes(text: &str) -> Result<u64, ConfigError> {
    let units = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text, 1));
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| bad("memory-budget", text, "give bytes, or a number with Ki, Mi or Gi, such as 96Mi"))
}

fn from_file(path: &Path) -> Result<Args, ConfigError> {
    let wrong = |why: String| ConfigError::File { path: path.to_owned(), why };
    let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

/// A text, or a list of them.
fn one_or_several<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Several(Vec<String>),
    }
    Ok(Some(match Either::deserialize(from)? {
        Either::One(one) => vec![one],
        Either::Several(several) => several,
    }))
}

fn workload(text: &str) -> Result<Workload, ConfigError> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Workload { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(bad("workload", text, "expected NAMESPACE/POD")),
    }
}

// As SPIFFE writes them (SPIFFE_Workload_Endpoint, section 4).
fn unix_socket(text: &str) -> Result<PathBuf, ConfigError> {
    let path = text.strip_prefix("unix:").filter(|path| path.starts_with('/'));
    // Two slashes begin an authority; with three it is empty.
    match path.filter(|path| !path.starts_with("//") || path.starts_with("///")) {
        Some(path) => Ok(Path::new("/").join(path.trim_start_matches('/'))),
        None => Err(bad("svid-from", text, "give the absolute path of a socket, as unix:/run/spire/agent.sock")),
    }
}

fn app_probes(text: &str) -> Result<Handlers, ConfigError> {
    serde_json::from_str(text).map_err(|error| bad("app-probes", text, error))
}

fn mark(text: &str) -> Result<u32, ConfigError> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(0) => Err(bad("exclude-mark", text, "0 is what every socket has: take another, such as 0x539")),
        Ok(mark) => Ok(mark),
        Err(error) => Err(bad("exclude-mark", text, error)),
    }
}

fn loopback(name: &'static str, addr: SocketAddr) -> Result<SocketAddr, ConfigError> {
    let local = match addr.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    if local {
        Ok(addr)
    } else {
        Err(bad(name, addr, "only a loopback address may be served: nobody but this pod is meant"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn least() -> Args {
        Args {
            workload: Some("shop/web-1".into()),
            identity: Some("spiffe://cluster.local/ns/shop/sa/web".into()),
            control: Some(vec!["127.0.0.1:15012".into()]),
            control_ca: Some("root.pem".into()),
            ..Args::default()
        }
    }

    #[test]
    fn defaults_are_the_fields_conventions() {
        let config = least().resolve().unwrap();
        assert_eq!(config.outbound.port(), 15001);
        assert_eq!(config.inbound.port(), 15006);
        assert_eq!(config.admin, "127.0.0.1:15000".parse().unwrap());
        assert_eq!(config.exclude, None);
        assert_eq!(config.workload.to_string(), "shop/web-1");
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.json");
        std::fs::write(&path, r#"{"exclude-mark": "1337", "drain-deadline": 5, "workload": "a/b"}"#).unwrap();
        let config = Args { config: Some(path.clone()), ..least() }.resolve().unwrap();
        assert_eq!(config.exclude, Some(1337));
        assert_eq!(config.drain_deadline, Duration::from_secs(5));
        assert_eq!(config.workload.to_string(), "shop/web-1");
        std::fs::write(&path, r#"{"exclude-marks": "1337"}"#).unwrap();
        let error = Args { config: Some(path), ..least() }.resolve().unwrap_err().to_string();
        assert!(error.contains("exclude-marks"), "{error}");
    }

    #[test]
    fn limits_follow_from_each_other_and_can_be_said() {
        let limits = |args: Args| args.resolve().unwrap().limits;
        let default = limits(least());
        assert_eq!((default.max_connections, default.max_connections_per_source), (10_000, 5000));
        let few = limits(Args { max_connections: Some(101), ..least() });
        assert_eq!(few.max_connections_per_source, 51);
        assert_eq!(limits(Args { max_connections_per_source: Some(7), ..least() }).max_connections_per_source, 7);
        for (text, budget) in
            [("0", None), ("1000", Some(1000)), ("2Ki", Some(2048)), ("96Mi", Some(96 << 20)), ("1Gi", Some(1 << 30))]
        {
            assert_eq!(limits(Args { memory_budget: Some(text.into()), ..least() }).memory_budget, budget, "{text}");
        }
    }

    #[test]
    fn sockets_are_written_as_spiffe_writes_them() {
        for text in ["unix:/run/agent.sock", "unix:///run/agent.sock"] {
            let config = Args { svid_from: Some(text.into()), ..least() }.resolve().unwrap();
            assert_eq!(config.svid_from.as_deref(), Some(Path::new("/run/agent.sock")));
        }
        for text in ["/run/agent.sock", "unix:agent.sock", "unix://host/agent.sock", "tcp:127.0.0.1:1", "unix:"] {
            let error = Args { svid_from: Some(text.into()), ..least() }.resolve().unwrap_err().to_string();
            assert!(error.contains("unix:/run/spire/agent.sock"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, words) in [
            (Args { workload: None, ..least() }, "--workload is missing"),
            (Args { workload: Some("web".into()), ..least() }, "NAMESPACE/POD"),
            (Args { identity: Some("web".into()), ..least() }, "spiffe://"),
            (Args { exclude_mark: Some("0".into()), ..least() }, "0x539"),
            (Args { admin: Some("0.0.0.0:1".parse().unwrap()), ..least() }, "loopback"),
            (Args { dns_listen: Some("[::]:15053".parse().unwrap()), ..least() }, "--dns-listen `[::]:15053`"),
            (Args { access_log_sample: Some(2.0), ..least() }, "0 to 1"),
            (
                Args { workload_api: Some("/a".into()), svid_from: Some("unix:/b".into()), ..least() },
                "let the application ask",
            ),
            (Args { memory_budget: Some("64MB".into()), ..least() }, "such as 96Mi"),
            (Args { memory_budget: Some("99999999999999Gi".into()), ..least() }, "such as 96Mi"),
        ] {
            let error = args.resolve().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
