//! The command line: what can be typed, and the help that teaches it.

mod install;
mod live;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};
use weft_certs::ca::Home;
use weft_control::ca_secret::{Blocking, SecretHome, SecretName};
use weft_control::cluster::Access;
use weft_control::config::duration;

use crate::exit::Failure;
pub use install::{ClusterCheck, ClusterPlace, Install, Uninstall, Upgrade};
pub use live::{Diff, Events, Proxies, Status};

const ABOUT: &str = "Weft, a sidecar service mesh: mutual TLS, routing, authorization and rate limits for applications that know \
                     nothing of it";

const EXAMPLES: &str = "\
Examples:
  weft demo                                 a shop in network namespaces, live on this terminal; Ctrl-C ends it
  weft demo --for 20s --json                the same unattended: one JSON object, exit code 1 if anything did not hold
  weft policy check deploy/examples/shop    are these manifests right? problems as FILE:LINE:COLUMN
  weft explain --from shop/web GET http://catalog.shop/items --files deploy/examples/shop
                                            what would happen to this request, and which line says so
  weft control --files DIR --ca-dir CA      control on a directory of Kubernetes manifests
  weft token --identity shop/web --ca-dir CA --ttl 10m
                                            a join token for a sidecar
  weft inject -f app.yaml | kubectl apply -f -
                                            the same sidecar as by the namespace's label, put in by hand
  weft install --set image.registry=registry.example/weft
                                            into a Kubernetes cluster; weft check looks at it before and after
  weft status                               is anything wrong with the mesh, and what is to be done?
  weft certs inspect svid.pem               what is in this certificate, when does it end, who signed it?

Exit codes: 0 ok, 1 a check failed or the answer is \"denied\", 2 wrong command line, 3 cannot run here (the reason is printed),
4 bad input.";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(name = "weft", version, about = ABOUT, after_help = EXAMPLES, max_term_width = 120)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be typed after `weft`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a small shop in network namespaces, a sidecar for each part, and watch it
    #[command(after_help = DEMO_HELP)]
    Demo(Demo),
    /// Print a join token: with it a sidecar proves to the CA who it is
    #[command(after_help = TOKEN_HELP)]
    Token(Token),
    /// Work with policy files
    #[command(subcommand)]
    Policy(Policy),
    /// Look at certificates
    #[command(subcommand)]
    Certs(Certs),
    /// Say what would happen to a request, step by step, and which line of which file decides it
    #[command(after_help = EXPLAIN_HELP)]
    Explain(Explain),
    /// Say how control and its mesh are, and what has to be mended
    #[command(after_help = live::STATUS_HELP)]
    Status(Status),
    /// List the proxies: who is connected, in sync, behind or refuses something; of one, its tables
    #[command(after_help = live::PROXIES_HELP)]
    Proxies(Proxies),
    /// Put the sidecar into manifests, as the webhook does it in the cluster
    #[command(after_help = INJECT_HELP)]
    Inject(Inject),
    /// Compare what a sidecar runs with what control has for it now
    #[command(after_help = live::DIFF_HELP)]
    Diff(Diff),
    /// List the last changes: what was seen, what came of it, who was told, when all had answered
    #[command(after_help = live::EVENTS_HELP)]
    Events(Events),
    /// Run control: watch manifests, tell the proxies, issue certificates
    Control(Box<weft_control::Args>),
    /// Run a sidecar: take a pod's connections and give them the mesh
    Proxy(Box<weft_proxy::Args>),
    /// Print the version, and with --json the features that this build enforces
    Version(Version),
    /// Look whether a Kubernetes cluster can have Weft (--pre), or whether Weft is well there
    #[command(after_help = install::CLUSTER_CHECK_HELP)]
    Check(ClusterCheck),
    /// Install Weft into a Kubernetes cluster
    #[command(after_help = install::INSTALL_HELP)]
    Install(Install),
    /// Bring an installation to this version, or to other values
    #[command(after_help = install::UPGRADE_HELP)]
    Upgrade(Upgrade),
    /// Remove Weft from a cluster
    #[command(after_help = install::UNINSTALL_HELP)]
    Uninstall(Uninstall),
    /// Print the definitions of Weft's own kinds (CustomResourceDefinitions)
    Crds,
    /// Print a completion script for a shell
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Play a demo workload that knows nothing of the mesh
    #[command(subcommand, hide = true)]
    App(crate::app::App),
    /// Become a program inside a pod of the lab
    #[command(hide = true)]
    LabExec(crate::lab::exec::Args),
}

const DEMO_HELP: &str = "\
It needs no root (it enters a user namespace) and leaves nothing behind. Traffic goes through real sidecars, captured by nftables
rules in each pod's namespace, over mutual TLS. While it flows the demo edits a policy file, kills an endpoint with SIGKILL, and
kills control. nginx and redis-server, if they are on this machine, take part behind the same sidecars.

