//! The proxy as a process: two runtimes, and how it starts and stops.
//!
//! ```text
//! ports, roots, saved tables --> admin thread: signals, identity, control stream, metrics, health
//!                            |-> dns thread: the application's names, where they are captured
//!                            \-> workers: capture; the main thread is the first, one thread for each further one
//! SIGTERM | SIGINT | POST /drain --> readiness off, inbound closed, control told --> nothing in flight, or deadline --> saved, exit 0
//! ```
//!
//! Invariants
//! - What fails at the start fails with one sentence and exit code 3 (2 for the command line, 4 for a bad file), before a port is
//!   served.
//! - No part lives without the others: if the admin thread or a worker ends, the process does.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use weft_certs::tls::Roots;

use crate::capture::{self, Listeners};
use crate::config::{Config, ConfigError};
use crate::control_channel::Target;
use crate::dns::Zone;
use crate::identity::authority::ControlAuthority;
use crate::identity::keep::{Giver, Keeper};
use crate::identity::trust::Trust;
use crate::identity::workload_api::socket;
use crate::identity::{IdentityStore, given, renew};
use crate::limits::memory::{self, Memory};
use crate::limits::sources::Sources;
use crate::telemetry::access::Sink;
use crate::telemetry::{Settings, Telemetry};
use crate::{Args, Clock, Shared, admin, discovery, dns, drain, resolver, worker};

/// Nothing must be in flight for so long before the process ends: a request that crossed our GOAWAY on its way arrives within it.
const LINGER: Duration = Duration::from_millis(200);
/// Bounds what is done besides waiting for requests, so that a stop is never held up by the log's reader or by control.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between two looks for series that nobody uses any more.
const SWEEP: Duration = Duration::from_mins(1);
/// Threads for scrapes and files, beside the admin thread.
const ADMIN_BLOCKING_THREADS: usize = 4;

