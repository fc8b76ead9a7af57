//! TLS for control's doors: its own certificate, renewed before it ends and whenever the CA changes; and the discovery port, where a client
//! certificate is optional.
//!
//! Bounds: open connections, handshakes at a time, time for a handshake.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_certs::svid::Svid;
use weft_certs::tls::{
    Leaf, control_client_config, control_server_config, control_server_name, leads_to, peer_leaf, public_server_config,
};

use crate::auth::{Peer, Proved};
use crate::metrics::Metrics;
use crate::rotation::Authority;
use crate::svid_roots::Further;

/// Life of control's own certificate. It stays in memory, so it may be short.
const CONTROL_TTL: Duration = Duration::from_hours(24);
/// How often the wall clock is looked at: it may be set while we sleep.
const CLOCK: Duration = Duration::from_mins(1);
/// Between attempts to get the first one from a CA elsewhere.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Certificates of a peer that are kept to be shown.
const CHAIN: usize = 4;
const HANDSHAKES: usize = 256;

/// Control's certificates, one in each name that the mesh ever had, at each door.
#[derive(Debug)]
pub struct Doors {
    /// The discovery port.
    pub discovery: Arc<ServerConfig>,
    /// The bundle endpoint ([`super::bundle`]).
    pub bundle: Arc<ServerConfig>,
    /// Not a door of ours: how we knock at other replicas'.
    pub replica: Replica,
}

/// How another replica is called: with our own certificate, and it must be control.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Our certificate, and who is believed.
    pub tls: Arc<ClientConfig>,
    /// By which name.
    pub name: ServerName<'static>,
}

/// What control shows: a certificate in each name of the trust domain; the first one's number and times.
#[derive(Clone, Debug)]
struct Own {
    svids: Arc<[Svid]>,
    serial: String,
    not_after: SystemTime,
    renew_at: SystemTime,
}

/// Always with a certificate that is valid.
pub type CurrentDoors = Arc<ArcSwap<Doors>>;

/// Accepts connections with a certificate that is always valid.
#[derive(Debug)]
pub struct Acceptor {
    doors: CurrentDoors,
    ca: Authority,
    served_as: Vec<String>,
    further: watch::Receiver<Further>,
    own: Own,
    metrics: Arc<Metrics>,
    connections: Arc<Semaphore>,
}

impl Acceptor {
    /// Waits for the first certificate, which has the DNS names `served_as` beside control's own.
    ///
    /// # Errors
    /// Our own CA cannot issue it. A CA elsewhere is asked again until it does.
    pub async fn new(
        (mut ca, served_as): (Authority, Vec<String>),
        mut further: watch::Receiver<Further>,
        metrics: Arc<Metrics>,
        max_connections: usize,
    ) -> anyhow::Result<Self> {
        let own = first(&mut ca, &served_as).await?;
        let doors = doors(&ca, &mut further, &own)?;
        metrics.control_not_after.set(seconds(own.not_after));
        let connections = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        Ok(Self { doors: Arc::new(ArcSwap::from_pointee(doors)), ca, served_as, further, own, metrics, connections })
    }

    /// The certificate, which is renewed while this listens.
    pub fn doors(&self) -> CurrentDoors {
        Arc::clone(&self.doors)
    }

    /// Serves connections whose handshake has succeeded, each in a task of its own, until `stopping` and then until they have ended.
    pub(super) async fn listen<S>(
        self,
        listener: TcpListener,
        serve: impl Fn(Connection) -> S + Clone + Send + 'static,
        stopping: CancellationToken,
    ) where
        S: Future<Output = ()> + Send + 'static,
    {
        let (followed, own) = ((self.ca.clone(), self.further.clone()), self.own.clone());
        let renewal = renew(followed, &self.served_as, Arc::clone(&self.doors), own, Arc::clone(&self.metrics));
        let served = TaskTracker::new();
        tokio::select! {
            () = stopping.cancelled() => {}
            () = self.accept(&listener, &serve, &served) => {}
            () = renewal => {}
        }
        // Nobody new is let in.
        drop(listener);
        served.close();
        served.wait().await;
    }

    async fn accept<S>(
        &self,
        listener: &TcpListener,
        serve: &(impl Fn(Connection) -> S + Clone + Send + 'static),
        served: &TaskTracker,
    ) where
        S: Future<Output = ()> + Send + 'static,
    {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            // Waiting here leaves newcomers in the kernel's queue, which is bounded too.
            let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let (tcp, addr) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most likely: give some time to be closed.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
                self.metrics.bound("connections", 1);
                continue;
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&self.doors.load().discovery));
            let (serve, served, metrics, ca) =
                (serve.clone(), served.clone(), Arc::clone(&self.metrics), self.ca.clone());
            let further = self.further.clone();
            served.clone().spawn(async move {
                let shaken = tokio::time::timeout(HANDSHAKE_TIME, shake(acceptor, tcp, addr, (&ca, &further))).await;
                drop(handshake);
                match shaken {
                    Ok(Ok((tls, peer))) => {
                        let open = OpenConnection::new(permit, metrics);
                        let connection = Connection { tls, peer, spoke: Spoke::default(), _open: open };
                        // In another task: a handshake takes much more room than what comes after it.
                        served.spawn(serve(connection));
                    }
                    Ok(Err(error)) => {
                        metrics.handshake_failures.inc();
                        tracing::info!(%addr, %error, "a TLS handshake failed");
                    }
                    Err(_) => {
                        metrics.handshake_failures.inc();
                        tracing::info!(%addr, "a TLS handshake took too long");
                    }
                }
            });
        }
    }
}

