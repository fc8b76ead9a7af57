//! Whom this replica follows, and how: a task a replica, which connects, listens, asks what is to be asked, and begins anew when that ends.
//!
//! Followed is who was named (`--replica`; a name may have several addresses, which are looked up again every few seconds), who lives by its Lease
//! ([`super::presence`]), and who follows us.
//! Ourselves among them we know by our own number.
//!
//! A replica that is silent is found out by HTTP/2 pings: by whom it follows ([`crate::server`]) within 12 s, as who follows it finds out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Channel, Endpoint};
use weft_api::wire::replicas as wire;
use weft_api::wire::replicas::replicas_client::ReplicasClient;

use super::{Asked, share};
use crate::distribute::Hub;
use crate::server::tls::CurrentDoors;

/// Of a message: the names of 1,024 proxies with their answers.
const MAX_TOLD: usize = 4 << 20;
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Between two pings, and for the answer to one; in both directions.
pub const PING: Duration = Duration::from_secs(4);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Ourselves, or one that is heard elsewhere: another may have the address later.
const SAME: Duration = Duration::from_secs(30);
/// Between two looks at whom there is to follow.
const LOOK: Duration = Duration::from_secs(5);
/// Those that were named are waited for so long at the start.
const SETTLE: Duration = Duration::from_secs(3);

/// What a replica needs to follow others.
#[derive(Clone, Debug)]
pub struct Own {
    /// The store.
    pub hub: Arc<Hub>,
    /// Our certificate.
    pub doors: CurrentDoors,
    /// What we call ourselves.
    pub name: String,
    /// Where we serve.
    pub port: u16,
    /// Where we are.
    pub place: share::Place,
}

/// Begins to follow those that were named, and whoever follows us, until it is dropped.
///
/// `listed`: there are Leases of replicas besides.
pub fn start(own: Own, named: Vec<String>, listed: bool) -> AbortOnDropHandle<()> {
    own.hub.replicas.name.lock().clone_from(&own.name);
    own.hub.replicas.settled.send_replace(named.is_empty() && !listed);
    AbortOnDropHandle::new(tokio::spawn(async move {
        let settling = async {
            let _ = timeout(SETTLE, all_tried(&own)).await;
            own.hub.replicas.settled.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::join!(keep(&own, named), settling, share::keep(&own.hub, &own.place));
    }))
}

async fn all_tried(own: &Own) {
    let replicas = &own.hub.replicas;
    let mut heard = replicas.heard.subscribe();
    loop {
        let known = {
            let state = replicas.state.lock();
            let known = |peer: &super::Peer| peer.heard.as_ref().map_or(peer.tried, |heard| heard.whole);
            !state.peers.is_empty() && state.peers.values().all(known)
        };
        if known || heard.changed().await.is_err() {
            return;
        }
    }
}

async fn keep(own: &Own, named: Vec<String>) {
    let resolver = TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build).ok();
    let mut tasks: BTreeMap<SocketAddr, AbortOnDropHandle<()>> = BTreeMap::new();
    let mut told: BTreeMap<String, BTreeSet<SocketAddr>> = BTreeMap::new();
    let mut heard = own.hub.replicas.heard.subscribe();
    loop {
        for name in &named {
            match addresses(resolver.as_ref(), name).await {
                Ok(found) => drop(told.insert(name.clone(), found)),
                // What it was before goes on.
                Err(error) => tracing::warn!(replica = name, %error, "a replica's name cannot be resolved"),
            }
        }
        let look_up_again = sleep(LOOK);
        tokio::pin!(look_up_again);
        loop {
            heard.mark_unchanged();
            let mut wanted = own.hub.replicas.back();
            wanted.extend(told.values().flatten());
            tasks.retain(|at, _| {
                let wanted = wanted.contains(at);
                if !wanted {
                    own.hub.replicas.forget(&own.hub, *at);
                }
                wanted
            });
            for at in wanted {
                tasks.entry(at).or_insert_with(|| {
                    own.hub.replicas.expect(at);
                    AbortOnDropHandle::new(tokio::spawn(follow(own.clone(), at)))
                });
            }
            tokio::select! {
                () = &mut look_up_again => break,
                // Somebody may follow us.
                _ = heard.changed() => {}
            }
        }
    }
}

