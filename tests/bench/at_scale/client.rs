//! A process of simulated proxies, told by lines on its standard input what to do; one line on standard output answers each.
//!
//! | asked | answered |
//! |---|---|
//! | `{"do":"connect"}` | at once; the proxies connect from then on, and again after each loss |
//! | `{"do":"sync","since":T}` | when every proxy has been whole at some moment after T (microseconds, monotonic): the last such moment |
//! | `{"do":"reset"}` | at once; counts and ages begin anew |
//! | `{"do":"read","acks":N}` | when N marks have been acknowledged since: counts, ages |
//! | `{"do":"hold","marks":FILE}` | when every proxy holds the marks in FILE (one a line, by endpoint, 0 for any) |
//!
//! What does not come to be in `"seconds"` is answered as `{"error": ...}`. All of it runs on one thread.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsConnector;
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::control_client_config;
use weft_engine::identity::Identity;
use weft_proxy::discovery::machine::{Change, Heard};

use super::super::{Error, say};
use super::grpc::Broken;
use super::sim::Proxy;
use super::world::{Size, TRUST_DOMAIN, World};

/// Handshakes at a time: a fleet that comes back does so by back-off, and control takes 256.
const HANDSHAKES: usize = 64;
/// How often a condition is looked at; what is measured has its own times.
const LOOK: Duration = Duration::from_millis(5);
/// Progress is said when something takes longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Certificates outlive the run.
const LIFE: Duration = Duration::from_hours(12);
/// Losses that are said; the rest are counted.
const SAID: u64 = 5;

/// Which proxies this process plays
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    #[command(flatten)]
    size: Size,
    /// The first of ours
    #[arg(long)]
    from: usize,
    /// The first that is not ours
    #[arg(long)]
    to: usize,
    /// Where control listens
    #[arg(long)]
    control: SocketAddr,
    /// Its CA, which issues our certificates
    #[arg(long)]
    ca_dir: PathBuf,
    /// The uids of all proxies' pods, one a line, if they are not those of the world
    #[arg(long)]
    uids: Option<PathBuf>,
}

/// What has travelled.
#[derive(Debug, Default)]
pub struct Counts {
    messages_in: u64,
    messages_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    resources: u64,
    unchanged: u64,
    refused: u64,
    losses: u64,
    route_bytes: usize,
    acks: u64,
    /// How many marks were acknowledged at which age, in tenths of a millisecond.
    ages: BTreeMap<u64, u64>,
}

impl Counts {
    /// Requests went out.
    pub fn sent(&mut self, messages: usize, bytes: usize) {
        self.messages_out += messages as u64;
        self.bytes_out += bytes as u64;
    }

    /// A response came.
    pub fn heard(&mut self, bytes: usize, heard: &Heard) {
        self.messages_in += 1;
        self.bytes_in += bytes as u64;
        self.resources += heard.received.len() as u64;
        self.unchanged += heard.received.iter().filter(|(_, change)| *change == Change::Unchanged).count() as u64;
        self.refused += heard.refused.len() as u64;
    }

    /// Something marked was acknowledged.
    pub fn acknowledged(&mut self, age: u64, route_bytes: Option<usize>) {
        self.acks += 1;
        *self.ages.entry(age / 100).or_default() += 1;
        self.route_bytes = route_bytes.unwrap_or(self.route_bytes);
    }
}

/// What the proxies of a process share.
pub struct Shared {
    /// Bounds how many shake hands at a time.
    pub handshakes: Semaphore,
    /// What has travelled.
    pub counts: Mutex<Counts>,
    world: World,
    from: usize,
    started: Instant,
    /// When each proxy was whole on the stream that it has now; 0 if it is not.
    whole: Mutex<Vec<u64>>,
    /// The mark that each holds of each endpoint of each service that it calls.
    held: Mutex<Vec<Vec<u64>>>,
}

impl Shared {
    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A proxy has everything.
    pub fn in_sync(&self, proxy: usize, at: u64) {
        self.whole.lock()[proxy - self.from] = at;
    }

