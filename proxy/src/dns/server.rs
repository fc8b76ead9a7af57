//! Questions of the application, by UDP and TCP, and their answers.
//!
//! Bounds: [`MAX_QUESTIONS`] at once, [`MAX_CONNECTIONS`] by TCP, each idle for [`IDLE`] at most; an answer that the asker cannot take by UDP
//! is cut short, so that it asks by TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cache::Key;
use super::flight::Resolver;
use super::{count, walk};

/// Questions that are being answered.
const MAX_QUESTIONS: usize = 1024;
/// Connections by TCP.
const MAX_CONNECTIONS: usize = 128;
const IDLE: Duration = Duration::from_secs(10);
/// What every asker takes by UDP, and the most that we send over it.
const LEAST_PAYLOAD: u16 = 512;
const MOST_PAYLOAD: u16 = 4096;

/// Both transports at one address.
pub struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// Opens both.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        let tcp = crate::capture::listen(addr)?;
        let udp = std::net::UdpSocket::bind(tcp.local_addr()?)?;
        udp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }

    /// Where.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// Answers on all of these, for ever.
pub async fn serve(resolver: Arc<Resolver>, sockets: Vec<Sockets>) {
    let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for Sockets { udp, tcp } in sockets {
        match (UdpSocket::from_std(udp), TcpListener::from_std(tcp)) {
            (Ok(udp), Ok(tcp)) => {
                tokio::spawn(by_udp(Arc::clone(&resolver), Arc::new(udp), Arc::clone(&questions)));
                tokio::spawn(by_tcp(Arc::clone(&resolver), tcp, Arc::clone(&connections)));
            }
            (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "DNS cannot be served at one address"),
        }
    }
    std::future::pending::<()>().await;
}

async fn by_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>, questions: Arc<Semaphore>) {
    let mut buffer = vec![0; usize::from(MOST_PAYLOAD)];
    loop {
        // An error is of one datagram, such as an answer that its asker did not wait for.
        let Ok((length, asker)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let Ok(place) = Arc::clone(&questions).try_acquire_owned() else {
            (resolver.bound_hit)("dns_questions");
            continue;
        };
        let question = buffer.get(..length).unwrap_or_default().to_vec();
        let (resolver, socket) = (Arc::clone(&resolver), Arc::clone(&socket));
        tokio::spawn(async move {
            if let Some((message, limit)) = reply(&resolver, &question).await {
                let whole = message.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(limit));
                if let Some(bytes) = whole.or_else(|| message.truncate().to_vec().ok()) {
                    let _ = socket.send_to(&bytes, asker).await;
                }
            }
            drop(place);
        });
    }
}

async fn by_tcp(resolver: Arc<Resolver>, listener: TcpListener, connections: Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
            (resolver.bound_hit)("dns_connections");
            continue;
        };
        let resolver = Arc::clone(&resolver);
        tokio::spawn(async move {
            let _ = connection(&resolver, stream).await;
            drop(place);
        });
    }
}

// One question after the other.
async fn connection(resolver: &Arc<Resolver>, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let read = async {
            let mut question = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut question).await?;
            Ok::<_, io::Error>(question)
        };
        let question = timeout(IDLE, read).await??;
        let Some((message, _)) = reply(resolver, &question).await else { return Ok(()) };
        let bytes = message.to_vec().map_err(io::Error::other)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// The reply, and how many bytes of it the asker takes by UDP. `None`: it is no question.
async fn reply(resolver: &Arc<Resolver>, question: &[u8]) -> Option<(Message, u16)> {
    let asked = Message::from_vec(question).ok()?;
    if asked.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut message = Message::response(asked.metadata.id, asked.metadata.op_code);
    message.metadata.recursion_desired = asked.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = asked.metadata.checking_disabled;
    message.add_queries(asked.queries.iter().cloned());
    let edns = asked.edns.as_ref();
    let limit = edns.map_or(LEAST_PAYLOAD, |edns| edns.max_payload().clamp(LEAST_PAYLOAD, MOST_PAYLOAD));
    let dnssec = edns.is_some_and(|edns| edns.flags().dnssec_ok);
    if edns.is_some() {
        let mut ours = Edns::new();
        ours.set_max_payload(MOST_PAYLOAD);
        ours.set_dnssec_ok(dnssec);
        message.set_edns(ours);
    }
    let refusal = refusal(&asked);
    if let Some(code) = refusal {
        count(&resolver.counters.refused);
        message.metadata.response_code = code;
        return Some((message, limit));
    }
    let query = asked.queries.first()?;
    let mut name = query.name().to_lowercase();
    name.set_fqdn(true);
    let key = Key { name, kind: query.query_type(), dnssec };
    let (answer, from) = walk::answer(resolver, &key).await;
    resolver.counted(&answer, from);
    message.metadata.response_code = answer.code;
    message.add_answers(answer.records.iter().cloned());
    message.add_authorities(answer.authority.iter().cloned());
    Some((message, limit))
}

fn refusal(asked: &Message) -> Option<ResponseCode> {
    let [query] = asked.queries.as_slice() else { return Some(ResponseCode::FormErr) };
    if asked.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    (transfer || query.query_class() != DNSClass::IN).then_some(ResponseCode::Refused)
}
