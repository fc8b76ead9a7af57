//! Control: watches what the orchestrator says, compiles it into resources, and tells each proxy what it uses.
//!
//! A change flows one way through four rooms:
//! [`sources`] -> [`model`] -> [`compile`] -> [`distribute`]. Beside them: [`server`] (the doors), [`auth`] (who is there),
//! [`issue`] (who asks for a certificate), [`trust`] and [`svid_roots`] (whose certificates are believed), [`federation`] (others' roots, from their endpoints),
//! [`revoked`] (whose not any more), [`rotation`] (the CA over time), [`copies`] (of the roots, in the cluster), [`replicas`] (the other controls),
//! [`cluster`] (the orchestrator's API server), [`inject`] (sidecars into pods), [`leases`] (which replica does what only one may),
//! [`status`] (what people are told on their objects), [`metrics`], [`config`].

pub mod auth;
pub mod ca_secret;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod copies;
pub mod distribute;
pub mod federation;
pub mod homes;
pub mod inject;
pub mod issue;
pub mod leases;
mod listed;
pub mod metrics;
pub mod model;
mod multi;
pub mod replicas;
pub mod revoked;
pub mod rotation;
pub mod server;
pub mod sources;
pub mod status;
pub mod svid_roots;
#[cfg(test)]
mod testing;
pub mod trust;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing_subscriber::EnvFilter;

pub use config::{Args, Config};

use cluster::Access;
use distribute::{Feed, Hub};
use federation::Federation;
use issue::signers::Keeper;
use metrics::Metrics;
use revoked::Revocations;
use rotation::Authority;
use sources::kubernetes::Kubernetes;
use sources::{Keep, files};
use svid_roots::SvidRoots;
use trust::Trust;

/// How long connections may take to end after control was told to stop.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Control as a process: logs to standard error, stops at SIGTERM or SIGINT.
pub fn main(args: Args) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever embeds this may have set a subscriber already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let ran = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .context("the runtime cannot be started")
        .and_then(|runtime| runtime.block_on(async { run(args.into(), told_to_stop()?).await }));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("control stops: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Runs control until `shutdown`.
///
/// # Errors
/// If the CA cannot be opened, a port cannot be bound or the files cannot be watched; broken manifests are no error here.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    Control::start(config).await?.until(shutdown).await
}

/// A running control, for those who need to know where it listens.
#[derive(Debug)]
pub struct Control {
    /// Where proxies call.
    pub listen: std::net::SocketAddr,
    /// Where metrics are.
    pub metrics: std::net::SocketAddr,
    /// Where our roots are published for other meshes.
    pub bundle_endpoint: Option<std::net::SocketAddr>,
    /// Its store.
    pub hub: Arc<Hub>,
    stopping: CancellationToken,
    served: AbortOnDropHandle<anyhow::Result<()>>,
    _source: AbortOnDropHandle<()>,
    _feed: AbortOnDropHandle<()>,
    _ca: AbortOnDropHandle<()>,
    _revoked: AbortOnDropHandle<()>,
    _admin: AbortOnDropHandle<()>,
    status: Option<AbortOnDropHandle<()>>,
    presence: Option<AbortOnDropHandle<()>>,
    _copies: Option<AbortOnDropHandle<()>>,
    _federation: Option<Federation>,
}