With --json, standard output is one object {ok, version, flows, phases, checks}; all else goes to standard error. The exit code is
1 if any check failed, 3 if namespaces cannot be made here.";

/// `weft demo`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Demo {
    /// Let traffic flow so long, then say how it went (at least 10s); without it: until Ctrl-C
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub for_: Option<Duration>,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Keep the pods' logs and manifests in this directory
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Leave the sidecar of this pod away: the demo must then fail
    #[arg(long, value_name = "POD", hide = true)]
    pub without_sidecar: Option<String>,
}

const TOKEN_HELP: &str = "\
Examples:
  weft token --identity shop/web --ca-dir /var/lib/weft/ca --ttl 10m > token
  weft token --identity shop/web --ca-secret weft-system/weft-ca > token
  weft proxy --token-file token ...

A token is used up by the first certificate that is had for it; only the same key may ask again with it. Until it is used, whoever holds
it can become this identity: keep it short, and out of logs. A sidecar renews by its certificate; one that lost it, or was without
control for longer than it lasts, needs a new token. With --reusable the token is good for anybody until it expires.";

/// Where control's CA is.
#[derive(ClapArgs, Clone, Debug)]
pub struct CaPlace {
    /// Control's CA directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub ca_dir: Option<PathBuf>,
    /// The Kubernetes Secret with control's CA, instead of a directory
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "ca_dir")]
    pub ca_secret: Option<SecretName>,
    /// Kubeconfig to find the Secret by; default: in a pod what the kubelet gives it, else $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE", requires = "ca_secret", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: the current one
    #[arg(long, value_name = "NAME", requires = "ca_secret")]
    pub context: Option<String>,
}

impl CaPlace {
    /// The CA's home, if one is named.
    ///
    /// # Errors
    /// The API server cannot be called.
    pub fn home(&self) -> Result<Option<Home>, Failure> {
        let Some(name) = &self.ca_secret else { return Ok(self.ca_dir.as_ref().map(Home::from)) };
        let access = Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone(), ..Access::default() };
        let asking = Blocking::alone(&access).map_err(|error| Failure::here(error.to_string()))?;
        Ok(Some(SecretHome::new(name.clone(), asking).home()))
    }

    /// The CA's home.
    ///
    /// # Errors
    /// As [`CaPlace::home`], or none is named.
    pub fn needed(&self) -> Result<Home, Failure> {
        self.home()?
            .ok_or_else(|| Failure::usage("say where control's CA is: --ca-dir DIR or --ca-secret NAMESPACE/NAME"))
    }
}

/// `weft token`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Token {
    /// For whom: NAMESPACE/SERVICE-ACCOUNT, or a whole SPIFFE ID
    #[arg(long, value_name = "NS/SA")]
    pub identity: String,
    /// How long it is valid
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub ttl: Duration,
    /// Whose key signs it.
    #[command(flatten)]
    pub ca: CaPlace,
    /// The mesh's trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Let it be used by anybody, any number of times, until it expires
    #[arg(long)]
    pub reusable: bool,
    /// Print {token, identity, expires_in_s, reusable}
    #[arg(long)]
    pub json: bool,
}

/// `weft policy ...`.
#[derive(Subcommand, Debug)]
pub enum Policy {
    /// Check manifests: each problem as FILE:LINE:COLUMN, the field, and what may have been meant
    #[command(after_help = CHECK_HELP)]
    Check(Check),
}

const CHECK_HELP: &str = "\
Our kinds and routes with a Service parent are read strictly: an unknown field is an error. Core Kubernetes kinds are read
leniently, other API groups are skipped and counted. Exit code 1 if there is a problem, 4 if a path cannot be read.

Example:
  $ weft policy check shop/
  shop/allow.yaml:9:3: unknown field `acton` in AuthorizationPolicy shop/cart; did you mean `action`?";

/// `weft policy check`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Check {
    /// Files, or directories with manifests
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The mesh's trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Print {ok, files, objects, skipped, problems, warnings}
    #[arg(long)]
    pub json: bool,
}

/// `weft certs ...`.
#[derive(Subcommand, Debug)]
pub enum Certs {
    /// Say what the certificates of a PEM file are, when they end, who signed them, and whether a peer would take the chain
    #[command(after_help = INSPECT_HELP)]
    Inspect(Inspect),
    /// Say which roots and issuers there are, which certificate each proxy shows, and who lags
    #[command(after_help = STATUS_HELP)]
    Status(CertsStatus),
    /// Exchange the mesh's root without an outage, step by step; or go on watching, or turn back
    #[command(after_help = ROTATE_HELP)]
    RotateRoot(Rotate),
    /// Exchange the issuer under the same root, in the same way
    #[command(after_help = ROTATE_HELP)]
    RotateIssuer(Rotate),
    /// Call the mesh's trust domain otherwise, in the same way
    #[command(after_help = RENAME_HELP)]
    RotateTrustDomain(Rename),
}

