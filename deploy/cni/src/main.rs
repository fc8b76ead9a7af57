//! `weft-cni`: the CNI plugin where a container runtime calls it, else the node's agent and its uninstaller.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weft_cni::agent::{self, Settings};
use weft_cni::node::Node;
use weft_cni::plugin::{self, Call};

/// Captures pods without an init container that has rights: a chained CNI plugin, and the agent that keeps it on a node.
///
/// A container runtime calls this with CNI_COMMAND set; then it is the plugin.
#[derive(Parser)]
#[command(name = "weft-cni", version)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install the plugin on this node, keep it there, and repair pods that started without it.
    Agent(Agent),
    /// Take everything of ours away from this node.
    Uninstall(Places),
}

#[derive(Args)]
struct Places {
    /// Where the runtime's CNI configuration is.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_config: PathBuf,
    /// Where the runtime's CNI plugins are.
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    cni_plugins: PathBuf,
}

#[derive(Args)]
struct Agent {
    #[command(flatten)]
    places: Places,
    /// This node's name in the cluster.
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Where metrics and readiness are served.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Take everything away at the end. Not for a DaemonSet: an update of it would open a gap.
    #[arg(long)]
    remove_on_exit: bool,
    /// The DaemonSet that this belongs to: if it is gone at the end, everything is taken away.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = owner)]
    owner: Option<(String, String)>,
}

fn owner(text: &str) -> Result<(String, String), String> {
    let (namespace, name) = text.split_once('/').ok_or("NAMESPACE/NAME is wanted")?;
    Ok((namespace.to_owned(), name.to_owned()))
}

impl From<Places> for Node {
    fn from(places: Places) -> Self {
        Self { config: places.cni_config, plugins: places.cni_plugins }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command.action {
        Action::Uninstall(places) => {
            let removed = Node::from(places).remove()?;
            let words = if removed.is_empty() { "nothing was there".to_owned() } else { removed.join(", ") };
            writeln!(std::io::stdout(), "taken away: {words}")?;
            Ok(())
        }
        Action::Agent(flags) => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            let settings = Settings {
                node: flags.places.into(),
                name: flags.node,
                proc: PathBuf::from("/proc"),
                listen: flags.listen,
                remove_on_exit: flags.remove_on_exit,
                owner: flags.owner,
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(agent::run(settings))
        }
    }
}

fn main() -> ExitCode {
    if let Some(call) = Call::from_environment(|name| std::env::var_os(name)) {
        let (output, code) = plugin::main(&call);
        let _ = writeln!(std::io::stdout(), "{output}");
        return ExitCode::from(code);
    }
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "weft-cni: {error:#}");
            ExitCode::from(3)
        }
    }
}
