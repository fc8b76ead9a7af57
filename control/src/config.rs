//! How control is told what to do: flags, shared by `weft control` and `weft-control`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::ca_secret::SecretName;
use crate::cluster::{self, Access};
use crate::copies;
use crate::distribute::session::Limits;
use crate::federation::Pace;
use crate::issue::{Settings, signers};
use crate::replicas::presence::Presence;
use crate::status;
use crate::trust::Federated;

/// Watches manifests, compiles them into resources and tells each proxy what it uses; issues the mesh's certificates.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A manifest file or a directory of them; may be given several times. Watched for changes.
    #[arg(long, short = 'f', value_name = "PATH", required_unless_present = "kubernetes")]
    pub files: Vec<PathBuf>,
    /// Watch a Kubernetes API server: that of --kubernetes-api, else of --kubeconfig, else the pod's own, else that of $KUBECONFIG or
    /// ~/.kube/config. With --files too: an object that a file has counts as the file says it. Docs: docs/kubernetes.md.
    #[arg(long)]
    pub kubernetes: bool,
    /// Kubeconfig for --kubernetes.
    #[arg(long, value_name = "FILE", requires = "kubernetes", conflicts_with = "kubernetes_api")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: the current one.
    #[arg(long, value_name = "NAME", requires = "kubernetes", conflicts_with = "kubernetes_api")]
    pub context: Option<String>,
    /// Do not write onto routes and policies whether they were taken and which proxies run them. Of several controls one writes, by a Lease.
    #[arg(long, requires = "kubernetes")]
    pub no_status: bool,
    /// Namespace of control itself, where its Leases are; default: that of its pod, else weft-system.
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    pub namespace: Option<String>,
    /// Where proxies call: discovery (delta ADS), certificates and drain, over TLS.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Proxies that are served at a time. A quarter more connections are taken: one that comes back or asks for a certificate may have two for a
    /// moment. Each is an open file: `ulimit -n` must allow for them.
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = proxies)]
    pub max_proxies: usize,
    /// Metrics, health and /debug/proxies, over plain HTTP.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15014")]
    pub metrics: SocketAddr,
    /// Directory of the CA, made at first start: give its root.pem to the proxies, keep the rest secret.
    #[arg(
        long, value_name = "DIR", required_unless_present_any = ["ca_secret", "issue_by", "signer"],
        conflicts_with_all = ["ca_secret", "issue_by"]
    )]
    pub ca_dir: Option<PathBuf>,
    /// Keep the CA in this Kubernetes Secret instead, made at first start; several controls may share it. The ConfigMap of the same name has
    /// its root.pem, for the proxies. The API server is that of --kubernetes-api, else the pod's own, else that of the kubeconfig.
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "issue_by")]
    pub ca_secret: Option<SecretName>,
    /// Issue by an intermediate that somebody else keeps: tls.crt, tls.key and ca.crt (its root) in this directory, as a Secret of cert-manager
    /// has them. Read again when it changes; another issuer is followed as a rotation, with its state where the CA is.
    #[arg(long, value_name = "DIR")]
    pub issuer_from: Option<PathBuf>,
    /// Another replica of control, at its discovery port; may be given several times. A name with several addresses means all of them, looked up
    /// again every 5 s; ourselves among them do no harm, so all replicas may be given the same. Docs: docs/replicas.md.
    #[arg(long, value_name = "HOST:PORT")]
    pub replica: Vec<String>,
    /// Where other replicas reach this one, such as $(POD_IP):15012; with --kubernetes. It then holds a Lease in the namespace of control that says so,
    /// and follows those that have such Leases.
    #[arg(long, value_name = "ADDR", requires = "kubernetes", value_parser = advertised)]
    pub advertise: Option<SocketAddr>,
    /// The zone that this control runs in, as the label topology.kubernetes.io/zone of nodes has it: proxies of that zone are sent to it
    /// [default: that of the pod whose address --advertise has].
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// What this replica is called where several are listed [default: its host's name and its port].
    #[arg(long, value_name = "NAME")]
    pub replica_name: Option<String>,
    /// Trust domain of all identities.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Life of a workload's certificate; a workload may ask for less.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub leaf_ttl: Duration,
    /// When the root is exchanged, publish the new one for so long at least before anything is issued under it: for copies of the roots that
    /// are made elsewhere (federated trust domains, images). Proxies are waited for anyway. With --bundle-endpoint: twice --bundle-refresh or more.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub publish_roots_for: Option<Duration>,
    /// Believe identities of another trust domain too, if they lead to the roots in this PEM file (read again when it changes); may be given
    /// several times.
    #[arg(long, value_name = "DOMAIN=FILE")]
    pub federate: Vec<Federated>,
    /// Identities and certificates that are not believed any more: a YAML or JSON list of `identity: SPIFFE-ID` or `serial: HEX`, each with
    /// `reason` and `until` (RFC 3339) if you like. Read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub revoked: Option<PathBuf>,
    /// Believe workloads of our own trust domain under these roots too (PEM, or a SPIFFE bundle; read again when it changes): for sidecars whose
    /// certificates come from SPIRE (`weft proxy --svid-from`). They prove nothing to our CA, which issues on a token all the same.
    #[arg(long, value_name = "FILE")]
    pub svid_roots: Option<PathBuf>,
    /// The same, with the roots read from SPIFFE bundle endpoints: a list of them, YAML or JSON (see docs/identity.md). Read again when it
    /// changes.
    #[arg(long, value_name = "FILE")]
    pub federation: Option<PathBuf>,
    /// Publish our own roots there as a SPIFFE bundle endpoint, over HTTPS with control's certificate (profile https_spiffe).
    #[arg(long, value_name = "ADDR")]
    pub bundle_endpoint: Option<SocketAddr>,
    /// How often others are told to read that.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, requires = "bundle_endpoint")]
    pub bundle_refresh: Duration,
    /// Directory (made with mode 0700) for the last good version of each object, so that one that is broken when control starts keeps what it
    /// said before. Without it such a policy denies its targets and such a route is as if it were not written.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Put sidecars into pods, by this file (YAML or JSON, read again when it changes): a mutating webhook for the API server on --webhook. Docs:
    /// docs/injection.md.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["issue_by", "signer"])]
    pub injection: Option<PathBuf>,
    /// Where the API server calls that webhook, over TLS.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15017", requires = "injection")]
    pub webhook: SocketAddr,
    /// By which name it calls [default: weft-control.NAMESPACE.svc].
    #[arg(long, value_name = "NAME", requires = "injection")]
    pub webhook_name: Option<String>,
    /// Answer /debug/proxies to any peer of the metrics port, not to loopback only.
    #[arg(long)]
    pub debug_remote: bool,
    /// How workloads prove who they are.
    #[command(flatten)]
    pub issuing: Settings,
    /// Copies of the roots in the cluster.
    #[command(flatten)]
    pub copies: copies::Settings,
    /// Who signs, if it is not control.
    #[command(flatten)]
    pub signing: signers::Settings,
}

