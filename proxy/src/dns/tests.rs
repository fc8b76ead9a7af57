//! The resolver over real sockets, with a name server whose table a test changes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SOA};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::cache::{Answer, Cache, Found, Key, MAX_ENTRIES, STALE, STALE_TTL};
use super::flight::Resolver;
use super::*;

const WAIT: Duration = Duration::from_secs(10);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn key(text: &str) -> Key {
    Key { name: name(text), kind: RecordType::A, dnssec: false }
}

fn positive(text: &str, ttl: u32) -> Answer {
    let record = Record::from_rdata(name(text), ttl, RData::A(A(Ipv4Addr::new(10, 0, 0, 1))));
    Answer { code: ResponseCode::NoError, records: vec![record], authority: Vec::new() }
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.example."), name("x.example."), 1, 1, 1, 1, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(data))
}

#[test]
fn an_answer_is_kept_for_its_time_and_used_beyond_it_for_a_bounded_time() {
    let mut cache = Cache::default();
    let begun = Instant::now();
    let at = |seconds| begun + Duration::from_secs(seconds);
    cache.put(key("a."), Arc::new(positive("a.", 30)), begun);
    assert_eq!(cache.get(&key("a."), at(10)), Found::Fresh(positive("a.", 20)));
    assert_eq!(cache.get(&key("a."), at(30)), Found::Stale(positive("a.", STALE_TTL)));
    assert_eq!(cache.get(&key("a."), at(31) + STALE), Found::Nothing);
    assert_eq!(cache.get(&key("b."), begun), Found::Nothing);
}

#[test]
fn how_long_an_answer_lives_is_what_its_records_say() {
    let negative = |authority| Answer { code: ResponseCode::NXDomain, records: Vec::new(), authority };
    assert_eq!(positive("a.", 30).lifetime(), Some(30));
    assert_eq!(positive("a.", 100_000).lifetime(), Some(3600));
    assert_eq!(positive("a.", 0).lifetime(), None);
    assert_eq!(negative(vec![soa(30, 5)]).lifetime(), Some(5));
    assert_eq!(negative(vec![soa(300, 3000)]).lifetime(), Some(60));
    assert_eq!(negative(Vec::new()).lifetime(), None, "RFC 2308: without an SOA it is not kept");
    assert_eq!(Answer::failure().lifetime(), None);
    let long = Answer { records: vec![soa(5, 5); 200], ..positive("a.", 30) };
    assert_eq!(long.lifetime(), None);
}

#[test]
fn the_cache_is_bounded() {
    let mut cache = Cache::default();
    let now = Instant::now();
    cache.put(key("first."), Arc::new(positive("first.", 1)), now);
    for number in 0..MAX_ENTRIES {
        cache.put(key(&format!("n{number}.")), Arc::new(positive("x.", 60)), now);
    }
    assert_eq!(cache.len(), MAX_ENTRIES);
    assert_eq!(cache.get(&key("first."), now), Found::Nothing, "the nearest to its end made room");
}

#[test]
fn a_walk_begins_at_the_first_domain_of_the_search_list_only() {
    let search: Vec<Name> = ["shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local."].map(name).to_vec();
    let steps = |text: &str| walk::steps(&name(text), &search).iter().map(Name::to_string).collect::<Vec<_>>();
    assert_eq!(
        steps("api.example.com.shop.svc.cluster.local."),
        [
            "api.example.com.shop.svc.cluster.local.",
            "api.example.com.svc.cluster.local.",
            "api.example.com.cluster.local.",
            "api.example.com."
        ]
    );
    assert_eq!(steps("db.shop.svc.cluster.local.").last().unwrap(), "db.cluster.local.", "never as a top-level domain");
    for whole in ["api.example.com.", "db.svc.cluster.local.", "shop.svc.cluster.local.", "."] {
        assert_eq!(steps(whole), [whole]);
    }
    assert_eq!(walk::steps(&name("a.b."), &[]).len(), 1);
}

/// A name server: what it knows, how often it was asked, and whether it answers.
#[derive(Default)]
struct Server {
    known: Mutex<BTreeMap<String, (Vec<Ipv4Addr>, u32)>>,
    asked: AtomicU64,
    by_tcp: AtomicU64,
    away: AtomicBool,
    slow: AtomicU64,
}

