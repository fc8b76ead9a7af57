//! Host names against a name server that counts its questions.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use weft_engine::reason::Reason;

use super::super::counters::Counters;
use super::super::names::Names;
use super::*;
use crate::resolver::resolver;

/// What the server answers about IPv4 addresses.
#[derive(Default)]
struct Server {
    /// Last byte of the address; 0 is "no such name", 255 is silence.
    last: AtomicU8,
    ttl: AtomicU64,
    asked: AtomicU64,
}

async fn server(ttl: u64) -> (SocketAddr, Arc<Server>) {
    let server = Arc::new(Server { last: 1.into(), ttl: ttl.into(), ..Server::default() });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let local = socket.local_addr().unwrap();
    let answering = Arc::clone(&server);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let last = answering.last.load(Ordering::Relaxed);
            let mut message = Message::from_vec(&buffer[..len]).unwrap();
            let query = message.queries[0].clone();
            if last == 255 {
                continue;
            }
            message.metadata.message_type = MessageType::Response;
            if last == 0 {
                message.metadata.response_code = ResponseCode::NXDomain;
            } else if query.query_type() == RecordType::A {
                answering.asked.fetch_add(1, Ordering::Relaxed);
                let ttl = u32::try_from(answering.ttl.load(Ordering::Relaxed)).unwrap();
                let address = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
                message.add_answer(Record::from_rdata(query.name().clone(), ttl, address));
            }
            socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
        }
    });
    (local, server)
}

fn names(server: SocketAddr) -> (Names, Counters) {
    (Names::new(resolver(&[server], None).unwrap()), Counters::default())
}

fn at(last: u8) -> Vec<IpAddr> {
    vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))]
}

#[tokio::test]
async fn an_answer_is_kept_for_its_time_and_asked_for_once() {
    let (addr, server) = server(60).await;
    let (names, counters) = names(addr);
    let names = Arc::new(names);
    let one = || async { names.lookup("db.example.com", NOW, &counters).await.unwrap().to_vec() };
    let all = futures_util::future::join_all((0..50).map(|_| one())).await;
    assert!(all.iter().all(|found| *found == at(1)));
    assert_eq!(server.asked.load(Ordering::Relaxed), 1, "whoever waits shares the answer");
    assert_eq!(counters.lookups.load(Ordering::Relaxed), 1);
    assert_eq!(names.len(), 1);
    names.sweep(NOW, IDLE);
    assert_eq!(names.len(), 1);
    names.sweep(NOW + IDLE, IDLE);
    assert_eq!(names.len(), 0);
}

const IDLE: Duration = super::super::IDLE;

#[tokio::test]
async fn a_name_that_moves_is_followed_within_its_ttl() {
    let (addr, server) = server(1).await;
    let (names, counters) = names(addr);
    assert_eq!(*names.lookup("db.example.com", NOW, &counters).await.unwrap(), at(1));
    server.last.store(2, Ordering::Relaxed);
    let moved = std::time::Instant::now();
    while *names.lookup("db.example.com", NOW, &counters).await.unwrap() != at(2) {
        assert!(moved.elapsed() < Duration::from_secs(5), "the old address is used past its TTL");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(counters.lookups.load(Ordering::Relaxed) <= 3);
}

#[tokio::test]
async fn no_such_name_is_an_answer_and_silence_is_none() {
    let (addr, server) = server(1).await;
    let (names, counters) = names(addr);
    assert_eq!(*names.lookup("db.example.com", NOW, &counters).await.unwrap(), at(1));
    // Nobody answers: what was answered before is used on.
    server.last.store(255, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(*names.lookup("db.example.com", NOW, &counters).await.unwrap(), at(1));
    assert_eq!(counters.lookups_stale.load(Ordering::Relaxed), 1);
    assert!(matches!(names.lookup("other.example.com", NOW, &counters).await, Err(Reason::NameUnresolved)));
    // It is gone: that ends it.
    server.last.store(0, Ordering::Relaxed);
    let gone = std::time::Instant::now();
    while names.lookup("db.example.com", NOW, &counters).await.is_ok() {
        assert!(gone.elapsed() < Duration::from_secs(10), "a name that is gone is used on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