impl Control {
    /// Binds its ports, reads the sources and begins to serve.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        // Boxed: it is large, and needed once.
        Box::pin(Self::begin(config)).await
    }

    async fn begin(config: Config) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new().context("the metrics cannot be registered")?);
        let hub = Arc::new(Hub::new(config.limits, Arc::clone(&metrics)));
        let (trust, federation) = trust(&config, &metrics).await?;
        let svid_roots = trust.svid_roots();
        // Tells the hub of the roots, before any proxy asks.
        let opened = Keeper::open(&config, trust, Arc::clone(&hub)).await;
        let (keeper, ca, joins) = opened.context("the CA cannot be opened")?;
        let now = Arc::clone(&ca.borrow());
        let called = now.called();
        let revoked = Revocations::open(config.revoked.clone(), &called).map_err(anyhow::Error::msg)?;
        hub.revoke(revoked.list(SystemTime::now(), &called.every().map(str::to_owned).collect::<Vec<_>>()));
        let provers = issue::Provers::open(&config.issuing, now.trust_domain(), joins, Arc::clone(&hub));
        let provers = provers.await.context("the proofs of identity cannot be set up")?;
        let listener = bind(config.listen).await?;
        let bundle = match config.bundle_endpoint {
            Some(addr) => Some(bind(addr).await?),
            None => None,
        };
        let webhook = match &config.webhook {
            Some(webhook) => {
                let settings =
                    server::webhook::Settings::open(webhook.injection.clone()).map_err(anyhow::Error::msg)?;
                Some((bind(webhook.listen).await?, settings))
            }
            None => None,
        };
        let bundle_endpoint = bundle.as_ref().map(TcpListener::local_addr).transpose()?;
        let admin_listener = bind(config.metrics).await?;
        let (listen, metrics_addr) = (listener.local_addr()?, admin_listener.local_addr()?);
        let copies = copies(&config, &ca, &hub).await?;
        let kubernetes = match &config.kubernetes {
            Some(access) => {
                let client = access.client().await.context("the API server cannot be watched")?;
                let (watched, errors) = (client.clone(), Arc::clone(&metrics));
                let keep = keep(&config, &metrics);
                // It reads what was saved.
                let watch = tokio::task::spawn_blocking(move || Kubernetes::watch(&watched, &errors, keep)).await?;
                Some((watch.context("the API server cannot be watched")?, client))
            }
            None => None,
        };
        let files = files(&config, &metrics).await?;

        let stopping = CancellationToken::new();
        let presence = config.presence.as_ref().zip(kubernetes.as_ref());
        let presence = presence.map(|(own, (_, client))| replicas::presence::start(client, own, &hub, &stopping));
        let status = config.status.as_ref().zip(kubernetes.as_ref());
        let status = status.map(|(settings, (_, client))| {
            hub.status.open();
            status::start(client, settings, Arc::clone(&hub), &stopping)
        });
        let kubernetes = kubernetes.map(|(watching, _)| watching);
        let admin = server::admin::Admin { hub: Arc::clone(&hub), ca: ca.clone(), debug_remote: config.debug_remote };
        let admin = tokio::spawn(server::admin::serve(admin_listener, admin, stopping.clone()));
        let (feed, feeding) = Feed::start(Arc::clone(&hub));
        let source = tokio::spawn(sources::follow(files, kubernetes, feed, metrics));
        let following = tokio::spawn(keeper.run());
        let revoking = tokio::spawn(revoked.follow(Arc::clone(&hub)));
        let listeners = server::Listeners { discovery: listener, svid_roots, bundle, webhook };
        let (serving, stop) = (Arc::clone(&hub), stopping.clone());
        let served = tokio::spawn(async move { server::serve(listeners, &config, serving, ca, provers, stop).await });
        tracing::info!(%listen, metrics = %metrics_addr, version = env!("CARGO_PKG_VERSION"), "control serves");
        Ok(Self {
            listen,
            metrics: metrics_addr,
            bundle_endpoint,
            hub,
            stopping,
            served: AbortOnDropHandle::new(served),
            _source: AbortOnDropHandle::new(source),
            _feed: feeding,
            _ca: AbortOnDropHandle::new(following),
            _revoked: AbortOnDropHandle::new(revoking),
            _admin: AbortOnDropHandle::new(admin),
            status,
            presence,
            _copies: copies,
            _federation: federation,
        })
    }

    /// Serves until `shutdown`, then sends the proxies to other replicas if there are any, ends the streams and waits a little for the connections.
    pub async fn until(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            served = &mut self.served => return served?,
            () = shutdown => {}
        }
        tracing::info!("control was told to stop");
        replicas::share::leave(&self.hub).await;
        self.stopping.cancel();
        let served = tokio::time::timeout(STOP_TIME, async {
            let leases = async {
                // When they end another replica may write, and nobody waits for this one.
                for held in [self.status.take(), self.presence.take()].into_iter().flatten() {
                    let _ = held.await;
                }
            };
            tokio::join!(&mut self.served, leases).0
        });
        match served.await {
            Ok(served) => served?,
            Err(_) => Ok(()),
        }
    }
}

async fn trust(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<(Trust, Option<Federation>)> {
    let trust = Trust::open(&config.trust_domain, config.federated.clone()).map_err(anyhow::Error::msg)?;
    let trust = trust.with(SvidRoots::open(config.svid_roots.clone()).map_err(anyhow::Error::msg)?);
    let Some(list) = config.federation.clone() else { return Ok((trust, None)) };
    let settings = federation::Settings {
        list,
        own: config.trust_domain.clone(),
        filed: trust.filed(),
        state_dir: config.state_dir.clone(),
        pace: config.pace,
    };
    let federation = Federation::open(settings, metrics).await?;
    Ok((trust.and(federation.known.clone()), Some(federation)))
}

/// Begins to keep copies of the roots in the cluster, if that is wanted.
async fn copies(config: &Config, ca: &Authority, hub: &Arc<Hub>) -> anyhow::Result<Option<AbortOnDropHandle<()>>> {
    if config.copies.is_empty() {
        return Ok(None);
    }
    let client = Access::from(&config.issuing).client().await.context("copies of the roots cannot be kept")?;
    Ok(Some(copies::start(client, &config.copies, ca.clone(), Arc::clone(hub))))
}

/// Where last good versions are kept, if they are.
fn keep(config: &Config, metrics: &Metrics) -> Option<Keep> {
    config.state_dir.clone().map(|dir| Keep { dir, errors: metrics.saved_errors.clone() })
}

/// Begins to watch the manifests, if there are any.
async fn files(config: &Config, metrics: &Metrics) -> anyhow::Result<Option<files::Watch>> {
    if config.files.is_empty() {
        return Ok(None);
    }
    let (files, trust_domain) = (config.files.clone(), config.trust_domain.clone());
    let keep = keep(config, metrics);
    let watch = tokio::task::spawn_blocking(move || files::watch(&files, &trust_domain, keep)).await?;
    watch.context("the files cannot be watched").map(Some)
}

async fn bind(addr: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}; is another control running?"))
}
