//! A steady load on a mesh: paced requests over HTTP/1 and HTTP/2, and opaque sessions whose every byte is checked.
//!
//! ```text
//! each client pod --- connections of HTTP/1, requests one behind the other -----> the HTTP service
//!                 --- one connection of HTTP/2, streams beside each other ------> the HTTP service
//!                 --- sessions that last as long as the load, echoed pattern ---> the TCP service
//!                 --- a new session several times a second: a handshake each ---> the TCP service
//! ```
//!
//! Invariants
//! - Nothing is tried twice and nothing opened again: whatever goes wrong once is a failure, kept with the time it happened at.
//! - Requests begin by the clock, not when others end, so that a stall is not hidden: what was due meanwhile is sent behind it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{interval, sleep, timeout};
use weft::lab::Pod;

use crate::client::{Session, request};

/// Longer than this nothing may take.
const LIMIT: Duration = Duration::from_secs(10);
/// What is asked of the HTTP service: `weft app http` answers with so many bytes.
const PATH: (&str, usize) = ("/bytes/64", 64);
/// Connections of HTTP/1 for each client: so many that a busy machine's answers, which are slow, keep up.
const LANES: u32 = 20;
/// Long-lived sessions for each client.
const SESSIONS: usize = 3;
/// A session's next piece of the pattern.
const PIECE: (usize, Duration) = (256, Duration::from_millis(20));
/// Between two new sessions of a client.
const NEW_SESSION: Duration = Duration::from_millis(250);
/// Between two looks whether time goes on.
const LOOK: Duration = Duration::from_millis(20);
/// Failures that are kept in words.
const KEPT: usize = 20;

/// Who calls whom, and how fast.
#[derive(Debug)]
pub struct Plan {
    /// Pods that call.
    pub clients: Vec<Pod>,
    /// A service of `weft app http`.
    pub http: SocketAddr,
    /// A service of `weft app tcp`.
    pub tcp: SocketAddr,
    /// HTTP requests a second of all clients together, half of them over HTTP/2.
    pub rate: u32,
}

impl Plan {
    /// How many long-lived sessions it has.
    pub fn sessions(&self) -> u64 {
        (self.clients.len() * SESSIONS) as u64
    }
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests that were answered as they should, over HTTP/1 and HTTP/2.
    pub requests: [AtomicU64; 2],
    /// Long-lived sessions that are open.
    pub open: AtomicU64,
    /// Bytes that came back in them, each of them checked.
    pub bytes: AtomicU64,
    /// Short sessions that went well.
    pub short: AtomicU64,
    /// The longest that a request took, in milliseconds.
    pub slowest: AtomicU64,
    /// The longest that this process, and so most likely the machine, did not get on, in milliseconds.
    pub stalled: AtomicU64,
    /// Whatever failed, counted.
    pub failed: AtomicU64,
    said: Mutex<Vec<String>>,
}

impl Tally {
    /// Good requests, of both protocols.
    pub fn answered(&self) -> u64 {
        self.requests.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The first failures, in words, each with the seconds since the load began.
    pub fn failures(&self) -> Vec<String> {
        self.said.lock().clone()
    }

    fn fail(&self, start: Instant, what: &str, why: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut said = self.said.lock();
        if said.len() < KEPT {
            said.push(format!("at {:.2} s, {what}: {why}", start.elapsed().as_secs_f64()));
        }
    }

    fn answer(&self, protocol: usize, took: Duration) {
        self.requests[protocol].fetch_add(1, Ordering::Relaxed);
        self.slowest.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [h1, h2] = self.requests.each_ref().map(|count| count.load(Ordering::Relaxed));
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{h1} requests over HTTP/1 and {h2} over HTTP/2, the slowest {} ms, the machine stood still for {} ms at most; {} long sessions with {} bytes; {} short ones; {} failures",
            of(&self.slowest),
            of(&self.stalled),
            of(&self.open),
            of(&self.bytes),
            of(&self.short),
            of(&self.failed)
        )
    }
}

