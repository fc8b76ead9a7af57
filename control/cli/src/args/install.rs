//! `weft install`, `weft upgrade`, `weft uninstall`, `weft check`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueHint};
use weft_control::cluster::Access;
use weft_control::config::duration;

/// Which cluster.
#[derive(ClapArgs, Clone, Debug)]
pub struct ClusterPlace {
    /// Kubeconfig; default: in a pod what the kubelet gives it, else $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: the current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl ClusterPlace {
    /// How it is called.
    pub fn access(&self) -> Access {
        Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone(), ..Access::default() }
    }
}

pub const INSTALL_HELP: &str = "\
The objects are those of the Helm chart (deploy/chart), which is in this binary; no helm is needed. They are applied by server-side apply as `weft`.
What holds afterwards, until you say otherwise: permissive, allow, egress open.

Examples:
  weft check --pre                                        may I, and can this cluster?
  weft install --set image.registry=registry.example/weft
  weft install --set image.registry=registry.example/weft --ha --set capture.mode=cni
  weft install --values mine.yaml --dry-run | kubectl diff -f -

Exit codes: 0 installed and ready, 1 applied and not ready within --timeout, 3 cannot be done here, 4 a value is wrong.";

/// `weft install`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Install {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterPlace,
    /// Set a value, such as control.replicas=3; several between commas; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Take values from a file; may be given several times, a later one counts for more, --set for most
    #[arg(long, short = 'f', value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub values: Vec<PathBuf>,
    /// Begin with the values for production: 3 replicas, a network policy, the CA and the kinds kept
    #[arg(long)]
    pub ha: bool,
    /// Print the objects as YAML, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not wait until it is ready
    #[arg(long)]
    pub no_wait: bool,
    /// Give up waiting after so long; what was applied stays
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Print {ok, version, objects, waited, seconds, why}
    #[arg(long)]
    pub json: bool,
}

pub const UPGRADE_HELP: &str = "\
Brings an installation of `weft install` to the version of this binary. The values that were given before count on, with those that are given now over them. What the
new version does not have is removed; the CA and the webhook's caBundle stay as they are. Control is replaced one by one: no request is lost.";

/// `weft upgrade`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Upgrade {
    /// What an installation has too.
    #[command(flatten)]
    pub install: Install,
    /// Forget the values that were given before
    #[arg(long)]
    pub reset_values: bool,
}

pub const UNINSTALL_HELP: &str = "\
Removes everything: the webhook first, then control, then all that the chart has and that control made (copies of the roots in namespaces, Leases), the kinds with their
policies, the CA, and the namespace if `weft install` made it. It lists that and asks; where nobody can be asked it needs --yes. What is gone already is no
error, so it may be given again. Workloads that still have sidecars are named: start them anew.";

/// `weft uninstall`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Uninstall {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterPlace,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Keep the CA (Secret and ConfigMap weft-ca) and the namespace: the next installation takes it up again
    #[arg(long)]
    pub keep_ca: bool,
    /// Keep the kinds AuthorizationPolicy and RateLimitPolicy, and all policies
    #[arg(long)]
    pub keep_kinds: bool,
    /// List what would go, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give up waiting for ends after so long
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Print {ok, removed, sidecars, why}
    #[arg(long)]
    pub json: bool,
}

pub const CLUSTER_CHECK_HELP: &str = "\
Before an installation (--pre): version, rights, kinds of Gateway API, what would be in the way. After it: control, webhook (by asking for a pod without making one), CA,
pods of meshed namespaces without a sidecar or with one of another version, the CNI plugin, and what of the cluster's own setting does not go with a mesh.

Exit codes: 0 nothing is wrong (there may be warnings), 1 something is, 3 the cluster cannot be asked.";

/// `weft check`.
#[derive(ClapArgs, Clone, Debug)]
pub struct ClusterCheck {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterPlace,
    /// Before an installation: can it be made, by me, here?
    #[arg(long)]
    pub pre: bool,
    /// Print {ok, findings: [{id, level, message, remedy, docs}]}
    #[arg(long)]
    pub json: bool,
}
