//! Ends of HTTP/1 connections and messages, in the clear and through both sides: nobody takes for whole what is not, and nobody's end
//! becomes somebody else's beginning.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::raw::{Raw, app, direct, ways};
use crate::tcp::reset_on_close;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
const SOON: Duration = Duration::from_secs(10);

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\r\n")
}

#[tokio::test]
async fn a_response_that_comes_before_the_request_has_ended_is_read() {
    for closes in [false, true] {
        let addr = app(move |mut server| async move {
            server.head().await;
            server.say("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await;
            if !closes {
                // Reads nothing of it.
                std::future::pending::<()>().await;
            }
        })
        .await;
        for side in ways(addr).await {
            let mut client = Raw::connect(side).await;
            client.say(post(10 << 20)).await;
            client.say(vec![b'x'; 300_000]).await;
            let (head, body) = timeout(SOON, client.response()).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 413") && body == "no", "{head}");
            assert!(head.contains("connection: close"), "{head}");
            // And what it was about to send breaks nothing.
            client.say(vec![b'x'; 4 << 20]).await;
            assert_eq!(client.rest().await, (String::new(), true));
        }
    }
}

#[tokio::test]
async fn a_response_in_pieces_is_read() {
    let addr = app(|mut server| async move {
        while server.try_head().await.is_some() {
            for byte in ["HTTP/1.1 103 Hints\r\nA: b\r\n\r\n", OK].concat().as_bytes() {
                server.say([*byte]).await;
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        for _ in 0..2 {
            client.say(GET).await;
            assert_eq!(client.head().await, "HTTP/1.1 103 Hints\r\nA: b\r\n\r\n");
            assert_eq!(client.response().await.1, "ok");
        }
    }
}

#[tokio::test]
async fn a_request_that_breaks_off_never_becomes_whole() {
    for (request, came) in [
        ("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhalf", "half"),
        ("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "4\r\nhalf\r\n"),
    ] {
        let (told, seen) = (Arc::new(Notify::new()), Arc::<Mutex<Vec<String>>>::default());
        let (tell, see) = (Arc::clone(&told), Arc::clone(&seen));
        let addr = app(move |mut server| {
            let (tell, see) = (Arc::clone(&tell), Arc::clone(&see));
            async move {
                server.head().await;
                let rest = server.rest().await.0;
                see.lock().push(rest);
                tell.notify_one();
            }
        })
        .await;
        for side in ways(addr).await {
            let mut client = Raw::connect(side).await;
            client.say(request).await;
            drop(client);
            timeout(SOON, told.notified()).await.unwrap();
            let seen = std::mem::take(&mut *seen.lock());
            assert!(seen.len() == 1 && came.starts_with(&seen[0]), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_never_becomes_whole() {
    // What comes first, what comes once the client has heard of it, and how it ends.
    for (answer, more, resets) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "0\r\nX: y\r\n", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "x\r\n0\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok", "k", false),
        ("HTTP/1.1 200 OK\r\n\r\nok", "", true),
    ] {
        let heard = Arc::new(Notify::new());
        let hears = Arc::clone(&heard);
        let addr = app(move |mut server| {
            let heard = Arc::clone(&hears);
            async move {
                server.head().await;
                server.say(answer).await;
                heard.notified().await;
                server.say(more).await;
                if resets {
                    reset_on_close(&server.io);
                }
            }
        })
        .await;
        for side in ways(addr).await {
            for version in ["1.1", "1.0"] {
                let mut client = Raw::connect(side).await;
                client.say(format!("GET / HTTP/{version}\r\nHost: shop\r\n\r\n")).await;
                let head = client.head().await;
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                heard.notify_one();
                let (rest, in_order) = timeout(SOON, client.rest()).await.unwrap();
                assert!(!in_order, "{answer} {version}: {rest}");
                assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
            }
        }
    }
}

// The first connection answers once, then goes away with the second request; others answer always.
async fn leaving(reads: usize, connections: &Arc<AtomicUsize>) -> std::net::SocketAddr {
    let connections = Arc::clone(connections);
    app(move |mut server| {
        let first = connections.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            while let Some(head) = server.try_head().await {
                assert!(head.contains(" / HTTP/1.1\r\n"), "no request: {head}");
                server.say(OK).await;
                if first {
                    server.head().await;
                    server.take(reads).await;
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_connection_that_ends_with_the_next_request_costs_only_what_may_have_been_done() {
    for (request, status) in [(GET.to_owned(), "200"), (post(0), "502")] {
        let connections = Arc::default();
        let mut client = Raw::connect(direct(leaving(0, &connections).await).await).await;
        client.say(GET).await;
        assert_eq!(client.response().await.1, "ok");
        client.say(&request).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        client.say(GET).await;
        assert_eq!(client.response().await.1, "ok");
        assert_eq!(connections.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn a_body_too_large_to_be_kept_is_sent_once() {
    // The rest of it would be a request of its own: what is sent looks like many.
    let body = GET.repeat(6000);
    for method in ["PUT", "GET"] {
        let connections = Arc::default();
        let mut client = Raw::connect(direct(leaving(150_000, &connections).await).await).await;
        client.say(GET).await;
        assert_eq!(client.response().await.1, "ok");
        client.say(format!("{method} / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", body.len())).await;
        // It may not be read to its end.
        let _ = client.io.write_all(body.as_bytes()).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 502"), "{method}: {head}");
        assert_eq!(connections.load(Ordering::SeqCst), 1, "{method}");
    }
}

#[tokio::test]
async fn what_an_application_says_unasked_answers_nobody() {
    let connections = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&connections);
    let addr = app(move |mut server| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            while server.try_head().await.is_some() {
                server.say(if first { [OK, &OK.replace("ok", "no")].concat() } else { OK.to_owned() }).await;
            }
        }
    })
    .await;
    let mut client = Raw::connect(direct(addr).await).await;
    for _ in 0..3 {
        client.say(GET).await;
        assert_eq!(client.response().await.1, "ok");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

// As nginx and Envoy do: a client that has ended its side is taken for gone, and the application learns of it.
#[tokio::test]
async fn a_client_that_ends_its_side_is_gone() {
    let told = Arc::new(Notify::new());
    let tell = Arc::clone(&told);
    let addr = app(move |mut server| {
        let tell = Arc::clone(&tell);
        async move {
            server.head().await;
            server.rest().await;
            tell.notify_one();
        }
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        client.say(GET).await;
        client.io.shutdown().await.unwrap();
        timeout(SOON, told.notified()).await.unwrap();
        assert_eq!(client.rest().await.0, "");
    }
}

#[tokio::test]
async fn an_application_is_not_read_further_than_its_client_reads() {
    const ALL: usize = 64 << 20;
    let written = Arc::<AtomicUsize>::default();
    let stalled = Arc::new(Notify::new());
    let (count, stall) = (Arc::clone(&written), Arc::clone(&stalled));
    let addr = app(move |mut server| {
        let (count, stall) = (Arc::clone(&count), Arc::clone(&stall));
        async move {
            server.head().await;
            server.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {ALL}\r\n\r\n")).await;
            let piece = vec![b'x'; 64 << 10];
            let mut left = ALL;
            while left > 0 {
                let writing = server.io.write(&piece[..left.min(piece.len())]);
                tokio::pin!(writing);
                let n = match timeout(Duration::from_millis(500), &mut writing).await {
                    Ok(n) => n.unwrap(),
                    Err(_) => {
                        stall.notify_one();
                        writing.await.unwrap()
                    }
                };
                count.fetch_add(n, Ordering::SeqCst);
                left -= n;
            }
        }
    })
    .await;
    let mut client = Raw::connect(direct(addr).await).await;
    client.say(GET).await;
    timeout(SOON, stalled.notified()).await.expect("somebody holds all of it");
    // The kernel's buffers of three sockets, and one read of ours.
    let held = written.load(Ordering::SeqCst);
    assert!(held < 20 << 20, "{held}");
    client.head().await;
    let mut read = 0;
    while read < ALL {
        read += client.take((1 << 20).min(ALL - read)).await.len();
    }
}
