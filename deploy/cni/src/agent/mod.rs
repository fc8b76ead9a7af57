//! The agent of a node: keeps the plugin installed, repairs pods that started without it, tells how it is.
//!
//! Invariants
//! - What it keeps is looked at every second; who rewrites the configuration takes us out for that long, and what starts meanwhile is held
//!   by its own proof (`weft-validate`) and repaired.
//! - It ends without taking anything away, so that an update opens no gap; it takes all away only when it was told so, or when the object
//!   that it belongs to is gone.

pub mod http;
pub mod repair;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::node::{Entry, Node};
use http::Told;

const ROUND: Duration = Duration::from_secs(1);
/// For the one question at the end; the kubelet gives 30 s.
const LAST_QUESTION: Duration = Duration::from_secs(5);

/// What the agent is told.
pub struct Settings {
    /// Where the runtime looks.
    pub node: Node,
    /// The node's name in the cluster.
    pub name: String,
    /// The node's processes.
    pub proc: PathBuf,
    /// Where metrics and readiness are served.
    pub listen: Option<SocketAddr>,
    /// Take everything away at the end.
    pub remove_on_exit: bool,
    /// Namespace and name of the DaemonSet that this belongs to: when it is gone at the end, everything is taken away.
    pub owner: Option<(String, String)>,
}

/// Runs until it is asked to end.
///
/// # Errors
/// If this cannot be a node's agent: no API server to ask, no binary to install, no port to listen to.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut ended = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let told = Arc::new(Told::new()?);
    // The address of the API server stands in the environment: a static binary asks no resolver for it.
    let client = Client::try_from(Config::incluster_env().or_else(|_| kubeconfig())?)?;
    if settings.node.install(&std::env::current_exe()?)? {
        tracing::info!("the plugin is among the node's plugins");
    }
    let serving = http::serve(settings.listen, Arc::clone(&told)).await?;
    tokio::select! {
        () = keep(&settings.node, &told) => {}
        () = watch(&client, &settings, &told) => {}
        () = serving => {}
        _ = ended.recv() => {}
        _ = interrupted.recv() => {}
    }
    if settings.remove_on_exit || is_orphan(&client, settings.owner.as_ref()).await {
        let removed = settings.node.remove()?;
        tracing::info!(?removed, "taken away from this node");
    } else {
        tracing::info!("ended; the plugin stays on this node");
    }
    Ok(())
}

fn kubeconfig() -> anyhow::Result<Config> {
    // Only where there is no pod: a person who tries it, or a test.
    let path =
        std::env::var_os("KUBECONFIG").ok_or_else(|| anyhow::anyhow!("neither in a pod, nor is KUBECONFIG set"))?;
    let config = kube::config::Kubeconfig::read_from(path)?;
    let options = kube::config::KubeConfigOptions::default();
    let runtime = futures_util::FutureExt::now_or_never(Config::from_custom_kubeconfig(config, &options));
    Ok(runtime.ok_or_else(|| anyhow::anyhow!("KUBECONFIG names what must be asked for"))??)
}

async fn keep(node: &Node, told: &Told) {
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = String::new();
    loop {
        rounds.tick().await;
        let node = node.clone();
        let kept = tokio::task::spawn_blocking(move || {
            node.restore()?;
            node.keep()
        });
        let (installed, words) = match kept.await {
            Ok(Ok(Entry::Written(file))) => {
                told.written.inc();
                (true, format!("put into {file}"))
            }
            Ok(Ok(Entry::Kept(_))) => (true, String::new()),
            Ok(Ok(Entry::NoConfiguration)) => (false, "the node has no network configuration yet".to_owned()),
            Ok(Err(error)) => (false, error.to_string()),
            Err(error) => (false, error.to_string()),
        };
        told.installed.set(i64::from(installed));
        // Said when it changes, not every second.
        if !words.is_empty() && (words != last || installed) {
            tracing::info!("the plugin's entry: {words}");
        }
        last = words;
    }
}

async fn watch(client: &Client, settings: &Settings, told: &Arc<Told>) {
    let pods: Api<Pod> = Api::all(client.clone());
    let (reader, writer) = reflector::store();
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", settings.name));
    let stream = reflector(writer, watcher(pods, config).default_backoff().modify(repair::slim));
    let following = stream.for_each(|event| {
        if let Err(error) = event {
            tracing::warn!(%error, "the node's pods cannot be watched");
        }
        std::future::ready(())
    });
    let repairing = async {
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut repairs = repair::Repairs::new(settings.proc.clone(), Arc::clone(told));
        loop {
            rounds.tick().await;
            let pods = reader.state();
            let round = tokio::task::spawn_blocking(move || {
                repairs.round(&pods);
                repairs
            });
            match round.await {
                Ok(back) => repairs = back,
                Err(error) => {
                    tracing::error!(%error, "a round of repair was lost");
                    repairs = repair::Repairs::new(settings.proc.clone(), Arc::clone(told));
                }
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = repairing => {}
    }
}

/// Whether the object that this belongs to is gone or going. Who may not even ask any more was uninstalled with its rights.
async fn is_orphan(client: &Client, owner: Option<&(String, String)>) -> bool {
    let Some((namespace, name)) = owner else { return false };
    let owners: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    match timeout(LAST_QUESTION, owners.get_opt(name)).await {
        Ok(Ok(found)) => found.is_none_or(|owner| owner.metadata.deletion_timestamp.is_some()),
        Ok(Err(kube::Error::Api(status))) => matches!(status.code, 401 | 403),
        Ok(Err(_)) | Err(_) => false,
    }
}
