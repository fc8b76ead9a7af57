//! Bodies and ends of connections, through both sides.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::app::{App, scripted_app};
use super::world::*;
use crate::discovery::snapshot::{Backend, Destination};

/// The outbound side of a client whose calls all go to `application` through both proxies.
async fn through(application: std::net::SocketAddr) -> std::net::SocketAddr {
    let world = World::new();
    let server = world.proxy("cart", enforces(open_port(true)));
    let far = inbound_side(&server, application).await;
    let destination = Destination::Service(service(backend("cart", vec![endpoint(far, Some("cart"))])).into());
    outbound_side(&world.proxy("web", calls(cluster_ip(), destination)), cluster_ip()).await
}

#[tokio::test]
async fn responses_without_a_body_leave_the_connection_usable() {
    for answer in [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ] {
        let side = through(scripted_app(answer, 3).await).await;
        let mut client = Client::connect(side).await;
        for _ in 0..3 {
            let (head, _) = client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await;
            assert!(head.starts_with(&answer[..12]), "{head}");
        }
    }
}

#[tokio::test]
async fn a_head_request_keeps_its_length_and_its_connection() {
    let side = through(scripted_app("HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", 3).await).await;
    let mut client = Client::connect(side).await;
    for _ in 0..3 {
        client.0.write_all(b"HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert_ne!(client.0.read_buf(&mut head).await.unwrap(), 0);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.contains("content-length: 4000"), "{head}");
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n";
    let side = through(scripted_app(answer, 1).await).await;
    let mut client = Client::connect(side).await;
    client.0.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n") || !all.windows(3).any(|three| three == b"0\r\n") {
        assert_ne!(client.0.read_buf(&mut all).await.unwrap(), 0, "{}", all.escape_ascii());
    }
    let all = String::from_utf8(all).unwrap();
    // Chunks are framed anew, so theirs may be others; what is in them and behind them is the same.
    assert!(all.contains("5\r\nabcde\r\n0\r\nx-sum: 5\r\n\r\n"), "{all}");
}

#[tokio::test]
async fn a_body_larger_than_all_buffers_passes_both_ways() {
    let app = App::start("cart").await;
    let mut client = Client::connect(through(app.addr).await).await;
    let body = "0123456789abcdef".repeat(200_000);
    let head = format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", body.len());
    let (mut read, mut write) = tokio::io::split(&mut client.0);
    let sending = async {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(body.as_bytes()).await.unwrap();
    };
    let reading = async {
        let mut all = Vec::new();
        while !all.ends_with(body.as_bytes()) {
            assert_ne!(read.read_buf(&mut all).await.unwrap(), 0);
        }
    };
    tokio::join!(sending, reading);
}

#[tokio::test]
async fn a_response_that_never_ends_streams_and_its_end_by_the_client_reaches_the_server() {
    let gone = Arc::new(Notify::new());
    let told = Arc::clone(&gone);
    let addr = listen(move |mut stream, _| {
        let told = Arc::clone(&told);
        async move {
            let mut seen = [0; 1024];
            let _ = stream.read(&mut seen).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
            // Ends when the client's side has gone.
            while stream.read(&mut seen).await.is_ok_and(|n| n > 0) {}
            told.notify_one();
        }
    })
    .await;
    let mut client = Client::connect(through(addr).await).await.0;
    client.write_all(b"GET /events HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    while !all.windows(7).any(|seven| seven == b"data: 1") {
        assert_ne!(client.read_buf(&mut all).await.unwrap(), 0);
    }
    drop(client);
    gone.notified().await;
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_taken_for_whole() {
    let read = Arc::new(Notify::new());
    let wait = Arc::clone(&read);
    let addr = listen(move |mut stream, _| {
        let wait = Arc::clone(&wait);
        async move {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
            wait.notified().await;
        }
    })
    .await;
    let mut client = Client::connect(through(addr).await).await.0;
    client.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"half") {
        assert_ne!(client.read_buf(&mut all).await.unwrap(), 0);
    }
    read.notify_one();
    // It ends, or is reset; either way short of the promised length.
    let _ = client.read_to_end(&mut all).await;
    assert!(all.ends_with(b"half"), "{}", all.escape_ascii());
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let addr = listen(|mut stream, _| async move {
        let _ = stream.read(&mut [0; 16]).await;
        crate::tcp::reset_on_close(&stream);
    })
    .await;
    let proxy = World::new().proxy("web", calls(cluster_ip(), Destination::Outside));
    let mut client = Client::connect(outbound_side(&proxy, addr).await).await.0;
    client.write_all(b"*1\r\n").await.unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_external_name_is_resolved_and_called_at_its_port() {
    let app = App::start("far").await;
    let external = Backend {
        name: "far".into(),
        label: "shop/far".into(),
        sni: "far.shop.80.weft".into(),
        spread: weft_engine::balance::Spread::default(),
        external: Some(("localhost".into(), app.addr.port())),
        endpoints: arc_swap::ArcSwap::default(),
        habit: crate::detect::Habit::default(),
        retries: weft_engine::retry::Budget::default(),
        unassigned: std::sync::OnceLock::new(),
    };
    let destination = Destination::Service(service(Arc::new(external)).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    for _ in 0..5 {
        let (head, body) = client.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && body.starts_with("far GET /a\n"), "{head}{body}");
    }
    assert!(app.connections() <= 2);
}

#[tokio::test]
async fn idle_connections_to_an_application_are_closed_before_it_closes_them() {
    let app = App::start("a").await;
    let target = endpoint(app.addr, None);
    let destination = Destination::Service(service(backend("a", vec![Arc::clone(&target)])).into());
    let proxy = World::new().proxy("web", calls(cluster_ip(), destination));
    let mut client = Client::connect(outbound_side(&proxy, cluster_ip()).await).await;
    client.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert_eq!(target.state.pools.mine().idle(), 1);
    let closing = async {
        while target.state.pools.mine().idle() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closing).await.unwrap();
}