/// The sidecar as a process: logs to standard error, drains at SIGTERM or SIGINT.
pub fn main(args: Args) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever embeds this may have set a subscriber already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let config = match args.resolve() {
        Ok(config) => config,
        Err(error) => {
            // Plain, as clap says it. If even that cannot be written, the exit code says it.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            return ExitCode::from(if matches!(error, ConfigError::File { .. }) { 4 } else { 2 });
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the proxy stops: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    raise_open_files();
    let listeners = Listeners::bind(config.outbound, config.inbound, config.workers).with_context(|| {
        format!("cannot listen on {} and {}; is another proxy running?", config.outbound, config.inbound)
    })?;
    let admin_listeners = admin::Listeners::bind(&config).context("cannot listen for metrics, health or admin")?;
    let names = config.dns_listen.map(dns::listen).transpose().context("--dns-listen: cannot listen for DNS")?;
    let zone = names.as_ref().map(|_| Zone::of_the_pod(&config)).transpose().map_err(anyhow::Error::msg)?;
    let roots = given::read(&config.control_ca)?;
    let application = config.workload_api.as_deref().map(socket::listen).transpose()?;
    let data = worker_runtime()?;
    let shared = {
        // The resolver for names asks for a runtime that drives its sockets: the data path's, which uses it.
        let _entered = data.enter();
        Arc::new(make_shared(config, roots)?)
    };
    if let Some((zone, sockets)) = zone.zip(names) {
        dns::start(zone, shared.config.exclude, sockets, Arc::clone(&shared)).context("DNS cannot be served")?;
    }
    let admin_ended = start_admin(&shared, admin_listeners, application)?;
    tracing::info!(
        workload = %shared.config.workload, identity = %shared.config.identity, control = shared.config.control.join(" "),
        outbound = %shared.config.outbound, inbound = %shared.config.inbound, workers = shared.config.workers,
        version = env!("CARGO_PKG_VERSION"), "the proxy serves"
    );
    let (listeners, worker_ended) = start_workers(&shared, listeners)?;
    let ended = data.block_on(serve(&shared, listeners, worker_ended, admin_ended));
    shared.telemetry.flush(LAST_WORDS);
    // Connections that are still open have had their time.
    data.shutdown_background();
    ended
}

/// Serves until drained.
async fn serve(
    shared: &Arc<Shared>,
    listeners: Listeners,
    worker_ended: CancellationToken,
    admin_ended: oneshot::Receiver<anyhow::Error>,
) -> anyhow::Result<()> {
    let capturing = tokio::spawn(capture::serve(Arc::clone(shared), listeners));
    tokio::select! {
        () = shared.drain.wait() => {}
        ended = capturing => {
            ended.context("the data path panicked")?.context("the data path cannot serve")?;
            anyhow::bail!("the data path ended");
        }
        () = worker_ended.cancelled() => anyhow::bail!("a worker of the data path ended; its log says why"),
        error = admin_ended => {
            return Err(error.unwrap_or_else(|_| anyhow::anyhow!("the admin thread panicked")));
        }
    }
    let deadline = Instant::now() + shared.config.drain_deadline;
    let in_flight = shared.drain.in_flight();
    tracing::info!(in_flight, "draining");
    match timeout_at(deadline, quiet(&shared.drain)).await {
        Ok(()) => tracing::info!("drained"),
        Err(_) => tracing::warn!(in_flight = shared.drain.in_flight(), "the deadline of the drain has passed"),
    }
    if timeout(LAST_WORDS, shared.discovery.flush()).await.is_err() {
        tracing::warn!("the tables could not be saved in time");
    }
    Ok(())
}

/// Returns once nothing has been in flight for [`LINGER`].
async fn quiet(drain: &drain::Drain) {
    loop {
        drain.idle().await;
        sleep(LINGER).await;
        if drain.in_flight() == 0 {
            return;
        }
    }
}

fn make_shared(config: Config, (roots, bundle): (Roots, Bytes)) -> anyhow::Result<Shared> {
    let clock = Clock::start();
    let sink = config.access_log.clone().map_or(Sink::Stdout, Sink::File);
    let settings = Settings {
        source: config.workload.to_string().into(),
        sample: config.access_log_sample,
        sink,
        ..Settings::quiet()
    };
    Ok(Shared {
        discovery: discovery::Discovery::new(&config, clock.clone()).context("the tables cannot be kept")?,
        trust: Arc::new(Trust::new(Arc::clone(&config.identity.trust_domain), roots, bundle)),
        identity: IdentityStore::default(),
        application: IdentityStore::default(),
        telemetry: Telemetry::new(settings, clock.clone()).context("the access log cannot be written")?,
        connections: Arc::new(Semaphore::new(config.limits.max_connections)),
        sources: Sources::new(config.limits.max_connections_per_source),
        memory: Memory::new(config.limits.memory_budget),
        drain: drain::Drain::default(),
        clock,
        config,
    })
}

fn worker_runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("a worker's runtime cannot be made")
}

/// Starts all workers but the first, which is the caller's thread: it gets its listeners, and a token that is cancelled if one ends.
fn start_workers(shared: &Arc<Shared>, listeners: Vec<Listeners>) -> anyhow::Result<(Listeners, CancellationToken)> {
    let count = listeners.len();
    let ended = CancellationToken::new();
    let mut all = listeners.into_iter().enumerate();
    let (_, first) = all.next().context("there must be a worker")?;
    worker::enter(0, count);
    for (id, listeners) in all {
        let (shared, runtime, ending) = (Arc::clone(shared), worker_runtime()?, ended.clone().drop_guard());
        let thread = move || {
            worker::enter(id, count);
            if let Err(error) = runtime.block_on(capture::serve(shared, listeners)) {
                tracing::error!(id, %error, "a worker cannot serve");
            }
            drop(ending);
        };
        let builder = std::thread::Builder::new().name(format!("data-{id}"));
        builder.spawn(thread).context("a worker's thread cannot be started")?;
    }
    Ok((first, ended))
}

