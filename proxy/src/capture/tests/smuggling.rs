//! The corpus of requests that could be read in two ways, tried on each way through the proxy. The application is a recorder with a
//! reader of its own, stricter than any server: what it cannot read in one way alone fails the test.

use std::net::SocketAddr;
use std::slice::Chunks;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::corpus::{Case, Expect, cases};
use super::recorder::{Event, Recorder, What};
use super::world::*;
use crate::Shared;
use crate::discovery::snapshot::{Destination, InboundPort, Protocol, Service, Snapshot};
use crate::upstream::Speak;
use crate::upstream::connect::connect;

const SOON: Duration = Duration::from_secs(10);
/// Stands behind each case: answered if the connection lived on, and a sign of what was taken for a body if it is missing.
const CANARY: &str = "GET /canary HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";

/// Another client's, when the case is over.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";

/// How a case comes to the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From our own application, out through one sidecar and in through another.
    Outbound,
    /// In the clear, to a permissive port.
    Plain,
    /// From a peer with a certificate, whose own sidecar has let it pass.
    Mesh,
}

#[tokio::test]
async fn no_request_becomes_two_on_its_way_out() {
    try_all(Way::Outbound, Protocol::Detect).await;
}

#[tokio::test]
async fn no_request_becomes_two_in_the_clear() {
    try_all(Way::Plain, Protocol::Detect).await;
}

#[tokio::test]
async fn no_request_becomes_two_in_mesh_tls() {
    try_all(Way::Mesh, Protocol::Detect).await;
}

#[tokio::test]
async fn on_a_port_that_is_said_to_speak_http_nothing_is_opaque() {
    for way in [Way::Outbound, Way::Plain, Way::Mesh] {
        try_all(way, Protocol::Http1).await;
    }
}

#[tokio::test]
async fn no_request_becomes_two_in_pieces() {
    for way in [Way::Outbound, Way::Plain, Way::Mesh] {
        let small = cases().into_iter().filter(|case| case.bytes.len() < 4 << 10);
        try_these(small, way, Protocol::Detect, Some(5)).await;
    }
}

#[test]
fn the_corpus_is_what_it_says() {
    let cases = cases();
    assert!(cases.len() >= 200, "{}", cases.len());
    for (at, case) in cases.iter().enumerate() {
        assert!(!case.rfc.is_empty(), "{}", case.name);
        assert!(cases[..at].iter().all(|other| other.name != case.name), "two cases are called {}", case.name);
    }
}

async fn try_all(way: Way, protocol: Protocol) {
    try_these(cases(), way, protocol, None).await;
}

// `step`: sent so many bytes at a time.
async fn try_these(cases: impl IntoIterator<Item = Case>, way: Way, protocol: Protocol, step: Option<usize>) {
    let world = World::new();
    let client = world.proxy("web", Snapshot::default());
    let server = world.proxy("cart", enforces(InboundPort { protocol, ..open_port(false) }));
    let mut faults = Vec::new();
    for case in cases {
        if let Err(fault) = try_case((&client, &server), way, &case, protocol, step).await {
            faults.push(format!("{} (RFC {}): {fault}", case.name, case.rfc));
        }
    }
    assert!(faults.is_empty(), "{way:?}, {} faults:\n{}", faults.len(), faults.join("\n"));
}

