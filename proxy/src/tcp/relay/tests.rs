//! Half-closes, breaks and slow readers, between two streams.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Join, ReadBuf, duplex};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::direction::{FREE, MAX_BULK};
use super::lookout::{LOOK, fault};
use super::*;
use crate::scratch;

impl Joined for DuplexStream {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Joined for Join<R, W> {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

fn joined(capacity: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Relayed>) {
    let (client, mut a) = duplex(capacity);
    let (server, mut b) = duplex(capacity);
    let task = tokio::spawn(async move { relay(&mut a, &mut b).await });
    (client, server, task)
}

#[tokio::test]
async fn one_direction_ends_and_the_other_goes_on() {
    let (mut client, mut server, task) = joined(1024);
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"a longer answer").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "a longer answer");
    let relayed = task.await.unwrap();
    assert_eq!((relayed.sent, relayed.received), (8, 15));
    assert!(relayed.broken.is_none());
}

#[tokio::test]
async fn a_slow_reader_is_waited_for_and_nothing_is_lost() {
    let (mut client, mut server, task) = joined(100);
    let data: Vec<u8> = (0..1_000_000_u32).map(|i| i as u8).collect();
    let sent = data.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert!(got == data);
    drop(server);
    drop(writer.await.unwrap());
    assert_eq!(task.await.unwrap().sent, 1_000_000);
}

/// Gives the pieces, from the last to the first, then it breaks.
struct Breaks(Vec<&'static [u8]>);

impl AsyncRead for Breaks {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let piece = self.0.pop().ok_or(io::ErrorKind::ConnectionReset);
        Poll::Ready(piece.map(|piece| buf.put_slice(piece)).map_err(io::Error::from))
    }
}

#[tokio::test]
async fn what_came_before_a_break_arrives() {
    let mut a = tokio::io::join(Breaks(vec![b"words", b"last "]), tokio::io::sink());
    let (mut server, mut b) = duplex(1024);
    let relayed = relay(&mut a, &mut b).await;
    assert!(matches!(relayed.broken, Some(Broken::First(_))), "{relayed:?}");
    let mut heard = [0; 10];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"last words");
    assert_eq!(relayed.sent, 10);
}

#[tokio::test]
async fn a_stop_ends_it() {
    let (_client, mut a) = duplex(16);
    let (_server, mut b) = duplex(16);
    let (relayed, stopped) = relay_until(&mut a, &mut b, async { 7 }).await;
    assert_eq!(stopped, Some(7));
    assert_eq!(relayed.sent, 0);
}

// The end that stays, and the end that is relayed.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

// Relays between two sockets, and passes a break on as both sides of the proxy do.
async fn connected() -> (TcpStream, TcpStream) {
    let ((client, mut a), (server, mut b)) = (pair().await, pair().await);
    tokio::spawn(async move { relay(&mut a, &mut b).await.pass_break_on(&a, &b) });
    (client, server)
}

// Within a second, and a bit for a busy machine. Who has read the end reads it again; the error is told on asking and on writing.
async fn is_reset(socket: TcpStream) {
    let waiting = async {
        while fault(&socket).is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(2), waiting).await.expect("the reset in time");
}

async fn half_closes(near: &mut TcpStream, far: &mut TcpStream) {
    near.shutdown().await.unwrap();
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_passed_on_while_the_other_is_silent() {
    let (mut client, mut server) = connected().await;
    half_closes(&mut client, &mut server).await;
    reset_on_close(&client);
    drop(client);
    is_reset(server).await;

    let (mut client, mut server) = connected().await;
    half_closes(&mut server, &mut client).await;
    reset_on_close(&server);
    drop(server);
    is_reset(client).await;
}

#[tokio::test]
async fn half_closed_and_silent_for_long_it_goes_on() {
    let (mut client, mut server) = connected().await;
    half_closes(&mut client, &mut server).await;
    sleep(LOOK * 3).await;
    server.write_all(b"late").await.unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "late");
}

#[tokio::test]
async fn a_reset_is_passed_on_to_who_does_not_read() {
    let (mut client, server) = connected().await;
    // Until nobody takes any more: neither the sockets nor the relay.
    let block = vec![7; 1 << 20];
    while timeout(Duration::from_millis(300), client.write(&block)).await.is_ok() {}
    reset_on_close(&client);
    drop(client);
    is_reset(server).await;
}

#[tokio::test]
async fn a_stream_in_bulk_arrives_whole_and_is_held_by_one_read_only() {
    const SIZE: usize = scratch::SIZE + 4 * scratch::BULK + 7;
    let data: Vec<u8> = (0..SIZE).map(|i| (i * 31 / 7) as u8).collect();
    // Room for all of it, and for little.
    for capacity in [SIZE, 10_000] {
        let (mut client, mut a) = duplex(SIZE);
        let (mut server, mut b) = duplex(capacity);
        client.write_all(&data).await.unwrap();
        client.shutdown().await.unwrap();
        let mut there = Direction::default();
        let mut got = Vec::new();
        let mut some = vec![0; SIZE];
        loop {
            let ended = poll_fn(|cx| Poll::Ready(matches!(there.poll(cx, &mut a, &mut b), Poll::Ready(Ok(()))))).await;
            assert!(there.held.len() <= scratch::BULK);
            let read = timeout(Duration::from_millis(1), server.read(&mut some)).await;
            got.extend_from_slice(&some[..read.map_or(0, Result::unwrap)]);
            if ended && got.len() == SIZE {
                break;
            }
        }
        assert!(got == data);
        assert!(there.bulk.is_none(), "its last read was small");
    }
}

#[tokio::test]
async fn bulk_between_sockets_stays_in_the_kernel_and_arrives_whole() {
    const SIZE: usize = 24 << 20;
    let (mut client, mut server) = connected().await;
    let data: Vec<u8> = (0..SIZE).map(|i| (i * 31 / 7) as u8).collect();
    let sent = data.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    // A reader that stands still until the pipe has waited for it, too.
    sleep(Duration::from_millis(300)).await;
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert!(got == data);
    assert!(crate::tcp::splice::has_spare(), "no pipe was used");
    server.write_all(b"thanks").await.unwrap();
    drop(server);
    let mut answer = String::new();
    writer.await.unwrap().read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "thanks");
}

#[tokio::test]
async fn places_in_bulk_are_given_back() {
    let before = FREE.load(Ordering::Relaxed);
    let (mut client, server, task) = joined(scratch::BULK);
    client.write_all(&vec![7; scratch::SIZE]).await.unwrap();
    drop((client, server));
    task.await.unwrap();
    // Others of this program's tests take and give back places too.
    let given_back = async {
        while FREE.load(Ordering::Relaxed) < before.min(MAX_BULK - 4) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), given_back).await.expect("as many places as before");
}