async fn shake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    addr: std::net::SocketAddr,
    (ca, further): (&Authority, &watch::Receiver<Further>),
) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    tcp.set_nodelay(true)?;
    let tls = acceptor.accept(tcp).await?;
    let chain = tls.get_ref().1.peer_certificates();
    let proved = match chain {
        None | Some([]) => None,
        Some(certificates) => {
            let leaf = peer_leaf(chain).map_err(io::Error::other)?;
            let ca = Arc::clone(&ca.borrow());
            let further = further.borrow().roots.is_some()
                && !leads_to(certificates, ca.roots(), ca.trust_domain(), SystemTime::now());
            // What it brings along beside its chain, such as an issuer of ours, proves nothing.
            let issuer = if further { None } else { ca.above(certificates).map(Arc::from) };
            let Leaf { identity, pod, serial, not_after, .. } = leaf;
            // Which pod it is was proved to our CA, and to no other.
            let pod = pod.filter(|_| !further).map(Arc::from);
            let chain = certificates.iter().take(CHAIN).map(|one| one.clone().into_owned()).collect();
            Some(Proved { identity, not_after, serial: serial.into(), issuer, further, pod, chain })
        }
    };
    Ok((tls, Peer { addr, proved }))
}

async fn issue(ca: &mut Authority, served_as: &[String]) -> anyhow::Result<Own> {
    let ca = Arc::clone(&ca.borrow_and_update());
    let svids = ca.sign_control(served_as, CONTROL_TTL, SystemTime::now()).await;
    let svids = svids.map_err(|refusal| anyhow!("control has no certificate of its own: {refusal}"))?;
    let first = svids.first().context("control has no certificate of its own: none was issued")?;
    let (serial, not_after, renew_at) = (first.serial().to_owned(), first.not_after(), first.renew_at(0.0));
    Ok(Own { svids: svids.into(), serial, not_after, renew_at })
}

async fn first(ca: &mut Authority, served_as: &[String]) -> anyhow::Result<Own> {
    let mut wait = FIRST_WAIT;
    loop {
        match issue(ca, served_as).await {
            Err(error) if ca.borrow().elsewhere().is_some() => {
                let seconds = wait.as_secs();
                tracing::error!("{error:#}; no proxy is served until it has one, it is asked for again in {seconds} s");
            }
            issued => return issued,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn doors(ca: &Authority, further: &mut watch::Receiver<Further>, own: &Own) -> anyhow::Result<Doors> {
    let ca = Arc::clone(&ca.borrow());
    let roots = further.borrow_and_update().and(ca.roots());
    let discovery = control_server_config(&own.svids, &roots, ca.trust_domain())?;
    let bundle = public_server_config(&own.svids, &[b"http/1.1"], ca.trust_domain())?;
    let domain = ca.trust_domain();
    // In the name that the mesh has now, as every replica knows it.
    let svid = own.svids.iter().rfind(|svid| *svid.identity().trust_domain == *domain).or(own.svids.last());
    let name = control_server_name(domain).try_into()?;
    let replica = Replica { tls: control_client_config(svid, ca.roots(), domain)?, name };
    Ok(Doors { discovery, bundle, replica })
}

/// Never ends. Open connections keep the certificate that they began with.
async fn renew(
    (mut ca, mut further): (Authority, watch::Receiver<Further>),
    served_as: &[String],
    current: CurrentDoors,
    mut own: Own,
    metrics: Arc<Metrics>,
) {
    let mut renew_at = own.renew_at;
    loop {
        while let Ok(left) = renew_at.duration_since(SystemTime::now()) {
            let slice = left.clamp(Duration::from_millis(10), CLOCK);
            // A CA that nobody watches any more does not change: only the clock is left.
            let changed = async {
                let changed = tokio::select! {
                    changed = ca.changed() => changed,
                    changed = further.changed() => changed,
                };
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            if tokio::time::timeout(slice, changed).await.is_ok() {
                break;
            }
        }
        match issue(&mut ca, served_as).await {
            Ok(issued) => {
                tracing::info!(serial = issued.serial, "control renewed its certificate");
                metrics.control_not_after.set(seconds(issued.not_after));
                renew_at = issued.renew_at;
                own = issued;
            }
            Err(error) => {
                tracing::error!("{error:#}; the one that it has goes on, and another is asked for in a minute");
                renew_at = SystemTime::now() + CLOCK;
            }
        }
        // In any case: the roots may be others.
        match doors(&ca, &mut further, &own) {
            Ok(doors) => current.store(Arc::new(doors)),
            Err(error) => tracing::error!("control's doors stay as they are: {error:#}"),
        }
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Counts an open connection.
#[derive(Debug)]
struct OpenConnection {
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl OpenConnection {
    fn new(permit: OwnedSemaphorePermit, metrics: Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self { metrics, _permit: permit }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// A connection that knows its peer.
#[derive(Debug)]
pub struct Connection {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    spoke: Spoke,
    _open: OpenConnection,
}

/// Whether a peer has said something lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Spoke(Arc<AtomicBool>);

impl Spoke {
    /// Since this was asked last.
    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Connection {
    /// Who is at the other end.
    pub(super) fn peer(&self) -> Peer {
        self.peer.clone()
    }

    pub(super) fn spoke(&self) -> Spoke {
        self.spoke.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.tls).poll_read(cx, buf);
        if polled.is_ready() {
            self.spoke.0.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
