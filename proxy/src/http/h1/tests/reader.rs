//! A client's connection between requests, with paused time.

use std::future::poll_fn;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep, timeout};
use weft_engine::reason::Reason;

use super::super::serve::{IDLE_TIMEOUT, Next, Reader};
use super::super::wire::Wire;
use crate::detect::HEAD_TIMEOUT;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

struct Ends {
    client: DuplexStream,
    wire: Wire<DuplexStream>,
    reader: Reader,
}

fn ends() -> Ends {
    let (client, server) = duplex(1 << 20);
    Ends { client, wire: Wire::new(server), reader: Reader::new(1 << 16, None) }
}

impl Ends {
    async fn next(&mut self) -> Next {
        poll_fn(|cx| self.reader.poll(cx, &mut self.wire)).await
    }
}

fn is_get(next: &Next) -> bool {
    matches!(next, Next::Head(came) if came.bytes.ends_with(GET))
}

#[tokio::test(start_paused = true)]
async fn heads_come_one_by_one_however_they_are_sent() {
    let mut ends = ends();
    ends.client.write_all(&[GET, b"\r\n", GET, GET].concat()).await.unwrap();
    for left in [GET.len() * 2 + 2, GET.len(), 0] {
        assert!(is_get(&ends.next().await));
        assert_eq!(ends.wire.held().len(), left);
    }
    for piece in GET.chunks(3) {
        assert!(timeout(Duration::from_secs(1), ends.next()).await.is_err());
        ends.client.write_all(piece).await.unwrap();
    }
    assert!(is_get(&ends.next().await));
    drop(ends.client);
    let ended = poll_fn(|cx| ends.reader.poll(cx, &mut ends.wire)).await;
    assert!(matches!(ended, Next::Nothing));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_is_refused_however_it_trickles() {
    let mut ends = ends();
    let begun = Instant::now();
    let mut client = std::mem::replace(&mut ends.client, duplex(1).0);
    let trickle = tokio::spawn(async move {
        for byte in GET {
            client.write_all(&[*byte]).await.unwrap();
            sleep(HEAD_TIMEOUT / 20).await;
        }
        client
    });
    assert!(matches!(ends.next().await, Next::Refused(Reason::RequestTimeout)));
    assert_eq!(begun.elapsed().as_secs(), HEAD_TIMEOUT.as_secs());
    trickle.abort();
}

#[tokio::test(start_paused = true)]
async fn an_empty_line_begins_nothing() {
    let mut ends = ends();
    for piece in ["\r\n", "\r", "\n"] {
        ends.client.write_all(piece.as_bytes()).await.unwrap();
        assert!(timeout(Duration::from_secs(1), ends.next()).await.is_err());
    }
    assert!(timeout(HEAD_TIMEOUT * 2, ends.next()).await.is_err());
    ends.client.write_all(GET).await.unwrap();
    assert!(is_get(&ends.next().await));
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_is_let_go_after_one_to_two_hours() {
    let mut silent = ends();
    let begun = Instant::now();
    assert!(matches!(silent.next().await, Next::Nothing));
    assert_eq!(begun.elapsed().as_secs(), IDLE_TIMEOUT.as_secs());
    let mut ends = ends();
    for _ in 0..5 {
        // As long as there is a request now and then.
        assert!(timeout(IDLE_TIMEOUT * 9 / 10, ends.next()).await.is_err());
        ends.client.write_all(GET).await.unwrap();
        assert!(is_get(&ends.next().await));
    }
    let begun = Instant::now();
    assert!(matches!(ends.next().await, Next::Nothing));
    let idle = begun.elapsed();
    assert!(idle >= IDLE_TIMEOUT && idle <= IDLE_TIMEOUT * 2, "{idle:?}");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_came_byte_by_byte_is_not_read_anew_for_each() {
    // Its first line alone is as long as a head may be: read anew for each byte it would take minutes.
    let mut ends = ends();
    let began = std::time::Instant::now();
    for _ in 0..(1 << 16) - 2 {
        ends.client.write_all(b"G").await.unwrap();
        let pending = poll_fn(|cx| std::task::Poll::Ready(ends.reader.poll(cx, &mut ends.wire).is_pending())).await;
        assert!(pending);
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    ends.client.write_all(b"GGGG").await.unwrap();
    assert!(matches!(ends.next().await, Next::Refused(Reason::HeaderTooLarge | Reason::MalformedRequest)));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_breaks_off_is_no_request() {
    let mut ends = ends();
    ends.client.write_all(&GET[..GET.len() - 1]).await.unwrap();
    ends.client.shutdown().await.unwrap();
    assert!(matches!(ends.next().await, Next::Refused(Reason::MalformedRequest)));
}
