//! Applications that speak first, played by the test: a database's handshake in MySQL's framing, and SMTP. Both halves of each stand here, the
//! server's as it runs in a pod and the client's as a test calls it.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;
use weft::lab::Pod;
use weft_tests::mesh::SOON;

/// An application in a pod: one thread a connection. It ends when dropped.
pub struct App {
    listener: Arc<TcpListener>,
    called: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl App {
    /// Listens on the pod's `port`; `talk` is given each connection. How it ends is the client's affair to notice.
    pub fn start(pod: &Pod, port: u16, talk: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = Arc::new(pod.listen(port).unwrap());
        let called = Arc::new(AtomicUsize::new(0));
        let (accepting, count, talk) = (Arc::clone(&listener), Arc::clone(&called), Arc::new(talk));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                count.fetch_add(1, Ordering::AcqRel);
                let talk = Arc::clone(&talk);
                std::thread::spawn(move || stream.set_read_timeout(Some(SOON)).and_then(|()| talk(stream)));
            }
        });
        Self { listener, called, thread: Some(thread) }
    }

    /// Connections that it was asked to take.
    pub fn called(&self) -> usize {
        self.called.load(Ordering::Acquire)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Ends the accept that its thread waits in.
        let _ = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A protocol in which the server speaks first.
#[derive(Clone, Copy)]
pub struct Protocol {
    /// Its name, and that of its service.
    pub name: &'static str,
    /// Its port.
    pub port: u16,
    /// What stands in its greeting and in no other packet.
    pub mark: &'static str,
    /// The server's half of a conversation.
    pub serve: fn(TcpStream) -> io::Result<()>,
    call: fn(&mut TcpStream) -> io::Result<Instant>,
}

impl Protocol {
    /// Connects, says nothing until it is greeted, and holds the whole conversation. From the beginning to the greeting's last byte.
    pub fn call(&self, pod: &Pod, to: SocketAddr) -> Result<Duration, String> {
        let begun = Instant::now();
        let conversation = || {
            let mut stream = pod.connect(to)?;
            stream.set_read_timeout(Some(SOON))?;
            (self.call)(&mut stream)
        };
        match conversation() {
            Ok(greeted) => Ok(greeted - begun),
            Err(error) => Err(format!("{} at {to}: {error}", self.name)),
        }
    }
}

/// A database: a greeting in binary, a log-in, a ping.
pub const MYSQL: Protocol =
    Protocol { name: "mysql", port: 3306, mark: "8.0.36-canary-19b4e0", serve: mysql_server, call: mysql_client };

/// A mail server: lines of text.
pub const SMTP: Protocol =
    Protocol { name: "mail", port: 25, mark: "220 canary-6d02fa ESMTP", serve: smtp_server, call: smtp_client };

const OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];
const PING: &[u8] = &[0x0e];
const QUIT: &[u8] = &[0x01];
const LOG_IN: &[u8] = b"\x85\xa6\xff\x01\x00\x00\x00\x01\x21canary\0";

/// A packet of MySQL's: three bytes of length, a number that counts within an exchange, the payload.
fn packet(number: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    [&length[..3], &[number], payload].concat()
}

fn read_packet(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut payload = vec![0; usize::from(u16::from_le_bytes([head[0], head[1]]))];
    stream.read_exact(&mut payload)?;
    Ok((head[3], payload))
}

fn expect(got: (u8, Vec<u8>), number: u8, payload: &[u8]) -> io::Result<()> {
    if got.0 == number && got.1 == payload {
        return Ok(());
    }
    Err(io::Error::other(format!("packet {} is {}", got.0, got.1.escape_ascii())))
}

/// A handshake of protocol version 10.
pub fn mysql_greeting() -> Vec<u8> {
    let mut greeting = vec![10];
    greeting.extend_from_slice(MYSQL.mark.as_bytes());
    // Connection 7, the first part of the salt, capabilities, character set, status, length of the salt, reserved.
    greeting.extend_from_slice(b"\0\x07\0\0\0saltsalt\0\xff\xf7\x21\x02\0\xff\xc1\x15\0\0\0\0\0\0\0\0\0\0");
    greeting.extend_from_slice(b"saltsaltsalt\0mysql_native_password\0");
    packet(0, &greeting)
}

fn mysql_server(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(&mysql_greeting())?;
    expect(read_packet(&mut stream)?, 1, LOG_IN)?;
    stream.write_all(&packet(2, OK))?;
    expect(read_packet(&mut stream)?, 0, PING)?;
    stream.write_all(&packet(1, OK))?;
    expect(read_packet(&mut stream)?, 0, QUIT)
}

fn mysql_client(stream: &mut TcpStream) -> io::Result<Instant> {
    let greeting = read_packet(stream)?;
    let greeted = Instant::now();
    expect(greeting, 0, &mysql_greeting()[4..])?;
    stream.write_all(&packet(1, LOG_IN))?;
    expect(read_packet(stream)?, 2, OK)?;
    stream.write_all(&packet(0, PING))?;
    expect(read_packet(stream)?, 1, OK)?;
    stream.write_all(&packet(0, QUIT))?;
    ended(stream)?;
    Ok(greeted)
}

fn smtp_server(stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(&stream);
    (&stream).write_all(format!("{}\r\n", SMTP.mark).as_bytes())?;
    hear(&mut lines, "EHLO client.shop")?;
    (&stream).write_all(b"250-mail.shop\r\n250 8BITMIME\r\n")?;
    hear(&mut lines, "QUIT")?;
    (&stream).write_all(b"221 bye\r\n")
}

fn smtp_client(stream: &mut TcpStream) -> io::Result<Instant> {
    let mut lines = BufReader::new(&*stream);
    hear(&mut lines, SMTP.mark)?;
    let greeted = Instant::now();
    (&*stream).write_all(b"EHLO client.shop\r\n")?;
    hear(&mut lines, "250-mail.shop")?;
    hear(&mut lines, "250 8BITMIME")?;
    (&*stream).write_all(b"QUIT\r\n")?;
    hear(&mut lines, "221 bye")?;
    drop(lines);
    ended(stream)?;
    Ok(greeted)
}

fn hear(lines: &mut BufReader<&TcpStream>, wanted: &str) -> io::Result<()> {
    let mut line = String::new();
    lines.read_line(&mut line)?;
    if line.trim_end() == wanted { Ok(()) } else { Err(io::Error::other(format!("{line:?}, not {wanted:?}"))) }
}

/// The server closes in order once all is said.
fn ended(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 16])? {
        0 => Ok(()),
        more => Err(io::Error::other(format!("{more} bytes after the end"))),
    }
}