// With a recorder of its own behind both proxies.
async fn try_case(
    (client, server): (&Arc<Shared>, &Arc<Shared>),
    way: Way,
    case: &Case,
    protocol: Protocol,
    step: Option<usize>,
) -> Result<(), String> {
    let recorder = Recorder::start().await;
    let inbound = inbound_side(server, recorder.addr).await;
    let cart = endpoint(inbound, Some("cart"));
    let own = backend("cart", vec![Arc::clone(&cart)]);
    let destination = Destination::Service(Service { protocol, ..service(own) }.into());
    crate::testing::replace(client, calls(cluster_ip(), destination));
    let outbound = outbound_side(client, cluster_ip()).await;
    // Each connection that is being served holds its proxy.
    let idle = (Arc::strong_count(client), Arc::strong_count(server));

    let sent = if case.last { case.bytes.to_vec() } else { [&case.bytes, CANARY.as_bytes()].concat() };
    let pieces = sent.chunks(step.unwrap_or(sent.len()));
    let answer = match way {
        Way::Outbound => say(open(outbound).await, pieces, case.last).await?,
        Way::Plain => say(open(inbound).await, pieces, case.last).await?,
        Way::Mesh => say(connect(client, &cart, None, Speak::H1).await.unwrap().stream, pieces, case.last).await?,
    };
    // Whoever comes next, perhaps on the same connection to the application, gets the answer to its own request.
    let next = say(open(outbound).await, NEXT.as_bytes().chunks(NEXT.len()), false).await?;
    // With the endpoint go the connections that are kept to it, and behind them both proxies come to the end of all that was sent.
    crate::testing::replace(client, Snapshot::default());
    drop(cart);
    let at_rest = async {
        while (Arc::strong_count(client), Arc::strong_count(server)) != idle {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, at_rest).await.map_err(|_| "a connection is served for ever".to_owned())?;
    let Some(mut seen) = recorder.finish().await else { return Err("a request stays half given".to_owned()) };
    let opaque = case.opaque && way != Way::Mesh && protocol == Protocol::Detect;
    let judged = take_next(&mut seen, &next)
        .and_then(|()| if opaque { judge_opaque(&sent, &seen) } else { judge(case, &statuses(&answer), &seen) });
    judged.map_err(|why| {
        let seen: Vec<_> =
            seen.iter().map(|event| (event.conn, &event.what, event.bytes.escape_ascii().to_string())).collect();
        let mut told = format!("answered {:?}, the application saw {seen:?}", answer.escape_ascii().to_string());
        told.truncate(2000);
        format!("{why}; {told}")
    })
}

// What is left is the case's own. The next client's request came whole, on a connection that bore only whole ones before, and nothing after; it
// was answered. What came first of two connections says nothing: the end of one may be read after the next one's request.
fn take_next(seen: &mut Vec<Event>, answer: &[u8]) -> Result<(), String> {
    let wanted = What::Request("GET /next".to_owned(), Vec::new());
    let Some(at) = seen.iter().position(|event| event.what == wanted) else {
        return Err(format!("the next client's request did not come; it got {:?}", answer.escape_ascii().to_string()));
    };
    let next = seen.remove(at);
    let whole = |event: &Event| matches!(event.what, What::Request(..));
    if seen.iter().enumerate().any(|(i, event)| event.conn == next.conn && (i >= at || !whole(event))) {
        return Err("the next client's request shares a connection with what is not whole or not its own".to_owned());
    }
    if statuses(answer) != [200] {
        return Err(format!("the next client got {:?}", answer.escape_ascii().to_string()));
    }
    Ok(())
}

// As opaque bytes it is the application's own affair, but exactly as it was and with nothing beside it.
fn judge_opaque(sent: &[u8], seen: &[Event]) -> Result<(), String> {
    let came: Vec<u8> = seen.iter().flat_map(|event| event.bytes.clone()).collect();
    let together = seen.iter().all(|event| event.conn == seen[0].conn);
    if !came.is_empty() && together && sent.starts_with(&came) {
        Ok(())
    } else {
        Err("it did not pass as it was".to_owned())
    }
}

fn judge(case: &Case, statuses: &[u16], seen: &[Event]) -> Result<(), String> {
    let holds = |holds: bool, why: &str| if holds { Ok(()) } else { Err(why.to_owned()) };
    match case.expect {
        Expect::Refused(status) => {
            holds(statuses == [status], &format!("not refused with {status}"))?;
            holds(seen.is_empty(), "something passed")
        }
        Expect::Ended(status) => {
            holds(statuses.is_empty() || statuses == [status], "not ended")?;
            holds(seen.is_empty(), "something passed")
        }
        Expect::Then(line, status) => {
            let first = What::Request(line.to_owned(), Vec::new());
            holds(seen.len() == 1 && seen[0].what == first, "not what was sent")?;
            holds(statuses == [200, status], &format!("not refused with {status} after the first"))
        }
        Expect::Cut => {
            holds(!statuses.contains(&200), "it was answered")?;
            holds(seen.iter().all(|event| event.what == What::Unfinished) && seen.len() <= 1, "it became whole")
        }
        Expect::Passes(expected) => {
            let canary = (!case.last).then_some(("GET /canary", ""));
            let expected = expected.iter().copied().chain(canary);
            let expected: Vec<_> =
                expected.map(|(line, body)| What::Request(line.to_owned(), body.as_bytes().to_vec())).collect();
            holds(seen.iter().map(|event| &event.what).eq(&expected), "not what was sent")?;
            // The recorder grants no tunnel.
            holds(
                statuses.iter().filter(|status| [200, 405].contains(status)).count() == expected.len(),
                "not all were answered",
            )
        }
    }
}

async fn open(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

// Everything that comes back until the end, which a reset is too.
async fn say<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    pieces: Chunks<'_, u8>,
    last: bool,
) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    let talk = async {
        for piece in pieces {
            // The other end may have refused before all was said.
            let _ = stream.write_all(piece).await;
            let _ = stream.flush().await;
            // The proxy is on this thread, too: it looks at each piece by itself.
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
        }
        if last {
            let _ = stream.shutdown().await;
        }
        while stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {}
    };
    let ended = timeout(SOON, talk).await;
    ended.map_err(|_| format!("the connection stays open; answered {:?}", answer.escape_ascii().to_string()))?;
    Ok(answer)
}

// Of final responses: bodies of this test hold nothing that looks like one.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let after = text.match_indices("HTTP/1.1 ").chain(text.match_indices("HTTP/1.0 "));
    let codes = after.filter_map(|(at, found)| text.get(at + found.len()..at + found.len() + 3)?.parse().ok());
    codes.filter(|code| *code >= 200).collect()
}
