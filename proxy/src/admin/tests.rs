//! What the three ports answer, and to whom.

use std::net::SocketAddr;
use std::time::SystemTime;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_engine::identity::Identity;

use super::*;
use crate::discovery::snapshot::{Inbound, Snapshot};
use crate::identity::Current;
use crate::telemetry::{Direction, SeriesKey, Tls};

fn web() -> Identity {
    Identity::new("cluster.local", "shop", "web").unwrap()
}

/// Serves the admin ports of a proxy; their addresses.
fn serving(shared: &Arc<Shared>) -> (SocketAddr, SocketAddr, SocketAddr) {
    let any = || crate::capture::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let listeners = Listeners { metrics: any(), health: any(), local: any() };
    let control = away();
    let addr = |listener: &std::net::TcpListener| listener.local_addr().unwrap();
    let addrs = (addr(&listeners.metrics), addr(&listeners.health), addr(&listeners.local));
    tokio::spawn(serve(Arc::clone(shared), control, listeners));
    addrs
}

/// Control at a port that nobody listens on.
fn away() -> Target {
    let names = crate::resolver::resolver(&["127.0.0.1:1".parse().unwrap()], None).unwrap();
    Target::new(&["127.0.0.1:1".to_owned()], None, names).unwrap()
}

async fn ask(addr: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn certified(shared: &Shared, life: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(&dir.path().join("ca"), "cluster.local").unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = key.csr(&web()).unwrap();
    let chain = ca.issue(&csr, &web(), life, SystemTime::now()).unwrap();
    let svid = Svid::new(key, &chain).unwrap();
    shared.identity.install(Arc::new(Current::new(Arc::new(svid), ca.roots()).unwrap()));
}

#[tokio::test]
async fn readiness_says_what_is_missing_and_goes_off_with_the_drain() {
    let inbound = Inbound { workload: "shop/pod".into(), ..Inbound::default() };
    let shared = crate::testing::shared(web(), Snapshot { inbound: Arc::new(inbound), ..Snapshot::default() });
    let (_, health, local) = serving(&shared);
    let (status, why) = ask(health, "GET", "/healthz/ready").await;
    assert_eq!((status, why.contains("no valid certificate")), (503, true), "{why}");
    // It would be over with the next request.
    certified(&shared, Duration::from_secs(1));
    assert_eq!(ask(health, "GET", "/healthz/ready").await.0, 503);
    // Who waits for it hears of it as soon as it is.
    let (waited, ()) = tokio::join!(ask(health, "GET", "/healthz/ready?wait=60"), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        certified(&shared, Duration::from_hours(1));
    });
    assert_eq!(waited, (200, "ready\n".to_owned()));
    assert_eq!(ask(health, "GET", "/healthz/ready").await, (200, "ready\n".to_owned()));
    assert_eq!(ask(local, "GET", "/drain").await.0, 405);
    assert_eq!(ask(local, "POST", "/drain").await.0, 202);
    let (status, why) = ask(health, "GET", "/healthz/ready").await;
    assert_eq!((status, why.starts_with("draining")), (503, true), "{why}");
    assert_eq!(ask(health, "GET", "/healthz/live").await.0, 200);
    assert!(shared.drain.begun());
}

#[tokio::test]
async fn pages_are_where_they_belong() {
    let shared = crate::testing::shared(web(), Snapshot::default());
    let (metrics, health, local) = serving(&shared);
    let (status, text) = ask(metrics, "GET", "/metrics").await;
    assert_eq!((status, text.contains("weft_proxy_build_info")), (200, true), "{text}");
    assert_eq!(ask(metrics, "POST", "/metrics").await.0, 405);
    // What changes the proxy, or tells much of it, is on loopback alone.
    for addr in [metrics, health] {
        for path in ["/snapshot", "/config", "/drain"] {
            assert_eq!(ask(addr, "POST", path).await.0, 404);
        }
    }
    let (status, config) = ask(local, "GET", "/config").await;
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!((status, &config["identity"]), (200, &web().to_string().into()));
    let (status, tables) = ask(local, "GET", "/snapshot").await;
    assert_eq!((status, serde_json::from_str::<serde_json::Value>(&tables).is_ok()), (200, true), "{tables}");
}

