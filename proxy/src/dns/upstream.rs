//! One question to the pod's name servers: by UDP, by TCP if the answer was cut short, the next server if one does not answer or cannot.
//!
//! Bounds: [`PATIENCE`] for each server and transport, [`ROUNDS`] through all servers. Only an answer from whom we asked, with our number and
//! our question, is taken; each question has a socket, and so a port, of its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::cache::{Answer, Key};
use super::{Counters, count};
use crate::resolver::connect_marked;

/// For one server and transport.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Through all servers.
const ROUNDS: usize = 2;
/// What a name server may send by UDP: it passes every network in one piece.
const PAYLOAD: u16 = 1232;

/// The answer of the first server that gives one; `None`: nobody does.
pub async fn ask(servers: &[SocketAddr], mark: Option<u32>, key: &Key, counters: &Counters) -> Option<Answer> {
    let mut refused = None;
    for _ in 0..ROUNDS {
        for server in servers {
            match ask_one(*server, mark, key, counters).await {
                Some(answer) if matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                    return Some(answer);
                }
                Some(answer) => refused = Some(answer),
                None => {}
            }
            count(&counters.upstream_failed);
        }
        // Who answered that it cannot will not be asked again at once.
        if refused.is_some() {
            break;
        }
    }
    refused
}

async fn ask_one(server: SocketAddr, mark: Option<u32>, key: &Key, counters: &Counters) -> Option<Answer> {
    let question = question(key);
    let bytes = question.to_vec().ok()?;
    count(&counters.upstream[0]);
    let by_udp = timeout(PATIENCE, by_udp(server, mark, &bytes, &question)).await.ok()?.ok()?;
    let message = if by_udp.metadata.truncation {
        count(&counters.upstream[1]);
        timeout(PATIENCE, by_tcp(server, mark, &bytes, &question)).await.ok()?.ok()?
    } else {
        by_udp
    };
    Some(Answer { code: message.metadata.response_code, records: message.answers, authority: message.authorities })
}

fn question(key: &Key) -> Message {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(key.name.clone(), key.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    edns.set_dnssec_ok(key.dnssec);
    message.set_edns(edns);
    message
}

fn is_answer(message: &Message, question: &Message) -> bool {
    message.metadata.message_type == MessageType::Response
        && message.metadata.id == question.metadata.id
        && message.queries == question.queries
}

async fn by_udp(server: SocketAddr, mark: Option<u32>, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let any = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not fit the question is somebody else's, and not the end.
        if let Ok(message) = Message::from_vec(buffer.get(..length).unwrap_or_default())
            && is_answer(&message, question)
        {
            return Ok(message);
        }
    }
}

async fn by_tcp(server: SocketAddr, mark: Option<u32>, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let mut stream = connect_marked(server, mark, PATIENCE).await?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    let message = Message::from_vec(&answer).map_err(io::Error::other)?;
    if is_answer(&message, question) {
        Ok(message)
    } else {
        Err(io::Error::other("it is not the answer to this question"))
    }
}