/// Starts the admin thread; the answer comes if it ends, which it does not by itself.
fn start_admin(
    shared: &Arc<Shared>,
    listeners: admin::Listeners,
    socket: Option<UnixListener>,
) -> anyhow::Result<oneshot::Receiver<anyhow::Error>> {
    let mut builder = Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(ADMIN_BLOCKING_THREADS).build();
    let runtime = runtime.context("the admin runtime cannot be started")?;
    let control = {
        let _entered = runtime.enter();
        let mark = shared.config.exclude;
        let names = resolver::resolver(&shared.config.dns, mark).context("names cannot be resolved; give --dns")?;
        Target::new(&shared.config.control, mark, names).context("--control")?
    };
    let domain = &shared.config.identity.trust_domain;
    let control = control.known_in(domain);
    let giver = match &shared.config.svid_from {
        Some(path) => Giver::WorkloadApi(path.clone()),
        None => {
            let authority = ControlAuthority::new(control.clone(), Arc::clone(&shared.trust), Arc::clone(domain));
            Giver::Control(Box::new(authority))
        }
    };
    let settings = renew::Settings {
        identity: shared.config.identity.clone(),
        trust: Arc::clone(&shared.trust),
        token: shared.config.token.clone(),
        state_dir: shared.config.state_dir.clone(),
    };
    let keeper = Keeper { settings, giver, socket };
    let (ended, receiver) = oneshot::channel();
    let shared = Arc::clone(shared);
    let thread = move || {
        let error = runtime.block_on(administer(&shared, control, keeper, listeners));
        // Whoever would hear it may have gone: then the process ends anyway.
        let _ = ended.send(error);
    };
    std::thread::Builder::new().name("admin".into()).spawn(thread).context("the admin thread cannot be started")?;
    Ok(receiver)
}

/// Everything that is not traffic. Returns why it ended.
async fn administer(
    shared: &Arc<Shared>,
    control: Target,
    keeper: Keeper,
    listeners: admin::Listeners,
) -> anyhow::Error {
    tokio::select! {
        kept = keeper.run(shared) => match kept {
            Ok(()) => anyhow::anyhow!("the renewal of certificates ended"),
            Err(error) => anyhow::Error::new(error).context("the Workload API cannot be served"),
        },
        () = discovery::run(Arc::clone(shared), control.clone()) => anyhow::anyhow!("the control stream ended"),
        served = admin::serve(Arc::clone(shared), control.clone(), listeners) => match served {
            Ok(()) => anyhow::anyhow!("metrics and health ended"),
            Err(error) => anyhow::Error::new(error).context("metrics and health cannot be served"),
        },
        error = drain_when_told(shared, control) => error.context("signals cannot be received"),
        () = given::follow(shared) => anyhow::anyhow!("the look at --control-ca ended"),
        () = sweep(&shared.telemetry) => anyhow::anyhow!("the sweep of series ended"),
        () = memory::watch(shared) => anyhow::anyhow!("the look at the memory ended"),
    }
}

/// Begins to drain at SIGTERM or SIGINT, and then tells control, so that others cease to choose us before they find the port closed.
async fn drain_when_told(shared: &Arc<Shared>, control: Target) -> anyhow::Error {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => return error.into(),
    };
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop by SIGTERM"),
        _ = interrupt.recv() => tracing::info!("told to stop by SIGINT"),
        () = shared.drain.wait() => {}
    }
    shared.drain.begin();
    match admin::tell_control(shared, &control, Instant::now() + LAST_WORDS).await {
        Ok(reply) => tracing::info!(acknowledged = reply.acknowledged, "others know that this workload leaves"),
        Err(why) => tracing::info!("{why}"),
    }
    std::future::pending().await
}

async fn sweep(telemetry: &Telemetry) {
    loop {
        sleep(SWEEP).await;
        telemetry.sweep();
    }
}

/// Takes as many file descriptors as the machine allows: each relayed connection needs two.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}
