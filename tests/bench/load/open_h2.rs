//! The open loop over HTTP/2. The runtime's timers are a millisecond coarse, so a thread of its own keeps time and hands each request over
//! when it is due; the latency counts from then, as over HTTP/1.1.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

use super::Report;
use super::open::{Args, LATE};

/// Requests that are due and wait for the runtime's thread.
const MAX_DUE: usize = 100_000;

type Sender = SendRequest<Empty<Bytes>>;

/// Sends the load.
pub fn run(args: &Args) -> io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(send(args))
}

async fn send(args: &Args) -> io::Result<Report> {
    let mut senders = Vec::new();
    for _ in 0..args.connections {
        senders.push(timeout(LATE, connect(args)).await??);
    }
    let request = Request::get(format!("http://{}/", args.to)).body(()).map_err(io::Error::other)?;
    let total = args.total();
    let report = Arc::new(Mutex::new(Report::default()));
    let start = Instant::now() + Duration::from_millis(10);
    let mut due = clock(args, start)?;
    let mut under_way = JoinSet::new();
    let mut next = senders.iter().cycle();
    while let Some(since) = due.recv().await {
        let Some(sender) = next.next().cloned() else { break };
        let (request, report) = (request.clone(), report.clone());
        under_way.spawn(async move {
            let answered = timeout(LATE, exchange(sender, request)).await;
            let mut report = report.lock();
            if matches!(answered, Ok(true)) {
                report.completed += 1;
                report.times.push(since.elapsed().as_nanos() as u64);
            } else {
                report.failed += 1;
            }
        });
        // What has ended is forgotten at once.
        while under_way.try_join_next().is_some() {}
    }
    let end = tokio::time::Instant::from_std(args.due(start, total) + LATE);
    while let Ok(Some(_)) = timeout_at(end, under_way.join_next()).await {}
    let mut report = std::mem::take(&mut *report.lock());
    report.failed = total - report.completed;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

async fn connect(args: &Args) -> io::Result<Sender> {
    let stream = TcpStream::connect(args.to).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Whether it was answered as it should be.
async fn exchange(mut sender: Sender, request: Request<()>) -> bool {
    let request = request.map(|()| Empty::new());
    let Ok(()) = sender.ready().await else { return false };
    let Ok(response) = sender.send_request(request).await else { return false };
    response.status() == StatusCode::OK && response.into_body().collect().await.is_ok()
}

/// Says each time at which a request is due, then.
fn clock(args: &Args, start: Instant) -> io::Result<mpsc::Receiver<Instant>> {
    let times: Vec<Instant> = (0..args.total()).map(|number| args.due(start, number)).collect();
    let (tell, told) = mpsc::channel(MAX_DUE);
    std::thread::Builder::new().name("clock".to_owned()).spawn(move || {
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        for due in times {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if tell.blocking_send(due).is_err() {
                return;
            }
        }
    })?;
    Ok(told)
}
