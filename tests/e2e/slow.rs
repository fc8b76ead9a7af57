//! A thousand peers that stop: readers that take the beginning of 10 MB and no more, and applications that take nothing of what they are
//! sent. What waits is held up at its source, so that both sidecars stay small, and others are served meanwhile. The figures are printed.
#![allow(clippy::print_stderr, reason = "the figures are what these tests are for")]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use weft::lab::until;
use weft_tests::{Mesh, Service, Trial, test_that_fills};

pub fn tests() -> Vec<Trial> {
    vec![
        test_that_fills("slow_readers_over_http1", || {
            readers(&Load { protocol: Protocol::H1, connections: PEERS, streams: 1 });
        }),
        test_that_fills("slow_readers_over_http2", || {
            readers(&Load { protocol: Protocol::H2, connections: PEERS, streams: 1 });
        }),
        test_that_fills("slow_readers_share_connections", || {
            readers(&Load { protocol: Protocol::H2, connections: PEERS / 100, streams: 100 });
        }),
        test_that_fills("slow_uploads_over_http1", || {
            uploads(&Load { protocol: Protocol::H1, connections: PEERS, streams: 1 });
        }),
        test_that_fills("slow_uploads_over_http2", || {
            uploads(&Load { protocol: Protocol::H2, connections: PEERS, streams: 1 });
        }),
        test_that_fills("slow_uploads_share_connections", || {
            uploads(&Load { protocol: Protocol::H2, connections: PEERS / 100, streams: 100 });
        }),
    ]
}

const PEERS: usize = 1000;
/// Bytes of each message.
const LENGTH: usize = 10_000_000;
/// What each may cost a sidecar.
const EACH: u64 = 64 << 10;
/// The same after more was held for a moment, which the allocator gives back only in part: readers that have read on, and uploads, whose
/// beginnings are kept for another attempt until the endpoint is seen to stand still.
const EACH_MOVED: u64 = 88 << 10;
/// How many of them go on to the end.
const SAMPLE: usize = 8;
/// Where they send what they have.
const LATE: &str = "late";
/// Requests of somebody who means them, while the others wait.
const MEANT: usize = 50;
/// How long a thing may take that a busy machine does in seconds.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(Clone, Copy, Debug)]
enum Protocol {
    H1,
    H2,
}

#[derive(Debug)]
struct Load {
    protocol: Protocol,
    connections: usize,
    streams: usize,
}

/// Bytes that tell where they stand.
static PATTERN: LazyLock<&'static [u8]> =
    LazyLock::new(|| (0..LENGTH).map(|at| (at % 251) as u8).collect::<Vec<_>>().leak());

/// The first `length` bytes of it, given out piece by piece; what has been given is counted.
#[derive(Debug)]
struct Content {
    at: usize,
    length: usize,
    given: Arc<AtomicUsize>,
}

impl Content {
    fn new(length: usize, given: &Arc<AtomicUsize>) -> Self {
        Self { at: 0, length, given: Arc::clone(given) }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = &PATTERN[self.at..self.length.min(self.at + (16 << 10))];
        if piece.is_empty() {
            return Poll::Ready(None);
        }
        self.at += piece.len();
        self.given.fetch_add(piece.len(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact((self.length - self.at) as u64)
    }
}

/// Reads a body to its end; says how many bytes it had if they are the pattern's.
async fn read_on(mut body: Incoming, mut at: usize) -> Result<usize, String> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("{error} after {at} bytes"))?;
        let Some(data) = frame.data_ref() else { continue };
        if PATTERN.get(at..at + data.len()) != Some(&data[..]) {
            return Err(format!("other bytes than were sent, behind {at}"));
        }
        at += data.len();
    }
    Ok(at)
}

/// The application: `GET /LENGTH` is answered with so many bytes. A body that is sent to `/late` is read once the test says so, any other
/// never.
#[derive(Clone)]
struct Application {
    given: Arc<AtomicUsize>,
    listens: watch::Receiver<bool>,
}

impl Application {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Content>, Infallible> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().trim_start_matches('/');
        if let Ok(length) = path.parse() {
            return Ok(Response::new(Content::new(length, &self.given)));
        }
        let mut listens = self.listens.clone();
        let told = listens.wait_for(|listens| *listens && path == LATE).await.is_ok();
        let mut response = Response::new(Content::new(0, &self.given));
        if !told || read_on(body, 0).await != Ok(LENGTH) {
            *response.status_mut() = StatusCode::BAD_REQUEST;
        }
        Ok(response)
    }

    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let this = self.clone();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let mut first = [0; 3];
                let h2 = matches!(stream.peek(&mut first).await, Ok(3)) && &first == b"PRI";
                let service = service_fn(|request| this.clone().answer(request));
                let io = TokioIo::new(stream);
                // Who goes away in the middle is nobody's fault here.
                let _ = if h2 {
                    // Streams that it does not read take nothing from those that it reads.
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.initial_stream_window_size(65_535).initial_connection_window_size(200 * 65_535);
                    builder.serve_connection(io, service).await
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
                };
            });
        }
    }
}