/// The webhook that puts sidecars into pods.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// How: the file of `--injection`.
    pub injection: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// By which name the API server calls it.
    pub name: String,
}

/// What control runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Files and directories of manifests.
    pub files: Vec<PathBuf>,
    /// The API server that is watched.
    pub kubernetes: Option<Access>,
    /// Whether status is written onto its objects.
    pub status: Option<status::Settings>,
    /// The discovery port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The metrics port.
    pub metrics: SocketAddr,
    /// Puts sidecars into pods.
    pub webhook: Option<Webhook>,
    /// The CA's directory; may be empty where a CA elsewhere signs.
    pub ca_dir: PathBuf,
    /// The CA's Secret, instead of the directory.
    pub ca_secret: Option<SecretName>,
    /// Where somebody else keeps the issuer; `None`: the CA makes its own.
    pub issuer_from: Option<PathBuf>,
    /// Other replicas, `HOST:PORT`.
    pub replicas: Vec<String>,
    /// What this one is called.
    pub called: String,
    /// The zone that it runs in, if that was said.
    pub zone: Option<String>,
    /// The Lease that says that it is there.
    pub presence: Option<Presence>,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Longest life of a workload's certificate.
    pub leaf_ttl: Duration,
    /// How long a new root is published at least before anything is issued under it.
    pub publish_roots_for: Duration,
    /// Other trust domains that are believed.
    pub federated: Vec<Federated>,
    /// The list of who is not believed any more.
    pub revoked: Option<PathBuf>,
    /// Further roots of our own trust domain.
    pub svid_roots: Option<PathBuf>,
    /// The list of those whose roots are read from bundle endpoints.
    pub federation: Option<PathBuf>,
    /// How often they are read.
    pub pace: Pace,
    /// Where our own roots are published for other meshes; `None`: nowhere.
    pub bundle_endpoint: Option<SocketAddr>,
    /// How often other meshes are told to read them.
    pub bundle_refresh: Duration,
    /// Where the last good version of each object is kept across restarts; `None` keeps nothing.
    pub state_dir: Option<PathBuf>,
    /// Whether /debug/proxies is answered to others than loopback.
    pub debug_remote: bool,
    /// How workloads prove who they are, beside join tokens and certificates.
    pub issuing: Settings,
    /// Copies of the roots in the cluster.
    pub copies: copies::Settings,
    /// Who signs, if it is not control.
    pub signing: signers::Settings,
    /// Bounds of one stream.
    pub limits: Limits,
    /// Open connections to the discovery port.
    pub max_connections: usize,
    /// Streams of proxies that may be opened: so many a second on the average, and at once.
    pub new_streams: (u64, u64),
    /// How long a connection of a proxy may be silent before it is asked whether it lives, and how long it may think about it.
    pub keepalive: (Duration, Duration),
    /// Certificates that one identity may ask for: so many a second on the average, and at once. Replicas share an identity.
    pub certificates: (u64, u64),
}

