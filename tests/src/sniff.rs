//! A sniffer on the node: sees every packet between pods, through an `AF_PACKET` socket of its own.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use weft::lab::Lab;

/// All Ethernet protocols, in network byte order.
const ALL: i32 = 0x0003_u16.to_be() as i32;

/// Collects the bytes of all packets that cross the node until it is stopped.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u8>>,
}

impl Sniffer {
    /// Starts to listen on every interface of the node.
    ///
    /// # Panics
    /// If packets may not be listened to.
    pub fn start(lab: &Lab) -> Self {
        let socket = lab.node().run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL))));
        let mut socket = socket.unwrap().expect("an AF_PACKET socket");
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut packet = vec![0; 70_000];
            loop {
                match socket.read(&mut packet) {
                    Ok(length) => seen.extend_from_slice(&packet[..length]),
                    // Nothing for a moment: all that was sent before the stop has been read.
                    Err(_) if stopped.load(Ordering::Acquire) => return seen,
                    Err(_) => {}
                }
            }
        });
        Self { stop, thread }
    }

    /// Stops, and gives all bytes seen, one packet after the other.
    ///
    /// # Panics
    /// If the sniffer itself did.
    pub fn stop(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// Whether these bytes stand somewhere in those.
pub fn contains(seen: &[u8], what: &str) -> bool {
    seen.windows(what.len()).any(|window| window == what.as_bytes())
}
