//! An application that keeps every byte that it is given, and reads requests more strictly than any server does.
//!
//! Invariants
//! - Every connection has a number, in the order in which they came, and every event is told with that of its connection: of two connections
//!   nobody can say whose bytes or whose end come first.
//! - What is told at the end is all that was ever sent here: each connection was read until its end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::world::listen;

/// For every connection to end, once nobody calls.
const SOON: Duration = Duration::from_secs(10);

/// Something that has come.
#[derive(Debug)]
pub struct Event {
    /// The number of its connection.
    pub conn: usize,
    pub what: What,
    pub bytes: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// A whole request: method and target, and its body without the framing.
    Request(String, Vec<u8>),
    /// A request that has begun and did not end.
    Unfinished,
    /// No request, or one that another server could take for something else; why.
    Fault(String),
}

#[derive(Default)]
struct Log {
    events: Vec<Event>,
    // Connections that have come, and those of them that have ended.
    came: usize,
    ended: usize,
    // Nobody calls any more: a connection without a request under way is ended by us.
    over: bool,
}

/// The application.
#[derive(Clone)]
pub struct Recorder {
    pub addr: SocketAddr,
    log: watch::Sender<Log>,
}

impl Recorder {
    pub async fn start() -> Self {
        let log = watch::Sender::new(Log::default());
        let kept = log.clone();
        let addr = listen(move |stream, _| {
            kept.send_modify(|log| log.came += 1);
            let conn = kept.borrow().came;
            let log = kept.clone();
            async move {
                record(stream, conn, &log).await;
                log.send_modify(|log| log.ended += 1);
            }
        })
        .await;
        Self { addr, log }
    }

    /// All that has come, in the order in which it was read, when nobody calls any more. `None`: a request stays half given.
    pub async fn finish(&self) -> Option<Vec<Event>> {
        self.log.send_modify(|log| log.over = true);
        let ended = async {
            // Connections are accepted in their order: when this one is ended, those that the proxy has made have all come.
            let mut last = TcpStream::connect(self.addr).await.unwrap();
            assert_eq!(last.read(&mut [0]).await.unwrap(), 0);
            drop(last);
            // The log is kept by `self`.
            drop(self.log.subscribe().wait_for(|log| log.came == log.ended).await.unwrap());
        };
        timeout(SOON, ended).await.ok()?;
        let mut events = Vec::new();
        self.log.send_modify(|log| events = std::mem::take(&mut log.events));
        Some(events)
    }
}

async fn record(mut stream: TcpStream, conn: usize, log: &watch::Sender<Log>) {
    let mut bytes = Vec::new();
    let mut over = log.subscribe();
    let mut told = false;
    loop {
        let (what, len) = match read_request(&bytes) {
            Ok(Some((request, len))) => (request, len),
            Err(fault) => (What::Fault(fault), bytes.len()),
            Ok(None) => {
                let read = tokio::select! {
                    read = stream.read_buf(&mut bytes) => Some(read),
                    () = async { drop(over.wait_for(|log| log.over).await) }, if bytes.is_empty() && !told => None,
                };
                let Some(read) = read else {
                    told = true;
                    let _ = stream.shutdown().await;
                    continue;
                };
                if read.is_ok_and(|n| n > 0) {
                    continue;
                }
                if !bytes.is_empty() {
                    log.send_modify(|log| log.events.push(Event { conn, what: What::Unfinished, bytes }));
                }
                return;
            }
        };
        let rest = bytes.split_off(len);
        let given = std::mem::replace(&mut bytes, rest);
        let faulty = matches!(what, What::Fault(_));
        let close = String::from_utf8_lossy(&given).contains("Connection: close");
        let answer = match &given[..given.len().min(5)] {
            b"HEAD " => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            b"CONNE" => "HTTP/1.1 405 No\r\nContent-Length: 2\r\n\r\nno",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        log.send_modify(|log| log.events.push(Event { conn, what, bytes: given }));
        if faulty || stream.write_all(answer.as_bytes()).await.is_err() || close {
            return;
        }
    }
}

/// The first request in `bytes` and how long it is; `None` if it has not ended.
fn read_request(bytes: &[u8]) -> Result<Option<(What, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if lines_end_well(bytes, false) { Ok(None) } else { Err("a bare CR or LF".to_owned()) };
    };
    if !lines_end_well(&bytes[..end], true) {
        return Err("a bare CR or LF".to_owned());
    }
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let [method, target, "HTTP/1.1"] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Err(format!("first line {line:?}"));
    };
    if !is_name(method) || target.is_empty() || target.chars().any(|c| c.is_ascii_control() || c == '#') {
        return Err(format!("first line {line:?}"));
    }
    let fields = lines.map(read_field).collect::<Result<Vec<_>, _>>()?;
    let framing = framing(method, target, &fields)?;
    let body = &bytes[end + 4..];
    let whole = match framing {
        Framing::Length(length) => (body.len() >= length).then(|| (body[..length].to_vec(), length)),
        Framing::Chunked => read_chunks(body)?,
    };
    Ok(whole.map(|(body, len)| (What::Request(format!("{method} {target}"), body), end + 4 + len)))
}