impl Config {
    /// With defaults for everything else.
    pub fn new(files: Vec<PathBuf>, ca_dir: PathBuf) -> Self {
        Self {
            files,
            kubernetes: None,
            status: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 15012)),
            metrics: SocketAddr::from(([0, 0, 0, 0], 15014)),
            webhook: None,
            ca_dir,
            ca_secret: None,
            issuer_from: None,
            replicas: Vec::new(),
            called: host(),
            zone: None,
            presence: None,
            trust_domain: "cluster.local".to_owned(),
            leaf_ttl: Duration::from_hours(1),
            publish_roots_for: Duration::ZERO,
            federated: Vec::new(),
            revoked: None,
            svid_roots: None,
            federation: None,
            pace: Pace::default(),
            bundle_endpoint: None,
            bundle_refresh: Duration::from_mins(5),
            state_dir: None,
            debug_remote: false,
            issuing: Settings::default(),
            copies: copies::Settings::default(),
            signing: signers::Settings::default(),
            limits: Limits::default(),
            max_connections: 12_500,
            // What a machine can shake hands with in a second, more or less: more would only keep those waiting that are here already.
            new_streams: (1_000, 2_000),
            // So a peer that is gone without a word is noticed within 20 s.
            keepalive: (Duration::from_secs(10), Duration::from_secs(10)),
            // A thousand replicas that were without a CA come back within one back-off of 10 s, and must not wait for another.
            certificates: (50, 1_000),
        }
    }
}

impl Config {
    /// Whether the built-in CA, or the key of join tokens alone, has a place.
    pub(crate) fn has_home(&self) -> bool {
        self.ca_secret.is_some() || !self.ca_dir.as_os_str().is_empty()
    }