impl Server {
    async fn start() -> (Arc<Self>, SocketAddr) {
        let this = Arc::new(Self::default());
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(addr).await.unwrap();
        let server = Arc::clone(&this);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                server.asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(server.slow.load(Ordering::Relaxed))).await;
                if !server.away.load(Ordering::Relaxed) {
                    let message = server.answer(&buffer[..length]);
                    let bytes = message.to_vec().unwrap();
                    let bytes = if bytes.len() > 1232 { message.truncate().to_vec().unwrap() } else { bytes };
                    udp.send_to(&bytes, from).await.unwrap();
                }
            }
        });
        let server = Arc::clone(&this);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                server.by_tcp.fetch_add(1, Ordering::Relaxed);
                let mut question = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut question).await.unwrap();
                let bytes = server.answer(&question).to_vec().unwrap();
                stream.write_u16(bytes.len() as u16).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        (this, addr)
    }

    fn set(&self, name: &str, count: u8, ttl: u32) {
        let all = (0..count).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        self.known.lock().insert(name.to_owned(), (all, ttl));
    }

    fn answer(&self, question: &[u8]) -> Message {
        let asked = Message::from_vec(question).unwrap();
        let query = asked.queries[0].clone();
        let mut reply = Message::response(asked.metadata.id, OpCode::Query);
        match self.known.lock().get(&query.name().to_ascii()) {
            Some((all, ttl)) if query.query_type() == RecordType::A => {
                for ip in all {
                    reply.add_answer(Record::from_rdata(query.name().clone(), *ttl, RData::A(A(*ip))));
                }
            }
            Some(_) => _ = reply.add_authority(soa(60, 60)),
            None => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.add_authority(soa(60, 60));
            }
        }
        reply.add_query(query);
        reply
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A resolver in front of that server, serving on loopback.
async fn resolver() -> (Arc<Server>, Arc<Resolver>, SocketAddr) {
    let (server, upstream) = Server::start().await;
    let search = ["shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local."].map(name).to_vec();
    let zone = Zone::new(vec![upstream], search);
    let resolver = Arc::new(Resolver::new(zone, None, Arc::default(), Arc::new(|_| {})));
    let sockets = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = sockets[0].local_addr().unwrap();
    tokio::spawn(server::serve(Arc::clone(&resolver), sockets));
    (server, resolver, addr)
}

fn question(text: &str, kind: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

async fn by_udp(to: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), to).await.unwrap();
    let mut buffer = [0; 5000];
    let (length, _) = tokio::time::timeout(WAIT, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((reply.metadata.id, &reply.queries), (message.metadata.id, &message.queries));
    reply
}

async fn ask(to: SocketAddr, text: &str) -> Message {
    by_udp(to, &question(text, RecordType::A, None)).await
}