/// A running load; it ends when it is told to, or dropped.
#[derive(Debug)]
pub struct Load {
    /// What has happened so far.
    pub tally: Arc<Tally>,
    /// When it began.
    pub start: Instant,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Opens every session, then begins.
    pub fn start(plan: Plan) -> Self {
        let (tally, start) = (Arc::<Tally>::default(), Instant::now());
        let (stop, stopped) = watch::channel(false);
        let context = Context { tally: Arc::clone(&tally), start, stop: stopped };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let thread = std::thread::spawn(move || runtime.block_on(drive(plan, context)));
        Self { tally, start, stop, thread: Some(thread) }
    }

    /// Requests a second since it began.
    pub fn rate(&self) -> f64 {
        self.tally.answered() as f64 / self.start.elapsed().as_secs_f64()
    }

    /// Ends it: what is under way is answered first, and each session gets back the last of its bytes.
    ///
    /// # Panics
    /// If it panicked.
    pub fn end(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if std::thread::panicking() {
            eprintln!("the load so far: {}; {:#?}", self.tally, self.tally.failures());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What each part of the load has.
#[derive(Clone)]
struct Context {
    tally: Arc<Tally>,
    start: Instant,
    stop: watch::Receiver<bool>,
}

impl Context {
    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    fn take(&self, what: &str, done: Result<(), String>) {
        if let Err(why) = done {
            self.tally.fail(self.start, what, &why);
        }
    }
}

async fn drive(plan: Plan, context: Context) {
    let mut parts = JoinSet::new();
    // Of each lane, and of the one connection of HTTP/2.
    let half = f64::from(plan.rate) / 2.0 / plan.clients.len() as f64;
    let (lane, stream) = (Duration::from_secs_f64(f64::from(LANES) / half), Duration::from_secs_f64(1.0 / half));
    for pod in plan.clients {
        for _ in 0..LANES {
            let (pod, context) = (pod.clone(), context.clone());
            parts.spawn(async move { context.take("HTTP/1", requests(&pod, plan.http, lane, &context).await) });
        }
        for seed in 0..SESSIONS {
            let (pod, context) = (pod.clone(), context.clone());
            parts.spawn(async move { context.take("a session", session(&pod, plan.tcp, seed, &context).await) });
        }
        let (other, beside) = (pod.clone(), context.clone());
        parts.spawn(async move { beside.take("HTTP/2", streams(&other, plan.http, stream, &beside).await) });
        let context = context.clone();
        parts.spawn(async move { short_sessions(pod, plan.tcp, &context).await });
    }
    let all = async { while parts.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = watch_for_stalls(&context.tally) => {}
    }
}

/// Never ends.
async fn watch_for_stalls(tally: &Tally) {
    loop {
        let before = Instant::now();
        sleep(LOOK).await;
        tally.stalled.fetch_max(before.elapsed().saturating_sub(LOOK).as_millis() as u64, Ordering::Relaxed);
    }
}

async fn connect(pod: &Pod, to: SocketAddr) -> Result<TcpStream, String> {
    let pod = pod.clone();
    let stream = spawn_blocking(move || pod.connect(to)).await.unwrap().map_err(|error| format!("connect: {error}"))?;
    let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
    let stream = stream.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// One connection of HTTP/1. It ends with its first failure, so that one of them is not counted as many.
async fn requests(pod: &Pod, to: SocketAddr, every: Duration, context: &Context) -> Result<(), String> {
    let mut session = Session::open(pod, to).await?;
    let mut due = interval(every);
    while !context.stopped() {
        due.tick().await;
        let got = session.send(request(Method::GET, "web", PATH.0, &[])).await?;
        if got.outcome() != (200, "") || got.body.len() != PATH.1 {
            context.tally.fail(context.start, "HTTP/1", &format!("{got:?}"));
            continue;
        }
        context.tally.answer(0, got.took);
    }
    Ok(())
}

/// One connection of HTTP/2: each request on a stream of its own, whether or not those before have ended.
async fn streams(pod: &Pod, to: SocketAddr, every: Duration, context: &Context) -> Result<(), String> {
    let io = TokioIo::new(connect(pod, to).await?);
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), io).await.map_err(|error| format!("handshake: {error:?}"))?;
    tokio::spawn(async move { drop(connection.await) });
    let mut due = interval(every);
    let mut under_way = JoinSet::new();
    while !context.stopped() {
        due.tick().await;
        let (sender, context) = (sender.clone(), context.clone());
        under_way.spawn(async move { context.take("HTTP/2", one_stream(sender, &context.tally).await) });
        while under_way.try_join_next().is_some() {}
    }
    under_way.join_all().await;
    Ok(())
}

async fn one_stream(mut sender: http2::SendRequest<Empty<Bytes>>, tally: &Tally) -> Result<(), String> {
    let request = http::Request::get(format!("http://web{}", PATH.0)).body(Empty::new()).unwrap();
    let start = Instant::now();
    let answer = async {
        sender.ready().await?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
    };
    let (head, body) = match timeout(LIMIT, answer).await {
        Ok(answered) => answered.map_err(|error| format!("{error:?}"))?,
        Err(_) => return Err(format!("no answer in {LIMIT:?}")),
    };
    if head.status != 200 || body.len() != PATH.1 {
        return Err(format!("{head:?} {}", String::from_utf8_lossy(&body)));
    }
    tally.answer(1, start.elapsed());
    Ok(())
}

/// The byte of a session's pattern at this place. Sessions differ, so that one's bytes in another would be seen.
fn byte(at: usize, seed: usize) -> u8 {
    ((at * 31 + seed * 17 + at / 256) % 251) as u8
}

/// A session that lasts as long as the load.
async fn session(pod: &Pod, to: SocketAddr, seed: usize, context: &Context) -> Result<(), String> {
    let mut stream = connect(pod, to).await?;
    greeting(&mut stream).await?;
    context.tally.open.fetch_add(1, Ordering::Relaxed);
    let (mut read, mut write) = stream.into_split();
    let writing = async {
        let (mut due, mut sent) = (interval(PIECE.1), 0);
        while !context.stopped() {
            due.tick().await;
            let piece: Vec<u8> = (sent..sent + PIECE.0).map(|at| byte(at, seed)).collect();
            write.write_all(&piece).await.map_err(|error| format!("writing after {sent} bytes: {error}"))?;
            sent += piece.len();
        }
        write.shutdown().await.map_err(|error| format!("ending after {sent} bytes: {error}"))?;
        Ok(sent)
    };
    let reading = async {
        let (mut buffer, mut came) = (vec![0; 16 << 10], 0);
        loop {
            let read = timeout(LIMIT, read.read(&mut buffer)).await;
            let read = read.map_err(|_| format!("nothing came for {LIMIT:?} after {came} bytes"))?;
            match read.map_err(|error| format!("reading after {came} bytes: {error}"))? {
                0 => return Ok(came),
                read => {
                    if let Some(wrong) = (0..read).find(|at| buffer[*at] != byte(came + at, seed)) {
                        return Err(format!("byte {} is not what was sent", came + wrong));
                    }
                    came += read;
                    context.tally.bytes.fetch_add(read as u64, Ordering::Relaxed);
                }
            }
        }
    };
    let (sent, came) = futures_util::future::try_join(writing, reading).await?;
    if sent == came { Ok(()) } else { Err(format!("{came} of {sent} bytes came back, then it was cut")) }
}

/// What `weft app tcp` says first.
async fn greeting(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), String> {
    let mut hello = Vec::new();
    while hello.last() != Some(&b'\n') {
        let read = timeout(LIMIT, stream.read_u8()).await.map_err(|_| format!("no greeting in {LIMIT:?}"))?;
        hello.push(read.map_err(|error| format!("no greeting: {error}"))?);
    }
    Ok(())
}

/// One session after the other, each of which needs a handshake between the sidecars.
async fn short_sessions(pod: Pod, to: SocketAddr, context: &Context) {
    let mut due = interval(NEW_SESSION);
    while !context.stopped() {
        due.tick().await;
        let one = async {
            let mut stream = connect(&pod, to).await?;
            greeting(&mut stream).await?;
            let (sent, mut came) = (*b"a short session", [0; 15]);
            stream.write_all(&sent).await.map_err(|error| format!("writing: {error}"))?;
            let read = timeout(LIMIT, stream.read_exact(&mut came)).await.map_err(|_| "no echo".to_owned())?;
            read.map_err(|error| format!("reading: {error}"))?;
            if sent == came { Ok(()) } else { Err("other bytes came back".to_owned()) }
        };
        match one.await {
            Ok(()) => drop(context.tally.short.fetch_add(1, Ordering::Relaxed)),
            Err(why) => context.tally.fail(context.start, "a short session", &why),
        }
    }
}