    /// For how long a new root is published at least before anything is issued under it: other meshes have to read it too.
    pub(crate) fn copies(&self) -> Duration {
        let read = self.bundle_endpoint.map_or(Duration::ZERO, |_| self.bundle_refresh.saturating_mul(2));
        self.publish_roots_for.max(read)
    }
}

impl From<Args> for Config {
    fn from(args: Args) -> Self {
        let called = args.replica_name.unwrap_or_else(|| format!("{}:{}", host(), args.listen.port()));
        let access = Access { kubeconfig: args.kubeconfig, context: args.context, ..Access::from(&args.issuing) };
        Self {
            kubernetes: args.kubernetes.then_some(access),
            status: (args.kubernetes && !args.no_status)
                .then(|| status::Settings { namespace: cluster::namespace(args.namespace.as_deref()) }),
            listen: args.listen,
            metrics: args.metrics,
            webhook: args.injection.map(|injection| Webhook {
                injection,
                listen: args.webhook,
                name: args
                    .webhook_name
                    .unwrap_or_else(|| format!("weft-control.{}.svc", cluster::namespace(args.namespace.as_deref()))),
            }),
            max_connections: args.max_proxies + args.max_proxies / 4,
            ca_secret: args.ca_secret,
            issuer_from: args.issuer_from,
            replicas: args.replica,
            called: called.clone(),
            zone: args.zone,
            presence: args.advertise.map(|serves| Presence {
                namespace: cluster::namespace(args.namespace.as_deref()),
                name: called,
                serves,
            }),
            trust_domain: args.trust_domain,
            leaf_ttl: args.leaf_ttl,
            publish_roots_for: args.publish_roots_for.unwrap_or_default(),
            federated: args.federate,
            revoked: args.revoked,
            svid_roots: args.svid_roots,
            federation: args.federation,
            bundle_endpoint: args.bundle_endpoint,
            bundle_refresh: args.bundle_refresh,
            state_dir: args.state_dir,
            debug_remote: args.debug_remote,
            issuing: args.issuing,
            copies: args.copies,
            signing: args.signing,
            ..Self::new(args.files, args.ca_dir.unwrap_or_default())
        }
    }
}

/// In a pod, its name.
fn host() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = read.trim().chars().take(100).collect();
    if host.is_empty() { "control".to_owned() } else { host }
}

fn proxies(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|number| (1..=1_000_000).contains(number));
    found.ok_or_else(|| format!("`{text}` is no number of proxies; give one from 1 to 1000000"))
}

