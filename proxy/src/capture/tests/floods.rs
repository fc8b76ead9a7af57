//! HTTP/2 clients that flood: each kind ends its own connection, is counted under its bound's name, and leaves others alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use weft_engine::reason::Reason;

use super::app::{App, grpc_app};
use super::world::*;
use crate::Shared;
use crate::discovery::snapshot::{Destination, Protocol, Service};
use crate::limits::memory::Memory;
use crate::telemetry::scrape;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frames that are sent at most: far more than any bound.
const MANY: u32 = 60_000;
const SOON: Duration = Duration::from_secs(20);

// An indexed `:method: POST`, `:scheme: http`, `:path: /`, and an authority.
const BLOCK: &[u8] = b"\x83\x86\x84\x41\x01a";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn opening() -> Vec<u8> {
    [PREFACE.to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 1, BLOCK)].concat()
}

fn bound(shared: &Shared, name: &str) -> f64 {
    let text = scrape::text(shared).unwrap();
    let line = format!("weft_bound_hit_total{{bound=\"{name}\"}} ");
    text.lines().find_map(|found| found.strip_prefix(&*line)?.parse().ok()).unwrap_or_default()
}

/// Sends the flood until the other end has had enough; gives the frames that it took.
async fn flood(addr: std::net::SocketAddr, each: impl Fn(u32) -> Vec<u8>) -> u32 {
    let (mut read, mut write) = TcpStream::connect(addr).await.unwrap().into_split();
    write.write_all(&opening()).await.unwrap();
    let drained = tokio::spawn(async move {
        let mut bytes = vec![0; 16 << 10];
        while read.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    let sending = async {
        for number in 1..MANY {
            if write.write_all(&each(number)).await.is_err() {
                return number;
            }
        }
        // All of it fitted into the sockets; whether it is refused is seen by the end of what comes.
        drained.await.unwrap();
        MANY
    };
    timeout(SOON, sending).await.expect("the flood is not ended")
}

#[tokio::test]
async fn each_kind_of_flood_ends_its_own_connection() {
    let world = World::new();
    let shared = world.proxy("say", enforces(open_port(false)));
    let addr = inbound_side(&shared, grpc_app().await).await;
    let reset = |number: u32| {
        let stream = 2 * number + 1;
        [frame(1, 4, stream, BLOCK), frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let continued = |number: u32| match number {
        1 => frame(1, 0, 3, BLOCK),
        _ => frame(9, 0, 3, &[0x40, 1, b'a', 1, b'b']),
    };
    type Each<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let kinds: [(&str, &[&str], Each<'_>); 7] = [
        ("rapid reset", &["h2_calm", "h2_resets"], &reset),
        ("CONTINUATION", &["h2_calm"], &continued),
        ("PING", &["h2_control_frames"], &|_| frame(6, 0, 0, &[0; 8])),
        ("SETTINGS", &["h2_control_frames"], &|_| frame(4, 0, 0, &[])),
        ("PRIORITY", &["h2_control_frames"], &|_| frame(2, 0, 3, &[0; 5])),
        ("WINDOW_UPDATE", &["h2_control_frames"], &|_| frame(8, 0, 0, &[0, 0, 0, 1])),
        ("empty DATA", &["h2_calm", "h2_control_frames"], &|_| frame(0, 0, 1, &[])),
    ];
    for (kind, bounds, each) in kinds {
        let hit = || bounds.iter().map(|name| bound(&shared, name)).sum::<f64>();
        let before = hit();
        let sent = flood(addr, each).await;
        let counted = timeout(SOON, async {
            while hit() <= before {
                tokio::task::yield_now().await;
            }
        });
        assert!(counted.await.is_ok(), "{kind}: not counted as any of {bounds:?} after {sent} frames");
    }
}

#[tokio::test(start_paused = true)]
async fn a_preface_that_does_not_come_is_not_waited_for() {
    let service = Service { protocol: Protocol::Http2, ..service(backend("say", Vec::new())) };
    let shared = World::new().proxy("web", calls(cluster_ip(), Destination::Service(service.into())));
    let addr = outbound_side(&shared, cluster_ip()).await;
    for part in [&b""[..], &PREFACE[..20], PREFACE] {
        let before = bound(&shared, "h2_preface_time");
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(part).await.unwrap();
        let mut came = Vec::new();
        // Its end, or a reset if something of ours was not read.
        let _ = stream.read_to_end(&mut came).await;
        assert!((bound(&shared, "h2_preface_time") - before - 1.0).abs() < f64::EPSILON, "{} bytes", part.len());
    }
}

#[tokio::test]
async fn without_memory_requests_are_refused_with_the_reason() {
    let world = World::new();
    let app = App::start("web").await.addr;
    let full = |snapshot| {
        let mut shared = Arc::into_inner(world.proxy("web", snapshot)).unwrap();
        shared.memory = Memory::shedding_for_ever();
        Arc::new(shared)
    };
    let inbound = full(enforces(open_port(false)));
    let outbound = full(calls(cluster_ip(), Destination::Endpoint(endpoint(app, None))));
    for (shared, addr) in
        [(&inbound, inbound_side(&inbound, app).await), (&outbound, outbound_side(&outbound, cluster_ip()).await)]
    {
        let (head, _) = Client::connect(addr).await.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(shared.memory.shed(), (0, 1));
        let text = scrape::text(shared).unwrap();
        assert!(text.contains(&format!("reason=\"{}\"}} 1\n", Reason::Overloaded)), "{text}");
    }
}