/// A client's connection.
#[derive(Clone)]
enum Sender {
    H1(Arc<tokio::sync::Mutex<http1::SendRequest<Content>>>),
    H2(http2::SendRequest<Content>),
}

impl Sender {
    async fn send(&self, mut request: Request<Content>) -> Result<Response<Incoming>, String> {
        let sent = match self {
            Self::H1(sender) => {
                request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("app"));
                *request.uri_mut() = request.uri().path().parse().unwrap();
                let mut sender = sender.lock().await;
                sender.ready().await.map_err(|error| format!("{error:?}"))?;
                sender.send_request(request).await
            }
            Self::H2(sender) => sender.clone().send_request(request).await,
        };
        sent.map_err(|error| format!("{error:?}"))
    }
}

/// Two pods with sidecars, the test playing client and application.
struct Stage {
    mesh: Mesh,
    runtime: Runtime,
    // Bytes that left the application, or a client.
    moved: Arc<AtomicUsize>,
    listen: watch::Sender<bool>,
}

impl Stage {
    fn set(protocol: Protocol) -> Self {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        let mut mesh = Mesh::new();
        mesh.deploy(Service::own("app")).client("client");
        for pod in SIDECARS {
            mesh.pod(pod).net().run(few_buffers).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let moved = Arc::new(AtomicUsize::new(0));
        let (listen, listens) = watch::channel(false);
        let listener = mesh.pod("app-0").listen(8080).unwrap();
        listener.set_nonblocking(true).unwrap();
        let application = Application { given: Arc::clone(&moved), listens };
        runtime.spawn(async move { application.serve(TcpListener::from_std(listener).unwrap()).await });
        let stage = Self { mesh, runtime, moved, listen };
        // The code that will run is in memory before it is weighed.
        stage.others(protocol, "before");
        stage
    }

    fn connect(&self, protocol: Protocol) -> Sender {
        let stream = self.mesh.pod("client-0").connect(self.mesh.address("app")).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        self.runtime.block_on(async {
            let io = TokioIo::new(TcpStream::from_std(stream).unwrap());
            match protocol {
                Protocol::H1 => {
                    let (sender, connection) = http1::handshake(io).await.unwrap();
                    tokio::spawn(connection);
                    Sender::H1(Arc::new(tokio::sync::Mutex::new(sender)))
                }
                Protocol::H2 => {
                    // The windows that a client has who says nothing of windows.
                    let mut builder = http2::Builder::new(TokioExecutor::new());
                    builder.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
                    let (sender, connection) = builder.handshake(io).await.unwrap();
                    tokio::spawn(connection);
                    Sender::H2(sender)
                }
            }
        })
    }

    fn get(&self, length: usize) -> Request<Content> {
        self.request(http::Method::GET, &length.to_string(), 0)
    }

    fn request(&self, method: http::Method, path: &str, body: usize) -> Request<Content> {
        let uri = format!("http://{}/{path}", self.mesh.address("app"));
        Request::builder().method(method).uri(uri).body(Content::new(body, &self.moved)).unwrap()
    }

    /// Somebody else's requests are answered, small ones and one of a megabyte.
    fn others(&self, protocol: Protocol, when: &str) {
        let sender = self.connect(protocol);
        let begun = Instant::now();
        let (mut took, large) = self.runtime.block_on(async {
            let mut took = Vec::new();
            for length in [&[1000; MEANT][..], &[1_000_000]].concat() {
                let begun = Instant::now();
                let answering = async { read_on(sender.send(self.get(length)).await?.into_body(), 0).await };
                let got = timeout(PATIENCE, answering).await.unwrap_or_else(|_| panic!("no answer to others {when}"));
                assert_eq!(got, Ok(length), "{when}");
                took.push(begun.elapsed());
            }
            let large = took.pop().unwrap();
            (took, large)
        });
        took.sort_unstable();
        eprintln!(
            "slow: {protocol:?}: others {when}: {:.0} requests/s, at worst {:.1?}; 1 MB in {large:.1?}",
            MEANT as f64 / begun.elapsed().saturating_sub(large).as_secs_f64(),
            took[took.len() - 1],
        );
    }

    fn wait_for<T>(&self, what: &str, came: impl Future<Output = T>) -> T {
        let waited = self.runtime.block_on(async { timeout(PATIENCE, came).await });
        waited.unwrap_or_else(|_| panic!("{what} did not come in {PATIENCE:?}"))
    }

    /// Waits until nothing moves any more: no bytes at their sources, and no work in the sidecars.
    fn settle(&self) {
        let look = || (self.moved.load(Ordering::Relaxed), SIDECARS.map(|pod| self.ticks(pod)));
        let (mut last, mut calm) = (look(), 0);
        until("everything to stand still", PATIENCE, || {
            let now = look();
            // A sidecar's own housekeeping is a tick now and then.
            let stands = now.0 == last.0 && now.1.iter().zip(last.1).all(|(now, last)| now - last <= 1);
            calm = if stands { calm + 1 } else { 0 };
            last = now;
            std::thread::sleep(Duration::from_millis(100));
            if calm >= 10 { Ok(()) } else { Err(format!("{} bytes have moved", now.0)) }
        })
        .unwrap();
    }

    // Hundredths of a second of CPU.
    fn ticks(&self, pod: &str) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid(pod))).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    }

    fn pid(&self, pod: &str) -> u32 {
        self.mesh.sidecar(pod).process.id()
    }

    fn weigh(&self) -> [Weight; 2] {
        SIDECARS.map(|pod| Weight::of(self.pid(pod)))
    }

    /// What each of the peers costs now.
    fn check(&self, what: &str, before: [Weight; 2], most: u64) {
        let grown: Vec<_> = self.weigh().into_iter().zip(before).map(|(now, before)| now.since(before)).collect();
        let each = |bytes: u64| bytes as f64 / 1024.0 / PEERS as f64;
        let [client, server] = grown[..] else { unreachable!() };
        eprintln!(
            "slow: {what}: {} MB moved; KiB each, RSS (anonymous): client's sidecar {:.1} ({:.1}), server's {:.1} ({:.1}), both {:.1}",
            self.moved.load(Ordering::Relaxed) / 1_000_000,
            each(client.resident),
            each(client.anonymous),
            each(server.resident),
            each(server.anonymous),
            each(client.resident + server.resident),
        );
        for (pod, grown) in SIDECARS.into_iter().zip(grown) {
            assert!(
                grown.resident < most * PEERS as u64,
                "{what}: {pod} has grown by {:.1} KiB each",
                each(grown.resident)
            );
        }
    }
}