#[tokio::test]
async fn what_was_asked_once_is_not_asked_again() {
    let (server, resolver, addr) = resolver().await;
    server.set("db.example.com.", 1, 30);
    for text in ["db.example.com.", "DB.Example.com.", "db.example.com."] {
        assert_eq!(ask(addr, text).await.answers.len(), 1);
    }
    for _ in 0..2 {
        assert_eq!(ask(addr, "nobody.example.com.").await.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(server.asked(), 2, "what is not there is remembered too");
    assert_eq!(resolver.counters.cached.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn who_asks_the_same_at_once_waits_for_one_question() {
    let (server, _, addr) = resolver().await;
    server.set("db.example.com.", 1, 0);
    server.slow.store(200, Ordering::Relaxed);
    let all: Vec<_> = (0..20).map(|_| tokio::spawn(async move { ask(addr, "db.example.com.").await })).collect();
    for one in all {
        assert_eq!(one.await.unwrap().answers.len(), 1);
    }
    assert_eq!(server.asked(), 1, "though nothing may be kept");
}

#[tokio::test]
async fn the_first_question_of_a_walk_is_answered_with_its_result() {
    let (server, resolver, addr) = resolver().await;
    server.set("api.example.com.", 1, 30);
    server.set("db.other.svc.cluster.local.", 1, 30);
    for (asked, found) in [
        ("api.example.com.shop.svc.cluster.local.", "api.example.com."),
        ("db.other.shop.svc.cluster.local.", "db.other.svc.cluster.local."),
    ] {
        let reply = ask(addr, asked).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!(reply.answers[0].name, name(asked));
        assert!(matches!(&reply.answers[0].data, RData::CNAME(cname) if cname.0 == name(found)), "{reply:?}");
        assert_eq!(reply.answers[1].name, name(found));
        // The other family: the same name, which has none of it.
        let six = by_udp(addr, &question(asked, RecordType::AAAA, None)).await;
        assert_eq!((six.metadata.response_code, six.answers.len()), (ResponseCode::NoError, 1));
    }
    let asked = server.asked();
    let walked = resolver.counters.walked.load(Ordering::Relaxed);
    assert_eq!(walked, 4);
    // Where there is nothing, the answer is of what was asked for, and the rest of the walk is known.
    for step in ["no.shop.svc.cluster.local.", "no.svc.cluster.local.", "no.cluster.local."] {
        assert_eq!(ask(addr, step).await.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(server.asked(), asked + 3);
    assert_eq!(resolver.counters.walked.load(Ordering::Relaxed), walked);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_comes_by_tcp() {
    let (server, _, addr) = resolver().await;
    server.set("many.example.com.", 200, 0);
    server.set("some.example.com.", 60, 30);
    // 60 addresses are more than 512 bytes, and fewer than 1,232.
    assert!(ask(addr, "some.example.com.").await.metadata.truncation);
    let whole = by_udp(addr, &question("some.example.com.", RecordType::A, Some(4096))).await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 60));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let asked = question("many.example.com.", RecordType::A, None).to_vec().unwrap();
    for _ in 0..2 {
        stream.write_u16(asked.len() as u16).await.unwrap();
        stream.write_all(&asked).await.unwrap();
        let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 200);
    }
    assert!(server.by_tcp.load(Ordering::Relaxed) >= 1, "ours too was cut short");
}

#[tokio::test]
async fn while_nobody_answers_what_was_known_is_used() {
    let (server, resolver, addr) = resolver().await;
    server.set("db.example.com.", 1, 1);
    assert_eq!(ask(addr, "db.example.com.").await.answers.len(), 1);
    server.away.store(true, Ordering::Relaxed);
    // Its second passes.
    let until = Instant::now() + WAIT;
    while resolver.counters.stale.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < until);
        let reply = ask(addr, "db.example.com.").await;
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 1));
    }
    // What was never known fails, and says so.
    assert_eq!(ask(addr, "new.example.com.").await.metadata.response_code, ResponseCode::ServFail);
    assert!(resolver.counters.failed.load(Ordering::Relaxed) >= 1);
    server.away.store(false, Ordering::Relaxed);
    let fresh = || ask(addr, "new.example.com.");
    while fresh().await.metadata.response_code != ResponseCode::NXDomain {
        assert!(Instant::now() < until);
    }
}

#[tokio::test]
async fn what_this_does_not_do_is_refused_and_no_question_has_no_answer() {
    let (server, _, addr) = resolver().await;
    let transfer = by_udp(addr, &question("example.com.", RecordType::AXFR, None)).await;
    assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
    let mut update = question("example.com.", RecordType::A, None);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(by_udp(addr, &update).await.metadata.response_code, ResponseCode::NotImp);
    // Noise and answers are passed over; the next question is served.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"noise", addr).await.unwrap();
    let mut answer = question("example.com.", RecordType::A, None);
    answer.metadata.message_type = MessageType::Response;
    socket.send_to(&answer.to_vec().unwrap(), addr).await.unwrap();
    server.set("example.com.", 1, 30);
    assert_eq!(ask(addr, "example.com.").await.answers.len(), 1);
    assert_eq!(server.asked(), 1);
}

#[test]
fn a_name_server_in_the_pod_itself_is_refused() {
    let error = system_servers(&["127.0.0.1".parse().unwrap()]).unwrap_err();
    assert!(error.contains("in this pod"), "{error}");
    assert!(system_servers(&[]).unwrap_err().contains("--dns"));
    let servers = system_servers(&["10.96.0.10".parse().unwrap(), "fd00::a".parse().unwrap()]).unwrap();
    assert_eq!(servers, ["10.96.0.10:53".parse().unwrap(), "[fd00::a]:53".parse().unwrap()]);
}