const STATUS_HELP: &str = "\
Asks control's metrics port. On another machine than control's: forward that port, or start control with --debug-remote. With --ca-dir or
--ca-secret the CA itself is read instead: roots, issuers and the rotation, not the proxies.

Exit code 0 if all proxies are connected, have acknowledged the roots and show a valid certificate; 1 if one does not; 3 if control
cannot be asked.";

/// `weft certs status`.
#[derive(ClapArgs, Clone, Debug)]
pub struct CertsStatus {
    /// Read this CA, and do not ask control.
    #[command(flatten)]
    pub ca: CaPlace,
    /// Control's metrics address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub control: SocketAddr,
    /// Print what /debug/certificates says: {trust_domain, aliases, federated, issuing, authorities, rotation, proxies}
    #[arg(long)]
    pub json: bool,
}

const RENAME_HELP: &str = "\
The steps are control's to make, each when all proxies that live by the source are ready for it:
  publishing   both names are the mesh's, certificates are issued in the old one, until every proxy has acknowledged both
  turning      certificates are issued in the new one, until none in the old one can be valid: as long as they live (--leaf-ttl)
  withdrawing  nobody is believed under the old name any more (with --keep-alias it stays another name)
No connection is closed and no pod restarted. Pods may be started with either name, from the first step on and for good; so may control.
Policies and lists of who is revoked mean the same with either. Meshes that are federated with this one must know the new name, with our
roots, before the second step: give them the time by control's --publish-roots-for.

Examples:
  weft certs rotate-trust-domain --ca-dir ca --to mesh.example     begin, and watch
  weft certs rotate-trust-domain --ca-dir ca --abort               turn back: possible until the old name is withdrawn
  weft certs rotate-trust-domain --ca-dir ca --drop-alias old.example

Exit codes as of rotate-root.";

/// `weft certs rotate-trust-domain`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Rename {
    /// What it is to be called
    #[arg(long, value_name = "NAME", required_unless_present_any = ["abort", "drop_alias"], conflicts_with = "abort")]
    pub to: Option<String>,
    /// Keep the name of now as another one, for good
    #[arg(long, requires = "to")]
    pub keep_alias: bool,
    /// Give up a name that was kept
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "abort"])]
    pub drop_alias: Option<String>,
    /// What all rotations have.
    #[command(flatten)]
    pub rotate: Rotate,
}

const ROTATE_HELP: &str = "\
The steps are control's to make, each when all proxies that live by the source are ready for it:
  publishing   both roots are believed, the old one issues, until every proxy has acknowledged both (a root's rotation only)
  turning      the new one issues, until no certificate of the old one can be valid: as long as certificates live (--leaf-ttl)
  withdrawing  the old root is not believed any more (a root's rotation only)
No connection is closed and no pod restarted. This command writes the first step where the CA is and watches. It may be ended
at any time: control goes on, also after it was restarted, and the same command watches again. Who lags is named; nothing goes on
without a proxy that is alive (delete its pod, or mend it). New proxies join in every step; copies of root.pem that you have made
elsewhere must hold both roots before the old one is withdrawn.

Examples:
  weft certs rotate-root --ca-dir ca              begin, and watch
  weft certs rotate-root --ca-dir ca --abort      turn back: possible until the old root is withdrawn
  weft certs rotate-root --ca-secret weft-system/weft-ca
                                                  the same of a CA in a Kubernetes Secret
  weft certs status                               where it is, from elsewhere

Exit code 0 once it is done (or begun, with --no-wait), 1 if it was turned back by somebody or --timeout is over, 4 if the CA cannot be
read or the step cannot be made.";

/// `weft certs rotate-root`, `weft certs rotate-issuer`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Rotate {
    /// Which CA.
    #[command(flatten)]
    pub ca: CaPlace,
    /// Turn back a rotation that is under way
    #[arg(long)]
    pub abort: bool,
    /// Begin, and do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
    /// Give up watching after so long; the rotation goes on
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Control's metrics address: who is waited for is asked there
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub control: SocketAddr,
    /// Print {kind, done, aborted, phase, issuing, trust_domain, seconds} at the end
    #[arg(long)]
    pub json: bool,
}

const INSPECT_HELP: &str = "\
A chain is written leaf first, then who signed it, the root last or left out. A peer takes it if it leads to a root that the peer
trusts, if all of it is valid now, and if the leaf has exactly one SPIFFE ID as its name. Without --roots the file's own root is
trusted, or its last certificate: that shows whether the file holds together, not whether your mesh trusts it.
A private key in the file is mentioned and never shown.

Examples:
  weft certs inspect svid.pem                     a sidecar's saved certificate, in its --state-dir
  weft certs inspect shop/web-1                   what the sidecar of a pod shows, and whether the mesh's roots trust it
  weft certs inspect chain.pem --roots root.pem   would a peer that trusts root.pem take this chain?
  weft certs inspect root.pem --json              when does the mesh's root end?
  openssl s_client -connect 10.0.0.7:8080 -alpn weft1-h1 -showcerts </dev/null | weft certs inspect -
                                                  what a sidecar shows

Exit code 0 if all is well, 1 if there is a problem, 3 if control cannot be asked, 4 if there is no certificate to look at.";

/// `weft certs inspect`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Inspect {
    /// A PEM file with one or more certificates, `-` for standard input; or NAMESPACE/POD, for what its sidecar shows to control
    #[arg(value_name = "FILE|POD", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Control's metrics address, where a pod is asked for
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub control: SocketAddr,
    /// Trust the roots of this PEM file and no others
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub roots: Option<PathBuf>,
    /// Print {ok, certificates, private_keys, problems, warnings}
    #[arg(long)]
    pub json: bool,
}