// Only CRLF ends a line; the last byte of what is not whole may be the first half of one.
fn lines_end_well(bytes: &[u8], whole: bool) -> bool {
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'\n' => at > 0 && bytes[at - 1] == b'\r',
        b'\r' => bytes.get(at + 1).map_or(!whole, |next| *next == b'\n'),
        byte => *byte >= 0x20 && *byte != 0x7f || *byte == b'\t',
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

// A field as every server reads it: a name, a colon, a space at most, a value.
fn read_field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("no colon in {line:?}"))?;
    if !is_name(name) {
        return Err(format!("the name {name:?}"));
    }
    Ok((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()))
}

enum Framing {
    Length(usize),
    Chunked,
}

fn framing(method: &str, target: &str, fields: &[(String, String)]) -> Result<Framing, String> {
    // Servers that hand fields to CGI-like programs cannot tell these apart.
    let all = |wanted: &str| -> Vec<&str> {
        let same = |(name, _): &&(String, String)| name.replace('_', "-") == wanted;
        fields.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    };
    for hop in ["keep-alive", "proxy-connection", "te", "http2-settings", "x-weft-reason"] {
        if !all(hop).is_empty() {
            return Err(format!("{hop} came this far"));
        }
    }
    if !matches!(all("expect")[..], [] | ["100-continue"]) {
        return Err("an expectation that there is not".to_owned());
    }
    if !matches!(all("connection")[..], [] | ["upgrade"]) || all("connection").is_empty() != all("upgrade").is_empty() {
        return Err("an upgrade that is not one".to_owned());
    }
    if all("x-forwarded-client-cert")
        .iter()
        .any(|value| !value.starts_with("By=spiffe://cluster.local/ns/shop/sa/cart;"))
    {
        return Err("a forged identity".to_owned());
    }
    let [host] = all("host")[..] else { return Err("not one Host".to_owned()) };
    if let Some((_, rest)) = target.split_once("://")
        && rest.split('/').next().is_none_or(|named| !named.eq_ignore_ascii_case(host))
    {
        return Err(format!("{target} of Host {host:?}"));
    }
    match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Ok(Framing::Length(0)),
        (_, _) if method == "CONNECT" => Err("CONNECT with a body".to_owned()),
        ([length], []) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|error| format!("length {length}: {error}"))
        }
        ([], ["chunked"]) => Ok(Framing::Chunked),
        (lengths, codings) => Err(format!("lengths {lengths:?} and codings {codings:?}")),
    }
}

/// The body and how long its chunks are; `None` if they have not ended.
fn read_chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    let line = |at: usize| bytes[at..].windows(2).position(|two| two == b"\r\n").map(|end| &bytes[at..at + end]);
    loop {
        let Some(size) = line(at) else { return Ok(None) };
        let text = std::str::from_utf8(size).unwrap_or("?");
        if text.is_empty() || text.len() > 8 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("chunk size {text:?}"));
        }
        let size = usize::from_str_radix(text, 16).map_err(|error| error.to_string())?;
        at += text.len() + 2;
        if size == 0 {
            break;
        }
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        body.extend_from_slice(&bytes[at..at + size]);
        if &bytes[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk that is longer than its size".to_owned());
        }
        at += size + 2;
    }
    loop {
        let Some(trailer) = line(at) else { return Ok(None) };
        at += trailer.len() + 2;
        if trailer.is_empty() {
            return Ok(Some((body, at)));
        }
        let (name, _) = read_field(&String::from_utf8_lossy(trailer))?;
        if name != "x-sum" {
            return Err(format!("{name} in the trailers"));
        }
    }
}

#[test]
fn it_reads_as_strictly_as_it_says() {
    let good = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n";
    let (request, len) = read_request(format!("{good}GET").as_bytes()).unwrap().unwrap();
    assert_eq!((request, len), (What::Request("POST /a".to_owned(), b"ab".to_vec()), good.len()));
    for (good_part, bad) in [
        ("\r\n\r\n2", "\n\r\n2"),
        ("chunked", "xchunked"),
        ("Host: a\r\n", ""),
        ("chunked", "chunked\r\nContent-Length: 1"),
        ("chunked", "chunked\r\nContent_Length: 1"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("2\r\n", "02;x\r\n"),
        ("ab\r\n", "ab\n\r\n"),
        ("X-Sum", "Host"),
        ("/a", "http://b/"),
    ] {
        let bad = good.replacen(good_part, bad, 1);
        assert!(read_request(bad.as_bytes()).is_err(), "{bad:?}");
    }
    for end in 0..good.len() {
        assert_eq!(read_request(&good.as_bytes()[..end]), Ok(None), "{end}");
    }
}