    /// A proxy holds an endpoint with this mark.
    pub fn holds(&self, proxy: usize, (service, member): (usize, usize), micros: u64) {
        let slot = self.world.calls(proxy).position(|called| called == service);
        let mut held = self.held.lock();
        if let Some(held) = slot.and_then(|slot| held[proxy - self.from].get_mut(slot * self.world.members + member)) {
            *held = micros;
        }
    }

    /// A proxy has lost its stream.
    pub fn ended(&self, proxy: usize, why: &Broken) {
        self.whole.lock()[proxy - self.from] = 0;
        let mut counts = self.counts.lock();
        counts.losses += 1;
        if counts.losses <= SAID {
            say(&format!("  proxy {proxy}: {why}"));
        }
    }

    /// How many endpoints somebody holds with another mark than these.
    fn others(&self, marks: &[u64]) -> usize {
        let held = self.held.lock();
        let others = held.iter().zip(self.from..).map(|(held, proxy)| {
            let wanted = self.world.calls(proxy).flat_map(|service| self.world.of(service));
            let differ = |(held, at): &(&u64, usize)| marks.get(*at).is_some_and(|mark| *mark > 0 && mark != *held);
            held.iter().zip(wanted).filter(differ).count()
        });
        others.sum()
    }
}

/// Plays them until standard input ends.
pub fn run(args: &Args) -> Result<(), Error> {
    let failed = |reason: String| Error::Program { name: "scale-client".to_owned(), reason };
    super::many_files();
    let world = args.size.world()?;
    let tls = certificates(&world, args).map_err(failed)?;
    let many = args.to - args.from;
    let shared = Arc::new(Shared {
        handshakes: Semaphore::new(HANDSHAKES),
        counts: Mutex::default(),
        world,
        from: args.from,
        started: Instant::now(),
        whole: Mutex::new(vec![0; many]),
        held: Mutex::new(vec![vec![0; world.calls * world.members]; many]),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    let (tell, mut told) = mpsc::channel(1);
    // Ends with the process: a read of standard input cannot be ended otherwise.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut tls = Some(tls);
    answer(&json!({"ready": many}));
    runtime.block_on(async {
        while let Some(line) = told.recv().await {
            let asked: Value = serde_json::from_str(&line).unwrap_or_default();
            if asked["do"] == "connect" {
                for (tls, proxy) in tls.take().into_iter().flatten().zip(args.from..) {
                    let proxy = Proxy::new(&world, proxy, args.control, TlsConnector::from(tls));
                    tokio::spawn(proxy.keep(Arc::clone(&shared)));
                }
            }
            answer(&obey(&shared, &asked).await);
        }
    });
    Ok(())
}

fn answer(value: &Value) {
    let mut out = std::io::stdout().lock();
    // Who asked is gone: so will be standard input.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

async fn obey(shared: &Shared, asked: &Value) -> Value {
    let until = Instant::now() + Duration::from_secs(asked["seconds"].as_u64().unwrap_or(60));
    match asked["do"].as_str() {
        Some("connect") => json!({}),
        Some("reset") => {
            *shared.counts.lock() = Counts::default();
            json!({})
        }
        Some("sync") => {
            let since = asked["since"].as_u64().unwrap_or_default();
            let late = || shared.whole.lock().iter().filter(|at| **at <= since).count();
            match come(until, "proxies are not in sync", late).await {
                None => json!({"last": shared.whole.lock().iter().max()}),
                Some(error) => error,
            }
        }
        Some("read") => {
            let wanted = asked["acks"].as_u64().unwrap_or_default();
            let missing = || wanted.saturating_sub(shared.counts.lock().acks) as usize;
            come(until, "acknowledgements are missing", missing).await.unwrap_or_else(|| read(shared))
        }
        Some("hold") => {
            let file = asked["marks"].as_str().unwrap_or_default();
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let marks: Vec<u64> = text.lines().map(|line| line.parse().unwrap_or_default()).collect();
            come(until, "endpoints are held as they were", || shared.others(&marks)).await.unwrap_or_else(|| json!({}))
        }
        _ => json!({"error": "what was asked is not known"}),
    }
}

/// Waits until nothing is left; an error says what is.
async fn come(until: Instant, what: &str, left: impl Fn() -> usize) -> Option<Value> {
    let mut said = Instant::now();
    loop {
        let left = left();
        if left == 0 {
            return None;
        }
        if Instant::now() >= until {
            return Some(json!({"error": format!("{left} {what}")}));
        }
        if said.elapsed() > PATIENCE {
            said = Instant::now();
            say(&format!("  {left} {what}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn read(shared: &Shared) -> Value {
    let counts = shared.counts.lock();
    let ages: Vec<_> = counts.ages.iter().map(|(age, many)| json!([age, many])).collect();
    json!({
        "messages_in": counts.messages_in, "messages_out": counts.messages_out,
        "bytes_in": counts.bytes_in, "bytes_out": counts.bytes_out,
        "resources": counts.resources, "unchanged": counts.unchanged, "refused": counts.refused,
        "losses": counts.losses, "acks": counts.acks, "route_bytes": counts.route_bytes, "ages": ages, "sockets": sockets(),
    })
}

/// Sockets that the kernel counts as ours.
fn sockets() -> usize {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return 0 };
    let links = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:")).count()
}

/// A key and a certificate for each of ours, by all cores.
fn certificates(world: &World, args: &Args) -> Result<Vec<Arc<ClientConfig>>, String> {
    let ca = Ca::load(&*args.ca_dir).map_err(|error| error.to_string())?;
    let uids = args.uids.as_ref().map(std::fs::read_to_string).transpose().map_err(|error| error.to_string())?;
    let uids: Option<Vec<&str>> = uids.as_deref().map(|uids| uids.lines().collect());
    let uid = |proxy: usize| match &uids {
        Some(uids) => uids.get(proxy).map_or_else(String::new, |uid| (*uid).to_owned()),
        None => {
            let (service, member) = world.place(proxy);
            World::uid(service, member)
        }
    };
    let many = args.to - args.from;
    let (next, made) = (AtomicUsize::new(0), Mutex::new(vec![None; many]));
    let failed: Mutex<Option<String>> = Mutex::new(None);
    let said = Mutex::new(Instant::now());
    let make = || loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        if at >= many || failed.lock().is_some() {
            return;
        }
        match certificate(&ca, world, args.from + at, &uid(args.from + at)) {
            Ok(config) => made.lock()[at] = Some(config),
            Err(error) => *failed.lock() = Some(error),
        }
        let mut said = said.lock();
        if said.elapsed() > PATIENCE {
            *said = Instant::now();
            say(&format!("  {at} of {many} certificates"));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(make))));
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(made.into_inner().into_iter().flatten().collect()),
    }
}

fn certificate(ca: &Ca, world: &World, proxy: usize, uid: &str) -> Result<Arc<ClientConfig>, String> {
    let (service, _) = world.place(proxy);
    let identity = Identity::new(TRUST_DOMAIN, &World::namespace(service), &World::service(service));
    let identity = identity.map_err(|error| error.to_string())?;
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let csr = key.csr(&identity).map_err(|error| error.to_string())?;
    let chain = ca.issue_to_pod(&csr, &identity, uid, LIFE, SystemTime::now());
    let svid = Svid::new(key, &chain.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    control_client_config(Some(&svid), ca.roots(), TRUST_DOMAIN).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_compared_endpoint_by_endpoint() {
        let world = World::new(20, 40, 4, 3).unwrap();
        let shared = Shared {
            handshakes: Semaphore::new(1),
            counts: Mutex::default(),
            world,
            from: 1,
            started: Instant::now(),
            whole: Mutex::new(vec![0; 2]),
            held: Mutex::new(vec![vec![0; 6]; 2]),
        };
        let called = world.calls(2).nth(1).unwrap();
        let mut marks = vec![0; world.endpoints()];
        marks[world.of(called).start + 1] = 77;
        assert_eq!(shared.others(&marks), 1);
        shared.holds(2, (called, 1), 77);
        assert_eq!(shared.others(&marks), 0);
        // Nobody here calls that.
        marks[0] = 5;
        assert_eq!(shared.others(&marks), 0);
    }
}
