//! The lab's name server: answers A and AAAA questions from a table that a test changes, on the node's port 53.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use weft::lab::{Lab, NODE};

type Names = Arc<Mutex<BTreeMap<String, (Vec<IpAddr>, u32)>>>;

/// A running name server; stops when dropped.
#[derive(Debug)]
pub struct Dns {
    names: Names,
    asked: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dns {
    /// Starts it on the node.
    ///
    /// # Panics
    /// If the port cannot be had.
    pub fn start(lab: &Lab) -> Self {
        let socket = lab.node().run(|| UdpSocket::bind((NODE, 53))).unwrap().expect("port 53 of the node");
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (names, asked, stop) = (Names::default(), Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (table, count, stopped) = (names.clone(), asked.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut question = [0; 1500];
            while !stopped.load(Ordering::Acquire) {
                let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                let Some(answer) = answer(&question[..length], &table) else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&answer, from);
            }
        });
        Self { names, asked, stop, thread: Some(thread) }
    }

    /// From now on `name` is at `address`, for `ttl` seconds.
    pub fn set(&self, name: &str, address: Ipv4Addr, ttl: u32) {
        self.set_all(name, &[address.into()], ttl);
    }

    /// The same for several addresses, of either family.
    pub fn set_all(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        self.names.lock().insert(format!("{name}."), (addresses.to_vec(), ttl));
    }

    /// Questions answered so far.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(question: &[u8], names: &Names) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).ok()?;
    let query = asked.queries.first()?.clone();
    let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    match names.lock().get(&query.name().to_lowercase().to_ascii()) {
        Some((addresses, ttl)) => {
            for address in addresses {
                let data = match (address, query.query_type()) {
                    (IpAddr::V4(ip), RecordType::A) => RData::A(A(*ip)),
                    (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(*ip)),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(query.name().clone(), *ttl, data));
            }
        }
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    reply.add_query(query);
    reply.to_vec().ok()
}