const EXPLAIN_HELP: &str = "\
The manifests are compiled to the resources that proxies get, and the engine that decides in proxies decides here: there is no
second implementation of a rule.

Examples:
  weft explain --from shop/web GET http://catalog.shop/items --files deploy/examples/shop
  weft explain --from shop/web POST http://cart.shop/add -H 'x-user: 7' --files . --json
  weft explain --from shop/web tls://vault.shop:443 --sni vault.example.com --files .
  weft explain --from shop/web tcp://db.shop:5432 --files .

Exit code 0 if the request is let through, 1 if it is refused, 4 if the files or the request cannot be read.";

/// `weft explain`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Explain {
    /// Who asks: NAMESPACE/SERVICE-ACCOUNT, or a whole SPIFFE ID
    #[arg(long, value_name = "NS/SA")]
    pub from: String,
    /// An HTTP method and http://SERVICE.NAMESPACE[:PORT]/PATH or http://IP:PORT/PATH; or tls://HOST:PORT, tcp://HOST:PORT alone
    #[arg(required = true, num_args = 1..=2, value_names = ["METHOD", "URL"])]
    pub asked: Vec<String>,
    /// The name that the application's own TLS asks for; default: the host of tls://HOST:PORT
    #[arg(long, value_name = "NAME")]
    pub sni: Option<String>,
    /// A header field of the request; repeatable
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = crate::app::client::header)]
    pub header: Vec<(http::HeaderName, http::HeaderValue)>,
    /// Files, or directories with manifests; repeatable
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub files: Vec<PathBuf>,
    /// The mesh's trust domain
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Print the explanation as one JSON object
    #[arg(long)]
    pub json: bool,
}

const INJECT_HELP: &str = "\
Reads Pods and what has a template of them (Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob, List), and prints all objects
as YAML, with the sidecar where it belongs. Done twice it is done once. Where it is not needed (a namespace with the label
weft.dev/inject=enabled) the webhook does the same when pods are made.

Examples:
  weft inject -f app.yaml | kubectl apply -f -
  kustomize build . | weft inject -f - | kubectl apply -f -
  weft inject -f app.yaml --injection injection.yaml     by this file, without a cluster

Exit code 1 if an object is refused, 3 if the cluster cannot be asked, 4 if a file cannot be read.";

/// `weft inject`.
#[derive(ClapArgs, Clone, Debug)]
pub struct Inject {
    /// A file with manifests, `-` for standard input; repeatable
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// How: a file as control's --injection; default: what the cluster's control was installed with
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub injection: Option<PathBuf>,
    /// Control's namespace
    #[arg(long, value_name = "NAME", default_value = "weft-system")]
    pub namespace: String,
    /// Kubeconfig of the cluster; default: in a pod what the kubelet gives it, else $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: the current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// `weft version`.
#[derive(ClapArgs, Clone, Copy, Debug)]
pub struct Version {
    /// Print {version, features}
    #[arg(long)]
    pub json: bool,
}

const COMPLETION_HELP: &str = "\
Examples:
  source <(weft completion bash)
  weft completion zsh > ~/.zfunc/_weft
  weft completion fish > ~/.config/fish/completions/weft.fish";

/// Shells that completion is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// Z shell.
    Zsh,
    /// fish.
    Fish,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
