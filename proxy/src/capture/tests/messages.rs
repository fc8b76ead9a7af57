//! HTTP/1 messages of all kinds, in the clear and through both sides: what a client and an application say arrives as they meant it.

use super::app::App;
use super::raw::{Raw, app, direct, meshed, ways};
use super::world::*;
use crate::discovery::snapshot::Destination;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n")
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_one_by_one() {
    for side in ways(App::start("a").await.addr).await {
        let mut client = Raw::connect(side).await;
        let first = "POST /1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n\r\nGET ";
        let second =
            "POST /2 HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n";
        client.say([first, second, &get("/3"), &get("/4")].concat()).await;
        for (line, end) in
            [("a POST /1\n", "\nGET "), ("a POST /2\n", "\nbody"), ("a GET /3\n", "\n"), ("a GET /4\n", "\n")]
        {
            let (head, body) = client.response().await;
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            assert!(body.starts_with(line) && body.ends_with(end), "{body}");
        }
    }
}

#[tokio::test]
async fn one_that_is_no_request_is_the_last_to_be_answered() {
    let a = App::start("a").await;
    for side in ways(a.addr).await {
        let mut client = Raw::connect(side).await;
        client.say([&get("/1"), "GET /2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &get("/3")].concat()).await;
        assert!(client.response().await.1.starts_with("a GET /1\n"));
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 400") && head.contains("connection: close"), "{head}");
        assert_eq!(client.rest().await, (String::new(), true));
    }
    assert_eq!(a.requests(), 2);
}

#[tokio::test]
async fn a_refused_request_does_not_cost_the_connection_if_its_body_is_short() {
    let destination = Destination::Service(service(backend("a", vec![])).into());
    let side = outbound_side(&World::new().proxy("web", calls(cluster_ip(), destination)), cluster_ip()).await;
    let mut client = Raw::connect(side).await;
    let post = "POST /1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 18\r\n\r\n";
    let body = "GET / HTTP/1.1\r\n\r\n";
    // The body with the head, behind the head, and in pieces; then the next.
    client.say([post, body].concat()).await;
    for pieces in [vec![body], vec!["GET ", "/ HTTP/1.1\r\n", "\r\n"]] {
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 503") && !head.contains("connection: close"), "{head}");
        client.say(post).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 503") && !head.contains("connection: close"), "{head}");
        for piece in pieces {
            client.say(piece).await;
        }
        client.say("POST /2 HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n").await;
    }
    client.response().await;
    // One that is too large to be waited for, or that may never come.
    for fields in ["Content-Length: 70000", "Content-Length: 4\r\nExpect: 100-continue", "Transfer-Encoding: chunked"] {
        let mut client = Raw::connect(side).await;
        client.say(format!("POST / HTTP/1.1\r\nHost: shop\r\n{fields}\r\n\r\n")).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("connection: close"), "{head}");
        client.say("4\r\n").await;
        assert_eq!(client.rest().await, (String::new(), true));
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_hears_it_from_the_application() {
    let addr = app(|mut server| async move {
        while let Some(head) = server.try_head().await {
            assert!(head.contains("Expect: 100-continue"), "{head}");
            server.say("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(server.take(4).await, "body");
            server.say(OK).await;
        }
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        for _ in 0..2 {
            client.say("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
            assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
            client.say("body").await;
            assert_eq!(client.response().await.1, "ok");
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_may_be_told_no() {
    for status in ["417 Expectation Failed", "413 Content Too Large"] {
        let addr = app(move |mut server| async move {
            server.head().await;
            server.say(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")).await;
        })
        .await;
        for side in ways(addr).await {
            let mut client = Raw::connect(side).await;
            client.say("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").await;
            let (head, body) = client.response().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")) && body == "no", "{head}");
            // It need not say what nobody wants to hear.
            assert!(head.contains("connection: close"), "{head}");
            assert_eq!(client.rest().await, (String::new(), true));
        }
    }
}

#[tokio::test]
async fn hints_reach_who_knows_them() {
    let addr = app(|mut server| async move {
        while server.try_head().await.is_some() {
            server.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: y\r\n\r\n").await;
            server.say(OK).await;
        }
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        client.say(get("/")).await;
        assert_eq!(client.head().await, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        assert_eq!(client.response().await.1, "ok");
        let mut old = Raw::connect(side).await;
        old.say("GET / HTTP/1.0\r\nHost: shop\r\n\r\n").await;
        let (all, ended) = old.rest().await;
        assert!(all.starts_with("HTTP/1.1 200 OK\r\n") && all.ends_with("\r\n\r\nok") && ended, "{all}");
    }
}

#[tokio::test]
async fn a_flood_of_hints_is_no_response() {
    let addr = app(|mut server| async move {
        server.head().await;
        // Fails once the proxy has had enough.
        let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
        let _ = tokio::io::AsyncWriteExt::write_all(&mut server.io, flood.as_bytes()).await;
        server.rest().await;
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        client.say(get("/")).await;
        let mut hints = 0;
        let head = loop {
            let head = client.head().await;
            if !head.starts_with("HTTP/1.1 103") {
                break head;
            }
            hints += 1;
        };
        assert!(hints <= 16, "{hints}");
        assert!(head.starts_with("HTTP/1.1 502") && head.contains("upstream_protocol"), "{head}");
    }
}

#[tokio::test]
async fn old_clients_get_what_they_can_read() {
    let addr = app(|mut server| async move {
        while let Some(head) = server.try_head().await {
            assert!(head.contains(" HTTP/1.1\r\n"), "{head}");
            let head = head.to_lowercase();
            assert!(!head.contains("connection:") && !head.contains("keep-alive"), "{head}");
            match head.as_bytes()[5] {
                b'l' => server.say(OK).await,
                b'c' => {
                    let chunks = "2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
                    server.say(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).await;
                }
                _ => {
                    server.say("HTTP/1.0 200 OK\r\n\r\nok").await;
                    return;
                }
            }
        }
    })
    .await;
    for side in ways(addr).await {
        for path in ["/length", "/chunks", "/end"] {
            for keep in ["", "Connection: Keep-Alive\r\n"] {
                let mut client = Raw::connect(side).await;
                let request = format!("GET {path} HTTP/1.0\r\n{keep}\r\n");
                client.say(&request).await;
                if path == "/length" && !keep.is_empty() {
                    let (head, body) = client.response().await;
                    assert!(head.contains("connection: keep-alive\r\n") && body == "ok", "{head}");
                    client.say("GET /length HTTP/1.0\r\n\r\n").await;
                }
                let (all, ended) = client.rest().await;
                assert!(
                    all.starts_with("HTTP/1.1 200 OK\r\n") && all.ends_with("\r\n\r\nok") && ended,
                    "{request}{all}"
                );
                assert!(all.contains("connection: close\r\n") && !all.contains("hunked"), "{all}");
            }
        }
    }
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn what_is_said_with_an_upgrade_is_for_the_new_protocol() {
    const EARLY: &str = "GET / HTTP/1.1\r\nBad Name: x\r\n\r\n\0\r\n";
    let addr = app(|mut server| async move {
        let head = server.head().await;
        assert!(head.contains("Upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
        server.say([GRANTED, "first word"].concat()).await;
        let early = server.take(EARLY.len()).await;
        server.say(early).await;
        assert_eq!(server.rest().await, ("bye".to_owned(), true));
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        client.say([UPGRADE, EARLY].concat()).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("connection: upgrade\r\n"), "{head}");
        assert_eq!(client.take(10).await, "first word");
        assert_eq!(client.take(EARLY.len()).await, EARLY);
        client.say("bye").await;
        tokio::io::AsyncWriteExt::shutdown(&mut client.io).await.unwrap();
        assert_eq!(client.rest().await, (String::new(), true));
    }
}

#[tokio::test]
async fn what_is_said_with_an_upgrade_that_is_refused_is_the_next_request() {
    for side in ways(App::start("a").await.addr).await {
        let mut client = Raw::connect(side).await;
        client.say([UPGRADE, &get("/next")].concat()).await;
        let (head, body) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 200") && body.starts_with("a GET /ws\n"), "{head}{body}");
        assert!(client.response().await.1.starts_with("a GET /next\n"));
    }
}

#[tokio::test]
async fn an_upgrade_that_is_granted_before_the_request_has_ended_waits_for_that() {
    let addr = app(|mut server| async move {
        server.head().await;
        server.say(GRANTED).await;
        let all = server.take(4 + 4 + 6).await;
        server.say(all).await;
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        let head = UPGRADE.replace("GET", "POST").replace("Host", "Content-Length: 8\r\nHost");
        client.say([&head, "half"].concat()).await;
        client.head().await;
        client.say("rest").await;
        client.say("tunnel").await;
        assert_eq!(client.rest().await, ("halfresttunnel".to_owned(), true));
    }
}

#[tokio::test]
async fn nobody_leaves_http_unasked() {
    let addr = app(|mut server| async move {
        server.head().await;
        server.say(GRANTED).await;
        server.rest().await;
    })
    .await;
    for side in ways(addr).await {
        let mut client = Raw::connect(side).await;
        client.say(get("/")).await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 502") && head.contains("upstream_protocol"), "{head}");
    }
}

#[tokio::test]
async fn a_tunnel_carries_bytes_and_a_refused_one_does_not() {
    let addr = app(|mut server| async move {
        loop {
            let head = server.head().await;
            if head.starts_with("CONNECT yes:80 ") {
                break;
            }
            server.say("HTTP/1.1 405 No\r\nContent-Length: 2\r\n\r\nno").await;
        }
        server.say("HTTP/1.1 200 OK\r\n\r\n").await;
        let early = server.take(6).await;
        server.say(early).await;
    })
    .await;
    for side in [direct(addr).await, meshed(addr).await] {
        let mut client = Raw::connect(side).await;
        client.say("CONNECT no:80 HTTP/1.1\r\nHost: no:80\r\n\r\n").await;
        let (head, body) = client.response().await;
        assert!(head.starts_with("HTTP/1.1 405") && body == "no", "{head}");
        client.say("CONNECT yes:80 HTTP/1.1\r\nHost: yes:80\r\n\r\n\0\r\n\r\n1").await;
        assert_eq!(client.head().await, "HTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(client.rest().await, ("\0\r\n\r\n1".to_owned(), true));
    }
}