async fn addresses(resolver: Option<&TokioResolver>, name: &str) -> io::Result<BTreeSet<SocketAddr>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "write it as HOST:PORT");
    let (host, port) = name.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok([SocketAddr::new(ip, port)].into());
    }
    let resolver = resolver.ok_or_else(|| io::Error::other("this machine has no resolver"))?;
    let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    Ok(found.iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Never ends.
async fn follow(own: Own, at: SocketAddr) {
    let replicas = &own.hub.replicas;
    let mut wait = FIRST_WAIT;
    loop {
        let ended = listen(&own, at, &mut wait).await;
        replicas.lost(&own.hub, at);
        match ended {
            Ok(true) => tracing::info!(%at, "a replica has ended its stream"),
            Ok(false) => wait = SAME,
            Err(error) => tracing::info!(%at, error, "a replica is not heard"),
        }
        // Jittered, so that those that lost it together do not come back together.
        let chance = weft_certs::files::random(1).ok().and_then(|bytes| bytes.first().copied()).unwrap_or_default();
        sleep(wait.mul_f64(0.5 + f64::from(chance) / 512.0)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Listens until the stream ends; false: it is ourselves, or heard elsewhere.
async fn listen(own: &Own, at: SocketAddr, wait: &mut Duration) -> Result<bool, String> {
    let channel = timeout(CONNECT_TIME, channel(own, at)).await.map_err(|_| "it does not answer".to_owned())?;
    let channel = channel.map_err(|error| crate::cluster::causes(&error))?;
    let (asks, outgoing) = mpsc::channel(64);
    let (id, name, port) = (own.hub.replicas.id.clone(), own.name.clone(), u32::from(own.port));
    let hello = wire::Ask { id, name, port, ..wire::Ask::default() };
    asks.send(hello).await.map_err(|error| error.to_string())?;
    let mut client = ReplicasClient::new(channel.clone()).max_decoding_message_size(MAX_TOLD);
    let opened = timeout(CONNECT_TIME, client.follow(ReceiverStream::new(outgoing))).await;
    let opened = opened.map_err(|_| "it does not answer".to_owned())?;
    let mut told = opened.map_err(|status| status.message().to_owned())?.into_inner();
    let mut asked = own.hub.replicas.asked.subscribe();
    let (mut known, mut due) = (Asked::default(), news(&Asked::default(), &asked.borrow_and_update().clone()));
    known.clone_from(&asked.borrow());
    loop {
        tokio::select! {
            message = told.message() => match message.map_err(|status| status.message().to_owned())? {
                Some(message) => {
                    *wait = FIRST_WAIT;
                    if !take(own, at, message).await {
                        return Ok(false);
                    }
                    own.hub.replicas.reached(at, &channel);
                }
                None => return Ok(true),
            },
            permit = asks.reserve(), if !due.is_empty() => {
                let Ok(permit) = permit else { return Ok(true) };
                if let Some(ask) = due.pop_front() {
                    permit.send(ask);
                }
            }
            changed = asked.changed() => {
                if changed.is_err() {
                    return Ok(true);
                }
                let now = asked.borrow_and_update().clone();
                due.extend(news(&known, &now));
                known = now;
            }
        }
    }
}

async fn take(own: &Own, at: SocketAddr, message: wire::Told) -> bool {
    if !message.leaves.is_empty() {
        // Before its proxies are known: one of them may be about to come here.
        let (hub, leaves) = (Arc::clone(&own.hub), message.leaves.clone());
        if let Err(error) = tokio::task::spawn_blocking(move || hub.learn_leaves(&leaves)).await {
            tracing::error!(%error, "what another control said of workloads that leave could not be compiled");
        }
    }
    own.hub.replicas.told(&own.hub, at, message)
}

/// The questions that begin and end between two moments.
fn news(before: &Asked, now: &Asked) -> VecDeque<wire::Ask> {
    let begun = now.iter().filter(|(number, _)| !before.contains_key(number));
    let begun = begun.map(|(number, about)| wire::Ask {
        question: *number,
        about: Some(about.clone()),
        ..wire::Ask::default()
    });
    let ended = before.keys().filter(|number| !now.contains_key(number));
    begun.chain(ended.map(|number| wire::Ask { question: *number, ..wire::Ask::default() })).collect()
}

async fn channel(own: &Own, at: SocketAddr) -> Result<Channel, tonic::transport::Error> {
    let doors = Arc::clone(&own.doors);
    let connector = tower::service_fn(move |_| {
        let replica = doors.load().replica.clone();
        async move {
            let tcp = TcpStream::connect(at).await?;
            tcp.set_nodelay(true)?;
            let tls = TlsConnector::from(replica.tls).connect(replica.name, tcp).await?;
            Ok::<_, io::Error>(TokioIo::new(tls))
        }
    });
    Endpoint::from_static("http://weft-control")
        .origin(http::Uri::from_static("https://weft-control"))
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}