/// An address and a port; a pod's manifest can put no brackets around an address of IPv6.
fn advertised(text: &str) -> Result<SocketAddr, String> {
    let apart = || {
        let (ip, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    text.parse()
        .ok()
        .or_else(apart)
        .ok_or_else(|| format!("`{text}` is no address with a port, such as 10.0.0.7:15012"))
}

/// A duration as people write it: `10s`, `15m`, `1h`, `1h30m`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration; write it like 10s, 15m, 1h30m or 500ms");
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let one = match &rest[..unit] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            "d" => Duration::from_hours(24),
            _ => return Err(wrong()),
        };
        total = one.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &rest[unit..];
    }
    if total.is_zero() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use weft_engine::identity::Identity;
    use weft_engine::ratelimit::{Decision, Key, Limiter, Rate};

    use super::*;

    #[test]
    fn replicas_of_one_identity_that_come_back_together_are_all_served() {
        let (requests, burst) = Config::new(Vec::new(), "ca".into()).certificates;
        let rate = Rate { requests, per: Duration::from_secs(1), burst };
        let limiter = Limiter::new("certificates", rate, Key::ClientIdentity, Vec::new());
        let identity = Identity::new("cluster.local", "shop", "web").ok();
        let cell = limiter.cell(identity.as_ref());
        // Over the longest back-off of a sidecar, most of them in its first half.
        let served = |number: u64| {
            let at = Duration::from_millis(number * 5);
            matches!(limiter.rate.check(&cell, at), Decision::Admit { .. })
        };
        assert!((0..1_000).all(served));
        // One that goes on asking is rationed all the same.
        assert!(!(1_000..3_000).all(served));
    }

    #[test]
    fn who_signs_is_said_in_one_way_and_wholly() {
        use clap::Args as _;
        let command = || Args::augment_args(clap::Command::new("control").no_binary_name(true));
        command().debug_assert();
        let read = |flags: &str| {
            let flags: Vec<_> = "--files f".split(' ').chain(flags.split_whitespace()).collect();
            command().try_get_matches_from(flags).is_ok()
        };
        let by = "--issue-by https://ca:443 --issue-by-ca ca.pem --issue-by-token token --roots roots.pem";
        for good in
            ["--ca-dir ca", "--ca-secret a/b", by, "--signer a.b/c --roots r", "--signer a.b/c --roots r --ca-dir ca"]
        {
            assert!(read(good), "{good}");
        }
        let more = ["--ca-dir ca", "--ca-secret a/b", "--signer a.b/c", "--issuer-from dir"];
        for bad in more.map(|more| format!("{by} {more}")) {
            assert!(!read(&bad), "{bad}");
        }
        let lacking = ["", "--signer a.b/c", "--issue-by https://ca:443 --roots r", "--ca-dir ca --issue-by-token t"];
        for bad in
            lacking.into_iter().chain(["--ca-dir ca --ca-secret a/b", "--signer a.b/c --roots r --issuer-from d"])
        {
            assert!(!read(bad), "{bad}");
        }
    }

    #[test]
    fn there_is_a_source_and_one_way_to_each() {
        use clap::{Args as _, FromArgMatches as _};
        let read = |flags: &str| {
            let command = Args::augment_args(clap::Command::new("control").no_binary_name(true));
            let found = command.try_get_matches_from(flags.split_whitespace()).ok()?;
            Some(Config::from(Args::from_arg_matches(&found).unwrap()))
        };
        for bad in
            ["", "--kubeconfig k -f f", "--context c -f f", "--kubernetes --kubeconfig k --kubernetes-api https://a"]
        {
            assert!(read(&format!("--ca-dir ca {bad}")).is_none(), "{bad}");
        }
        let config = read("--ca-dir ca --kubernetes --kubeconfig k --context c").unwrap();
        let access = config.kubernetes.unwrap();
        assert_eq!((access.kubeconfig, access.context.as_deref()), (Some("k".into()), Some("c")));
        assert!(config.files.is_empty());
        let both = read("--ca-dir ca --kubernetes -f f --kubernetes-api https://a").unwrap();
        assert_eq!((both.files.len(), both.kubernetes.unwrap().api.as_deref()), (1, Some("https://a")));
        assert!(read("--ca-dir ca -f f").unwrap().kubernetes.is_none());
        assert_eq!(read("--ca-dir ca -f f").unwrap().max_connections, 12_500);
        assert_eq!(read("--ca-dir ca -f f --max-proxies 80").unwrap().max_connections, 100);
        assert!(read("--ca-dir ca -f f --max-proxies 0").is_none());
    }

    #[test]
    fn a_pods_address_is_taken_with_brackets_or_without() {
        for (text, want) in [
            ("10.0.0.7:15012", "10.0.0.7:15012"),
            ("[fd00::7]:15012", "[fd00::7]:15012"),
            ("fd00::7:15012", "[fd00::7]:15012"),
        ] {
            assert_eq!(advertised(text), Ok(want.parse().unwrap()), "{text}");
        }
        for bad in ["", "10.0.0.7", "name:15012", "fd00::7", ":15012", "10.0.0.7:70000"] {
            assert!(advertised(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "10", "s", "0s", "1x", "-1s", "9999999999s", "1 h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
