//! Servers that end idle connections: what they do is learnt, and no request is lost to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::raw::{Raw, app};
use super::world::*;
use crate::Shared;
use crate::discovery::snapshot::Destination;

const POST: &str = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nbody";
const SOON: Duration = Duration::from_secs(10);

/// A server that ends connections after so much idle time, without a word, and what it has seen.
struct Impatient {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Impatient {
    async fn start(patience: Duration, says: &'static str) -> Self {
        let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (connected, requested) = (Arc::clone(&connections), Arc::clone(&requests));
        let addr = app(move |mut server| {
            connected.fetch_add(1, Ordering::SeqCst);
            let requested = Arc::clone(&requested);
            async move {
                // A first request is waited for.
                let mut limit = SOON;
                while let Ok(Some(_)) = timeout(limit, server.try_head()).await {
                    server.take(4).await;
                    requested.fetch_add(1, Ordering::SeqCst);
                    server.say(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{says}\r\nok")).await;
                    if patience.is_zero() {
                        return;
                    }
                    limit = patience;
                }
            }
        })
        .await;
        Self { addr, connections, requests }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The way out to it, and the way in; the metric that counts what it ends.
    async fn sides(&self) -> [(Arc<Shared>, SocketAddr); 2] {
        let world = World::new();
        let destination = Destination::Service(service(backend("a", vec![endpoint(self.addr, None)])).into());
        let out = world.proxy("web", calls(cluster_ip(), destination));
        let out_side = outbound_side(&out, cluster_ip()).await;
        let far = world.proxy("cart", enforces(open_port(false)));
        let in_side = inbound_side(&far, self.addr).await;
        [(out, out_side), (far, in_side)]
    }
}

async fn post(client: &mut Raw) {
    client.say(POST).await;
    let (head, body) = timeout(SOON, client.response()).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && body == "ok", "{head}");
}

/// A thousand requests with such gaps; all are answered, and none is processed twice.
async fn a_thousand(side: SocketAddr, server: &Impatient, least: u64, most: u64) {
    const CLIENTS: usize = 100;
    let before = server.requests.load(Ordering::SeqCst);
    let clients = (0..CLIENTS).map(|_| {
        tokio::spawn(async move {
            let mut client = Raw::connect(side).await;
            for _ in 0..10 {
                post(&mut client).await;
                sleep(Duration::from_millis(fastrand::u64(least..most))).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(server.requests.load(Ordering::SeqCst) - before, CLIENTS * 10);
}

#[tokio::test]
async fn what_a_server_does_is_learnt_and_no_post_is_lost() {
    let server = Impatient::start(Duration::from_millis(300), "").await;
    for (shared, side) in server.sides().await {
        let mut client = Raw::connect(side).await;
        post(&mut client).await;
        // Nobody asks for it: its end is heard of.
        let begun = Instant::now();
        let ended = || shared.telemetry.idle_closed.load(Ordering::Relaxed);
        while ended() == 0 {
            assert!(begun.elapsed() < SOON);
            sleep(Duration::from_millis(5)).await;
        }
        let before = server.connections();
        a_thousand(side, &server, 50, 400).await;
        let made = server.connections() - before;
        assert!(made < 900, "{made} connections: they are used again while that is safe");
        // It is we who close: of a thousand idle times few are as long as the server's patience.
        assert!(ended() < 100, "{}", ended());
    }
}

#[tokio::test]
async fn what_a_server_says_is_believed_and_no_post_is_lost() {
    let server = Impatient::start(Duration::from_secs(1), "Keep-Alive: timeout=1\r\n").await;
    let [(_, out), (_, within)] = server.sides().await;
    // One after the other: what they count is one server's.
    for side in [out, within] {
        a_thousand(side, &server, 400, 1100).await;
    }
}

#[tokio::test]
async fn a_connection_is_kept_as_long_as_its_server_says() {
    for (says, connections) in [("Keep-Alive: max=100, timeout=5\r\n", 1), ("", 2)] {
        let server = Impatient::start(Duration::from_secs(6), says).await;
        let [(_, side), _] = server.sides().await;
        let mut client = Raw::connect(side).await;
        post(&mut client).await;
        sleep(Duration::from_millis(2200)).await;
        post(&mut client).await;
        assert_eq!(server.connections(), connections, "{says}");
    }
}

#[tokio::test]
async fn a_server_that_ends_after_each_response_costs_no_request() {
    let server = Impatient::start(Duration::ZERO, "").await;
    for (shared, side) in server.sides().await {
        let before = server.connections();
        let mut client = Raw::connect(side).await;
        for _ in 0..50 {
            post(&mut client).await;
        }
        assert_eq!(server.connections() - before, 50);
        // After the first it was known.
        let ended = shared.telemetry.idle_closed.load(Ordering::Relaxed);
        assert!((1..5).contains(&ended), "{ended}");
    }
}