#[tokio::test]
async fn drain_wait_says_that_control_is_away_and_stops_nothing() {
    let mut shared = crate::testing::shared(web(), Snapshot::default());
    Arc::get_mut(&mut shared).unwrap().config.drain_deadline = Duration::from_secs(2);
    certified(&shared, Duration::from_hours(1));
    let (_, health, _) = serving(&shared);
    let (status, why) = ask(health, "GET", "/drain-wait").await;
    assert_eq!((status, why.contains("control could not be told")), (503, true), "{why}");
    assert!(why.ends_with("turned away, no request is in hand\n"), "{why}");
    assert!(!shared.drain.begun());
}

#[tokio::test(start_paused = true)]
async fn without_control_drain_wait_turns_away_and_waits_for_what_is_in_hand() {
    for (ends, said) in [(true, "no request is in hand\n"), (false, "requests are still in hand\n")] {
        let mut shared = crate::testing::shared(web(), Snapshot::default());
        Arc::get_mut(&mut shared).unwrap().config.drain_deadline = Duration::from_secs(20);
        certified(&shared, Duration::from_hours(1));
        shared.telemetry.begun(Direction::Inbound);
        let (begun, admin) = (tokio::time::Instant::now(), Admin { shared: Arc::clone(&shared), control: away() });
        let asked = tokio::spawn(async move { drain_wait::answer(&admin).await });
        while !shared.drain.turns_away(|| shared.clock.now()) {
            assert!(!asked.is_finished());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Control had its time.
        assert!(begun.elapsed() >= Duration::from_secs(15), "{:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(!asked.is_finished());
        if ends {
            shared.telemetry.ended(Direction::Inbound);
        }
        let why = asked.await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert!(why.ends_with(said.as_bytes()), "{why:?}");
        assert_eq!(begun.elapsed() < Duration::from_millis(19_900), ends, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn drain_wait_waits_for_plain_clients_to_be_gone() {
    let shared = crate::testing::shared(web(), Snapshot::default());
    let plain = SeriesKey {
        direction: Direction::Inbound,
        source: "unknown".into(),
        destination: "shop/web".into(),
        destination_workload: "shop/web-0".into(),
        tls: Tls::Plain,
        sni: None,
    };
    shared.telemetry.request_series(&plain);
    let begun = tokio::time::Instant::now();
    drain_wait::plain_clients_gone(&shared).await;
    assert!(begun.elapsed() >= Duration::from_millis(2900), "{:?}", begun.elapsed());
    // They have been gone for a while: no more waiting.
    drain_wait::plain_clients_gone(&shared).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn drain_wait_waits_for_the_last_requests() {
    let shared = crate::testing::shared(web(), Snapshot::default());
    shared.telemetry.begun(Direction::Inbound);
    let waiting = tokio::spawn({
        let shared = Arc::clone(&shared);
        async move { drain_wait::last_requests(&shared).await }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!waiting.is_finished());
    shared.telemetry.ended(Direction::Inbound);
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_sidecar_that_stops_with_its_application_waits_for_it() {
    let mut shared = crate::testing::shared(web(), Snapshot::default());
    Arc::get_mut(&mut shared).unwrap().config.drain_deadline = Duration::from_secs(1);
    let (_, health, _) = serving(&shared);
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let path = format!("/drain-wait?gone={}", application.local_addr().unwrap().port());
    let asked = tokio::spawn(async move { ask(health, "GET", &path).await });
    // It is looked for, and looked for again.
    for _ in 0..2 {
        drop(application.accept().await.unwrap());
    }
    assert!(!asked.is_finished());
    drop(application);
    assert_eq!(asked.await.unwrap().0, 503);
}