const SIDECARS: [&str; 2] = ["client-0", "app-0"];

/// The kernel would hold megabytes for each of them, more than it has for all sockets of the machine, and then nobody's bytes move. What a
/// sidecar holds comes on top of it, and is what is weighed here.
fn few_buffers() {
    for (file, most) in [("tcp_rmem", 256 << 10), ("tcp_wmem", 256 << 10)] {
        std::fs::write(format!("/proc/sys/net/ipv4/{file}"), format!("4096 16384 {most}")).unwrap();
    }
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy)]
struct Weight {
    resident: u64,
    anonymous: u64,
}

impl Weight {
    fn of(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
        };
        Self { resident: field("VmRSS"), anonymous: field("RssAnon") }
    }

    fn since(self, before: Self) -> Self {
        Self {
            resident: self.resident.saturating_sub(before.resident),
            anonymous: self.anonymous.saturating_sub(before.anonymous),
        }
    }
}

fn readers(load: &Load) {
    let stage = Stage::set(load.protocol);
    let before = stage.weigh();
    let mut waiting = Vec::new();
    for _ in 0..load.connections.div_ceil(50) {
        let senders: Vec<_> = (0..load.connections.min(50)).map(|_| stage.connect(load.protocol)).collect();
        let asking = senders.iter().flat_map(|sender| (0..load.streams).map(move |_| sender)).map(async |sender| {
            let mut body = sender.send(stage.get(LENGTH)).await.unwrap().into_body();
            // Where a connection is shared, the first streams may use its window up.
            let begun =
                if load.streams == 1 { body.frame().await.unwrap().unwrap().into_data().unwrap().len() } else { 0 };
            (body, begun)
        });
        let came = stage.wait_for("heads", join_all(asking));
        waiting.extend(came);
    }
    assert_eq!(waiting.len(), PEERS);
    stage.settle();
    let what = format!("{load:?}, readers");
    stage.check(&what, before, EACH);
    stage.others(load.protocol, "meanwhile");
    stage.check(&what, before, EACH);
    // They read on for a little, and stop again.
    if load.streams == 1 {
        let reading = waiting.iter_mut().map(async |(body, at)| {
            let end = *at + (64 << 10);
            while *at < end {
                *at += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
        });
        stage.wait_for("some more", join_all(reading));
        stage.settle();
        stage.check(&format!("{what}, a little later"), before, EACH_MOVED);
    }
    let rest = waiting.split_off(SAMPLE);
    drop(rest);
    let reading = waiting.into_iter().map(|(body, at)| read_on(body, at));
    let read = stage.wait_for("the rest", join_all(reading));
    assert!(read.iter().all(|read| *read == Ok(LENGTH)), "{read:?}");
}

fn uploads(load: &Load) {
    let stage = Stage::set(load.protocol);
    let before = stage.weigh();
    let mut waiting = Vec::new();
    for _ in 0..load.connections {
        let sender = stage.connect(load.protocol);
        for _ in 0..load.streams {
            let path = if waiting.len() < SAMPLE { LATE } else { "never" };
            let (sender, request) = (sender.clone(), stage.request(http::Method::POST, path, LENGTH));
            waiting.push(stage.runtime.spawn(async move { sender.send(request).await }));
        }
    }
    stage.settle();
    let what = format!("{load:?}, uploads");
    stage.check(&what, before, EACH_MOVED);
    stage.others(load.protocol, "meanwhile");
    stage.check(&what, before, EACH_MOVED);
    waiting.truncate(SAMPLE);
    stage.listen.send_replace(true);
    let answered = stage.wait_for("answers", join_all(waiting));
    for answer in answered {
        assert_eq!(answer.unwrap().unwrap().status(), 200);
    }
}
